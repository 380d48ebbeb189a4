//! Finding the points of a code book.
//!
//! A group of `D` levels that is no point of the book is moved to one of the points around it. Which
//! points count as around is fixed by the format's encoder: those at the smallest few distances, in
//! order of distance and index, because the first of equals wins.

use std::sync::OnceLock;

use super::code_books;
use super::lanes::{LANES, Lane, Lanes, Mask};

/// A code book with, for every group of levels, its index or the points around it. `D` values to a
/// point, `T` a power of two that holds the levels.
pub(super) struct CodeBook<const D: usize, const T: usize> {
    /// By code: an index of the book, or `-1 - list` for a code that is none of its points.
    map: Vec<i32>,
    /// First and last piece of each list.
    lists: Vec<(u32, u32)>,
    /// Codes of the points around; the last piece of a list is filled up with its last point.
    pieces: Vec<[u16; LANES]>,
    /// The points, by index.
    pub(super) points: &'static [u16],
}

/// Books of points with eight levels of two bits.
pub(super) type PairBook = CodeBook<8, 4>;
/// Books of points with four levels of three bits.
pub(super) type QuadBook = CodeBook<4, 8>;

impl<const D: usize, const T: usize> CodeBook<D, T> {
    /// Bits of a code that hold one level.
    pub(super) const BITS: usize = 16 / D;

    /// `levels` are used of the `T`; points at the `near` smallest distances count as around.
    fn new(points: &'static [u16], levels: usize, near: usize) -> Self {
        let mut book =
            Self { map: vec![0; 1 << 16], lists: Vec::new(), pieces: Vec::new(), points };
        for (index, &code) in points.iter().enumerate() {
            book.map[usize::from(code)] = index as i32 + 1;
        }
        // Squared distances between halves of a code, so that one to a point is two look-ups.
        let half_codes: Vec<u16> = (0..1 << 8).filter(|&half| Self::fits(half, levels)).collect();
        let mut from_low = [0u8; 256];
        let mut from_high = [0u8; 256];
        let mut distances = vec![0u8; points.len()];
        for &high in &half_codes {
            Self::distances(high, &half_codes, &mut from_high);
            for &low in &half_codes {
                let code = low | (high << 8);
                if book.map[usize::from(code)] > 0 {
                    continue;
                }
                Self::distances(low, &half_codes, &mut from_low);
                for (distance, point) in distances.iter_mut().zip(points) {
                    let [low, high] = point.to_le_bytes();
                    *distance = from_low[usize::from(low)] + from_high[usize::from(high)];
                }
                book.map[usize::from(code)] = -1 - book.lists.len() as i32;
                book.add_list(&distances, near);
            }
        }
        for entry in &mut book.map {
            // Codes that no group of levels has keep index 0 and are never asked for.
            *entry = if *entry > 0 { *entry - 1 } else { *entry };
        }
        book
    }

    /// Whether all levels in half a code are below `levels`.
    fn fits(half: u16, levels: usize) -> bool {
        (0..D / 2).all(|i| usize::from(half >> (i * Self::BITS)) & (T - 1) < levels)
            && (T == 4 || half & 0x88 == 0)
    }

    /// Squared distances from a half to all others.
    fn distances(from: u16, half_codes: &[u16], distances: &mut [u8; 256]) {
        for &to in half_codes {
            let level = |code: u16, i: usize| i32::from(code >> (i * Self::BITS)) & (T as i32 - 1);
            let sum: i32 = (0..D / 2).map(|i| (level(from, i) - level(to, i)).pow(2)).sum();
            distances[usize::from(to)] = sum as u8;
        }
    }

    /// Adds the points at the `near` smallest distances.
    fn add_list(&mut self, distances: &[u8], near: usize) {
        let first = self.pieces.len();
        let mut count = 0;
        let mut last = None;
        for _ in 0..near {
            let next = distances.iter().filter(|&&d| last.is_none_or(|last| d > last)).min();
            let Some(&next) = next else { break };
            for (&point, _) in self.points.iter().zip(distances).filter(|(_, d)| **d == next) {
                if count % LANES == 0 {
                    self.pieces.push([point; LANES]);
                }
                if let Some(piece) = self.pieces.last_mut() {
                    piece[count % LANES..].fill(point);
                }
                count += 1;
            }
            last = Some(next);
        }
        self.lists.push((first as u32, self.pieces.len() as u32));
    }

