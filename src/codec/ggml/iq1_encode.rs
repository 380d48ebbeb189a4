//! Encoders of `IQ1_S` and `IQ1_M`, byte-identical to ggml's. Layouts: the decoders.
//!
//! Levels are -1, 0 and 1, all moved by an eighth up or down. A part's values are sorted; with three
//! levels, every rounding is two cuts in that order, so all of them are tried with sums up to each
//! cut. Sixteen parts are searched side by side, then groups that are no point of the code book
//! move to a point around them.

use half::f16;

use super::code_book::{self, PairBook};
use super::iq_decode::SHIFT;
use super::lanes::{LANES, Lane, Lanes, Mask, spread};
use super::search::nearest;
use super::search_lanes::{squares, sums_of_squares, weigh};

const SUPER: usize = 256;

/// The levels moved up and down.
const UP: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
const DOWN: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];

/// The best cuts of sixteen parts.
struct Cuts {
    scale: Lane<f32>,
    /// Values before the first cut have level 0, before the second level 1, then 2.
    first: Lane<f32>,
    second: Lane<f32>,
    /// The combination of shifts, numbered from 0; below 0 where nothing was found.
    kind: Lane<f32>,
}

/// What a search keeps while it goes through the cuts.
#[derive(Clone, Copy)]
struct Best<V> {
    score: V,
    scale: V,
    first: V,
    second: V,
    kind: V,
}

impl<V: Lanes> Best<V> {
    #[inline(always)]
    fn new(scale: &Lane<f32>) -> Self {
        let none = V::splat(-1.0);
        let score = V::splat(-f32::MAX);
        Self { score, scale: V::load(scale), first: none, second: none, kind: none }
    }

    /// Keeps cuts whose error is smaller: `(Σ w·x·q)² / Σ w·q²` is larger.
    #[inline(always)]
    fn offer(&mut self, cross: V, square: V, first: usize, second: usize, kind: usize) {
        let better = square.greater(V::zero()).and((cross * cross).greater(self.score * square));
        if better.any() {
            let scale = cross / square;
            self.scale = self.scale.replace(better, scale);
            self.score = self.score.replace(better, scale * cross);
            self.first = self.first.replace(better, V::splat(first as f32));
            self.second = self.second.replace(better, V::splat(second as f32));
            self.kind = self.kind.replace(better, V::splat(kind as f32));
        }
    }

    #[inline(always)]
    fn cuts(self) -> Cuts {
        Cuts {
            scale: self.scale.store(),
            first: self.first.store(),
            second: self.second.store(),
            kind: self.kind.store(),
        }
    }
}

/// Indices of the values of each lane in ascending order, equal ones in the order they come in.
#[inline(always)]
fn sort<V: Lanes, const N: usize>(values: &[Lane<f32>; N]) -> [[u8; N]; LANES] {
    // A value's place is the number of values that come before it.
    let one = V::splat(1.0);
    let mut places = [V::zero(); N];
    for i in 0..N {
        let x = V::load(&values[i]);
        let mut place = places[i];
        for j in i + 1..N {
            let after = x.less_or_equal(V::load(&values[j]));
            places[j] = places[j] + V::zero().replace(after, one);
            place = place + one.replace(after, V::zero());
        }
        places[i] = place;
    }
    let mut order = [[0u8; N]; LANES];
    for (i, place) in places.iter().enumerate() {
        for (order, place) in order.iter_mut().zip(place.store()) {
            order[place as usize % N] = i as u8;
        }
    }
    order
}

/// Largest magnitude of each lane.
#[inline(always)]
fn largest<V: Lanes, const N: usize>(values: &[Lane<f32>; N]) -> Lane<f32> {
    let mut largest = V::load(&values[0]).abs();
    for x in &values[1..] {
        let size = V::load(x).abs();
        largest = size.replace(largest.greater(size), largest);
    }
    largest.store()
}

/// Sums of weights and of weighted values up to each cut, `[33, LANES]`, in sorted order.
#[inline(always)]
fn running_sums<V: Lanes>(
    values: &[Lane<f32>; 32],
    weights: &[Lane<f32>; 32],
    order: &[[u8; 32]; LANES],
) -> ([V; 33], [V; 33]) {
    let (mut sums_x, mut sums_w) = ([V::zero(); 33], [V::zero(); 33]);
    for place in 0..32 {
        let (mut x, mut w) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            let i = usize::from(order[l][place]) % 32;
            (x[l], w[l]) = (values[i][l], weights[i][l]);
        }
        sums_x[place + 1] = sums_x[place] + V::load(&w) * V::load(&x);
        sums_w[place + 1] = sums_w[place] + V::load(&w);
    }
    (sums_x, sums_w)
}

