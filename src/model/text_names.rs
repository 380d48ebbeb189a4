//! The tensors of the text model under the names of its plain class, whatever is around them: the
//! other senses of a multimodal model, or what wrappers of training put before every name.

use std::path::Path;

use indexmap::IndexMap;

use crate::base::lists::some_of;
use crate::{Error, Result};

const BODY: &str = "model.";
const HEAD: &str = "lm_head.";

/// Words in the names of modules that see or hear, or lead from there to the text.
const SENSES: [&str; 13] = [
    "vision",
    "visual",
    "image",
    "video",
    "audio",
    "speech",
    "multi_modal",
    "multimodal",
    "mm_projector",
    "projector",
    "resampler",
    "perceiver",
    "connector",
];

/// What training leaves before names, and where it comes from.
const WRAPPERS: [(&str, &str); 3] = [
    ("_orig_mod.", "torch.compile"),
    ("module.", "data-parallel training"),
    ("base_model.model.", "peft"),
];

/// Renames the tensors of a checkpoint to those of the plain text model: `model.layers.0…`,
/// `lm_head.weight`. What belongs to other senses is left out, which a warning says; `left_out` gets its
/// names.
///
/// # Errors
/// [`Error::ValidationFailed`] if two tensors get one name, [`Error::ModelNotFound`] for adapters that
/// are not merged.
pub(crate) fn plain<T>(
    tensors: IndexMap<String, T>,
    path: &Path,
    left_out: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Result<IndexMap<String, T>> {
    let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    if let Some(name) = names.iter().find(|name| is_adapter(name)) {
        return Err(Error::ModelNotFound {
            message: format!("{} holds an adapter that is not merged: {name}", path.display()),
            suggestion:
                "Merge the adapter into its base model first (`merge_and_unload` of peft), \
                         and give the merged model"
                    .to_owned(),
        });
    }
    let Some(body) = body(&names) else {
        return Ok(tensors);
    };
    let body = body.to_owned();
    let head = head(&names, &body);
    if let Some(warning) = wrapper_warning(&body) {
        warnings.push(warning);
    }
    let mut plain = IndexMap::with_capacity(tensors.len());
    let mut senses = Vec::new();
    for (name, tensor) in tensors {
        let new = if let Some(rest) = head.as_ref().and_then(|head| name.strip_prefix(head)) {
            format!("{HEAD}{rest}")
        } else {
            match name.strip_prefix(&body) {
                Some(rest) if is_text(rest) => format!("{BODY}{rest}"),
                _ if SENSES.iter().any(|word| name.contains(word)) => {
                    senses.push(name);
                    continue;
                }
                Some(rest) if !body.is_empty() => format!("{BODY}{rest}"),
                _ => name,
            }
        };
        if plain.contains_key(&new) {
            return Err(Error::damaged(path, format!("two tensors are {new} of the text model")));
        }
        plain.insert(new, tensor);
    }
    if !senses.is_empty() {
        let names: Vec<&str> = senses.iter().map(String::as_str).collect();
        warnings.push(format!(
            "{} tensors that see or hear are left out, the text model is what is read: {}",
            names.len(),
            some_of(&names)
        ));
    }
    left_out.extend(senses);
    Ok(plain)
}

/// Whether a name after the body's prefix is of the text model itself.
fn is_text(rest: &str) -> bool {
    ["layers.", "embed_tokens.", "norm."].iter().any(|part| rest.starts_with(part))
}

fn is_adapter(name: &str) -> bool {
    [".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.", ".modules_to_save."]
        .iter()
        .any(|part| name.contains(part))
}

/// What is before `embed_tokens.weight` and `layers.0.` of the text model.
fn body<'a>(names: &[&'a str]) -> Option<&'a str> {
    let mut bodies: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_suffix("embed_tokens.weight"))
        .filter(|body| body.is_empty() || body.ends_with('.'))
        .filter(|body| !SENSES.iter().any(|word| body.contains(word)))
        .filter(|body| {
            let block = format!("{body}layers.0.");
            names.iter().any(|name| name.starts_with(&block))
        })
        .collect();
    if bodies.contains(&BODY) {
        return Some(BODY);
    }
    bodies.dedup();
    match bodies.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

