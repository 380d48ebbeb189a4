//! Gradients of the loss with respect to every weight of the blocks, one sample at a time.
//!
//! The loss of a sample is the negative log-likelihood of its tokens, nats, summed over all but the
//! first. It goes backward block by block: a forward pass keeps the input of every block; going back,
//! a block is computed again on its kept input and sends the gradient of its output to its input. So
//! the graph of one block is there at a time, and its weights are decoded once for a batch of
//! samples. What a weight's gradient adds to the sums is taken at once; no gradient is kept.

mod layer;
mod loss;
#[cfg(test)]
mod tests;

use candle_core::{Tensor, Var};

use super::collector::Sums;
use super::weights::{decode, stored};
use crate::files::imatrix::Method;
use crate::graph::slices::{in_pool, with_f32};
use crate::graph::weights::{EMBEDDING, HEAD};
use crate::graph::{Decoder, Execution};
use crate::model::LocalModel;
use crate::{Error, Result};
use layer::{GradientLinear, Reduction};
use loss::{Head, Loss};

/// The backward pass of a model.
pub(super) struct Gradients<'m> {
    model: &'m LocalModel,
    reduction: Reduction,
    head: Head<'m>,
}

impl<'m> Gradients<'m> {
    /// Looks for everything that the pass needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when weights are stored as factors or packed integers.
    pub(super) fn new(model: &'m LocalModel, method: Method) -> Result<Self> {
        for (name, _) in model.weights.iter().filter(|(_, weight)| weight.shape().len() == 2) {
            stored(model, name)?;
        }
        let head = if model.config.tie_word_embeddings { EMBEDDING } else { HEAD };
        let reduction = match method {
            Method::Fisher => Reduction::Squared,
            Method::Activation | Method::Gradient => Reduction::Absolute,
        };
        Ok(Self {
            model,
            reduction,
            head: Head::new(stored(model, head)?, model.config.logit_soft_cap),
        })
    }

    /// Adds what the samples in `tokens`, each of `length`, give. `stop` is told the share of the
    /// work.
    pub(super) fn add(
        &self,
        decoder: &mut Decoder,
        tokens: &[u32],
        length: usize,
        sums: &mut Sums,
        stop: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<()> {
        let layers = decoder.blocks().len() as f64;
        let count = tokens.len() / length;
        let mut inputs = vec![decoder.embed(tokens)?];
        let positions = decoder.positions(count, length, 0);
        for block in decoder.blocks() {
            let Some(x) = inputs.last() else { break };
            inputs.push(block.forward(x, &positions, None, None)?);
            stop(0.25 / layers)?;
        }
        let out = inputs.pop().unwrap_or_else(|| unreachable!());
        let mut gradients = Vec::with_capacity(count);
        for sample in 0..count {
            let rows = out.narrow(0, sample * length, length)?;
            let tokens = &tokens[sample * length..(sample + 1) * length];
            gradients.push(self.of_output(decoder, &rows, tokens)?.gradient);
        }
        drop(out);
        for block in (0..decoder.blocks().len()).rev() {
            let x = inputs.pop().unwrap_or_else(|| unreachable!());
            self.block(decoder, block, &x, length, &mut gradients, sums)?;
            stop(0.75 / layers)?;
        }
        Ok(())
    }

    /// The loss of a sample, and its gradient at what the last block gave, `[tokens, hidden]`.
    fn of_output(&self, decoder: &Decoder, rows: &Tensor, tokens: &[u32]) -> Result<Loss> {
        let x = Var::from_tensor(&rows.contiguous()?)?;
        let normed = decoder.final_norm_tracked(x.as_tensor())?;
        let loss = in_pool(|| self.head.loss(&normed, tokens))?;
        if !loss.loss.is_finite() {
            return Err(Error::Importance(
                "the model gives a token no probability at all; its logits overflow, or its weights \
                 are damaged"
                    .into(),
            ));
        }
        let gradient = pull(&normed, &loss.gradient, &x)?;
        Ok(Loss { loss: loss.loss, gradient })
    }

    /// Sends the gradients at a block's output to its input `x`, and adds what its weights get.
    fn block(
        &self,
        decoder: &mut Decoder,
        index: usize,
        x: &Tensor,
        length: usize,
        gradients: &mut [Tensor],
        sums: &mut Sums,
    ) -> Result<()> {
        let layers = self.install(decoder, index)?;
        let positions = decoder.positions(1, length, 0);
        for (sample, gradient) in gradients.iter_mut().enumerate() {
            let rows = x.narrow(0, sample * length, length)?.contiguous()?;
            let input = Var::from_tensor(&rows)?;
            let out = decoder.block(index).forward(input.as_tensor(), &positions, None, None)?;
            *gradient = in_pool(|| pull(&out, gradient, &input))?;
            for layer in &layers.now {
                sums.add(&layer.name, &layer.linear.take(), 1.0)?;
            }
        }
        layers.restore(decoder, index);
        Ok(())
    }

    /// Puts layers with gradients into a block.
    fn install(&self, decoder: &mut Decoder, index: usize) -> Result<Installed> {
        let block = decoder.block_mut(index);
        let before = block.execution;
        block.execution = Execution::Tracked;
        let mut installed = Installed { before, now: Vec::new(), layers: Vec::new() };
        for projection in block.projections_mut() {
            let tensor = stored(self.model, &format!("{}.weight", projection.name))?;
            let dims = (tensor.rows(), tensor.cols());
            let linear = GradientLinear::new(decode(tensor), dims, self.reduction);
            let layer: Box<dyn crate::graph::LinearLayer> = Box::new(linear.clone());
            installed.layers.push(std::mem::replace(&mut projection.layer, layer));
            installed.now.push(Named { name: projection.name.clone(), linear });
        }
        Ok(installed)
    }
}

struct Named {
    name: String,
    linear: GradientLinear,
}

/// A block's own layers while others are in their place.
struct Installed {
    before: Execution,
    now: Vec<Named>,
    layers: Vec<Box<dyn crate::graph::LinearLayer>>,
}

impl Installed {
    fn restore(self, decoder: &mut Decoder, index: usize) {
        let block = decoder.block_mut(index);
        block.execution = self.before;
        for (projection, layer) in block.projections_mut().into_iter().zip(self.layers) {
            projection.layer = layer;
        }
    }
}

/// The gradient at `input` of a loss whose gradient at `out` is known.
fn pull(out: &Tensor, gradient: &Tensor, input: &Var) -> Result<Tensor> {
    // The sum of the products has exactly that gradient at `out`.
    let loss = (out * gradient)?.sum_all()?;
    let store = loss.backward()?;
    let gradient = store
        .get(input.as_tensor())
        .ok_or_else(|| Error::Importance("a block does not depend on its input".into()))?;
    if !with_f32(gradient, |values| values.iter().all(|v| v.is_finite()))? {
        return Err(Error::Importance(
            "a gradient is not finite; the model overflows, or its weights are damaged".into(),
        ));
    }
    Ok(gradient.detach())
}