/// Cuts of 32 values with one shift: kind 0 is up, 1 is down.
#[inline(always)]
fn cut_s<V: Lanes>(
    values: &[Lane<f32>; 32],
    weights: &[Lane<f32>; 32],
    order: &[[u8; 32]; LANES],
) -> Cuts {
    let (sums_x, sums_w) = running_sums::<V>(values, weights, order);
    // Parts of the sums that depend on one cut alone.
    let zero = [V::zero(); 33];
    let (mut low_x, mut low_w) = ([zero; 2], [zero; 2]);
    let (mut high_x, mut high_w) = ([zero; 2], [zero; 2]);
    for (kind, levels) in [UP, DOWN].iter().enumerate() {
        let (low, high) = (V::splat(levels[0]), V::splat(levels[2]));
        for cut in 0..33 {
            low_x[kind][cut] = sums_x[cut] * low;
            low_w[kind][cut] = sums_w[cut] * low * low;
            high_x[kind][cut] = (sums_x[32] - sums_x[cut]) * high;
            high_w[kind][cut] = (sums_w[32] - sums_w[cut]) * high * high;
        }
    }
    let middle = V::splat(SHIFT);
    let mut best = Best::<V>::new(&largest::<V, 32>(values));
    for first in 0..33 {
        for second in first..33 {
            let x = (sums_x[second] - sums_x[first]) * middle;
            // The same for both shifts: only the sign of the level differs.
            let w = (sums_w[second] - sums_w[first]) * middle * middle;
            let cross = low_x[0][first] + x + high_x[0][second];
            let square = low_w[0][first] + w + high_w[0][second];
            best.offer(cross, square, first, second, 0);
            let cross = low_x[1][first] - x + high_x[1][second];
            let square = low_w[1][first] + w + high_w[1][second];
            best.offer(cross, square, first, second, 1);
        }
    }
    best.cuts()
}

/// Cuts of 16 values whose halves have a shift each: bit 1 of the kind is set if the first half's is
/// down, bit 0 if the second half's is.
#[inline(always)]
fn cut_m<V: Lanes>(
    values: &[Lane<f32>; 16],
    weights: &[Lane<f32>; 16],
    order: &[[u8; 16]; LANES],
) -> Cuts {
    // Sums up to each cut, kept apart for the halves.
    let zero = [V::zero(); 17];
    let (mut sums_x, mut sums_w) = ([zero; 2], [zero; 2]);
    for place in 0..16 {
        let (mut x, mut w) = ([0.0; LANES], [0.0; LANES]);
        let mut in_second = [0.0; LANES];
        for l in 0..LANES {
            let i = usize::from(order[l][place]) % 16;
            (x[l], w[l]) = (values[i][l], weights[i][l]);
            in_second[l] = f32::from(u8::from(i >= 8));
        }
        let w = V::load(&w);
        let x = w * V::load(&x);
        let in_second = V::splat(0.5).less(V::load(&in_second));
        for (sums, value) in [(&mut sums_x, x), (&mut sums_w, w)] {
            let [first, second] = [sums[0][place], sums[1][place]];
            sums[0][place + 1] = (first + value).replace(in_second, first);
            sums[1][place + 1] = second.replace(in_second, second + value);
        }
    }
    // Sum over levels `v`: the total times the highest less what lies below each cut, as neighbouring
    // levels differ by one; squares likewise, with the differences of their squares.
    let mut total_x = [[V::zero(); 2]; 2];
    let mut total_w = [[V::zero(); 2]; 2];
    let mut low_w = [[zero; 2]; 2];
    let mut high_w = [[zero; 2]; 2];
    for (kind, v) in [UP, DOWN].iter().enumerate() {
        let below_first = V::splat(v[0] * v[0] - v[1] * v[1]);
        let below_second = V::splat(v[1] * v[1] - v[2] * v[2]);
        let top = V::splat(v[2]);
        for half in 0..2 {
            total_x[kind][half] = sums_x[half][16] * top;
            total_w[kind][half] = sums_w[half][16] * top * top;
            for cut in 0..17 {
                low_w[kind][half][cut] = total_w[kind][half] + sums_w[half][cut] * below_first;
                high_w[kind][half][cut] = sums_w[half][cut] * below_second;
            }
        }
    }
    let mut best = Best::<V>::new(&largest::<V, 16>(values));
    for first in 0..17 {
        for second in first..17 {
            let mut cross = [[V::zero(); 2]; 2];
            let mut square = [[V::zero(); 2]; 2];
            for half in 0..2 {
                let below = sums_x[half][first] + sums_x[half][second];
                for kind in 0..2 {
                    cross[kind][half] = total_x[kind][half] - below;
                    square[kind][half] = low_w[kind][half][first] + high_w[kind][half][second];
                }
            }
            for kind in 0..4 {
                let (a, b) = (kind >> 1, kind & 1);
                let (cross, square) = (cross[a][0] + cross[b][1], square[a][0] + square[b][1]);
                best.offer(cross, square, first, second, kind);
            }
        }
    }
    best.cuts()
}

