//! The hub against a fake one on loopback (`common/fake_hub.rs`): what is asked, what lands in the
//! cache, and what each refusal, fault and interruption leads to. The layout of the cache is
//! checked against an independent implementation, the `hf-hub` crate.

mod hostile; // hubs that do not answer, answer something else, never stop
mod outlines; // models of which only the headers are read

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::fake_hub::{Contents, FakeHub, Faults, GOOD_TOKEN, OTHER_TOKEN, Request, etag};
use llm_quantize::base::progress::{NullProgress, Progress};
use llm_quantize::hub::{self, HubOptions, HubSpec};
use llm_quantize::settings::{Settings, Token};
use llm_quantize::{Error, Result};

const REPO: &str = "org/tiny";
const CONFIG: &[u8] = br#"{"model_type":"llama"}"#;
const TOKENIZER: &[u8] = br#"{"version":"1.0"}"#;

/// Bytes without a pattern that a misplaced part could hide in.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..length).map(|_| next()).collect()
}

struct Fixture {
    hub: FakeHub,
    cache: tempfile::TempDir,
    weights: Vec<u8>,
    commit: String,
}

impl Fixture {
    fn new() -> Self {
        let (hub, weights) = (FakeHub::start(), noise(3_000_000, 1));
        let commit = hub.push(
            REPO,
            &[
                ("config.json", CONFIG, false),
                ("tokenizer.json", TOKENIZER, false),
                ("README.md", b"---\nlicense: mit\n---\n", false),
                ("notes.md", b"not downloaded", false),
                ("model.safetensors", &weights, true),
            ],
        );
        Self { hub, cache: tempfile::tempdir().unwrap(), weights, commit }
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.hub.endpoint(),
            retries: 0,
            retry_wait: Duration::from_millis(1),
            stall_timeout: Duration::from_secs(20),
            ..HubOptions::new(self.cache.path())
        }
    }

    fn with_token(&self, token: &str) -> HubOptions {
        HubOptions { token: Token::parse(token, "test").unwrap(), ..self.options() }
    }

    fn fetch(&self) -> Result<PathBuf> {
        fetch(REPO, &self.options(), &NullProgress)
    }

    fn repo_folder(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }

    fn blob(&self) -> PathBuf {
        let contents = Contents { bytes: self.weights.clone(), large: true };
        self.repo_folder().join("blobs").join(etag(&contents))
    }

    fn incomplete(&self) -> PathBuf {
        let mut path = self.blob().into_os_string();
        path.push(".incomplete");
        path.into()
    }
}

fn fetch(spec: &str, options: &HubOptions, progress: &dyn Progress) -> Result<PathBuf> {
    hub::fetch(&HubSpec::parse(spec).unwrap(), options, &|_| Ok(()), progress)
}

/// Requests for contents (not headers) of a file.
fn gets<'a>(log: &'a [Request], file: &str) -> Vec<&'a Request> {
    log.iter()
        .filter(|request| request.method == "GET" && request.path.contains(&format!("/{file}")))
        .collect()
}

/// Records what is reported.
#[derive(Default)]
struct Recorder {
    stages: Mutex<Vec<(String, u64, String)>>,
    advanced: AtomicU64,
    warnings: Mutex<Vec<String>>,
    stop_after: Option<u64>,
}

impl Recorder {
    fn warnings(&self) -> String {
        self.warnings.lock().unwrap().join("\n")
    }
}

impl Progress for Recorder {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        self.stages.lock().unwrap().push((stage.into(), total, unit.into()));
        self.advanced.store(0, Ordering::SeqCst);
    }
    fn advance(&self, units: u64) {
        self.advanced.fetch_add(units, Ordering::SeqCst);
    }
    fn finish(&self) {}
    fn note(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.into());
    }
    fn stop_requested(&self) -> bool {
        self.stop_after.is_some_and(|limit| self.advanced.load(Ordering::SeqCst) >= limit)
    }
}

