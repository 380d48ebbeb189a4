//! Importance as it is summed: what files hold, what can be added up and written again.

use std::path::Path;

use indexmap::IndexMap;

use super::{dat, gguf};
use crate::base::SharedBytes;
use crate::files::detect::GGUF_MAGIC;
use crate::{Error, Result};

/// What the values of a file are means of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Squared inputs of a column, over tokens: what `llama-imatrix` measures.
    #[default]
    Activation,
    /// Absolute gradients of a column's weights, over samples and rows.
    Gradient,
    /// Squared gradients of a column's weights, over samples and rows.
    Fisher,
}

impl Method {
    /// The name in files and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Activation => "activation_magnitude",
            Self::Gradient => "gradient_sensitivity",
            Self::Fisher => "fisher_information",
        }
    }

    /// The method of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Activation, Self::Gradient, Self::Fisher].into_iter().find(|m| m.name() == name)
    }
}

/// Sums for one tensor: a matrix, or the matrices of all experts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ColumnSums {
    /// `[matrices, columns]`, row-major.
    pub sums: Vec<f64>,
    /// What each matrix's sums are to be divided by, `[matrices]`: tokens, or samples.
    pub counts: Vec<f64>,
}

impl ColumnSums {
    /// The means, `[matrices, columns]`; a matrix that saw nothing counts as all ones, as in
    /// llama.cpp.
    #[must_use]
    pub fn means(&self) -> Vec<f64> {
        let columns = self.columns().max(1);
        let matrices = self.sums.chunks_exact(columns).zip(&self.counts);
        matrices
            .flat_map(|(sums, &count)| {
                sums.iter().map(move |sum| if count > 0.0 { sum / count } else { 1.0 })
            })
            .collect()
    }

    /// Columns of a matrix.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.sums.len() / self.counts.len().max(1)
    }
}

/// The contents of an importance matrix, whole enough to be added to another one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportanceSums {
    /// By GGUF tensor name, in file order.
    pub entries: IndexMap<String, ColumnSums>,
    /// What was summed.
    pub method: Method,
    /// The texts that it was measured on.
    pub datasets: Vec<String>,
    /// SHA-256 of the text, if it is one text and the file says so.
    pub data_sha256: Option<String>,
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_size: u32,
}

/// Tokens of a chunk where a file does not say: the default of `llama-imatrix`.
pub const DEFAULT_CHUNK: u32 = 512;

impl ImportanceSums {
    /// Reads a file of either format, told apart by its contents. A `.dat` file has counts in
    /// chunks; they become tokens of chunks of [`DEFAULT_CHUNK`].
    ///
    /// # Errors
    /// [`Error::Imatrix`] when there is no such file, when it is damaged or something else, and when
    /// a sum or a count is NaN, infinite or negative.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |message: String| Error::imatrix(path, message);
        let bytes = SharedBytes::map(path).map_err(|error| match error {
            Error::Io { source, .. } => wrong(source.to_string()),
            other => wrong(other.to_string()),
        })?;
        let sums = if bytes.starts_with(&GGUF_MAGIC) {
            gguf::read_sums(bytes, path)
        } else {
            dat::read_sums(&bytes)
        }
        .map_err(wrong)?;
        if sums.entries.is_empty() {
            return Err(wrong("it has no entries".into()));
        }
        sums.check().map_err(wrong)?;
        Ok(sums)
    }

    /// Whether all figures can be used; else what cannot.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        for (name, entry) in &self.entries {
            let bad = |value: &f64| !value.is_finite() || *value < 0.0;
            if let Some(at) = entry.sums.iter().position(bad) {
                return Err(format!("{name} has {} at column {at}", entry.sums[at]));
            }
            if let Some(at) = entry.counts.iter().position(bad) {
                return Err(format!("{name} has the count {} for matrix {at}", entry.counts[at]));
            }
        }
        Ok(())
    }

    /// Refuses what is beyond the f32 of a file: sums, or means times the calls they are of.
    pub(super) fn check_range(&self, of_means: Option<f64>) -> Result<()> {
        for (name, entry) in &self.entries {
            let columns = entry.columns().max(1);
            let values = match of_means {
                None => entry.sums.clone(),
                Some(calls) => entry.means().iter().map(|mean| mean * calls).collect(),
            };
            if let Some(at) = values.iter().position(|&value| !(value as f32).is_finite()) {
                return Err(Error::OutOfRange {
                    message: format!(
                        "the importance of {name} is {:e} at [{}, {}], which F32 cannot hold",
                        values[at],
                        at / columns,
                        at % columns
                    ),
                    suggestion:
                        "Measure on less text (--calibration-samples); activations this large \
                                 mean damaged weights, mostly"
                            .to_owned(),
                });
            }
        }
        Ok(())
    }

    /// What a chunk adds to a count.
    pub(super) fn count_of_chunk(&self) -> f64 {
        match self.method {
            Method::Activation => f64::from(self.chunk_size.max(1)),
            Method::Gradient | Method::Fisher => 1.0,
        }
    }

    /// Adds what another file has: sums, counts and chunks are added, tensors that only one of them
    /// has stay as they are, datasets are listed one after the other.
    ///
    /// # Errors
    /// What does not fit: another method, or another number of columns or matrices.
    pub fn add(&mut self, other: &Self) -> std::result::Result<(), String> {
        if self.method != other.method {
            return Err(format!(
                "it holds {}, the others {}",
                other.method.name(),
                self.method.name()
            ));
        }
        for (name, added) in &other.entries {
            if let Some(entry) = self.entries.get(name)
                && (entry.sums.len(), entry.counts.len()) != (added.sums.len(), added.counts.len())
            {
                return Err(format!(
                    "{name} has {} × {} columns in it, {} × {} in the others: another model",
                    added.counts.len(),
                    added.columns(),
                    entry.counts.len(),
                    entry.columns()
                ));
            }
        }
        for (name, added) in &other.entries {
            let entry = self.entries.entry(name.clone()).or_insert_with(|| ColumnSums {
                sums: vec![0.0; added.sums.len()],
                counts: vec![0.0; added.counts.len()],
            });
            entry.sums.iter_mut().zip(&added.sums).for_each(|(sum, value)| *sum += value);
            entry.counts.iter_mut().zip(&added.counts).for_each(|(count, value)| *count += value);
        }
        for dataset in &other.datasets {
            if !self.datasets.contains(dataset) {
                self.datasets.push(dataset.clone());
            }
        }
        if self.data_sha256 != other.data_sha256 {
            self.data_sha256 = None;
        }
        self.chunks = self.chunks.saturating_add(other.chunks);
        Ok(())
    }

    /// Writes the GGUF form, which llama.cpp has read since 2025. The file is checked by reading it
    /// back, and has its name only when it is whole.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ValidationFailed`] if it does not read back.
    pub fn write_gguf(&self, path: &Path) -> Result<()> {
        self.check_range(None)?;
        gguf::write(self, path)
    }

    /// Writes the `.dat` form, which all versions of llama.cpp and its relatives read. It has no
    /// place for the method.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ValidationFailed`] if it does not read back.
    pub fn write_dat(&self, path: &Path) -> Result<()> {
        let calls = |entry: &ColumnSums| {
            let largest = entry.counts.iter().copied().fold(0.0, f64::max);
            (largest / self.count_of_chunk()).ceil().max(1.0)
        };
        self.check_range(Some(self.entries.values().map(calls).fold(1.0, f64::max)))?;
        dat::write(self, path)
    }
}
