//! Every type, with extreme values at many places: what is written is finite and near, or refused.

use super::*;
use crate::base::SharedBytes;
use crate::codec::ggml::{ImportanceUse, encode_row, importance_use};

/// The bytes of a block that hold its f16 scales and minima, by the layouts of `ggml-common.h`: what
/// `ggml_validate_row_data` looks at.
fn scale_fields(kind: StoredType) -> &'static [usize] {
    match kind {
        StoredType::Q4_1 | StoredType::Q5_1 | StoredType::Q4_K | StoredType::Q5_K => &[0, 2],
        StoredType::Q2_K => &[80, 82],
        StoredType::Q3_K => &[108],
        StoredType::Q6_K => &[208],
        StoredType::TQ1_0 => &[52],
        StoredType::TQ2_0 => &[64],
        StoredType::F32 | StoredType::BF16 | StoredType::MXFP4 | StoredType::IQ1_M => &[],
        _ => &[0],
    }
}

/// Whether `ggml_validate_row_data` accepts a row.
fn ggml_accepts(kind: StoredType, bytes: &[u8]) -> bool {
    let word = |block: &[u8], at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let is_number = |half: u16| half & 0x7c00 != 0x7c00;
    bytes.chunks_exact(kind.block().1).all(|block| match kind {
        StoredType::F32 => f32::from_le_bytes(block.try_into().unwrap()).is_finite(),
        StoredType::BF16 => word(block, 0) & 0x7f80 != 0x7f80,
        StoredType::MXFP4 => block[0] != 0xff,
        // The scale lies in the upper four bits of four words.
        StoredType::IQ1_M => {
            is_number((0..4).fold(0, |half, part| {
                half | (word(block, 48 + 2 * part) & 0xf000) >> (12 - 4 * part)
            }))
        }
        _ => scale_fields(kind).iter().all(|&at| is_number(word(block, at))),
    })
}

fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.2
        })
        .collect()
}

fn magnitudes() -> impl Iterator<Item = f32> {
    let powers = (-149..=127).step_by(6).map(|power| 2.0f64.powi(power) as f32);
    powers.chain([0.0, 1e-40, 65_504.0, 65_519.0, 65_520.0, 7e4, 1e5, 3e7, 1e30, 3e38, f32::MAX])
}

/// Rows of 512 values with something extreme in them.
fn rows() -> Vec<(String, Vec<f32>)> {
    let mut rows = Vec::new();
    for (number, most) in magnitudes().enumerate() {
        for place in [0, 37, 255, 256, 511] {
            for sign in [1.0, -1.0] {
                let mut values = noise(number as u64, 512);
                values[place] = sign * most;
                rows.push((format!("{most:e} at {place}, sign {sign}"), values));
            }
        }
        let scaled = noise(number as u64, 512).iter().map(|v| v * 10.0 * most).collect();
        rows.push((format!("noise up to {most:e}"), scaled));
        rows.push((format!("all {most:e}"), vec![most; 512]));
        let alternating = |at: usize| if at.is_multiple_of(2) { most } else { -most };
        rows.push((format!("± {most:e}"), (0..512).map(alternating).collect()));
        let half = |at: usize| if at < 256 { most } else { 0.01 };
        rows.push((format!("half of {most:e}"), (0..512).map(half).collect()));
    }
    rows
}

/// How far the largest value of a block may be from itself, as a part of it: one step of the coarsest
/// grids.
fn tolerance(kind: StoredType) -> f32 {
    match kind {
        StoredType::F32 => 0.0,
        StoredType::F16 | StoredType::BF16 | StoredType::Q8_0 => 0.01,
        StoredType::Q6_K | StoredType::Q5_0 | StoredType::Q5_1 | StoredType::Q5_K => 0.1,
        StoredType::Q4_0 | StoredType::Q4_1 | StoredType::Q4_K | StoredType::IQ4_NL => 0.2,
        StoredType::IQ4_XS | StoredType::MXFP4 | StoredType::Q3_K => 0.34,
        _ => 0.75,
    }
}

#[test]
fn what_is_accepted_is_finite_and_near() {
    let importance: Vec<f32> = noise(99, 512).iter().map(|v| (v + 0.11) * 50.0).collect();
    let rows = rows();
    let (mut accepted, mut refused, mut decoded) = (0, 0, Vec::new());
    for kind in StoredType::writable() {
        let mut bytes = vec![0; kind.row_bytes(512).unwrap()];
        for weights in [None, Some(importance.as_slice())] {
            if weights.is_none() && importance_use(kind) == ImportanceUse::Required {
                continue;
            }
            for (name, values) in &rows {
                encode_row(kind, values, weights, &mut bytes);
                settle(kind, &mut bytes);
                let found = losses(kind, values, weights, &bytes, &mut decoded);
                let what = format!("{} {name}", kind.name());
                let most = largest(values);
                assert!(found.beyond.is_none() || may_lose(most), "{what}: refused unseen");
                if let Some(at) = found.beyond {
                    refused += 1;
                    assert!(values[at].abs() > 32_768.0, "{what}: {at}");
                    continue;
                }
                accepted += 1;
                assert!(ggml_accepts(kind, &bytes), "{what}: ggml refuses it");
                decode(kind, &bytes, &mut decoded);
                assert!(decoded.iter().all(|v| v.is_finite()), "{what}");
                // The mean magnitude is all that the type keeps; and importance decides about noise.
                if kind == StoredType::Q1_0 || most < 1.0 || name.starts_with("noise") {
                    continue;
                }
                let at = argmax(values);
                let error = (values[at] - decoded[at]).abs() / most;
                assert!(error <= tolerance(kind), "{what}: {} for {}", decoded[at], values[at]);
            }
        }
    }
    assert!(accepted > 20_000 && refused > 4_000, "{accepted} {refused}");
}

