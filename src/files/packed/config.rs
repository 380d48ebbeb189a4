//! `quantization_config` of a `config.json`: read from any writer, written for every reader.

use serde_json::{Map, Value, json};

use crate::codec::affine::gptq::Version;
use crate::{Error, Result};

/// What a checkpoint says about its packed layers.
#[derive(Debug, Clone, PartialEq)]
pub enum QuantizationConfig {
    /// `quant_method` "gptq".
    Gptq(GptqConfig),
    /// `quant_method` "awq".
    Awq(AwqConfig),
    /// `quant_method` "compressed-tensors", format "int-quantized".
    W8A8(W8A8Config),
}

/// A GPTQ checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the switches of the file")]
pub struct GptqConfig {
    /// Bits of an integer.
    pub bits: u8,
    /// Inputs that share a scale; `None` is a whole row (-1 in the file).
    pub group: Option<usize>,
    /// Whether zero points are all in the middle.
    pub symmetric: bool,
    /// Act-order: inputs grouped in the order of their activations.
    pub desc_act: bool,
    /// How zero points are stored.
    pub version: Version,
    /// What was added to the Hessian's diagonal, as a fraction of its mean.
    pub damp_percent: f64,
    /// Whether groups were fixed before columns were reordered.
    pub static_groups: bool,
    /// Whether each layer was quantized on what the quantized layers before it compute.
    pub true_sequential: bool,
    /// Overrides by a regular expression on the layer's name: `+:` with other values, `-:` for layers
    /// that are not packed. `{}` where there are none.
    pub dynamic: Map<String, Value>,
}

/// An AWQ checkpoint in the GEMM layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwqConfig {
    /// Inputs that share a scale; `None` is a whole row.
    pub group: Option<usize>,
    /// Layers that are not packed, by a part of their name.
    pub not_converted: Vec<String>,
}

/// A compressed-tensors checkpoint with 8-bit weights and activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct W8A8Config {
    /// Layers that are not packed: names, or `re:` and a regular expression.
    pub ignore: Vec<String>,
}

/// The program that wrote a file, as `meta.quantizer` names it.
fn quantizer() -> String {
    concat!("llm-quantize:", env!("CARGO_PKG_VERSION")).to_owned()
}

fn group_size(group: Option<usize>) -> Value {
    group.map_or(json!(-1), |group| json!(group))
}

impl GptqConfig {
    /// The object that stands in `config.json` and, the same, in `quantize_config.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "bits": self.bits,
            "group_size": group_size(self.group),
            "damp_percent": self.damp_percent,
            "desc_act": self.desc_act,
            "static_groups": self.static_groups,
            "sym": self.symmetric,
            "true_sequential": self.true_sequential,
            "lm_head": false,
            "quant_method": "gptq",
            "checkpoint_format": match self.version {
                Version::V1 => "gptq",
                Version::V2 => "gptq_v2",
            },
            "pack_dtype": "int32",
            "meta": { "quantizer": [quantizer()] },
        });
        if !self.dynamic.is_empty() {
            value["dynamic"] = Value::Object(self.dynamic.clone());
        }
        value
    }
}

impl AwqConfig {
    /// The object that stands in `config.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "quant_method": "awq",
            "bits": 4,
            "group_size": group_size(self.group),
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": match self.not_converted.as_slice() {
                [] => Value::Null,
                list => json!(list),
            },
        })
    }
}

impl W8A8Config {
    /// The object that stands in `config.json`. The scheme forbids keys of others, so nothing says who
    /// wrote it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel",
                        "dynamic": false, "group_size": null, "observer": "minmax",
                    },
                    "input_activations": {
                        "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token",
                        "dynamic": true,
                    },
                    "output_activations": null,
                },
            },
            "ignore": self.ignore,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        })
    }
}

impl QuantizationConfig {
    /// The object that stands in `config.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Gptq(config) => config.to_json(),
            Self::Awq(config) => config.to_json(),
            Self::W8A8(config) => config.to_json(),
        }
    }

    /// `gptq`, `awq` or `smoothquant`: the format as this crate's commands name it.
    #[must_use]
    pub fn format(&self) -> &'static str {
        match self {
            Self::Gptq(_) => "gptq",
            Self::Awq(_) => "awq",
            Self::W8A8(_) => "smoothquant",
        }
    }

    /// Reads the object of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for methods and layouts that cannot be read, by name.
    pub fn parse(value: &Map<String, Value>) -> Result<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        match text("quant_method").unwrap_or("unknown") {
            "gptq" | "gptqmodel" => parse_gptq(value).map(Self::Gptq),
            "awq" => parse_awq(value).map(Self::Awq),
            "compressed-tensors" => parse_w8a8(value).map(Self::W8A8),
            other => Err(unsupported(format!(
                "the checkpoint is quantized by a method that is not read (quant_method \"{other}\")"
            ))),
        }
    }
}

