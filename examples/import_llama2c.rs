//! Converts a checkpoint of llama2.c to a Hugging Face directory.
//!
//! ```text
//! cargo run --release --example import_llama2c -- MODEL.bin TOKENIZER_DIRECTORY OUT_DIRECTORY
//! ```
//!
//! `TOKENIZER_DIRECTORY` has the `tokenizer.json` and `tokenizer_config.json` that the model was
//! trained with; they are copied. `scripts/fetch-stories15m.sh` fetches a model with its tokenizer
//! and runs this.
//!
//! The checkpoint (llama2.c's version 0) is little-endian: a header of seven i32 (`dim`,
//! `hidden_dim`, `n_layers`, `n_heads`, `n_kv_heads`, `vocab_size`, `seq_len`), then f32 tensors
//! without names, each kind for all layers before the next kind. Two tables of the rotary
//! embedding lie between them and are not needed. A negative `vocab_size` says that the head is a
//! tensor of its own, the last one; otherwise it is the embedding.
//!
//! llama2.c rotates the pairs `(x[2i], x[2i + 1])` of a head, Hugging Face's Llama the pairs
//! `(x[i], x[i + head_dim / 2])`. The rows of the query and key projections are reordered so that
//! each pair keeps its angle; scores, which are sums over a head, stay the same.

#![allow(clippy::print_stdout, reason = "an example reports to its terminal")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Bytes of the header.
const HEADER: usize = 28;
/// Bytes of an element.
const F32: usize = 4;
/// What `run.c` computes with; the checkpoint does not say it.
const NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10_000.0;
/// Ids in the tokenizer of Llama 2, which llama2.c's models have, also with smaller vocabularies.
const BOS: u32 = 1;
const EOS: u32 = 2;

#[derive(Parser)]
#[command(about = "Converts a checkpoint of llama2.c to a Hugging Face directory")]
struct Args {
    /// The checkpoint (`stories15M.bin`)
    checkpoint: PathBuf,
    /// Directory with tokenizer.json and tokenizer_config.json
    tokenizer: PathBuf,
    /// Directory the model is written to
    out: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bytes = read(&args.checkpoint)?;
    let model = Checkpoint::parse(&bytes)
        .with_context(|| format!("{} is no checkpoint of llama2.c", args.checkpoint.display()))?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let text = read(&args.tokenizer.join(name))?;
        write(&args.out.join(name), &text)?;
    }
    write(&args.out.join("model.safetensors"), &model.safetensors()?)?;
    // Last: a directory without it is no model.
    let config = serde_json::to_vec_pretty(&model.header.config())?;
    write(&args.out.join("config.json"), &config)?;
    println!("{}: {} tensors", args.out.display(), model.tensors.len());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Dimensions of a model.
#[derive(Debug, Clone, Copy)]
struct Header {
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    context: usize,
    /// The head is the embedding.
    tied: bool,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() >= HEADER, "it has {} bytes", bytes.len());
        let field = |index: usize| {
            let at = index * 4;
            i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let [hidden, ffn, layers, heads, kv_heads] = [0, 1, 2, 3, 4].map(field);
        let (vocab, context) = (field(5), field(6));
        let plausible = |value: i32| (1..=1 << 24).contains(&value);
        ensure!(
            [hidden, ffn, layers, heads, kv_heads, context].into_iter().all(plausible)
                && vocab != i32::MIN
                && plausible(vocab.abs())
                && hidden % heads == 0
                && hidden / heads % 2 == 0
                && heads % kv_heads == 0,
            "the header is {:?}",
            [hidden, ffn, layers, heads, kv_heads, vocab, context]
        );
        let size = |value: i32| value.unsigned_abs() as usize;
        Ok(Self {
            hidden: size(hidden),
            ffn: size(ffn),
            layers: size(layers),
            heads: size(heads),
            kv_heads: size(kv_heads),
            vocab: size(vocab),
            context: size(context),
            tied: vocab > 0,
        })
    }

    fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// `config.json`.
    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "hidden_act": "silu",
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROPE_THETA,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": self.tied,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "torch_dtype": "float32",
        })
    }
}