#[test]
fn a_model_lands_in_the_cache_where_others_look_for_it() {
    let fixture = Fixture::new();
    let progress = Recorder::default();
    let folder = fetch(REPO, &fixture.options(), &progress).unwrap();
    assert_eq!(folder, fixture.repo_folder().join("snapshots").join(&fixture.commit));
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), TOKENIZER);
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    assert!(folder.join("README.md").exists() && !folder.join("notes.md").exists());

    // As huggingface_hub lays it out: a relative link to a blob of the ETag's name, and the ref.
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link.parent().unwrap(), Path::new("../../blobs"));
    assert!(fixture.blob().is_file());
    assert_eq!(
        fs::read_to_string(fixture.repo_folder().join("refs/main")).unwrap(),
        fixture.commit
    );
    let other = hf_hub::Cache::new(fixture.cache.path().to_path_buf()).model(REPO.into());
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(other.get(file).unwrap(), folder.join(file));
    }

    // The weights are one stage in bytes, reported to the last one.
    let stages = progress.stages.lock().unwrap();
    assert_eq!(
        *stages.last().unwrap(),
        (format!("Downloading {REPO}"), 3_000_000, "bytes".to_owned())
    );
    assert_eq!(progress.advanced.load(Ordering::SeqCst), 3_000_000);
    assert_eq!(progress.warnings(), "");
}

#[test]
fn a_second_run_asks_one_question_and_downloads_nothing() {
    let fixture = Fixture::new();
    fixture.fetch().unwrap();
    fixture.hub.take_log();
    fixture.fetch().unwrap();
    let log = fixture.hub.take_log();
    assert!(log.iter().all(|request| request.method == "HEAD"), "{log:#?}");
    // config.json at main, and the redirect within the hub.
    assert_eq!(log.len(), 2, "{log:#?}");
}

#[test]
fn a_complete_commit_needs_no_hub() {
    let fixture = Fixture::new();
    let pinned = format!("{REPO}@{}", fixture.commit);
    let folder = fetch(&pinned, &fixture.options(), &NullProgress).unwrap();
    fixture.hub.take_log();
    assert_eq!(fetch(&pinned, &fixture.options(), &NullProgress).unwrap(), folder);
    assert!(fixture.hub.take_log().is_empty());
    // A commit needs no ref, and none is written.
    assert!(!fixture.repo_folder().join("refs").exists());
}

#[test]
fn what_others_have_downloaded_is_not_downloaded_again() {
    let fixture = Fixture::new();
    let api = hf_hub::api::sync::ApiBuilder::from_cache(hf_hub::Cache::new(
        fixture.cache.path().to_path_buf(),
    ))
    .with_endpoint(fixture.hub.endpoint())
    .with_progress(false)
    .build()
    .unwrap();
    for file in ["config.json", "tokenizer.json", "README.md", "model.safetensors"] {
        api.model(REPO.into()).get(file).unwrap();
    }
    fixture.hub.take_log();
    let folder = fixture.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    let log = fixture.hub.take_log();
    assert!(!log.is_empty() && log.iter().all(|request| request.method == "HEAD"), "{log:#?}");
}

