//! Super weights as the literature finds them (Yu et al., "The Super Weight in Large Language
//! Models", arXiv 2411.07191): a single weight of a down projection that turns a spike of its input
//! into the spike of its output which the rest of the model depends on.
//!
//! One batch of text goes through the model. For every block, the largest output of the down
//! projection `|y[t, row]|` and the column whose product `x[t, column] · w[row, column]` makes most
//! of it are looked at. The weight is a super weight when the output stands out from the block's
//! outputs, the input from the block's inputs, and that one product is most of the output. Its
//! product is then taken out of all outputs and the search goes on, until nothing stands out.
//!
//! What each one does is measured: perplexity of the same text without it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::weights::stored;
use crate::base::progress::{NullProgress, Progress};
use crate::graph::slices::with_f32;
use crate::graph::{Decoder, LinearLayer, Observer};
use crate::measure::Perplexity;
use crate::model::LocalModel;
use crate::text::EvaluationWindows;
use crate::{Error, Result};

/// How many times the median magnitude of a block's outputs a spike is.
pub(crate) const OUTPUT_SPIKE: f32 = 300.0;
/// How many times the median magnitude of a block's inputs a spike is.
pub(crate) const INPUT_SPIKE: f32 = 300.0;
/// Share of the output that the one product makes.
pub(crate) const LEAST_SHARE: f32 = 0.5;
/// Most that are looked for in one block.
const MOST_OF_A_BLOCK: usize = 8;
/// Most whose loss is measured, largest output first.
const MOST_MEASURED: usize = 8;

/// A super weight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuperWeight {
    /// GGUF name of its tensor.
    pub tensor: String,
    /// Its output: the row of the matrix.
    pub row: usize,
    /// Its input: the column.
    pub column: usize,
    /// The weight.
    pub value: f32,
    /// The input at the spike.
    pub input: f32,
    /// The output at the spike.
    pub output: f32,
    /// Input over the median magnitude of the block's inputs.
    pub input_spike: f32,
    /// Output over the median magnitude of the block's outputs.
    pub output_spike: f32,
    /// Share of the output that this one product makes.
    pub share: f32,
    /// Perplexity of the searched text without this weight, where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity_without: Option<f64>,
}

/// What a search finds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// By block, then by size of the spike.
    pub(super) super_weights: Vec<SuperWeight>,
    /// Perplexity of the searched text with the whole model.
    pub(super) perplexity: f64,
}

/// Searches the down projections of all blocks while the model reads `tokens`, sequences of `length`.
///
/// # Errors
/// If the model cannot be run, or its weights are not stored as numbers.
pub(super) fn search(
    model: &LocalModel,
    decoder: &mut Decoder,
    tokens: &[u32],
    length: usize,
    progress: &dyn Progress,
) -> Result<Found> {
    let positions = decoder.positions(tokens.len() / length, length, 0);
    let mut x = decoder.embed(tokens)?;
    let mut found = Vec::new();
    for (index, block) in decoder.blocks().iter().enumerate() {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        let mut seen = DownInput(None);
        x = block.forward(&x, &positions, None, Some(&mut seen))?;
        let input = seen.0.ok_or_else(no_mlp)?;
        let down = block.down().ok_or_else(no_mlp)?;
        let output = down.layer.forward(&input)?;
        let weight = stored(model, &format!("{}.weight", down.name))?;
        let (rows, cols) = (weight.rows(), weight.cols());
        let output = with_f32(&output.to_device(&Device::Cpu)?, <[f32]>::to_vec)?;
        let spikes = with_f32(&input.to_device(&Device::Cpu)?, |input| {
            spikes(input, output, (rows, cols), |row, values| {
                weight.read_rows(row..row + 1, values);
            })
        })?;
        for spike in spikes {
            progress.debug(&format!(
                "block {index}: output {:.1} ({:.0} medians), input {:.1} ({:.0} medians), share {:.2} at \
                 [{}, {}]{}",
                spike.output,
                spike.output_spike,
                spike.input,
                spike.input_spike,
                spike.share,
                spike.row,
                spike.column,
                if spike.stands_out() { ": a super weight" } else { "" }
            ));
            if spike.stands_out() {
                found.push((index, spike));
            }
        }
    }
    let windows = EvaluationWindows {
        tokens: tokens.to_vec(),
        length,
        first_target: 1,
        available: tokens.len() / length,
    };
    let perplexity = |decoder: &Decoder| {
        Perplexity::measure(decoder, &windows, "", &NullProgress).map(|p| p.perplexity)
    };
    let whole = perplexity(decoder)?;
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by(|a, b| found[*b].1.output.abs().total_cmp(&found[*a].1.output.abs()));
    for at in order.into_iter().take(MOST_MEASURED) {
        let (index, spike) = &mut found[at];
        let place = &mut decoder.block_mut(*index).down_mut().ok_or_else(no_mlp)?.layer;
        let layer: Arc<dyn LinearLayer> = Arc::from(std::mem::replace(place, Box::new(Vacant)));
        let removed = Some((spike.row, spike.column, spike.value));
        *place = Box::new(Without { layer: Arc::clone(&layer), removed });
        let without = perplexity(decoder);
        let place = &mut decoder.block_mut(*index).down_mut().ok_or_else(no_mlp)?.layer;
        *place = Box::new(Without { layer, removed: None });
        spike.perplexity_without = Some(without?);
    }
    let super_weights = found
        .into_iter()
        .map(|(block, spike)| {
            let tensor = format!("blk.{block}.ffn_down.weight");
            SuperWeight { tensor, ..spike }
        })
        .collect();
    Ok(Found { super_weights, perplexity: whole })
}

