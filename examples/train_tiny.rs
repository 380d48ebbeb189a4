//! Trains the built-in tiny model from scratch, on the CPU, from the text in `models/corpus/`.
//!
//! ```text
//! cargo run --release --example train_tiny
//! ```
//!
//! The run learns a byte-level BPE tokenizer of 2,048 tokens, then a Llama model of about one
//! million parameters, and writes both to `models/tiny/` as an ordinary Hugging Face directory
//! (weights in half precision). Before it ends it reads that directory back and measures it on the
//! held-out text, next to a unigram model of the same tokens, and prints a few samples.
//!
//! Every random choice is seeded and gradients are always summed in the same order, so a second
//! run on the same kind of machine gives the same model. Time and result of the run whose model is
//! in the repository are in `models/tiny/README.md`.
//!
//! Other uses:
//!
//! ```text
//! … --example train_tiny -- --resume               # go on from the last checkpoint
//! … --example train_tiny -- --evaluate             # measure and sample the model on disk
//! … --example train_tiny -- --sample "My fellow"   # continue a text with the model on disk
//! ```
//!
//! Tensors, automatic differentiation and matrix products are candle's. Its element-wise operations
//! allocate at every call and many are slow to differentiate, so the five pieces that would otherwise
//! be chains of them (RMS norm, rotary embedding, causal softmax, SwiGLU, cross-entropy) are custom
//! operations with their own backward pass here, and a batch is split into shards that run in
//! parallel. `cargo test --release --example train_tiny` checks each backward pass against finite
//! differences, and the model on disk against the Llama of candle-transformers.

#![allow(clippy::print_stdout, reason = "an example reports to its terminal")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Shape, Tensor, Var, bail,
};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// Token put between documents; it serves as beginning and as end of text.
const END_OF_TEXT: &str = "<|endoftext|>";
/// Id of [`END_OF_TEXT`]: the trainer numbers special tokens first.
const END_OF_TEXT_ID: u32 = 0;

// Architecture. Every width is a multiple of 128.
const VOCAB: usize = 2048;
const HIDDEN: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const FFN: usize = 384;
const CONTEXT: usize = 256;
const NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10_000.0;

// Training.
const SEED: u64 = 20_240_601;
/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.05;
/// Sequences that go through the model together; also the unit of parallel work.
const SHARD: usize = 4;
/// Shards whose gradients are averaged into one step.
const SHARDS_PER_STEP: usize = 4;
const PEAK_LEARNING_RATE: f64 = 4e-3;
/// Learning rate at the end of the cosine, as a share of the peak.
const FINAL_LEARNING_RATE: f64 = 0.02;
/// Steps of a run. The corpus is small: after them the held-out loss no longer falls, although the
/// training loss does.
const STEPS: usize = 2500;
/// Steps from which the cosine takes its length; a run stops on its flat end.
const SCHEDULE_STEPS: usize = 3000;
const WARM_UP_STEPS: usize = 100;
const WEIGHT_DECAY: f64 = 0.1;
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
const ADAM_EPS: f64 = 1e-8;
/// Largest global gradient norm; longer gradients are scaled down to it.
const CLIP_NORM: f64 = 1.0;
const LOG_EVERY: usize = 25;
const CHECKPOINT_EVERY: usize = 250;

/// Openings continued at the end of a run, with the temperature used (0 is greedy).
const SAMPLES: [(&str, f32); 3] = [
    ("My fellow Americans,", 0.0),
    ("The American people", SAMPLE_TEMPERATURE),
    ("Our schools", SAMPLE_TEMPERATURE),
];
const SAMPLE_TOKENS: usize = 80;
const SAMPLE_TEMPERATURE: f32 = 0.7;
/// Sampling keeps this many of the likeliest tokens: the tail of so small a model misspells words.
const SAMPLE_TOP_K: usize = 20;

#[derive(Parser)]
#[command(about = "Trains the built-in tiny model from the text in models/corpus")]
struct Args {
    /// Optimiser steps, of 4,096 tokens each
    #[arg(long, default_value_t = STEPS)]
    steps: usize,
    /// Directory with train.txt, calibration.txt and heldout.txt
    #[arg(long, default_value = "models/corpus")]
    corpus: PathBuf,
    /// Directory the model is written to
    #[arg(long, default_value = "models/tiny")]
    out: PathBuf,
    /// Directory for the checkpoint
    #[arg(long, default_value = "target/train_tiny")]
    work: PathBuf,
    /// Go on from the checkpoint of an interrupted run
    #[arg(long)]
    resume: bool,
    /// Train nothing: measure the model in --out on the held-out text and sample it
    #[arg(long, conflicts_with = "sample")]
    evaluate: bool,
    /// Train nothing: continue this text with the model in --out
    #[arg(long, value_name = "TEXT")]
    sample: Option<String>,
}

#[expect(unsafe_code, reason = "a variable is set before any thread exists")]
fn main() -> Result<()> {
    // The shards of a batch already occupy every core, so candle's own threads would only get in
    // their way: it is told to use one, and the shards run in a rayon pool of their own size.
    // SAFETY: no other thread exists yet.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(run)
}