#[test]
fn a_moved_branch_brings_only_what_changed() {
    let fixture = Fixture::new();
    fixture.fetch().unwrap();
    let second = fixture.hub.push(
        REPO,
        &[
            ("config.json", br#"{"model_type":"qwen2"}"#, false),
            ("tokenizer.json", TOKENIZER, false),
            ("model.safetensors", &fixture.weights, true),
        ],
    );
    fixture.hub.take_log();
    let folder = fixture.fetch().unwrap();
    assert!(folder.ends_with(&second));
    let log = fixture.hub.take_log();
    assert!(!gets(&log, "config.json").is_empty());
    assert!(gets(&log, "model.safetensors").is_empty(), "{log:#?}");
    assert_eq!(fs::read_to_string(fixture.repo_folder().join("refs/main")).unwrap(), second);
    // The first commit is still there, untouched.
    let first = fixture.repo_folder().join("snapshots").join(&fixture.commit);
    assert_eq!(fs::read(first.join("config.json")).unwrap(), CONFIG);
}

#[test]
fn other_revisions() {
    let fixture = Fixture::new();
    fixture.hub.set_ref(REPO, "refs/pr/3", &fixture.commit);
    let folder = fetch("org/tiny@refs/pr/3", &fixture.options(), &NullProgress).unwrap();
    assert!(folder.ends_with(&fixture.commit));
    let stored = fs::read_to_string(fixture.repo_folder().join("refs/refs/pr/3")).unwrap();
    assert_eq!(stored, fixture.commit);

    let error = fetch("org/tiny@v2", &fixture.options(), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("org/tiny has no revision `v2`"), "{error}");
}

#[test]
fn shards_come_from_the_index() {
    let hub = FakeHub::start();
    let cache = tempfile::tempdir().unwrap();
    let (first, second) = (noise(700_000, 2), noise(900_000, 3));
    let index = br#"{"metadata":{},"weight_map":{
        "b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors",
        "c":"model-00002-of-00002.safetensors"}}"#;
    hub.push(
        REPO,
        &[
            ("config.json", CONFIG, false),
            ("model.safetensors.index.json", index, false),
            ("model-00001-of-00002.safetensors", &first, true),
            ("model-00002-of-00002.safetensors", &second, true),
        ],
    );
    let options = HubOptions { endpoint: hub.endpoint(), ..HubOptions::new(cache.path()) };
    let progress = Recorder::default();
    let folder = fetch(REPO, &options, &progress).unwrap();
    assert!(fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap() == first);
    assert!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap() == second);
    let log = hub.take_log();
    for shard in ["model-00001-of-00002", "model-00002-of-00002"] {
        let bodies: Vec<_> =
            gets(&log, shard).into_iter().filter(|request| request.host == "storage").collect();
        assert_eq!(bodies.len(), 1, "{shard}");
    }
    assert_eq!(progress.stages.lock().unwrap().last().unwrap().1, 1_600_000);
    assert_eq!(progress.advanced.load(Ordering::SeqCst), 1_600_000);

    let offline = HubOptions { offline: true, ..options };
    assert_eq!(fetch(REPO, &offline, &NullProgress).unwrap(), folder);
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = fetch(REPO, &offline, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("`model-00002-of-00002.safetensors`"), "{error}");
}

