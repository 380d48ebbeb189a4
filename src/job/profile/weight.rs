//! What a model loses by the error of one tensor, estimated: for models and budgets where nothing is
//! measured.
//!
//! The figures are means of what [`super::sensitivity`] measured on three models (docs/profiles.md
//! has the table): divergence in nats per token for each unit of the relative squared error. They
//! differ a hundredfold between roles and places. Of the output matrix the weights themselves say
//! most ([`loss_by_logits`]).

use crate::arch::role::{Role, layer, role};
use crate::codec::StoredType;

/// What is beyond the quadratic form, for tables of tokens: see [`loss`].
const CURVATURE_OF_TABLES: f64 = 10.0;

/// How much more the error of the tensor of that GGUF name counts, whose inputs have the mean squares
/// `columns`, those of one matrix after the other of `matrices`.
///
/// Where one channel carries nearly all of the energy (a massive activation, of a few tokens), the
/// error is relative to the energy of these few tokens, and what happens to all others hardly shows in
/// it. With `c` the largest channel's share, the others have `1 − c`; the massive channel itself
/// counts on top. Measured: a factor of 350 at `c` = 0.993, 45 at 0.936, 2.5 at 0.36.
///
/// Only down projections and the attention's outputs can have such inputs. What the other matrices
/// receive comes out of a norm, which gives all tokens the same energy: a channel that is large there is
/// large for all of them, and the error says what it says everywhere else. Measured on SmolLM2-135M,
/// queries, keys and values of blocks where `c` is 0.65 to 0.82 lose 1.2, 2.1 and 2.2 times as much as where
/// it is 0.18 to 0.27 (medians of five blocks); the formula would say 5 times.
#[must_use]
pub(crate) fn concentration(name: &str, columns: &[f32], matrices: usize) -> f64 {
    if !matches!(role(name), Role::FeedForwardDown | Role::AttentionOutput) {
        return 1.0;
    }
    let width = (columns.len() / matrices.max(1)).max(1);
    let (mut sum, mut count) = (0.0, 0.0);
    for columns in columns.chunks_exact(width) {
        let all: f64 = columns.iter().map(|v| f64::from(*v)).sum();
        let most = columns.iter().fold(0.0f64, |most, v| most.max(f64::from(*v)));
        let share = if all > 0.0 { (most / all).min(0.999) } else { 0.0 };
        sum += (1.0 + 2.0 * share) / (1.0 - share);
        count += 1.0;
    }
    if count > 0.0 { sum / count } else { 1.0 }
}

/// Divergence for a relative squared error of 1, nats per token, of the tensor of that GGUF name in
/// a model of `layers` blocks. `tied`: the embeddings serve as the output matrix.
///
/// A block counts for less the more there are, by the root of their number, and the first one, which
/// writes what all others read, for three times as much: `f / √layers · (1 + 2/(block + 1)²)`. Behind
/// the last one nothing makes up for its errors.
#[must_use]
pub(crate) fn estimated(name: &str, layers: usize, tied: bool) -> f64 {
    let figure = match role(name) {
        Role::Embedding if tied => return 6.0,
        Role::Embedding => return 1.2,
        Role::Output => return 6.0,
        Role::AttentionQuery => 0.18,
        Role::AttentionKey => 0.33,
        Role::AttentionValue => 0.3,
        Role::AttentionOutput => 0.42,
        Role::FeedForwardGate | Role::FeedForwardUp | Role::Other => 0.55,
        Role::FeedForwardDown => 0.6,
    };
    let figure = figure / (layers.max(1) as f64).sqrt();
    let Some(number) = layer(name) else { return figure };
    let last = if number + 1 == layers { 1.3 } else { 1.0 };
    figure * last * (1.0 + 2.0 / (number as f64 + 1.0).powi(2))
}

/// How much more a type's error counts than that of Q5_1, of the tensor of that GGUF name.
///
/// Attention takes means of values over many tokens. What is different in each token averages out and
/// what all have in common stays, and the large channels of a normed input are largely common.
/// Encoders with a scale and a minimum meet just the weights of the column that counts most; those with
/// a scale alone cannot, and of the same error about three times as much stays. Measured, times √layers:
/// stories15M Q5_1 0.42, IQ4_NL 0.60, Q8_0 0.93, Q5_0 1.02; SmolLM2-135M Q5_1 0.22, Q4_0 1.0. Types that
/// were not measured are taken to be like those of their kind.
#[must_use]
pub(crate) fn common_part(name: &str, kind: StoredType) -> f64 {
    if role(name) == Role::AttentionValue && !kind.has_minimum() && kind.is_quantized() {
        3.0
    } else {
        1.0
    }
}

/// The loss by a relative squared error of `error`, nats per token: `sensitivity · e · (1 + k e)`.
///
/// The second term is what is beyond the quadratic form. For tables of tokens it is large: tied
/// embeddings at e = 0.58 were measured to lose 29 nats where the first term alone says 6.
#[must_use]
pub(crate) fn loss(name: &str, sensitivity: f64, error: f64) -> f64 {
    let curvature = match role(name) {
        Role::Embedding | Role::Output => CURVATURE_OF_TABLES,
        _ => 2.0,
    };
    sensitivity * error * (1.0 + curvature * error)
}

