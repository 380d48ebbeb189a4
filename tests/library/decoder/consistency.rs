//! The decoder against itself: what must not change a result does not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{Tensor, Var};
use llm_quantize::arch::ModelConfig;
use llm_quantize::arch::families::{LLAMA, MISTRAL, QWEN3};
use llm_quantize::graph::generate::StopReason;
use llm_quantize::graph::{
    CacheType, Decoder, Execution, Generator, LinearLayer, Observer, Sampling,
};

use super::tiny::{
    BLOCK_LINEARS, Tiny, config, largest_difference, linear_shape, logits, tokens, window,
};

fn models() -> Vec<Tiny> {
    let mut windowed = config(&MISTRAL);
    windowed.sliding_window = Some(window(9, 1));
    vec![
        Tiny::new(config(&LLAMA), &BLOCK_LINEARS, 31),
        Tiny::new(windowed, &[], 32),
        Tiny::new(config(&QWEN3), &[], 33),
    ]
}

/// Logits of `tokens` given in the pieces `lengths` to one cache.
fn cached_logits(
    decoder: &Decoder,
    tokens: &[u32],
    lengths: &[usize],
    kind: CacheType,
) -> Vec<Vec<f32>> {
    let mut cache = decoder.cache(kind);
    let mut rows = Vec::new();
    let mut at = 0;
    for length in lengths {
        let hidden = decoder.hidden(&tokens[at..at + length], 1, Some(&mut cache), None).unwrap();
        rows.extend(decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap());
        at += length;
        assert_eq!(cache.len(), at);
    }
    rows
}

#[test]
fn cached_tokens_give_the_logits_of_the_whole() {
    for model in models() {
        let tokens = tokens(&model.config, 30, 7);
        for execution in [Execution::Fused, Execution::Operations] {
            let mut decoder = model.decoder();
            decoder.set_execution(execution).unwrap();
            let want = logits(&decoder, &tokens);
            for lengths in [&[1; 30][..], &[17, 1, 1, 3, 8], &[2, 28]] {
                let exact = cached_logits(&decoder, &tokens, lengths, CacheType::F32);
                assert!(largest_difference(&exact, &want) < 1e-5);
                let halves = cached_logits(&decoder, &tokens, lengths, CacheType::F16);
                let difference = largest_difference(&halves, &want);
                assert!(difference < 2e-2, "{difference}");
            }
        }
    }
}

#[test]
fn a_truncated_cache_continues_as_if_the_rest_had_not_been() {
    let model = &models()[0];
    let decoder = model.decoder();
    let tokens = tokens(&model.config, 20, 8);
    let mut cache = decoder.cache(CacheType::F32);
    decoder.hidden(&tokens, 1, Some(&mut cache), None).unwrap();
    cache.truncate(5);
    assert_eq!(cache.len(), 5);
    let hidden = decoder.hidden(&tokens[5..9], 1, Some(&mut cache), None).unwrap();
    let got = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    assert!(largest_difference(&got, &logits(&decoder, &tokens[..9])[5..]) < 1e-5);
}

/// Fails at the first MLP.
struct Stop;

impl Observer for Stop {
    fn linear_input(&mut self, names: &[&str], _: &Tensor) -> llm_quantize::Result<()> {
        if names[0].ends_with("gate_proj") {
            return Err(llm_quantize::Error::General("enough".into()));
        }
        Ok(())
    }
}

#[test]
fn a_failed_pass_leaves_the_cache_as_it_was() {
    let model = &models()[0];
    let decoder = model.decoder();
    let tokens = tokens(&model.config, 9, 17);
    let mut cache = decoder.cache(CacheType::F32);
    decoder.hidden(&tokens[..5], 1, Some(&mut cache), None).unwrap();
    assert!(decoder.hidden(&tokens[5..], 1, Some(&mut cache), Some(&mut Stop)).is_err());
    assert_eq!(cache.len(), 5);
    let hidden = decoder.hidden(&tokens[5..], 1, Some(&mut cache), None).unwrap();
    let got = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    assert!(largest_difference(&got, &logits(&decoder, &tokens)[5..]) < 1e-5);
}

#[test]
fn a_cache_grows_in_steps_and_counts_its_bytes() {
    let model = &models()[0];
    let decoder = model.decoder();
    let width = model.config.num_kv_heads * model.config.head_dim;
    let tokens = tokens(&model.config, 300, 9);
    let mut cache = decoder.cache(CacheType::F16);
    assert_eq!(cache.bytes(), 0);
    decoder.hidden(&tokens[..3], 1, Some(&mut cache), None).unwrap();
    assert_eq!(cache.bytes(), 2 * 2 * 2 * width * 256);
    decoder.hidden(&tokens[3..], 1, Some(&mut cache), None).unwrap();
    assert_eq!(cache.bytes(), 2 * 2 * 2 * width * 512);
    let too_many = vec![0; 300];
    assert!(decoder.hidden(&too_many, 1, Some(&mut cache), None).is_err());
    assert_eq!(cache.len(), 300);
}