fn run() -> Result<()> {
    let args = Args::parse();
    if let Some(prompt) = &args.sample {
        let tokenizer = load_tokenizer(&args.out)?;
        let model = Model::read(&args.out)?;
        let mut rng = ChaCha8Rng::seed_from_u64(SEED);
        println!("{}", continue_text(&model, &tokenizer, prompt, SAMPLE_TEMPERATURE, &mut rng)?);
        return Ok(());
    }
    if !args.evaluate {
        train(&args)?;
    }
    report(&args)
}

// ---------------------------------------------------------------------------------------------
// Text and tokens
// ---------------------------------------------------------------------------------------------

/// Reads a corpus file into documents, which are separated by blank lines.
fn read_documents(path: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text
        .split("\n\n")
        .map(|document| document.trim().to_owned())
        .filter(|document| !document.is_empty())
        .collect())
}

fn read_training_documents(corpus: &Path) -> Result<Vec<String>> {
    let mut documents = read_documents(&corpus.join("train.txt"))?;
    documents.extend(read_documents(&corpus.join("calibration.txt"))?);
    Ok(documents)
}

/// Learns the byte-level BPE vocabulary and writes `tokenizer.json`, which puts the beginning of
/// text token before every input.
fn train_tokenizer(documents: &[String], path: &Path) -> Result<()> {
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCAB)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let template = TemplateProcessing::builder()
        .try_single(format!("{END_OF_TEXT} $A"))
        .map_err(|e| anyhow!(e))?
        .try_pair(format!("{END_OF_TEXT} $A {END_OF_TEXT} $B:1"))
        .map_err(|e| anyhow!(e))?
        .special_tokens(vec![(END_OF_TEXT, END_OF_TEXT_ID)])
        .build()?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(template))
        .with_decoder(Some(ByteLevel::new(false, true, true)))
        .build()
        .map_err(|e| anyhow!(e))?;
    tokenizer
        .train(&mut trainer, documents.iter())
        .map_err(|e| anyhow!(e))?
        .save(path, true)
        .map_err(|e| anyhow!(e))
}

fn load_tokenizer(directory: &Path) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    Tokenizer::from_file(&path).map_err(|e| anyhow!("cannot load {}: {e}", path.display()))
}

/// Encodes documents into one stream, each with [`END_OF_TEXT_ID`] before it.
fn encode_documents(tokenizer: &Tokenizer, documents: &[String]) -> Result<Vec<u32>> {
    let mut stream = Vec::new();
    for document in documents {
        let encoding = tokenizer.encode(document.as_str(), true).map_err(|e| anyhow!(e))?;
        stream.extend_from_slice(encoding.get_ids());
    }
    Ok(stream)
}

/// The training stream and the places where a paragraph starts in it.
struct Corpus {
    stream: Vec<u32>,
    paragraphs: Vec<usize>,
}

impl Corpus {
    fn new(stream: Vec<u32>, newline: u32) -> Result<Self> {
        let last = stream
            .len()
            .checked_sub(CONTEXT + 1)
            .context("the corpus is shorter than one window")?;
        let paragraphs = (1..=last)
            .filter(|&i| stream[i - 1] == newline || stream[i - 1] == END_OF_TEXT_ID)
            .collect::<Vec<_>>();
        ensure!(!paragraphs.is_empty(), "the corpus has no paragraphs");
        Ok(Self { stream, paragraphs })
    }

    /// One shard of inputs and targets. Even rows are windows from anywhere in the stream; odd rows
    /// are a beginning of text token and then a paragraph, which is what a prompt looks like.
    fn shard(&self, rng: &mut ChaCha8Rng) -> (Vec<u32>, Vec<u32>) {
        let mut inputs = Vec::with_capacity(SHARD * CONTEXT);
        let mut targets = Vec::with_capacity(SHARD * CONTEXT);
        for row in 0..SHARD {
            if row % 2 == 0 {
                let start = rng.random_range(0..self.stream.len() - CONTEXT);
                inputs.extend_from_slice(&self.stream[start..start + CONTEXT]);
                targets.extend_from_slice(&self.stream[(start + 1)..=(start + CONTEXT)]);
            } else {
                let start = self.paragraphs[rng.random_range(0..self.paragraphs.len())];
                inputs.push(END_OF_TEXT_ID);
                inputs.extend_from_slice(&self.stream[start..start + CONTEXT - 1]);
                targets.extend_from_slice(&self.stream[start..start + CONTEXT]);
            }
        }
        (inputs, targets)
    }
}

// ---------------------------------------------------------------------------------------------
// Fused operations
// ---------------------------------------------------------------------------------------------

type CandleResult<T> = candle_core::Result<T>;

/// The elements of a contiguous f32 operand.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation needs contiguous operands"),
    }
}

/// The elements of any f32 tensor, in row-major order.
fn to_vec(tensor: &Tensor) -> CandleResult<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

