//! One transformer block: attention and MLP, each behind a norm and added to what came in.
//!
//! There is one forward pass, made of the pieces below over the operations of an engine. Those who
//! change the layers of a block one after the other call the pieces: what goes into each group of
//! layers is computed once and kept, instead of running the block anew for each.

use candle_core::Tensor;

use super::attention::Geometry;
use super::cache::LayerCache;
use super::engine::{self, Engine, Fused, Heads, Memory, Operations, Tracked};
use super::linear::Projection;
use super::norm::RmsNorm;
use super::places::{GatedPlaces, MlpPlaces, Places};
use super::rope::Positions;
use super::slices::in_pool;
use crate::arch::spec::{Activation, BlockSpec, Mlp, Slot};
use crate::{Error, Result};

/// Sees what goes into the linear layers.
pub trait Observer: Send {
    /// Called before the layers in `names` (without `.weight`) multiply `x`, f32 `[tokens, in]`.
    /// Layers that share an input are named together, so that it is looked at once: q, k and v;
    /// o; gate and up; down. `x` lies on the decoder's device.
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> Result<()>;
}

/// How a block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// Fused loops over slices: the fast way on the CPU. No gradients.
    Fused,
    /// Candle operations that run on every device and have gradients.
    Operations,
    /// Fused loops with backward passes of their own, for training on the CPU. Whole sequences
    /// only: no cache.
    Tracked,
}

/// The norms of a block.
#[derive(Debug, Clone)]
pub struct Norms {
    /// Of what goes into the attention.
    pub before_attention: RmsNorm,
    /// Of what it gives, if the family has it.
    pub after_attention: Option<RmsNorm>,
    /// Of what goes into the MLP.
    pub before_mlp: RmsNorm,
    /// Of what it gives, if the family has it.
    pub after_mlp: Option<RmsNorm>,
    /// Of each head of the queries and of the keys, if the family has them.
    pub heads: Option<(RmsNorm, RmsNorm)>,
}

/// A block with its weights.
#[derive(Debug)]
pub struct Block {
    spec: BlockSpec,
    places: Places,
    linears: Vec<Projection>,
    /// Whether the weights of each are quantized.
    quantized: Vec<bool>,
    /// Norms.
    pub norms: Norms,
    geometry: Geometry,
    /// How it computes.
    pub execution: Execution,
}

/// Who sees what goes into the layers, if anybody does.
pub(super) struct Observed<'a, 'o>(Option<&'a mut (dyn Observer + 'o)>);

impl Observed<'_, '_> {
    pub(super) fn see(&mut self, layers: &[&Projection], x: &Tensor) -> Result<()> {
        let Some(observer) = &mut self.0 else { return Ok(()) };
        let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
        observer.linear_input(&names, x)
    }
}

impl Block {
    /// A block of layers in the order of `slots`, which are those of `spec`.
    ///
    /// # Errors
    /// If a layer is missing.
    pub fn new(
        spec: BlockSpec,
        slots: &[Slot],
        linears: Vec<Projection>,
        norms: Norms,
        execution: Execution,
    ) -> Result<Self> {
        if slots.len() != linears.len() {
            return Err(Error::General(format!(
                "{} layers for a block of {}",
                linears.len(),
                slots.len()
            )));
        }
        let geometry = Geometry::of(&spec.attention);
        let quantized = slots.iter().map(Slot::is_quantized).collect();
        let places = Places::of(slots)?;
        Ok(Self { spec, places, linears, quantized, norms, geometry, execution })
    }

    /// The same block with other layers and norms.
    ///
    /// # Panics
    /// If there are more or fewer layers.
    #[must_use]
    pub fn with(&self, linears: Vec<Projection>, norms: Norms) -> Self {
        assert_eq!(linears.len(), self.linears.len(), "as many layers as before");
        Self {
            spec: self.spec.clone(),
            places: self.places.clone(),
            linears,
            quantized: self.quantized.clone(),
            norms,
            geometry: self.geometry,
            execution: self.execution,
        }
    }

