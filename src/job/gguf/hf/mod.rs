//! A Hugging Face directory as a GGUF model: no forward pass is needed, so it takes architectures
//! that this crate does not run.

mod attention;
mod card;
mod general;
mod limits;
mod names;
mod parameters;
mod rope;
mod texts;
mod tokenizer;
mod weights;

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::from_littlebit::shape_only;
use super::model::{GgufModel, ModelShape, SourceOptions, source_type};
use super::tensor::GgufTensor;
use crate::arch::config_json::{self, ParsedConfig, not_json};
use crate::arch::names::to_hugging_face;
use crate::base::json;
use crate::files::gguf::Value;
use crate::files::packed::assemble::{Entry, assemble};
use crate::files::safetensors;
use crate::files::texts::{MAX_CONFIG, read_text};
use crate::model::hf;
use crate::weight::PackedTensor;
use crate::{Error, Result};
use general::General;
pub(super) use texts::Texts;
pub(super) use tokenizer::pre::doubt as doubt_about_pre;

/// Whether a model with that `config.json` can become a GGUF file: asked before its weights are
/// downloaded.
///
/// # Errors
/// [`Error::Unsupported`] if not, [`Error::ValidationFailed`] if the file is damaged.
pub fn check_config(path: &Path) -> Result<()> {
    let missing = || Error::model_not_found(format!("{} is missing", path.display()));
    let text = read_text(path, MAX_CONFIG)?.ok_or_else(missing)?;
    Config::read(&text, path).map(drop)
}

/// A `config.json` that can become a GGUF file.
struct Config {
    parsed: ParsedConfig,
    /// The whole file, with the part of its language model laid over it.
    root: Map<String, Json>,
    /// Whether the file states the width of a head, or its class has one of its own.
    explicit_head_dim: bool,
}

impl Config {
    fn read(text: &str, path: &Path) -> Result<Self> {
        let parsed = config_json::parse(text, path)?;
        let root = with_text_config(parse(text, path)?);
        let explicit_head_dim = match root.get("head_dim") {
            None => parsed.config.family.defaults.head_dim.is_some(),
            Some(value) => !value.is_null(),
        };
        // All that is refused by the settings alone.
        limits::check(&parsed.config)?;
        let config = Self { parsed, root, explicit_head_dim };
        config.parameters(0, &mut Vec::new())?;
        Ok(config)
    }

    /// The hyper-parameters for `rows` embeddings, and the tensors among them.
    fn parameters(
        &self,
        rows: usize,
        warnings: &mut Vec<String>,
    ) -> Result<(IndexMap<String, Value>, Vec<GgufTensor>)> {
        parameters::metadata(&self.parsed.config, self.explicit_head_dim, rows, warnings)
    }
}

fn parse(text: &str, path: &Path) -> Result<Map<String, Json>> {
    match json::read(text) {
        Ok(Json::Object(root)) => Ok(root),
        Ok(_) => Err(Error::damaged(path, "not a JSON object")),
        Err(e) => Err(not_json(text, path, &e)),
    }
}

/// Opens a directory.
pub(super) fn open(directory: &Path, options: &SourceOptions) -> Result<GgufModel> {
    let texts = Texts::Folder(directory);
    let config_path = directory.join("config.json");
    let Some(text) = read_text(&config_path, MAX_CONFIG)? else {
        return Err(hf::without_config(directory));
    };
    // Before the weights, which may be many files.
    let quantization = Config::read(&text, &config_path)?.parsed.quantization;
    let mut warnings = Vec::new();
    let raw = hf::read_raw(directory, &mut Vec::new(), &mut warnings)?;
    let entries = assemble(raw, quantization.as_ref(), directory)?;
    let mut packed = IndexMap::new();
    let tensors = entries
        .into_iter()
        .map(|(name, entry)| {
            let tensor = match entry {
                Entry::Plain(tensor) => tensor,
                // Only the shape is looked at before it gets its integers below.
                Entry::Packed(tensor) => {
                    let shape = vec![tensor.rows(), tensor.cols()];
                    packed.insert(name.clone(), tensor);
                    Ok(shape_only(shape))
                }
            };
            (name, tensor)
        })
        .collect();
    let mut model = open_from(texts, tensors, &hf::model_name(directory), options)?;
    model.warnings.splice(0..0, warnings);
    if let Some(kind) = packed.values().next().map(PackedTensor::type_name) {
        set_packed(&mut model, packed, directory)?;
        model.source_dtype = kind;
    }
    Ok(model)
}

/// Gives packed layers their integers.
fn set_packed(
    model: &mut GgufModel,
    mut packed: IndexMap<String, PackedTensor>,
    directory: &Path,
) -> Result<()> {
    for tensor in &mut model.tensors {
        let layer = to_hugging_face(&tensor.name).and_then(|name| packed.swap_remove(&name));
        if let Some(layer) = layer {
            if tensor.is_scaled() {
                return Err(Error::Unsupported {
                    message: format!(
                        "{} is packed, and the scale of the model's queries would have to be \
                         multiplied into it",
                        tensor.name
                    ),
                    suggestion: "Use the original f32, f16 or bf16 checkpoint".to_owned(),
                });
            }
            tensor.set_packed(layer);
        }
    }
    if let Some((name, _)) = packed.first() {
        return Err(Error::Unsupported {
            message: format!(
                "{} in {} is packed, which is not read for a {}",
                name,
                directory.display(),
                model.architecture
            ),
            suggestion: "Use the original f32, f16 or bf16 checkpoint".to_owned(),
        });
    }
    model.source_bytes = model.tensors.iter().map(GgufTensor::source_bytes).sum();
    Ok(())
}