    /// The index of a point, or `None`.
    #[inline(always)]
    pub(super) fn index(&self, code: u16) -> Option<u16> {
        u16::try_from(self.map[usize::from(code)]).ok()
    }

    /// The code whose errors have the smallest sum, the first of equals: `code` itself if it is a
    /// point, else one of the points around it. `errors[i][l]` belongs to level `l` of value `i`;
    /// they are added up from value 0 on.
    #[inline(always)]
    pub(super) fn best<V: Lanes>(&self, code: u16, errors: &[[f32; T]; D]) -> u16 {
        let entry = self.map[usize::from(code)];
        if entry >= 0 {
            return code;
        }
        let (first, last) = self.lists[(-1 - entry) as usize];
        let pieces = &self.pieces[first as usize..last as usize];
        let mut best = V::splat(f32::INFINITY);
        let mut at = V::zero();
        for (number, piece) in pieces.iter().enumerate() {
            let codes = V::codes(piece);
            let mut sum = V::zero();
            for (i, errors) in errors.iter().enumerate() {
                sum = sum + V::pick(codes, i * Self::BITS, errors);
            }
            let better = sum.less(best);
            best = best.replace(better, sum);
            at = at.replace(better, V::splat(number as f32));
        }
        let mut lanes = best.equal(V::splat(best.smallest())).bits();
        let number = at.store();
        let mut found = (f32::INFINITY, 0);
        while lanes != 0 {
            let lane = lanes.trailing_zeros() as usize;
            if number[lane] < found.0 {
                found = (number[lane], lane);
            }
            lanes &= lanes - 1;
        }
        // With NaN among the errors nothing is found: any point will do.
        let number = if found.0.is_finite() { found.0 as usize } else { 0 };
        pieces[number][found.1]
    }

    /// Levels of a code.
    #[inline(always)]
    pub(super) fn levels(code: u16) -> [usize; D] {
        std::array::from_fn(|i| usize::from(code >> (i * Self::BITS)) & (T - 1))
    }
}

impl<const D: usize, const T: usize> CodeBook<D, T> {
    /// The number that [`CodeBook::best`] looks up for level `l`: `errors[i][l]` of
    /// `weights[i] * (scale * values_of_levels[l] - x[i])²`.
    #[inline(always)]
    pub(super) fn errors(
        x: &[f32; D],
        weights: &[f32; D],
        scale: f32,
        values_of_levels: &[f32; T],
    ) -> [[f32; T]; D] {
        let scaled = values_of_levels.map(|value| scale * value);
        let mut errors = [[0.0; T]; D];
        for i in 0..D {
            for l in 0..T {
                let difference = scaled[l] - x[i];
                errors[i][l] = weights[i] * difference * difference;
            }
        }
        errors
    }
}

/// Codes of sixteen groups of levels `[D, LANES]` given as f32.
#[inline(always)]
pub(super) fn codes_of<V: Lanes, const D: usize>(levels: &[V; D]) -> Lane<u16> {
    let base = (1u32 << (16 / D)) as f32;
    let mut code = V::zero();
    for level in levels.iter().rev() {
        // At most 65535: exact.
        code = code * V::splat(base) + *level;
    }
    code.store().map(|code| code as u16)
}

macro_rules! books {
    ($($function:ident: $type:ty = $points:ident, $levels:literal, $near:literal;)*) => {
        $(
            /// Made when it is first asked for, on the thread that asks.
            pub(super) fn $function() -> &'static $type {
                static BOOK: OnceLock<$type> = OnceLock::new();
                BOOK.get_or_init(|| CodeBook::new(&code_books::$points, $levels, $near))
            }
        )*
    };
}

books! {
    iq1: PairBook = IQ1_S, 3, 3;
    iq2_xxs: PairBook = IQ2_XXS, 3, 2;
    iq2_xs: PairBook = IQ2_XS, 3, 2;
    iq2_s: PairBook = IQ2_S, 3, 1;
    iq3_xxs: QuadBook = IQ3_XXS, 8, 2;
    iq3_s: QuadBook = IQ3_S, 8, 3;
}
