//! AVX2 and AVX-512 kernels, chosen at run time.

#![allow(unsafe_code, reason = "calls of functions that need features; says why it is sound")]

#[macro_use]
mod plain;
#[macro_use]
mod blocks;
mod avx2;
mod avx512;

use super::Kernels;

/// The sets that this processor runs, slowest first.
pub(super) fn available() -> Vec<Kernels> {
    let mut sets = Vec::new();
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    if avx2 {
        sets.push(AVX2);
    }
    if avx2 && is_x86_feature_detected!("avx512f") {
        sets.push(AVX512);
    }
    sets
}

/// A table entry: a plain function around one that needs the features of its set.
macro_rules! entry {
    ($kernel:path, ($($name:ident: $type:ty),*) $(-> $out:ty)?) => {{
        fn call($($name: $type),*) $(-> $out)? {
            // SAFETY: the table that holds this entry is handed out by `available` only, after
            // the processor was found to have the features that the kernel is compiled for.
            unsafe { $kernel($($name),*) }
        }
        call
    }};
}

macro_rules! rows {
    ($kernel:path) => {
        entry!($kernel, (w: &[u8], stride: usize, x: &[f32], out: &mut [f32]))
    };
}

macro_rules! table {
    ($name:literal, $set:ident) => {
        Kernels {
            name: $name,
            dot_f32: entry!($set::dot_f32, (a: &[f32], b: &[f32]) -> f32),
            rows_f32: rows!($set::rows_f32),
            rows_f16: rows!($set::rows_f16),
            rows_bf16: rows!($set::rows_bf16),
            rows_q8_0: rows!($set::rows_q8_0),
            rows_q4_0: Some(rows!($set::rows_q4_0)),
            rows_q4_1: Some(rows!($set::rows_q4_1)),
            rows_q4_k: Some(rows!($set::rows_q4_k)),
            rows_q6_k: Some(rows!($set::rows_q6_k)),
            sum_f32: rows!($set::sum_f32),
            sum_f16: rows!($set::sum_f16),
            max: entry!($set::max, (x: &[f32]) -> f32),
            exp_sum: entry!($set::exp_sum, (x: &mut [f32], shift: f32) -> f32),
            silu_mul: entry!($set::silu_mul, (gate: &[f32], up: &[f32], out: &mut [f32])),
        }
    };
}

const AVX2: Kernels = table!("avx2", avx2);
const AVX512: Kernels = table!("avx512", avx512);
