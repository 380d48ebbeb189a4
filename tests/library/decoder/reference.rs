//! A decoder in f64, one loop per sum, without any of the tricks of the real one.

use std::f64::consts::PI;

use llm_quantize::arch::ModelConfig;
use llm_quantize::arch::config::RopeScaling;

use super::tiny::Tiny;

/// Logits of every token, `[tokens][vocab]`.
pub(crate) fn logits(model: &Tiny, tokens: &[u32]) -> Vec<Vec<f64>> {
    let config = &model.config;
    let width = config.hidden_size;
    let embedding = model.get("model.embed_tokens.weight");
    let mut x: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&t| (0..width).map(|i| f64::from(embedding[t as usize * width + i])).collect())
        .collect();
    for block in 0..config.num_layers {
        let name = |part: &str| format!("model.layers.{block}.{part}");
        let normed: Vec<_> =
            x.iter().map(|x| norm(config, x, model.get(&name("input_layernorm.weight")))).collect();
        let attended = attention(model, block, &normed);
        for (x, a) in x.iter_mut().zip(&attended) {
            add(x, &linear(model, &name("self_attn.o_proj"), a));
        }
        for x in &mut x {
            let normed = norm(config, x, model.get(&name("post_attention_layernorm.weight")));
            let gate = linear(model, &name("mlp.gate_proj"), &normed);
            let up = linear(model, &name("mlp.up_proj"), &normed);
            let inner: Vec<f64> =
                gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            add(x, &linear(model, &name("mlp.down_proj"), &inner));
        }
    }
    let head = if config.tie_word_embeddings { embedding } else { model.get("lm_head.weight") };
    x.iter()
        .map(|x| {
            let normed = norm(config, x, model.get("model.norm.weight"));
            (0..config.vocab_size).map(|t| row_times(head, t, &normed)).collect()
        })
        .collect()
}

fn attention(model: &Tiny, block: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let config = &model.config;
    let (dim, group) = (config.head_dim, config.num_heads / config.num_kv_heads);
    let name = |part: &str| format!("model.layers.{block}.self_attn.{part}");
    let heads_of = |part: &str, norm_name: &str, position: usize, rotated: bool| -> Vec<Vec<f64>> {
        linear(model, &name(part), &x[position])
            .chunks(dim)
            .map(|head| {
                let head = match model.find(&name(norm_name)) {
                    Some(weight) if rotated => norm(config, head, weight),
                    _ => head.to_vec(),
                };
                if rotated { rotate(config, &head, position) } else { head }
            })
            .collect()
    };
    let all = |part: &str, norm_name: &str, rotated: bool| -> Vec<Vec<Vec<f64>>> {
        (0..x.len()).map(|position| heads_of(part, norm_name, position, rotated)).collect()
    };
    let queries = all("q_proj", "q_norm.weight", true);
    let keys = all("k_proj", "k_norm.weight", true);
    let values = all("v_proj", "", false);
    let mut out = Vec::new();
    for (position, queries) in queries.iter().enumerate() {
        let mut row = Vec::new();
        for (head, query) in queries.iter().enumerate() {
            let sees = |other: usize| match &config.sliding_window {
                Some(window) if window.layers[block] => position - other < window.size,
                _ => true,
            };
            let seen: Vec<usize> = (0..=position).filter(|&other| sees(other)).collect();
            let weights: Vec<f64> = seen
                .iter()
                .map(|&other| {
                    let key = &keys[other][head / group];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    (dot / (dim as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            let mut mixed = vec![0.0; dim];
            for (&other, weight) in seen.iter().zip(&weights) {
                for (sum, value) in mixed.iter_mut().zip(&values[other][head / group]) {
                    *sum += weight / total * value;
                }
            }
            row.extend(mixed);
        }
        out.push(row);
    }
    out
}

/// Turns the pairs `(i, i + d/2)` of a head.
fn rotate(config: &ModelConfig, head: &[f64], position: usize) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let (frequency, magnitude) = frequency(config, i);
        let angle = position as f64 * frequency;
        out[i] = magnitude * (head[i] * angle.cos() - head[i + half] * angle.sin());
        out[i + half] = magnitude * (head[i + half] * angle.cos() + head[i] * angle.sin());
    }
    out
}

/// Radians per token of pair `i`, and the factor on the rotated vector.
pub(crate) fn frequency(config: &ModelConfig, i: usize) -> (f64, f64) {
    let dim = config.head_dim as f64;
    let theta = config.rope.theta;
    let plain = 1.0 / theta.powf(2.0 * i as f64 / dim);
    match &config.rope.scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain / factor, 1.0),
        RopeScaling::Factors(factors) => (plain / f64::from(factors[i]), 1.0),
        RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. } => {
            panic!("depends on the length of the text")
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Turns of the wave within the original context decide.
            let turns = *original_context as f64 * plain / (2.0 * PI);
            let kept =
                ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            (kept * plain + (1.0 - kept) * plain / factor, 1.0)
        }
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            let dimension =
                |turns: f64| dim / 2.0 * (*original_context as f64 / (turns * 2.0 * PI)).log(theta);
            let (first, last) = (dimension(*beta_fast), dimension(*beta_slow));
            let (first, last) =
                if *truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(dim - 1.0));
            let stretched = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            let magnitude = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
            ((1.0 - stretched) * plain + stretched * plain / factor, magnitude)
        }
    }
}

fn linear(model: &Tiny, name: &str, x: &[f64]) -> Vec<f64> {
    let (shape, weight) = &model.tensors[&format!("{name}.weight")];
    let bias = model.find(&format!("{name}.bias"));
    (0..shape[0])
        .map(|row| row_times(weight, row, x) + bias.map_or(0.0, |bias| f64::from(bias[row])))
        .collect()
}

fn row_times(weight: &[f32], row: usize, x: &[f64]) -> f64 {
    (0..x.len()).map(|i| f64::from(weight[row * x.len() + i]) * x[i]).sum()
}

fn norm(config: &ModelConfig, x: &[f64], weight: &[f32]) -> Vec<f64> {
    let square: f64 = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = (square + config.rms_norm_eps).sqrt();
    x.iter().zip(weight).map(|(x, w)| x / scale * f64::from(*w)).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
