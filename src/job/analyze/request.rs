//! What an analysis is asked for.

use std::path::PathBuf;

use crate::files::imatrix::Method;
use crate::job::checkpoints::Checkpoints;
use crate::text::TextOptions;

/// Form of the written importance matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixFormat {
    /// GGUF, as llama.cpp writes it since 2025.
    Gguf,
    /// The format before that.
    Dat,
}

impl MatrixFormat {
    /// `gguf` or `dat`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Dat => "dat",
        }
    }
}

/// Which parts of the text are read. Either way a sample is a chunk of tokens that begins with the
/// tokenizer's leading token, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Samples {
    /// That many chunks from everywhere in the text.
    Spread(usize),
    /// The consecutive chunks that `llama-imatrix` cuts: the first so many, or all.
    First(Option<usize>),
}

/// An analysis of a model.
#[derive(Debug, Clone)]
pub struct AnalyzeRequest {
    /// The importance matrix to write.
    pub output: PathBuf,
    /// Its form.
    pub format: MatrixFormat,
    /// What is measured.
    pub method: Method,
    /// Where text comes from; `calibration` is the user's file.
    pub text: TextOptions,
    /// Which parts of it are read.
    pub samples: Samples,
    /// Tokens of a sample; the model's context limits the default of 512.
    pub chunk_size: Option<usize>,
    /// Seed of the places that [`Samples::Spread`] takes.
    pub seed: u64,
    /// Also what goes into the output matrix.
    pub process_output: bool,
    /// Files of earlier analyses whose sums are added.
    pub merge: Vec<PathBuf>,
    /// Share of the model's parameters to put into the super-weight mask, if one is wanted.
    pub coverage: Option<f64>,
    /// Picture to draw (`.svg` or `.html`).
    pub plot: Option<PathBuf>,
    /// Where finished work is kept.
    pub checkpoints: Checkpoints,
    /// Folder where finished matrices are kept for the next analysis of the same kind.
    pub cache: Option<PathBuf>,
    /// The command that goes on after an interruption.
    pub resume_command: Option<String>,
}
