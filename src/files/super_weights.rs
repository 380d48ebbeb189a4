//! The super-weight mask: single weights to keep at high precision, and its file.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::atomic::write_atomically;
use crate::base::input;
use crate::{Error, Result};

/// Largest share of a model's parameters that may be called super weights.
pub const MOST_COVERAGE: f64 = 0.01;
/// Version of the file.
const VERSION: u32 = 1;

/// Positions of single weights in a model.
#[derive(Debug, Clone, PartialEq)]
pub struct SuperWeightMask {
    /// Share of the model's parameters that was asked for.
    pub coverage: f64,
    /// How the weights were scored.
    pub method: String,
    /// By GGUF tensor name: flat positions `row · columns + column`, ascending, rows in the order of
    /// a GGUF file (in which the rows of q and k of the llama family are permuted).
    pub tensors: IndexMap<String, Vec<u64>>,
}

/// The file: `{"version":1,"coverage":…,"method":…,"total_protected":N,"tensors":{NAME:[…]}}`.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    coverage: f64,
    method: String,
    total_protected: u64,
    tensors: IndexMap<String, Vec<u64>>,
}

impl SuperWeightMask {
    /// Number of weights in the mask.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.tensors.values().map(|positions| positions.len() as u64).sum()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Imatrix`] when it is missing, damaged, or of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |message: String| Error::imatrix(path, message);
        let bytes = input::read(path, input::MAX_DATA).map_err(|e| wrong(e.to_string()))?;
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|e| wrong(format!("no mask: {e}")))?;
        if document.version != VERSION {
            return Err(wrong(format!("a mask of version {}, not {VERSION}", document.version)));
        }
        let Document { coverage, method, total_protected, tensors, .. } = document;
        let mask = Self { coverage, method, tensors };
        for (name, positions) in &mask.tensors {
            if !positions.is_sorted_by(|a, b| a < b) {
                return Err(wrong(format!("the positions of {name} are not in order")));
            }
        }
        if mask.total() != total_protected {
            return Err(wrong(format!(
                "it has {} positions and claims {total_protected}",
                mask.total()
            )));
        }
        Ok(mask)
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::ValidationFailed`] if it does not read back.
    pub fn write(&self, path: &Path) -> Result<()> {
        let document = Document {
            version: VERSION,
            coverage: self.coverage,
            method: self.method.clone(),
            total_protected: self.total(),
            tensors: self.tensors.clone(),
        };
        let text = serde_json::to_string(&document)
            .map_err(|e| Error::General(format!("the mask cannot be written as JSON: {e}")))?;
        write_atomically(path, text.as_bytes())?;
        if Self::read(path)? != *self {
            return Err(Error::damaged(path, "it does not read back as it was written"));
        }
        Ok(())
    }
}

/// Where the mask that belongs to an importance matrix lies: `NAME.imatrix` →
/// `NAME.superweights.json`.
#[must_use]
pub fn mask_path(imatrix: &Path) -> PathBuf {
    imatrix.with_extension("superweights.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_come_back_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = mask_path(&folder.path().join("m.v1.imatrix"));
        assert_eq!(path.file_name().unwrap(), "m.v1.superweights.json");
        let tensors = [("blk.1.ffn_down.weight".to_owned(), vec![3, 70, 1 << 40])];
        let mask = SuperWeightMask {
            coverage: 1e-4,
            method: "weight-times-input".into(),
            tensors: tensors.into_iter().collect(),
        };
        mask.write(&path).unwrap();
        assert_eq!(SuperWeightMask::read(&path).unwrap(), mask);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""total_protected":3,"#), "{text}");
        for (from, to) in [("70", "2"), ("\"version\":1", "\"version\":2"), (",70", ""), ("}", "")]
        {
            std::fs::write(&path, text.replace(from, to)).unwrap();
            assert_eq!(SuperWeightMask::read(&path).unwrap_err().exit_code(), 10, "{from}");
        }
    }
}
