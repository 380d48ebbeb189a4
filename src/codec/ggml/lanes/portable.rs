//! Lanes for every processor, and what the others are tested against.

use std::ops::{Add, Div, Mul, Sub};

use super::{LANES, Lane, Lanes, Mask};
use crate::codec::ggml::search::nearest;

/// An array that the compiler spreads over what vectors the target has.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Portable(Lane<f32>);

macro_rules! operator {
    ($trait:ident, $method:ident, $assign:tt) => {
        impl $trait for Portable {
            type Output = Self;

            #[inline(always)]
            fn $method(mut self, other: Self) -> Self {
                for l in 0..LANES {
                    self.0[l] $assign other.0[l];
                }
                self
            }
        }
    };
}

operator!(Add, add, +=);
operator!(Sub, sub, -=);
operator!(Mul, mul, *=);
operator!(Div, div, /=);

impl Lanes for Portable {
    type Mask = Lane<bool>;
    type Codes = Lane<u16>;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &Lane<f32>) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self) -> Lane<f32> {
        self.0
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn less(self, other: Self) -> Self::Mask {
        std::array::from_fn(|l| self.0[l] < other.0[l])
    }

    #[inline(always)]
    fn less_or_equal(self, other: Self) -> Self::Mask {
        std::array::from_fn(|l| self.0[l] <= other.0[l])
    }

    #[expect(clippy::float_cmp, reason = "equality is meant")]
    #[inline(always)]
    fn equal(self, other: Self) -> Self::Mask {
        std::array::from_fn(|l| self.0[l] == other.0[l])
    }

    #[inline(always)]
    fn replace(self, mask: Self::Mask, yes: Self) -> Self {
        Self(std::array::from_fn(|l| if mask[l] { yes.0[l] } else { self.0[l] }))
    }

    #[inline(always)]
    fn nearest(self, low: i32, high: i32) -> Self {
        Self(self.0.map(|value| nearest(value).clamp(low, high) as f32))
    }

    #[inline(always)]
    fn codes(codes: &Lane<u16>) -> Self::Codes {
        *codes
    }

    #[inline(always)]
    fn pick(codes: Self::Codes, shift: usize, table: &[f32]) -> Self {
        Self(codes.map(|code| table[usize::from(code >> shift) & (table.len() - 1)]))
    }

    #[inline(always)]
    fn smallest(self) -> f32 {
        self.0.iter().fold(f32::INFINITY, |least, &lane| if lane < least { lane } else { least })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |most, &lane| if lane > most { lane } else { most })
    }

    #[inline(always)]
    fn truncate(self, top: u8) -> Lane<u8> {
        // 2^31, the first float that is no i32.
        let whole = |value: f32| if value.abs() < 2_147_483_648.0 { value as i32 } else { 0 };
        self.0.map(|value| (whole(value) as u8).min(top))
    }
}

impl Mask for Lane<bool> {
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] && other[l])
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] || other[l])
    }

    #[inline(always)]
    fn any(self) -> bool {
        self.iter().any(|truth| *truth)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.iter().enumerate().fold(0, |bits, (l, &truth)| bits | (u16::from(truth) << l))
    }
}
