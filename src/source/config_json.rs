//! `config.json` of Hugging Face transformers, both spellings, into [`ModelConfig`] and back.
//!
//! Transformers up to 4 writes `rope_theta`, `rope_scaling` and `torch_dtype`; transformers 5
//! writes `rope_parameters` and `dtype`. Missing keys have the defaults of the configuration
//! classes `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Architecture, AttentionBiases, ModelConfig, SlidingWindow};
use super::config_rope;
use crate::formats::packed::QuantizationConfig;
use crate::source::json as json_file;
use crate::{Error, Result};

/// Upper bounds that keep every product of two sizes far from overflow.
const MAX_WIDTH: u64 = 1 << 24;
const MAX_COUNT: u64 = 1 << 16;
const MAX_POSITIONS: u64 = 1 << 40;

/// A configuration with what only the loader of the weights needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedConfig {
    /// The model's shape.
    pub config: ModelConfig,
    /// Which attention layers have a bias.
    pub biases: AttentionBiases,
    /// How the linear layers are packed, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Reads `config.json`. `path` is for messages.
///
/// # Errors
/// [`Error::Unsupported`] for architectures, activations, position schemes and quantized
/// checkpoints that this tool does not process, [`Error::ValidationFailed`] for damaged files.
pub fn parse(text: &str, path: &Path) -> Result<ParsedConfig> {
    let root: Value =
        json_file::read(text).map_err(|e| Error::damaged(path, format!("not valid JSON: {e}")))?;
    let Value::Object(root) = root else {
        return Err(Error::damaged(path, "not a JSON object"));
    };
    let (architecture, class_name) = architecture(&root, path)?;
    let quantization = quantization(&root)?;
    let fields = match root.get("text_config") {
        Some(Value::Object(inner)) if !root.contains_key("hidden_size") => Fields::new(inner, path),
        _ => Fields::new(&root, path),
    };
    refuse_variants(&fields, &class_name)?;

    let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
    let num_layers = fields.size("num_hidden_layers", MAX_COUNT)?;
    let num_heads = fields.size("num_attention_heads", MAX_COUNT)?;
    let defaults = Defaults::of(architecture);
    let num_kv_heads = match fields.get("num_key_value_heads") {
        Some(Value::Null) => num_heads,
        None => defaults.num_kv_heads.unwrap_or(num_heads),
        Some(_) => fields.size("num_key_value_heads", MAX_COUNT)?,
    };
    if !num_heads.is_multiple_of(num_kv_heads) {
        return Err(fields.damaged(format!(
            "`num_attention_heads` {num_heads} is no multiple of `num_key_value_heads` {num_kv_heads}"
        )));
    }
    let head_dim = match (fields.get("head_dim"), defaults.head_dim) {
        (None, Some(default)) => default,
        (None | Some(Value::Null), _) => {
            if !hidden_size.is_multiple_of(num_heads) {
                return Err(fields.damaged(format!(
                    "`hidden_size` {hidden_size} is no multiple of `num_attention_heads` \
                     {num_heads} and there is no `head_dim`"
                )));
            }
            hidden_size / num_heads
        }
        (Some(_), _) => fields.size("head_dim", MAX_COUNT)?,
    };
    if !head_dim.is_multiple_of(2) {
        return Err(fields.damaged(format!("the width of a head, {head_dim}, is odd")));
    }
    let max_positions = fields
        .optional_size("max_position_embeddings", MAX_POSITIONS)?
        .unwrap_or(defaults.max_positions);
    let mut warnings = Vec::new();
    let rope = config_rope::parse(&fields, &class_name, head_dim, max_positions, &mut warnings)?;
    let config = ModelConfig {
        architecture,
        class_name,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: fields.size("vocab_size", MAX_WIDTH)?,
        max_positions,
        rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope,
        sliding_window: sliding_window(&fields, architecture, num_layers)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        torch_dtype: dtype(&root, &fields),
        bos_token_id: token_ids(&fields, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(&fields, "eos_token_id")?,
    };
    let biases = match architecture {
        Architecture::Llama | Architecture::Qwen3 => {
            let all = fields.flag("attention_bias", false)?;
            AttentionBiases { qkv: all, output: all }
        }
        Architecture::Mistral => AttentionBiases::default(),
        Architecture::Qwen2 => AttentionBiases { qkv: true, output: false },
    };
    Ok(ParsedConfig { config, biases, quantization, warnings })
}

/// The end-of-text ids of a `generation_config.json` (`eos_token_id`, one or several).
pub fn generation_end_tokens(text: &str, path: &Path) -> Result<Vec<u32>> {
    match json_file::read(text) {
        Ok(Value::Object(root)) => token_ids(&Fields::new(&root, path), "eos_token_id"),
        Ok(_) => Err(Error::damaged(path, "not a JSON object")),
        Err(e) => Err(Error::damaged(path, format!("not valid JSON: {e}"))),
    }
}

/// Writes a configuration as transformers 4 would (which transformers 5 reads too). [`parse`]
/// gives it back.
#[must_use]
pub fn write(config: &ModelConfig, biases: AttentionBiases) -> String {
    let model_type = match config.architecture {
        Architecture::Llama => "llama",
        Architecture::Mistral => "mistral",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
    };
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut root = json!({
        "architectures": [config.class_name],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": config_rope::write(&config.rope.scaling, config.max_positions),
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.torch_dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
    });
    match config.architecture {
        Architecture::Llama | Architecture::Qwen3 => root["attention_bias"] = json!(biases.qkv),
        Architecture::Mistral | Architecture::Qwen2 => {}
    }
    let size = config.sliding_window.map(|window| window.size);
    match config.architecture {
        Architecture::Llama => {}
        Architecture::Mistral => root["sliding_window"] = json!(size),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let first = config.sliding_window.map_or(config.num_layers, |w| w.first_layer);
            root["use_sliding_window"] = json!(size.is_some());
            root["sliding_window"] = json!(size);
            root["max_window_layers"] = json!(first);
        }
    }
    let mut text = format!("{root:#}");
    text.push('\n');
    text
}

