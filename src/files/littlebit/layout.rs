//! What a file will contain, and from that alone where every byte will lie: the exact size of the
//! file is known before the first matrix is factorized.
//!
//! Only two kinds of values in the index are not known in advance: checksums, which always have
//! 64 digits, and errors, whose text has a longest form. The index is laid out for that form and
//! what remains is filled with spaces.

use super::contents::{
    Contents, Entry, FactorizedEntry, PathEntry, achieved_bits_per_weight, sign_bytes,
};
use super::index::{
    About, FileRecord, Index, Kind, PathRecord, SectionRecord, TensorRecord, WIDEST_ERROR,
};
use super::preamble::PREAMBLE_BYTES;
use super::{FORMAT_VERSION, MAX_INDEX_BYTES, aligned};
use crate::codec::StoredType;
use crate::weight::ScaleType;
use crate::{Error, Result};

/// Everything about a file except the values of its tensors.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// Where the model came from and how it was compressed.
    pub about: About,
    /// Text files to carry, `config.json` among them.
    pub files: Vec<TextFile>,
    /// Tensors, in the order in which they will be written.
    pub tensors: Vec<TensorPlan>,
}

/// A text file to carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Name, without folders.
    pub name: String,
    /// The text, kept verbatim.
    pub text: String,
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Hugging Face name (`model.layers.0.mlp.up_proj.weight`).
    pub name: String,
    /// How it will be represented.
    pub kind: TensorKind,
}

/// How a tensor will be represented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorKind {
    /// Plain or block-quantized values.
    Stored {
        /// Element type.
        dtype: StoredType,
        /// Dimensions, outermost first.
        shape: Vec<usize>,
    },
    /// Binary factors.
    Factorized {
        /// Outputs.
        out_features: usize,
        /// Inputs.
        in_features: usize,
        /// One or two paths.
        paths: Vec<PathPlan>,
    },
}

/// A path to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathPlan {
    /// Inner dimension, at most the smaller side of the weight.
    pub rank: usize,
    /// Whether there is a scale for each latent dimension.
    pub latent_scale: bool,
    /// How the scales are stored.
    pub scale_type: ScaleType,
}

/// Where every byte of a file will lie.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The index with zeros for checksums and the longest text for every error.
    pub(super) index: Index,
    /// The same, checked.
    pub(super) contents: Contents,
    index_offset: u64,
    index_length: u64,
}

impl Layout {
    /// Lays out a file. Fails on a description that no file can hold: a shape that does not fit
    /// its type, a rank above the smaller side, two tensors of one name, no `config.json`.
    pub fn new(description: &Description) -> Result<Self> {
        let impossible = |message: String| {
            Error::General(format!("cannot lay out a .littlebit file: {message}"))
        };
        let mut draft = Draft { sections: Vec::new(), end: PREAMBLE_BYTES };
        let mut files = Vec::with_capacity(description.files.len());
        for file in &description.files {
            let section = draft
                .section(Some(file.text.len() as u64))
                .ok_or_else(|| impossible(format!("{} does not fit", file.name)))?;
            files.push(FileRecord { name: file.name.clone(), section });
        }
        let mut tensors = Vec::with_capacity(description.tensors.len());
        for plan in &description.tensors {
            tensors.push(
                draft
                    .tensor(plan)
                    .ok_or_else(|| impossible(format!("{}: {:?}", plan.name, plan.kind)))?,
            );
        }
        let factorized: Vec<_> = description.tensors.iter().filter_map(planned_entry).collect();
        let index = Index {
            format: "littlebit".into(),
            format_version: FORMAT_VERSION,
            about: description.about.clone(),
            achieved_bpw: achieved_bits_per_weight(factorized.iter()),
            files,
            tensors,
            sections: draft.sections,
        };
        let index_offset = draft.end;
        let contents = Contents::check(&index, index_offset).map_err(impossible)?;
        // The longest text and the line end after it.
        let index_length = to_json(&index)?.len() as u64 + 1;
        if index_length > MAX_INDEX_BYTES {
            return Err(impossible(format!("its index would take {index_length} bytes")));
        }
        Ok(Self { index, contents, index_offset, index_length })
    }

    /// Exact size of the file, bytes.
    #[must_use]
    pub fn file_size(&self) -> u64 {
        self.index_offset + self.index_length
    }