/// What ggml accepts and does not lose is not refused: the largest values that the layouts hold.
#[test]
fn the_ends_of_the_ranges_are_where_the_layouts_put_them() {
    let row = |value: f32| (0..256).map(|i| if i == 70 { value } else { 0.0 }).collect::<Vec<_>>();
    for (kind, held, beyond) in [
        (StoredType::F16, 65_504.0, 65_520.0),
        (StoredType::BF16, 3.38e38, f32::MAX),
        // 65,504 times 127; -8 and -16, the levels of the largest value.
        (StoredType::Q8_0, 8.319e6, 8.322e6),
        (StoredType::Q4_0, 524_000.0, 524_200.0),
        (StoredType::Q5_0, 1_048_000.0, 1_048_400.0),
        (StoredType::TQ2_0, 65_504.0, 65_520.0),
        (StoredType::IQ4_NL, 7.3e6, 8.4e6),
        (StoredType::Q6_K, 2.6e8, 2.8e8),
        (StoredType::Q3_K, 8.3e6, 8.5e6),
        (StoredType::MXFP4, f32::MAX, f32::INFINITY),
    ] {
        let mut bytes = vec![0; kind.row_bytes(256).unwrap()];
        let mut refused = |value: f32| {
            let values = row(value);
            encode_row(kind, &values, None, &mut bytes);
            losses(kind, &values, None, &bytes, &mut Vec::new()).beyond == Some(70)
        };
        assert!(!refused(held) && !refused(-held), "{} {held}", kind.name());
        assert!(beyond.is_infinite() || (refused(beyond) && refused(-beyond)), "{}", kind.name());
    }
}

#[test]
fn importance_that_makes_sums_vanish_or_overflow_is_noticed() {
    let values = noise(5, 256);
    for weight in [0.0, 1e-42, 1e37] {
        let mut importance = vec![1.0; 256];
        importance[64..96].fill(weight);
        assert!(is_extreme(&importance));
        for kind in StoredType::writable() {
            if importance_use(kind) == ImportanceUse::Ignored {
                continue;
            }
            let mut bytes = vec![0; kind.row_bytes(256).unwrap()];
            encode_row(kind, &values, Some(&importance), &mut bytes);
            let mut decoded = Vec::new();
            let found = losses(kind, &values, Some(&importance), &bytes, &mut decoded);
            let lost = decoded[64..96].iter().all(|v| *v == 0.0);
            assert!(
                !lost || found.zeroed > 0 || found.beyond.is_some(),
                "{} {weight}",
                kind.name()
            );
            assert!(found.beyond.is_some() || ggml_accepts(kind, &bytes), "{}", kind.name());
        }
    }
}

#[test]
fn a_tensor_is_checked_as_a_whole() {
    let mut values = noise(3, 64 * 256);
    let tensor = |values: &[f32]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        StoredTensor::new(vec![64, 256], StoredType::F32, SharedBytes::from_vec(bytes)).unwrap()
    };
    assert_eq!(check("t", &tensor(&values), StoredType::Q8_0).unwrap(), None);
    values[20 * 256..21 * 256].fill(1e-9);
    values[40 * 256..41 * 256].fill(0.0);
    let warning = check("t", &tensor(&values), StoredType::Q8_0).unwrap().unwrap();
    assert!(warning.contains("t: values in 1 of 64 rows become zero as Q8_0"), "{warning}");
    assert_eq!(check("t", &tensor(&values), StoredType::BF16).unwrap(), None);
    values[50 * 256 + 7] = -1e9;
    values[60 * 256 + 7] = 1e10;
    let error = check("t", &tensor(&values), StoredType::Q8_0).unwrap_err();
    assert_eq!((error.exit_code(), error.type_name()), (8, "UnsupportedConversionError"));
    assert!(error.to_string().contains("t is -1000000000.0 at [50, 7]"), "{error}");
}

/// The formula of ggml's `ggml_ue4m3_to_fp32` and its table of levels.
#[test]
fn nvfp4_decodes_by_its_formula() {
    let levels = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    let mut bytes: Vec<u8> = vec![0x00, 0x7f, 0x05, 0x39];
    bytes.extend((0..32).map(|i: u8| i.wrapping_mul(37)));
    let mut values = [0.0; 64];
    decode(StoredType::NVFP4, &bytes, &mut values);
    // 0; NaN, which counts as 0; 5 · 2⁻⁹; (1 + 1/8) · 2⁰, all halved.
    let scales = [0.0, 0.0, 5.0 / 512.0 / 2.0, 1.125 / 2.0];
    for (part, scale) in scales.into_iter().enumerate() {
        for at in 0..8 {
            let byte = usize::from(bytes[4 + 8 * part + at]);
            let (low, high) = (levels[byte & 15] as f32 * scale, levels[byte >> 4] as f32 * scale);
            assert!((values[16 * part + at] - low).abs() < 1e-9);
            assert!((values[16 * part + at + 8] - high).abs() < 1e-9);
        }
    }
}
