//! A GGUF model that is written out byte by byte: deterministic noise in the shapes of a llama.

use std::path::Path;

/// A llama in F16, four query heads to a key/value head, embeddings shared with the output.
pub(crate) struct Handmade {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    /// Makes this tensor's first value NaN.
    pub(crate) broken: Option<&'static str>,
}

impl Handmade {
    pub(crate) fn write(&self, path: &Path) {
        let (width, inner) = (self.width, self.width * 2);
        let mut tensors = vec![
            ("output_norm.weight".to_owned(), vec![width]),
            ("token_embd.weight".to_owned(), vec![300, width]),
        ];
        for layer in 0..self.layers {
            for (name, shape) in [
                ("attn_k", vec![width / 4, width]),
                ("attn_norm", vec![width]),
                ("attn_output", vec![width, width]),
                ("attn_q", vec![width, width]),
                ("attn_v", vec![width / 4, width]),
                ("ffn_down", vec![width, inner]),
                ("ffn_gate", vec![inner, width]),
                ("ffn_norm", vec![width]),
                ("ffn_up", vec![inner, width]),
            ] {
                tensors.push((format!("blk.{layer}.{name}.weight"), shape));
            }
        }
        let mut out = b"GGUF".to_vec();
        let text = |text: &str, out: &mut Vec<u8>| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(10u64.to_le_bytes());
        for (key, value) in [("general.architecture", "llama"), ("general.name", "Handmade")] {
            text(key, &mut out);
            out.extend(8u32.to_le_bytes());
            text(value, &mut out);
        }
        for (key, value) in [
            ("llama.block_count", self.layers),
            ("llama.embedding_length", width),
            ("llama.attention.head_count", 8),
            ("llama.attention.head_count_kv", 2),
            ("llama.context_length", 128),
            ("llama.feed_forward_length", inner),
            ("llama.vocab_size", 300),
        ] {
            text(key, &mut out);
            out.extend(4u32.to_le_bytes());
            out.extend((value as u32).to_le_bytes());
        }
        text("llama.attention.layer_norm_rms_epsilon", &mut out);
        out.extend(6u32.to_le_bytes());
        out.extend(1e-5f32.to_le_bytes());
        let mut offset = 0u64;
        for (name, shape) in &tensors {
            text(name, &mut out);
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            let (kind, bytes) = if shape.len() == 1 { (0u32, 4) } else { (1, 2) };
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (shape.iter().product::<usize>() as u64 * bytes).next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1
        };
        for (name, shape) in &tensors {
            for i in 0..shape.iter().product::<usize>() {
                let mut value = noise();
                if i == 0 && self.broken == Some(name.as_str()) {
                    value = f32::NAN;
                }
                if shape.len() == 1 {
                    out.extend((1.0 + value).to_le_bytes());
                } else {
                    out.extend(half::f16::from_f32(value).to_le_bytes());
                }
            }
            out.resize(out.len().next_multiple_of(32), 0);
        }
        std::fs::write(path, out).unwrap();
    }
}