#[test]
fn bad_indices_lead_nowhere() {
    for (index, code, says) in [
        (r#"{"weight_map":{"a":"absent.safetensors"}}"#, 3, "names `absent.safetensors`"),
        (r#"{"weight_map":{"a":"../../../evil"}}"#, 6, "no file name"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, 6, "no file name"),
        (r#"{"weight_map":{}}"#, 6, "names 0 weight files"),
        (r#"{"weight_map":7}"#, 6, "no weight index"),
        ("", 6, "no weight index"),
    ] {
        let hub = FakeHub::start();
        let cache = tempfile::tempdir().unwrap();
        hub.push(
            REPO,
            &[
                ("config.json", CONFIG, false),
                ("model.safetensors.index.json", index.as_bytes(), false),
            ],
        );
        let options = HubOptions { endpoint: hub.endpoint(), ..HubOptions::new(cache.path()) };
        let error = fetch(REPO, &options, &NullProgress).unwrap_err();
        assert_eq!(error.exit_code(), code, "{index}: {error}");
        assert!(error.to_string().contains(says), "{index}: {error}");
        assert!(!cache.path().join("evil").exists());
    }
}

#[test]
fn an_unsupported_config_ends_before_the_weights() {
    let fixture = Fixture::new();
    let seen = RefCell::new(Vec::new());
    let refuse = |path: &Path| {
        *seen.borrow_mut() = fs::read(path).unwrap();
        Err(Error::Unsupported { message: "gemma3".into(), suggestion: "llama".into() })
    };
    let spec = HubSpec::parse(REPO).unwrap();
    for _ in 0..2 {
        let error = hub::fetch(&spec, &fixture.options(), &refuse, &NullProgress).unwrap_err();
        assert_eq!(error.to_string(), "gemma3");
        assert_eq!(*seen.borrow(), CONFIG);
        let log = fixture.hub.take_log();
        assert!(!log.is_empty(), "nothing was asked");
        assert!(log.iter().all(|request| request.path.contains("config.json")), "{log:#?}");
    }
    // From the cache as well.
    let called = Cell::new(false);
    let accept = |_: &Path| {
        called.set(true);
        Ok(())
    };
    hub::fetch(&spec, &fixture.options(), &accept, &NullProgress).unwrap();
    assert!(called.replace(false));
    let offline = HubOptions { offline: true, ..fixture.options() };
    hub::fetch(&spec, &offline, &accept, &NullProgress).unwrap();
    assert!(called.get());
}

#[test]
fn the_token_reaches_the_hub_and_nobody_else() {
    let fixture = Fixture::new();
    fixture.hub.gate(REPO);
    let progress = Recorder::default();
    fetch(REPO, &fixture.with_token(GOOD_TOKEN), &progress).unwrap();
    let log = fixture.hub.take_log();
    assert!(log.iter().any(|request| request.host == "storage"));
    for request in &log {
        let expected = (request.host == "hub").then_some("Bearer hf_good");
        assert_eq!(request.header("authorization"), expected, "{request:#?}");
        assert_eq!(request.header("accept-encoding"), Some("identity"), "{request:#?}");
    }
    assert_eq!(progress.warnings(), "", "loopback needs no encryption");
}

#[test]
fn gated_models_ask_for_a_token() {
    let fixture = Fixture::new();
    fixture.hub.gate(REPO);
    let page = format!("{}/{REPO}", fixture.hub.endpoint());

    let error = fixture.fetch().unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("org/tiny is gated") && text.contains(&page), "{text}");
    assert!(text.contains("HF_TOKEN") && text.contains("HTTP 401"), "{text}");

    let error = fetch(REPO, &fixture.with_token(OTHER_TOKEN), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("no access") && text.contains("HTTP 403"), "{text}");
    assert!(text.contains("Access to this model is restricted"), "{text}");

    let error = fetch(REPO, &fixture.with_token("hf_expired"), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("refuses this token") && !text.contains("hf_expired"), "{text}");
}

#[test]
fn missing_repositories_are_not_found() {
    let fixture = Fixture::new();
    let error = fetch("org/absent", &fixture.with_token(GOOD_TOKEN), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("the model org/absent does not exist"), "{error}");
    // Without a token the hub does not tell missing from private, and neither can we.
    let error = fetch("org/absent", &fixture.options(), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("org/absent") && text.contains("does not exist"), "{text}");
    assert!(fs::read_dir(fixture.cache.path()).unwrap().next().is_none());
}

#[test]
fn repositories_without_usable_weights_say_what_they_have() {
    let fixture = Fixture::new();
    fixture.hub.push("org/quants", &[("tiny.Q4_0.gguf", b"GGUF", true), ("README.md", b"", false)]);
    let error = fetch("org/quants", &fixture.options(), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("1 GGUF file(s), among them `tiny.Q4_0.gguf`"), "{error}");

    fixture
        .hub
        .push("org/old", &[("config.json", CONFIG, false), ("pytorch_model.bin", b"", true)]);
    let error = fetch("org/old", &fixture.options(), &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("it has `pytorch_model.bin`"), "{error}");
}

#[test]
fn an_interrupted_download_continues_in_the_next_run() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { cut_after: Some((1_234_567, 1)), ..Faults::default() });
    let error = fixture.fetch().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("the connection broke after 1234567 bytes"), "{error}");
    assert_eq!(fs::metadata(fixture.incomplete()).unwrap().len(), 1_234_567);
    assert!(!fixture.blob().exists());

    fixture.hub.take_log();
    let progress = Recorder::default();
    let folder = fetch(REPO, &fixture.options(), &progress).unwrap();
    let log = fixture.hub.take_log();
    let bodies = gets(&log, "model.safetensors");
    assert!(!bodies.is_empty());
    for request in bodies {
        assert_eq!(request.header("range"), Some("bytes=1234567-"), "{request:#?}");
    }
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    assert!(!fixture.incomplete().exists());
    // What was there counts as done.
    assert_eq!(progress.advanced.load(Ordering::SeqCst), 3_000_000);
}