/// What the configuration classes assume for missing keys, where they differ.
struct Defaults {
    num_kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_positions: usize,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let (num_kv_heads, head_dim, max_positions) = match architecture {
            Architecture::Llama => (None, None, 2048),
            Architecture::Mistral => (Some(8), None, 4096 * 32),
            Architecture::Qwen2 => (Some(32), None, 32_768),
            Architecture::Qwen3 => (Some(32), Some(128), 32_768),
        };
        Self { num_kv_heads, head_dim, max_positions }
    }
}

/// What is supported, for messages.
pub(super) const SUPPORTED: &str = "Supported architectures: llama, mistral, qwen2, qwen3 \
     (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)";

fn architecture(root: &Map<String, Value>, path: &Path) -> Result<(Architecture, String)> {
    let class = root.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = root.get("model_type").and_then(Value::as_str);
    let known = match (class, model_type) {
        (Some("LlamaForCausalLM" | "LLaMAForCausalLM"), _) | (None, Some("llama")) => {
            (Architecture::Llama, "LlamaForCausalLM")
        }
        (Some("MistralForCausalLM"), _) | (None, Some("mistral")) => {
            (Architecture::Mistral, "MistralForCausalLM")
        }
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => {
            (Architecture::Qwen2, "Qwen2ForCausalLM")
        }
        (Some("Qwen3ForCausalLM"), _) | (None, Some("qwen3")) => {
            (Architecture::Qwen3, "Qwen3ForCausalLM")
        }
        (None, None) => {
            return Err(Error::damaged(path, "neither `architectures` nor `model_type` is given"));
        }
        (class, model_type) => {
            let name = class.or(model_type).unwrap_or_default();
            return Err(unsupported(format!("architecture {name} is not supported")));
        }
    };
    Ok((known.0, known.1.to_owned()))
}

/// An [`Error::Unsupported`] that lists what is supported.
pub(super) fn unsupported(message: String) -> Error {
    Error::Unsupported { message, suggestion: SUPPORTED.to_owned() }
}

/// How the layers of a checkpoint are packed, if they are.
///
/// # Errors
/// [`Error::Unsupported`] for methods that are not read.
pub(crate) fn quantization(root: &Map<String, Value>) -> Result<Option<QuantizationConfig>> {
    match root.get("quantization_config") {
        Some(Value::Object(config)) => QuantizationConfig::parse(config).map(Some),
        _ => Ok(None),
    }
}

/// Members of a supported class that compute something else than the decoder graph does.
fn refuse_variants(fields: &Fields, class_name: &str) -> Result<()> {
    if let Some(activation) = fields.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        return Err(unsupported(format!("{class_name} with `hidden_act` \"{activation}\"")));
    }
    if fields.flag("mlp_bias", false)? {
        return Err(unsupported(format!("{class_name} with `mlp_bias`")));
    }
    let experts = fields.optional_size("num_local_experts", MAX_COUNT)?;
    if experts.or(fields.optional_size("num_experts", MAX_COUNT)?).is_some_and(|n| n > 1) {
        return Err(unsupported(format!("{class_name} with a mixture of experts")));
    }
    Ok(())
}