/// The parts of a checkpoint in their order: what they are called in a block of a Hugging Face
/// directory, and whether their rows are to be reordered.
const BLOCK_PARTS: [(&str, bool); 9] = [
    ("input_layernorm", false),
    ("self_attn.q_proj", true),
    ("self_attn.k_proj", true),
    ("self_attn.v_proj", false),
    ("self_attn.o_proj", false),
    ("post_attention_layernorm", false),
    ("mlp.gate_proj", false),
    ("mlp.down_proj", false),
    ("mlp.up_proj", false),
];

/// A tensor with its name, shape and little-endian f32 elements.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

struct Checkpoint {
    header: Header,
    tensors: Vec<Tensor>,
}

impl Checkpoint {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let header = Header::parse(bytes)?;
        let Header { hidden, ffn, vocab, .. } = header;
        let key_value = header.kv_heads * header.head_dim();
        let mut rest = &bytes[HEADER..];
        let mut tensors = Vec::new();
        let mut take = |name: String, shape: &[usize], rotated: bool| -> Result<()> {
            let size = shape.iter().product::<usize>() * F32;
            let found = rest.len();
            let (part, behind) = rest
                .split_at_checked(size)
                .with_context(|| format!("{found} bytes are left for {name}, {size} are needed"))?;
            rest = behind;
            let bytes =
                if rotated { halves(part, header.head_dim(), hidden * F32) } else { part.to_vec() };
            tensors.push(Tensor { name, shape: shape.to_vec(), bytes });
            Ok(())
        };
        take("model.embed_tokens.weight".to_owned(), &[vocab, hidden], false)?;
        for (part, rotated) in BLOCK_PARTS {
            let shape: &[usize] = match part {
                "self_attn.q_proj" | "self_attn.o_proj" => &[hidden, hidden],
                "self_attn.k_proj" | "self_attn.v_proj" => &[key_value, hidden],
                "mlp.gate_proj" | "mlp.up_proj" => &[ffn, hidden],
                "mlp.down_proj" => &[hidden, ffn],
                _ => &[hidden],
            };
            for layer in 0..header.layers {
                take(format!("model.layers.{layer}.{part}.weight"), shape, rotated)?;
            }
        }
        take("model.norm.weight".to_owned(), &[hidden], false)?;
        // Cosines and sines, `[context, head_dim / 2]` each.
        let angles = header.context * header.head_dim() * F32;
        take("rotary tables".to_owned(), &[angles / F32], false)?;
        if !header.tied {
            take("lm_head.weight".to_owned(), &[vocab, hidden], false)?;
        }
        ensure!(rest.is_empty(), "{} bytes follow the last tensor", rest.len());
        tensors.retain(|tensor| tensor.name != "rotary tables");
        Ok(Self { header, tensors })
    }

    /// The file `model.safetensors`.
    fn safetensors(&self) -> Result<Vec<u8>> {
        let views = self
            .tensors
            .iter()
            .map(|tensor| {
                let view = TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.bytes)?;
                Ok((tensor.name.as_str(), view))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }
}

