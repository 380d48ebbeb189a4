//! A `.littlebit` file inside of a GGUF file, and back without the loss of a bit.
//!
//! Stock GGUF tools can list and dump it: every sign matrix is a tensor of type `Q1_0` with a block
//! scale of 1, so that it decodes to ±1, scales are `F16`, and what was stored outside of the
//! factorization keeps its type. The architecture has a name of its own (`littlebit-llama`), so that
//! no runtime takes the factors for weights. Index and text files of the `.littlebit` file are
//! metadata. `docs/littlebit-format.md` describes it.

mod read;
mod signs;
mod write;

pub(crate) use read::{is_gguf_ext, open, open_either};
pub(crate) use write::write;

/// What stands before the name of the architecture.
const ARCHITECTURE: &str = "littlebit-";

/// Version of this layout (u32).
const VERSION_KEY: &str = "littlebit.version";
const VERSION: u32 = 1;

/// The index of the `.littlebit` file, byte for byte (string).
const INDEX_KEY: &str = "littlebit.index";

/// Before the name of a text file (string).
const FILE_KEY: &str = "littlebit.file.";

/// Name of a tensor that is stored as values: that of GGUF where there is one. Rows stay in the
/// order of Hugging Face.
fn tensor_name(name: &str) -> String {
    crate::arch::names::to_gguf(name).unwrap_or_else(|| name.to_owned())
}

/// Name of an array of path `path` of a factorized tensor: `blk.0.attn_q.path0.left`.
fn factor_name(name: &str, path: usize, part: &str) -> String {
    let name = tensor_name(name);
    format!("{}.path{path}.{part}", name.strip_suffix(".weight").unwrap_or(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_what_ggml_keeps() {
        let longest = factor_name("model.layers.999.self_attn.o_proj.weight", 1, "column_scale");
        assert_eq!(longest, "blk.999.attn_output.path1.column_scale");
        assert!(longest.len() < 64);
        assert_eq!(tensor_name("model.embed_tokens.weight"), "token_embd.weight");
        assert_eq!(tensor_name("other.weight"), "other.weight");
    }
}
