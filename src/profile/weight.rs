//! What a model loses by the error of one tensor, estimated: for models and budgets where nothing is
//! measured.
//!
//! The figures are means of what [`super::sensitivity`] measured on three models (docs/profiles.md
//! has the table): divergence in nats per token for each unit of the relative squared error. They
//! differ a hundredfold between roles, and not as sizes do: grouped keys and values are small, and
//! what they lose, every query head of the group loses.

use crate::quantize::gguf::mix::{Role, layer, role};

/// How much more the error counts of a matrix whose inputs have the mean squares `columns`, those of
/// one matrix after the other of `matrices`.
///
/// Where one channel carries nearly all of the energy (a massive activation, of a few tokens), the
/// error is relative to the energy of these few tokens, and what happens to all others hardly shows in
/// it. With `c` the largest channel's share, the others have `1 − c`; the massive channel itself
/// counts on top. Measured: a factor of 350 at `c` = 0.993, 45 at 0.936, 2.5 at 0.36.
#[must_use]
pub fn concentration(columns: &[f32], matrices: usize) -> f64 {
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
/// Measured, a block counts for less the more blocks lie before it, about by the root of its number:
/// what is in the residual stream grows.
#[must_use]
pub fn estimated(name: &str, layers: usize, tied: bool) -> f64 {
    let figure = match role(name) {
        Role::Embedding if tied => return 10.0,
        Role::Embedding => return 2.0,
        Role::Output => return 8.0,
        Role::AttentionQuery => 0.1,
        Role::AttentionKey => 0.15,
        Role::AttentionValue => 0.6,
        Role::AttentionOutput => 0.25,
        Role::FeedForwardGate | Role::FeedForwardUp | Role::Other => 0.45,
        Role::FeedForwardDown => 0.5,
    };
    let Some(number) = layer(name) else { return figure };
    let place = match number {
        // The first block writes what all others read; behind the last one nothing makes up for it.
        0 => 1.5,
        last if last + 1 == layers => 1.5,
        _ => 1.0,
    };
    figure * place / (number as f64 + 1.0).sqrt()
}

/// The loss by a relative squared error of `error`, nats per token: `sensitivity · e · (1 + k e)`.
///
/// The second term is what is beyond the quadratic form. For tables of tokens it is large: tied
/// embeddings at e = 0.58 were measured to lose 29 nats where the first term alone says 6.
#[must_use]
pub fn loss(name: &str, sensitivity: f64, error: f64) -> f64 {
    let curvature = match role(name) {
        Role::Embedding | Role::Output => 10.0,
        _ => 2.0,
    };
    sensitivity * error * (1.0 + curvature * error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn massive_channels_count() {
        let mut columns = vec![1.0f32; 100];
        assert!((concentration(&columns, 1) - 1.02 / 0.99).abs() < 1e-6);
        columns[3] = 99.0;
        // c = ½.
        assert!((concentration(&columns, 1) - 4.0).abs() < 1e-6);
        columns[3] = f32::MAX;
        assert!(concentration(&columns, 1) < 3001.0);
        assert!((concentration(&[0.0; 4], 2) - 1.0).abs() < 1e-9);
        assert!((concentration(&[], 1) - 1.0).abs() < 1e-9);
    }
}
