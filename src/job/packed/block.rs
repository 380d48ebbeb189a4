//! A block whose weights are changed: f32 copies of its matrices, norms and biases, and the running
//! block made of them.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::layout::{Layout, RowsOf};
use crate::arch::ModelConfig;
use crate::arch::tensors::norm_values;
use crate::codec::affine::PlainType;
use crate::graph::norm::RmsNorm;
use crate::graph::slices::with_f32;
use crate::graph::{Block, LinearLayer, Norms, Projection};
use crate::linalg::products::{Operand, multiply_f32};
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};

/// Weights of a block, f32.
#[derive(Debug, Clone)]
pub(crate) struct BlockWeights {
    /// Which they are.
    pub layout: Arc<Layout>,
    /// The matrices, `[out, in]`, in the order of the layout's slots.
    pub linears: Vec<Arc<Vec<f32>>>,
    /// The biases that there are.
    pub biases: Vec<Option<Vec<f32>>>,
    /// Norms on the residual stream as they are stored, in the order in which they act.
    pub norms: Vec<Vec<f32>>,
}

impl BlockWeights {
    /// Reads block `index` of a model.
    ///
    /// # Errors
    /// If a tensor is missing or in factors.
    pub(crate) fn read(model: &LocalModel, index: usize, layout: &Arc<Layout>) -> Result<Self> {
        let read = |module: &str, end: &str| {
            values(model, &format!("{}.{end}", ModelConfig::module_name(index, module)))
        };
        let mut linears = Vec::with_capacity(layout.slots.len());
        let mut biases = Vec::with_capacity(layout.slots.len());
        for slot in &layout.slots {
            linears.push(Arc::new(read(&slot.name, "weight")?));
            let bias = format!("{}.bias", ModelConfig::module_name(index, &slot.name));
            let is_there = model.weights.contains_key(&bias);
            biases.push(if is_there { Some(values(model, &bias)?) } else { None });
        }
        let norms = layout.norms.iter().map(|norm| read(norm, "weight")).collect::<Result<_>>()?;
        Ok(Self { layout: Arc::clone(layout), linears, biases, norms })
    }

    /// A running block: positions, head norms and window are those of `like`.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn block(
        &self,
        like: &Block,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Block> {
        let projections = like.projections();
        let linears = (0..self.linears.len())
            .map(|linear| {
                let values = Arc::clone(&self.linears[linear]);
                let layer = Dense::new(values, self.layout.shape(linear), device)?;
                let name = projections[linear].name.clone();
                Projection::new(name, Box::new(layer), self.biases[linear].clone(), device)
            })
            .collect::<Result<_>>()?;
        let mut stored = self.norms.iter();
        let mut norm = || -> Result<RmsNorm> {
            let missing = || Error::General("a block with too few norms".into());
            let mut weight = stored.next().ok_or_else(missing)?.clone();
            norm_values(config, &mut weight);
            RmsNorm::new(weight, config.rms_norm_eps, device)
        };
        let norms = Norms {
            before_attention: norm()?,
            after_attention: like.norms.after_attention.as_ref().map(|_| norm()).transpose()?,
            before_mlp: norm()?,
            after_mlp: like.norms.after_mlp.as_ref().map(|_| norm()).transpose()?,
            heads: like.norms.heads.clone(),
        };
        Ok(like.with(linears, norms))
    }

    /// A matrix to change in place.
    pub(crate) fn linear_mut(&mut self, linear: usize) -> &mut Vec<f32> {
        Arc::make_mut(&mut self.linears[linear])
    }

    /// Multiplies column `j` of a matrix by `factors[j]`.
    pub(crate) fn scale_columns(&mut self, linear: usize, factors: &[f32]) {
        for row in self.linear_mut(linear).chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
    }

    /// Divides row `i` of a run of rows, and what is added to it, by `factors[i]`.
    pub(crate) fn divide_rows(&mut self, rows: RowsOf, factors: &[f32]) {
        let inputs = self.layout.shape(rows.linear).1;
        let lines = self.linear_mut(rows.linear).chunks_exact_mut(inputs).skip(rows.first);
        for (row, factor) in lines.zip(factors) {
            row.iter_mut().for_each(|value| *value /= factor);
        }
        if let Some(bias) = &mut self.biases[rows.linear] {
            let values = bias.iter_mut().skip(rows.first);
            values.zip(factors).for_each(|(value, factor)| *value /= factor);
        }
    }

    /// Divides what a norm multiplies with by `factors`; see [`fold_into_norm`].
    pub(crate) fn fold_into_norm(
        &mut self,
        norm: usize,
        factors: &[f32],
        plain: PlainType,
    ) -> Vec<f32> {
        let more = if self.layout.norm_plus_one { 1.0 } else { 0.0 };
        fold_into_norm(&mut self.norms[norm], more, factors, plain)
    }
}

/// Divides `more` plus a norm's weight by `factors` and rounds the weight as it is stored; gives the
/// factors that make up for that exactly. Channels whose weight would vanish or overflow are left as
/// they are.
fn fold_into_norm(norm: &mut [f32], more: f32, factors: &[f32], plain: PlainType) -> Vec<f32> {
    norm.iter_mut()
        .zip(factors)
        .map(|(weight, factor)| {
            let stored = plain.rounded((*weight + more) / factor - more);
            let exact = (*weight + more) / (stored + more);
            if stored.is_finite() && exact.is_finite() && exact > 0.0 {
                *weight = stored;
                exact
            } else {
                1.0
            }
        })
        .collect()
}

fn values(model: &LocalModel, name: &str) -> Result<Vec<f32>> {
    match model.weights.get(name) {
        Some(Weight::Stored(tensor)) => {
            let values = tensor.to_f32();
            tensor.bytes.release();
            // Vectors come in the order of the file.
            if tensor.shape.len() > 1 {
                return Ok(values);
            }
            let length = values.len();
            Ok((0..length).map(|i| values[tensor.row_order.file_row(i, length)]).collect())
        }
        Some(_) => Err(Error::UnsupportedConversion(format!(
            "{name} is not stored whole; quantize the original model"
        ))),
        None => Err(Error::model_not_found(format!("the model has no tensor {name}"))),
    }
}

/// A matrix that is multiplied in f32.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    dims: (usize, usize),
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Host(Arc<Vec<f32>>),
    Device(Tensor),
}

impl Dense {
    /// A layer of `values`, `[out, in]`.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn new(
        values: Arc<Vec<f32>>,
        dims: (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let place = if device.is_cpu() {
            Place::Host(values)
        } else {
            Place::Device(Tensor::from_slice(&values, dims, device)?)
        };
        Ok(Self { dims, place })
    }
}

impl LinearLayer for Dense {
    fn dims(&self) -> (usize, usize) {
        self.dims
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out, inputs) = self.dims;
        match &self.place {
            Place::Host(values) => {
                let tokens = x.dim(0)?;
                let mut y = vec![0.0; tokens * out];
                let weight = Operand::new(values, out, inputs).t();
                with_f32(x, |x| {
                    multiply_f32(&mut y, Operand::new(x, tokens, inputs), weight, false);
                })?;
                Ok(Tensor::from_vec(y, (tokens, out), x.device())?)
            }
            Place::Device(weight) => Ok(x.matmul(&weight.t()?)?),
        }
    }
}

/// Values of a tensor on the host.
///
/// # Errors
/// If they cannot be copied there.
pub(crate) fn host(x: &Tensor) -> Result<Vec<f32>> {
    if x.device().is_cpu() { with_f32(x, <[f32]>::to_vec) } else { Ok(x.flatten_all()?.to_vec1()?) }
}
