//! What `littlebit info` reports: the contract's JSON document and its human form.

use std::fmt;

use serde::Serialize;

use crate::Result;
use crate::base::size::human_bytes;
use crate::files::littlebit::{EFFORT, Entry, LittleBitFile, RECIPE, Setting};

/// The report on a file. Field names and order are those of the JSON contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileInfo {
    /// The path as it was given.
    pub file_path: String,
    /// `littlebit`, or `gguf-ext` for a GGUF file that stands for one.
    pub format: String,
    /// Version of the format.
    pub format_version: u32,
    /// The model that was compressed; absent when the file does not say.
    pub source_model: Option<String>,
    /// Hugging Face class.
    pub architecture: String,
    /// Bits per factorized weight that were asked for.
    pub target_bpw: f64,
    /// Bits per factorized weight that are there, scales counted.
    pub achieved_bpw: f64,
    /// Original size over compressed size.
    pub compression_ratio: f64,
    /// Size of the original model, bytes.
    pub original_size_bytes: u64,
    /// Size of the file, bytes.
    pub compressed_size_bytes: u64,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Ranks of the factorized linear layers; absent when there are none.
    pub layer_stats: Option<RankStatistics>,
    /// The effort that recovery was given; absent when the file does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    /// Every knob of recovery; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<toml::Table>,
    /// Each factorized linear layer, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerInfo>>,
}

/// Ranks over all factorized linear layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RankStatistics {
    /// Mean, rounded.
    pub average_rank: u64,
    /// Smallest.
    pub min_rank: usize,
    /// Largest.
    pub max_rank: usize,
    /// First layer with the smallest rank.
    #[serde(skip)]
    pub min_rank_layer: String,
    /// First layer with the largest rank.
    #[serde(skip)]
    pub max_rank_layer: String,
}

/// One factorized linear layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerInfo {
    /// Name without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Inner dimension of a path (the largest, should two differ).
    pub rank: usize,
    /// Number of paths.
    pub paths: usize,
    /// How its scales are stored: `f16` or `log8` (of the first path, should two differ).
    pub scale_type: &'static str,
    /// Bits per weight, scales counted.
    pub bpw: f64,
    /// Squared error relative to the squared norm of the weight; absent when not measured.
    pub relative_error: Option<f64>,
    /// The same, weighted by activations.
    pub weighted_error: Option<f64>,
    /// Size at 16 bits per weight over size in the file.
    pub compression_ratio: f64,
}

impl FileInfo {
    /// Describes `file`; each layer too if `with_layers`.
    pub fn new(file: &LittleBitFile, with_layers: bool) -> Result<Self> {
        let config = file.config()?;
        let (index, contents) = (file.index(), file.contents());
        let layers: Vec<LayerInfo> = contents
            .tensors
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Stored(_) => None,
                Entry::Factorized(entry) => {
                    let bits_per_weight = entry.bits_per_weight();
                    Some(LayerInfo {
                        name: name.strip_suffix(".weight").unwrap_or(name).into(),
                        shape: [entry.out_features, entry.in_features],
                        rank: entry.paths.iter().map(|path| path.rank).max().unwrap_or(0),
                        paths: entry.paths.len(),
                        scale_type: entry.paths.first().map_or("f16", |p| p.scale_type.name()),
                        bpw: rounded(bits_per_weight, 4),
                        relative_error: entry.relative_error,
                        weighted_error: entry.weighted_error,
                        compression_ratio: rounded(16.0 / bits_per_weight, 2),
                    })
                }
            })
            .collect();
        let compressed_size_bytes = file.file_size();
        let text = |name: &str| match index.about.settings.get(name) {
            Some(Setting::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let original_size_bytes = index.about.original_size_bytes;
        Ok(Self {
            file_path: file.path().display().to_string(),
            format: if file.is_in_gguf() { "gguf-ext" } else { &index.format }.to_owned(),
            format_version: index.format_version,
            source_model: index.about.source.name.clone(),
            architecture: config.class_name,
            target_bpw: index.about.target_bpw,
            achieved_bpw: rounded(contents.achieved_bits_per_weight(), 4),
            compression_ratio: rounded(
                original_size_bytes as f64 / compressed_size_bytes as f64,
                2,
            ),
            original_size_bytes,
            compressed_size_bytes,
            num_layers: config.num_layers,
            layer_stats: RankStatistics::of(&layers),
            effort: text(EFFORT),
            recipe: text(RECIPE).and_then(|recipe| toml::from_str(&recipe).ok()),
            layers: with_layers.then_some(layers),
        })
    }
}

