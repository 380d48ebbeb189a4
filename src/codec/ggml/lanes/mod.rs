//! Sixteen independent calculations side by side.
//!
//! The searches of the encoders are sums whose order decides the bytes, so the values of one group
//! cannot be spread over a vector. Sixteen groups can: lane `l` of every vector belongs to group
//! `l`, and each lane does what ggml does for its group, in the same order. Where ggml branches,
//! lanes select. No implementation contracts a product and a sum into one rounding.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Div, Mul, Sub};

pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// One value per lane.
pub(super) type Lane<T> = [T; LANES];

/// Adding 1.5·2^23 leaves the nearest integer, ties to even, in the low mantissa bits.
pub(super) const ROUNDER: f32 = 12_582_912.0;
/// The mantissa bits that hold it.
pub(super) const ROUNDED_BITS: i32 = 0x007f_ffff;
/// What they hold for zero.
pub(super) const ROUNDED_ZERO: i32 = 0x0040_0000;

/// Sixteen f32.
pub(super) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Sixteen truth values.
    type Mask: Mask;
    /// Sixteen codes.
    type Codes: Copy;

    fn splat(value: f32) -> Self;
    fn load(values: &Lane<f32>) -> Self;
    fn store(self) -> Lane<f32>;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;
    /// `self < other`, false for NaN.
    fn less(self, other: Self) -> Self::Mask;
    /// `self <= other`, false for NaN.
    fn less_or_equal(self, other: Self) -> Self::Mask;
    /// `self == other`, false for NaN.
    fn equal(self, other: Self) -> Self::Mask;
    /// `yes` where the mask holds, `self` elsewhere.
    fn replace(self, mask: Self::Mask, yes: Self) -> Self;
    /// The nearest integer as [`super::search::nearest`] finds it, between `low` and `high`.
    fn nearest(self, low: i32, high: i32) -> Self;
    fn codes(codes: &Lane<u16>) -> Self::Codes;
    /// The entry of `table` that the bits of each code from `shift` on number. The table has four
    /// entries, numbered by two bits, or eight, numbered by three of which the next higher is clear.
    fn pick(codes: Self::Codes, shift: usize, table: &[f32]) -> Self;
    /// The smallest lane, if none is NaN.
    fn smallest(self) -> f32;
    /// The largest lane, if none is NaN.
    fn largest(self) -> f32;
    /// The low byte of each lane's integer part, at most `top`; 0 for what is no i32.
    fn truncate(self, top: u8) -> Lane<u8>;
    /// Low bytes of lanes that hold integers in `0..256`.
    #[inline(always)]
    fn bytes(self) -> Lane<u8> {
        self.truncate(u8::MAX)
    }

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self::Mask {
        other.less(self)
    }
}

/// Sixteen truth values.
pub(super) trait Mask: Copy {
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn any(self) -> bool;
    /// Lane `l` in bit `l`.
    fn bits(self) -> u16;
}

/// Up to [`LANES`] groups of `G` values as vectors over lanes, `[G, LANES]`; lanes without a group
/// are zero.
#[inline(always)]
pub(super) fn spread<const G: usize>(groups: &[[f32; G]]) -> [Lane<f32>; G] {
    if let Ok(groups) = groups.try_into() {
        return transpose(groups);
    }
    let mut padded = [[0.0; G]; LANES];
    padded[..groups.len()].copy_from_slice(groups);
    transpose(&padded)
}

#[inline(always)]
fn transpose<const G: usize>(groups: &[[f32; G]; LANES]) -> [Lane<f32>; G] {
    let mut lanes = [[0.0; LANES]; G];
    // Tiles of a cache line each way.
    for tile in 0..G / LANES {
        for (l, group) in groups.iter().enumerate() {
            for i in 0..LANES {
                lanes[tile * LANES + i][l] = group[tile * LANES + i];
            }
        }
    }
    for i in G / LANES * LANES..G {
        for (l, group) in groups.iter().enumerate() {
            lanes[i][l] = group[i];
        }
    }
    lanes
}