#[test]
fn a_batch_gives_the_logits_of_its_sequences() {
    for model in models() {
        for execution in [Execution::Fused, Execution::Operations] {
            let mut decoder = model.decoder();
            decoder.set_execution(execution).unwrap();
            for length in [3, 21] {
                let sequences: Vec<_> =
                    (0..3).map(|seed| tokens(&model.config, length, seed)).collect();
                let hidden = decoder.hidden(&sequences.concat(), 3, None, None).unwrap();
                let got = decoder.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
                let want: Vec<_> = sequences.iter().flat_map(|s| logits(&decoder, s)).collect();
                assert!(largest_difference(&got, &want) < 1e-5);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for model in models() {
        let decoder = model.decoder();
        let tokens = tokens(&model.config, 280, 10);
        let run = |threads: usize, length: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| logits(&decoder, &tokens[..length]))
        };
        for length in [1, 3, 280] {
            let one = run(1, length);
            for threads in [2, 5] {
                assert_eq!(one, run(threads, length), "{length} tokens, {threads} threads");
            }
        }
    }
}

/// Adds up the squared inputs of each layer.
#[derive(Default)]
struct Squares(BTreeMap<String, (usize, Vec<f64>)>);

impl Observer for Squares {
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> llm_quantize::Result<()> {
        for name in names {
            let rows = x.to_vec2::<f32>()?;
            let (count, sums) =
                self.0.entry((*name).to_string()).or_insert_with(|| (0, vec![0.0; rows[0].len()]));
            *count += rows.len();
            for row in rows {
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v).powi(2));
            }
        }
        Ok(())
    }
}

#[test]
fn an_observer_sees_every_input_once_per_token() {
    let model = &models()[0];
    let tokens = tokens(&model.config, 24, 11);
    let mut seen = Vec::new();
    for execution in [Execution::Fused, Execution::Operations] {
        let mut decoder = model.decoder();
        decoder.set_execution(execution).unwrap();
        let mut squares = Squares::default();
        decoder.hidden(&tokens, 2, None, Some(&mut squares)).unwrap();
        seen.push(squares.0);
    }
    let names: Vec<String> = (0..model.config.num_layers)
        .flat_map(|block| BLOCK_LINEARS.map(|linear| ModelConfig::module_name(block, linear)))
        .collect();
    for observed in &seen {
        assert_eq!(observed.len(), names.len());
        for (at, name) in names.iter().enumerate() {
            let (count, sums) = &observed[name];
            assert_eq!(*count, 24);
            assert_eq!(sums.len(), linear_shape(&model.config, BLOCK_LINEARS[at % 7]).1);
        }
        assert_eq!(observed[&names[0]], observed[&names[2]]);
        assert_ne!(observed[&names[0]], observed[&names[4]]);
    }
    for name in &names {
        for (a, b) in seen[0][name].1.iter().zip(&seen[1][name].1) {
            assert!((a - b).abs() < 1e-4 * a.max(1.0));
        }
    }
    // The first input is the normed embedding, whose mean square is that of the norm's weights.
    let first = &seen[0][&names[0]];
    let weights = model.get("model.layers.0.input_layernorm.weight");
    let bound: f64 = weights.iter().map(|w| f64::from(w * w)).fold(0.0, f64::max);
    let mean = first.1.iter().sum::<f64>() / (24 * model.config.hidden_size) as f64;
    assert!(mean < bound && mean > 0.3, "{mean}");
}

