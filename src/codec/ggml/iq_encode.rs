//! Encoders of `IQ2_XXS`, `IQ2_XS`, `IQ2_S`, `IQ3_XXS` and `IQ3_S`, byte-identical to ggml's (but
//! for a fault of its own, see [`encode_iq3_s`]).
//! Layouts: the decoders.
//!
//! A part of 16 or 32 values shares a scale. For each candidate scale the magnitudes are rounded to
//! levels, groups that are no point of the code book move to a point around them, and the scale with
//! the smallest weighted error is kept. Sixteen candidates are tried side by side.

use super::code_book::{CodeBook, codes_of};
use super::lanes::{LANES, Lane, Lanes};
use super::search::{fit_positive, nearest};
use super::search_lanes::sums_of_squares;

const SUPER: usize = 256;

/// How the encoder of a type searches.
pub(super) struct Search {
    /// The variance that weights an importance matrix is `mean square * variance`.
    variance: f32,
    /// A part whose magnitudes are below this is zero; 0: only if they all are.
    epsilon: f32,
    /// Candidates stretch the grid by `-last..=last` times `step` levels.
    last: i32,
    step: f32,
    /// The number of minus signs in a group of 8 is even: where it is odd, the value that matters
    /// least takes the wrong sign.
    even_signs: bool,
    /// The peak that candidates start from is that of a searched scale, not the largest magnitude.
    searched_peak: bool,
    /// Which groups are rounded again with the scale that was found.
    again: Again,
    /// Weights without an importance matrix: the square, plus this much of the variance.
    plain: f32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    All,
    /// Those that had moved to another point.
    Moved,
    /// All, if one of them had moved or no candidate was any good.
    AllIfMoved,
}

pub(super) const IQ2_XXS: Search = Search {
    variance: 1.0,
    epsilon: 1e-15,
    last: 6,
    step: 0.1,
    even_signs: true,
    searched_peak: true,
    again: Again::All,
    plain: 0.0,
};

pub(super) const IQ2_XS: Search =
    Search { last: 9, searched_peak: false, again: Again::Moved, ..IQ2_XXS };

pub(super) const IQ2_S: Search =
    Search { variance: 2.0, epsilon: 1e-8, even_signs: false, plain: 0.25, ..IQ2_XS };

pub(super) const IQ3_XXS: Search = Search {
    variance: 2.0,
    epsilon: 1e-8,
    last: 15,
    step: 0.2,
    even_signs: true,
    searched_peak: false,
    again: Again::Moved,
    plain: 0.0,
};

pub(super) const IQ3_S: Search =
    Search { epsilon: 0.0, last: 9, even_signs: false, again: Again::AllIfMoved, ..IQ3_XXS };

/// A part of a super-block on its grid.
#[derive(Clone, Copy, Default)]
pub(super) struct Part {
    pub(super) scale: f32,
    /// Indices of the points, 8 groups at most.
    pub(super) indices: [u16; 8],
    /// Minus signs of each 8 values, lowest bit first.
    pub(super) signs: [u8; 4],
}

/// Minus signs of `N` values in groups of 8, and the magnitudes that they leave.
#[inline(always)]
fn split_signs<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    even: bool,
) -> ([u8; 4], [f32; N]) {
    let mut magnitudes = *values;
    let mut signs = [0u8; 4];
    for (k, signs) in signs.iter_mut().take(N / 8).enumerate() {
        for i in 0..8 {
            let x = &mut magnitudes[8 * k + i];
            if *x < 0.0 {
                *x = -*x;
                *signs |= 1 << i;
            }
        }
        if even && signs.count_ones() % 2 == 1 {
            let mut least = (0, f32::INFINITY);
            for i in 0..8 {
                let x = values[8 * k + i];
                let weighted = weights[8 * k + i] * x * x;
                if i == 0 || weighted < least.1 {
                    least = (i, weighted);
                }
            }
            magnitudes[8 * k + least.0] = -magnitudes[8 * k + least.0];
            *signs ^= 1 << least.0;
        }
    }
    (signs, magnitudes)
}

/// A number `2 * level + 1` for each level.
#[inline(always)]
fn odd_numbers<const T: usize>() -> [f32; T] {
    std::array::from_fn(|level| (2 * level + 1) as f32)
}

