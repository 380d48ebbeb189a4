//! What the name of a model says: base, version, size, variant; and names for people.
//!
//! The rules are those of llama.cpp's converter (`gguf-py/gguf/metadata.py`), so that files sort
//! beside others of their kind.

use indexmap::IndexMap;

use crate::files::gguf::Value;

/// llama.cpp looks into the name of a model: in one called Phi-3 it wants four tokens of its tokenizer,
/// and opens no file without them.
pub(super) fn avoid_phi_3(metadata: &mut IndexMap<String, Value>, warnings: &mut Vec<String>) {
    const NAME: &str = "general.name";
    const TOKENS: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];
    let Some(Value::String(name)) = metadata.get(NAME) else { return };
    let lower = name.to_lowercase();
    if !lower.contains("phi-3") && !lower.contains("phi3") {
        return;
    }
    let all = match metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array(list)) => TOKENS.iter().all(|token| {
            list.strings().is_some_and(|mut texts| texts.any(|text| text == token.as_bytes()))
        }),
        _ => false,
    };
    if all {
        return;
    }
    // Any letter case: the places are the same, as both spellings are ASCII.
    let mut spaced = name.clone();
    for word in ["phi-3", "phi3"] {
        while let Some(at) = spaced.to_ascii_lowercase().find(word) {
            spaced.replace_range(at + 3..at + word.len() - 1, " ");
        }
    }
    warnings.push(format!(
        "the file is named {spaced:?} instead of {name:?}: llama.cpp opens no model of that name \
         whose tokenizer is not that of Phi-3"
    ));
    metadata.insert(NAME.to_owned(), spaced.into());
}

/// Parts of a name like `Llama-3.2-1B-Instruct`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NameParts {
    /// `Llama`
    pub(super) basename: Option<String>,
    /// `3.2`
    pub(super) version: Option<String>,
    /// `1B`
    pub(super) size_label: Option<String>,
    /// `Instruct`
    pub(super) finetune: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Plain,
    Version,
    Size,
    Type,
    Finetune,
}

/// Takes a name (without the organization) apart. `parameters` is the number of values of the model:
/// a size that is far from it belongs to the name instead.
pub(super) fn parts(name: &str, parameters: u64) -> NameParts {
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    if name.contains(' ') || words.is_empty() {
        return NameParts::default();
    }
    let mut kinds: Vec<Part> =
        words.iter().enumerate().map(|(i, word)| kind(word, i == 0, parameters)).collect();
    // A size in words counts only where there is none in numbers.
    let in_numbers = |word: &str| word.contains(|c: char| c.is_ascii_digit());
    if kinds.iter().zip(&words).any(|(kind, word)| *kind == Part::Size && in_numbers(word)) {
        for (kind, word) in kinds.iter_mut().zip(&words) {
            if *kind == Part::Size && !in_numbers(word) {
                *kind = Part::Plain;
            }
        }
    }
    let plain_start = |(kind, word): (&Part, &&str)| match kind {
        Part::Version => true,
        Part::Plain => word.starts_with(char::is_alphabetic),
        _ => false,
    };
    let mut base = kinds.iter().zip(&words).take_while(|pair| plain_start(*pair)).count();
    let rest = base;
    while base > 0 && kinds[base - 1] == Part::Version {
        base -= 1;
    }
    let join = |keep: &dyn Fn(usize) -> bool| {
        let kept: Vec<String> = (0..words.len())
            .filter(|&i| keep(i))
            .map(|i| if kinds[i] == Part::Size { size(words[i]) } else { words[i].to_owned() })
            .collect();
        (!kept.is_empty()).then(|| kept.join("-"))
    };
    let mut parts = NameParts {
        basename: join(&|i| i < base),
        version: join(&|i| i >= base && kinds[i] == Part::Version),
        size_label: join(&|i| i >= rest && kinds[i] == Part::Size),
        finetune: join(&|i| i >= rest && matches!(kinds[i], Part::Plain | Part::Finetune)),
    };
    if parts.version.is_none() && parts.size_label.is_none() && parts.finetune.is_none() {
        // One word says too little.
        parts.basename = None;
    }
    parts
}

