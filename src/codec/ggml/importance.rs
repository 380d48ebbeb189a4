//! How the encoders use an importance matrix.

use super::StoredType;

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
    dtype.row().importance
}