/// A part of a super-block on its grid.
#[derive(Clone, Copy, Default)]
struct Part {
    scale: f32,
    /// Shift of each half, set if it is down. `IQ1_S` has one for both.
    down: [bool; 2],
    /// Indices of the points, 2 or 4.
    indices: [u16; 4],
}

/// Rounds the values of a part at the cuts that were found for lane `l` and moves them to points.
#[inline(always)]
fn settle<V: Lanes, const N: usize>(
    book: &PairBook,
    cuts: &Cuts,
    l: usize,
    order: &[u8; N],
    values: &[f32; N],
    weights: &[Lane<f32>; N],
) -> Part {
    let kind = cuts.kind[l];
    if kind < 0.0 {
        return Part::default();
    }
    let (first, second) = (cuts.first[l] as usize, cuts.second[l] as usize);
    let mut levels = [0u16; N];
    for (place, &i) in order.iter().enumerate() {
        levels[usize::from(i) % N] = u16::from(place >= first) + u16::from(place >= second);
    }
    let mut scale = cuts.scale[l];
    let kind = kind as u8;
    let mut down = if N == 32 { [kind == 1; 2] } else { [kind & 2 != 0, kind & 1 != 0] };
    if scale < 0.0 {
        scale = -scale;
        for level in &mut levels {
            *level = 2 - *level;
        }
        down = down.map(|down| !down);
    }
    let mut part = Part { scale, down, ..Part::default() };
    let mut codes = [0u16; 4];
    let mut moved = false;
    for (k, levels) in levels.as_chunks::<8>().0.iter().enumerate() {
        let code = levels.iter().rev().fold(0, |code, level| (code << 2) | level);
        codes[k] = code;
        if book.index(code).is_none() {
            moved = true;
            let (mut x, mut w) = ([0.0; 8], [0.0; 8]);
            for i in 0..8 {
                (x[i], w[i]) = (values[8 * k + i], weights[8 * k + i][l]);
            }
            let [a, b, c] = *shifted(down, k);
            codes[k] = book.best::<V>(code, &PairBook::errors(&x, &w, scale, &[a, b, c, c]));
        }
        part.indices[k] = book.index(codes[k]).unwrap_or_default();
    }
    if moved {
        let (mut cross, mut square) = (0.0f32, 0.0f32);
        for k in 0..N / 8 {
            let v = shifted(down, k);
            for (i, level) in PairBook::levels(codes[k]).into_iter().enumerate() {
                let (x, w, q) = (values[8 * k + i], weights[8 * k + i][l], v[level % 3]);
                cross += w * q * x;
                square += w * q * q;
            }
        }
        if cross > 0.0 && square > 0.0 {
            part.scale = cross / square;
        }
    }
    part
}

/// The levels of group `k`.
#[inline(always)]
fn shifted(down: [bool; 2], k: usize) -> &'static [f32; 3] {
    if down[k % 2] { &DOWN } else { &UP }
}

/// Code of a scale against the largest.
#[inline(always)]
fn scale_code(scale: f32, inverse: f32) -> u16 {
    nearest(0.5 * (inverse * scale - 1.0)).clamp(0, 7) as u16
}

/// `largest` as ggml finds it.
#[inline(always)]
fn largest_scale(parts: &[Part]) -> f32 {
    parts.iter().fold(0.0, |largest, part| if largest > part.scale { largest } else { part.scale })
}