/// Mistral limits every layer; Qwen limits the layers from `max_window_layers` on, or those that
/// `layer_types` names, and only with `use_sliding_window`.
fn sliding_window(
    fields: &Fields,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Option<SlidingWindow>> {
    let size = |default| match fields.get("sliding_window") {
        None => Ok(Some(default)),
        Some(Value::Null) => Ok(None),
        Some(_) => fields.optional_size("sliding_window", MAX_POSITIONS),
    };
    let window = match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => size(4096)?.map(|size| SlidingWindow { size, first_layer: 0 }),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.flag("use_sliding_window", false)? {
                return Ok(None);
            }
            let Some(size) = size(4096)? else { return Ok(None) };
            let first_layer = match fields.get("layer_types") {
                None | Some(Value::Null) => {
                    fields.optional_integer("max_window_layers", MAX_COUNT)?.unwrap_or(28)
                }
                Some(types) => first_sliding_layer(types, num_layers).ok_or_else(|| {
                    unsupported(
                        "`layer_types` that are not full attention followed by sliding attention"
                            .to_owned(),
                    )
                })?,
            };
            Some(SlidingWindow { size, first_layer })
        }
    };
    Ok(window.filter(|window| window.first_layer < num_layers))
}

fn first_sliding_layer(types: &Value, num_layers: usize) -> Option<usize> {
    let types = types.as_array()?;
    let first = types.iter().position(|kind| kind != "full_attention").unwrap_or(types.len());
    let rest_slides = types[first..].iter().all(|kind| kind == "sliding_attention");
    (types.len() == num_layers && rest_slides).then_some(first)
}

fn dtype(root: &Map<String, Value>, fields: &Fields) -> String {
    let outer = Fields::new(root, fields.path);
    [&outer, fields]
        .into_iter()
        .flat_map(|fields| [fields.get("torch_dtype"), fields.get("dtype")])
        .flatten()
        .find_map(Value::as_str)
        .map(|name| name.trim_start_matches("torch.").to_owned())
        .unwrap_or_default()
}

/// One id, a list of ids, or nothing; ids below zero mean nothing.
fn token_ids(fields: &Fields, key: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| match value {
        Value::Null => Ok(None),
        Value::Number(number) if number.as_i64().is_some_and(|id| id < 0) => Ok(None),
        value => whole(value)
            .and_then(|id| u32::try_from(id).ok())
            .map(Some)
            .ok_or_else(|| fields.damaged(format!("`{key}` is {value}, not a token id"))),
    };
    match fields.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().filter_map(|id| one(id).transpose()).collect(),
        Some(value) => Ok(one(value)?.into_iter().collect()),
    }
}

/// A whole number, also when it is written as a float.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        ((0.0..9.0e15).contains(&float) && float.fract() == 0.0).then_some(float as u64)
    })
}

/// Typed access to a JSON object with messages that name file, key and value.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, path: &'a Path) -> Self {
        Self { map, path }
    }

    /// Another object of the same file.
    pub(crate) fn with<'b>(&'b self, map: &'b Map<String, Value>) -> Fields<'b> {
        Fields::new(map, self.path)
    }

    /// The value of a key, null included.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The object under a key.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields::new(map, self.path))),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not an object"))),
        }
    }

    pub(crate) fn damaged(&self, message: String) -> Error {
        Error::damaged(self.path, message)
    }

    /// A whole number, if there is one.
    pub(crate) fn optional_integer(&self, key: &str, most: u64) -> Result<Option<usize>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                match whole(value) {
                    Some(number) if number <= most => Ok(Some(number as usize)),
                    _ => Err(self
                        .damaged(format!("`{key}` is {value}, not a whole number up to {most}"))),
                }
            }
        }
    }

    /// A positive whole number, if there is one.
    pub(crate) fn optional_size(&self, key: &str, most: u64) -> Result<Option<usize>> {
        match self.optional_integer(key, most)? {
            Some(0) => Err(self.damaged(format!("`{key}` is 0"))),
            other => Ok(other),
        }
    }

    /// A positive whole number that must be there.
    pub(crate) fn size(&self, key: &str, most: u64) -> Result<usize> {
        self.optional_size(key, most)?.ok_or_else(|| self.damaged(format!("`{key}` is missing")))
    }

    /// A finite number above zero, if there is one.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
                _ => Err(self.damaged(format!("`{key}` is {value}, not a positive number"))),
            },
        }
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not true or false"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not a text"))),
        }
    }
}

#[cfg(test)]
mod tests;