impl SuperWeight {
    fn stands_out(&self) -> bool {
        self.output_spike >= OUTPUT_SPIKE
            && self.input_spike >= INPUT_SPIKE
            && self.share >= LEAST_SHARE
    }
}

/// The spikes of a block: those that stand out, and one that does not. `input` is `[tokens, cols]`,
/// `output` `[tokens, rows]`; `read` reads a row of the weight.
fn spikes(
    input: &[f32],
    mut output: Vec<f32>,
    (rows, cols): (usize, usize),
    read: impl Fn(usize, &mut [f32]),
) -> Vec<SuperWeight> {
    let (of_inputs, of_outputs) = (median(input), median(&output));
    let mut found = Vec::new();
    let mut weights = vec![0.0; cols];
    while found.len() < MOST_OF_A_BLOCK {
        let Some(at) = largest(&output) else { break };
        let (token, row, value) = (at / rows, at % rows, output[at]);
        read(row, &mut weights);
        let x = &input[token * cols..(token + 1) * cols];
        // Those that are taken out already make nothing of what is left.
        for spike in found.iter().filter(|spike: &&SuperWeight| spike.row == row) {
            weights[spike.column] = 0.0;
        }
        let products: Vec<f32> = x.iter().zip(&weights).map(|(x, w)| x * w).collect();
        let Some(column) = largest(&products) else { break };
        let spike = SuperWeight {
            tensor: String::new(),
            row,
            column,
            value: weights[column],
            input: x[column],
            output: value,
            input_spike: x[column].abs() / of_inputs,
            output_spike: value.abs() / of_outputs,
            share: products[column] / value,
            perplexity_without: None,
        };
        let stands_out = spike.stands_out();
        // What is left without it.
        for (x, y) in input.chunks_exact(cols).zip(output.chunks_exact_mut(rows)) {
            y[row] -= x[column] * spike.value;
        }
        found.push(spike);
        if !stands_out {
            break;
        }
    }
    found
}

/// Median of the magnitudes, and never zero.
fn median(values: &[f32]) -> f32 {
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    let middle = sizes.len() / 2;
    let median = match sizes.get(middle) {
        Some(_) => *sizes.select_nth_unstable_by(middle, f32::total_cmp).1,
        None => 0.0,
    };
    median.max(f32::MIN_POSITIVE)
}

/// Where the largest magnitude is, the first of equals; `None` if all are zero.
fn largest(values: &[f32]) -> Option<usize> {
    let mut best = (0.0, None);
    for (index, value) in values.iter().enumerate() {
        if value.abs() > best.0 {
            best = (value.abs(), Some(index));
        }
    }
    best.1
}

/// Keeps the input of the down projection.
struct DownInput(Option<Tensor>);

impl Observer for DownInput {
    fn linear_input(&mut self, names: &[&str], x: &Tensor) -> Result<()> {
        if names.iter().any(|name| name.ends_with("mlp.down_proj")) {
            self.0 = Some(x.clone());
        }
        Ok(())
    }
}

