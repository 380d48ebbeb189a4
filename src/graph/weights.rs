//! Takes the parts of a decoder out of an opened model and checks their shapes.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::block::{Block, Execution, Norms};
use super::linear::packed::PackedLinear;
use super::linear::stored::DevicePrecision;
use super::linear::{AbsentLinear, LinearLayer, Projection, StoredLinear};
use super::norm::RmsNorm;
use super::slices::in_pool;
use crate::arch::Slot;
use crate::arch::config::ModelConfig;
use crate::arch::spec::{HEAD_NORMS, NormSlot};
pub(crate) use crate::arch::tensors::{EMBEDDING, HEAD};
use crate::arch::tensors::{FINAL_NORM, norm_values};
use crate::model::LocalModel;
use crate::weight::{StoredTensor, Weight};
use crate::{Error, Result};

/// Values up to which a model's dense weights are kept in f32 on a device (4 GiB).
const EXACT_ON_DEVICE: usize = 1 << 30;

/// Reads weights of one model for one device.
pub(crate) struct Weights<'m> {
    model: &'m LocalModel,
    device: Device,
    precision: DevicePrecision,
    /// Whether matrices are read.
    matrices: bool,
}

impl<'m> Weights<'m> {
    pub(crate) fn new(model: &'m LocalModel, device: &Device) -> Result<Self> {
        check(&model.config).map_err(|message| Error::damaged(&model.path, message))?;
        let mut values = 0usize;
        for weight in model.weights.values() {
            if !matches!(weight, Weight::Factorized(_)) {
                values = values.saturating_add(weight.elements());
            }
        }
        let precision =
            if values <= EXACT_ON_DEVICE { DevicePrecision::F32 } else { DevicePrecision::F16 };
        Ok(Self { model, device: device.clone(), precision, matrices: true })
    }

    /// The same, with nothing in the place of matrices.
    pub(crate) fn without_matrices(model: &'m LocalModel, device: &Device) -> Result<Self> {
        Ok(Self { matrices: false, ..Self::new(model, device)? })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    fn config(&self) -> &'m ModelConfig {
        &self.model.config
    }

    fn damaged(&self, message: String) -> Error {
        Error::damaged(&self.model.path, message)
    }

    fn get(&self, name: &str) -> Result<&'m Weight> {
        self.model
            .weights
            .get(name)
            .ok_or_else(|| self.damaged(format!("the tensor {name} is missing")))
    }

    /// A dense tensor of exactly that shape.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<&'m StoredTensor> {
        match self.get(name)? {
            Weight::Stored(tensor) if tensor.shape == shape => Ok(tensor),
            Weight::Stored(tensor) => Err(self.damaged(format!(
                "the tensor {name} has the shape {:?}; the configuration implies {shape:?}",
                tensor.shape
            ))),
            Weight::Factorized(_) => {
                Err(self
                    .damaged(format!("the tensor {name} is factorized; it must be stored whole")))
            }
            Weight::Packed(_) => {
                Err(self
                    .damaged(format!("the tensor {name} is packed; it must be stored as numbers")))
            }
        }
    }

    /// A vector as f32, in Hugging Face order.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let tensor = self.stored(name, &[length])?;
        let values = tensor.to_f32();
        Ok((0..length).map(|i| values[tensor.row_order.file_row(i, length)]).collect())
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm> {
        let mut weight = self.vector(name, width)?;
        norm_values(self.config(), &mut weight);
        RmsNorm::new(weight, self.config().rms_norm_eps, &self.device)
    }

    /// The final norm.
    pub(crate) fn final_norm(&self) -> Result<RmsNorm> {
        self.norm(FINAL_NORM, self.config().hidden_size)
    }

    /// A matrix `[out, in]` of any representation.
    fn linear(&self, name: &str, (rows, columns): (usize, usize)) -> Result<Box<dyn LinearLayer>> {
        if !self.matrices {
            return Ok(Box::new(AbsentLinear { dims: (rows, columns) }));
        }
        match self.get(name)? {
            Weight::Stored(_) => {
                let tensor = self.stored(name, &[rows, columns])?.clone();
                Ok(Box::new(StoredLinear::on_device(tensor, &self.device, self.precision)?))
            }
            Weight::Factorized(factors) if factors.dims() == (rows, columns) => {
                super::linear::factorized::on_device(factors, &self.device)
            }
            Weight::Packed(tensor) if (tensor.rows(), tensor.cols()) == (rows, columns) => {
                Ok(Box::new(PackedLinear::on_device(tensor, &self.device, self.precision)?))
            }
            other => Err(self.damaged(format!(
                "the tensor {name} is {:?}; the configuration implies {:?}",
                other.shape(),
                (rows, columns)
            ))),
        }
    }

    fn projection(&self, block: usize, slot: &Slot) -> Result<Projection> {
        let name = ModelConfig::module_name(block, &slot.name);
        let layer = self.linear(&format!("{name}.weight"), (slot.out, slot.inputs))?;
        let bias_name = format!("{name}.bias");
        // One that the configuration does not mention is there if the file has it.
        let bias = if slot.bias || self.model.weights.contains_key(&bias_name) {
            Some(self.vector(&bias_name, slot.out)?)
        } else {
            None
        };
        Projection::new(name, layer, bias, &self.device)
    }

    /// Block `index`.
    pub(crate) fn block(&self, index: usize) -> Result<Block> {
        let config = self.config();
        let spec = config.block(index);
        let norm = |slot: NormSlot, width| {
            self.norm(&format!("{}.weight", ModelConfig::module_name(index, slot.name)), width)
        };
        let of_stream = |slot: NormSlot| norm(slot, config.hidden_size);
        let heads = if spec.attention.head_norms {
            let width = spec.attention.head_dim;
            Some((norm(HEAD_NORMS[0], width)?, norm(HEAD_NORMS[1], width)?))
        } else {
            None
        };
        let norms = Norms {
            before_attention: of_stream(spec.norms.before_attention)?,
            after_attention: spec.norms.after_attention.map(of_stream).transpose()?,
            before_mlp: of_stream(spec.norms.before_mlp)?,
            after_mlp: spec.norms.after_mlp.map(of_stream).transpose()?,
            heads,
        };
        let slots = spec.slots(config.hidden_size);
        let linears =
            slots.iter().map(|slot| self.projection(index, slot)).collect::<Result<_>>()?;
        let execution = if self.device.is_cpu() { Execution::Fused } else { Execution::Operations };
        Block::new(spec, &slots, linears, norms, execution)
    }

    /// The embedding.
    pub(crate) fn embedding(&self) -> Result<Embedding> {
        let shape = [self.config().vocab_size, self.config().hidden_size];
        Ok(Embedding {
            table: self.stored(EMBEDDING, &shape)?.clone(),
            scale: self.config().embedding_scale().map(|scale| scale as f32),
            device: self.device.clone(),
        })
    }

    /// The head: the embedding itself if the two are tied.
    pub(crate) fn head(&self) -> Result<Head> {
        let config = self.config();
        let layer = self.linear(head_name(config), (config.vocab_size, config.hidden_size))?;
        Ok(Head { layer, soft_cap: config.logit_soft_cap })
    }
}

