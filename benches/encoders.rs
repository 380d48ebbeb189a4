//! Encoders of the block types beside ggml's, on one thread.
//!
//! `cargo bench --bench encoders [-- TYPE…]` prints the table of docs/encoders.md. With
//! `LLM_QUANTIZE_TEST_LLAMA_LIB` set to the folder of llama.cpp's shared libraries, ggml encodes the
//! same rows in turns with this crate, so that whatever else the machine does meets both alike, and
//! the bytes are compared; without it the columns of ggml stay empty.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops where something is wrong"
)]

#[path = "../tests/peers/llama_cpp/ggml.rs"]
mod ggml_library;

use std::time::Instant;

use ggml_library::Ggml;
use llm_quantize::codec::{StoredType, ggml};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const COLS: usize = 4096;
const ROWS: usize = 16;
/// The fastest of so many turns counts.
const TURNS: usize = 15;

/// Seconds of the fastest call.
fn fastest(best: &mut f64, run: impl FnOnce()) {
    let start = Instant::now();
    run();
    *best = best.min(start.elapsed().as_secs_f64());
}

fn main() {
    let wanted: Vec<StoredType> =
        std::env::args().skip(1).filter_map(|name| StoredType::from_name(&name)).collect();
    let library =
        std::env::var_os("LLM_QUANTIZE_TEST_LLAMA_LIB").map(|folder| Ggml::open(folder.as_ref()));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let values: Vec<f32> = (0..ROWS * COLS)
        .map(|_| 0.02 * (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>())
        .collect();
    let importance: Vec<f32> = (0..COLS).map(|_| rng.random_range(0.01f32..2.0).powi(2)).collect();
    println!(
        "| type | importance matrix | million weights/s | MB/s of f32 | ggml, million/s | ratio |"
    );
    println!("|---|---|---|---|---|---|");
    for dtype in StoredType::writable().filter(|dtype| dtype.is_quantized()) {
        if !wanted.is_empty() && !wanted.contains(&dtype) {
            continue;
        }
        let use_of_it = ggml::importance_use(dtype);
        let row_bytes = dtype.row_bytes(COLS).unwrap();
        for importance in [None, Some(&importance[..])] {
            let pointless = match importance {
                None => use_of_it == ggml::ImportanceUse::Required,
                Some(_) => use_of_it == ggml::ImportanceUse::Ignored,
            };
            if pointless {
                continue;
            }
            let mut bytes = vec![0u8; ROWS * row_bytes];
            let mut expected = bytes.clone();
            let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..TURNS {
                fastest(&mut ours, || {
                    for (row, bytes) in values.chunks(COLS).zip(bytes.chunks_mut(row_bytes)) {
                        ggml::encode_row(dtype, row, importance, bytes);
                    }
                });
                if let Some(library) = &library {
                    fastest(&mut theirs, || {
                        library.encode(dtype, &values, COLS, importance, &mut expected);
                    });
                    assert!(bytes == expected, "{}: other bytes than ggml", dtype.name());
                }
            }
            let millions = values.len() as f64 / 1e6;
            let with = if importance.is_some() { "with" } else { "without" };
            let rate = millions / ours;
            let name = dtype.name();
            print!("| {name} | {with} | {rate:.0} | {:.0} |", rate * 4.0);
            if library.is_some() {
                println!(" {:.1} | {:.1} |", millions / theirs, theirs / ours);
            } else {
                println!(" | |");
            }
        }
    }
}