pub(crate) fn unsupported(message: String) -> Error {
    Error::Unsupported {
        message,
        suggestion: "GPTQ (2, 3, 4, 8 bits), AWQ (4-bit GEMM) and compressed-tensors W8A8 \
                     (int-quantized) are read; otherwise use the original checkpoint or a GGUF file"
            .to_owned(),
    }
}

fn bits(value: &Map<String, Value>) -> Result<u8> {
    let key = ["bits", "w_bit"].into_iter().find(|key| value.contains_key(*key)).unwrap_or("bits");
    value
        .get(key)
        .and_then(Value::as_u64)
        .and_then(|bits| u8::try_from(bits).ok())
        .ok_or_else(|| unsupported("`quantization_config` has no `bits`".to_owned()))
}

/// -1, null or 0 is a whole row.
fn group(value: &Map<String, Value>) -> Result<Option<usize>> {
    let key = if value.contains_key("q_group_size") { "q_group_size" } else { "group_size" };
    match value.get(key) {
        None => Ok(Some(128)),
        Some(Value::Null) => Ok(None),
        Some(size) => match size.as_i64() {
            Some(-1 | 0) => Ok(None),
            Some(size) if size > 0 => Ok(Some(size as usize)),
            _ => Err(unsupported(format!("`group_size` is {size}"))),
        },
    }
}

fn flag(value: &Map<String, Value>, key: &str, default: bool) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn parse_gptq(value: &Map<String, Value>) -> Result<GptqConfig> {
    let bits = bits(value)?;
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(unsupported(format!("GPTQ with {bits} bits")));
    }
    let format = ["checkpoint_format", "format"]
        .into_iter()
        .find_map(|key| value.get(key).and_then(Value::as_str))
        .unwrap_or("gptq");
    let version = match format {
        "gptq" => Version::V1,
        "gptq_v2" => Version::V2,
        other => return Err(unsupported(format!("GPTQ with checkpoint_format \"{other}\""))),
    };
    if let Some(pack) = value.get("pack_dtype").and_then(Value::as_str)
        && pack != "int32"
    {
        return Err(unsupported(format!("GPTQ packed in {pack}")));
    }
    if flag(value, "lm_head", false) {
        return Err(unsupported("GPTQ with a packed `lm_head`".to_owned()));
    }
    let dynamic = value.get("dynamic").and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(GptqConfig {
        bits,
        group: group(value)?,
        symmetric: flag(value, "sym", true),
        desc_act: flag(value, "desc_act", false),
        version,
        damp_percent: value.get("damp_percent").and_then(Value::as_f64).unwrap_or(0.01),
        static_groups: flag(value, "static_groups", false),
        true_sequential: flag(value, "true_sequential", true),
        dynamic,
    })
}

fn parse_awq(value: &Map<String, Value>) -> Result<AwqConfig> {
    let bits = bits(value)?;
    if bits != 4 {
        return Err(unsupported(format!("AWQ with {bits} bits")));
    }
    let version = value.get("version").and_then(Value::as_str).unwrap_or("gemm").to_lowercase();
    if version != "gemm" {
        return Err(unsupported(format!("AWQ in the layout \"{version}\"")));
    }
    if !flag(value, "zero_point", true) {
        return Err(unsupported("AWQ without zero points".to_owned()));
    }
    Ok(AwqConfig {
        group: group(value)?,
        not_converted: strings(value.get("modules_to_not_convert")),
    })
}

fn parse_w8a8(value: &Map<String, Value>) -> Result<W8A8Config> {
    let refused = |what: &str| Err(unsupported(format!("compressed-tensors with {what}")));
    let format = value.get("format").and_then(Value::as_str).unwrap_or("unknown");
    if format != "int-quantized" {
        return refused(&format!("the format \"{format}\""));
    }
    let groups = value.get("config_groups").and_then(Value::as_object);
    let groups: Vec<&Value> = groups.into_iter().flatten().map(|(_, group)| group).collect();
    let [group] = groups[..] else {
        return refused(&format!("{} config groups", groups.len()));
    };
    let read = |which: &str, key: &str| group.get(which).and_then(|part| part.get(key)).cloned();
    let is = |which: &str, key: &str, want: &Value| read(which, key).as_ref() == Some(want);
    if !is("weights", "num_bits", &json!(8)) || !is("weights", "type", &json!("int")) {
        return refused("weights that are not 8-bit integers");
    }
    if read("weights", "symmetric") == Some(json!(false)) {
        return refused("zero points");
    }
    if !is("weights", "strategy", &json!("channel")) {
        return refused("scales that are not one for each channel");
    }
    let activations = group.get("input_activations").filter(|value| !value.is_null());
    if activations.is_none() {
        return refused("activations that are not rounded");
    }
    if !is("input_activations", "num_bits", &json!(8))
        || !is("input_activations", "dynamic", &json!(true))
        || !is("input_activations", "strategy", &json!("token"))
        || read("input_activations", "symmetric") == Some(json!(false))
    {
        return refused("activations that are not rounded to 8 bits, symmetric, token by token");
    }
    Ok(W8A8Config { ignore: strings(value.get("ignore")) })
}
