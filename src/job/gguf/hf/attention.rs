//! What each layer attends to: windows and soft caps as the model has them, against what llama.cpp's
//! graph of the architecture computes.

use indexmap::IndexMap;

use super::limits::{Graph, unsupported};
use crate::Result;
use crate::arch::ModelConfig;
use crate::files::gguf::Value;

/// Caps that do not act, for architectures where llama.cpp always applies one: `c tanh(x / c)` is `x`
/// up to `x³ / 3c²`. That of the attention stays within the range of halves.
const NO_CAP_OF_ATTENTION: f32 = 1e4;
const NO_CAP_OF_LOGITS: f32 = 1e6;

/// The period of windows that llama.cpp assumes for Gemma 3: every sixth layer sees everything.
const GEMMA3_PERIOD: usize = 6;

/// Keys under the prefix of the architecture.
pub(super) fn metadata(
    config: &ModelConfig,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<&'static str, Value>> {
    let mut metadata = IndexMap::new();
    let number = |size: usize| Value::from(size as u32);
    let size = config.sliding_window.as_ref().map_or(config.max_positions, |window| window.size);
    match Graph::of(config) {
        Graph::Alternating => {
            let caps = [
                ("attn_logit_softcapping", config.attention_soft_cap, NO_CAP_OF_ATTENTION),
                ("final_logit_softcapping", config.logit_soft_cap, NO_CAP_OF_LOGITS),
            ];
            for (key, own, none) in caps {
                let own = own.map(|cap| cap as f32);
                warnings.extend(own.is_none().then(|| {
                    format!(
                        "the model has no `{key}`, and llama.cpp always applies one: the file says \
                         {none}, which changes nothing"
                    )
                }));
                metadata.insert(key, Value::from(own.unwrap_or(none)));
            }
            let same = (0..config.num_layers)
                .all(|layer| config.has_window(layer) == layer.is_multiple_of(2));
            if limited(config) > 0 && !same {
                return Err(unsupported(format!(
                    "{} with other `layer_types` than a window in every other layer from the first \
                     on",
                    config.class_name
                )));
            }
            metadata.insert("attention.sliding_window", number(size));
        }
        Graph::Periodic => {
            if let Some(cap) = config.logit_soft_cap {
                metadata.insert("final_logit_softcapping", Value::from(cap as f32));
            }
            // Another graph, without windows, if there are none.
            if config.sliding_window.is_some() {
                let period = period(config)?;
                metadata.insert("attention.sliding_window", number(size));
                if period != GEMMA3_PERIOD {
                    metadata.insert("attention.sliding_window_pattern", number(period));
                }
            }
        }
        Graph::Unlimited { states_window } => {
            if states_window {
                let size = config.sliding_window.as_ref().map_or(0, |window| window.size);
                metadata.insert("attention.sliding_window", number(size));
            }
            warnings.extend(lost(config));
        }
    }
    Ok(metadata)
}

/// The number of layers in which the window is shorter than the context.
fn limited(config: &ModelConfig) -> usize {
    match &config.sliding_window {
        Some(window) if window.size < config.max_positions => {
            window.layers.iter().filter(|limited| **limited).count()
        }
        _ => 0,
    }
}

/// The period that makes these layers in llama.cpp, where the last one of each period sees
/// everything; 0 is a window everywhere. It matters even where no window is shorter than the
/// context: layers with one have a rotary base of their own.
fn period(config: &ModelConfig) -> Result<usize> {
    let makes = |period: usize| {
        (0..config.num_layers)
            .all(|layer| config.has_window(layer) == (period == 0 || layer % period < period - 1))
    };
    let mut periods = [GEMMA3_PERIOD, 0].into_iter().chain(2..=config.num_layers);
    periods.find(|&period| makes(period)).ok_or_else(|| {
        unsupported(format!("{} with `layer_types` that do not repeat", config.class_name))
    })
}

/// What to say about windows that llama.cpp does not have for this architecture.
fn lost(config: &ModelConfig) -> Option<String> {
    let limited = limited(config);
    let size = config.sliding_window.as_ref()?.size;
    (limited > 0).then(|| {
        let layers = match limited {
            all if all == config.num_layers => "all layers".to_owned(),
            some => format!("{some} of {} layers", config.num_layers),
        };
        format!(
            "the model's sliding window of {size} tokens in {layers} is not used by llama.cpp, \
             which attends to the whole context: texts of more than {size} tokens are answered \
             differently"
        )
    })
}
