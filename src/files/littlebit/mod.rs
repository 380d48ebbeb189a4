//! The `.littlebit` file, version 1: a model as binary factors, with everything that is needed to
//! run it, in one file that can be mapped.
//!
//! `docs/littlebit-format.md` describes the format byte for byte. In short: a preamble of 64 bytes
//! (magic, version, place and SHA-256 of the index), then sections at multiples of 64 with zeros
//! between them, then the index: a JSON document that names every section and its SHA-256.
//!
//! | module | role |
//! |---|---|
//! | [`preamble`] | the first 64 bytes |
//! | [`index`] | the JSON document, as records |
//! | [`contents`] | the index checked and turned into tensors that refer to sections |
//! | [`layout`] | what a file will contain, and from that its exact size, before anything is computed |
//! | [`writer`] | sections one after the other into any `Write + Seek` |
//! | [`read`] | opening and checking |
//! | [`metadata_export`] | ranks and scales apart from the bits |
//!
//! Nothing in a file depends on when, where or how fast it was made: equal inputs give equal bytes.

pub(crate) mod contents;
pub(crate) mod index;
pub(crate) mod layout;
pub mod metadata_export;
pub(crate) mod preamble;
pub(crate) mod read;
pub(crate) mod writer;

pub use contents::{Contents, Entry, FactorizedEntry, PathEntry, StoredEntry};
pub use index::{About, Calibration, Index, Setting, Settings, Source};
pub use layout::{Description, Layout, PathPlan, TensorKind, TensorPlan, TextFile};
pub use read::LittleBitFile;
pub use writer::{SectionWriter, Writer};

/// The version that this module writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Sections and the index begin at multiples of this many bytes: a cache line, and at least the
/// alignment of every vector register.
pub const ALIGNMENT: u64 = 64;

/// Longest index that is read or written, bytes. A model of 46 000 linear layers needs 35 MB.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Longest text file (`tokenizer.json`, …) that is read or written, bytes.
pub const MAX_TEXT_BYTES: u64 = 256 << 20;

/// Most paths of a factorized tensor: the factorization and one that compensates its residual.
pub const MAX_PATHS: usize = 2;

/// Name of the text file with the model's shape; every `.littlebit` file has it.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the text file with the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the text file with special tokens and the chat template.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Setting with the recipe of recovery, as the text of a recipe file.
pub const RECIPE: &str = "recipe";
/// Setting with the name of the effort that the recipe started from.
pub const EFFORT: &str = "effort";

/// `n` rounded up to [`ALIGNMENT`], or `None` when that overflows.
fn aligned(n: u64) -> Option<u64> {
    n.checked_next_multiple_of(ALIGNMENT)
}