    /// What it computes.
    #[must_use]
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }

    /// The linear layers whose weights are quantized, in the order of [`BlockSpec::slots`].
    #[must_use]
    pub fn projections(&self) -> Vec<&Projection> {
        let all = self.linears.iter().zip(&self.quantized);
        all.filter(|(_, quantized)| **quantized).map(|(linear, _)| linear).collect()
    }

    /// The same, to exchange their weights.
    pub fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let all = self.linears.iter_mut().zip(&self.quantized);
        all.filter(|(_, quantized)| **quantized).map(|(linear, _)| linear).collect()
    }

    /// Down projection of the MLP, if the block has one MLP.
    #[must_use]
    pub fn down(&self) -> Option<&Projection> {
        match &self.places.mlp {
            MlpPlaces::Gated(places) => Some(&self.linears[places.down]),
            MlpPlaces::Experts(_) => None,
        }
    }

    /// The same, to exchange its weight.
    pub fn down_mut(&mut self) -> Option<&mut Projection> {
        match &self.places.mlp {
            MlpPlaces::Gated(places) => Some(&mut self.linears[places.down]),
            MlpPlaces::Experts(_) => None,
        }
    }

    pub(super) fn linear(&self, place: usize) -> &Projection {
        &self.linears[place]
    }

    /// Runs the block on `x`, f32 `[batch · seq, hidden]`, whose rows are at `positions`.
    ///
    /// Without a cache the sequences must start at position 0 and see only themselves. With one,
    /// there is one sequence, `positions.start` is the number of tokens in the cache, and the new
    /// keys and values are appended.
    ///
    /// # Errors
    /// If the shapes do not fit together.
    pub fn forward<'o>(
        &self,
        x: &Tensor,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        observer: Option<&mut (dyn Observer + 'o)>,
    ) -> Result<Tensor> {
        let cached = cache.as_ref().map_or(0, |cache| cache.len());
        let width = self.norms.before_attention.width();
        if x.dims2()? != (positions.tokens(), width)
            || positions.start != cached
            || (cache.is_some() && positions.batch != 1)
        {
            return Err(Error::General(format!(
                "a block of width {width} cannot take activations {:?} for {} sequences of {} tokens \
                 at position {} with {cached} tokens in the cache",
                x.dims(),
                positions.batch,
                positions.seq,
                positions.start
            )));
        }
        let memory = cache.map_or(Memory::None, Memory::Cache);
        self.run(x, positions, memory, Observed(observer))
    }

    /// Runs one more token of each of many sequences, `x` `[sequences, hidden]`, all of them at
    /// the position of `positions`. `seen` holds the keys and values of each sequence,
    /// `[tokens, kv_heads · head_dim]`, and gets the new rows.
    pub(super) fn step(
        &self,
        x: &Tensor,
        positions: &Positions,
        seen: &mut [(Vec<f32>, Vec<f32>)],
    ) -> Result<Tensor> {
        self.run(x, positions, Memory::Many(seen), Observed(None))
    }

    fn run(
        &self,
        x: &Tensor,
        positions: &Positions,
        memory: Memory<'_>,
        observer: Observed<'_, '_>,
    ) -> Result<Tensor> {
        match self.execution {
            Execution::Fused => {
                in_pool(|| self.with_engine(&Fused, x, positions, memory, observer))
            }
            Execution::Operations => self.with_engine(&Operations, x, positions, memory, observer),
            Execution::Tracked => {
                in_pool(|| self.with_engine(&Tracked, x, positions, memory, observer))
            }
        }
    }

    /// The forward pass.
    fn with_engine(
        &self,
        engine: &dyn Engine,
        x: &Tensor,
        positions: &Positions,
        memory: Memory<'_>,
        mut observer: Observed<'_, '_>,
    ) -> Result<Tensor> {
        let normed = engine.norm(&self.norms.before_attention, x)?;
        let attended = self.attend_with(engine, &normed, positions, memory, &mut observer)?;
        observer.see(&[self.linear(self.places.output)], &attended)?;
        let x = self.after_attention_with(engine, x, &attended)?;
        let normed = engine.norm(&self.norms.before_mlp, &x)?;
        let out = match (&self.spec.mlp, &self.places.mlp) {
            (Mlp::Gated(gated), MlpPlaces::Gated(places)) => {
                let inner =
                    self.inner(engine, gated.activation, *places, &normed, &mut observer)?;
                let down = self.linear(places.down);
                observer.see(&[down], &inner)?;
                engine.linears(&[down], &inner)?.remove(0)
            }
            (Mlp::Experts(experts), MlpPlaces::Experts(places)) => {
                self.mixture(engine, experts, places, &normed, &mut observer)?
            }
            _ => return Err(Error::General("a block with the layers of another".into())),
        };
        Self::add(engine, &x, &out, self.norms.after_mlp.as_ref())
    }

    /// Attention over the projections of `normed`.
    fn attend_with(
        &self,
        engine: &dyn Engine,
        normed: &Tensor,
        positions: &Positions,
        memory: Memory<'_>,
        observer: &mut Observed<'_, '_>,
    ) -> Result<Tensor> {
        let layers: Vec<&Projection> =
            self.places.qkv.iter().map(|&place| self.linear(place)).collect();
        observer.see(&layers, normed)?;
        let mut projected = engine.linears(&layers, normed)?;
        let (queries, keys) = (self.geometry.query_width(), self.geometry.key_width());
        if let [all] = projected.as_slice() {
            projected = vec![
                engine::columns(all, 0, queries)?,
                engine::columns(all, queries, keys)?,
                engine::columns(all, queries + keys, keys)?,
            ];
        }
        let [query, key, value] = projected.as_slice() else {
            return Err(Error::General("attention without queries, keys and values".into()));
        };
        let (query_norm, key_norm) = match &self.norms.heads {
            Some((query, key)) => (Some(query), Some(key)),
            None => (None, None),
        };
        let rope = self.spec.attention.rope;
        let heads = |count, norm| Heads { count, norm, rope };
        let query = engine.rotate(query, &heads(self.geometry.heads, query_norm), positions)?;
        let key = engine.rotate(key, &heads(self.geometry.kv_heads, key_norm), positions)?;
        engine.attention(&self.geometry, positions, [&query, &key, value], memory)
    }

    fn after_attention_with(
        &self,
        engine: &dyn Engine,
        x: &Tensor,
        attended: &Tensor,
    ) -> Result<Tensor> {
        let out = engine.linears(&[self.linear(self.places.output)], attended)?.remove(0);
        Self::add(engine, x, &out, self.norms.after_attention.as_ref())
    }

    /// What goes into the down projection of a gated MLP.
    pub(super) fn inner(
        &self,
        engine: &dyn Engine,
        activation: Activation,
        places: GatedPlaces,
        normed: &Tensor,
        observer: &mut Observed<'_, '_>,
    ) -> Result<Tensor> {
        let gate = self.linear(places.gate);
        let Some(up) = places.up else {
            observer.see(&[gate], normed)?;
            let both = engine.linears(&[gate], normed)?.remove(0);
            let width = both.dim(1)? / 2;
            let (gate, up) =
                (engine::columns(&both, 0, width)?, engine::columns(&both, width, width)?);
            return engine.gated(activation, &gate, &up);
        };
        let layers = [gate, self.linear(up)];
        observer.see(&layers, normed)?;
        let both = engine.linears(&layers, normed)?;
        engine.gated(activation, &both[0], &both[1])
    }

    /// `x` plus what a half of the block gives, behind its norm.
    fn add(
        engine: &dyn Engine,
        x: &Tensor,
        out: &Tensor,
        norm: Option<&RmsNorm>,
    ) -> Result<Tensor> {
        match norm {
            Some(norm) => engine.add(x, &engine.norm(norm, out)?),
            None => engine.add(x, out),
        }
    }
}

