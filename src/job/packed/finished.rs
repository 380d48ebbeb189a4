//! A finished block: what the output holds of it, what runs of it, and how checkpoints keep it.

use std::sync::Arc;

use candle_core::Device;
use half::f16;
use serde::{Deserialize, Serialize};

use super::block::{BlockWeights, Dense};
use super::layout::Layout;
use super::smoothquant::migrate::FactorStatistics;
use crate::arch::ModelConfig;
use crate::codec::affine::{Grouped, Int8Rows, PlainType};
use crate::files::checkpoint::UnitData;
use crate::graph::linear::packed::PackedLinear;
use crate::graph::linear::stored::DevicePrecision;
use crate::graph::{Block, LinearLayer};
use crate::weight::PackedTensor;
use crate::{Error, Result};

/// Integers of a linear layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Levels {
    /// Groups with scales and zero points.
    Groups(Grouped),
    /// 8-bit rows.
    Rows(Int8Rows),
}

impl Levels {
    /// The values that the levels stand for, `[out, in]`.
    #[must_use]
    pub(crate) fn values(&self) -> Vec<f32> {
        match self {
            Self::Groups(grouped) => {
                let mut values = vec![0.0; grouped.out * grouped.inputs];
                grouped.read_rows(0..grouped.out, &mut values);
                values
            }
            Self::Rows(rows) => {
                let mut values: Vec<f32> = rows.q.iter().map(|&q| f32::from(q)).collect();
                for (row, scale) in values.chunks_exact_mut(rows.inputs).zip(&rows.scales) {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
                values
            }
        }
    }
}

/// The layer over 8-bit rows that runs them when they are read from a file: it rounds each token's
/// inputs to 8 bits.
///
/// # Errors
/// If the device has no room.
pub(crate) fn running(rows: &Int8Rows, device: &Device) -> Result<PackedLinear> {
    PackedLinear::on_device(&PackedTensor::of_int8(rows)?, device, DevicePrecision::F32)
}

/// What happened to a linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerReport {
    /// `model.layers.0.mlp.up_proj`
    pub name: String,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// `gptq`, `awq`, `smoothquant`, or `rtn` for rounding to nearest.
    pub method: String,
    /// Squared error of the outputs on the calibration text as a fraction of their squared size;
    /// absent where nothing was measured.
    pub relative_error: Option<f64>,
    /// GPTQ: what was added to the Hessian's diagonal, as a fraction of its mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// GPTQ: inputs that no calibration token reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_columns: Option<usize>,
    /// AWQ: exponent of the activations in the scales; absent where none was better than no scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// SmoothQuant: strength of the migration into this layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// SmoothQuant: signal to quantization noise of the outputs, decibels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// AWQ and SmoothQuant: spread of the factors that its columns were multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factors: Option<FactorStatistics>,
    /// SmoothQuant: what the layer receives before smoothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<super::channels::ActivationStatistics>,
    /// Why a simpler method took the place of the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// A block as it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finished {
    /// The layers.
    pub linears: Vec<Levels>,
    /// Their biases.
    pub biases: Vec<Option<Vec<f32>>>,
    /// Norms on the residual stream, in the order in which they act.
    pub norms: Vec<Vec<f32>>,
    /// What happened.
    pub reports: Vec<LayerReport>,
}

impl Finished {
    /// From weights whose matrices have become `linears`.
    #[must_use]
    pub(crate) fn new(
        weights: &BlockWeights,
        linears: Vec<Levels>,
        reports: Vec<LayerReport>,
    ) -> Self {
        Self { linears, biases: weights.biases.clone(), norms: weights.norms.clone(), reports }
    }

