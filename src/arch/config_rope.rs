//! The rotary part of `config.json`: `rope_theta` + `rope_scaling`, or `rope_parameters`.

use serde_json::{Map, Value, json};

use super::config::{RopeConfig, RopeScaling};
use super::config_json::{Fields, unsupported};
use crate::Result;

const MAX_POSITIONS: u64 = 1 << 40;

/// The keys of `rope_parameters` and `rope_scaling` that are read, or that belong to another kind of
/// scaling and are ignored by transformers as well. `finetuned` is history; `mrope_section` divides
/// a head among the axes of an image, which are the same for text.
const KNOWN: [&str; 19] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
    "finetuned",
    "mrope_section",
];

/// vLLM multiplies with the first, which transformers ignores; the second orders the axes of images.
const IGNORED: [&str; 2] = ["attn_factor", "mrope_interleaved"];

/// Reads base and scaling. Transformers 5 puts both into `rope_parameters`, there possibly one set
/// per kind of attention layer.
pub(super) fn parse(
    fields: &Fields,
    class_name: &str,
    head_dim: usize,
    max_positions: usize,
    warnings: &mut Vec<String>,
) -> Result<RopeConfig> {
    let mut scaling = fields.object("rope_parameters")?.or(fields.object("rope_scaling")?);
    if let Some(per_layer) = &scaling
        && let Some(full) = per_layer.object("full_attention")?
    {
        let sliding = per_layer.get("sliding_attention");
        if sliding.is_some_and(|sliding| Some(sliding) != per_layer.get("full_attention")) {
            return Err(unsupported(format!(
                "{class_name} with other `rope_parameters` for sliding attention"
            )));
        }
        scaling = Some(full);
    }
    let none = Map::new();
    let scaling = scaling.unwrap_or_else(|| fields.with(&none));
    refuse_unknown(&scaling, class_name)?;
    if let Some(factor) = scaling.get("attn_factor").filter(|factor| !factor.is_null()) {
        warnings.push(format!(
            "`attn_factor` {factor} of config.json's rotary scaling is left out, as transformers \
             does (it reads `attention_factor`); vLLM multiplies with it"
        ));
    }
    let partial = scaling.positive("partial_rotary_factor")?;
    if let Some(part) = partial.or(fields.positive("partial_rotary_factor")?)
        && part < 1.0
    {
        return Err(unsupported(format!("{class_name} with `partial_rotary_factor` {part}")));
    }
    let theta = scaling.positive("rope_theta")?.or(fields.positive("rope_theta")?);
    // Phi-3 and its relatives put it beside the rotary scaling.
    let beside = fields.optional_size("original_max_position_embeddings", MAX_POSITIONS)?;
    let context = Context { head_dim, max_positions, beside };
    Ok(RopeConfig {
        theta: theta.unwrap_or(10_000.0),
        scaling: parse_scaling(&scaling, class_name, &context)?,
    })
}

fn refuse_unknown(scaling: &Fields, class_name: &str) -> Result<()> {
    let neutral = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    let unknown = scaling
        .entries()
        .find(|(key, value)| !KNOWN.contains(key) && !IGNORED.contains(key) && !neutral(value));
    match unknown {
        None => Ok(()),
        Some((key, value)) => {
            Err(unsupported(format!("{class_name} with `{key}` {value} in its rotary scaling")))
        }
    }
}

/// What the scaling does not say itself.
struct Context {
    head_dim: usize,
    max_positions: usize,
    /// `original_max_position_embeddings` of the model's own keys.
    beside: Option<usize>,
}

fn parse_scaling(fields: &Fields, class_name: &str, context: &Context) -> Result<RopeScaling> {
    let max_positions = context.max_positions;
    let kind = fields.text("rope_type")?.or(fields.text("type")?).unwrap_or("default");
    let original = fields.optional_size("original_max_position_embeddings", MAX_POSITIONS)?;
    let factor = |what: &str| {
        fields
            .positive("factor")?
            .ok_or_else(|| fields.damaged(format!("rotary scaling \"{what}\" has no `factor`")))
    };
    match kind {
        "default" | "none" => Ok(RopeScaling::None),
        // For text alone all axes have the same position.
        "mrope" if fields.get("mrope_section").is_some() => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor("linear")? }),
        "dynamic" => {
            Ok(RopeScaling::Dynamic { factor: factor("dynamic")?, original_context: max_positions })
        }
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: factor("llama3")?,
            low_freq_factor: fields.positive("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: fields.positive("high_freq_factor")?.unwrap_or(4.0),
            original_context: original.unwrap_or(8192),
        }),
        "yarn" => {
            let original_context = original.unwrap_or(max_positions);
            let factor = match fields.positive("factor")? {
                Some(factor) => factor,
                None => max_positions as f64 / original_context as f64,
            };
            Ok(RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: or_default(fields, "beta_fast", 32.0)?,
                beta_slow: or_default(fields, "beta_slow", 1.0)?,
                attention_factor: yarn_attention_factor(fields, factor)?,
                truncate: fields.flag("truncate", true)?,
            })
        }
        "longrope" | "su" => longrope(fields, context, original),
        other => Err(unsupported(format!("{class_name} with rotary scaling \"{other}\""))),
    }
}

