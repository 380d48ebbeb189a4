//! The rotary part of `config.json`: `rope_theta` + `rope_scaling`, or `rope_parameters`.

use serde_json::{Map, Value, json};

use super::config::{ModelConfig, RopeConfig, RopeScaling};
use super::config_json::{Class, Fields, unsupported};
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

/// Sizes that rotations depend on.
pub(super) struct Shape {
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
}

/// Reads base and scaling, and those of layers with a window where they have their own. Transformers
/// 5 puts both into `rope_parameters`, there possibly one set per kind of attention layer.
pub(super) fn parse(
    fields: &Fields,
    class: &Class,
    shape: &Shape,
    warnings: &mut Vec<String>,
) -> Result<(RopeConfig, Option<RopeConfig>)> {
    let own_of_windows = class.family.window_rope;
    let mut scaling = fields.object("rope_parameters")?.or(fields.object("rope_scaling")?);
    let mut window = None;
    if let Some(per_layer) = &scaling
        && let Some(full) = per_layer.object("full_attention")?
    {
        window = per_layer.object("sliding_attention")?;
        if window.as_ref().is_some_and(|window| !own_of_windows && !window.same_as(&full)) {
            return Err(unsupported(format!(
                "{} with other `rope_parameters` for sliding attention",
                class.name
            )));
        }
        scaling = Some(full);
    }
    let none = Map::new();
    let scaling = scaling.unwrap_or_else(|| fields.with(&none));
    let rope = one(fields, &scaling, class, shape, warnings)?;
    if !own_of_windows {
        return Ok((rope, None));
    }
    let window = window.unwrap_or_else(|| fields.with(&none));
    let theta = match window.positive("rope_theta")? {
        None => fields.positive("rope_local_base_freq")?,
        theta => theta,
    };
    refuse_unknown(&window, class.name)?;
    let context = Context {
        head_dim: shape.head_dim,
        max_positions: shape.max_positions,
        beside: None,
        of_class: None,
    };
    let window = RopeConfig {
        theta: theta.unwrap_or(10_000.0),
        scaling: parse_scaling(&window, class.name, &context)?,
        width: None,
    };
    Ok((rope, Some(window)))
}

fn one(
    fields: &Fields,
    scaling: &Fields,
    class: &Class,
    shape: &Shape,
    warnings: &mut Vec<String>,
) -> Result<RopeConfig> {
    refuse_unknown(scaling, class.name)?;
    if let Some(factor) = scaling.get("attn_factor").filter(|factor| !factor.is_null()) {
        warnings.push(format!(
            "`attn_factor` {factor} of config.json's rotary scaling is left out, as transformers \
             does (it reads `attention_factor`); vLLM multiplies with it"
        ));
    }
    let partial = scaling.positive("partial_rotary_factor")?;
    let mut width = None;
    if let Some(part) = partial.or(fields.positive("partial_rotary_factor")?)
        && part < 1.0
    {
        if !class.family.partial_rope {
            return Err(unsupported(format!("{} with `partial_rotary_factor` {part}", class.name)));
        }
        let rotating = (shape.head_dim as f64 * part) as usize;
        if rotating == 0 || !rotating.is_multiple_of(2) {
            return Err(fields.damaged(format!(
                "`partial_rotary_factor` {part} of heads of width {} is {rotating} values",
                shape.head_dim
            )));
        }
        width = Some(rotating);
    }
    let theta = scaling.positive("rope_theta")?.or(fields.positive("rope_theta")?);
    // Phi-3 and its relatives put it beside the rotary scaling.
    let beside = fields.optional_size("original_max_position_embeddings", MAX_POSITIONS)?;
    let context = Context {
        head_dim: width.unwrap_or(shape.head_dim),
        max_positions: shape.max_positions,
        beside,
        of_class: class.family.defaults.original_positions,
    };
    Ok(RopeConfig {
        theta: theta.unwrap_or(class.family.defaults.theta),
        scaling: parse_scaling(scaling, class.name, &context)?,
        width,
    })
}

fn refuse_unknown(scaling: &Fields, class_name: &str) -> Result<()> {
    let neutral = |key: &str, value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        // YaRN's mix with extrapolation, which is whole.
        value => key == "extrapolation_factor" && value.as_f64() == Some(1.0),
    };
    let unknown = scaling.entries().find(|(key, value)| {
        !KNOWN.contains(key) && !IGNORED.contains(key) && !neutral(key, value)
    });
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
    /// What the class assumes for it where it is a member of the class, and then counts more.
    of_class: Option<usize>,
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
        // An older name of it, where the class has factors for long texts only.
        "longrope" | "su" | "yarn" if context.of_class.is_some() => {
            longrope(fields, context, original)
        }
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
    let original = match context.of_class {
        Some(default) => Some(context.beside.unwrap_or(default)),
        None => original.or(context.beside),
    };
    let original_context = original.unwrap_or(context.max_positions);
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

/// What else a configuration says about rotations, beside base and scaling.
pub(super) fn write_rest(config: &ModelConfig, root: &mut Value) {
    if let Some(width) = config.rope.width {
        root["partial_rotary_factor"] = json!(width as f64 / config.head_dim as f64);
    }
    if let Some(window) = &config.window_rope {
        root["rope_local_base_freq"] = json!(window.theta);
    }
    if let Some(positions) = config.original_positions {
        root["original_max_position_embeddings"] = json!(positions);
    }
}

/// The value of `rope_scaling`.
pub(super) fn write(config: &ModelConfig) -> Value {
    let max_positions = config.max_positions;
    match &config.rope.scaling {
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