/// What is before the head's `weight`, if there is a head: beside the body or in it, or at the top.
fn head(names: &[&str], body: &str) -> Option<String> {
    let beside = body.strip_suffix(BODY).unwrap_or(body);
    [format!("{beside}{HEAD}"), format!("{body}{HEAD}"), HEAD.to_owned()]
        .into_iter()
        .find(|head| names.iter().any(|name| name.starts_with(head)))
}

/// A word about prefixes that no published model has.
fn wrapper_warning(body: &str) -> Option<String> {
    const PUBLISHED: [&str; 8] = [
        "",
        BODY,
        "language_model.",
        "language_model.model.",
        "model.language_model.",
        "model.language_model.model.",
        "text_model.",
        "model.text_model.",
    ];
    if PUBLISHED.contains(&body) {
        return None;
    }
    let wrapper = WRAPPERS.iter().find(|(prefix, _)| body.starts_with(prefix));
    Some(match wrapper {
        Some((prefix, from)) => format!(
            "names of tensors begin with \"{prefix}\", which {from} puts there; they are read without it"
        ),
        None => {
            format!("the text model's tensors are found under \"{body}\"; they are read from there")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: [&str; 4] = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ];

    fn read(names: &[&str]) -> (Result<Vec<String>>, Vec<String>) {
        let mut warnings = Vec::new();
        let tensors = names.iter().map(|name| ((*name).to_owned(), ())).collect();
        let mut left_out = Vec::new();
        let plain = plain(tensors, Path::new("m"), &mut left_out, &mut warnings);
        (plain.map(|tensors| tensors.into_keys().collect()), warnings)
    }

    #[test]
    fn every_layout_gives_the_plain_names() {
        let cases: [(&str, &str, usize); 10] = [
            ("model.", "lm_head.", 0),
            ("", "lm_head.", 0),
            ("language_model.model.", "language_model.lm_head.", 0),
            ("language_model.", "language_model.lm_head.", 0),
            ("model.language_model.", "lm_head.", 0),
            ("model.text_model.", "lm_head.", 0),
            ("_orig_mod.model.", "_orig_mod.lm_head.", 1),
            ("module.model.", "module.lm_head.", 1),
            ("base_model.model.model.", "base_model.model.lm_head.", 1),
            ("thinker.model.", "thinker.lm_head.", 1),
        ];
        for (body, head, warned) in cases {
            let names: Vec<String> = PLAIN
                .iter()
                .map(|name| match name.strip_prefix("model.") {
                    Some(rest) => format!("{body}{rest}"),
                    None => name.replace("lm_head.", head),
                })
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let (plain, warnings) = read(&names);
            assert_eq!(plain.unwrap(), PLAIN, "{body}");
            assert_eq!(warnings.len(), warned, "{body} {warnings:?}");
        }
    }

    #[test]
    fn other_senses_are_left_out_and_named() {
        let mut names = PLAIN.to_vec();
        names.extend(["model.vision_tower.layers.0.weight", "multi_modal_projector.linear_1.bias"]);
        let (plain, warnings) = read(&names);
        assert_eq!(plain.unwrap(), PLAIN);
        assert!(warnings[0].contains("2 tensors") && warnings[0].contains("vision_tower"));
        // A part of the text that happens to have such a word stays, for the catalogue to judge.
        let mut names = PLAIN.to_vec();
        names.push("model.layers.0.mlp.image_proj.weight");
        assert_eq!(read(&names).0.unwrap().len(), 5);
    }

    #[test]
    fn what_is_no_one_model_is_refused_or_left_alone() {
        let adapter = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        assert!(read(&[adapter]).0.unwrap_err().to_string().contains("adapter"));
        let mut twice = PLAIN.to_vec();
        twice.push("language_model.model.embed_tokens.weight");
        assert_eq!(read(&twice).0.unwrap().len(), 5);
        assert_eq!(read(&["a", "b"]).0.unwrap(), ["a", "b"]);
    }
}