/// The report for people, in whole lines.
impl fmt::Display for FileInfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "File: {}", self.file_path)?;
        let container = if self.format == "gguf-ext" { "in GGUF" } else { "Native" };
        writeln!(out, "Format: LittleBit {container} v{}", self.format_version)?;
        writeln!(out, "Source: {}", self.source_model.as_deref().unwrap_or("not recorded"))?;
        writeln!(out, "Architecture: {}", self.architecture)?;
        writeln!(out, "\nCompression:")?;
        writeln!(out, "  Target BPW: {}", self.target_bpw)?;
        writeln!(out, "  Achieved BPW: {}", rounded(self.achieved_bpw, 3))?;
        writeln!(out, "  Compression Ratio: {:.1}x", self.compression_ratio)?;
        writeln!(out, "  Original Size: {}", human_bytes(self.original_size_bytes))?;
        writeln!(out, "  Compressed Size: {}", human_bytes(self.compressed_size_bytes))?;
        writeln!(out, "\nLayers: {}", self.num_layers)?;
        if let Some(ranks) = &self.layer_stats {
            writeln!(out, "  Average Rank: {}", ranks.average_rank)?;
            writeln!(out, "  Min Rank: {} ({})", ranks.min_rank, ranks.min_rank_layer)?;
            writeln!(out, "  Max Rank: {} ({})", ranks.max_rank, ranks.max_rank_layer)?;
        }
        if let Some(effort) = &self.effort {
            writeln!(out, "\nRecovery: {effort}")?;
        }
        if let Some(recipe) = &self.recipe {
            for line in recipe.to_string().lines().filter(|line| !line.is_empty()) {
                writeln!(out, "  {line}")?;
            }
        }
        if let Some(layers) = &self.layers {
            write_layers(out, layers)?;
        }
        Ok(())
    }
}

/// The table of `--layers`.
fn write_layers(out: &mut fmt::Formatter<'_>, layers: &[LayerInfo]) -> fmt::Result {
    let width = layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0).max(5);
    writeln!(
        out,
        "\n{:<width$}  {:>13}  {:>9}  {:>6}  {:>7}  {:>7}  {:>8}  {:>8}",
        "Layer", "Shape", "Rank", "Scales", "BPW", "Ratio", "Error", "Weighted"
    )?;
    let error = |value: Option<f64>| value.map_or("-".into(), |e| format!("{e:.4}"));
    for layer in layers {
        let rank = match layer.paths {
            1 => layer.rank.to_string(),
            paths => format!("{paths} x {}", layer.rank),
        };
        writeln!(
            out,
            "{:<width$}  {:>13}  {rank:>9}  {:>6}  {:>7.3}  {:>6.1}x  {:>8}  {:>8}",
            layer.name,
            format!("{} x {}", layer.shape[0], layer.shape[1]),
            layer.scale_type,
            layer.bpw,
            layer.compression_ratio,
            error(layer.relative_error),
            error(layer.weighted_error),
        )?;
    }
    Ok(())
}

impl RankStatistics {
    fn of(layers: &[LayerInfo]) -> Option<Self> {
        // min_by_key keeps the first of equals, max_by_key the last.
        let least = layers.iter().min_by_key(|layer| layer.rank)?;
        let most = layers.iter().rev().max_by_key(|layer| layer.rank)?;
        let sum: u64 = layers.iter().map(|layer| layer.rank as u64).sum();
        Some(Self {
            average_rank: (sum as f64 / layers.len() as f64).round() as u64,
            min_rank: least.rank,
            max_rank: most.rank,
            min_rank_layer: least.name.clone(),
            max_rank_layer: most.name.clone(),
        })
    }
}

/// `value` with `digits` decimals.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