/// `Σ w·x·q` and `Σ w·q²` for the levels of the codes, from value 0 on.
#[inline(always)]
fn sums<const N: usize, const D: usize, const T: usize>(
    magnitudes: &[f32; N],
    weights: &[f32; N],
    codes: &[u16],
) -> (f32, f32) {
    let (mut cross, mut square) = (0.0f32, 0.0f32);
    let groups = magnitudes.as_chunks::<D>().0.iter().zip(weights.as_chunks::<D>().0);
    for ((magnitudes, weights), &code) in groups.zip(codes) {
        let levels = CodeBook::<D, T>::levels(code);
        for ((&x, &w), level) in magnitudes.iter().zip(weights).zip(levels) {
            let q = (2 * level + 1) as f32;
            cross += w * x * q;
            square += w * q * q;
        }
    }
    (cross, square)
}

/// The best point for a group at `scale`, starting from the nearest levels.
#[inline(always)]
fn point_at<V: Lanes, const D: usize, const T: usize>(
    book: &CodeBook<D, T>,
    levels: i32,
    magnitudes: &[f32; D],
    roots: &[f32; D],
    scale: f32,
) -> u16 {
    let inverse = 1.0 / scale;
    let mut code = 0u16;
    for (i, x) in magnitudes.iter().enumerate() {
        let level = nearest(0.5 * (inverse * x - 1.0)).clamp(0, levels - 1);
        code |= (level as u16) << (i * CodeBook::<D, T>::BITS);
    }
    if book.index(code).is_some() {
        return code;
    }
    let errors = CodeBook::<D, T>::errors(magnitudes, roots, scale, &odd_numbers());
    book.best::<V>(code, &errors)
}

/// Finds scale and points of a part of `N` values. `levels` is the number of levels of the book.
#[inline(always)]
fn fit_part<V: Lanes, const N: usize, const D: usize, const T: usize>(
    book: &CodeBook<D, T>,
    search: &Search,
    levels: i32,
    values: &[f32; N],
    weights: &[f32; N],
) -> Part {
    let groups = N / D;
    let (mut signs, magnitudes) = split_signs(values, weights, search.even_signs);
    let largest = magnitudes[1..]
        .iter()
        .fold(magnitudes[0], |largest, &x| if largest > x { largest } else { x });
    let is_zero = largest < search.epsilon || search.epsilon == 0.0 && largest == 0.0;
    if is_zero {
        return Part::default();
    }
    let peak = (2 * levels - 1) as f32;
    let (mut scale, range) = if search.searched_peak {
        let scale = fit_positive(&magnitudes, weights, levels + 1).scale;
        (scale, scale * levels as f32)
    } else {
        (largest / peak, largest)
    };
    if search.searched_peak && range <= 0.0 {
        return Part::default();
    }
    let mut roots = *weights;
    for root in &mut roots {
        *root = root.sqrt();
    }

    let mut kept = [0u16; 8];
    let mut moved = [search.again == Again::AllIfMoved; 8];
    let mut best = 0.0f32;
    let count = (2 * search.last + 1) as usize;
    for first in (0..count).step_by(LANES) {
        let step = |l: usize| (first + l) as i32 - search.last;
        let stretched: Lane<f32> = std::array::from_fn(|l| peak + step(l) as f32 * search.step);
        let tried = candidates::<V, N, D, T>(
            book,
            levels,
            &stretched,
            range,
            count - first,
            &magnitudes,
            weights,
            &roots,
        );
        for l in 0..LANES.min(count - first) {
            let (cross, square) = (tried.cross[l], tried.square[l]);
            if square > 0.0 && cross * cross > best * square {
                scale = cross / square;
                best = scale * cross;
                for k in 0..groups {
                    kept[k] = tried.codes[k][l];
                    moved[k] = tried.moved[k] >> l & 1 == 1;
                }
            }
        }
    }
    let any_moved = moved[..groups].contains(&true);
    if scale > 0.0 && (search.again == Again::All || any_moved) {
        let parts = magnitudes.as_chunks::<D>().0.iter().zip(roots.as_chunks::<D>().0);
        for (k, (magnitudes, roots)) in parts.enumerate() {
            if search.again != Again::Moved || moved[k] {
                kept[k] = point_at::<V, D, T>(book, levels, magnitudes, roots, scale);
            }
        }
        let (cross, square) = sums::<N, D, T>(&magnitudes, weights, &kept[..groups]);
        if square > 0.0 {
            scale = cross / square;
        }
    }
    if scale < 0.0 {
        scale = -scale;
        let used = if search.even_signs { 127 } else { 255 };
        for signs in &mut signs[..N / 8] {
            *signs = !*signs & used;
        }
    }
    let mut indices = [0; 8];
    for k in 0..groups {
        indices[k] = book.index(kept[k]).unwrap_or_default();
    }
    Part { scale, indices, signs }
}