/// Part of the disturbance of the logits that moves the prediction, measured: see
/// [`loss_by_logits`].
const OPEN: f64 = 0.4;

/// The loss by errors of the output matrix, nats per token: `½ · 0.4 · disturbance · (1 + 10 e)`, with
/// `disturbance` the mean square of what a logit is off by and `e` the relative squared error.
///
/// A disturbance η of the logits moves the Kullback–Leibler divergence of their softmax p by half the
/// variance of η under p, to second order (the Fisher information of a categorical distribution is
/// diag(p) − p pᵀ). Rounding errors of different rows are independent, so that is
/// `½ Σ p (1 − p) E η²`, and the mean of `Σ p (1 − p)`, how open the model's predictions are, is the one
/// figure that the weights do not say: measured, 0.36 for stories15M and 0.41 for SmolLM2-135M.
#[must_use]
pub(crate) fn loss_by_logits(disturbance: f64, error: f64) -> f64 {
    0.5 * OPEN * disturbance * (1.0 + CURVATURE_OF_TABLES * error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn massive_channels_count() {
        let mut columns = vec![1.0f32; 100];
        let concentration =
            |columns: &[f32], matrices| concentration("blk.1.ffn_down.weight", columns, matrices);
        assert!((concentration(&columns, 1) - 1.02 / 0.99).abs() < 1e-6);
        columns[3] = 99.0;
        // c = ½.
        assert!((concentration(&columns, 1) - 4.0).abs() < 1e-6);
        columns[3] = f32::MAX;
        assert!(concentration(&columns, 1) < 3001.0);
        assert!((concentration(&[0.0; 4], 2) - 1.0).abs() < 1e-9);
        assert!((concentration(&[], 1) - 1.0).abs() < 1e-9);
        // Behind a norm all tokens have the same energy.
        columns[3] = 99.0;
        for part in ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"] {
            let name = format!("blk.1.{part}.weight");
            assert!((super::concentration(&name, &columns, 1) - 1.0).abs() < 1e-9);
        }
        assert!((super::concentration("blk.1.attn_output.weight", &columns, 1) - 4.0).abs() < 1e-6);
    }

    /// The divergence of a softmax, computed from its definition, whose logits are off by independent
    /// noise, is half the variance of the noise under the prediction.
    #[test]
    fn noise_of_logits_costs_half_its_variance() {
        let softmax = |logits: &[f64]| -> Vec<f64> {
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            logits.iter().map(|l| l.exp() / sum).collect()
        };
        let logits: Vec<f64> = (0..50).map(|i| f64::from(i * i % 53) / 12.0).collect();
        let p = softmax(&logits);
        let open: f64 = p.iter().map(|p| p * (1.0 - p)).sum();
        // A fixed generator of numbers of mean 0 and mean square ⅓.
        let mut state = 1u64;
        let mut noise = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        let (scale, tries) = (0.05, 4000);
        let mut mean = 0.0;
        for _ in 0..tries {
            let off: Vec<f64> = logits.iter().map(|l| l + scale * noise()).collect();
            let q = softmax(&off);
            mean += p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>() / f64::from(tries);
        }
        let disturbance = scale * scale / 3.0;
        let expected = loss_by_logits(disturbance, 0.0) * open / OPEN;
        assert!((mean / expected - 1.0).abs() < 0.05, "{mean} {expected}");
    }

    /// Figures of `--sensitivity measured` (Q5_1, in the blocks' middle), of which the estimate must
    /// say the order and the size within a factor of two.
    #[test]
    fn estimates_are_near_what_was_measured() {
        let measured = [
            ("blk.0.ffn_down.weight", 6, 0.79),
            ("blk.3.attn_q.weight", 6, 0.055),
            ("blk.2.attn_k.weight", 6, 0.10),
            ("blk.3.attn_v.weight", 6, 0.17),
            ("blk.3.attn_output.weight", 6, 0.205),
            ("blk.3.ffn_gate.weight", 6, 0.211),
            ("blk.3.ffn_up.weight", 6, 0.273),
            ("blk.3.ffn_down.weight", 6, 0.330),
            ("blk.0.ffn_up.weight", 30, 0.405),
            ("blk.10.attn_q.weight", 30, 0.040),
            ("blk.12.attn_k.weight", 30, 0.075),
            ("blk.10.attn_v.weight", 30, 0.039),
            ("blk.10.attn_output.weight", 30, 0.066),
            ("blk.10.ffn_gate.weight", 30, 0.117),
            ("blk.13.ffn_up.weight", 30, 0.092),
            ("blk.10.ffn_down.weight", 30, 0.112),
        ];
        for (name, layers, figure) in measured {
            let ratio = estimated(name, layers, true) / figure;
            assert!((0.5..2.0).contains(&ratio), "{name}: {ratio}");
        }
        assert!(common_part("blk.1.attn_v.weight", StoredType::Q5_0) > 2.0);
        assert!(common_part("blk.1.attn_v.weight", StoredType::Q5_1) < 1.1);
        assert!(common_part("blk.1.ffn_up.weight", StoredType::Q5_0) < 1.1);
    }
}
