//! Plans for published model shapes, checked against arithmetic done here and against figures of
//! the papers.

use llm_quantize::Error;
use llm_quantize::arch::ModelConfig;
use llm_quantize::arch::families::LLAMA;
use llm_quantize::codec::StoredType;
use llm_quantize::job::littlebit::plan::{
    CompressionPlan, Loss, Losses, PlanRequest, PlannedTensor, TensorHeader, headers_from_config,
    plan, plan_by_loss, plan_config,
};
use llm_quantize::job::littlebit::scale_choice::ScaleChoice;
use llm_quantize::weight::ScaleType;

/// hidden, intermediate, layers, heads, key/value heads, vocabulary, tied head
type Dims = (usize, usize, usize, usize, usize, usize, bool);

const LLAMA_2_7B: Dims = (4096, 11008, 32, 32, 32, 32000, false);
const LLAMA_2_13B: Dims = (5120, 13824, 40, 40, 40, 32000, false);
const LLAMA_2_70B: Dims = (8192, 28672, 80, 64, 8, 32000, false);
const SMOLLM2_135M: Dims = (576, 1536, 30, 9, 3, 49152, true);
const TINY: Dims = (128, 344, 4, 4, 2, 1024, true);

fn config(dims: Dims) -> ModelConfig {
    let (hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, vocab_size, tied) =
        dims;
    ModelConfig {
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim: hidden_size / num_heads,
        vocab_size,
        max_positions: 4096,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        torch_dtype: "float16".into(),
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..ModelConfig::base(&LLAMA)
    }
}