#[test]
fn broken_connections_are_tried_again_in_the_same_run() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { cut_after: Some((700_000, 3)), ..Faults::default() });
    let progress = Recorder::default();
    let options = HubOptions { retries: 3, ..fixture.options() };
    let folder = fetch(REPO, &options, &progress).unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    let ranges: Vec<_> = gets(&fixture.hub.take_log(), "model.safetensors")
        .into_iter()
        .filter(|request| request.host == "storage")
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    let expected = [None, Some("bytes=700000-"), Some("bytes=1400000-"), Some("bytes=2100000-")];
    assert_eq!(ranges, expected.map(|range| range.map(str::to_owned)));
    assert_eq!(progress.advanced.load(Ordering::SeqCst), 3_000_000);
    assert!(progress.warnings().contains("attempt 2 of 4"), "{}", progress.warnings());
}

#[test]
fn a_busy_hub_is_asked_again() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { status: Some((503, 2)), ..Faults::default() });
    let progress = Recorder::default();
    fetch(REPO, &HubOptions { retries: 2, ..fixture.options() }, &progress).unwrap();
    assert!(progress.warnings().contains("HTTP 503"), "{}", progress.warnings());

    let other = Fixture::new();
    other.hub.faults(Faults { status: Some((429, 9)), ..Faults::default() });
    let error =
        fetch(REPO, &HubOptions { retries: 1, ..other.options() }, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("HTTP 429"), "{error}");
}

#[test]
fn a_server_that_cannot_continue_sends_it_all_again() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { cut_after: Some((1_000_000, 1)), ..Faults::default() });
    fixture.fetch().unwrap_err();
    fixture.hub.faults(Faults { ignore_range: true, ..Faults::default() });
    let folder = fixture.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
}

#[test]
fn a_damaged_partial_download_is_replaced() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { cut_after: Some((1_000_000, 1)), ..Faults::default() });
    fixture.fetch().unwrap_err();
    fixture.hub.faults(Faults::default());
    let mut partial = fs::read(fixture.incomplete()).unwrap();
    partial[77] ^= 4;
    fs::write(fixture.incomplete(), &partial).unwrap();
    let progress = Recorder::default();
    let folder = fetch(REPO, &fixture.options(), &progress).unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    assert!(progress.warnings().contains("starting over"), "{}", progress.warnings());
    assert_eq!(progress.advanced.load(Ordering::SeqCst), 3_000_000, "no byte counts twice");

    // One that is too long, and one that only lacked its name.
    let again = Fixture::new();
    fs::create_dir_all(again.incomplete().parent().unwrap()).unwrap();
    fs::write(again.incomplete(), noise(3_000_001, 9)).unwrap();
    let folder = again.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == again.weights);

    let complete = Fixture::new();
    fs::create_dir_all(complete.incomplete().parent().unwrap()).unwrap();
    fs::write(complete.incomplete(), &complete.weights).unwrap();
    complete.fetch().unwrap();
    assert!(gets(&complete.hub.take_log(), "model.safetensors").is_empty());
}

#[test]
fn contents_that_are_not_what_the_hub_announces_are_refused() {
    for (faults, code, says) in [
        (Faults { flip_bit: true, ..Faults::default() }, 6, "arrived with SHA-256"),
        (Faults { shorter_by: 10, ..Faults::default() }, 1, "announces 3000000 bytes"),
        (Faults { longer_by: 10, ..Faults::default() }, 1, "announces 3000000 bytes"),
    ] {
        let fixture = Fixture::new();
        fixture.hub.faults(faults.clone());
        let error = fixture.fetch().unwrap_err();
        assert_eq!(error.exit_code(), code, "{faults:?}: {error}");
        assert!(error.to_string().contains(says), "{faults:?}: {error}");
        assert!(!fixture.blob().exists(), "{faults:?}");
        // Once the storage host is right again, so is the download.
        fixture.hub.faults(Faults::default());
        let folder = fixture.fetch().unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    }
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { announced_size: Some(1 << 60), ..Faults::default() });
    let error = fixture.fetch().unwrap_err();
    let Error::Io { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(gets(&fixture.hub.take_log(), "model.safetensors").is_empty());
}

