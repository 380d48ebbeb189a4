//! A block whose weights are changed: f32 copies of its seven matrices, norms and biases, and the
//! running block made of them.

use crate::arch::ModelConfig;
use crate::arch::config::BLOCK_LINEARS;
use crate::codec::affine::PlainType;
use crate::graph::norm::RmsNorm;
use crate::graph::slices::with_f32;
use crate::graph::{Block, LinearLayer, Projection};
use crate::linalg::products::{Operand, multiply_f32};
use crate::model::LocalModel;
use crate::weight::Weight;
use crate::{Error, Result};
use std::sync::Arc;

use candle_core::{Device, Tensor};

/// Place of the queries' matrix in [`BlockWeights::linears`].
pub(crate) const QUERY: usize = 0;
/// Place of the keys' matrix.
pub(crate) const KEY: usize = 1;
/// Place of the values' matrix.
pub(crate) const VALUE: usize = 2;
/// Place of attention's output matrix.
pub(crate) const OUTPUT: usize = 3;
/// Place of the gate's matrix.
pub(crate) const GATE: usize = 4;
/// Place of the up matrix.
pub(crate) const UP: usize = 5;
/// Place of the down matrix.
pub(crate) const DOWN: usize = 6;

/// Linear layers that share an input, in the order in which a block computes them.
pub(crate) const STAGES: [&[usize]; 4] = [&[QUERY, KEY, VALUE], &[OUTPUT], &[GATE, UP], &[DOWN]];

/// Weights of a block, f32.
#[derive(Debug, Clone)]
pub(crate) struct BlockWeights {
    /// The seven matrices, `[out, in]`, in the order of [`BLOCK_LINEARS`].
    pub linears: [Arc<Vec<f32>>; 7],
    /// `(out, in)` of each.
    pub shapes: [(usize, usize); 7],
    /// The biases that there are.
    pub biases: [Option<Vec<f32>>; 7],
    /// Weight of the norm before attention.
    pub input_norm: Vec<f32>,
    /// Weight of the norm before the MLP.
    pub post_norm: Vec<f32>,
}

impl BlockWeights {
    /// Reads block `index` of a model.
    ///
    /// # Errors
    /// If a tensor is missing or in factors.
    pub(crate) fn read(model: &LocalModel, index: usize) -> Result<Self> {
        let name = |linear: usize| ModelConfig::linear_name(index, BLOCK_LINEARS[linear]);
        let mut linears: [Arc<Vec<f32>>; 7] = Default::default();
        let mut biases: [Option<Vec<f32>>; 7] = Default::default();
        for linear in 0..7 {
            linears[linear] = Arc::new(values(model, &format!("{}.weight", name(linear)))?);
            let bias = format!("{}.bias", name(linear));
            if model.weights.contains_key(&bias) {
                biases[linear] = Some(values(model, &bias)?);
            }
        }
        let norm = |part: &str| values(model, &format!("model.layers.{index}.{part}.weight"));
        Ok(Self {
            linears,
            shapes: BLOCK_LINEARS.map(|linear| model.config.linear_shape(linear)),
            biases,
            input_norm: norm("input_layernorm")?,
            post_norm: norm("post_attention_layernorm")?,
        })
    }

    /// A running block: positions, head norms and window are those of `like`.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn block(&self, like: &Block, epsilon: f64, device: &Device) -> Result<Block> {
        let projections = like.projections();
        let make = |linear: usize| -> Result<Projection> {
            let layer = Dense::new(Arc::clone(&self.linears[linear]), self.shapes[linear], device)?;
            let name = projections[linear].name.clone();
            Projection::new(name, Box::new(layer), self.biases[linear].clone(), device)
        };
        Ok(Block {
            input_norm: RmsNorm::new(self.input_norm.clone(), epsilon, device)?,
            query: make(QUERY)?,
            key: make(KEY)?,
            value: make(VALUE)?,
            output: make(OUTPUT)?,
            head_norms: like.head_norms.clone(),
            post_norm: RmsNorm::new(self.post_norm.clone(), epsilon, device)?,
            gate: make(GATE)?,
            up: make(UP)?,
            down: make(DOWN)?,
            geometry: like.geometry,
            execution: like.execution,
        })
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

    /// Divides row `i` of a matrix, and what is added to it, by `factors[i]`.
    pub(crate) fn divide_rows(&mut self, linear: usize, factors: &[f32]) {
        let inputs = self.shapes[linear].1;
        for (row, factor) in self.linear_mut(linear).chunks_exact_mut(inputs).zip(factors) {
            row.iter_mut().for_each(|value| *value /= factor);
        }
        if let Some(bias) = &mut self.biases[linear] {
            bias.iter_mut().zip(factors).for_each(|(value, factor)| *value /= factor);
        }
    }
}

/// Divides a norm's weight by `factors` and rounds it as it is stored; gives the factors that make
/// up for that exactly. Channels whose weight would vanish or overflow are left as they are.
pub(crate) fn fold_into_norm(norm: &mut [f32], factors: &[f32], plain: PlainType) -> Vec<f32> {
    norm.iter_mut()
        .zip(factors)
        .map(|(weight, factor)| {
            let stored = plain.rounded(*weight / factor);
            let exact = *weight / stored;
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