/// With f16 scales, which the papers count.
fn at(target_bpw: f64) -> PlanRequest {
    let scales = ScaleChoice::Fixed(ScaleType::F16);
    PlanRequest { target_bpw, scales, ..PlanRequest::default() }
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
fn planned(dims: Dims, request: &PlanRequest) -> CompressionPlan {
    plan_config(&config(dims), request).unwrap()
}

/// Bits of all layers by the papers' formula, or by that of scales of a byte, from the ranks alone.
fn bits_by_formula(plan: &CompressionPlan) -> u64 {
    plan.layers()
        .map(|layer| {
            let s = layer.shape;
            let (m, n, r) = (s.rows as u64, s.cols as u64, s.rank as u64);
            let (scale, vector) = if s.scales == ScaleType::F16 { (16, 0) } else { (8, 32) };
            let middle = if s.middle_scale { scale * r + vector } else { 0 };
            s.paths as u64 * ((r + scale) * (m + n) + 2 * vector + middle)
        })
        .sum()
}

#[test]
fn seventy_billion_parameters_are_counted_as_published() {
    for (dims, parameters) in [
        (LLAMA_2_7B, 6_738_415_616u64),
        (LLAMA_2_13B, 13_015_864_320),
        (LLAMA_2_70B, 68_976_648_192),
        (SMOLLM2_135M, 134_515_008),
    ] {
        let plan = planned(dims, &at(1.0));
        assert_eq!(plan.parameters, parameters);
        assert_eq!(plan.original_bytes, 2 * parameters);
    }
}

/// The sizes of the specification at 0.1 bits per weight: at least 25 times smaller, with the
/// 1.84 MB of Llama's tokenizer and a generous megabyte of index.
#[test]
fn a_tenth_of_a_bit_is_at_least_25_times_smaller() {
    for (dims, at_most) in [(LLAMA_2_7B, 380e6), (LLAMA_2_13B, 530e6), (LLAMA_2_70B, 1.45e9)] {
        let plan = planned(dims, &at(0.1));
        let (hidden, vocabulary) = (dims.0 as u64, dims.5 as u64);
        assert_eq!(plan.embedding_bytes(), 2 * vocabulary * hidden / 32 * 34);
        assert_eq!(plan.other_bytes(), 4 * hidden * (2 * dims.2 as u64 + 1));
        assert_eq!(plan.factor_bytes() * 8, bits_by_formula(&plan));
        let file = plan.tensor_bytes() + 2_840_000;
        assert!((file as f64) < at_most, "{file}");
        assert!(plan.compression_ratio(file) >= 25.0, "{}", plan.compression_ratio(file));
        // 13.48 GB of 16-bit weights become 364 MB: 37 times.
        if dims == LLAMA_2_7B {
            assert!((plan.compression_ratio(file) - 37.0).abs() < 0.5);
        }
    }
}

#[test]
fn every_target_is_met_within_a_percent_or_refused() {
    let f16 = ScaleChoice::Fixed(ScaleType::F16);
    for dims in [LLAMA_2_7B, LLAMA_2_13B, LLAMA_2_70B, SMOLLM2_135M, TINY] {
        let mut met = 0;
        for step in 2..=40 {
            let target = f64::from(step) * 0.05;
            for (residual, middle_scale, scales) in [
                (false, false, f16),
                (true, false, f16),
                (true, true, f16),
                (false, false, ScaleChoice::Auto),
                (true, true, ScaleChoice::Auto),
            ] {
                let request = PlanRequest { residual, middle_scale, scales, ..at(target) };
                match plan_config(&config(dims), &request) {
                    Ok(plan) => {
                        met += 1;
                        let achieved = plan.achieved_bpw();
                        assert!(achieved <= target + 1e-9, "{achieved} for {target}");
                        assert!(achieved >= 0.99 * target, "{achieved} for {target}: {dims:?}");
                        let bits = bits_by_formula(&plan) as f64;
                        let formula = bits / plan.factorized_weights() as f64;
                        assert!((achieved - formula).abs() < 1e-9);
                        for layer in plan.layers() {
                            let s = layer.shape;
                            assert!(s.rank >= 8 && s.rank % 8 == 0 && s.rank <= s.rows.min(s.cols));
                        }
                    }
                    Err(error) => {
                        assert_eq!(error.exit_code(), 23);
                        assert!(
                            dims == TINY || (dims == SMOLLM2_135M && residual),
                            "{dims:?}: {error}"
                        );
                    }
                }
            }
        }
        assert!(met > 130, "{met} of 195 plans");
    }
}

#[test]
fn all_layers_get_the_same_rate() {
    let plan = planned(LLAMA_2_7B, &at(1.0));
    for layer in plan.layers() {
        let rate = layer.shape.bits_per_weight();
        assert!((rate - 1.0).abs() < 0.006, "{}: {rate}", layer.name);
        // NanoQuant's ranks, in steps of 8 instead of 32, plus what remained of the budget.
        let exact = layer.shape.exact_rank(1.0);
        assert!((exact - layer.shape.rank as f64).abs() <= 8.0);
    }
    let summary = plan.summary();
    assert_eq!((summary.blocks, summary.layers), (32, 224));
    // The last bits of the budget went to the up projections and to the first q.
    assert_eq!(summary.min_rank, (2032, "model.layers.0.self_attn.k_proj".into()));
    assert_eq!(summary.max_rank.1, "model.layers.0.mlp.gate_proj");
    assert!(summary.average_rank > 2032.0 && summary.average_rank < summary.max_rank.0 as f64);
}

#[test]
fn small_models_give_narrow_layers_their_minimum() {
    // 135M, ranks by q, k and gate: floors at the target, at most one step of the rest on top.
    for (target, floors) in [(1.0, [272, 128, 400]), (0.55, [136, 56, 208]), (0.3, [64, 24, 104])] {
        let plan = planned(SMOLLM2_135M, &at(target));
        for layer in plan.layers() {
            let floor = match (layer.shape.rows, layer.shape.cols) {
                (576, 576) => floors[0],
                (192, 576) => floors[1],
                _ => floors[2],
            };
            assert!([floor, floor + 8].contains(&layer.shape.rank), "{}", layer.name);
        }
    }
    // At 0.1 the scales and rank 8 of k and v take 1/6 bit: the others pay.
    let plan = planned(SMOLLM2_135M, &at(0.1));
    for layer in plan.layers().filter(|l| l.shape.rows == 192) {
        assert_eq!(layer.shape.rank, 8);
        assert!((layer.shape.bits_per_weight() - 1.0 / 6.0).abs() < 1e-12);
    }
    assert!(plan.achieved_bpw() <= 0.1 && plan.achieved_bpw() > 0.0999);
}

/// At equal totals scales of a byte leave the bits of eight more ranks, less 64, to every matrix.
#[test]
fn smaller_scales_buy_ranks() {
    for (dims, target) in [(LLAMA_2_7B, 1.0), (SMOLLM2_135M, 0.55), (TINY, 0.55), (TINY, 0.4)] {
        let plan_with = |scales| planned(dims, &PlanRequest { scales, ..at(target) });
        let f16 = plan_with(ScaleChoice::Fixed(ScaleType::F16));
        let auto = plan_with(ScaleChoice::Auto);
        assert_eq!((f16.scales(), auto.scales()), ("f16", "log8"));
        assert_eq!(auto, plan_with(ScaleChoice::Fixed(ScaleType::Log8)));
        assert!(auto.achieved_bpw() <= target);
        let gain = auto.summary().average_rank - f16.summary().average_rank;
        assert!((6.0..=9.0).contains(&gain), "{gain}");
    }
    // What f16 scales exceed can be met.
    let least = PlanRequest { scales: ScaleChoice::Auto, ..at(0.22) };
    assert!(plan_config(&config(TINY), &least).is_ok());
    assert_eq!(plan_config(&config(TINY), &at(0.22)).unwrap_err().exit_code(), 23);
    // A rank that is asked for is kept: there the file is smaller.
    let fixed = |scales| planned(TINY, &PlanRequest { rank: Some(16), scales, ..at(1.0) });
    let (f16, auto) =
        (fixed(ScaleChoice::Fixed(ScaleType::F16)), fixed(PlanRequest::default().scales));
    assert!(auto.layers().all(|layer| layer.shape.rank == 16));
    assert!(auto.factor_bytes() < f16.factor_bytes());
}

#[test]
fn rates_above_one_full_rank_path_take_a_second_one() {
    // One path of rank 576 of a 576 × 1536 matrix holds 1.41 bits per weight.
    let plan = planned(SMOLLM2_135M, &at(2.0));
    assert!(plan.achieved_bpw() > 1.99 && plan.achieved_bpw() <= 2.0);
    for layer in plan.layers() {
        let one_path_holds = layer.shape.rows == 576 && layer.shape.cols == 576;
        assert_eq!(layer.shape.paths, if one_path_holds { 1 } else { 2 }, "{}", layer.name);
    }
    let plan = planned(LLAMA_2_7B, &at(2.0));
    assert!(plan.achieved_bpw() > 1.99);
}

#[test]
fn targets_that_the_scales_exceed_are_refused_with_the_figure() {
    let error = plan_config(&config(TINY), &at(0.1)).unwrap_err();
    assert_eq!(error.exit_code(), 23);
    // The smallest plan, by hand: rank 8 everywhere, 24 (m + n) bits per layer.
    let (mut bits, mut weights) = (0.0, 0.0);
    for (m, n) in [(128, 128), (64, 128), (64, 128), (128, 128), (344, 128), (344, 128), (128, 344)]
    {
        bits += 24.0 * f64::from(m + n);
        weights += f64::from(m * n);
    }
    let figure: f64 = (bits / weights * 1e4_f64).ceil() / 1e4;
    assert!(error.to_string().contains(&figure.to_string()), "{error} lacks {figure}");
    assert!(error.suggestion().contains(&figure.to_string()));
    let least = planned(TINY, &at(figure));
    assert!(least.layers().all(|layer| layer.shape.rank == 8));
    // And the largest, two paths of full rank, where the bounds are raised.
    let request = PlanRequest { bounds: (0.1, 8.0), ..at(7.0) };
    let error = plan_config(&config(TINY), &request).unwrap_err();
    assert_eq!(error.exit_code(), 23);
    assert!(error.to_string().contains("largest"), "{error}");
}

#[test]
fn targets_out_of_bounds() {
    let code = |target, bounds| {
        let request = PlanRequest { bounds, ..at(target) };
        plan_config(&config(SMOLLM2_135M), &request).unwrap_err()
    };
    assert_eq!(code(0.05, (0.1, 2.0)).exit_code(), 22);
    assert_eq!(
        code(0.05, (0.1, 2.0)).to_string(),
        "Target BPW 0.05 is below minimum supported (0.1)"
    );
    assert_eq!(code(2.5, (0.1, 2.0)).exit_code(), 22);
    assert_eq!(code(f64::INFINITY, (0.1, 2.0)).exit_code(), 22);
    assert_eq!(code(-1.0, (0.1, 2.0)).exit_code(), 22);
    assert_eq!(code(0.5, (0.6, 2.0)).exit_code(), 22);
    assert_eq!(code(f64::NAN, (0.1, 2.0)).exit_code(), 2);
    assert!(plan_config(&config(SMOLLM2_135M), &at(0.1)).is_ok());
    assert!(plan_config(&config(SMOLLM2_135M), &at(2.0)).is_ok());
}

#[test]
fn explicit_ranks_hold_for_every_layer_or_none() {
    let with = |rank| PlanRequest { rank: Some(rank), ..at(0.5) };
    let plan = planned(SMOLLM2_135M, &with(100));
    assert!(plan.layers().all(|layer| layer.shape.rank == 100 && layer.shape.paths == 1));
    // 100 latent dimensions take 13 bytes in each row of the left factor.
    let q = plan.layers().next().unwrap().shape;
    assert_eq!(q.bytes(), 576 * 13 + 100 * 72 + 2 * 1152);
    let error = plan_config(&config(SMOLLM2_135M), &with(193)).unwrap_err();
    assert_eq!(error.exit_code(), 23);
    assert!(error.to_string().contains("model.layers.0.self_attn.k_proj"), "{error}");
    assert!(error.suggestion().contains("192"));
    assert_eq!(plan_config(&config(SMOLLM2_135M), &with(0)).unwrap_err().exit_code(), 2);
    assert!(plan_config(&config(SMOLLM2_135M), &with(192)).is_ok());
}

#[test]
fn embeddings_fall_back_to_types_that_fit_their_width() {
    use StoredType::{F16, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q6_K, Q8_0};
    let dtype_of = |dims, embedding_type| {
        let plan = planned(dims, &PlanRequest { embedding_type, ..at(1.0) });
        let embedding = plan.stored().next().unwrap().clone();
        assert_eq!(embedding.name, "model.embed_tokens.weight");
        (embedding.dtype, embedding.instead_of, embedding.bytes)
    };
    assert_eq!(dtype_of(LLAMA_2_7B, Q4_K), (Q4_K, None, 32000 * 4096 / 256 * 144));
    assert_eq!(dtype_of(LLAMA_2_7B, Q6_K), (Q6_K, None, 32000 * 4096 / 256 * 210));
    // 576 columns are 18 blocks of 32, but not a whole number of 256.
    assert_eq!(dtype_of(SMOLLM2_135M, Q6_K), (Q8_0, Some(Q6_K), 49152 * 18 * 34));
    // What llama.cpp writes for them (tensor_type_fallback in src/llama-quant.cpp).
    assert_eq!(dtype_of(SMOLLM2_135M, Q4_K), (Q5_0, Some(Q4_K), 49152 * 18 * 22));
    for (dtype, bytes) in [(Q4_0, 18), (Q4_1, 20), (Q5_0, 22), (Q5_1, 24)] {
        assert_eq!(dtype_of(SMOLLM2_135M, dtype), (dtype, None, 49152 * 18 * bytes));
    }
    assert_eq!(dtype_of(SMOLLM2_135M, F16), (F16, None, 49152 * 576 * 2));
    let odd = (40, 96, 2, 2, 2, 100, true);
    for dtype in [Q8_0, Q4_0, Q4_K] {
        assert_eq!(dtype_of(odd, dtype), (F16, Some(dtype), 8000));
    }
}

#[test]
fn tensors_keep_the_order_and_sizes_of_the_source() {
    let headers = headers_from_config(&config(SMOLLM2_135M));
    let plan = plan(&headers, &at(1.0)).unwrap();
    assert_eq!(plan.tensors.len(), headers.len());
    let mut sum = 0;
    for (tensor, header) in plan.tensors.iter().zip(&headers) {
        match tensor {
            PlannedTensor::Factorized(layer) => {
                assert_eq!(format!("{}.weight", layer.name), header.name);
                assert_eq!(vec![layer.shape.rows, layer.shape.cols], header.shape);
                sum += layer.shape.bytes();
            }
            PlannedTensor::Stored(stored) => {
                assert_eq!((&stored.name, &stored.shape), (&header.name, &header.shape));
                if header.shape.len() == 1 {
                    assert_eq!(stored.dtype, StoredType::F32);
                }
                sum += stored.bytes;
            }
        }
    }
    assert_eq!(plan.tensor_bytes(), sum);
    assert_eq!(plan.layers().count(), 210);
}

#[test]
fn a_model_without_linear_layers_is_refused() {
    let headers = [TensorHeader {
        name: "model.embed_tokens.weight".into(),
        shape: vec![100, 32],
        stored_bytes: 6400,
    }];
    assert!(matches!(plan(&headers, &at(0.5)), Err(Error::Unsupported { .. })));
}

/// Single matrices of blocks, of these shapes.
fn matrices(shapes: &[[usize; 2]]) -> Vec<TensorHeader> {
    let header = |(block, shape): (usize, &[usize; 2])| TensorHeader {
        name: format!("model.layers.{block}.mlp.up_proj.weight"),
        shape: shape.to_vec(),
        stored_bytes: 0,
    };
    shapes.iter().enumerate().map(header).collect()
}

fn losses(divergences: &[f64]) -> Losses {
    let loss = |(block, &divergence): (usize, &f64)| {
        let name = format!("model.layers.{block}.mlp.up_proj");
        (name, Loss { divergence, bits_per_weight: 1.0 })
    };
    divergences.iter().enumerate().map(loss).collect()
}

/// All ranks of all matrices within the bounds and the budget are tried; the expected loss is the
/// power law written down again.
#[test]
fn ranks_by_loss_are_the_best_there_are() {
    let expected = |divergence: f64, rate: f64| divergence * rate.powf(-1.3);
    for (shapes, divergences, target, slack) in [
        // Steps of equal cost: the optimum itself.
        ([[64, 64]; 4], [0.1, 0.2, 0.05, 0.4], 1.5, 1.0 + 1e-9),
        ([[64, 64]; 4], [1.0, 1e-4, 0.3, 0.3], 1.8, 1.0 + 1e-9),
        ([[128, 48]; 4], [0.1, 0.1, 0.1, 0.1], 1.1, 1.0 + 1e-9),
        // Steps of different cost leave a rest that only a search would fill.
        ([[64, 64], [192, 64], [64, 32], [48, 160]], [0.3, 0.1, 0.5, 0.2], 1.4, 1.05),
    ] {
        let request = at(target);
        let found = plan_by_loss(&matrices(&shapes), &request, &losses(&divergences)).unwrap();
        let forms: Vec<Vec<(u64, f64)>> = found
            .layers()
            .zip(divergences)
            .map(|(layer, divergence)| {
                let (_, most) = layer.shape.rank_range();
                (8..=most)
                    .step_by(8)
                    .map(|rank| layer.shape.with_rank(rank))
                    .filter(|form| form.bits_per_weight() <= 1.6 * target)
                    // No form is taken while the next one costs half of the target or less.
                    .filter(|form| form.with_rank(form.rank + 8).bits_per_weight() > 0.5 * target)
                    .map(|form| (form.bits(), expected(divergence, form.bits_per_weight())))
                    .collect()
            })
            .collect();
        let weights: usize = shapes.iter().map(|[m, n]| m * n).sum();
        let budget = (target * weights as f64).floor() as u64;
        let mut best = f64::INFINITY;
        for a in &forms[0] {
            for b in &forms[1] {
                for c in &forms[2] {
                    for d in &forms[3] {
                        if a.0 + b.0 + c.0 + d.0 <= budget {
                            best = best.min(a.1 + b.1 + c.1 + d.1);
                        }
                    }
                }
            }
        }
        let reached: f64 = found
            .layers()
            .zip(divergences)
            .map(|(layer, divergence)| expected(divergence, layer.shape.bits_per_weight()))
            .sum();
        assert!(found.layers().map(|layer| layer.shape.bits()).sum::<u64>() <= budget);
        assert!(reached <= slack * best, "{shapes:?} {divergences:?}: {reached} {best}");
    }
}

#[test]
fn ranks_by_loss_meet_the_target_and_follow_the_loss() {
    for (dims, targets) in [(SMOLLM2_135M, &[0.3, 0.55, 1.0, 2.0][..]), (TINY, &[0.8, 1.0, 1.5])] {
        let headers = headers_from_config(&config(dims));
        for &target in targets {
            let request = PlanRequest { target_bpw: target, ..PlanRequest::default() };
            let even = plan(&headers, &request).unwrap();
            let of = |sensitive: &str, times: f64| -> CompressionPlan {
                let losses: Losses = even
                    .layers()
                    .map(|layer| {
                        let share = layer.shape.weights() as f64 / 1e6;
                        let times = if layer.name == sensitive { times } else { 1.0 };
                        let bits_per_weight = layer.shape.bits_per_weight();
                        let loss = Loss { divergence: times * share, bits_per_weight };
                        (layer.name.clone(), loss)
                    })
                    .collect();
                plan_by_loss(&headers, &request, &losses).unwrap()
            };
            let name = "model.layers.1.mlp.down_proj";
            let rate = |plan: &CompressionPlan| {
                plan.layers().find(|l| l.name == name).map(|l| l.shape.bits_per_weight()).unwrap()
            };
            let (same, more, less) = (of("", 1.0), of(name, 3.0), of(name, 0.3));
            for found in [&same, &more, &less] {
                let achieved = found.achieved_bpw();
                assert!(achieved <= target && achieved > 0.99 * target, "{target}: {achieved}");
            }
            // Losses in proportion to the weights move nothing far.
            assert!((rate(&same) / target - 1.0).abs() < 0.15, "{target}: {}", rate(&same));
            assert!(rate(&more) > 1.2 * rate(&same) && rate(&more) <= 1.6 * target);
            assert!(rate(&less) < 0.85 * rate(&same));
        }
    }
    let request = PlanRequest { target_bpw: 1.0, ..PlanRequest::default() };
    let shapes = matrices(&[[64, 64]; 2]);
    let missing = plan_by_loss(&shapes, &request, &losses(&[0.1]));
    assert!(matches!(missing, Err(Error::General(_))), "{missing:?}");
    // A rank that was given is that of every layer.
    let request = PlanRequest { rank: Some(24), ..request };
    let given = plan_by_loss(&shapes, &request, &losses(&[0.1, 0.9])).unwrap();
    assert!(given.layers().all(|layer| layer.shape.rank == 24));
}
