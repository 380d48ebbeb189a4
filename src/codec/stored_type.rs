//! The types of ggml in which tensors are stored: names and sizes of their blocks.

/// Element types that can be read: the plain ones of safetensors and the block types of GGUF.
/// Block layouts: `docs` of ggml, type ids as in the GGUF file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
#[expect(non_camel_case_types, reason = "the names are ggml's")]
pub enum StoredType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    Q1_0,
    Q2_0,
    MXFP4,
    NVFP4,
    I8,
    I16,
    I32,
    I64,
    F64,
}

impl StoredType {
    /// Values in a block and bytes that a block takes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 | Self::I32 => (1, 4),
            Self::F16 | Self::BF16 | Self::I16 => (1, 2),
            Self::I8 => (1, 1),
            Self::I64 | Self::F64 => (1, 8),
            Self::NVFP4 => (64, 36),
            Self::MXFP4 => (32, 17),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_0 => (64, 18),
            Self::Q1_0 => (128, 18),
            Self::IQ1_S => (256, 50),
            Self::TQ1_0 => (256, 54),
            Self::IQ1_M => (256, 56),
            Self::IQ2_XXS | Self::TQ2_0 => (256, 66),
            Self::IQ2_XS => (256, 74),
            Self::IQ2_S => (256, 82),
            Self::Q2_K => (256, 84),
            Self::IQ3_XXS => (256, 98),
            Self::Q3_K | Self::IQ3_S => (256, 110),
            Self::IQ4_XS => (256, 136),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of a row of `columns` values, or `None` if they do not fill whole blocks.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if columns.is_multiple_of(values) { (columns / values).checked_mul(bytes) } else { None }
    }

    /// The type with blocks of 32 that llama.cpp writes instead of one with larger blocks where
    /// rows do not fill those.
    #[must_use]
    pub const fn narrower(self) -> Option<Self> {
        match self {
            Self::IQ1_S
            | Self::IQ1_M
            | Self::IQ2_XXS
            | Self::IQ2_XS
            | Self::IQ2_S
            | Self::IQ3_XXS
            | Self::IQ3_S
            | Self::IQ4_XS => Some(Self::IQ4_NL),
            Self::Q2_0 | Self::Q2_K | Self::Q3_K | Self::TQ1_0 | Self::TQ2_0 => Some(Self::Q4_0),
            Self::Q4_K => Some(Self::Q5_0),
            Self::Q5_K => Some(Self::Q5_1),
            Self::Q6_K => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Bits that a value takes, block overhead included.
    #[must_use]
    pub fn bits_per_weight(self) -> f64 {
        let (values, bytes) = self.block();
        (bytes * 8) as f64 / values as f64
    }

    /// The name in ggml's spelling (`Q4_K`), lower case in the `.littlebit` header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ1_S => "IQ1_S",
            Self::IQ1_M => "IQ1_M",
            Self::IQ2_XXS => "IQ2_XXS",
            Self::IQ2_XS => "IQ2_XS",
            Self::IQ2_S => "IQ2_S",
            Self::IQ3_XXS => "IQ3_XXS",
            Self::IQ3_S => "IQ3_S",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::Q1_0 => "Q1_0",
            Self::Q2_0 => "Q2_0",
            Self::MXFP4 => "MXFP4",
            Self::NVFP4 => "NVFP4",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }

    /// Whether tensors of the type are copied as they are, never encoded: tables of integers, what
    /// has more digits than f32, and blocks whose values mean something only with another tensor's.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        matches!(self, Self::NVFP4 | Self::I8 | Self::I16 | Self::I32 | Self::I64 | Self::F64)
    }

    /// All types that weights may be written in, in the order of the enum.
    pub const ALL: [Self; 27] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ1_S,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ3_XXS,
        Self::IQ3_S,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::Q1_0,
        Self::Q2_0,
        Self::MXFP4,
    ];

    /// The type of that name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
}