    /// The block that runs it.
    ///
    /// # Errors
    /// If the device has no room.
    pub(crate) fn block(
        &self,
        layout: &Arc<Layout>,
        like: &Block,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Block> {
        let weights = BlockWeights {
            layout: Arc::clone(layout),
            linears: self.linears.iter().map(|levels| Arc::new(levels.values())).collect(),
            biases: self.biases.clone(),
            norms: self.norms.clone(),
        };
        let mut block = weights.block(like, config, device)?;
        for ((linear, levels), projection) in
            self.linears.iter().enumerate().zip(block.projections_mut())
        {
            let values = Arc::clone(&weights.linears[linear]);
            let layer: Box<dyn LinearLayer> = match levels {
                Levels::Groups(_) => Box::new(Dense::new(values, layout.shape(linear), device)?),
                Levels::Rows(rows) => Box::new(running(rows, device)?),
            };
            projection.layer = layer;
        }
        Ok(block)
    }

    /// As a unit of the checkpoint.
    ///
    /// # Errors
    /// If a report holds what JSON cannot.
    pub(crate) fn to_unit(&self) -> Result<UnitData> {
        let meta = serde_json::to_value(&self.reports)
            .map_err(|e| Error::Checkpoint(format!("a report cannot be kept: {e}")))?;
        let mut unit = UnitData::new(meta);
        for (at, norm) in self.norms.iter().enumerate() {
            unit = unit.with_f32(format!("norm.{at}"), norm.clone());
        }
        for (linear, (levels, bias)) in self.linears.iter().zip(&self.biases).enumerate() {
            if let Some(bias) = bias {
                unit = unit.with_f32(format!("{linear}.bias"), bias.clone());
            }
            unit = match levels {
                Levels::Groups(grouped) => {
                    let scales = grouped.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
                    let unit = unit
                        .with_bytes(format!("{linear}.q"), pack(&grouped.q, grouped.bits))
                        .with_bytes(format!("{linear}.scales"), scales)
                        .with_bytes(format!("{linear}.zeros"), grouped.zeros.clone());
                    match &grouped.group_of {
                        Some(groups) => {
                            let bytes = groups.iter().flat_map(|g| g.to_le_bytes()).collect();
                            unit.with_bytes(format!("{linear}.groups"), bytes)
                        }
                        None => unit,
                    }
                }
                Levels::Rows(rows) => unit
                    .with_bytes(format!("{linear}.q"), bytemuck::cast_slice(&rows.q).to_vec())
                    .with_f32(format!("{linear}.scales"), rows.scales.clone()),
            };
        }
        Ok(unit)
    }

    /// What [`to_unit`](Self::to_unit) kept; `group` and `bits` as planned, 8-bit rows without.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it does not fit the shapes.
    pub(crate) fn from_unit(
        unit: &UnitData,
        layout: &Layout,
        groups: Option<(u8, &[usize])>,
    ) -> Result<Self> {
        let damaged =
            || Error::Checkpoint("a finished block in the checkpoint does not fit".into());
        let bytes = |name: String| unit.bytes(&name).ok_or_else(damaged);
        let floats = |name: &str| unit.f32(name).map(<[f32]>::to_vec).ok_or_else(damaged);
        let mut linears = Vec::with_capacity(layout.slots.len());
        let mut biases = Vec::with_capacity(layout.slots.len());
        for (linear, (out, inputs)) in layout.shapes().enumerate() {
            biases.push(unit.f32(&format!("{linear}.bias")).map(<[f32]>::to_vec));
            let q = bytes(format!("{linear}.q"))?;
            let Some((bits, group)) = groups else {
                let q: Vec<i8> = bytemuck::cast_slice(q).to_vec();
                let scales = floats(&format!("{linear}.scales"))?;
                if q.len() != out * inputs || scales.len() != out {
                    return Err(damaged());
                }
                linears.push(Levels::Rows(Int8Rows { out, inputs, q, scales }));
                continue;
            };
            let group = group[linear];
            let scales: Vec<f16> = bytes(format!("{linear}.scales"))?
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| f16::from_le_bytes(*bytes))
                .collect();
            let zeros = bytes(format!("{linear}.zeros"))?.to_vec();
            let group_of = unit.bytes(&format!("{linear}.groups")).map(|bytes| {
                bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
            });
            let q = unpack(q, bits, out * inputs).ok_or_else(damaged)?;
            if scales.len() != out * (inputs / group) || zeros.len() != scales.len() {
                return Err(damaged());
            }
            linears.push(Levels::Groups(Grouped {
                out,
                inputs,
                group,
                bits,
                q,
                scales,
                zeros,
                group_of,
            }));
        }
        Ok(Self {
            linears,
            biases,
            norms: (0..layout.norms.len())
                .map(|at| floats(&format!("norm.{at}")))
                .collect::<Result<_>>()?,
            reports: serde_json::from_value(unit.meta.clone()).map_err(|_| damaged())?,
        })
    }

    /// Rounds what is stored in 16 bits as it will be stored.
    pub(crate) fn round_plain(&mut self, plain: PlainType) {
        let biases = self.biases.iter_mut().flatten();
        for values in biases.chain(&mut self.norms) {
            values.iter_mut().for_each(|value| *value = plain.rounded(*value));
        }
    }
}

/// Levels of up to 4 bits, two in a byte.
fn pack(levels: &[u8], bits: u8) -> Vec<u8> {
    if bits > 4 {
        return levels.to_vec();
    }
    levels.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)).collect()
}

fn unpack(bytes: &[u8], bits: u8, count: usize) -> Option<Vec<u8>> {
    if bits > 4 {
        return (bytes.len() == count).then(|| bytes.to_vec());
    }
    let mut levels: Vec<u8> = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
    levels.truncate(count);
    (bytes.len() == count.div_ceil(2)).then_some(levels)
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use safetensors::Dtype;

    use super::*;
    use crate::base::SharedBytes;
    use crate::codec::affine::nearest::round_rows;
    use crate::files::packed::w8a8;
    use crate::weight::Scales;

    /// What is optimized and measured is what runs later, to the bit.
    #[test]
    fn rows_run_as_those_of_the_file_do() {
        let (out, inputs) = (48, 64);
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed) as f32 * 0.618_034).fract() - 0.5).collect()
        };
        let rows = round_rows(&values(out * inputs, 1), inputs, Dtype::BF16).unwrap();
        let packed = w8a8::pack(&rows, Dtype::BF16).unwrap();
        let shared = |bytes: &Vec<u8>| SharedBytes::from_vec(bytes.clone());
        let scales = Scales { dtype: Dtype::BF16, bytes: shared(&packed.weight_scale.bytes) };
        let read = PackedTensor::w8a8([out, inputs], shared(&packed.weight.bytes), scales).unwrap();
        let read = PackedLinear::on_device(&read, &Device::Cpu, DevicePrecision::F32).unwrap();
        let held = running(&rows, &Device::Cpu).unwrap();
        for tokens in [1, 3, 40] {
            let x = Tensor::from_vec(values(tokens * inputs, 5), (tokens, inputs), &Device::Cpu);
            let x = x.unwrap();
            let bits = |layer: &PackedLinear| -> Vec<u32> {
                let y = layer.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>();
                y.unwrap().into_iter().map(f32::to_bits).collect()
            };
            assert_eq!(bits(&held), bits(&read));
        }
    }
}
