//! Which layers see a window only: `sliding_window`, `max_window_layers`, `layer_types`.

use serde_json::{Value, json};

use super::classes::{MINISTRAL, unsupported};
use super::fields::Fields;
use super::{MAX_COUNT, MAX_POSITIONS};
use crate::Result;
use crate::arch::config::{Architecture, ModelConfig, SlidingWindow};

/// Mistral limits every layer, or those that `layer_types` names; Qwen limits the layers from
/// `max_window_layers` on, or those that `layer_types` names, and only with `use_sliding_window`.
pub(super) fn read(
    fields: &Fields,
    architecture: Architecture,
    layers: usize,
) -> Result<Option<SlidingWindow>> {
    let named = layer_types(fields, layers)?;
    let enabled = match architecture {
        Architecture::Llama => {
            return match named {
                Some(named) if named.contains(&true) => Err(unsupported(
                    "LlamaForCausalLM with `layer_types` of sliding attention".to_owned(),
                )),
                _ => Ok(None),
            };
        }
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => fields.flag("use_sliding_window", false)?,
    };
    let size = match fields.get("sliding_window") {
        _ if !enabled => None,
        None => Some(4096),
        Some(Value::Null) => None,
        Some(_) => fields.optional_size("sliding_window", MAX_POSITIONS)?,
    };
    let Some(size) = size else {
        return match named {
            // The mask of such a layer is made from a size that is not there.
            Some(named) if named.contains(&true) => Err(unsupported(
                "`layer_types` with sliding attention and no `sliding_window`".to_owned(),
            )),
            _ => Ok(None),
        };
    };
    let window = match (named, architecture) {
        (Some(layers), _) => SlidingWindow { size, layers },
        (None, Architecture::Qwen2 | Architecture::Qwen3) => {
            let first = fields.optional_integer("max_window_layers", MAX_COUNT)?.unwrap_or(28);
            SlidingWindow::from_layer(size, first, layers)
        }
        (None, _) => SlidingWindow::from_layer(size, 0, layers),
    };
    Ok(Some(window).filter(|window| window.layers.contains(&true)))
}

/// Of each layer whether `layer_types` limits it; `None` without that key.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>> {
    let types = match fields.get("layer_types") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(types)) => types,
        Some(other) => {
            return Err(fields.damaged(format!("`layer_types` is {other}, not a list")));
        }
    };
    if types.len() != layers {
        return Err(fields.damaged(format!(
            "`layer_types` has {} entries, `num_hidden_layers` is {layers}",
            types.len()
        )));
    }
    let limited = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(unsupported(format!(
            "`layer_types` with {kind} (\"full_attention\" and \"sliding_attention\" are supported)"
        ))),
    };
    types.iter().map(limited).collect::<Result<_>>().map(Some)
}

/// Writes what [`read`] reads.
pub(super) fn write(config: &ModelConfig, root: &mut Value) {
    let window = config.sliding_window.as_ref();
    let size = window.map(|window| window.size);
    let first = window.map_or(Some(config.num_layers), SlidingWindow::first_of_rest);
    match config.architecture {
        Architecture::Llama => return,
        Architecture::Mistral => root["sliding_window"] = json!(size),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            root["use_sliding_window"] = json!(size.is_some());
            root["sliding_window"] = json!(size);
            root["max_window_layers"] = json!(first.unwrap_or(config.num_layers));
        }
    }
    if config.class_name == MINISTRAL || first.is_none() {
        let limited = |layer| window.is_some_and(|window| window.of(layer).is_some());
        let name = |layer| if limited(layer) { "sliding_attention" } else { "full_attention" };
        root["layer_types"] = (0..config.num_layers).map(name).collect();
    }
}