/// Opens what has the texts and tensors of a Hugging Face directory. `name` is the model's.
pub(super) fn open_from(
    texts: Texts<'_>,
    checkpoint: IndexMap<String, safetensors::ShardTensor>,
    name: &str,
    options: &SourceOptions,
) -> Result<GgufModel> {
    let mut warnings = Vec::new();
    let directory = texts.path();
    let config_path = directory.join("config.json");
    let text = texts
        .optional("config.json", MAX_CONFIG, &mut warnings)?
        .ok_or_else(|| Error::damaged(directory, "no config.json"))?;
    let whole = Config::read(&text, &config_path)?;
    let config = &whole.parsed.config;
    warnings.extend(whole.parsed.warnings.iter().cloned());
    let (mut tensors, rows) = weights::collect(directory, config, checkpoint, &mut warnings)?;
    check_vocabulary(config.vocab_size, rows, &config_path, &mut warnings)?;
    let (source_dtype, source_bytes) = source_type(&tensors);
    let (parameters, of_config) = whole.parameters(rows, &mut warnings)?;
    tensors.extend(of_config);

    let card = texts.optional("README.md", MAX_CONFIG, &mut warnings)?;
    let card = card.map(|text| card::parse(&text)).unwrap_or_default();
    let generation = generation_config(texts, &mut warnings)?;
    let mut metadata = General {
        architecture: config.family.gguf,
        id: name,
        card: &card,
        generation: generation.as_ref(),
        tensors: &tensors,
        experts: config.experts.map_or(0, |experts| experts.count),
        provenance: options.provenance,
    }
    .metadata();
    metadata.extend(parameters);
    let pre = options.pre.as_deref();
    let tokenizer = tokenizer::Source {
        texts,
        config: &whole.root,
        generation: generation.as_ref(),
        family: config.family,
        rows,
    };
    metadata.extend(tokenizer.metadata(pre, &mut warnings)?);
    names::avoid_phi_3(&mut metadata, &mut warnings);
    Ok(GgufModel {
        name: name.to_owned(),
        architecture: config.family.gguf.to_owned(),
        metadata,
        tensors,
        shape: ModelShape {
            layers: config.num_layers,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            experts: config.experts.map_or(0, |experts| experts.count),
            hidden: config.hidden_size,
            vocabulary: rows,
            context: config.max_positions as u64,
        },
        warnings,
        source_dtype,
        source_bytes,
        path: directory.to_path_buf(),
    })
}

/// The number of embeddings against `vocab_size`: tokens without one could not be used, more of them
/// than tokens are padding.
fn check_vocabulary(
    stated: usize,
    rows: usize,
    config: &Path,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if stated > rows {
        return Err(Error::damaged(
            config,
            format!("vocab_size is {stated}, but the weights have embeddings of {rows} tokens"),
        ));
    }
    if stated < rows {
        warnings.push(format!(
            "the weights have embeddings of {rows} tokens, config.json says vocab_size {stated}: the \
             file has {rows}"
        ));
    }
    Ok(())
}

/// The configuration with that of its language model, if it has one inside, laid over it. The kind of
/// model stays that of the whole; tokens that end a text are those of both.
fn with_text_config(mut root: Map<String, Json>) -> Map<String, Json> {
    const ENDS: &str = "eos_token_id";
    if let Some(Json::Object(mut inner)) = root.remove("text_config") {
        let kind = inner.remove("model_type");
        inner.remove("architectures");
        if let (Some(Json::String(whole)), Some(Json::String(part))) =
            (root.get("model_type"), &kind)
            && *part != format!("{whole}_text")
        {
            // A language model of another kind inside: refused as what it is.
            root.insert("model_type".to_owned(), Json::String(format!("{whole} with {part}")));
        }
        let mut ends = Vec::new();
        for ids in [root.get(ENDS), inner.get(ENDS)].into_iter().flatten() {
            match ids {
                Json::Array(list) => ends.extend(list.iter().cloned()),
                Json::Null => {}
                id => ends.push(id.clone()),
            }
        }
        root.extend(inner);
        if !ends.is_empty() {
            root.insert(ENDS.to_owned(), Json::Array(ends));
        }
    }
    root
}

fn generation_config(texts: Texts<'_>, warnings: &mut Vec<String>) -> Result<Option<Json>> {
    let name = "generation_config.json";
    let Some(text) = texts.optional(name, MAX_CONFIG, warnings)? else {
        return Ok(None);
    };
    let parsed = json::read(&text).ok();
    if parsed.is_none() {
        warnings.push(format!("{name} is not valid JSON; the file is left out"));
    }
    Ok(parsed)
}
