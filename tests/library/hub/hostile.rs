//! Hubs that do not answer, answer something else, never stop, or repeat what they were told.

use std::fs;
use std::time::{Duration, Instant};

use llm_quantize::Error;
use llm_quantize::base::progress::NullProgress;
use llm_quantize::hub::HubOptions;

use super::{Fixture, REPO, Recorder, fetch};
use crate::fake_hub::Faults;

const TOKEN: &str = "hf_a_secret_that_nobody_sees";

/// Refusals of a network that is not there take no time and no retries.
#[test]
fn without_a_network_the_answer_is_soon_there() {
    let fixture = Fixture::new();
    // Nobody listens on the first; the second is no name (RFC 6761).
    for endpoint in ["http://127.0.0.1:1", "https://no-such-host.invalid"] {
        let options = HubOptions {
            endpoint: endpoint.into(),
            retries: 5,
            retry_wait: Duration::from_secs(2),
            ..HubOptions::new(fixture.cache.path())
        };
        let began = Instant::now();
        let progress = Recorder::default();
        let error = fetch(REPO, &options, &progress).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(8), "{endpoint}: {:?}", began.elapsed());
        assert_eq!((error.exit_code(), error.type_name()), (1, "NetworkError"), "{error}");
        assert!(error.to_string().contains(&format!("cannot reach {endpoint}")), "{error}");
        let hint = error.suggestion();
        assert!(hint.contains("--offline") && hint.contains("HF_ENDPOINT"), "{hint}");
        assert_eq!(progress.warnings(), "", "no further attempts");
    }
}

#[test]
fn the_commit_that_was_asked_for_answers() {
    let other = "b".repeat(40);
    // Of a branch: the first answer says which commit it is, and later ones must agree.
    let fixture = Fixture::new();
    let pinned = format!("{REPO}@{}", fixture.commit);
    fixture.hub.faults(Faults { commit: Some(other.clone()), ..Faults::default() });
    let error = fetch(&pinned, &fixture.options(), &NullProgress).unwrap_err();
    assert_eq!((error.exit_code(), error.type_name()), (1, "NetworkError"), "{error}");
    let text = error.to_string();
    assert!(text.contains(&fixture.commit) && text.contains(&other), "{text}");
    assert!(fs::read_dir(fixture.cache.path()).unwrap().next().is_none());

    // Also of files that come later.
    let fixture = Fixture::new();
    let pinned = format!("{REPO}@{}", fixture.commit);
    let spoil = |_: &std::path::Path| {
        fixture.hub.faults(Faults { commit: Some(other.clone()), ..Faults::default() });
        Ok(())
    };
    let spec = llm_quantize::hub::HubSpec::parse(&pinned).unwrap();
    let error =
        llm_quantize::hub::fetch(&spec, &fixture.options(), &spoil, &NullProgress).unwrap_err();
    assert!(error.to_string().contains("was asked for commit"), "{error}");
    assert!(!fixture.blob().exists());

    // What is no commit names no folder.
    for odd in ["main", "hf_a_secret", &"A".repeat(40)] {
        let fixture = Fixture::new();
        fixture.hub.faults(Faults { commit: Some(odd.to_owned()), ..Faults::default() });
        let error = fixture.fetch().unwrap_err();
        assert!(error.to_string().contains("X-Repo-Commit"), "{error}");
        assert!(fs::read_dir(fixture.cache.path()).unwrap().next().is_none());
    }
}

#[test]
fn small_files_are_not_read_for_ever() {
    let fixture = Fixture::new();
    fixture.hub.faults(Faults { endless: true, ..Faults::default() });
    let error = fixture.fetch().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("`config.json`"), "{error}");
    assert!(error.to_string().contains("larger than 16.0 MB"), "{error}");
    assert!(fixture.hub.take_sent() < 48 << 20);
    let blobs = fs::read_dir(fixture.repo_folder().join("blobs")).unwrap();
    assert_eq!(blobs.count(), 0, "nothing is left of it");
}

#[test]
fn bytes_that_come_one_by_one_are_too_slow() {
    let fixture = Fixture::new();
    let trickle = Some(Duration::from_millis(20));
    fixture.hub.faults(Faults { trickle, ..Faults::default() });
    let options = HubOptions { stall_timeout: Duration::from_millis(400), ..fixture.options() };
    let began = Instant::now();
    let error = fetch(REPO, &options, &NullProgress).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(error.exit_code(), 1);
    assert!(
        error.to_string().contains("only") && error.to_string().contains("bytes in"),
        "{error}"
    );
}

#[test]
fn what_the_hub_repeats_of_a_token_is_not_shown() {
    let mut network = 0;
    for status in [200, 302, 400, 401, 403, 404, 410, 418, 429, 500] {
        let fixture = Fixture::new();
        fixture.hub.faults(Faults { echo: Some(status), ..Faults::default() });
        let options = HubOptions { retries: 1, ..fixture.with_token(TOKEN) };
        let progress = Recorder::default();
        let error = fetch(REPO, &options, &progress).unwrap_err();
        let all = format!("{error} {error:?} {} {}", error.suggestion(), progress.warnings());
        assert!(!all.contains(TOKEN), "{status}: {all}");
        if status == 403 {
            assert!(all.contains("you sent Bearer hf_… to https://h/?…"), "{all}");
        }
        assert!(matches!(error.exit_code(), 1 | 3 | 4), "{status}: {error}");
        if let Error::Network { message, .. } = &error {
            assert!(message.contains(&fixture.hub.endpoint()), "{message}");
            network += 1;
        }
        let mut names = Vec::new();
        collect(fixture.cache.path(), &mut names);
        assert!(names.iter().all(|name| !name.contains(TOKEN)), "{names:?}");
    }
    assert!(network > 0, "no error of the network");
}

fn collect(folder: &std::path::Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        names.push(entry.path().display().to_string());
        if entry.path().is_dir() {
            collect(&entry.path(), names);
        }
    }
}
