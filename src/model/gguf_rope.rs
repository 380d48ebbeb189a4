//! Rotary positions of a GGUF file: keys under `rope.scaling`, and the tensors of factors that are
//! configuration.

use indexmap::IndexMap;

use super::gguf::Keys;
use crate::Result;
use crate::arch::config::RopeScaling;
use crate::arch::config_json;
use crate::weight::StoredTensor;

/// A divisor for each frequency.
const FACTORS: &str = "rope_freqs.weight";
/// The same within the trained context, and beyond it.
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Whether a tensor is configuration, and no weight.
pub(super) fn is_factors(tensor: &str) -> bool {
    [FACTORS, SHORT, LONG].contains(&tensor)
}

/// What is done to the frequencies.
///
/// # Errors
/// [`crate::Error::Unsupported`] for what llama.cpp can combine and this crate does not compute,
/// [`crate::Error::ValidationFailed`] for factors that are none.
pub(super) fn scaling(
    keys: &Keys,
    tensors: &IndexMap<String, StoredTensor>,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeScaling> {
    let kind = keys.file.text(&keys.key("rope.scaling.type"))?.unwrap_or("none");
    let factor = match keys.positive("rope.scaling.factor")? {
        None => keys.positive("rope.scale_linear")?,
        factor => factor,
    };
    let unscaled = factor.is_none_or(|factor| (factor - 1.0).abs() < 1e-9);
    let unsupported = |what: String| {
        config_json::unsupported(format!(
            "architecture {} with {what} is not supported",
            keys.prefix
        ))
    };
    let by_keys = match kind {
        // llama.cpp takes the factors of long texts from the tensors alone.
        "none" | "longrope" => RopeScaling::None,
        "linear" if unscaled => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor.unwrap_or(1.0) },
        "yarn" => yarn(keys, factor, max_positions)?,
        other => return Err(unsupported(format!("rotary scaling \"{other}\""))),
    };
    // That of YaRN is part of it; elsewhere it is a scale of cosine and sine of its own.
    let magnitude = match kind {
        "yarn" => None,
        _ => attention_scale(keys)?.filter(|scale| (scale - 1.0).abs() > 1e-9),
    };
    let [factors, short, long] = [FACTORS, SHORT, LONG].map(|name| tensors.get(name));
    let by_tensors = factors.or(short).or(long).is_some();
    if by_keys != RopeScaling::None && (by_tensors || magnitude.is_some()) {
        let what = if by_tensors { "factors of frequencies" } else { "`rope.scaling.attn_factor`" };
        return Err(unsupported(format!("both {what} and rotary scaling \"{kind}\"")));
    }
    let read = |tensor: &StoredTensor| {
        let values = tensor.to_f32();
        let right = values.len() == head_dim / 2
            && values.iter().all(|value| *value > 0.0 && value.is_finite());
        right.then_some(values).ok_or_else(|| {
            keys.file.damaged(format!(
                "factors of frequencies are not {} positive numbers",
                head_dim / 2
            ))
        })
    };
    let long_rope = |short: Vec<f32>, long: Vec<f32>| -> Result<RopeScaling> {
        let original = keys.optional_size("rope.scaling.original_context_length", u32::MAX)?;
        Ok(RopeScaling::LongRope {
            short,
            long,
            original_context: original.unwrap_or(max_positions),
            attention_factor: magnitude.unwrap_or(1.0),
        })
    };
    match (factors, short, long) {
        (_, None, _) | (_, _, None) if kind == "longrope" => {
            Err(unsupported(format!("rotary scaling \"longrope\" and no {SHORT} and {LONG}")))
        }
        (None, None, None) if magnitude.is_none() => Ok(by_keys),
        (None, None, None) => long_rope(vec![1.0; head_dim / 2], vec![1.0; head_dim / 2]),
        (Some(factors), None, None) if magnitude.is_none() => {
            Ok(RopeScaling::Factors(read(factors)?))
        }
        (Some(factors), None, None) => long_rope(read(factors)?, read(factors)?),
        (None, Some(short), Some(long)) => long_rope(read(short)?, read(long)?),
        _ => Err(unsupported(format!("a part of {FACTORS}, {SHORT} and {LONG}"))),
    }
}

/// The scale of cosine and sine that a file states.
fn attention_scale(keys: &Keys) -> Result<Option<f64>> {
    Ok(match keys.positive("rope.scaling.yarn_attn_factor")? {
        None => keys.positive("rope.scaling.attn_factor")?,
        scale => scale,
    })
}

/// llama.cpp multiplies `attn_factor` with the scale that the paper prescribes.
fn yarn(keys: &Keys, factor: Option<f64>, max_positions: usize) -> Result<RopeScaling> {
    let factor = factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?;
    if keys.positive("rope.scaling.yarn_ext_factor")?.is_some_and(|mix| (mix - 1.0).abs() > 1e-9) {
        return Err(config_json::unsupported(format!(
            "architecture {} with partial YaRN (yarn_ext_factor) is not supported",
            keys.prefix
        )));
    }
    let more = attention_scale(keys)?;
    Ok(RopeScaling::Yarn {
        factor,
        original_context: keys
            .optional_size("rope.scaling.original_context_length", u32::MAX)?
            .unwrap_or(max_positions),
        beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor: more.map(|more| more * (0.1 * factor.ln() + 1.0)),
        truncate: true,
    })
}
