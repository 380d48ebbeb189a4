//! The types of ggml in which tensors are stored: one table with all that distinguishes them.
//!
//! Everything else follows from it: [`StoredType`] itself, the numbers of GGUF files, names in options,
//! decoders and encoders, and what may be written instead of what. To add a type:
//!
//! 1. Write its decoder and its encoder in a module of [`codec::ggml`](crate::codec::ggml), one of
//!    those there or a new one. A type that is only copied needs neither.
//! 2. Add a row here, in the order of the numbers. What a row leaves out is as in [`Row::NEW`].
//!
//! A dot product of its own is a kernel in `codec::vector`, named in the row. What is a choice and no
//! fact of a type is made elsewhere, if at all: a level of its own (`job::gguf::level`), whether a
//! budget may choose it (`job::gguf::budget::candidates`), and the width that it counts as in a profile
//! (`job::profile::widths`, 16 bits unless stated).
//!
//! Numbers that are missing were withdrawn, hold blocks that runtimes rearrange in memory, or never
//! reach a file.

use super::importance::ImportanceUse;
use super::{
    four_bits, iq_blocks, iq_decode, iq1_encode, k_decode, k_encode, lanes, legacy,
    legacy_weighted, plain, ternary,
};
use crate::codec::vector::{Kernels, RowsKernel};

/// A function of bytes that are whole blocks and the values to fill.
pub(in crate::codec) type Decode = unsafe fn(&[u8], &mut [f32]);
/// A function of values, an importance for each of them, and the bytes to fill.
pub(in crate::codec) type Encode = unsafe fn(&[f32], Option<&[f32]>, &mut [u8]);

/// One function, compiled for several sets of instructions.
#[derive(Clone, Copy)]
pub(in crate::codec) struct Builds<F> {
    /// For the baseline: safe to call.
    pub portable: F,
    /// Safe to call where the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    pub avx2: F,
    /// Safe to call where the processor has AVX-512 F, BW, DQ and VL; none where it gains nothing.
    #[cfg(target_arch = "x86_64")]
    pub avx512: Option<F>,
}

impl<F: Copy> Builds<F> {
    /// The fastest build that this processor runs.
    #[inline]
    pub(in crate::codec) fn best(&self) -> F {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = self.avx512
                && std::is_x86_feature_detected!("avx512f")
                && std::is_x86_feature_detected!("avx512bw")
                && std::is_x86_feature_detected!("avx512dq")
                && std::is_x86_feature_detected!("avx512vl")
            {
                return avx512;
            }
            if std::is_x86_feature_detected!("avx2") {
                return self.avx2;
            }
        }
        self.portable
    }
}

macro_rules! decoder {
    ($module:ident::$decode:ident) => {
        Some(Builds::<Decode> {
            portable: $module::$decode,
            #[cfg(target_arch = "x86_64")]
            avx2: {
                #[target_feature(enable = "avx2")]
                fn avx2(bytes: &[u8], out: &mut [f32]) {
                    $module::$decode(bytes, out);
                }
                avx2
            },
            #[cfg(target_arch = "x86_64")]
            avx512: None,
        })
    };
}

/// An encoder as it is, or one over lanes of the set's width; without or with an importance matrix.
macro_rules! encoder {
    ($module:ident::$encode:ident) => {
        encoder!(@ |values, _i, bytes| $module::$encode, [] [] [], (values, bytes))
    };
    ($module:ident::$encode:ident on lanes) => {
        encoder!(@ |values, _i, bytes| $module::$encode,
            [::<lanes::Portable>] [::<lanes::Avx2>] [::<lanes::Avx512>], (values, bytes))
    };
    ($module:ident::$encode:ident on lanes, weighted) => {
        encoder!(@ |values, importance, bytes| $module::$encode,
            [::<lanes::Portable>] [::<lanes::Avx2>] [::<lanes::Avx512>],
            (values, importance, bytes))
    };
    (@ |$values:ident, $importance:ident, $bytes:ident| $module:ident::$encode:ident,
        [$($portable:tt)*] [$($avx2:tt)*] [$($avx512:tt)*], $arguments:tt) => {
        Some(Builds::<Encode> {
            portable: |$values, $importance, $bytes| {
                $module::$encode $($portable)* $arguments;
            },
            #[cfg(target_arch = "x86_64")]
            avx2: {
                #[target_feature(enable = "avx2")]
                fn avx2($values: &[f32], $importance: Option<&[f32]>, $bytes: &mut [u8]) {
                    $module::$encode $($avx2)* $arguments;
                }
                avx2
            },
            #[cfg(target_arch = "x86_64")]
            avx512: {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($values: &[f32], $importance: Option<&[f32]>, $bytes: &mut [u8]) {
                    $module::$encode $($avx512)* $arguments;
                }
                Some(avx512)
            },
        })
    };
}