/// 8 parts of 32 values with a shift each, two super-blocks to a set of lanes.
#[inline(always)]
pub(super) fn encode_iq1_s<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    const EPSILON: f32 = 1e-12;
    let book = code_book::iq1();
    let mut blocks = bytes.as_chunks_mut::<50>().0.iter_mut();
    let importance = importance.map(|importance| importance.as_chunks::<32>().0);
    for (piece, pair) in values.as_chunks::<SUPER>().0.chunks(2).enumerate() {
        let (groups, _) = pair.as_flattened().as_chunks::<32>();
        let lanes = spread(groups);
        let sums = sums_of_squares(pair);
        let variance = std::array::from_fn(|l| 2.0 * sums[l / 8] / 256.0);
        let weights = match importance {
            Some(all) => {
                let importance = spread(&all[piece * LANES..][..groups.len()]);
                weigh::<V, 32>(&lanes, &importance, &variance).0
            }
            None => squares::<V, 32>(&lanes),
        };
        let order = sort::<V, 32>(&lanes);
        let peaks = largest::<V, 32>(&lanes);
        let cuts = cut_s::<V>(&lanes, &weights, &order);
        for (half, block) in blocks.by_ref().take(pair.len()).enumerate() {
            let mut parts = [Part::default(); 8];
            for (p, part) in parts.iter_mut().enumerate() {
                let l = 8 * half + p;
                if peaks[l] >= EPSILON {
                    *part = settle::<V, 32>(book, &cuts, l, &order[l], &groups[l], &weights);
                }
            }
            let largest = largest_scale(&parts);
            block.fill(0);
            let d = largest / 15.0;
            if largest != 0.0 {
                block[..2].copy_from_slice(&f16::from_f32(d * 1.125).to_le_bytes());
            }
            for (p, part) in parts.iter().enumerate() {
                let mut high = 0u16;
                for (k, index) in part.indices.iter().enumerate() {
                    block[2 + 4 * p + k] = *index as u8;
                    high |= (index >> 8) << (3 * k);
                }
                if largest != 0.0 {
                    let shift = if part.down[0] { 8 } else { 0 };
                    high |= (scale_code(part.scale, 1.0 / d) | shift) << 12;
                }
                block[34 + 2 * p..][..2].copy_from_slice(&high.to_le_bytes());
            }
        }
    }
}

/// 16 parts of 16 values whose halves have a shift each. The common factor is fitted last.
#[inline(always)]
pub(super) fn encode_iq1_m<V: Lanes>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    const EPSILON: f32 = 1e-7;
    let book = code_book::iq1();
    let importance = importance.map(|importance| importance.as_chunks::<16>().0);
    let (supers, _) = values.as_chunks::<SUPER>();
    let mut sums = [0.0; LANES];
    for (index, (block, values)) in bytes.as_chunks_mut::<56>().0.iter_mut().zip(supers).enumerate()
    {
        if index % LANES == 0 {
            sums = sums_of_squares(&supers[index..supers.len().min(index + LANES)]);
        }
        let (groups, _) = values.as_chunks::<16>();
        let lanes = spread(groups);
        let weights = match importance {
            Some(all) => {
                let importance = spread(&all[index * 16..][..16]);
                let variance = [2.0 * sums[index % LANES] / 256.0; LANES];
                weigh::<V, 16>(&lanes, &importance, &variance).0
            }
            None => squares::<V, 16>(&lanes),
        };
        let order = sort::<V, 16>(&lanes);
        let peaks = largest::<V, 16>(&lanes);
        let cuts = cut_m::<V>(&lanes, &weights, &order);
        let mut parts = [Part::default(); 16];
        for (l, part) in parts.iter_mut().enumerate() {
            if peaks[l] >= EPSILON {
                *part = settle::<V, 16>(book, &cuts, l, &order[l], &groups[l], &weights);
            }
        }
        block.fill(0);
        for (p, part) in parts.iter().enumerate() {
            let [a, b, ..] = part.indices;
            block[2 * p] = a as u8;
            block[2 * p + 1] = b as u8;
            block[32 + p] = (a >> 8) as u8 | ((b >> 8) << 4) as u8;
        }
        let largest = largest_scale(&parts);
        if largest == 0.0 {
            continue;
        }
        let mut scales = [0u16; 4];
        let inverse = 1.0 / (largest / 15.0);
        let (mut cross, mut square) = (0.0f32, 0.0f32);
        for (p, part) in parts.iter().enumerate() {
            let code = scale_code(part.scale, inverse);
            scales[p / 4] |= code << (3 * (p % 4));
            block[32 + p] |=
                if part.down[0] { 0x08 } else { 0 } | if part.down[1] { 0x80 } else { 0 };
            for k in 0..2 {
                let v = shifted(part.down, k);
                let point = book.points[usize::from(part.indices[k])];
                for (i, level) in PairBook::levels(point).into_iter().enumerate() {
                    let (x, w) = (groups[p][8 * k + i], weights[8 * k + i][p]);
                    let q = v[level % 3] * f32::from(2 * code + 1);
                    cross += w * q * x;
                    square += w * q * q;
                }
            }
        }
        let d = if square > 0.0 { cross / square } else { largest / 15.0 };
        let d = f16::from_f32(d * 1.1125).to_bits();
        for (i, scale) in scales.iter().enumerate() {
            let scale = scale | ((d >> (4 * i)) << 12);
            block[48 + 2 * i..][..2].copy_from_slice(&scale.to_le_bytes());
        }
    }
}
