//! Against packers written naively from the formats' descriptions, and against bytes that the formats'
//! own packers made.

use half::f16;
use proptest::prelude::*;
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::w8a8;
use super::*;
use crate::Result;
use crate::codec::affine::gptq::Version;
use crate::codec::affine::grouped::word;
use crate::codec::affine::nearest::{self, Grid};
use crate::codec::affine::{Grouped, Int8Rows, int8};
use crate::files::checkpoint;
use crate::weight::{PackedTensor, Scales};

fn unpack_awq(packed: &awq::PackedAwq, group: usize) -> Result<Grouped> {
    let [inputs, words] = packed.qweight.shape[..] else { panic!("qweight is no matrix") };
    let scales = Scales { dtype: packed.scales.dtype, bytes: packed.scales.shared() };
    let parts = (packed.qweight.shared(), packed.qzeros.shared(), scales);
    PackedTensor::awq([words * 8, inputs], group, parts)?.to_grouped()
}

fn unpack_gptq(
    packed: &gptq::PackedGptq,
    bits: u8,
    group: usize,
    version: Version,
) -> Result<Grouped> {
    let [_, out] = packed.qweight.shape[..] else { panic!("qweight is no matrix") };
    let inputs = packed.g_idx.shape.first().copied().unwrap_or(0);
    let scales = Scales { dtype: packed.scales.dtype, bytes: packed.scales.shared() };
    let parts = (packed.qweight.shared(), packed.qzeros.shared(), scales);
    let g_idx = packed.g_idx.shared();
    PackedTensor::gptq([out, inputs], (bits, group), version, parts, Some(&g_idx))?.to_grouped()
}

/// The numbers of scripts/record-packed.py.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = (self.0 * 1_103_515_245 + 12345) % (1 << 31);
        (self.0 >> 16) % limit
    }
}

/// The layer that scripts/record-packed.py packs for that seed.
fn recorded_layer(bits: u8, seed: u64) -> Grouped {
    let (out, inputs, group) = (64, 96, 32);
    let mut numbers = Numbers(seed);
    let groups = inputs / group;
    let most = 1u64 << bits;
    Grouped {
        out,
        inputs,
        group,
        bits,
        q: (0..out * inputs).map(|_| numbers.below(most) as u8).collect(),
        zeros: (0..out * groups).map(|_| 1 + numbers.below(most - 1) as u8).collect(),
        scales: (0..out * groups)
            .map(|_| f16::from_f32(0.5f32.powi(3 + numbers.below(4) as i32)))
            .collect(),
        group_of: None,
    }
}

fn digest(bytes: &[u8]) -> String {
    checkpoint::hexadecimal(&Sha256::digest(bytes))
}

#[test]
fn bytes_are_those_of_the_formats_own_packers() {
    let text = include_str!("../../../tests/fixtures/packed/peers.json");
    let peers: serde_json::Value = serde_json::from_str(text).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    for peer in peers["gptq"].as_array().unwrap() {
        let layer = recorded_layer(number(&peer["bits"]) as u8, number(&peer["seed"]));
        let packed = gptq::pack(&layer).unwrap();
        for part in [&packed.qweight, &packed.qzeros, &packed.scales] {
            assert_eq!(digest(&part.bytes), peer[part.suffix], "{} {}", layer.bits, part.suffix);
        }
    }
    for peer in peers["awq"].as_array().unwrap() {
        let layer = recorded_layer(4, number(&peer["seed"]));
        let packed = awq::pack(&layer).unwrap();
        for part in packed.parts() {
            assert_eq!(digest(&part.bytes), peer[part.suffix], "awq {}", part.suffix);
        }
    }
    assert_eq!(peers["gptq"].as_array().unwrap().len(), 4);
}

