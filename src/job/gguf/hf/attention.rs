//! What each layer attends to: windows, soft caps and the scale of the queries, as the configuration
//! says it against what llama.cpp's graph of the architecture computes.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::architectures::{Class, Kind, unsupported};
use super::sizes::Sizes;
use crate::Result;
use crate::arch::config_json::Fields;
use crate::files::gguf::Value;

const MAX_POSITIONS: u64 = u32::MAX as u64;
const MAX_COUNT: u64 = 1 << 16;

/// Caps that do not act, for architectures where llama.cpp always applies one: `c tanh(x / c)` is `x`
/// up to `x³ / 3c²`. That of the attention stays within the range of halves.
const NO_CAP_OF_ATTENTION: f32 = 1e4;
const NO_CAP_OF_LOGITS: f32 = 1e6;

/// The period of windows that llama.cpp assumes for Gemma 3: every sixth layer sees everything.
const GEMMA3_PERIOD: usize = 6;

/// The layers with a window.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Windows {
    /// Tokens that a layer with a window sees; more than the context if there is no limit.
    size: Option<usize>,
    /// Which layers have one.
    layers: Vec<bool>,
}

/// Keys under the prefix of the architecture.
pub(super) fn metadata(
    fields: &Fields,
    class: Class,
    sizes: &Sizes,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<&'static str, Value>> {
    let mut metadata = IndexMap::new();
    let windows = Windows::read(fields, class, sizes)?;
    let number = |size: usize| Value::from(size as u32);
    match class.kind {
        Kind::Gemma2 => {
            let keys = ["attn_logit_softcapping", "final_logit_softcapping"];
            let none = [NO_CAP_OF_ATTENTION, NO_CAP_OF_LOGITS];
            for ((key, default), none) in keys.into_iter().zip([50.0, 30.0]).zip(none) {
                metadata.insert(key, Value::from(cap(fields, key, default, none, warnings)?));
            }
            let size = windows.for_pattern(class, sizes, |layer| layer % 2 == 0)?;
            metadata.insert("attention.sliding_window", number(size));
        }
        Kind::Gemma3 => {
            if let Some(cap) = fields.positive("final_logit_softcapping")? {
                metadata.insert("final_logit_softcapping", Value::from(cap as f32));
            }
            // Another graph, without windows, if there are none.
            if windows.layers.contains(&true) {
                let period = windows.period(class)?;
                metadata.insert("attention.sliding_window", number(windows.size_or(sizes)));
                if period != GEMMA3_PERIOD {
                    metadata.insert("attention.sliding_window_pattern", number(period));
                }
            }
        }
        kind => {
            if kind == Kind::Phi3 {
                let size = windows.size.unwrap_or(0);
                metadata.insert("attention.sliding_window", number(size));
            }
            warnings.extend(windows.lost(sizes));
        }
    }
    Ok(metadata)
}

/// A soft cap: the class's own one if the key is missing, one that does not act if it is null.
fn cap(
    fields: &Fields,
    key: &str,
    default: f32,
    none: f32,
    warnings: &mut Vec<String>,
) -> Result<f32> {
    if fields.get(key).is_none() {
        return Ok(default);
    }
    if let Some(cap) = fields.positive(key)? {
        return Ok(cap as f32);
    }
    warnings.push(format!(
        "the model has no `{key}`, and llama.cpp always applies one: the file says {none}, \
         which changes nothing"
    ));
    Ok(none)
}

