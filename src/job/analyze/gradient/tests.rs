//! Gradients against differences of the loss, which the plain forward pass computes.

use std::path::Path;

use super::*;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::device::Backend;
use crate::graph::StoredLinear;
use crate::model::open_local;
use crate::weight::StoredTensor;

/// Step of the differences. Weights of the model are about 0.05.
const STEP: f32 = 0.02;

/// Loss of a sample from what goes into block `from` on, nats, in f64.
fn loss(decoder: &Decoder, from: usize, x: &Tensor, tokens: &[u32]) -> f64 {
    let positions = decoder.positions(1, tokens.len(), 0);
    let mut x = x.clone();
    for block in &decoder.blocks()[from..] {
        x = block.forward(&x, &positions, None, None).unwrap();
    }
    let logits = decoder.logits(&decoder.final_norm(&x).unwrap()).unwrap();
    let rows = logits.to_vec2::<f32>().unwrap();
    let row_loss = |(row, target): (&Vec<f32>, &u32)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
        sum.ln() - f64::from(row[*target as usize] - largest)
    };
    rows.iter().zip(&tokens[1..]).map(row_loss).sum()
}

fn dense(values: &[f32], rows: usize, cols: usize) -> StoredLinear {
    let bytes = SharedBytes::from_vec(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    StoredLinear::new(StoredTensor::new(vec![rows, cols], StoredType::F32, bytes).unwrap()).unwrap()
}

/// Central differences of the loss for every weight of a column.
fn differences(
    model: &LocalModel,
    decoder: &mut Decoder,
    (block, linear): (usize, usize),
    column: usize,
    x: &Tensor,
    tokens: &[u32],
) -> Vec<f64> {
    let name = decoder.block(block).projections()[linear].name.clone();
    let tensor = stored(model, &format!("{name}.weight")).unwrap();
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let mut values = decode(tensor);
    let mut at = |decoder: &mut Decoder, row: usize, step: f32| {
        let kept = values[row * cols + column];
        values[row * cols + column] = kept + step;
        decoder.block_mut(block).projections_mut()[linear].layer =
            Box::new(dense(&values, rows, cols));
        values[row * cols + column] = kept;
        loss(decoder, block, x, tokens)
    };
    let gradients = (0..rows)
        .map(|row| (at(decoder, row, STEP) - at(decoder, row, -STEP)) / (2.0 * f64::from(STEP)))
        .collect();
    decoder.block_mut(block).projections_mut()[linear].layer = Box::new(dense(&values, rows, cols));
    gradients
}

/// Every linear layer of a block, each in another block, for two samples.
#[test]
fn column_gradients_are_those_of_differences() {
    let model = open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
    let mut decoder = Decoder::new(&model, &Backend::cpu()).unwrap();
    let length = 8;
    let tokens: Vec<u32> = (0..2 * length as u32).map(|i| (i * 389 + 5) % 2048).collect();
    let mut of = |method| {
        let mut sums = Sums::default();
        let gradients = Gradients::new(&model, method).unwrap();
        gradients.add(&mut decoder, &tokens, length, &mut sums, &mut |_| Ok(())).unwrap();
        sums
    };
    let (absolute, squared) = (of(Method::Gradient), of(Method::Fisher));
    assert_eq!(absolute.layers.len(), 28);
    let mut inputs = Vec::new();
    for sample in tokens.chunks(length) {
        let positions = decoder.positions(1, length, 0);
        let mut x = decoder.embed(sample).unwrap();
        let mut all = Vec::new();
        for block in decoder.blocks() {
            all.push(x.clone());
            x = block.forward(&x, &positions, None, None).unwrap();
        }
        inputs.push(all);
    }
    for (linear, block) in [0, 3, 1, 2, 0, 1, 3].into_iter().enumerate() {
        let name = decoder.block(block).projections()[linear].name.clone();
        let column = 17 * linear + 3;
        let (mut of_sizes, mut of_squares) = (0.0, 0.0);
        for (sample, inputs) in tokens.chunks(length).zip(&inputs) {
            let place = (block, linear);
            let gradients =
                differences(&model, &mut decoder, place, column, &inputs[block], sample);
            let rows = gradients.len() as f64;
            of_sizes += gradients.iter().map(|g| g.abs()).sum::<f64>() / rows;
            of_squares += gradients.iter().map(|g| g * g).sum::<f64>() / rows;
        }
        let (size, square) =
            (absolute.layers[&name].columns[column], squared.layers[&name].columns[column]);
        assert!((size / of_sizes - 1.0).abs() < 0.03, "{name}: {size} {of_sizes}");
        assert!((square / of_squares - 1.0).abs() < 0.03, "{name}: {square} {of_squares}");
        assert!((absolute.layers[&name].count - 2.0).abs() < 1e-9);
    }
}
