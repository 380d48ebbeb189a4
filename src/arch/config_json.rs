//! `config.json` of Hugging Face transformers, both spellings, into [`ModelConfig`] and back.
//!
//! Transformers up to 4 writes `rope_theta`, `rope_scaling` and `torch_dtype`; transformers 5
//! writes `rope_parameters` and `dtype`. Missing keys have the defaults of the configuration
//! classes `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{LinearBiases, ModelConfig};
use super::config_rope;
use super::family::Biases;
use super::spec::Activation;
use crate::base::json as json_file;
use crate::files::packed::QuantizationConfig;
use crate::files::present;
use crate::{Error, Result};
use fields::whole;

mod classes;
mod fields;
pub(crate) mod keys;
mod windows;

pub(super) use classes::Class;
pub(crate) use classes::unsupported;
pub(crate) use fields::Fields;

/// Upper bounds that keep every product of two sizes far from overflow.
pub(crate) const MAX_WIDTH: u64 = 1 << 24;
pub(crate) const MAX_COUNT: u64 = 1 << 16;
const MAX_POSITIONS: u64 = 1 << 40;

/// A configuration with what only the loader of the weights needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedConfig {
    /// The model's shape.
    pub config: ModelConfig,
    /// How the linear layers are packed, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Whether the model is the text part of another one: then [`write()`] makes the file that fits
    /// its weights.
    pub nested: bool,
}