#[test]
fn offline_uses_the_cache_or_names_what_is_missing() {
    let fixture = Fixture::new();
    let offline = HubOptions { offline: true, ..fixture.options() };
    let error = fetch(REPO, &offline, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.contains("`config.json`") && text.contains("offline"), "{text}");
    assert!(error.suggestion().contains("HF_HUB_OFFLINE"), "{}", error.suggestion());

    fixture.hub.faults(Faults { cut_after: Some((1000, 1)), ..Faults::default() });
    fixture.fetch().unwrap_err();
    fixture.hub.faults(Faults::default());
    let error = fetch(REPO, &offline, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("`model.safetensors`"), "{error}");

    let folder = fixture.fetch().unwrap();
    fixture.hub.take_log();
    assert_eq!(fetch(REPO, &offline, &NullProgress).unwrap(), folder);
    let pinned = format!("{REPO}@{}", fixture.commit);
    assert_eq!(fetch(&pinned, &offline, &NullProgress).unwrap(), folder);
    assert!(fixture.hub.take_log().is_empty());
    assert_eq!(fetch("org/tiny@v9", &offline, &NullProgress).unwrap_err().exit_code(), 3);
}

#[test]
fn a_dead_hub_is_an_error_without_a_cache_and_a_warning_with_one() {
    let fixture = Fixture::new();
    let folder = fixture.fetch().unwrap();
    let options = fixture.options();
    let Fixture { hub, cache: _cache, .. } = fixture;
    drop(hub);

    let progress = Recorder::default();
    assert_eq!(fetch(REPO, &options, &progress).unwrap(), folder);
    assert!(progress.warnings().contains("using the copy in the cache"), "{}", progress.warnings());

    let error = fetch("org/other", &options, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(error.type_name(), "NetworkError");
    let text = error.to_string();
    assert!(text.contains("cannot reach http://127.0.0.1:"), "{text}");
    let hint = error.suggestion();
    assert!(hint.contains("HF_HUB_OFFLINE") && hint.contains("HF_ENDPOINT"), "{hint}");
}

#[test]
fn silence_ends() {
    let fixture = Fixture::new();
    let options = HubOptions { stall_timeout: Duration::from_millis(300), ..fixture.options() };
    fixture.hub.faults(Faults { silence: Some(Duration::from_secs(5)), ..Faults::default() });
    let error = fetch(REPO, &options, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    assert!(error.to_string().contains("timeout"), "{error}");

    fixture.hub.faults(Faults { stall_in_body: Some(Duration::from_secs(5)), ..Faults::default() });
    let error = fetch(REPO, &options, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    assert_eq!(fs::metadata(fixture.incomplete()).unwrap().len(), 1_500_000);
    fixture.hub.faults(Faults::default());
    let folder = fixture.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
}

#[test]
fn a_request_to_stop_keeps_what_is_there() {
    let fixture = Fixture::new();
    let progress = Recorder { stop_after: Some(500_000), ..Recorder::default() };
    let error = fetch(REPO, &fixture.options(), &progress).unwrap_err();
    assert_eq!(error.exit_code(), 130);
    let kept = fs::metadata(fixture.incomplete()).unwrap().len();
    assert!((500_000..3_000_000).contains(&kept), "{kept}");
    fixture.hub.take_log();
    let folder = fixture.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
    let range = format!("bytes={kept}-");
    assert_eq!(
        gets(&fixture.hub.take_log(), "model.safetensors")[0].header("range"),
        Some(range.as_str())
    );
}

#[test]
fn hostile_headers_do_not_become_paths() {
    for tag in ["../../evil", "/etc/evil", "..", "", "a/b", "x\\y"] {
        let fixture = Fixture::new();
        fixture.hub.faults(Faults { etag: Some(tag.into()), ..Faults::default() });
        let error = fixture.fetch().unwrap_err();
        assert_eq!(error.exit_code(), 1, "{tag}: {error}");
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
        assert!(fs::read_dir(fixture.cache.path()).unwrap().next().is_none(), "{tag}");
    }
}

#[test]
fn circles_end() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { circles: true, ..Faults::default() });
    let error = fixture.fetch().unwrap_err();
    assert!(error.to_string().contains("circles"), "{error}");
    assert!(fixture.hub.take_log().len() < 20);
}

#[test]
fn mirrors_without_head_do() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { no_head: true, ..Faults::default() });
    let folder = fixture.fetch().unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == fixture.weights);
}