#[test]
fn blocks_run_alone_give_the_whole() {
    for model in models() {
        let decoder = model.decoder();
        let tokens = tokens(&model.config, 18, 12);
        let positions = decoder.positions(2, 9, 0);
        let mut x = decoder.embed(&tokens).unwrap();
        for block in decoder.blocks() {
            x = block.forward(&x, &positions, None, None).unwrap();
        }
        let got = decoder.final_norm(&x).unwrap().to_vec2::<f32>().unwrap();
        let want = decoder.hidden(&tokens, 2, None, None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(got, want);
    }
}

/// A weight that candle can differentiate through.
struct Dense(Tensor);

impl LinearLayer for Dense {
    fn dims(&self) -> (usize, usize) {
        self.0.dims2().unwrap()
    }

    fn forward(&self, x: &Tensor) -> llm_quantize::Result<Tensor> {
        Ok(x.matmul(&self.0.t()?)?)
    }
}

#[test]
fn operations_have_the_gradients_of_finite_differences() {
    for model in models() {
        let mut decoder = model.decoder();
        decoder.set_execution(Execution::Operations).unwrap();
        let block = decoder.block_mut(1);
        let mut weights = Vec::new();
        for projection in block.projections_mut() {
            let (shape, values) = &model.tensors[&format!("{}.weight", projection.name)];
            let weight =
                Var::from_slice(values, shape.as_slice(), &candle_core::Device::Cpu).unwrap();
            projection.layer = Box::new(Dense(weight.as_tensor().clone()));
            weights.push(weight);
        }
        let tokens = tokens(&model.config, 12, 13);
        let positions = decoder.positions(2, 6, 0);
        let x = Var::from_tensor(&decoder.embed(&tokens).unwrap()).unwrap();
        let loss = || {
            let out = decoder.block(1).forward(x.as_tensor(), &positions, None, None).unwrap();
            let weights = Tensor::arange(0f32, out.elem_count() as f32, out.device()).unwrap();
            let weights = (weights * 0.7).unwrap().sin().unwrap().reshape(out.shape()).unwrap();
            (out * weights).unwrap().sum_all().unwrap()
        };
        let gradients = loss().backward().unwrap();
        for (which, var) in weights.iter().chain([&x]).enumerate() {
            let gradient = gradients.get(var.as_tensor()).expect("every parameter has a gradient");
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // The largest entry: finite differences in f32 resolve nothing small.
            let (at, largest) =
                gradient.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
            let moved = |step: f32| {
                let mut values = values.clone();
                values[at] += step;
                var.set(&Tensor::from_vec(values, var.shape().clone(), var.device()).unwrap())
                    .unwrap();
                loss().to_scalar::<f32>().unwrap()
            };
            let difference = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            moved(0.0);
            assert!(
                (difference - largest).abs() < 0.02 * largest.abs() + 0.02,
                "parameter {which}: {largest} by the graph, {difference} by differences"
            );
        }
    }
}

/// Every entry of every gradient, over sequences longer than a block of queries.
#[test]
fn tracked_blocks_have_the_gradients_of_operations() {
    for model in models() {
        let all = [Execution::Operations, Execution::Tracked].map(|execution| {
            let mut decoder = model.decoder();
            decoder.set_execution(execution).unwrap();
            let mut weights = Vec::new();
            for projection in decoder.block_mut(1).projections_mut() {
                let (shape, values) = &model.tensors[&format!("{}.weight", projection.name)];
                let weight =
                    Var::from_slice(values, shape.as_slice(), &candle_core::Device::Cpu).unwrap();
                projection.layer = Box::new(Dense(weight.as_tensor().clone()));
                weights.push(weight);
            }
            let tokens = tokens(&model.config, 2 * 150, 17);
            let positions = decoder.positions(2, 150, 0);
            let x = Var::from_tensor(&decoder.embed(&tokens).unwrap()).unwrap();
            let out = decoder.block(1).forward(x.as_tensor(), &positions, None, None).unwrap();
            let factors = Tensor::arange(0f32, out.elem_count() as f32, out.device()).unwrap();
            let factors = (factors * 0.7).unwrap().sin().unwrap().reshape(out.shape()).unwrap();
            let gradients = (out * factors).unwrap().sum_all().unwrap().backward().unwrap();
            weights.push(x);
            weights
                .iter()
                .map(|var| {
                    let gradient = gradients.get(var.as_tensor()).expect("a gradient");
                    gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap()
                })
                .collect::<Vec<_>>()
        });
        for (which, (expected, found)) in all[0].iter().zip(&all[1]).enumerate() {
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
            let difference = norm(&mut expected.iter().zip(found).map(|(a, b)| a - b));
            let size = norm(&mut expected.iter().copied());
            // Attention multiplies in bfloat16 where the processor can.
            assert!(difference < 0.01 * size, "parameter {which}: {difference} of {size}");
        }
    }
}

#[test]
fn greedy_generation_takes_the_largest_logit_each_time() {
    let model = &models()[0];
    let decoder = model.decoder();
    let prompt = tokens(&model.config, 5, 14);
    let mut want = prompt.clone();
    for _ in 0..12 {
        let logits = logits(&decoder, &want);
        let last = logits.last().unwrap();
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        want.push(best as u32);
    }
    let mut streamed = Vec::new();
    let mut generator = Generator::new(&decoder, &Sampling::default(), CacheType::F32).unwrap();
    let generation = generator
        .generate(&prompt, 12, |token| {
            streamed.push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(generation.tokens, want[5..]);
    assert_eq!(streamed, want[5..]);
    assert_eq!(generation.stop, StopReason::MaxTokens);
    assert_eq!(generation.prompt_tokens, 5);
    // The last token was chosen, not run.
    assert_eq!(generator.position(), 16);

    let stop = want[9];
    let first = want[5..].iter().position(|token| *token == stop).unwrap();
    let mut generator = Generator::new(&decoder, &Sampling::default(), CacheType::F32).unwrap();
    generator.stop_at(&[stop]);
    let generation = generator.generate(&prompt, 12, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.tokens, want[5..5 + first]);
    assert_eq!(generation.stop, StopReason::EndOfText);

    let mut generator = Generator::new(&decoder, &Sampling::default(), CacheType::F32).unwrap();
    let generation = generator.generate(&prompt, 12, |_| ControlFlow::Break(())).unwrap();
    assert_eq!((generation.tokens.len(), generation.stop), (1, StopReason::Cancelled));
}

#[test]
fn generation_stops_where_the_context_ends() {
    let mut config = config(&LLAMA);
    config.max_positions = 20;
    let model = Tiny::new(config, &[], 35);
    let decoder = model.decoder();
    let mut generator = Generator::new(&decoder, &Sampling::default(), CacheType::F16).unwrap();
    let prompt = tokens(&model.config, 15, 15);
    let generation = generator.generate(&prompt, 100, |_| ControlFlow::Continue(())).unwrap();
    // Five more positions can be run, and the last one still predicts a token.
    assert_eq!((generation.tokens.len(), generation.stop), (6, StopReason::ContextFull));
    assert!(generator.generate(&prompt, 1, |_| ControlFlow::Continue(())).is_err());
}

#[test]
fn sampling_follows_its_seed() {
    let model = &models()[0];
    let decoder = model.decoder();
    let prompt = tokens(&model.config, 5, 16);
    let run = |seed: u64, temperature: f64, top_p: Option<f64>, top_k: Option<usize>| {
        let sampling = Sampling { temperature, top_p, top_k, seed };
        let mut generator = Generator::new(&decoder, &sampling, CacheType::F32)?;
        generator.generate(&prompt, 30, |_| ControlFlow::Continue(())).map(|g| g.tokens)
    };
    assert_eq!(run(1, 1.0, None, None).unwrap(), run(1, 1.0, None, None).unwrap());
    assert_ne!(run(1, 1.0, None, None).unwrap(), run(2, 1.0, None, None).unwrap());
    let greedy = run(1, 0.0, None, None).unwrap();
    assert_eq!(run(7, 1.5, None, Some(1)).unwrap(), greedy);
    assert_eq!(run(7, 1.5, Some(1e-6), None).unwrap(), greedy);
    assert!(run(1, -1.0, None, None).is_err());
    assert!(run(1, f64::NAN, None, None).is_err());
    assert!(run(1, 1.0, Some(0.0), None).is_err());
    assert!(run(1, 1.0, None, Some(0)).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = &models()[0];
    let decoder = model.decoder();
    let bad = |tokens: &[u32], batch: usize| decoder.hidden(tokens, batch, None, None).is_err();
    assert!(bad(&[], 1) && bad(&[1, 2, 3], 2) && bad(&[61], 1) && bad(&[1], 0));
    let mut cache = decoder.cache(CacheType::F32);
    assert!(decoder.hidden(&[1, 2], 2, Some(&mut cache), None).is_err());

    for (name, part) in [
        ("model.layers.1.mlp.up_proj.weight", "missing"),
        ("model.norm.weight", "missing"),
        ("lm_head.weight", "missing"),
    ] {
        let mut broken = model.clone();
        broken.tensors.shift_remove(name);
        let error = Decoder::new(&broken.local_model(), &llm_quantize::device::Backend::cpu());
        let message = error.unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(part), "{message}");
    }
    let mut broken = model.clone();
    let (shape, values) = broken.tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap();
    shape[0] -= 1;
    values.truncate(shape[0] * shape[1]);
    let error = Decoder::new(&broken.local_model(), &llm_quantize::device::Backend::cpu());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("k_proj") && message.contains("[15, 48]"), "{message}");

    let mut broken = model.clone();
    broken.config.num_kv_heads = 4;
    assert!(Decoder::new(&broken.local_model(), &llm_quantize::device::Backend::cpu()).is_err());
}
