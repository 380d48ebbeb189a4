//! Models in `.littlebit` files.

use std::path::Path;

use indexmap::IndexMap;

use super::littlebit_info::FileInfo;
use super::{LocalModel, ModelFormat};
use crate::Result;
use crate::arch::config_json::{self, ParsedConfig};
use crate::arch::{ModelConfig, catalog};
use crate::base::progress::Progress;
use crate::files::littlebit::{CONFIG_FILE, LittleBitFile, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};

impl LittleBitFile {
    /// `config.json`, parsed.
    pub fn config(&self) -> Result<ModelConfig> {
        Ok(self.parsed_config(&self.config_json()?)?.config)
    }

    /// What `littlebit info` reports; each layer too if `with_layers`.
    pub fn info(&self, with_layers: bool) -> Result<FileInfo> {
        FileInfo::new(self, with_layers)
    }

    /// Opens the model: configuration, tokenizer and all tensors, which must be those that a model
    /// of this configuration has.
    pub fn model(&self) -> Result<LocalModel> {
        let config_json = self.config_json()?;
        let ParsedConfig { config, mut warnings, .. } = self.parsed_config(&config_json)?;
        let mut weights = IndexMap::with_capacity(self.contents().tensors.len());
        for name in self.contents().tensors.keys() {
            if let Some(weight) = self.tensor(name)? {
                weights.insert(name.clone(), weight);
            }
        }
        let left_out = catalog::keep_expected(&mut weights, &config, self.path(), &mut warnings)?;
        let stem = || self.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
        Ok(LocalModel {
            name: self.about().source.name.clone().or_else(stem).unwrap_or_default(),
            path: self.path().to_path_buf(),
            format: ModelFormat::LittleBit,
            config,
            config_json,
            tokenizer_json: self.text(TOKENIZER_FILE)?,
            tokenizer_config_json: self.text(TOKENIZER_CONFIG_FILE)?,
            weights,
            left_out,
            warnings,
        })
    }

    fn parsed_config(&self, text: &str) -> Result<ParsedConfig> {
        config_json::parse(text, &self.path().join(CONFIG_FILE))
    }
}

/// Opens a `.littlebit` file as a model. Checksums of the sections are not verified.
pub fn open_model(path: impl AsRef<Path>) -> Result<LocalModel> {
    LittleBitFile::open(path)?.model()
}

/// Checks a whole file: every checksum, every scale, and that the tensors are those, with the
/// shapes, that a model of its configuration has.
pub fn verify(path: impl AsRef<Path>, progress: &dyn Progress) -> Result<LittleBitFile> {
    let file = LittleBitFile::open(path)?;
    file.verify_checksums(progress)?;
    file.model()?;
    Ok(file)
}