    /// Bits per weight over all factorized tensors, scales counted; 0 without any.
    #[must_use]
    pub fn achieved_bits_per_weight(&self) -> f64 {
        self.index.achieved_bpw
    }

    /// The tensors, as they will be found in the file.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Bytes of a tensor's sections, without the zeros between them.
    #[must_use]
    pub fn tensor_bytes(&self, name: &str) -> Option<u64> {
        let length = |section: usize| self.index.sections.get(section).map(|s| s.length);
        match self.contents.tensors.get(name)? {
            Entry::Stored(entry) => length(entry.section),
            Entry::Factorized(entry) => entry
                .paths
                .iter()
                .flat_map(PathEntry::sections)
                .try_fold(0, |sum, section| Some(sum + length(section)?)),
        }
    }

    /// First byte of the index.
    pub(super) fn index_offset(&self) -> u64 {
        self.index_offset
    }

    /// Bytes of the index, padding included.
    pub(super) fn index_length(&self) -> u64 {
        self.index_length
    }
}

/// The JSON of an index.
pub(super) fn to_json(index: &Index) -> Result<Vec<u8>> {
    serde_json::to_vec(index)
        .map_err(|e| Error::General(format!("the index cannot be written as JSON: {e}")))
}

/// What [`Contents`] will say about a factorized tensor, without section numbers.
fn planned_entry(plan: &TensorPlan) -> Option<FactorizedEntry> {
    let TensorKind::Factorized { out_features, in_features, paths } = &plan.kind else {
        return None;
    };
    let paths = paths
        .iter()
        .map(|path| PathEntry {
            rank: path.rank,
            scale_type: path.scale_type,
            left: 0,
            right: 0,
            row_scale: 0,
            latent_scale: path.latent_scale.then_some(0),
            column_scale: 0,
        })
        .collect();
    Some(FactorizedEntry {
        out_features: *out_features,
        in_features: *in_features,
        paths,
        relative_error: None,
        weighted_error: None,
    })
}

/// Sections laid out so far.
struct Draft {
    sections: Vec<SectionRecord>,
    /// Where the next one begins.
    end: u64,
}

impl Draft {
    /// Adds a section and returns its number. `None`: no length, or one that overflows.
    fn section(&mut self, length: Option<u64>) -> Option<usize> {
        let (offset, length) = (self.end, length?);
        self.end = aligned(offset.checked_add(length)?)?;
        self.sections.push(SectionRecord { offset, length, sha256: "0".repeat(64) });
        Some(self.sections.len() - 1)
    }

    fn tensor(&mut self, plan: &TensorPlan) -> Option<TensorRecord> {
        let record = TensorRecord {
            name: plan.name.clone(),
            kind: Kind::Stored,
            shape: Vec::new(),
            dtype: None,
            section: None,
            paths: None,
            relative_error: None,
            weighted_error: None,
        };
        Some(match &plan.kind {
            TensorKind::Stored { dtype, shape } => TensorRecord {
                shape: shape.iter().map(|&d| d as u64).collect(),
                dtype: Some(dtype.name().to_ascii_lowercase()),
                section: Some(self.section(dtype.byte_length(shape).map(|n| n as u64))?),
                ..record
            },
            TensorKind::Factorized { out_features, in_features, paths } => TensorRecord {
                kind: Kind::Factorized,
                shape: vec![*out_features as u64, *in_features as u64],
                paths: Some(
                    paths
                        .iter()
                        .map(|path| self.path(*path, *out_features, *in_features))
                        .collect::<Option<_>>()?,
                ),
                relative_error: Some(WIDEST_ERROR),
                weighted_error: Some(WIDEST_ERROR),
                ..record
            },
        })
    }

    fn path(&mut self, path: PathPlan, out: usize, input: usize) -> Option<PathRecord> {
        let scale = |length: usize| Some(path.scale_type.bytes(length));
        Some(PathRecord {
            rank: path.rank as u64,
            scale_type: match path.scale_type {
                ScaleType::F16 => None,
                ScaleType::Log8 => Some(path.scale_type.name().into()),
            },
            left: self.section(sign_bytes(out, path.rank))?,
            right: self.section(sign_bytes(path.rank, input))?,
            row_scale: self.section(scale(out))?,
            latent_scale: if path.latent_scale {
                Some(self.section(scale(path.rank))?)
            } else {
                None
            },
            column_scale: self.section(scale(input))?,
        })
    }
}
