//! Models of which only the headers are read.

use std::fs;
use std::path::Path;

use llm_quantize::base::progress::NullProgress;
use llm_quantize::hub::{self, HubOptions, HubSpec, Outline};

use super::{CONFIG, REPO, TOKENIZER, noise};
use crate::fake_hub::{FakeHub, Faults, Request};

/// A safetensors file with that header text and that many bytes of data.
fn weights(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(noise(data, 11));
    bytes
}

/// A header of one tensor of so many F32 values, with so much text besides.
fn header(name: &str, values: usize, text: usize) -> String {
    format!(
        r#"{{"__metadata__":{{"x":"{}"}},"{name}":{{"dtype":"F32","shape":[{values}],"data_offsets":[0,{}]}}}}"#,
        "y".repeat(text),
        4 * values
    )
}

fn push(hub: &FakeHub, weights: &[(&str, &[u8], bool)]) -> String {
    let small: [(&str, &[u8], bool); 2] =
        [("config.json", CONFIG, false), ("tokenizer.json", TOKENIZER, false)];
    hub.push(REPO, &[&small, weights].concat())
}

fn options(hub: &FakeHub, cache: &Path) -> HubOptions {
    HubOptions { endpoint: hub.endpoint(), retries: 0, ..HubOptions::new(cache) }
}

fn outline(hub: &FakeHub, cache: &Path) -> llm_quantize::Result<Outline> {
    let spec = HubSpec::parse(REPO).unwrap();
    hub::fetch_outline(&spec, &options(hub, cache), &|_| Ok(()), &NullProgress)
}

fn fetch(hub: &FakeHub, cache: &Path) -> std::path::PathBuf {
    let spec = HubSpec::parse(REPO).unwrap();
    hub::fetch(&spec, &options(hub, cache), &|_| Ok(()), &NullProgress).unwrap()
}

/// The ranges that the storage host was asked for.
fn ranges(log: &[Request]) -> Vec<String> {
    log.iter()
        .filter(|request| request.host == "storage" && request.method == "GET")
        .map(|request| request.header("range").unwrap_or("all").to_owned())
        .collect()
}

#[test]
fn a_header_is_all_that_is_read() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let bytes = weights(&header("a", 1_000_000, 0), 4_000_000);
    push(&hub, &[("model.safetensors", &bytes, true)]);
    let made = outline(&hub, cache.path()).unwrap();
    assert_eq!(ranges(&hub.take_log()), ["bytes=0-131071"]);
    assert!(hub.take_sent() < 200_000);
    assert!(!made.is_complete());
    assert_eq!(made.missing_bytes, bytes.len() as u64);

    // A folder like any model's, whose weights have a header and a hole.
    let folder = made.folder().to_path_buf();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), TOKENIZER);
    let sparse = fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(sparse.len(), bytes.len());
    let data = bytes.len() - 4_000_000;
    assert!(sparse[..data] == bytes[..data] && sparse[data..].iter().all(|byte| *byte == 0));
    let path = folder.to_str().unwrap();
    assert!(path.contains("models--org--tiny/snapshots/"), "the name of the model: {path}");

    // It goes with the value, and is nothing that a download would be mistaken for.
    drop(made);
    assert!(!folder.exists());
    assert!(!cache.path().join("models--org--tiny/.outlines").exists());
    let whole = fetch(&hub, cache.path());
    assert!(fs::read(whole.join("model.safetensors")).unwrap() == bytes);

    // What is cached is not asked for.
    hub.take_log();
    let made = outline(&hub, cache.path()).unwrap();
    assert!(made.is_complete() && made.missing_bytes == 0);
    assert_eq!(made.folder(), whole);
    assert!(ranges(&hub.take_log()).is_empty());
}

#[test]
fn long_headers_are_read_to_their_end() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let text = header("a", 1000, 300_000);
    let bytes = weights(&text, 4000);
    push(&hub, &[("model.safetensors", &bytes, true)]);
    let made = outline(&hub, cache.path()).unwrap();
    let end = 8 + text.len();
    let rest = format!("bytes=131072-{}", end - 1);
    assert_eq!(ranges(&hub.take_log()), ["bytes=0-131071".to_owned(), rest]);
    let sparse = fs::read(made.folder().join("model.safetensors")).unwrap();
    assert!(sparse[..end] == bytes[..end]);
}

#[test]
fn a_server_without_ranges_is_left_after_the_header() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let text = header("a", 16_000_000, 300_000);
    let bytes = weights(&text, 64_000_000);
    push(&hub, &[("model.safetensors", &bytes, true)]);
    hub.faults(Faults { ignore_range: true, ..Faults::default() });
    let made = outline(&hub, cache.path()).unwrap();
    let sparse = fs::metadata(made.folder().join("model.safetensors")).unwrap();
    assert_eq!(sparse.len(), bytes.len() as u64);
    assert_eq!(ranges(&hub.take_log()), ["bytes=0-131071"], "one connection has it all");
    assert!(hub.take_sent() < 32_000_000, "what the system buffers, not the file");
}

#[test]
fn shards_have_headers_each_and_cached_ones_are_taken() {
    let (hub, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let (first, second) =
        (weights(&header("a", 5, 0), 20), weights(&header("b", 100_000, 0), 400_000));
    let index = br#"{"weight_map":{"a":"m-1-of-2.safetensors","b":"m-2-of-2.safetensors"}}"#;
    let files: [(&str, &[u8], bool); 3] = [
        ("model.safetensors.index.json", index, false),
        ("m-1-of-2.safetensors", &first, true),
        ("m-2-of-2.safetensors", &second, true),
    ];
    push(&hub, &files);
    let made = outline(&hub, cache.path()).unwrap();
    assert_eq!(made.missing_bytes, (first.len() + second.len()) as u64);
    assert_eq!(ranges(&hub.take_log()).len(), 2);
    let whole = fetch(&hub, cache.path());
    fs::remove_file(whole.join("m-2-of-2.safetensors")).unwrap();
    hub.take_log();
    let made = outline(&hub, cache.path()).unwrap();
    assert_eq!(made.missing_bytes, second.len() as u64);
    assert!(fs::read(made.folder().join("m-1-of-2.safetensors")).unwrap() == first);
    assert_eq!(ranges(&hub.take_log()).len(), 1);
}

#[test]
fn what_is_no_header_is_refused() {
    let (short, text) = (header("a", 10, 0), header("a", 10, 0));
    for (bytes, says) in [
        (b"GGUF".to_vec(), "too short"),
        (u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes"),
        (weights(&short, 40)[..60].to_vec(), "does not fit into the file"),
        (weights(&text, 39), "but the header describes"),
        (weights("{\"a\":7}", 0), "not a safetensors header"),
    ] {
        let (hub, cache) = (FakeHub::start(), tempfile::tempdir().unwrap());
        push(&hub, &[("model.safetensors", &bytes, true)]);
        let error = outline(&hub, cache.path()).unwrap_err();
        assert_eq!(error.exit_code(), 6, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
        assert!(!cache.path().join("models--org--tiny/.outlines").exists());
    }
}
