//! Decoders of stored types, one row at a time.

use super::StoredType;

/// Decodes a row of whole blocks into `out`.
pub fn decode(_dtype: StoredType, _bytes: &[u8], _out: &mut [f32]) {
    unreachable!()
}
