//! Ranks, statistics and scales of a file apart from its bits: two files that any tool can read.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use super::contents::{Entry, PathEntry};
use super::index::About;
use super::read::LittleBitFile;
use crate::files::atomic::write_atomically;
use crate::{Error, Result};

/// Version of the JSON document.
const METADATA_VERSION: u32 = 1;

/// The files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedMetadata {
    /// Scales: safetensors, f16.
    pub scales: PathBuf,
    /// Ranks and statistics: JSON.
    pub statistics: PathBuf,
}

/// Names the two files for `--export-metadata path`: `path` with `.safetensors` and `.json`
/// (either ending may be given and is dropped first); inside `path`, named after the model file,
/// if `path` is a directory.
#[must_use]
pub fn export_paths(path: &Path, model: &Path) -> ExportedMetadata {
    let stem = if path.is_dir() {
        let mut name = model.file_stem().map_or("model".into(), std::ffi::OsStr::to_os_string);
        name.push(".metadata");
        path.join(name)
    } else if path.extension().is_some_and(|e| e == "safetensors" || e == "json") {
        path.with_extension("")
    } else {
        path.to_path_buf()
    };
    let with = |ending: &str| {
        let mut path = stem.clone().into_os_string();
        path.push(ending);
        PathBuf::from(path)
    };
    ExportedMetadata { scales: with(".safetensors"), statistics: with(".json") }
}

#[derive(Serialize)]
struct Document<'a> {
    format: &'a str,
    version: u32,
    about: &'a About,
    achieved_bpw: f64,
    scales: String,
    layers: Vec<Layer<'a>>,
}

#[derive(Serialize)]
struct Layer<'a> {
    name: &'a str,
    shape: [usize; 2],
    bpw: f64,
    relative_error: Option<f64>,
    weighted_error: Option<f64>,
    paths: Vec<PathMetadata>,
}

#[derive(Serialize)]
struct PathMetadata {
    rank: usize,
    scale_type: &'static str,
    row_scale: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent_scale: Option<String>,
    column_scale: String,
}

/// Writes ranks, statistics and scales of `file` to the two files that [`export_paths`] names,
/// replacing them.
///
/// Scales are f16 vectors, however the file stores them, called `LAYER.paths.N.row_scale` (`[out]`), `….latent_scale` (`[rank]`,
/// where there is one) and `….column_scale` (`[in]`); the JSON document refers to them by name.
pub fn export(file: &LittleBitFile, path: &Path) -> Result<ExportedMetadata> {
    let paths = export_paths(path, file.path());
    let mut scales = Vec::new();
    let mut layers = Vec::new();
    for (name, entry) in &file.contents().tensors {
        let Entry::Factorized(entry) = entry else { continue };
        let name = name.strip_suffix(".weight").unwrap_or(name);
        let mut metadata = Vec::with_capacity(entry.paths.len());
        for (number, path) in entry.paths.iter().enumerate() {
            metadata.push(PathMetadata {
                rank: path.rank,
                scale_type: path.scale_type.name(),
                row_scale: format!("{name}.paths.{number}.row_scale"),
                latent_scale: path
                    .latent_scale
                    .map(|_| format!("{name}.paths.{number}.latent_scale")),
                column_scale: format!("{name}.paths.{number}.column_scale"),
            });
            let names = metadata.last().into_iter().flat_map(PathMetadata::names);
            for (name, section) in names.zip(scale_sections(path)) {
                let values = path.scale_type.decode(&file.section(section)?);
                let values =
                    values.map_err(|e| Error::damaged(file.path(), format!("{name}: {e}")))?;
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                scales.push((name.to_string(), bytes));
            }
        }
        layers.push(Layer {
            name,
            shape: [entry.out_features, entry.in_features],
            bpw: entry.bits_per_weight(),
            relative_error: entry.relative_error,
            weighted_error: entry.weighted_error,
            paths: metadata,
        });
    }

    let failed = |what: &Path, e: String| Error::General(format!("{}: {e}", what.display()));
    let views = scales
        .iter()
        .map(|(name, bytes)| {
            let view = TensorView::new(Dtype::F16, vec![bytes.len() / 2], bytes)
                .map_err(|e| failed(&paths.scales, e.to_string()))?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let tensors =
        safetensors::serialize(views, None).map_err(|e| failed(&paths.scales, e.to_string()))?;
    let document = Document {
        format: "littlebit-metadata",
        version: METADATA_VERSION,
        about: &file.index().about,
        achieved_bpw: file.contents().achieved_bits_per_weight(),
        scales: paths
            .scales
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        layers,
    };
    let mut json = serde_json::to_vec_pretty(&document)
        .map_err(|e| failed(&paths.statistics, e.to_string()))?;
    json.push(b'\n');
    write_atomically(&paths.scales, &tensors)?;
    write_atomically(&paths.statistics, &json)?;
    Ok(paths)
}

impl PathMetadata {
    /// Names of the scales, in file order.
    fn names(&self) -> impl Iterator<Item = &str> {
        [Some(&self.row_scale), self.latent_scale.as_ref(), Some(&self.column_scale)]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// Sections of the scales, in file order.
fn scale_sections(path: &PathEntry) -> impl Iterator<Item = usize> {
    [Some(path.row_scale), path.latent_scale, Some(path.column_scale)].into_iter().flatten()
}