/// The pieces, for whole sequences without a cache.
impl Block {
    fn by_piece(
        x: &Tensor,
        piece: impl FnOnce(&dyn Engine) -> Result<Tensor> + Send,
    ) -> Result<Tensor> {
        if x.device().is_cpu() { in_pool(|| piece(&Fused)) } else { piece(&Operations) }
    }

    /// Input of q, k and v: the norm of `x`, `[tokens, hidden]`.
    pub fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        Self::by_piece(x, |engine| engine.norm(&self.norms.before_attention, x))
    }

    /// Input of o, `[tokens, heads · head_dim]`: attention over the projections of
    /// [`attention_input`](Self::attention_input), `[tokens, hidden]`.
    pub fn attend(&self, normed: &Tensor, positions: &Positions) -> Result<Tensor> {
        Self::by_piece(normed, |engine| {
            self.attend_with(engine, normed, positions, Memory::None, &mut Observed(None))
        })
    }

    /// The residual stream after attention: `x` plus o of `attended`.
    pub fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Result<Tensor> {
        Self::by_piece(x, |engine| self.after_attention_with(engine, x, attended))
    }

    /// Input of gate and up: the norm of `x`, the residual stream after attention.
    pub fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        Self::by_piece(x, |engine| engine.norm(&self.norms.before_mlp, x))
    }

    /// Input of down, `[tokens, intermediate]`: `act(gate) · up` of
    /// [`mlp_input`](Self::mlp_input).
    ///
    /// # Errors
    /// For a mixture of experts, which has no such thing.
    pub fn gated(&self, normed: &Tensor) -> Result<Tensor> {
        let (Mlp::Gated(gated), MlpPlaces::Gated(places)) = (&self.spec.mlp, &self.places.mlp)
        else {
            return Err(Error::General("a mixture of experts is not one MLP".into()));
        };
        Self::by_piece(normed, |engine| {
            self.inner(engine, gated.activation, *places, normed, &mut Observed(None))
        })
    }

    /// The residual stream after the MLP: `x` plus down of `inner`.
    ///
    /// # Errors
    /// For a mixture of experts.
    pub fn after_mlp(&self, x: &Tensor, inner: &Tensor) -> Result<Tensor> {
        let MlpPlaces::Gated(places) = &self.places.mlp else {
            return Err(Error::General("a mixture of experts is not one MLP".into()));
        };
        Self::by_piece(x, |engine| {
            let out = engine.linears(&[self.linear(places.down)], inner)?.remove(0);
            Self::add(engine, x, &out, self.norms.after_mlp.as_ref())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::device::Backend;
    use crate::graph::Decoder;

    #[test]
    fn the_pieces_are_the_block() {
        let model = crate::model::open_local(Path::new("models/tiny")).unwrap();
        let decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
        let tokens: Vec<u32> = (0..48).map(|i| (i * 37 + 5) % 2000).collect();
        let x = decoder.embed(&tokens).unwrap();
        let positions = decoder.positions(3, 16, 0);
        let block = decoder.block(1);
        let whole = block.forward(&x, &positions, None, None).unwrap();
        let attended = block.attend(&block.attention_input(&x).unwrap(), &positions).unwrap();
        let middle = block.after_attention(&x, &attended).unwrap();
        let inner = block.gated(&block.mlp_input(&middle).unwrap()).unwrap();
        let pieces = block.after_mlp(&middle, &inner).unwrap();
        assert_eq!(
            whole.to_vec2::<f32>().unwrap(),
            pieces.to_vec2::<f32>().unwrap(),
            "the same operations in the same order"
        );
    }
}