impl Windows {
    fn read(fields: &Fields, class: Class, sizes: &Sizes) -> Result<Self> {
        let stated = layer_types(fields, class, sizes.layers)?;
        let refused = |why: &str| Err(unsupported(format!("{} with {why}", class.name)));
        let default = match class.kind {
            Kind::Llama | Kind::Mixtral | Kind::Phi3 => None,
            _ => Some(4096),
        };
        let mut size = match fields.get("sliding_window") {
            None => default,
            Some(_) => fields.optional_integer("sliding_window", MAX_POSITIONS)?,
        };
        size = size.filter(|&size| size > 0);
        let optional =
            matches!(class.kind, Kind::Qwen2 | Kind::Qwen3 | Kind::Qwen2Moe | Kind::Qwen3Moe);
        if optional && !fields.flag("use_sliding_window", false)? {
            size = None;
        }
        let any = stated.as_ref().is_some_and(|layers| layers.contains(&true));
        let every = |rule: &dyn Fn(usize) -> bool| (0..sizes.layers).map(rule).collect();
        let layers: Vec<bool> = match (class.kind, stated) {
            (Kind::Gemma2 | Kind::Gemma3 | Kind::Qwen2 | Kind::Qwen3 | Kind::Qwen2Moe, Some(l)) => {
                if any && size.is_none() {
                    return refused("`layer_types` that slide and no `sliding_window`");
                }
                l
            }
            (Kind::Mistral, Some(layers)) => {
                // transformers reads such a configuration as Ministral.
                if any && layers.contains(&false) {
                    return refused("`layer_types` of two kinds (Ministral)");
                }
                layers
            }
            (_, Some(_)) if any => return refused("`layer_types` that slide"),
            // These classes read no such list: one without a window anywhere says nothing.
            (Kind::Llama, _) => vec![false; sizes.layers],
            (Kind::Gemma2, None) => every(&|layer| layer % 2 == 0),
            (Kind::Gemma3, None) => {
                let key = "sliding_window_pattern";
                let period = fields.optional_size(key, MAX_POSITIONS)?.unwrap_or(GEMMA3_PERIOD);
                every(&|layer| (layer + 1) % period != 0)
            }
            (Kind::Qwen2 | Kind::Qwen3 | Kind::Qwen2Moe, None) => {
                let first = fields.optional_integer("max_window_layers", MAX_COUNT)?.unwrap_or(28);
                every(&|layer| layer >= first)
            }
            (Kind::Mistral | Kind::Mixtral | Kind::Phi3 | Kind::Qwen3Moe, _) => {
                vec![true; sizes.layers]
            }
        };
        Ok(Self { size, layers })
    }

    /// The number of layers in which the window is shorter than the context.
    fn limited(&self, sizes: &Sizes) -> usize {
        match self.size {
            Some(size) if size < sizes.context => {
                self.layers.iter().filter(|slides| **slides).count()
            }
            _ => 0,
        }
    }

    /// The size to write: that of the context where there is no limit.
    fn size_or(&self, sizes: &Sizes) -> usize {
        self.size.filter(|_| self.layers.contains(&true)).unwrap_or(sizes.context)
    }

    /// The size to write for a graph that slides in the layers of a fixed rule.
    fn for_pattern(
        &self,
        class: Class,
        sizes: &Sizes,
        slides: impl Fn(usize) -> bool,
    ) -> Result<usize> {
        let same = self.layers.iter().enumerate().all(|(layer, own)| *own == slides(layer));
        if self.limited(sizes) > 0 && !same {
            return Err(unsupported(format!(
                "{} with other `layer_types` than a window in every other layer from the first on",
                class.name
            )));
        }
        Ok(self.size_or(sizes))
    }

    /// The period that makes these layers in llama.cpp, where the last one of each period sees
    /// everything; 0 is a window everywhere. It matters even where no window is shorter than the
    /// context: layers with one have a rotary base of their own.
    fn period(&self, class: Class) -> Result<usize> {
        let makes = |period: usize| {
            let slides = |layer: usize| period == 0 || layer % period < period - 1;
            self.layers.iter().enumerate().all(|(layer, own)| *own == slides(layer))
        };
        let mut periods = [GEMMA3_PERIOD, 0].into_iter().chain(2..=self.layers.len());
        periods.find(|&period| makes(period)).ok_or_else(|| {
            unsupported(format!("{} with `layer_types` that do not repeat", class.name))
        })
    }

    /// What to say about windows that llama.cpp does not have for this architecture.
    fn lost(&self, sizes: &Sizes) -> Option<String> {
        let limited = self.limited(sizes);
        let size = self.size?;
        (limited > 0).then(|| {
            let layers = match limited {
                all if all == sizes.layers => "all layers".to_owned(),
                some => format!("{some} of {} layers", sizes.layers),
            };
            format!(
                "the model's sliding window of {size} tokens in {layers} is not used by llama.cpp, \
                 which attends to the whole context: texts of more than {size} tokens are answered \
                 differently"
            )
        })
    }
}

/// `layer_types`: whether each layer has a window.
fn layer_types(fields: &Fields, class: Class, layers: usize) -> Result<Option<Vec<bool>>> {
    let list = match fields.get("layer_types") {
        None | Some(Json::Null) => return Ok(None),
        Some(list) => list
            .as_array()
            .ok_or_else(|| fields.damaged(format!("`layer_types` is {list}, not a list")))?,
    };
    if list.len() < layers {
        return Err(
            fields.damaged(format!("`layer_types` has {} entries for {layers} layers", list.len()))
        );
    }
    let slides = |kind: &Json| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(unsupported(format!("{} with layers of type {kind}", class.name))),
    };
    list.iter().take(layers).map(slides).collect::<Result<_>>().map(Some)
}
