//! A mixture of experts: the router's softmax chooses some for each token, and their outputs are
//! added by their shares.

use candle_core::{D, Tensor};

use super::block::{Block, Observed};
use super::engine::Engine;
use super::places::{ExpertPlaces, GatedPlaces};
use crate::arch::spec::Experts;
use crate::{Error, Result};

impl Block {
    /// The mixture on `normed`, `[tokens, hidden]`.
    pub(super) fn mixture(
        &self,
        engine: &dyn Engine,
        spec: &Experts,
        places: &ExpertPlaces,
        normed: &Tensor,
        observer: &mut Observed<'_, '_>,
    ) -> Result<Tensor> {
        let router = self.linear(places.router);
        observer.see(&[router], normed)?;
        let logits = engine.linears(&[router], normed)?.remove(0);
        let chosen = choose(&logits, spec)?;
        let mut sum: Option<Tensor> = None;
        for (expert, places) in places.experts.iter().enumerate() {
            let tokens = &chosen.tokens[expert];
            if tokens.is_empty() {
                continue;
            }
            let rows = Tensor::from_slice(tokens, tokens.len(), normed.device())?;
            let x = normed.index_select(&rows, 0)?;
            let y = self.expert(engine, spec, *places, &x, observer)?;
            let share = chosen.shares.narrow(1, expert, 1)?.contiguous()?.index_select(&rows, 0)?;
            let y = y.broadcast_mul(&share)?;
            let before = match sum {
                Some(sum) => sum,
                None => normed.zeros_like()?,
            };
            sum = Some(before.index_add(&rows, &y, 0)?);
        }
        let sum = sum.ok_or_else(|| Error::General("a mixture without tokens".into()))?;
        let Some((shared, gate)) = places.shared else { return Ok(sum) };
        let gate = self.linear(gate);
        observer.see(&[gate], normed)?;
        let share = engine.linears(&[gate], normed)?.remove(0);
        let share = candle_nn::ops::sigmoid(&share)?;
        let y = self.expert(engine, spec, shared, normed, observer)?;
        engine.add(&sum, &y.broadcast_mul(&share)?)
    }

    fn expert(
        &self,
        engine: &dyn Engine,
        spec: &Experts,
        places: GatedPlaces,
        x: &Tensor,
        observer: &mut Observed<'_, '_>,
    ) -> Result<Tensor> {
        let inner = self.inner(engine, spec.activation, places, x, observer)?;
        let down = self.linear(places.down);
        observer.see(&[down], &inner)?;
        Ok(engine.linears(&[down], &inner)?.remove(0))
    }
}

/// What the router chose.
struct Chosen {
    /// Share of each expert for each token, zero where it was not chosen, `[tokens, experts]`.
    shares: Tensor,
    /// Tokens of each expert.
    tokens: Vec<Vec<u32>>,
}

/// The most likely experts of each token; of equal ones the first.
fn choose(logits: &Tensor, spec: &Experts) -> Result<Chosen> {
    let shares = candle_nn::ops::softmax(logits, D::Minus1)?;
    let rows = shares.to_vec2::<f32>()?;
    let mut mask = vec![0.0f32; rows.len() * spec.count];
    let mut tokens = vec![Vec::new(); spec.count];
    let mut order: Vec<usize> = Vec::with_capacity(spec.count);
    for (token, (row, mask)) in rows.iter().zip(mask.chunks_exact_mut(spec.count)).enumerate() {
        order.clear();
        order.extend(0..spec.count);
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for &expert in &order[..spec.used.min(spec.count)] {
            mask[expert] = 1.0;
            tokens[expert].push(token as u32);
        }
    }
    let mask = Tensor::from_vec(mask, shares.shape().clone(), shares.device())?;
    let mut shares = (shares * mask)?;
    if spec.normalized {
        shares = shares.broadcast_div(&shares.sum_keepdim(1)?)?;
    }
    Ok(Chosen { shares, tokens })
}
