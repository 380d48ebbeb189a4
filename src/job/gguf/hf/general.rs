//! `general.*`: what the model is called, whose it is, and how its authors sample from it.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::card::Card;
use super::names;
use crate::arch::names::size_label;
use crate::files::gguf::{Array, Value};
use crate::job::gguf::tensor::GgufTensor;

/// What the metadata is made from.
pub(super) struct General<'a> {
    /// llama.cpp's name of the architecture.
    pub(super) architecture: &'a str,
    /// Hub id (`org/name`), or the directory's name.
    pub(super) id: &'a str,
    pub(super) card: &'a Card,
    /// `generation_config.json`
    pub(super) generation: Option<&'a Json>,
    pub(super) tensors: &'a [GgufTensor],
    pub(super) experts: usize,
    pub(super) provenance: bool,
}

impl General<'_> {
    /// All keys of `general.*` that a source knows; the type of the file is not among them.
    pub(super) fn metadata(&self) -> IndexMap<String, Value> {
        let mut metadata = IndexMap::new();
        let mut set = |key: &str, value: Value| {
            metadata.insert(format!("general.{key}"), value);
        };
        set("architecture", self.architecture.into());
        set("type", "model".into());
        self.sampling(&mut set);

        let (organization, model) = split_id(self.id);
        let parameters = self.tensors.iter().map(|tensor| tensor.elements() as u64).sum();
        let parts = names::parts(model, parameters);
        let stated = self.card.get("model_name").and_then(|names| names.first().cloned());
        set("name", stated.unwrap_or_else(|| names::title(model)).into());
        let organization = organization.filter(|_| self.provenance);
        for (key, value) in [
            ("organization", organization.map(names::title)),
            ("version", parts.version),
            ("finetune", parts.finetune),
            ("basename", parts.basename),
        ] {
            if let Some(value) = value {
                set(key, value.into());
            }
        }
        set("size_label", parts.size_label.unwrap_or_else(|| self.size_label()).into());
        self.card(parameters, &mut set);
        if self.provenance {
            set("quantized_by", concat!("llm-quantize ", env!("CARGO_PKG_VERSION")).into());
            if organization.is_some() {
                let address = format!("https://huggingface.co/{}", self.id);
                set("source.repo_url", address.into());
            }
        }
        metadata
    }

    fn card(&self, parameters: u64, set: &mut impl FnMut(&str, Value)) {
        let first = |key: &str| self.card.get(key).and_then(|values| values.first().cloned());
        for (key, name) in [
            ("license", "license"),
            ("license_name", "license.name"),
            ("license_link", "license.link"),
        ] {
            if let Some(value) = first(key) {
                set(name, value.into());
            }
        }
        let models = self.card.get("base_model").map(Vec::as_slice).unwrap_or_default();
        if !models.is_empty() {
            set("base_model.count", (models.len() as u32).into());
        }
        for (number, id) in models.iter().enumerate() {
            let mut set_model = |key: &str, text: String| {
                set(&format!("base_model.{number}.{key}"), text.into());
            };
            let id = id.strip_prefix("https://huggingface.co/").unwrap_or(id);
            if id.contains("://") {
                set_model("repo_url", id.to_owned());
                continue;
            }
            let (organization, model) = split_id(id);
            set_model("name", names::title(model));
            if let Some(version) = names::parts(model, parameters).version {
                set_model("version", version);
            }
            if let Some(organization) = organization {
                set_model("organization", names::title(organization));
                set_model("repo_url", format!("https://huggingface.co/{id}"));
            }
        }
        let mut tags = self.card.get("tags").cloned().unwrap_or_default();
        if let Some(task) = first("pipeline_tag").filter(|task| !tags.contains(task)) {
            tags.push(task);
        }
        if !tags.is_empty() {
            set("tags", Array::of_strings(&tags).into());
        }
        let languages = self.card.get("language").or(self.card.get("languages"));
        if let Some(languages) = languages {
            set("languages", Array::of_strings(languages).into());
        }
    }

    /// Defaults of the authors' own sampling, with the types that llama.cpp reads.
    fn sampling(&self, set: &mut impl FnMut(&str, Value)) {
        let Some(generation) = self.generation else { return };
        let samples = generation.get("do_sample").and_then(Json::as_bool).unwrap_or(true);
        if !samples {
            return;
        }
        if let Some(top_k) = generation.get("top_k").and_then(Json::as_i64) {
            set("sampling.top_k", (top_k as i32).into());
        }
        for (key, name) in [
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("temperature", "temp"),
            ("repetition_penalty", "penalty_repeat"),
        ] {
            if let Some(number) = generation.get(key).and_then(Json::as_f64) {
                set(&format!("sampling.{name}"), (number as f32).into());
            }
        }
    }

    fn size_label(&self) -> String {
        let (mut shared, mut experts) = (0, 0);
        for tensor in self.tensors {
            let stacked = tensor.name.contains("_exps.");
            *(if stacked { &mut experts } else { &mut shared }) += tensor.elements() as u64;
        }
        size_label(shared, experts / self.experts.max(1) as u64, self.experts)
    }
}

/// `org/name` → organization and name.
fn split_id(id: &str) -> (Option<&str>, &str) {
    match id.split_once('/') {
        Some((organization, name)) if !organization.starts_with('.') && !name.contains('/') => {
            (Some(organization), name)
        }
        _ => (None, id),
    }
}