/// Reorders the rows (of `row` bytes) of every head: first the even ones, then the odd ones.
fn halves(matrix: &[u8], head_dim: usize, row: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(matrix.len());
    for head in matrix.chunks_exact(head_dim * row) {
        for first in [0, 1] {
            head.chunks_exact(row).skip(first).step_by(2).for_each(|row| out.extend(row));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMENSIONS: [i32; 7] = [8, 12, 2, 2, 1, 5, 3];

    /// A checkpoint whose element `i` is `i`.
    fn checkpoint(dimensions: [i32; 7]) -> Vec<u8> {
        let [hidden, ffn, layers, heads, kv_heads, vocab, context] =
            dimensions.map(|d| d.unsigned_abs() as usize);
        let key_value = hidden / heads * kv_heads;
        let block = 2 * hidden + 2 * hidden * hidden + 2 * key_value * hidden + 3 * hidden * ffn;
        let head = if dimensions[5] < 0 { vocab * hidden } else { 0 };
        let elements = vocab * hidden + layers * block + hidden + context * (hidden / heads) + head;
        let header = dimensions.iter().flat_map(|d| d.to_le_bytes());
        header.chain((0..elements).flat_map(|i| (i as f32).to_le_bytes())).collect()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn tensor(model: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
        let tensor = model.tensors.iter().find(|tensor| tensor.name == name).unwrap();
        (tensor.shape.clone(), floats(&tensor.bytes))
    }

    #[test]
    fn tensors_begin_where_the_layout_says() {
        let model = Checkpoint::parse(&checkpoint(DIMENSIONS)).unwrap();
        // Elements before a tensor, added up by hand from the order in llama2.c's README.
        for (name, shape, first) in [
            ("model.embed_tokens.weight", vec![5, 8], 0),
            ("model.layers.1.input_layernorm.weight", vec![8], 48),
            ("model.layers.0.self_attn.q_proj.weight", vec![8, 8], 56),
            ("model.layers.0.self_attn.k_proj.weight", vec![4, 8], 184),
            ("model.layers.1.self_attn.v_proj.weight", vec![4, 8], 280),
            ("model.layers.0.self_attn.o_proj.weight", vec![8, 8], 312),
            ("model.layers.0.post_attention_layernorm.weight", vec![8], 440),
            ("model.layers.0.mlp.gate_proj.weight", vec![12, 8], 456),
            ("model.layers.0.mlp.down_proj.weight", vec![8, 12], 648),
            ("model.layers.0.mlp.up_proj.weight", vec![12, 8], 840),
            ("model.norm.weight", vec![8], 1032),
        ] {
            let (found, data) = tensor(&model, name);
            assert_eq!((found, data[0]), (shape, first as f32), "{name}");
        }
        assert_eq!(model.tensors.len(), 2 + 2 * 9);
    }

    #[test]
    fn an_own_head_comes_last() {
        let mut dimensions = DIMENSIONS;
        dimensions[5] = -5;
        let model = Checkpoint::parse(&checkpoint(dimensions)).unwrap();
        let (shape, data) = tensor(&model, "lm_head.weight");
        assert_eq!((shape, data[0]), (vec![5, 8], (1040 + 12) as f32));
        assert_eq!(model.header.config()["tie_word_embeddings"], false);
    }

    #[test]
    fn attention_scores_stay_the_same() {
        const HEAD: usize = 6;
        let angle = |i: usize, position: f32| position * 10_000f32.powf(-2.0 * i as f32 / 6.0);
        let turn = |x: &mut [f32], a: usize, b: usize, angle: f32| {
            let (sin, cos) = angle.sin_cos();
            (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
        };
        // As run.c does it.
        let interleaved = |x: &mut [f32], position: f32| {
            for head in x.chunks_exact_mut(HEAD) {
                (0..HEAD / 2).for_each(|i| turn(head, 2 * i, 2 * i + 1, angle(i, position)));
            }
        };
        // As modeling_llama.py does it.
        let half_split = |x: &mut [f32], position: f32| {
            for head in x.chunks_exact_mut(HEAD) {
                (0..HEAD / 2).for_each(|i| turn(head, i, i + HEAD / 2, angle(i, position)));
            }
        };
        let query: Vec<f32> = (0..2 * HEAD).map(|i| (i as f32 * 1.7).sin()).collect();
        let key: Vec<f32> = (0..2 * HEAD).map(|i| (i as f32 * 0.9).cos()).collect();
        let reordered = |x: &[f32]| {
            let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
            floats(&halves(&bytes, HEAD, F32))
        };
        let score = |q: &[f32], k: &[f32]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        for head in [0..HEAD, HEAD..2 * HEAD] {
            let (mut q, mut k) = (query.clone(), key.clone());
            interleaved(&mut q, 7.0);
            interleaved(&mut k, 3.0);
            let expected = score(&q[head.clone()], &k[head.clone()]);
            let (mut q, mut k) = (reordered(&query), reordered(&key));
            half_split(&mut q, 7.0);
            half_split(&mut k, 3.0);
            let found = score(&q[head.clone()], &k[head]);
            assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let good = checkpoint(DIMENSIONS);
        let mut long = good.clone();
        long.push(0);
        for bad in [&good[..20], &good[..good.len() - 1], &long[..], &[0; 64][..]] {
            assert!(Checkpoint::parse(bad).is_err());
        }
    }
}