/// What makes logits of normed hidden states.
pub(crate) struct Head {
    layer: Box<dyn LinearLayer>,
    soft_cap: Option<f64>,
}

impl Head {
    /// `(vocabulary, hidden)`
    pub(crate) fn dims(&self) -> (usize, usize) {
        self.layer.dims()
    }

    /// `[rows, hidden]` to f32 `[rows, vocab]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.logits_by(self.layer.as_ref(), hidden)
    }

    /// The same with another matrix in the place of the head's.
    pub(crate) fn logits_by(&self, layer: &dyn LinearLayer, hidden: &Tensor) -> Result<Tensor> {
        let run = || {
            let logits = layer.forward(hidden)?;
            match self.soft_cap {
                None => Ok(logits),
                Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            }
        };
        if hidden.device().is_cpu() { in_pool(run) } else { run() }
    }
}

/// Name of the head's matrix: the embedding if the two are tied.
pub(crate) fn head_name(config: &ModelConfig) -> &'static str {
    if config.tie_word_embeddings { EMBEDDING } else { HEAD }
}

/// The head's values, `[vocabulary, hidden]`.
pub(crate) fn head_of(model: &LocalModel) -> Result<Vec<f32>> {
    let weights = Weights::new(model, &Device::Cpu)?;
    let shape = [model.config.vocab_size, model.config.hidden_size];
    Ok(weights.stored(head_name(&model.config), &shape)?.to_f32())
}

/// What the graph takes for granted about a configuration.
fn check(config: &ModelConfig) -> Result<(), String> {
    let sizes = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_layers),
        ("num_attention_heads", config.num_heads),
        ("num_key_value_heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(format!("{name} is 0"));
    }
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        return Err(format!(
            "{} attention heads cannot share {} key/value heads",
            config.num_heads, config.num_kv_heads
        ));
    }
    if config.sliding_window.as_ref().is_some_and(|window| window.size == 0) {
        return Err("a sliding window of 0 tokens".into());
    }
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return Err(format!("rms_norm_eps is {}", config.rms_norm_eps));
    }
    Ok(())
}

/// The token embedding, looked up row by row in the stored bytes.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    table: StoredTensor,
    /// What its values are multiplied with, if they are.
    scale: Option<f32>,
    device: Device,
}

impl Embedding {
    pub(super) fn set_table(&mut self, table: StoredTensor) {
        self.table = table;
    }

    /// Rows of `tokens`, f32 `[tokens, hidden]`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub(crate) fn rows(&self, tokens: &[u32]) -> Result<Tensor> {
        let (rows, cols) = (self.table.rows(), self.table.cols());
        if let Some(token) = tokens.iter().find(|token| **token as usize >= rows) {
            return Err(Error::General(format!(
                "token {token} is outside the vocabulary of {rows}"
            )));
        }
        let mut out = vec![0.0; tokens.len() * cols];
        let read = |(token, out): (&u32, &mut [f32])| {
            self.table.read_rows(*token as usize..*token as usize + 1, out);
            if let Some(scale) = self.scale {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        };
        if tokens.len() > 64 {
            tokens.par_iter().zip(out.par_chunks_exact_mut(cols)).for_each(read);
        } else {
            tokens.iter().zip(out.chunks_exact_mut(cols)).for_each(read);
        }
        Ok(Tensor::from_vec(out, (tokens.len(), cols), &self.device)?)
    }
}