fn from_vec(data: Vec<f32>, like: &Tensor) -> CandleResult<Tensor> {
    Tensor::from_vec(data, like.shape(), &Device::Cpu)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x / rms(x) * weight` over the last dimension.
struct RmsNorm;

impl RmsNorm {
    fn inverse_rms(row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + NORM_EPS as f32).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let weight = elements(weight, weight_layout)?;
        let mut out = elements(x, x_layout)?.to_vec();
        for row in out.chunks_exact_mut(weight.len()) {
            let scale = Self::inverse_rms(row);
            for (x, w) in row.iter_mut().zip(weight) {
                *x *= scale * w;
            }
        }
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (xs, weights) = (to_vec(x)?, to_vec(weight)?);
        let mut grads = to_vec(grad)?;
        let width = weights.len();
        let mut weight_grad = vec![0f32; width];
        for (x, g) in xs.chunks_exact(width).zip(grads.chunks_exact_mut(width)) {
            let scale = Self::inverse_rms(x);
            let mut along = 0f32;
            for i in 0..width {
                weight_grad[i] += g[i] * x[i] * scale;
                g[i] *= weights[i];
                along += g[i] * x[i];
            }
            let along = along * scale * scale / width as f32;
            for (g, x) in g.iter_mut().zip(x) {
                *g = scale * (*g - x * along);
            }
        }
        Ok((Some(from_vec(grads, x)?), Some(from_vec(weight_grad, weight)?)))
    }
}

/// Cosines and sines of the rotary embedding, `CONTEXT` rows of `HEAD_DIM / 2`.
struct RotaryTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotaryTable {
    fn new() -> Self {
        let half = HEAD_DIM / 2;
        let angles = (0..CONTEXT).flat_map(|position| {
            (0..half).map(move |i| {
                position as f32 / (ROPE_THETA as f32).powf(2.0 * i as f32 / HEAD_DIM as f32)
            })
        });
        let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        Self { cos, sin }
    }

    /// Rotates rows of `HEAD_DIM` in place; element `i` pairs with `i + HEAD_DIM / 2`, as in
    /// Hugging Face's Llama. A row's position is its index modulo `length`.
    fn rotate(&self, data: &mut [f32], length: usize, inverse: bool) {
        let half = HEAD_DIM / 2;
        let sign = if inverse { -1.0 } else { 1.0 };
        for (index, row) in data.chunks_exact_mut(HEAD_DIM).enumerate() {
            let at = index % length * half;
            let (first, second) = row.split_at_mut(half);
            for i in 0..half {
                let (cos, sin) = (self.cos[at + i], sign * self.sin[at + i]);
                let (a, b) = (first[i], second[i]);
                first[i] = a * cos - b * sin;
                second[i] = b * cos + a * sin;
            }
        }
    }
}

/// Rotary embedding of a tensor whose last two dimensions are position and `HEAD_DIM`.
struct Rotary(Arc<RotaryTable>);

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let mut out = elements(x, layout)?.to_vec();
        let dims = layout.dims();
        self.0.rotate(&mut out, dims[dims.len() - 2], false);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let mut grads = to_vec(grad)?;
        let dims = x.dims();
        self.0.rotate(&mut grads, dims[dims.len() - 2], true);
        Ok(Some(from_vec(grads, x)?))
    }
}

/// Softmax of scaled attention scores under a causal mask. The last dimension is the key position;
/// the query position of a row is its index modulo the number of keys.
struct CausalSoftmax {
    scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let scores = elements(scores, layout)?;
        let length = layout.dims()[layout.dims().len() - 1];
        let mut out = vec![0f32; scores.len()];
        let rows = scores.chunks_exact(length).zip(out.chunks_exact_mut(length));
        for (index, (scores, out)) in rows.enumerate() {
            let visible = index % length + 1;
            let (scores, out) = (&scores[..visible], &mut out[..visible]);
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut total = 0f32;
            for (out, score) in out.iter_mut().zip(scores) {
                *out = (self.scale * (score - highest)).exp();
                total += *out;
            }
            let inverse = 1.0 / total;
            out.iter_mut().for_each(|p| *p *= inverse);
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _scores: &Tensor, out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let length = out.dim(candle_core::D::Minus1)?;
        let (probabilities, mut grads) = (to_vec(out)?, to_vec(grad)?);
        let rows = probabilities.chunks_exact(length).zip(grads.chunks_exact_mut(length));
        for (index, (p, g)) in rows.enumerate() {
            let visible = index % length + 1;
            let mean = dot(&p[..visible], &g[..visible]);
            for (g, p) in g[..visible].iter_mut().zip(p) {
                *g = self.scale * p * (*g - mean);
            }
            g[visible..].fill(0.0);
        }
        Ok(Some(from_vec(grads, out)?))
    }
}

/// `silu(gate) * up`.
struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let gate = elements(gate, gate_layout)?;
        let up = elements(up, up_layout)?;
        let out = gate.iter().zip(up).map(|(&gate, up)| gate * sigmoid(gate) * up).collect();
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (mut gates, mut ups) = (to_vec(gate)?, to_vec(up)?);
        for ((gate, up), g) in gates.iter_mut().zip(&mut ups).zip(to_vec(grad)?) {
            let s = sigmoid(*gate);
            let silu = *gate * s;
            *gate = g * *up * (s + silu * (1.0 - s));
            *up = g * silu;
        }
        Ok((Some(from_vec(gates, gate)?), Some(from_vec(ups, up)?)))
    }
}

/// Negative log-likelihood (in nats) of one target per row of logits.
struct CrossEntropy {
    targets: Arc<Vec<u32>>,
}

impl CrossEntropy {
    /// Turns logits into probabilities in place and returns the logarithm of their normaliser.
    fn softmax(row: &mut [f32]) -> f32 {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0f32;
        for x in row.iter_mut() {
            *x = (*x - highest).exp();
            total += *x;
        }
        let inverse = 1.0 / total;
        row.iter_mut().for_each(|x| *x *= inverse);
        highest + total.ln()
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (rows, vocabulary) = layout.shape().dims2()?;
        let logits = elements(logits, layout)?;
        let mut scratch = vec![0f32; vocabulary];
        let losses = logits
            .chunks_exact(vocabulary)
            .zip(self.targets.iter())
            .map(|(row, &target)| {
                scratch.copy_from_slice(row);
                Self::softmax(&mut scratch) - row[target as usize]
            })
            .collect();
        Ok((CpuStorage::F32(losses), Shape::from(rows)))
    }

    fn bwd(&self, logits: &Tensor, _out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let mut out = to_vec(logits)?;
        let rows = out.chunks_exact_mut(VOCAB).zip(self.targets.iter());
        for ((row, &target), grad) in rows.zip(to_vec(grad)?) {
            Self::softmax(row);
            row[target as usize] -= 1.0;
            row.iter_mut().for_each(|x| *x *= grad);
        }
        Ok(Some(from_vec(out, logits)?))
    }
}

// ---------------------------------------------------------------------------------------------
// Model
// ---------------------------------------------------------------------------------------------

struct Block {
    input_norm: Var,
    query: Var,
    key: Var,
    value: Var,
    output: Var,
    post_norm: Var,
    gate: Var,
    up: Var,
    down: Var,
}

/// A Llama model with tied embeddings.
struct Model {
    embedding: Var,
    blocks: Vec<Block>,
    final_norm: Var,
    rotary: Arc<RotaryTable>,
}

/// `x · weightᵀ` for a weight stored as `[out, in]`.
fn linear(x: &Tensor, weight: &Var) -> CandleResult<Tensor> {
    x.matmul(&weight.t()?)
}

impl Model {
    /// Builds the model from whatever gives a parameter for a Hugging Face name and a shape.
    fn build(mut parameter: impl FnMut(&str, &[usize]) -> Result<Var>) -> Result<Self> {
        let query_width = HEADS * HEAD_DIM;
        let kv_width = KV_HEADS * HEAD_DIM;
        let embedding = parameter("model.embed_tokens.weight", &[VOCAB, HIDDEN])?;
        let mut blocks = Vec::with_capacity(LAYERS);
        for layer in 0..LAYERS {
            let mut get = |name: &str, shape: &[usize]| {
                parameter(&format!("model.layers.{layer}.{name}.weight"), shape)
            };
            blocks.push(Block {
                input_norm: get("input_layernorm", &[HIDDEN])?,
                query: get("self_attn.q_proj", &[query_width, HIDDEN])?,
                key: get("self_attn.k_proj", &[kv_width, HIDDEN])?,
                value: get("self_attn.v_proj", &[kv_width, HIDDEN])?,
                output: get("self_attn.o_proj", &[HIDDEN, query_width])?,
                post_norm: get("post_attention_layernorm", &[HIDDEN])?,
                gate: get("mlp.gate_proj", &[FFN, HIDDEN])?,
                up: get("mlp.up_proj", &[FFN, HIDDEN])?,
                down: get("mlp.down_proj", &[HIDDEN, FFN])?,
            });
        }
        Ok(Self {
            embedding,
            blocks,
            final_norm: parameter("model.norm.weight", &[HIDDEN])?,
            rotary: Arc::new(RotaryTable::new()),
        })
    }

    /// Random weights, and their names in the order in which they were drawn. The projections that
    /// write to the residual stream start smaller, by the square root of their number.
    fn initialise(rng: &mut ChaCha8Rng) -> Result<(Self, Vec<(String, Var)>)> {
        let mut parameters = Vec::new();
        let model = Self::build(|name, shape| {
            let count = shape.iter().product::<usize>();
            let data = if shape.len() == 1 {
                vec![1f32; count]
            } else {
                let writes_residual = name.contains("o_proj") || name.contains("down_proj");
                let scale = if writes_residual { 1.0 / (2.0 * LAYERS as f32).sqrt() } else { 1.0 };
                let normal = Normal::new(0.0, INIT_STD as f32 * scale)?;
                (0..count).map(|_| normal.sample(rng)).collect()
            };
            let var = Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu)?)?;
            parameters.push((name.to_owned(), var.clone()));
            Ok(var)
        })?;
        Ok((model, parameters))
    }

    /// Reads `model.safetensors` of a directory, in any float type.
    fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .with_context(|| format!("cannot load {}", path.display()))?;
        Self::build(|name, shape| {
            let tensor = tensors
                .get(name)
                .with_context(|| format!("{} has no tensor {name}", path.display()))?;
            ensure!(tensor.dims() == shape, "{name} has shape {:?}", tensor.dims());
            Ok(Var::from_tensor(&tensor.to_dtype(DType::F32)?)?)
        })
    }

    fn attention(&self, block: &Block, x: &Tensor, length: usize) -> CandleResult<Tensor> {
        let batch = x.dim(0)? / length;
        let group = HEADS / KV_HEADS;
        let rotary = || Rotary(self.rotary.clone());
        // Query heads that share a key head are laid out one after the other, as extra rows of one
        // product; the position of a row is then its index modulo `length`.
        let query = linear(x, &block.query)?
            .reshape((batch, length, KV_HEADS, group, HEAD_DIM))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .apply_op1(rotary())?
            .reshape((batch * KV_HEADS, group * length, HEAD_DIM))?;
        let split = |projected: Tensor| {
            projected.reshape((batch, length, KV_HEADS, HEAD_DIM))?.transpose(1, 2)?.contiguous()
        };
        let shape = (batch * KV_HEADS, length, HEAD_DIM);
        let key = split(linear(x, &block.key)?)?.apply_op1(rotary())?.reshape(shape)?;
        let value = split(linear(x, &block.value)?)?.reshape(shape)?;
        let softmax = CausalSoftmax { scale: 1.0 / (HEAD_DIM as f32).sqrt() };
        let mixed = query.matmul(&key.t()?)?.apply_op1(softmax)?.matmul(&value)?;
        let mixed = mixed
            .reshape((batch, KV_HEADS, group, length, HEAD_DIM))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((batch * length, HEADS * HEAD_DIM))?;
        linear(&mixed, &block.output)
    }

    /// Logits, one row per token, of sequences of `length` tokens laid end to end.
    fn forward(&self, ids: &[u32], length: usize) -> CandleResult<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?;
        for block in &self.blocks {
            let normed = x.apply_op2(&block.input_norm, RmsNorm)?;
            x = (&x + self.attention(block, &normed, length)?)?;
            let normed = x.apply_op2(&block.post_norm, RmsNorm)?;
            let gated =
                linear(&normed, &block.gate)?.apply_op2(&linear(&normed, &block.up)?, SwiGlu)?;
            x = (&x + linear(&gated, &block.down)?)?;
        }
        let x = x.apply_op2(&self.final_norm, RmsNorm)?;
        linear(&x, &self.embedding)
    }

    /// Negative log-likelihood of every target, in nats.
    fn losses(&self, inputs: &[u32], targets: Vec<u32>, length: usize) -> CandleResult<Tensor> {
        let targets = Arc::new(targets);
        self.forward(inputs, length)?.apply_op1(CrossEntropy { targets })
    }
}

// ---------------------------------------------------------------------------------------------
// Training
// ---------------------------------------------------------------------------------------------

/// AdamW with its moments in plain sight, so that a checkpoint can hold them (candle-nn's keeps them
/// private). Vectors, the norm weights, are not decayed.
struct AdamW {
    parameters: Vec<(String, Var)>,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
    step: usize,
}

impl AdamW {
    fn new(parameters: Vec<(String, Var)>) -> Self {
        let zeros = || parameters.iter().map(|(_, var)| vec![0f32; var.elem_count()]).collect();
        Self { first: zeros(), second: zeros(), step: 0, parameters }
    }

    fn step(&mut self, grads: &[Vec<f32>], learning_rate: f64) -> Result<()> {
        self.step += 1;
        let correction1 = 1.0 - BETA1.powi(self.step as i32);
        let correction2 = 1.0 - BETA2.powi(self.step as i32);
        let step_size = (learning_rate / correction1) as f32;
        let root_scale = (1.0 / correction2.sqrt()) as f32;
        let (beta1, beta2) = (BETA1 as f32, BETA2 as f32);
        for (index, (_, var)) in self.parameters.iter().enumerate() {
            let decay = if var.rank() > 1 { WEIGHT_DECAY } else { 0.0 };
            let keep = (1.0 - learning_rate * decay) as f32;
            let mut values = to_vec(var)?;
            let moments = self.first[index].iter_mut().zip(&mut self.second[index]);
            for ((value, (m, v)), &g) in values.iter_mut().zip(moments).zip(&grads[index]) {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *value = *value * keep - step_size * *m / (v.sqrt() * root_scale + ADAM_EPS as f32);
            }
            var.set(&from_vec(values, var)?)?;
        }
        Ok(())
    }

    /// Writes weights, moments and the step count; the file appears whole or not at all.
    fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = HashMap::new();
        for (index, (name, var)) in self.parameters.iter().enumerate() {
            tensors.insert(name.clone(), var.as_tensor().clone());
            let moment = |data: &Vec<f32>| from_vec(data.clone(), var);
            tensors.insert(format!("first.{name}"), moment(&self.first[index])?);
            tensors.insert(format!("second.{name}"), moment(&self.second[index])?);
        }
        let step = Tensor::new(&[self.step as u32], &Device::Cpu)?;
        tensors.insert("step".to_owned(), step);
        let partial = path.with_extension("partial");
        candle_core::safetensors::save(&tensors, &partial)?;
        fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn restore(&mut self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("no checkpoint at {}", path.display()))?;
        let get =
            |name: &str| tensors.get(name).with_context(|| format!("the checkpoint has no {name}"));
        for (index, (name, var)) in self.parameters.iter().enumerate() {
            var.set(get(name)?)?;
            self.first[index] = to_vec(get(&format!("first.{name}"))?)?;
            self.second[index] = to_vec(get(&format!("second.{name}"))?)?;
        }
        self.step = get("step")?.to_vec1::<u32>()?[0] as usize;
        Ok(())
    }
}

/// Linear warm-up, then a cosine down to [`FINAL_LEARNING_RATE`] of the peak.
fn learning_rate(step: usize) -> f64 {
    if step < WARM_UP_STEPS {
        return PEAK_LEARNING_RATE * (step + 1) as f64 / WARM_UP_STEPS as f64;
    }
    let progress = (step - WARM_UP_STEPS) as f64 / (SCHEDULE_STEPS - WARM_UP_STEPS) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    PEAK_LEARNING_RATE * (FINAL_LEARNING_RATE + (1.0 - FINAL_LEARNING_RATE) * cosine)
}

/// Mean loss and gradients of one step. Shards run in parallel and are summed in a fixed order.
fn gradients(
    model: &Model,
    parameters: &[(String, Var)],
    corpus: &Corpus,
    step: usize,
) -> Result<(f64, Vec<Vec<f32>>)> {
    let shards = (0..SHARDS_PER_STEP)
        .into_par_iter()
        .map(|shard| {
            // A stream per shard of every step makes a resumed run draw what the whole run draws.
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            rng.set_stream((1 + step * SHARDS_PER_STEP + shard) as u64);
            let (inputs, targets) = corpus.shard(&mut rng);
            let loss = model.losses(&inputs, targets, CONTEXT)?.mean_all()?;
            let store = loss.backward()?;
            let grads = parameters
                .iter()
                .map(|(name, var)| {
                    let grad = store.get(var).with_context(|| format!("{name} got no gradient"))?;
                    Ok(to_vec(grad)?)
                })
                .collect::<Result<Vec<_>>>()?;
            Ok((f64::from(loss.to_scalar::<f32>()?), grads))
        })
        .collect::<Result<Vec<_>>>()?;

    let share = 1.0 / SHARDS_PER_STEP as f32;
    let mut loss = 0.0;
    let mut sum =
        parameters.iter().map(|(_, var)| vec![0f32; var.elem_count()]).collect::<Vec<_>>();
    for (shard_loss, grads) in &shards {
        loss += shard_loss / SHARDS_PER_STEP as f64;
        for (sum, grad) in sum.iter_mut().flatten().zip(grads.iter().flatten()) {
            *sum += share * grad;
        }
    }
    Ok((loss, sum))
}

/// Scales gradients down to [`CLIP_NORM`] and returns the norm they had.
fn clip(grads: &mut [Vec<f32>]) -> f64 {
    let norm = grads.iter().flatten().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    if norm > CLIP_NORM {
        let scale = (CLIP_NORM / norm) as f32;
        grads.iter_mut().flatten().for_each(|g| *g *= scale);
    }
    norm
}

fn train(args: &Args) -> Result<()> {
    for directory in [&args.out, &args.work] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let documents = read_training_documents(&args.corpus)?;
    if !args.resume {
        train_tokenizer(&documents, &args.out.join("tokenizer.json"))?;
    }
    let tokenizer = load_tokenizer(&args.out)?;
    let stream = encode_documents(&tokenizer, &documents)?;
    let bytes = documents.iter().map(String::len).sum::<usize>();
    println!(
        "{} documents, {} tokens, {:.2} bytes per token",
        documents.len(),
        stream.len(),
        bytes as f64 / stream.len() as f64
    );
    let newline = tokenizer.encode("\n", false).map_err(|e| anyhow!(e))?.get_ids()[0];
    let corpus = Corpus::new(stream, newline)?;
    let heldout = encode_documents(&tokenizer, &read_documents(&args.corpus.join("heldout.txt"))?)?;

    let (model, parameters) = Model::initialise(&mut ChaCha8Rng::seed_from_u64(SEED))?;
    let mut optimiser = AdamW::new(parameters);
    let checkpoint = args.work.join("checkpoint.safetensors");
    if args.resume {
        optimiser.restore(&checkpoint)?;
        println!("going on from step {}", optimiser.step);
    }
    let count = optimiser.parameters.iter().map(|(_, var)| var.elem_count()).sum::<usize>();
    let tokens_per_step = SHARDS_PER_STEP * SHARD * CONTEXT;
    println!("{count} parameters; {} steps of {tokens_per_step} tokens", args.steps);

    let started = Instant::now();
    let first_step = optimiser.step;
    let mut recent = Vec::with_capacity(LOG_EVERY);
    while optimiser.step < args.steps {
        let step = optimiser.step;
        let (loss, mut grads) = gradients(&model, &optimiser.parameters, &corpus, step)?;
        ensure!(loss.is_finite(), "the loss is no longer finite at step {step}");
        let norm = clip(&mut grads);
        let rate = learning_rate(step);
        optimiser.step(&grads, rate)?;
        recent.push(loss);
        let done = optimiser.step;
        if done.is_multiple_of(LOG_EVERY) {
            let seconds = started.elapsed().as_secs_f64();
            println!(
                "step {done:5}  loss {:.4}  gradient norm {norm:.3}  rate {rate:.2e}  {:.0} tokens/s  {:.1} min",
                recent.iter().sum::<f64>() / recent.len() as f64,
                ((done - first_step) * tokens_per_step) as f64 / seconds,
                seconds / 60.0
            );
            recent.clear();
        }
        if done.is_multiple_of(CHECKPOINT_EVERY) || done == args.steps {
            optimiser.save(&checkpoint)?;
            let total = window_losses(&model, &heldout)?.iter().sum::<f64>();
            let scored = heldout.len() / CONTEXT * (CONTEXT - 1);
            println!("step {done:5}  held-out perplexity {:.3}", (total / scored as f64).exp());
        }
    }
    println!("trained in {:.1} minutes", started.elapsed().as_secs_f64() / 60.0);
    write_model(&args.out, &optimiser.parameters)
}

// ---------------------------------------------------------------------------------------------
// Output
// ---------------------------------------------------------------------------------------------

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the weights in half precision and the configuration files next to them.
fn write_model(directory: &Path, parameters: &[(String, Var)]) -> Result<()> {
    let tensors = parameters
        .iter()
        .map(|(name, var)| Ok((name.as_str(), var.to_dtype(DType::F16)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = directory.join("model.safetensors");
    safetensors::serialize_to_file(tensors, Some(metadata), &path)
        .with_context(|| format!("cannot write {}", path.display()))?;

    write_json(
        &directory.join("config.json"),
        &json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": INIT_STD,
            "intermediate_size": FFN,
            "max_position_embeddings": CONTEXT,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
            "pretraining_tp": 1,
            "rms_norm_eps": NORM_EPS,
            "rope_scaling": null,
            "rope_theta": ROPE_THETA,
            "tie_word_embeddings": true,
            "torch_dtype": "float16",
            "use_cache": true,
            "vocab_size": VOCAB,
        }),
    )?;
    write_json(
        &directory.join("generation_config.json"),
        &json!({
            "bos_token_id": END_OF_TEXT_ID,
            "eos_token_id": END_OF_TEXT_ID,
            "do_sample": true,
            "temperature": 0.7,
            "top_k": SAMPLE_TOP_K,
        }),
    )?;
    write_json(
        &directory.join("tokenizer_config.json"),
        &json!({
            "add_bos_token": true,
            "add_eos_token": false,
            "added_tokens_decoder": {
                END_OF_TEXT_ID.to_string(): {
                    "content": END_OF_TEXT,
                    "lstrip": false,
                    "normalized": false,
                    "rstrip": false,
                    "single_word": false,
                    "special": true,
                },
            },
            "bos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": false,
            "eos_token": END_OF_TEXT,
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }),
    )
}

/// Summed loss of each whole window of [`CONTEXT`] tokens; the first token of a window is not scored.
fn window_losses(model: &Model, stream: &[u32]) -> Result<Vec<f64>> {
    let windows = stream.chunks_exact(CONTEXT).collect::<Vec<_>>();
    windows
        .par_iter()
        .map(|window| {
            let losses = model.losses(&window[..CONTEXT - 1], window[1..].to_vec(), CONTEXT - 1)?;
            Ok(to_vec(&losses)?.into_iter().map(f64::from).sum())
        })
        .collect()
}

/// Measures the model on disk on the held-out text, next to a unigram model, and samples it.
fn report(args: &Args) -> Result<()> {
    let tokenizer = load_tokenizer(&args.out)?;
    let model = Model::read(&args.out)?;
    let training = encode_documents(&tokenizer, &read_training_documents(&args.corpus)?)?;
    let heldout = encode_documents(&tokenizer, &read_documents(&args.corpus.join("heldout.txt"))?)?;

    // The unigram model: how often a token is in the training text, plus one.
    let mut counts = vec![1u64; VOCAB];
    for &token in &training {
        counts[token as usize] += 1;
    }
    let total = counts.iter().sum::<u64>() as f64;
    let scored =
        heldout.chunks_exact(CONTEXT).flat_map(|window| &window[1..]).copied().collect::<Vec<_>>();
    let unigram =
        scored.iter().map(|&token| -(counts[token as usize] as f64 / total).ln()).sum::<f64>();
    let bytes = tokenizer.decode(&scored, true).map_err(|e| anyhow!(e))?.len() as f64;
    let nats = window_losses(&model, &heldout)?.iter().sum::<f64>();
    let row = |name: &str, nats: f64| {
        println!(
            "{name:<10} perplexity per token {:8.3}   bits per byte {:.4}",
            (nats / scored.len() as f64).exp(),
            nats / std::f64::consts::LN_2 / bytes
        );
    };
    println!(
        "held-out text: {} tokens scored in windows of {CONTEXT}, {bytes} bytes",
        scored.len()
    );
    row("unigram", unigram);
    row("model", nats);

    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    for (prompt, temperature) in SAMPLES {
        let text = continue_text(&model, &tokenizer, prompt, temperature, &mut rng)?;
        println!("\n[temperature {temperature}] {text}");
    }
    Ok(())
}

/// Continues `prompt` by [`SAMPLE_TOKENS`] tokens or up to the end of text.
fn continue_text(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    temperature: f32,
    rng: &mut ChaCha8Rng,
) -> Result<String> {
    let encoding = tokenizer.encode(prompt, true).map_err(|e| anyhow!(e))?;
    let mut ids = encoding.get_ids().to_vec();
    for _ in 0..SAMPLE_TOKENS {
        let window = &ids[ids.len().saturating_sub(CONTEXT)..];
        let logits = model.forward(window, window.len())?;
        let last = logits.get(window.len() - 1)?.to_vec1::<f32>()?;
        let mut order = (0..VOCAB).collect::<Vec<_>>();
        order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
        let token = if temperature > 0.0 {
            order.truncate(SAMPLE_TOP_K);
            let mut chances =
                order.iter().map(|&token| last[token] / temperature).collect::<Vec<_>>();
            CrossEntropy::softmax(&mut chances);
            let mut left = rng.random::<f32>();
            let drawn = chances.iter().position(|chance| {
                left -= chance;
                left < 0.0
            });
            order[drawn.unwrap_or(0)]
        } else {
            order[0]
        };
        if token as u32 == END_OF_TEXT_ID {
            break;
        }
        ids.push(token as u32);
    }
    tokenizer.decode(&ids, true).map_err(|e| anyhow!(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[usize], rng: &mut ChaCha8Rng) -> Result<Var> {
        let data =
            (0..shape.iter().product()).map(|_| rng.random_range(-1f32..1.0)).collect::<Vec<_>>();
        Ok(Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu)?)?)
    }

    /// Compares the gradient of `f`, weighted at random so that no direction cancels, with central
    /// differences at a spread of elements of `x`.
    fn check(x: &Var, f: impl Fn() -> CandleResult<Tensor>, rng: &mut ChaCha8Rng) -> Result<()> {
        let weights = random(f()?.dims(), rng)?;
        let value = || -> Result<f32> { Ok((f()? * weights.as_tensor())?.sum_all()?.to_scalar()?) };
        let store = (f()? * weights.as_tensor())?.sum_all()?.backward()?;
        let grad = to_vec(store.get(x).context("no gradient")?)?;
        let original = to_vec(x)?;
        let step = 1e-2;
        for i in (0..original.len()).step_by(original.len().div_ceil(40)) {
            let at = |delta: f32| -> Result<f32> {
                let mut moved = original.clone();
                moved[i] += delta;
                x.set(&from_vec(moved, x)?)?;
                value()
            };
            let expected = (at(step)? - at(-step)?) / (2.0 * step);
            assert!(
                (grad[i] - expected).abs() < 5e-3 + 2e-2 * expected.abs(),
                "element {i}: {} instead of {expected}",
                grad[i]
            );
        }
        x.set(&from_vec(original, x)?)?;
        Ok(())
    }

    #[test]
    fn backward_passes_match_finite_differences() -> Result<()> {
        let rng = &mut ChaCha8Rng::seed_from_u64(7);
        let x = random(&[6, 16], rng)?;
        let weight = random(&[16], rng)?;
        check(&x, || x.apply_op2(&weight, RmsNorm), rng)?;
        check(&weight, || x.apply_op2(&weight, RmsNorm), rng)?;

        let up = random(&[6, 16], rng)?;
        check(&x, || x.apply_op2(&up, SwiGlu), rng)?;
        check(&up, || x.apply_op2(&up, SwiGlu), rng)?;

        let heads = random(&[2, 5, HEAD_DIM], rng)?;
        let table = Arc::new(RotaryTable::new());
        check(&heads, || heads.apply_op1(Rotary(table.clone())), rng)?;

        let scores = random(&[2, 10, 5], rng)?;
        let softmax = || scores.apply_op1(CausalSoftmax { scale: 0.7 });
        check(&scores, softmax, rng)?;

        let logits = random(&[3, VOCAB], rng)?;
        let targets = Arc::new(vec![0, 5, 2047]);
        let loss = || logits.apply_op1(CrossEntropy { targets: targets.clone() });
        check(&logits, loss, rng)
    }

    #[test]
    fn attention_sees_no_later_token() -> Result<()> {
        let (model, _) = Model::initialise(&mut ChaCha8Rng::seed_from_u64(1))?;
        let short = model.forward(&[3, 1, 4, 1], 4)?;
        let long = model.forward(&[3, 1, 4, 1, 5, 9], 6)?.narrow(0, 0, 4)?;
        let difference = (short - long)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "{difference}");
        Ok(())
    }

    #[test]
    fn the_model_on_disk_agrees_with_another_llama() -> Result<()> {
        use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};

        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
        let config =
            serde_json::from_slice::<LlamaConfig>(&fs::read(directory.join("config.json"))?)?
                .into_config(false);
        let tensors =
            candle_core::safetensors::load(directory.join("model.safetensors"), &Device::Cpu)?;
        let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let other = Llama::load(builder, &config)?;
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu)?;

        let tokenizer = load_tokenizer(&directory)?;
        let encoding =
            tokenizer.encode("The state of the Union is strong.", true).map_err(|e| anyhow!(e))?;
        let ids = encoding.get_ids();
        assert_eq!(ids[0], END_OF_TEXT_ID);
        let expected =
            other.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, 0, &mut cache)?;
        let logits = Model::read(&directory)?.forward(ids, ids.len())?;
        let difference = (logits.narrow(0, ids.len() - 1, 1)? - expected)?
            .abs()?
            .max_all()?
            .to_scalar::<f32>()?;
        assert!(difference < 1e-3, "{difference}");
        Ok(())
    }
}
