//! Which layers see a window only: `sliding_window`, `max_window_layers`, `layer_types`.

use serde_json::{Value, json};

use super::classes::{Class, unsupported};
use super::fields::Fields;
use super::{MAX_COUNT, MAX_POSITIONS};
use crate::Result;
use crate::arch::config::{ModelConfig, SlidingWindow};
use crate::arch::families::MINISTRAL;
use crate::arch::family::Windows;

/// See [`Windows`].
pub(super) fn read(
    fields: &Fields,
    class: &Class,
    (layers, max_positions): (usize, usize),
) -> Result<Option<SlidingWindow>> {
    let rule = class.family.windows;
    let typed = match rule {
        Windows::Never => false,
        Windows::Stated { typed, .. } | Windows::Switched { typed } => typed,
        Windows::Periodic { .. } => true,
    };
    let mut named = layer_types(fields, layers)?;
    if !typed {
        // The class reads no such list: one without a window anywhere says nothing.
        if named.is_some_and(|named| named.contains(&true)) {
            return Err(unsupported(format!(
                "{} with `layer_types` of sliding attention",
                class.name
            )));
        }
        named = None;
    }
    let size = match rule {
        Windows::Never => return Ok(None),
        Windows::Switched { .. } if !fields.flag("use_sliding_window", false)? => None,
        Windows::Stated { default, .. } => stated(fields, default)?,
        Windows::Switched { .. } => stated(fields, Some(4096))?,
        // A window of all that there can be; its layers may differ in more than the window.
        Windows::Periodic { .. } => stated(fields, Some(4096))?.or(Some(max_positions)),
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
    let window = match (named, rule) {
        (Some(layers), _) => SlidingWindow { size, layers },
        (None, Windows::Switched { typed: true }) => {
            let first = fields.optional_integer("max_window_layers", MAX_COUNT)?.unwrap_or(28);
            SlidingWindow::from_layer(size, first, layers)
        }
        (None, Windows::Periodic { period, keys }) => {
            let mut period = period;
            for key in keys {
                period = fields.optional_size(key, MAX_COUNT)?.unwrap_or(period);
            }
            let limited = |layer: usize| !(layer + 1).is_multiple_of(period);
            SlidingWindow { size, layers: (0..layers).map(limited).collect() }
        }
        (None, _) => SlidingWindow::from_layer(size, 0, layers),
    };
    Ok(Some(window).filter(|window| window.layers.contains(&true)))
}

/// `sliding_window`: null is none.
fn stated(fields: &Fields, default: Option<usize>) -> Result<Option<usize>> {
    match fields.get("sliding_window") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => fields.optional_size("sliding_window", MAX_POSITIONS),
    }
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
    let listed = match config.family.windows {
        Windows::Never => return,
        Windows::Stated { typed, .. } => {
            root["sliding_window"] = json!(size);
            typed && (config.class_name == MINISTRAL || first.is_none())
        }
        Windows::Switched { typed } => {
            root["use_sliding_window"] = json!(size.is_some());
            root["sliding_window"] = json!(size);
            root["max_window_layers"] = json!(first.unwrap_or(config.num_layers));
            typed && first.is_none()
        }
        Windows::Periodic { .. } => {
            root["sliding_window"] = json!(size);
            true
        }
    };
    if listed {
        let limited = |layer| window.is_some_and(|window| window.of(layer).is_some());
        let name = |layer| if limited(layer) { "sliding_attention" } else { "full_attention" };
        root["layer_types"] = (0..config.num_layers).map(name).collect();
    }
}