fn kind(word: &str, first: bool, parameters: u64) -> Part {
    let lower = word.to_ascii_lowercase();
    let number = |text: &str| {
        !text.is_empty()
            && text
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let version = lower.strip_prefix("iter").or(lower.strip_prefix('v')).unwrap_or(&lower);
    if number(version) {
        return Part::Version;
    }
    let is_type = matches!(lower.as_str(), "f16" | "f32" | "fp16" | "fp32" | "bf16" | "bfp16")
        || (lower.trim_start_matches('i').starts_with('q')
            && lower.trim_start_matches('i')[1..].starts_with(|c: char| c.is_ascii_digit())
            && lower.trim_start_matches('i')[2..]
                .split('_')
                .enumerate()
                .all(|(i, part)| (i == 0 && part.is_empty()) || part.len() == 1));
    if is_type {
        return Part::Type;
    }
    if !first {
        if matches!(lower.as_str(), "small" | "mini" | "medium" | "large" | "xl" | "xxl") {
            return Part::Size;
        }
        if let Some(stated) = stated_parameters(&lower) {
            // The number of active ones, or of a mixture's experts, is not that of all.
            let mixture = lower.starts_with('a') || lower.contains('x');
            let difference = (stated - parameters as f64).abs();
            let near = difference <= parameters as f64 * 7.0 / 8.0;
            return if mixture || parameters == 0 || near { Part::Size } else { Part::Plain };
        }
        if matches!(lower.as_str(), "chat" | "instruct" | "vision" | "lora") {
            return Part::Finetune;
        }
    }
    Part::Plain
}

/// `1.5b`, `8x7b`, `a3b`, `135m` as a number of parameters.
fn stated_parameters(word: &str) -> Option<f64> {
    let word = word.strip_prefix('a').unwrap_or(word);
    let (times, word) = match word.split_once('x') {
        Some((times, rest)) => (times.parse::<f64>().ok()?, rest),
        None => (1.0, word),
    };
    let scale = match word.chars().last()? {
        'k' => 1e3,
        'm' => 1e6,
        'b' => 1e9,
        't' => 1e12,
        _ => return None,
    };
    let digits = word[..word.len() - 1].replace('_', ".");
    let fits = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (fits && !digits.is_empty()).then(|| digits.parse::<f64>().ok().map(|n| times * n * scale))?
}

/// `1_5b` → `1.5B`
fn size(word: &str) -> String {
    let mut text = word.replace('_', ".");
    let last = text.pop().unwrap_or_default();
    let before_is_digit = text.ends_with(|c: char| c.is_ascii_digit());
    text.push(if before_is_digit && "kmbt".contains(last) {
        last.to_ascii_uppercase()
    } else {
        last
    });
    text
}

/// `tiny-llama v1.0` → `Tiny Llama v1.0`: words of lower-case letters get a capital.
pub(super) fn title(name: &str) -> String {
    let word = |word: &str| {
        let has_lower = word.chars().any(char::is_lowercase);
        let lower = has_lower && !word.chars().any(char::is_uppercase);
        let version =
            word.strip_prefix('v').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit());
        if !lower || version {
            return word.to_owned();
        }
        let mut out = String::with_capacity(word.len());
        let mut after_letter = false;
        for c in word.chars() {
            if after_letter {
                out.push(c);
            } else {
                out.extend(c.to_uppercase());
            }
            after_letter = c.is_alphabetic();
        }
        out
    };
    name.replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::names::size_label;

    /// Names of the hub and what the converter makes of them.
    #[test]
    fn names_are_taken_apart() {
        for (name, parameters, expected) in [
            ("Llama-3.2-1B-Instruct", 1_235_814_400, ["Llama", "3.2", "1B", "Instruct"]),
            ("Mistral-7B-Instruct-v0.3", 7_248_023_552, ["Mistral", "v0.3", "7B", "Instruct"]),
            ("Qwen2.5-0.5B", 494_032_768, ["Qwen2.5", "", "0.5B", ""]),
            ("Qwen3-30B-A3B", 30_532_122_624, ["Qwen3", "", "30B-A3B", ""]),
            ("Mixtral-8x7B-v0.1", 46_702_792_704, ["Mixtral", "v0.1", "8x7B", ""]),
            ("SmolLM2-135M-Instruct", 134_515_008, ["SmolLM2", "", "135M", "Instruct"]),
            ("gemma-3-4b-it", 3_880_099_328, ["gemma", "3", "4B", "it"]),
            ("Phi-3-mini-4k-instruct", 3_821_079_552, ["Phi", "3", "mini", "4k-instruct"]),
            ("SmolLM2-1.7B-large", 1_711_376_384, ["SmolLM2", "", "1.7B", "large"]),
            ("tiny", 1_000_000, [""; 4]),
        ] {
            let parts = parts(name, parameters);
            let got = [parts.basename, parts.version, parts.size_label, parts.finetune]
                .map(Option::unwrap_or_default);
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn titles_and_labels_are_for_people() {
        assert_eq!(title("SmolLM2-135M-Instruct"), "SmolLM2 135M Instruct");
        assert_eq!(title("gemma-3-4b-it"), "Gemma 3 4b It");
        assert_eq!(title("tinyllama-v1.0-chat"), "Tinyllama v1.0 Chat");
        assert_eq!(size_label(134_515_008, 0, 0), "135M");
        assert_eq!(size_label(1_235_814_400, 0, 0), "1.2B");
        assert_eq!(size_label(494_032_768, 0, 0), "494M");
        assert_eq!(size_label(1_605_640_192, 5_637_144_576, 8), "8x7.2B");
        assert_eq!(size_label(983_040, 0, 0), "983K");
    }
}