/// What distinguishes a type.
pub(in crate::codec) struct Row {
    /// The number in GGUF files.
    pub id: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Values in a block and bytes that a block takes.
    pub block: (usize, usize),
    /// What llama.cpp writes instead, with blocks of 32, where rows do not fill the blocks.
    pub narrower: Option<StoredType>,
    /// How the encoder uses an importance matrix.
    pub importance: ImportanceUse,
    /// Whether a tensor is worthless without an importance matrix, so that llama-quantize refuses to
    /// write one (token embeddings and output excepted).
    pub needs_importance: bool,
    /// Whether blocks have a minimum besides the scale.
    pub minimum: bool,
    /// Values that share a scale of their own, at least.
    pub part: usize,
    /// The largest magnitude as a multiple of the largest scale, which is f16, rounding included;
    /// infinite where only the scale decides, which shows when it is decoded.
    pub reach: f32,
    /// Whether matrices of weights may have the type: not tables of integers, nor what has more
    /// digits than f32.
    pub holds_weights: bool,
    /// The decoder.
    pub(in crate::codec) decode: Option<Builds<Decode>>,
    /// The encoder; none where tensors are only copied.
    pub(in crate::codec) encode: Option<Builds<Encode>>,
    /// The kernel for products with rows, in sets of kernels that have one.
    pub rows: fn(&Kernels) -> Option<RowsKernel>,
}

impl Row {
    /// A type that is only copied.
    const NEW: Self = Self {
        id: 0,
        name: "",
        block: (1, 1),
        narrower: None,
        importance: ImportanceUse::Ignored,
        needs_importance: false,
        minimum: false,
        part: 32,
        reach: f32::INFINITY,
        holds_weights: true,
        decode: None,
        encode: None,
        rows: |_| None,
    };
}

macro_rules! types {
    ($($name:ident = $id:literal { $($field:ident: $value:expr,)* })*) => {
        /// Element types that can be read: the plain ones of safetensors and the block types of GGUF.
        /// Block layouts: `docs` of ggml, type ids as in the GGUF file format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the names are ggml's")]
        #[expect(non_camel_case_types, reason = "the names are ggml's")]
        pub enum StoredType {
            $($name,)*
        }

        impl StoredType {
            /// All types, by number.
            pub const ALL: [Self; TABLE.len()] = [$(Self::$name,)*];
        }

        /// The rows in the order of the enum.
        const TABLE: &[Row] = &[$(Row {
            id: $id,
            name: stringify!($name),
            $($field: $value,)*
            ..Row::NEW
        },)*];
    };
}

impl StoredType {
    /// Its row.
    pub(in crate::codec) const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }
}

use StoredType::{IQ4_NL, Q4_0, Q5_0, Q5_1, Q8_0};

