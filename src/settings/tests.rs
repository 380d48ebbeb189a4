use std::collections::BTreeMap;

use super::*;

fn settings(vars: &[(&str, &str)]) -> Result<Settings> {
    let map: BTreeMap<String, String> =
        vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Settings::from_vars(|name| map.get(name).cloned())
}

#[test]
fn defaults_are_those_of_the_table() {
    let settings = settings(&[("HOME", "/home/ada")]).unwrap();
    assert_eq!(
        settings.hub_cache.as_deref().unwrap(),
        Path::new("/home/ada/.cache/huggingface/hub")
    );
    assert_eq!(
        settings.token_file.as_deref().unwrap(),
        Path::new("/home/ada/.cache/huggingface/token")
    );
    assert_eq!(settings.endpoint, "https://huggingface.co");
    assert_eq!(settings.checkpoint_dir, Path::new("./.checkpoint"));
    assert_eq!(settings.rank_search, 10);
    assert_eq!((settings.min_bpw, settings.max_bpw), (0.1, 2.0));
    assert_eq!(settings.svd_precision.name(), "float64");
    assert_eq!((settings.quality_threshold_percent, settings.coherence_threshold), (20.0, 0.5));
    assert!(!settings.offline && !settings.gpus_hidden());
    assert!(!settings.progress_bars_disabled);
    assert!(settings.token.is_none());
}

#[test]
fn no_color_is_anything_but_nothing() {
    let set = |value: Option<&str>| no_color(|_| value.map(str::to_owned));
    assert!(set(Some("1")) && set(Some("0")));
    assert!(!set(Some("")) && !set(None));
}

#[test]
fn the_cache_follows_the_documented_order() {
    let order = [
        ("LLM_QUANTIZE_CACHE", "/a", "/a"),
        ("HF_HUB_CACHE", "/b", "/b"),
        ("HUGGINGFACE_HUB_CACHE", "/c", "/c"),
        ("HF_HOME", "~/d", "/h/d/hub"),
        ("XDG_CACHE_HOME", "/e", "/e/huggingface/hub"),
        ("HOME", "/h", "/h/.cache/huggingface/hub"),
    ];
    for skip in 0..order.len() {
        let mut vars: Vec<_> =
            order[skip..].iter().map(|(name, value, _)| (*name, *value)).collect();
        vars.push(("HOME", "/h"));
        let cache = settings(&vars).unwrap().hub_cache.unwrap();
        assert_eq!(cache, Path::new(order[skip].2), "without the first {skip}");
    }
    assert_eq!(settings(&[]).unwrap().hub_cache, None);
    let empty = settings(&[("LLM_QUANTIZE_CACHE", ""), ("HOME", "/h")]).unwrap();
    assert_eq!(empty.hub_cache.unwrap(), Path::new("/h/.cache/huggingface/hub"));
}

#[test]
fn flags_accept_the_hubs_spellings_and_nothing_else() {
    for (text, expected) in [
        ("1", true),
        ("on", true),
        ("Yes", true),
        ("TRUE", true),
        ("0", false),
        ("off", false),
        ("No", false),
        ("false", false),
        ("", false),
    ] {
        assert_eq!(settings(&[("HF_HUB_OFFLINE", text)]).unwrap().offline, expected, "{text}");
    }
    let error = settings(&[("HF_HUB_OFFLINE", "ture")]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("HF_HUB_OFFLINE=\"ture\""), "{error}");
}