/// A number above zero; 0 is as if it were not there, as in Python's `or`.
fn or_zero(fields: &Fields, key: &str) -> Result<Option<f64>> {
    match fields.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => fields.positive(key),
    }
}

fn or_default(fields: &Fields, key: &str, default: f64) -> Result<f64> {
    Ok(or_zero(fields, key)?.unwrap_or(default))
}

/// `attention_factor`, or the quotient that `mscale` and `mscale_all_dim` stand for if both are there
/// and not 0.
fn yarn_attention_factor(fields: &Fields, factor: f64) -> Result<Option<f64>> {
    let given = fields.positive("attention_factor")?;
    let scale = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
    Ok(match (given, or_zero(fields, "mscale")?, or_zero(fields, "mscale_all_dim")?) {
        (Some(given), _, _) => Some(given),
        (None, Some(mscale), Some(all)) => Some(scale(mscale) / scale(all)),
        (None, _, _) => None,
    })
}

/// "longrope" is one divisor per pair of dimensions when the lists for short and long texts are
/// the same and attention is not scaled; that is how [`write()`] spells the factors of GGUF files.
fn longrope(fields: &Fields, context: &Context, original: Option<usize>) -> Result<RopeScaling> {
    let pairs = context.head_dim / 2;
    let list = |key: &str| -> Result<Vec<f32>> {
        let values = fields.get(key).and_then(Value::as_array).and_then(|list| {
            list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32)).collect()
        });
        values
            .filter(|values: &Vec<f32>| {
                values.len() == pairs
                    && values.iter().all(|factor| *factor > 0.0 && factor.is_finite())
            })
            .ok_or_else(|| {
                fields.damaged(format!("`{key}` is not a list of {pairs} positive numbers"))
            })
    };
    let (short, long) = (list("short_factor")?, list("long_factor")?);
    let original_context = original.or(context.beside).unwrap_or(context.max_positions);
    let attention_factor = if let Some(given) = fields.positive("attention_factor")? {
        given
    } else {
        let stretch = context.max_positions as f64 / original_context as f64;
        let factor = fields.positive("factor")?.unwrap_or(stretch);
        let scaled = || (1.0 + factor.ln() / (original_context as f64).ln()).sqrt();
        if factor <= 1.0 { 1.0 } else { scaled() }
    };
    if !attention_factor.is_finite() {
        return Err(
            fields.damaged(format!("`original_max_position_embeddings` {original_context}"))
        );
    }
    if short == long && (attention_factor - 1.0).abs() < f64::EPSILON {
        return Ok(RopeScaling::Factors(long));
    }
    Ok(RopeScaling::LongRope { short, long, original_context, attention_factor })
}

/// The value of `rope_scaling`.
pub(super) fn write(scaling: &RopeScaling, max_positions: usize) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => {
            json!({ "rope_type": "linear", "type": "linear", "factor": factor })
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context,
            })
        }
        RopeScaling::Dynamic { factor, .. } => {
            json!({ "rope_type": "dynamic", "type": "dynamic", "factor": factor })
        }
        RopeScaling::LongRope { short, long, original_context, attention_factor } => json!({
            "rope_type": "longrope",
            "type": "longrope",
            "factor": max_positions as f64 / *original_context as f64,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original_context,
            "short_factor": short,
            "long_factor": long,
        }),
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
        } => {
            let mut value = json!({
                "rope_type": "yarn",
                "type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_context,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
            });
            if let Some(attention_factor) = attention_factor {
                value["attention_factor"] = json!(attention_factor);
            }
            if !truncate {
                value["truncate"] = json!(false);
            }
            value
        }
        RopeScaling::Factors(factors) => json!({
            "rope_type": "longrope",
            "type": "longrope",
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": max_positions,
            "short_factor": factors,
            "long_factor": factors,
        }),
    }
}