types! {
    F32 = 0 {
        block: (1, 4),
        part: 1,
        decode: decoder!(plain::decode_f32),
        encode: encoder!(plain::encode_f32),
        rows: |set| Some(set.rows_f32),
    }
    F16 = 1 {
        block: (1, 2),
        part: 1,
        decode: decoder!(plain::decode_f16),
        encode: encoder!(plain::encode_f16),
        rows: |set| Some(set.rows_f16),
    }
    Q4_0 = 2 {
        block: (32, 18),
        importance: ImportanceUse::Optional,
        reach: 8.5,
        decode: decoder!(legacy::decode_q4_0),
        encode: encoder!(legacy_weighted::encode_q4_0 on lanes, weighted),
        rows: |set| set.rows_q4_0,
    }
    Q4_1 = 3 {
        block: (32, 20),
        importance: ImportanceUse::Optional,
        minimum: true,
        decode: decoder!(legacy::decode_q4_1),
        encode: encoder!(legacy_weighted::encode_q4_1 on lanes, weighted),
        rows: |set| set.rows_q4_1,
    }
    Q5_0 = 6 {
        block: (32, 22),
        importance: ImportanceUse::Optional,
        reach: 16.5,
        decode: decoder!(legacy::decode_q5_0),
        encode: encoder!(legacy_weighted::encode_q5_0 on lanes, weighted),
    }
    Q5_1 = 7 {
        block: (32, 24),
        importance: ImportanceUse::Optional,
        minimum: true,
        decode: decoder!(legacy::decode_q5_1),
        encode: encoder!(legacy_weighted::encode_q5_1 on lanes, weighted),
    }
    Q8_0 = 8 {
        block: (32, 34),
        reach: 128.5,
        decode: decoder!(legacy::decode_q8_0),
        encode: encoder!(legacy::encode_q8_0 on lanes),
        rows: |set| Some(set.rows_q8_0),
    }
    Q2_K = 10 {
        block: (256, 84),
        narrower: Some(Q4_0),
        importance: ImportanceUse::Optional,
        minimum: true,
        part: 16,
        // Scale codes times levels, and the minimum.
        reach: 15.0 * 4.5,
        decode: decoder!(k_decode::decode_q2_k),
        encode: encoder!(k_encode::encode_q2_k on lanes, weighted),
    }
    Q3_K = 11 {
        block: (256, 110),
        narrower: Some(Q4_0),
        importance: ImportanceUse::Optional,
        part: 16,
        reach: 32.0 * 4.5,
        decode: decoder!(k_decode::decode_q3_k),
        encode: encoder!(k_encode::encode_q3_k on lanes, weighted),
    }
    Q4_K = 12 {
        block: (256, 144),
        narrower: Some(Q5_0),
        importance: ImportanceUse::Optional,
        minimum: true,
        reach: 63.0 * 16.5,
        decode: decoder!(k_decode::decode_q4_k),
        encode: encoder!(k_encode::encode_q4_k on lanes, weighted),
        rows: |set| set.rows_q4_k,
    }
    Q5_K = 13 {
        block: (256, 176),
        narrower: Some(Q5_1),
        importance: ImportanceUse::Optional,
        minimum: true,
        reach: 63.0 * 32.5,
        decode: decoder!(k_decode::decode_q5_k),
        encode: encoder!(k_encode::encode_q5_k on lanes, weighted),
    }
    Q6_K = 14 {
        block: (256, 210),
        narrower: Some(Q8_0),
        importance: ImportanceUse::Optional,
        part: 16,
        reach: 128.0 * 32.5,
        decode: decoder!(k_decode::decode_q6_k),
        encode: encoder!(k_encode::encode_q6_k on lanes, weighted),
        rows: |set| set.rows_q6_k,
    }
    IQ2_XXS = 16 {
        block: (256, 66),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Required,
        needs_importance: true,
        // (code + 1/2) times a factor times the largest level of the grid.
        reach: 15.5 * 0.25 * 45.0,
        decode: decoder!(iq_decode::decode_iq2_xxs),
        encode: encoder!(iq_blocks::encode_iq2_xxs on lanes, weighted),
    }
    IQ2_XS = 17 {
        block: (256, 74),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Required,
        needs_importance: true,
        part: 16,
        reach: 15.5 * 0.25 * 45.0,
        decode: decoder!(iq_decode::decode_iq2_xs),
        encode: encoder!(iq_blocks::encode_iq2_xs on lanes, weighted),
    }
    IQ3_XXS = 18 {
        block: (256, 98),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Optional,
        needs_importance: true,
        // (code + 1/2) times a factor times the largest level of the grid: 15.5 × 0.5 × 64.
        reach: 31.0 * 16.0,
        decode: decoder!(iq_decode::decode_iq3_xxs),
        encode: encoder!(iq_blocks::encode_iq3_xxs on lanes, weighted),
    }
    IQ1_S = 19 {
        block: (256, 50),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Required,
        needs_importance: true,
        reach: 15.0 * 1.25,
        decode: decoder!(iq_decode::decode_iq1_s),
        encode: encoder!(iq1_encode::encode_iq1_s on lanes, weighted),
    }
    IQ4_NL = 20 {
        block: (32, 18),
        importance: ImportanceUse::Optional,
        reach: 127.5,
        decode: decoder!(four_bits::decode_iq4_nl),
        encode: encoder!(four_bits::encode_iq4_nl on lanes, weighted),
    }
    IQ3_S = 21 {
        block: (256, 110),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Optional,
        // Odd multiples up to 31 of levels up to 16.
        reach: 31.0 * 16.0,
        decode: decoder!(iq_decode::decode_iq3_s),
        encode: encoder!(iq_blocks::encode_iq3_s on lanes, weighted),
    }
    IQ2_S = 22 {
        block: (256, 82),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Optional,
        needs_importance: true,
        part: 16,
        reach: 15.5 * 0.25 * 45.0,
        decode: decoder!(iq_decode::decode_iq2_s),
        encode: encoder!(iq_blocks::encode_iq2_s on lanes, weighted),
    }
    IQ4_XS = 23 {
        block: (256, 136),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Optional,
        reach: 32.0 * 127.5,
        decode: decoder!(four_bits::decode_iq4_xs),
        encode: encoder!(four_bits::encode_iq4_xs on lanes, weighted),
    }
    I8 = 24 {
        block: (1, 1),
        holds_weights: false,
        decode: decoder!(plain::decode_i8),
    }
    I16 = 25 {
        block: (1, 2),
        holds_weights: false,
        decode: decoder!(plain::decode_i16),
    }
    I32 = 26 {
        block: (1, 4),
        holds_weights: false,
        decode: decoder!(plain::decode_i32),
    }
    I64 = 27 {
        block: (1, 8),
        holds_weights: false,
        decode: decoder!(plain::decode_i64),
    }
    F64 = 28 {
        block: (1, 8),
        holds_weights: false,
        decode: decoder!(plain::decode_f64),
    }
    IQ1_M = 29 {
        block: (256, 56),
        narrower: Some(IQ4_NL),
        importance: ImportanceUse::Optional,
        needs_importance: true,
        part: 16,
        reach: 15.0 * 1.25,
        decode: decoder!(iq_decode::decode_iq1_m),
        encode: encoder!(iq1_encode::encode_iq1_m on lanes, weighted),
    }
    BF16 = 30 {
        block: (1, 2),
        part: 1,
        decode: decoder!(plain::decode_bf16),
        encode: encoder!(plain::encode_bf16),
        rows: |set| Some(set.rows_bf16),
    }
    TQ1_0 = 34 {
        block: (256, 54),
        narrower: Some(Q4_0),
        part: 256,
        decode: decoder!(ternary::decode_tq1_0),
        encode: encoder!(ternary::encode_tq1_0),
    }
    TQ2_0 = 35 {
        block: (256, 66),
        narrower: Some(Q4_0),
        part: 256,
        decode: decoder!(ternary::decode_tq2_0),
        encode: encoder!(ternary::encode_tq2_0),
    }
    MXFP4 = 39 {
        block: (32, 17),
        decode: decoder!(four_bits::decode_mxfp4),
        encode: encoder!(four_bits::encode_mxfp4 on lanes),
    }
    NVFP4 = 40 {
        block: (64, 36),
        narrower: Some(Q5_0),
        decode: decoder!(four_bits::decode_nvfp4),
    }
    Q1_0 = 41 {
        block: (128, 18),
        narrower: Some(Q4_0),
        part: 128,
        decode: decoder!(ternary::decode_q1_0),
        encode: encoder!(ternary::encode_q1_0),
    }
    Q2_0 = 42 {
        block: (64, 18),
        narrower: Some(Q4_0),
        part: 64,
        decode: decoder!(ternary::decode_q2_0),
        encode: encoder!(ternary::encode_q2_0),
    }
}