#[test]
fn every_bad_value_names_its_variable() {
    for (name, value) in [
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "maybe"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "2"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", "ftp://host"),
        ("HF_ENDPOINT", "https://"),
        ("HF_ENDPOINT", "https://user@host"),
        ("HF_ENDPOINT", "https://host/?q"),
        ("HF_TOKEN", "two words"),
        ("HUGGING_FACE_HUB_TOKEN", "line\nbreak"),
        ("LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH", "0"),
        ("LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH", "many"),
        ("LLM_QUANTIZE_LITTLEBIT_MIN_BPW", "-1"),
        ("LLM_QUANTIZE_LITTLEBIT_MIN_BPW", "nan"),
        ("LLM_QUANTIZE_LITTLEBIT_MAX_BPW", "inf"),
        ("LLM_QUANTIZE_LITTLEBIT_MAX_BPW", "0.05"),
        ("LLM_QUANTIZE_SVD_PRECISION", "float16"),
        ("LLM_QUANTIZE_QUALITY_THRESHOLD", "0"),
        ("LLM_QUANTIZE_COHERENCE_THRESHOLD", "1.5"),
    ] {
        let error = settings(&[(name, value)]).expect_err(value);
        assert_eq!(error.exit_code(), 2, "{name}={value}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn precisions_by_name() {
    for (text, precision) in [("float32", Precision::Float32), ("FLOAT64", Precision::Float64)] {
        let settings = settings(&[("LLM_QUANTIZE_SVD_PRECISION", text)]).unwrap();
        assert_eq!(settings.svd_precision, precision);
    }
}

#[test]
fn a_raised_minimum_raises_the_default_maximum() {
    let settings = settings(&[("LLM_QUANTIZE_LITTLEBIT_MIN_BPW", "3")]).unwrap();
    assert_eq!((settings.min_bpw, settings.max_bpw), (3.0, 3.0));
}

#[test]
fn cuda_lists_that_leave_no_gpu() {
    for (list, hidden) in [
        ("", true),
        (" ", true),
        ("-1", true),
        ("-1,0", true),
        ("0", false),
        ("1,-1", false),
        ("GPU-8932f937", false),
    ] {
        let settings = settings(&[("CUDA_VISIBLE_DEVICES", list)]).unwrap();
        assert_eq!(settings.gpus_hidden(), hidden, "{list:?}");
    }
    assert!(!settings(&[]).unwrap().gpus_hidden());
}

#[test]
fn tokens_come_from_the_variable_then_the_file_and_are_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let path = file.to_str().unwrap();
    assert_eq!(settings(&[("HF_TOKEN_PATH", path)]).unwrap().hub_token().unwrap(), None);

    std::fs::write(&file, "hf_fromfile\n").unwrap();
    let from_file = settings(&[("HF_TOKEN_PATH", path)]).unwrap();
    assert_eq!(from_file.hub_token().unwrap().unwrap().secret(), "hf_fromfile");

    let both = settings(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", " hf_fromvar ")]).unwrap();
    assert_eq!(both.hub_token().unwrap().unwrap().secret(), "hf_fromvar");
    let older = settings(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).unwrap();
    assert_eq!(older.hub_token().unwrap().unwrap().secret(), "hf_old");

    let disabled =
        settings(&[("HF_TOKEN", "hf_x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap();
    assert_eq!(disabled.hub_token().unwrap(), None);

    assert!(!format!("{both:?}").contains("fromvar"));
    std::fs::write(&file, "two words").unwrap();
    let error = from_file.hub_token().unwrap_err();
    assert!(error.to_string().contains(path) && !error.to_string().contains("two words"));
}

#[test]
fn bad_tokens_are_not_repeated_in_the_message() {
    let error = settings(&[("HF_TOKEN", "hf_secret with space")]).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn the_table_lists_each_variable_once() {
    let mut listed: Vec<_> = Settings::TABLE.iter().map(|row| row.name).collect();
    listed.sort_unstable();
    let count = listed.len();
    listed.dedup();
    assert_eq!(listed.len(), count);
    // Whatever is read while building the settings is in the table (HOME is everybody's).
    let read = std::cell::RefCell::new(Vec::new());
    Settings::from_vars(|name| {
        read.borrow_mut().push(name.to_owned());
        None
    })
    .unwrap();
    for name in read.into_inner() {
        assert!(name == "HOME" || listed.contains(&name.as_str()), "{name}");
    }
}