/// A layer without one of its weights.
struct Without {
    layer: Arc<dyn LinearLayer>,
    /// Row, column and value.
    removed: Option<(usize, usize, f32)>,
}

impl LinearLayer for Without {
    fn dims(&self) -> (usize, usize) {
        self.layer.dims()
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.layer.forward(x)?;
        let Some((row, column, value)) = self.removed else { return Ok(y) };
        let product = (x.narrow(1, column, 1)? * f64::from(value))?;
        let (tokens, rows) = y.dims2()?;
        let before = y.narrow(1, 0, row)?;
        let changed = (y.narrow(1, row, 1)? - product)?;
        let after = y.narrow(1, row + 1, rows - row - 1)?;
        let parts: Vec<&Tensor> =
            [&before, &changed, &after].into_iter().filter(|part| part.elem_count() > 0).collect();
        debug_assert_eq!(changed.dims(), &[tokens, 1]);
        Ok(Tensor::cat(&parts, 1)?.contiguous()?)
    }
}

/// Stands where a layer has been taken out for a moment.
struct Vacant;

impl LinearLayer for Vacant {
    fn dims(&self) -> (usize, usize) {
        (0, 0)
    }

    fn forward(&self, _: &Tensor) -> Result<Tensor> {
        Err(Error::General("a layer is missing".into()))
    }
}

fn no_mlp() -> Error {
    Error::Importance("a block has no MLP of its own".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small values everywhere but for two planted weights that meet large inputs.
    #[test]
    fn planted_spikes_are_found_in_order_of_size() {
        let (tokens, rows, cols) = (64, 200, 300);
        let noise = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5;
        let mut weight: Vec<f32> = (0..rows * cols).map(|i| noise(i) * 0.02).collect();
        let mut input: Vec<f32> = (0..tokens * cols).map(|i| noise(i + 77) * 0.1).collect();
        for (token, row, column, w, x) in
            [(3usize, 17usize, 250usize, 4.0f32, 60.0f32), (9, 150, 2, -3.0, 40.0)]
        {
            weight[row * cols + column] = w;
            input[token * cols + column] = x;
        }
        let mut output = vec![0.0; tokens * rows];
        for (token, y) in output.chunks_exact_mut(rows).enumerate() {
            for (row, y) in y.iter_mut().enumerate() {
                let x = &input[token * cols..(token + 1) * cols];
                let w = &weight[row * cols..(row + 1) * cols];
                *y = x.iter().zip(w).map(|(x, w)| x * w).sum();
            }
        }
        let found = spikes(&input, output, (rows, cols), |row, out| {
            out.copy_from_slice(&weight[row * cols..(row + 1) * cols]);
        });
        let places: Vec<_> =
            found.iter().filter(|s| s.stands_out()).map(|s| (s.row, s.column, s.value)).collect();
        assert_eq!(places, [(17, 250, 4.0), (150, 2, -3.0)]);
        assert_eq!(found.len(), 3, "the search ends with one that does not stand out");
    }

    #[test]
    fn a_layer_without_a_weight_is_one_with_a_zero_there() {
        use crate::base::SharedBytes;
        use crate::codec::StoredType;
        use crate::graph::StoredLinear;
        use crate::weight::StoredTensor;
        let values: Vec<f32> = (0..12).map(|i| i as f32 * 0.25 - 1.0).collect();
        let linear = |values: &[f32]| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let bytes = SharedBytes::from_vec(bytes);
            StoredLinear::new(StoredTensor::new(vec![3, 4], StoredType::F32, bytes).unwrap())
                .unwrap()
        };
        let x =
            Tensor::new(&[[1.0f32, -2.0, 3.0, 0.5], [0.0, 1.0, 2.0, 4.0]], &Device::Cpu).unwrap();
        for (row, column) in [(0, 1), (1, 3), (2, 0)] {
            let removed = Some((row, column, values[row * 4 + column]));
            let without = Without { layer: Arc::new(linear(&values)), removed };
            let mut zeroed = values.clone();
            zeroed[row * 4 + column] = 0.0;
            let (a, b) = (without.forward(&x).unwrap(), linear(&zeroed).forward(&x).unwrap());
            assert_eq!(a.to_vec2::<f32>().unwrap(), b.to_vec2::<f32>().unwrap());
        }
    }
}