/// What sixteen candidate scales make of a part.
struct Tried {
    cross: Lane<f32>,
    square: Lane<f32>,
    /// Codes of the points, by group.
    codes: [Lane<u16>; 8],
    /// By group, a bit for every candidate that moved it to another point.
    moved: [u16; 8],
}

#[expect(clippy::too_many_arguments, reason = "the state of one search")]
#[inline(always)]
fn candidates<V: Lanes, const N: usize, const D: usize, const T: usize>(
    book: &CodeBook<D, T>,
    levels: i32,
    stretched: &Lane<f32>,
    range: f32,
    count: usize,
    magnitudes: &[f32; N],
    weights: &[f32; N],
    roots: &[f32; N],
) -> Tried {
    let inverse = V::load(stretched) / V::splat(range);
    let scales = (V::splat(1.0) / inverse).store();
    let mut codes = [[0u16; LANES]; 8];
    let mut moved = [0u16; 8];
    let (mut cross, mut square) = (V::zero(), V::zero());
    let numbers: [f32; T] = odd_numbers();
    for k in 0..N / D {
        let at = k * D;
        let mut rounded = [V::zero(); D];
        for i in 0..D {
            let scaled = inverse * V::splat(magnitudes[at + i]) - V::splat(1.0);
            rounded[i] = (V::splat(0.5) * scaled).nearest(0, levels - 1);
        }
        codes[k] = codes_of::<V, D>(&rounded);
        let (mut x, mut root) = ([0.0; D], [0.0; D]);
        x.copy_from_slice(&magnitudes[at..at + D]);
        root.copy_from_slice(&roots[at..at + D]);
        for l in 0..LANES.min(count) {
            let code = codes[k][l];
            if book.index(code).is_none() {
                moved[k] |= 1 << l;
                let errors = CodeBook::<D, T>::errors(&x, &root, scales[l], &numbers);
                codes[k][l] = book.best::<V>(code, &errors);
            }
        }
        let points = V::codes(&codes[k]);
        for i in 0..D {
            let q = V::pick(points, i * CodeBook::<D, T>::BITS, &numbers);
            let weight = weights[at + i];
            cross = cross + V::splat(weight * magnitudes[at + i]) * q;
            square = square + V::splat(weight) * q * q;
        }
    }
    Tried { cross: cross.store(), square: square.store(), codes, moved }
}

/// Super-blocks in parts of `N` values. `put` writes the parts of a super-block with the codes of
/// their scales and the largest scale.
#[inline(always)]
pub(super) fn encode<
    V: Lanes,
    const N: usize,
    const D: usize,
    const T: usize,
    const BYTES: usize,
>(
    book: &CodeBook<D, T>,
    search: &Search,
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
    put: impl Fn(&mut [u8; BYTES], &[Part], &[u8; 16], f32),
) {
    let levels = if T == 4 { 3 } else { 8 };
    let (blocks, _) = bytes.as_chunks_mut::<BYTES>();
    let (supers, _) = values.as_chunks::<SUPER>();
    let mut squares = [0.0; LANES];
    for (index, (block, values)) in blocks.iter_mut().zip(supers).enumerate() {
        if index % LANES == 0 {
            let end = supers.len().min(index + LANES);
            squares = sums_of_squares(&supers[index..end]);
        }
        let variance = search.variance * squares[index % LANES] / 256.0;
        let mut parts = [Part::default(); 16];
        let mut largest = 0.0f32;
        for (p, values) in values.as_chunks::<N>().0.iter().enumerate() {
            let mut weights = [0.0; N];
            if let Some(importance) = importance {
                let importance = &importance[index * SUPER + p * N..][..N];
                for ((weight, x), importance) in weights.iter_mut().zip(values).zip(importance) {
                    *weight = importance * (variance + x * x).sqrt();
                }
            } else if search.plain > 0.0 {
                for (weight, x) in weights.iter_mut().zip(values) {
                    *weight = search.plain * variance + x * x;
                }
            } else {
                for (weight, x) in weights.iter_mut().zip(values) {
                    *weight = x * x;
                }
            }
            parts[p] = fit_part::<V, N, D, T>(book, search, levels, values, &weights);
            if parts[p].scale > largest {
                largest = parts[p].scale;
            }
        }
        block.fill(0);
        let parts = &parts[..SUPER / N];
        let mut scales = [0u8; 16];
        if largest != 0.0 {
            let inverse = 1.0 / (largest / 31.0);
            for (code, part) in scales.iter_mut().zip(parts) {
                *code = nearest(0.5 * (inverse * part.scale - 1.0)).clamp(0, 15) as u8;
            }
        }
        put(block, parts, &scales, largest);
    }
}