/// Bits of integers in a row, the lowest of each first, cut into words of 32: as text.
fn words_by_text(values: &[u8], bits: u8) -> Vec<u32> {
    let text: String = values
        .iter()
        .flat_map(|value| (0..bits).map(move |bit| if value >> bit & 1 == 1 { '1' } else { '0' }))
        .collect();
    text.as_bytes()
        .chunks(32)
        .map(|word| {
            let reversed: String = word.iter().rev().map(|&c| c as char).collect();
            u32::from_str_radix(&reversed, 2).unwrap()
        })
        .collect()
}

fn all_words(bytes: &[u8]) -> Vec<u32> {
    (0..bytes.len() / 4).map(|at| word(bytes, at)).collect()
}

fn random_layer(seed: u64, out: usize, inputs: usize, group: usize, bits: u8) -> Grouped {
    let mut numbers = Numbers(seed);
    let groups = inputs / group;
    let most = 1u64 << bits;
    Grouped {
        out,
        inputs,
        group,
        bits,
        q: (0..out * inputs).map(|_| numbers.below(most) as u8).collect(),
        zeros: (0..out * groups).map(|_| 1 + numbers.below(most - 1) as u8).collect(),
        scales: (0..out * groups)
            .map(|_| f16::from_f32(numbers.below(2000) as f32 / 1000.0 - 1.0))
            .collect(),
        group_of: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gptq_is_strings_of_bits(
        seed in 0u64..1 << 30,
        bits in prop::sample::select(vec![2u8, 3, 4, 8]),
        rows in 1usize..4,
        columns in 1usize..5,
        shuffled: bool,
    ) {
        let (out, inputs, group) = (rows * 32, columns * 64, 32);
        let mut layer = random_layer(seed, out, inputs, group, bits);
        if shuffled {
            let mut numbers = Numbers(seed);
            let groups = layer.groups() as u64;
            layer.group_of = Some((0..inputs).map(|_| numbers.below(groups) as u32).collect());
        }
        let packed = gptq::pack(&layer).unwrap();
        let groups = layer.groups();
        // qweight: each output is a column of words.
        let words = all_words(&packed.qweight.bytes);
        for row in 0..out {
            let column: Vec<u32> = words.iter().skip(row).step_by(out).copied().collect();
            let q = &layer.q[row * inputs..(row + 1) * inputs];
            prop_assert_eq!(column, words_by_text(q, bits));
        }
        // qzeros: each group is a row of words, and a zero point is stored less one.
        let mut expected = Vec::new();
        for group in 0..groups {
            let zeros: Vec<u8> =
                (0..out).map(|row| layer.zeros[row * groups + group] - 1).collect();
            expected.extend(words_by_text(&zeros, bits));
        }
        prop_assert_eq!(all_words(&packed.qzeros.bytes), expected);
        let scale = f16::from_le_bytes([packed.scales.bytes[2], packed.scales.bytes[3]]);
        prop_assert_eq!(scale, layer.scales[groups]);
        let back = unpack_gptq(&packed, bits, group, Version::V1).unwrap();
        let usual = layer.group_of.as_ref().is_some_and(|of| {
            of.iter().enumerate().all(|(input, &g)| g as usize == input / group)
        });
        if usual {
            layer.group_of = None;
        }
        prop_assert_eq!(&back, &layer);
        // Version 2 differs in the zero points alone.
        let second = gptq::pack_as(&layer, Version::V2).unwrap();
        prop_assert_eq!(&second.qweight, &packed.qweight);
        prop_assert_eq!(unpack_gptq(&second, bits, group, Version::V2).unwrap(), layer);
    }

    #[test]
    fn awq_is_nibbles_in_its_order(seed in 0u64..1 << 30, rows in 1usize..5, columns in 1usize..4) {
        let (out, inputs, group) = (rows * 8, columns * 32, 32);
        let layer = random_layer(seed, out, inputs, group, 4);
        let packed = awq::pack(&layer).unwrap();
        let words = all_words(&packed.qweight.bytes);
        for input in 0..inputs {
            for (at, order) in [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate() {
                for eight in 0..out / 8 {
                    let nibble = words[input * out / 8 + eight] >> (4 * at) & 15;
                    let q = layer.q[(eight * 8 + order) * inputs + input];
                    prop_assert_eq!(nibble, u32::from(q));
                }
            }
        }
        prop_assert_eq!(unpack_awq(&packed, group).unwrap(), layer);
    }
}

#[test]
fn values_are_steps_times_scales_whatever_reads_them() {
    for bits in [2, 3, 4, 8] {
        let mut layer = random_layer(5, 96, 128, 32, bits);
        layer.group_of = (bits == 3).then(|| (0..128).map(|i| (i % 4) as u32).collect());
        let packed = gptq::pack(&layer).unwrap();
        let scales = Scales { dtype: Dtype::F16, bytes: packed.scales.shared() };
        let parts = (packed.qweight.shared(), packed.qzeros.shared(), scales);
        let g_idx = packed.g_idx.shared();
        let tensor =
            PackedTensor::gptq([96, 128], (bits, 32), Version::V1, parts, Some(&g_idx)).unwrap();
        assert_eq!(tensor.is_reordered(), bits == 3);
        let (mut a, mut b, mut steps) = (vec![0.0; 128 * 3], vec![0.0; 128 * 3], vec![0; 128]);
        layer.read_rows(50..53, &mut a);
        tensor.read_rows(50..53, &mut b);
        assert_eq!(a, b);
        tensor.read_steps(51, &mut steps);
        for (input, (&step, value)) in steps.iter().zip(&a[128..256]).enumerate() {
            let at = 51 * 4 + layer.group_of(input);
            let want = i16::from(layer.q[51 * 128 + input]) - i16::from(layer.zeros[at]);
            assert_eq!(step, want);
            let want = f32::from(want) * layer.scales[at].to_f32();
            assert_eq!(value.to_bits(), want.to_bits());
        }
    }
}

#[test]
fn what_a_layout_cannot_hold_is_refused() {
    let good = random_layer(1, 64, 64, 32, 4);
    let code = |result: Result<()>| result.unwrap_err().exit_code();
    let mut layer = good.clone();
    layer.zeros[5] = 0;
    assert_eq!(code(gptq::pack(&layer).map(drop)), 8);
    assert!(gptq::pack_as(&layer, Version::V2).is_ok() && awq::pack(&layer).is_ok());
    let narrow = random_layer(1, 60, 64, 32, 4);
    assert_eq!(code(gptq::pack(&narrow).map(drop)), 8);
    assert_eq!(code(awq::pack(&narrow).map(drop)), 8);
    assert_eq!(code(awq::pack(&random_layer(1, 64, 64, 32, 3)).map(drop)), 8);
    let mut layer = good.clone();
    layer.group_of = Some((0..64).map(|i| i % 2).collect());
    assert_eq!(code(awq::pack(&layer).map(drop)), 8);
    for spoil in [
        (|l| l.q[0] = 16) as fn(&mut Grouped),
        |l| l.scales[1] = f16::INFINITY,
        |l| l.zeros.truncate(3),
        |l| l.group_of = Some(vec![2; 64]),
        |l| l.bits = 5,
    ] {
        let mut layer = good.clone();
        spoil(&mut layer);
        assert_eq!(code(gptq::pack(&layer).map(drop)), 1);
    }
}

#[test]
fn w8a8_keeps_integers_and_scales() {
    let layer = Int8Rows {
        out: 3,
        inputs: 4,
        q: vec![-127, 0, 127, 5, 1, 2, 3, 4, -1, -2, -3, -4],
        scales: vec![0.5, 0.25, -2.0],
    };
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
        let packed = w8a8::pack(&layer, dtype).unwrap();
        assert_eq!(packed.weight.bytes[..3], [0x81, 0, 0x7f]);
        assert_eq!(packed.weight_scale.shape, [3, 1]);
        let scales = Scales { dtype, bytes: packed.weight_scale.shared() };
        let tensor = PackedTensor::w8a8([3, 4], packed.weight.shared(), scales).unwrap();
        assert_eq!(tensor.to_int8().unwrap(), layer);
        assert_eq!(tensor.to_f32()[..5], [-63.5, 0.0, 63.5, 2.5, 0.25]);
    }
    let rounded = Int8Rows { scales: vec![0.1, 0.25, 1.0], ..layer };
    assert!(w8a8::pack(&rounded, Dtype::F16).is_err());
    assert!(w8a8::pack(&rounded, Dtype::F32).is_ok());
}

#[test]
fn tokens_are_rounded_to_255_steps() {
    let mut q = [0i8; 5];
    let scale = int8::round_token(&[1.0, -2.54, 0.05, 0.0301, 2.54], &mut q);
    assert!((scale - 0.02).abs() < 1e-7, "{scale}");
    // 2.5 steps are 2, to even; 1.505 are 2.
    assert_eq!(q, [50, -127, 2, 2, 127]);
    assert_eq!(int8::round_token(&[0.0; 5], &mut q).to_bits(), 0);
    assert_eq!(q, [0; 5]);
}

/// By the formulas, in f64, over a grid of groups.
#[test]
fn nearest_is_the_nearest_on_the_grid_of_each_group() {
    let mut numbers = Numbers(11);
    let weight: Vec<f32> =
        (0..16 * 64).map(|_| numbers.below(2001) as f32 / 1000.0 - 1.0).collect();
    for (kind, bits) in [(Grid::Symmetric, 4), (Grid::Asymmetric, 4), (Grid::Symmetric, 8)] {
        let layer = nearest::round(&weight, 64, 32, bits, kind);
        let mut values = vec![0.0; weight.len()];
        layer.read_rows(0..16, &mut values);
        for (part, (before, after)) in weight.chunks(32).zip(values.chunks(32)).enumerate() {
            let low = before.iter().fold(0.0f32, |a, b| a.min(*b));
            let high = before.iter().fold(0.0f32, |a, b| a.max(*b));
            let width = match kind {
                Grid::Symmetric => 2.0 * high.max(-low),
                Grid::Asymmetric => high - low,
            };
            let step = width / f32::from(Grouped::largest(bits));
            let scale = layer.scales[part].to_f32();
            assert!((scale - step).abs() <= step * 0.0005, "{scale} {step}");
            let zero = f32::from(layer.zeros[part]);
            let top = f32::from(Grouped::largest(bits));
            for (before, after) in before.iter().zip(after) {
                // No integer of the grid lies nearer.
                let best = (0..=Grouped::largest(bits))
                    .map(|q| ((f32::from(q) - zero) * scale - before).abs())
                    .fold(f32::INFINITY, f32::min);
                assert!((after - before).abs() <= best + 1e-6, "{before} {after} {top}");
            }
        }
    }
}

#[test]
fn the_best_grid_loses_no_more_than_the_whole_one_and_less_with_an_outlier() {
    let mut numbers = Numbers(12);
    let mut weight: Vec<f32> =
        (0..8 * 64).map(|_| numbers.below(2001) as f32 / 1000.0 - 1.0).collect();
    weight[3] = 2.5;
    let error = |layer: &Grouped, rows: std::ops::Range<usize>| -> f64 {
        let mut values = vec![0.0; rows.len() * 64];
        layer.read_rows(rows.clone(), &mut values);
        let before = &weight[rows.start * 64..rows.end * 64];
        before.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    for (kind, bits) in [(Grid::Symmetric, 3), (Grid::Asymmetric, 4), (Grid::Symmetric, 2)] {
        let whole = nearest::round(&weight, 64, 32, bits, kind);
        let best = nearest::round_best(&weight, 64, 32, bits, kind);
        for row in 0..8 {
            let (a, b) = (error(&whole, row..row + 1), error(&best, row..row + 1));
            assert!(b <= a * 1.0001, "{kind:?} {bits} bits, row {row}: {b} {a}");
        }
        assert!(error(&best, 0..8) < 0.95 * error(&whole, 0..8), "{kind:?} {bits} bits");
    }
}
