//! The rotary part of `config.json`: `rope_theta` + `rope_scaling`, or `rope_parameters`.

use serde_json::{Map, Value, json};

use super::config::{RopeConfig, RopeScaling};
use super::config_json::{Fields, unsupported};
use crate::Result;

const MAX_POSITIONS: u64 = 1 << 40;

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
    let partial = scaling.positive("partial_rotary_factor")?;
    if partial.or(fields.positive("partial_rotary_factor")?).is_some_and(|part| part < 1.0) {
        return Err(unsupported(format!("{class_name} with `partial_rotary_factor` below 1")));
    }
    let theta = scaling.positive("rope_theta")?.or(fields.positive("rope_theta")?);
    Ok(RopeConfig {
        theta: theta.unwrap_or(10_000.0),
        scaling: parse_scaling(&scaling, class_name, head_dim, max_positions, warnings)?,
    })
}

fn parse_scaling(
    fields: &Fields,
    class_name: &str,
    head_dim: usize,
    max_positions: usize,
    warnings: &mut Vec<String>,
) -> Result<RopeScaling> {
    let kind = fields.text("rope_type")?.or(fields.text("type")?).unwrap_or("default");
    let original = fields.optional_size("original_max_position_embeddings", MAX_POSITIONS)?;
    let factor = |what: &str| {
        fields
            .positive("factor")?
            .ok_or_else(|| fields.damaged(format!("rotary scaling \"{what}\" has no `factor`")))
    };
    match kind {
        "default" | "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor("linear")? }),
        "dynamic" => {
            // The base grows only with sequences longer than the trained context.
            warnings.push(format!(
                "rotary scaling \"dynamic\" acts beyond {} tokens only and is left out",
                original.unwrap_or(max_positions)
            ));
            Ok(RopeScaling::None)
        }
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: factor("llama3")?,
            low_freq_factor: fields.positive("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: fields.positive("high_freq_factor")?.unwrap_or(4.0),
            original_context: original.unwrap_or(8192),
        }),
        "yarn" => {
            if !fields.flag("truncate", true)? {
                return Err(unsupported(format!("{class_name} with untruncated YaRN")));
            }
            let original_context = original.unwrap_or(max_positions);
            let factor = match fields.positive("factor")? {
                Some(factor) => factor,
                None => max_positions as f64 / original_context as f64,
            };
            Ok(RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
                attention_factor: yarn_attention_factor(fields, factor)?,
            })
        }
        "longrope" | "su" => per_pair_factors(fields, class_name, head_dim),
        other => Err(unsupported(format!("{class_name} with rotary scaling \"{other}\""))),
    }
}

/// `attention_factor`, or the quotient that `mscale` and `mscale_all_dim` stand for.
fn yarn_attention_factor(fields: &Fields, factor: f64) -> Result<Option<f64>> {
    let given = fields.positive("attention_factor")?;
    let scale = |mscale: f64| if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
    Ok(match (given, fields.positive("mscale")?, fields.positive("mscale_all_dim")?) {
        (Some(given), _, _) => Some(given),
        (None, Some(mscale), Some(all)) => Some(scale(mscale) / scale(all)),
        (None, _, _) => None,
    })
}

/// "longrope" is one divisor per pair of dimensions when the lists for short and long texts are
/// the same and attention is not scaled; that is how [`write()`] spells the factors of GGUF files.
fn per_pair_factors(fields: &Fields, class_name: &str, head_dim: usize) -> Result<RopeScaling> {
    let long = fields.get("long_factor");
    if long.is_none()
        || long != fields.get("short_factor")
        || fields.positive("attention_factor")? != Some(1.0)
    {
        return Err(unsupported(format!(
            "{class_name} with rotary scaling \"longrope\" that depends on the length of the text"
        )));
    }
    let factors: Option<Vec<f32>> = long.and_then(Value::as_array).and_then(|list| {
        list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32)).collect()
    });
    match factors {
        Some(factors)
            if factors.len() == head_dim / 2
                && factors.iter().all(|factor| *factor > 0.0 && factor.is_finite()) =>
        {
            Ok(RopeScaling::Factors(factors))
        }
        _ => Err(fields
            .damaged(format!("`long_factor` is not a list of {} positive numbers", head_dim / 2))),
    }
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
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
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
