//! What follows from the row of a type in the table of all types.

use super::ggml::StoredType;
use super::ggml::table::Row;

/// The largest f16, and the half of a step that rounds to it.
const LARGEST_HALF: f32 = 65_520.0;

impl StoredType {
    /// The number in GGUF files.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.row().id
    }

    /// The type with that number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// The name in ggml's spelling (`Q4_K`), lower case in the `.littlebit` header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The type of weights of that name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::of_weights().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The types that can be written, by number.
    pub fn writable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| !kind.is_copied())
    }

    /// The types that weights may have, by number; not all of them can be written.
    pub fn of_weights() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kind| kind.holds_weights())
    }

    /// Whether matrices of weights may have the type: not tables of integers, nor what has more digits
    /// than f32.
    #[must_use]
    pub const fn holds_weights(self) -> bool {
        self.row().holds_weights
    }

    /// Itself, if matrices of weights may have it.
    #[must_use]
    pub const fn for_weights(self) -> Option<Self> {
        if self.holds_weights() { Some(self) } else { None }
    }

    /// Values in a block and bytes that a block takes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        self.row().block
    }

    /// Whether values lose precision by the block rather than one by one.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        self.block().0 > 1
    }

    /// Whether rows of `columns` values fill its blocks.
    #[must_use]
    pub const fn fits(self, columns: usize) -> bool {
        columns.is_multiple_of(self.block().0)
    }

    /// Bytes of a row of `columns` values, or `None` if they do not fill whole blocks.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        if self.fits(columns) { (columns / values).checked_mul(bytes) } else { None }
    }

    /// Bytes of a tensor of `shape` (outermost first), or `None` if its rows do not fill whole blocks
    /// or the size overflows.
    #[must_use]
    pub fn byte_length(self, shape: &[usize]) -> Option<usize> {
        let (&columns, outer) = shape.split_last()?;
        let rows = outer.iter().try_fold(1usize, |rows, &size| rows.checked_mul(size))?;
        self.row_bytes(columns)?.checked_mul(rows)
    }

    /// Bits that a value takes, block overhead included.
    #[must_use]
    pub fn bits_per_weight(self) -> f64 {
        let (values, bytes) = self.block();
        (bytes * 8) as f64 / values as f64
    }

    /// What llama.cpp writes instead where rows of `columns` values do not fill the blocks: a type
    /// with blocks of 32, and where those do not fit either, F16.
    #[must_use]
    pub fn fallback(self, columns: usize) -> Self {
        let narrower = self.row().narrower;
        let fitting = [Some(self), narrower].into_iter().flatten().find(|kind| kind.fits(columns));
        fitting.unwrap_or(Self::F16)
    }

    /// Whether a tensor of this type is worthless without an importance matrix, so that
    /// llama-quantize refuses to write one (token embeddings and output excepted).
    #[must_use]
    pub const fn needs_importance(self) -> bool {
        self.row().needs_importance
    }

    /// Whether tensors of the type are copied as they are, never encoded: tables of integers, what
    /// has more digits than f32, and blocks whose values mean something only with another tensor's.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.row().encode.is_none()
    }

    /// Whether blocks have a minimum besides the scale.
    #[must_use]
    pub(crate) const fn has_minimum(self) -> bool {
        self.row().minimum
    }

    /// Values that share a scale of their own, at least.
    #[must_use]
    pub(crate) const fn part(self) -> usize {
        self.row().part
    }

    /// The largest magnitude that it can stand for, rounding included; infinite where only its scale
    /// decides, which shows when it is decoded.
    #[must_use]
    pub(crate) const fn reach(self) -> f32 {
        LARGEST_HALF * self.row().reach
    }
}

const _: () = {
    let all = StoredType::ALL;
    let mut at = 0;
    while at < all.len() {
        let row: &Row = all[at].row();
        assert!(at == 0 || all[at - 1].id() < row.id, "rows are in the order of the numbers");
        assert!(row.block.0 > 0 && row.block.1 > 0 && row.part > 0);
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits per weight as ggml publishes them, for types whose block sizes are stated nowhere else
    /// in this crate.
    #[test]
    fn sizes_are_those_of_ggml() {
        for (name, bits) in [
            ("IQ2_XXS", 2.0625),
            ("IQ2_XS", 2.3125),
            ("IQ3_XXS", 3.0625),
            ("IQ1_S", 1.5625),
            ("IQ4_NL", 4.5),
            ("IQ3_S", 3.4375),
            ("IQ2_S", 2.5625),
            ("IQ4_XS", 4.25),
            ("IQ1_M", 1.75),
            ("TQ1_0", 1.6875),
            ("TQ2_0", 2.0625),
            ("MXFP4", 4.25),
            ("NVFP4", 4.5),
            ("Q1_0", 1.125),
            ("Q2_0", 2.25),
            ("Q2_K", 2.625),
            ("Q3_K", 3.4375),
            ("Q4_K", 4.5),
            ("Q5_K", 5.5),
            ("Q6_K", 6.5625),
        ] {
            let actual = StoredType::from_name(name).unwrap().bits_per_weight();
            assert!((actual - bits).abs() < 1e-12, "{name}: {actual}");
        }
    }

    #[test]
    fn numbers_and_names_lead_back_to_the_type() {
        for kind in StoredType::ALL {
            assert_eq!(StoredType::from_id(kind.id()), Some(kind));
            assert_eq!(format!("{kind:?}"), kind.name());
            let named = StoredType::from_name(&kind.name().to_lowercase());
            assert_eq!(named, kind.holds_weights().then_some(kind));
        }
        assert_eq!(StoredType::from_id(4), None);
    }

    #[test]
    fn bytes_of_shapes() {
        assert_eq!(StoredType::Q8_0.byte_length(&[3, 64]), Some(3 * 68));
        assert_eq!(StoredType::Q8_0.byte_length(&[3, 33]), None);
        assert_eq!(StoredType::F32.byte_length(&[usize::MAX, 2]), None);
        assert_eq!(StoredType::F32.byte_length(&[]), None);
    }

    /// The chain of llama.cpp's `tensor_type_fallback`.
    #[test]
    fn narrow_rows_fall_back() {
        use StoredType::{
            F16, F32, IQ1_S, IQ2_XXS, IQ4_NL, IQ4_XS, Q1_0, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1,
            Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
        };
        for (from, to) in [
            (IQ1_S, IQ4_NL),
            (IQ2_XXS, IQ4_NL),
            (IQ4_XS, IQ4_NL),
            (Q1_0, Q4_0),
            (Q2_K, Q4_0),
            (Q3_K, Q4_0),
            (TQ1_0, Q4_0),
            (TQ2_0, Q4_0),
            (Q4_K, Q5_0),
            (Q5_K, Q5_1),
            (Q6_K, Q8_0),
            (Q8_0, Q8_0),
        ] {
            assert_eq!(from.fallback(576), to);
            assert_eq!(from.fallback(172), F16);
            assert_eq!(from.fallback(2048), from);
        }
        assert_eq!(F32.fallback(7), F32);
    }
}
