//! How the encoders use an importance matrix.

use crate::codec::stored_type::StoredType;

/// What an encoder does with the importance of columns (the mean squares of their inputs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportanceUse {
    /// The bytes are the same with and without it.
    Ignored,
    /// Errors are weighted by it where there is one.
    Optional,
    /// There is no encoder without it.
    Required,
}

/// How the encoder of `dtype` uses an importance matrix (`ggml_quantize_requires_imatrix` for those
/// that need one).
///
/// `llama-quantize` asks for one in more cases (`IQ1_M`, `IQ2_S`, `IQ3_XXS`, and `Q2_K` at the level
/// `Q2_K_S`) because the result would be poor, not because there is no encoder.
#[must_use]
pub const fn importance_use(dtype: StoredType) -> ImportanceUse {
    match dtype {
        StoredType::IQ2_XXS | StoredType::IQ2_XS | StoredType::IQ1_S => ImportanceUse::Required,
        StoredType::Q4_0
        | StoredType::Q4_1
        | StoredType::Q5_0
        | StoredType::Q5_1
        | StoredType::Q2_K
        | StoredType::Q3_K
        | StoredType::Q4_K
        | StoredType::Q5_K
        | StoredType::Q6_K
        | StoredType::IQ1_M
        | StoredType::IQ2_S
        | StoredType::IQ3_XXS
        | StoredType::IQ3_S
        | StoredType::IQ4_NL
        | StoredType::IQ4_XS => ImportanceUse::Optional,
        StoredType::F32
        | StoredType::F16
        | StoredType::BF16
        | StoredType::Q8_0
        | StoredType::TQ1_0
        | StoredType::TQ2_0
        | StoredType::Q1_0
        | StoredType::Q2_0
        | StoredType::MXFP4
        | StoredType::NVFP4
        | StoredType::I8
        | StoredType::I16
        | StoredType::I32
        | StoredType::I64
        | StoredType::F64 => ImportanceUse::Ignored,
    }
}