/// Reads `config.json`. `path` is for messages.
///
/// # Errors
/// [`Error::Unsupported`] for architectures, activations, position schemes and quantized
/// checkpoints that this tool does not process, [`Error::ValidationFailed`] for damaged files.
pub fn parse(text: &str, path: &Path) -> Result<ParsedConfig> {
    let root: Value = json_file::read(text).map_err(|e| not_json(text, path, &e))?;
    let Value::Object(root) = root else {
        return Err(Error::damaged(path, "not a JSON object"));
    };
    let class = classes::class(&root, path)?;
    let (family, class_name) = (class.family, class.name.to_owned());
    let quantization = quantization(&root)?;
    let fields = Fields::new(class.text.unwrap_or(&root), path);
    let mut warnings = Vec::new();
    refuse_variants(&fields, &class)?;
    keys::refuse_unknown(&fields, &class.known_keys(), class.name)?;
    if class.text.is_some() {
        keys::refuse_unknown_around(&fields.with(&root), &class.known_keys(), class.name)?;
    }
    keys::warn(&fields, &class, &mut warnings);

    let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
    let num_layers = fields.size("num_hidden_layers", MAX_COUNT)?;
    let defaults = &family.defaults;
    let num_heads = match (fields.get("num_attention_heads"), defaults.heads) {
        (None, Some(heads)) => heads,
        _ => fields.size("num_attention_heads", MAX_COUNT)?,
    };
    let num_kv_heads = match fields.get("num_key_value_heads") {
        Some(Value::Null) => num_heads,
        None => defaults.kv_heads.unwrap_or(num_heads),
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
    let intermediate_size = match (fields.get("intermediate_size"), defaults.intermediate) {
        (None, Some(width)) => width,
        _ => fields.size("intermediate_size", MAX_WIDTH)?,
    };
    let shape = config_rope::Shape { head_dim, max_positions };
    let (rope, window_rope) = config_rope::parse(&fields, &class, &shape, &mut warnings)?;
    let mut config = ModelConfig {
        family,
        class_name,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        vocab_size: fields.size("vocab_size", MAX_WIDTH)?,
        max_positions,
        original_positions: match defaults.original_positions {
            None => None,
            Some(default) => Some(
                fields
                    .optional_size("original_max_position_embeddings", MAX_POSITIONS)?
                    .unwrap_or(default),
            ),
        },
        rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(defaults.epsilon),
        rope,
        window_rope,
        sliding_window: windows::read(&fields, &class, (num_layers, max_positions))?,
        biases: biases(&fields, &class)?,
        experts: None,
        query_pre_attn_scalar: None,
        attention_soft_cap: None,
        logit_soft_cap: None,
        tie_word_embeddings: tied(&root, &fields, defaults.tied)?,
        torch_dtype: dtype(&root, &fields),
        bos_token_id: token_ids(&fields, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(&fields, "eos_token_id")?,
    };
    (family.read)(&fields, &mut config)?;
    if let Some(count) = config.too_many_experts() {
        return Err(fields.damaged(format!("{count} experts in all layers together")));
    }
    Ok(ParsedConfig { config, quantization, warnings, nested: class.text.is_some() })
}

/// What wraps a text model states for it; the text model's own word comes first.
fn tied(root: &Map<String, Value>, fields: &Fields, default: bool) -> Result<bool> {
    let outer = fields.with(root).flag("tie_word_embeddings", default)?;
    fields.flag("tie_word_embeddings", outer)
}

/// Which layers have biases. Where a class has none, a configuration that asks for them means
/// another model.
fn biases(fields: &Fields, class: &Class) -> Result<LinearBiases> {
    let attention = fields.flag("attention_bias", false)?;
    let mlp = fields.flag("mlp_bias", false)?;
    let both = LinearBiases { qkv: attention, output: attention, mlp };
    let (fits, biases) = match class.family.biases {
        Biases::AttentionAndMlp => (true, both),
        Biases::Attention => (!mlp, both),
        Biases::Never => (!attention && !mlp, LinearBiases::default()),
        Biases::Qkv => (!mlp, LinearBiases { qkv: true, output: false, mlp: false }),
    };
    if fits {
        return Ok(biases);
    }
    let key = if mlp { "mlp_bias" } else { "attention_bias" };
    Err(unsupported(format!("{} with `{key}`, which that class does not have", class.name)))
}

/// Members of a supported class that compute something else than the decoder graph does.
fn refuse_variants(fields: &Fields, class: &Class) -> Result<()> {
    let of_class = |key: &str, activation: &str| match (class.family.activation, key) {
        (Activation::Silu, _) => matches!(activation, "silu" | "swish"),
        (Activation::GeluTanh, "hidden_activation") => {
            matches!(activation, "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast")
        }
        // Not read by the class: old files say "gelu" there.
        (Activation::GeluTanh, _) => {
            matches!(activation, "gelu" | "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast")
        }
    };
    for key in ["hidden_act", "hidden_activation"] {
        if let Some(activation) = fields.text(key)?
            && !of_class(key, activation)
        {
            let usual = match class.family.activation {
                Activation::Silu => "silu",
                Activation::GeluTanh => "gelu_pytorch_tanh",
            };
            return Err(unsupported(format!(
                "{} with `{key}` \"{activation}\" (\"{usual}\" is supported)",
                class.name
            )));
        }
    }
    let expert_keys = ["n_routed_experts", "num_local_experts", "num_experts"];
    let read = if class.family.experts.is_some() { 1 } else { expert_keys.len() };
    for key in &expert_keys[..read] {
        if let Some(experts) = fields.optional_integer(key, MAX_COUNT)?
            && experts > 1
        {
            return Err(unsupported(format!(
                "{} with a mixture of experts (`{key}` {experts})",
                class.name
            )));
        }
    }
    Ok(())
}

/// The error about a file that should be JSON: what it is instead, if one can see it.
pub(crate) fn not_json(text: &str, path: &Path, error: &serde_json::Error) -> Error {
    present::instead_of_text(path, text)
        .unwrap_or_else(|| Error::damaged(path, format!("not valid JSON: {error}")))
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
pub fn write(config: &ModelConfig) -> String {
    let model_type = config.model_type();
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut root = json!({
        "architectures": [config.class_name],
        "model_type": model_type,
        "hidden_act": match config.family.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        },
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
        "rope_scaling": config_rope::write(config),
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.torch_dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
    });
    (config.family.write)(config, &mut root);
    config_rope::write_rest(config, &mut root);
    windows::write(config, &mut root);
    let mut text = format!("{root:#}");
    text.push('\n');
    text
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

fn dtype(root: &Map<String, Value>, fields: &Fields) -> String {
    let outer = fields.with(root);
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

#[cfg(test)]
mod tests;
