//! F32, F16 and BF16, little-endian, at any alignment.

use half::f16;
use half::slice::HalfFloatSliceExt;

#[inline(always)]
pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

#[inline(always)]
pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// Uses the conversion instructions of the processor (through `half`) where there are any; bytes
/// at odd addresses pass through a small aligned buffer.
#[inline(always)]
pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const STEP: usize = 64;
    if cfg!(target_endian = "little")
        && let Ok(values) = bytemuck::try_cast_slice::<u8, f16>(bytes)
    {
        values.convert_to_f32_slice(out);
        return;
    }
    let mut buffer = [f16::ZERO; STEP];
    for (out, bytes) in out.chunks_mut(STEP).zip(bytes.chunks(2 * STEP)) {
        let buffer = &mut buffer[..out.len()];
        for (value, bytes) in buffer.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = f16::from_le_bytes(*bytes);
        }
        buffer.convert_to_f32_slice(out);
    }
}

#[inline(always)]
pub(super) fn decode_i8(bytes: &[u8], out: &mut [f32]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = f32::from(byte.cast_signed());
    }
}

#[inline(always)]
pub(super) fn decode_i16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f32::from(i16::from_le_bytes(*bytes));
    }
}

/// To the nearest f32, as for all types with more digits than that.
#[inline(always)]
pub(super) fn decode_i32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out = i32::from_le_bytes(*bytes) as f32;
    }
}

#[inline(always)]
pub(super) fn decode_i64(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *out = i64::from_le_bytes(*bytes) as f32;
    }
}

/// What is finite stays finite: numbers beyond the range of f32 become its largest.
#[inline(always)]
pub(super) fn decode_f64(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
        let value = f64::from_le_bytes(*bytes);
        let most = f64::from(f32::MAX);
        *out = if value.is_finite() { value.clamp(-most, most) as f32 } else { value as f32 };
    }
}

#[inline(always)]
pub(super) fn encode_f32(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Round to nearest, ties to even; what does not fit becomes infinite.
#[inline(always)]
pub(super) fn encode_f16(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *bytes = f16::from_f32(*value).to_le_bytes();
    }
}

/// Round to nearest, ties to even.
#[inline(always)]
pub(super) fn encode_bf16(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *bytes = half::bf16::from_f32(*value).to_le_bytes();
    }
}