#[test]
fn two_at_once_download_once() {
    let fixture = Fixture::new();
    let options = fixture.options();
    let folders: Vec<PathBuf> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..3).map(|_| scope.spawn(|| fetch(REPO, &options, &NullProgress).unwrap())).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert!(folders.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(fs::read(folders[0].join("model.safetensors")).unwrap() == fixture.weights);
    let bodies: Vec<_> = fixture
        .hub
        .take_log()
        .into_iter()
        .filter(|request| request.host == "storage" && request.method == "GET")
        .collect();
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
}

#[test]
fn dataset_files() {
    let fixture = Fixture::new();
    let text = noise(200_000, 5);
    let commit = fixture.hub.push(
        "datasets/org/text",
        &[("data/raw.zip", &text, true), ("notes.txt", b"small", false)],
    );
    let options = fixture.options();
    let fetch = |revision: &str, file: &str, options: &HubOptions| {
        hub::fetch_dataset_file("org/text", revision, file, options, &NullProgress)
    };
    let path = fetch("main", "data/raw.zip", &options).unwrap();
    assert!(fs::read(&path).unwrap() == text);
    let folder = fixture.cache.path().join("datasets--org--text/snapshots").join(&commit);
    assert_eq!(path, folder.join("data/raw.zip"));
    assert_eq!(
        fs::read_link(&path).unwrap().components().take(3).collect::<PathBuf>(),
        Path::new("../../..")
    );
    let other = hf_hub::Cache::new(fixture.cache.path().to_path_buf()).dataset("org/text".into());
    assert_eq!(other.get("data/raw.zip").unwrap(), path);

    // A commit that is there is not asked for.
    fixture.hub.take_log();
    assert_eq!(fetch(&commit, "data/raw.zip", &options).unwrap(), path);
    assert!(fixture.hub.take_log().is_empty());
    let offline = HubOptions { offline: true, ..options.clone() };
    assert_eq!(fetch("main", "data/raw.zip", &offline).unwrap(), path);
    assert_eq!(fetch("main", "notes.txt", &offline).unwrap_err().exit_code(), 3);

    let error = fetch("main", "absent.txt", &options).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("the dataset org/text has no file `absent.txt`"), "{error}");
    for bad in ["../x", "", "/etc/passwd"] {
        assert_eq!(fetch("main", bad, &options).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn specs_are_checked_before_anything_is_asked() {
    let fixture = Fixture::new();
    for (repo, revision) in [("../evil", "main"), ("org/tiny", "../../x"), ("org/tiny", "")] {
        let spec = HubSpec { repo: repo.into(), revision: revision.into() };
        let error = hub::fetch(&spec, &fixture.options(), &|_| Ok(()), &NullProgress).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{repo}@{revision}");
    }
    assert!(fixture.hub.take_log().is_empty());
}

#[test]
fn options_come_from_the_settings() {
    let fixture = Fixture::new();
    let vars = |name: &str| match name {
        "HF_ENDPOINT" => Some(format!("{}/", fixture.hub.endpoint())),
        "LLM_QUANTIZE_CACHE" => Some(fixture.cache.path().to_str().unwrap().to_owned()),
        "HF_TOKEN" => Some(GOOD_TOKEN.to_owned()),
        _ => None,
    };
    fixture.hub.gate(REPO);
    let options = HubOptions::from_settings(&Settings::from_vars(vars).unwrap()).unwrap();
    assert!(!options.offline);
    fetch(REPO, &options, &NullProgress).unwrap();
    assert!(!format!("{options:?}").contains(GOOD_TOKEN));

    let none = Settings::from_vars(|_| None).unwrap();
    assert_eq!(HubOptions::from_settings(&none).unwrap_err().exit_code(), 2);
}
