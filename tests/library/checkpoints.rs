//! Checkpoints under everything that can happen to them: torn and flipped files, other runs, other
//! processes, many threads, and SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use llm_quantize::base::progress::{NullProgress, Progress};
use llm_quantize::files::checkpoint::{CheckpointStore, Fingerprint, UnitData};
use serde_json::json;

/// The test that a child runs.
const CHILD: &str = "checkpoints::child_saves_until_killed";
/// Set in the environment of a child: the folder in which it saves units until it is killed.
const CHILD_FOLDER: &str = "LLM_QUANTIZE_TEST_CHECKPOINT_FOLDER";
/// Set in the environment of a child: the number of the first unit that it saves.
const CHILD_FIRST: &str = "LLM_QUANTIZE_TEST_CHECKPOINT_FIRST";

#[derive(Default)]
struct Messages {
    warnings: Mutex<Vec<String>>,
    notes: Mutex<Vec<String>>,
}

impl Messages {
    fn warnings(&self) -> String {
        self.warnings.lock().unwrap().join("\n")
    }
}

impl Progress for Messages {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.into());
    }
    fn detail(&self, _: &str) {}
    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.into());
    }
}

fn fingerprint() -> Fingerprint {
    Fingerprint::new("org/tiny").with("version", "0.1.0").with("target_bpw", 0.55).with("seed", 7)
}

/// A unit whose contents follow from its number, so that any mix-up shows.
fn unit(number: u32) -> UnitData {
    let length = 100 + (number as usize * 7919) % 5000;
    let bytes =
        (0..length).map(|at| (at as u32).wrapping_mul(number + 3).to_le_bytes()[1]).collect();
    let values = (0..length / 3).map(|at| (at as f32 + 0.1) / (number as f32 + 1.0)).collect();
    UnitData::new(json!({ "number": number, "error": 0.1 + f64::from(number) / 3.0 }))
        .with_bytes("signs", bytes)
        .with_f32("scales", values)
}

fn name(number: u32) -> String {
    format!("model.layers.{number}.mlp.up_proj.weight")
}

fn unit_file(store: &Path, number: u32) -> PathBuf {
    store.join("units").join(format!("{}.unit", name(number)))
}

/// A finished store with three units, closed.
fn three_units(dir: &Path) -> PathBuf {
    let store = CheckpointStore::create(dir, &fingerprint(), &NullProgress).unwrap();
    for number in 0..3 {
        store.save(&name(number), &unit(number)).unwrap();
    }
    store.folder().to_path_buf()
}

fn names(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    numbers.into_iter().map(name).collect()
}

#[test]
fn units_come_back_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let odd = UnitData::new(json!({
        // Numbers whose shortest decimal form a careless reader gets wrong by one bit, integers
        // beyond f64, and names that would clash with any marker.
        "floats": [0.1, 1.0, -0.0, 5e-324, f64::MAX, 1.797_693_134_862_315_5e308,
                   9_007_199_254_740_993.0, 8.988_465_674_311_58e307, 123_456_789.123_456_78,
                   7.038_531_012_345_678e-26, 2.225_073_858_507_201_4e-308],
        "integers": [u64::MAX, i64::MIN, 0],
        "nested": { "f64": { "z": 0.3, "a": [true, null, "0.1"] } },
    }))
    .with_bytes("", Vec::new())
    .with_bytes("signs", (0..=255).collect())
    .with_f32("scales", vec![f32::MIN_POSITIVE / 4.0, -0.0, f32::INFINITY, 1e-45, 3.0])
    .with_f32("none", Vec::new());
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    store.save("odd", &odd).unwrap();
    store.save("../../null", &UnitData::default()).unwrap();
    let folder = store.folder().to_path_buf();
    drop(store);

    let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
    assert_eq!(store.done().into_iter().collect::<Vec<_>>(), ["../../null", "odd"]);
    let loaded = store.load("odd").unwrap().unwrap();
    assert_eq!(loaded, odd);
    assert_eq!(loaded.sections.keys().collect::<Vec<_>>(), ["", "signs", "scales", "none"]);
    assert_eq!(loaded.f32("scales").unwrap()[1].to_bits(), (-0.0_f32).to_bits());
    assert_eq!(loaded.bytes("signs").unwrap().len(), 256);
    assert!(loaded.bytes("scales").is_none() && loaded.f32("absent").is_none());
    let (before, after) = (&odd.meta["floats"], &loaded.meta["floats"]);
    for (a, b) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        assert_eq!(a.as_f64().unwrap().to_bits(), b.as_f64().unwrap().to_bits(), "{a}");
    }
    assert_eq!(store.load("../../null").unwrap().unwrap(), UnitData::default());
    assert!(store.load("absent").unwrap().is_none());
    assert!(!store.is_done("absent"));
    assert!(!dir.path().parent().unwrap().join("null.unit").exists());
}

#[test]
fn metadata_numbers_survive_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let values: Vec<f64> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f64::from_bits(state)
    })
    .filter(|value| value.is_finite())
    .take(20_000)
    .collect();
    store.save("many", &UnitData::new(json!(values))).unwrap();
    let loaded = store.load("many").unwrap().unwrap().meta;
    for (value, loaded) in values.iter().zip(loaded.as_array().unwrap()) {
        assert_eq!(value.to_bits(), loaded.as_f64().unwrap().to_bits());
    }
}

#[test]
fn a_torn_unit_is_not_done_wherever_it_was_torn() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let file = unit_file(&folder, 1);
    let whole = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    // Around every border of the format, and everywhere else at a stride.
    let borders = [0, 8, 16, 24, 56, 24 + header, whole.len() - 32, whole.len()];
    let mut lengths: BTreeSet<usize> = (0..whole.len()).step_by(97).collect();
    for border in borders {
        lengths.extend(border.saturating_sub(2)..(border + 3).min(whole.len()));
    }
    lengths.remove(&whole.len());
    for length in lengths {
        for fill in [None, Some(0_u8)] {
            let mut torn = whole[..length].to_vec();
            if let Some(fill) = fill {
                // As after a power cut on some file systems: right length, no contents.
                torn.resize(whole.len(), fill);
                if torn == whole {
                    continue;
                }
            }
            fs::write(&file, &torn).unwrap();
            let messages = Messages::default();
            let store = CheckpointStore::open(&folder, &fingerprint(), &messages).unwrap();
            assert_eq!(store.done(), names([0, 2]), "{length} bytes, fill {fill:?}");
            let warning = messages.warnings();
            assert!(warning.contains(&name(1)) && warning.contains("done again"), "{warning}");
            assert!(store.load(&name(1)).unwrap().is_none());
        }
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&file, &longer).unwrap();
    let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
    assert_eq!(store.done(), names([0, 2]));
    // Doing it again heals it.
    store.save(&name(1), &unit(1)).unwrap();
    assert_eq!(store.load(&name(1)).unwrap().unwrap(), unit(1));
    assert_eq!(fs::read(&file).unwrap(), whole, "the same unit gives the same bytes");
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let file = unit_file(&folder, 2);
    let whole = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let mut places: BTreeSet<usize> = (0..24 + header).collect();
    places.extend((24 + header..whole.len()).step_by(61));
    places.extend(whole.len() - 32..whole.len());
    for (round, place) in places.into_iter().enumerate() {
        let mut flipped = whole.clone();
        flipped[place] ^= 1 << (round % 8);
        fs::write(&file, &flipped).unwrap();
        let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
        assert_eq!(store.done(), names([0, 1]), "bit {} of byte {place}", round % 8);
    }
}

#[test]
fn hostile_lengths_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let file = unit_file(&folder, 0);
    let whole = fs::read(&file).unwrap();
    for (place, value) in [(8, u64::MAX), (8, 1 << 40), (16, u64::MAX), (16, 0)] {
        let mut bytes = whole.clone();
        bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
        fs::write(&file, &bytes).unwrap();
        let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
        assert!(!store.is_done(&name(0)), "{value} at {place}");
    }
    // A header that promises sections of 2^62 elements.
    let header = json!({
        "unit": name(0), "run": fingerprint().hash(), "meta": null, "floats": 0,
        "sections": [{ "name": "x", "kind": "f32", "length": 1_u64 << 62 }],
    })
    .to_string();
    let mut bytes = whole[..8].to_vec();
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend((24 + header.len() as u64 + 32).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([0; 32]);
    fs::write(&file, &bytes).unwrap();
    let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
    assert!(!store.is_done(&name(0)));
}

#[test]
fn units_of_other_units_and_runs_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    fs::copy(unit_file(&folder, 0), unit_file(&folder, 1)).unwrap();
    let other = fingerprint().with("extra", 1);
    let other_folder = {
        let store = CheckpointStore::create(dir.path(), &other, &NullProgress).unwrap();
        store.save(&name(2), &unit(2)).unwrap();
        store.folder().to_path_buf()
    };
    fs::copy(unit_file(&other_folder, 2), unit_file(&folder, 2)).unwrap();
    fs::write(folder.join("units/notes.txt"), "mine").unwrap();
    let messages = Messages::default();
    let store = CheckpointStore::open(&folder, &fingerprint(), &messages).unwrap();
    assert_eq!(store.done(), names([0]));
    assert!(messages.warnings().contains("belongs to unit"), "{}", messages.warnings());
}

#[test]
fn another_runs_checkpoint_is_refused_with_every_difference() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let wanted = Fingerprint::new("org/tiny")
        .with("version", "0.2.0")
        .with("target_bpw", 1)
        .with("seed", 7)
        .with("solver", "admm");
    for place in [dir.path(), &folder] {
        let error = CheckpointStore::open(place, &wanted, &NullProgress).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert_eq!(
            error.to_string(),
            format!(
                "the checkpoint in {} belongs to another run: version is `0.1.0` there, `0.2.0` \
                 here; target_bpw is `0.55` there, `1` here; solver is absent there, `admm` here",
                folder.display()
            )
        );
    }
    // The run is as it was.
    let store = CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress).unwrap();
    assert_eq!(store.done(), names([0, 1, 2]));
}

#[test]
fn several_runs_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [
        fingerprint(),
        fingerprint().with("residual", true),
        Fingerprint::new("other").with("version", "0.1.0"),
    ];
    for (number, run) in runs.iter().enumerate() {
        let store = CheckpointStore::create(dir.path(), run, &NullProgress).unwrap();
        store.save("unit", &unit(number as u32)).unwrap();
    }
    fs::create_dir(dir.path().join("not a run")).unwrap();
    fs::write(dir.path().join("not a folder"), "").unwrap();
    for (number, run) in runs.iter().enumerate() {
        let store = CheckpointStore::open(dir.path(), run, &NullProgress).unwrap();
        assert_eq!(store.load("unit").unwrap().unwrap(), unit(number as u32));
    }
    // The most similar one explains a refusal.
    let wanted = fingerprint().with("residual", false);
    let error = CheckpointStore::open(dir.path(), &wanted, &NullProgress).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("residual is"), "{text}");
    assert!(!text.contains("model is") && !text.contains("seed is"), "{text}");

    // A run that was renamed is still found by what it is.
    let store = CheckpointStore::open(dir.path(), &runs[2], &NullProgress).unwrap();
    let folder = store.folder().to_path_buf();
    drop(store);
    fs::rename(&folder, dir.path().join("renamed")).unwrap();
    let store = CheckpointStore::open(dir.path(), &runs[2], &NullProgress).unwrap();
    assert!(store.folder().ends_with("renamed") && store.is_done("unit"));

    // Finishing one leaves the others; finishing the last removes the parent if nothing else is in.
    store.finish().unwrap();
    assert!(!dir.path().join("renamed").exists());
    assert!(CheckpointStore::open(dir.path(), &runs[0], &NullProgress).is_ok());
}

#[test]
fn nothing_there_is_exit_7() {
    let dir = tempfile::tempdir().unwrap();
    for place in [dir.path().to_path_buf(), dir.path().join("absent")] {
        let error = CheckpointStore::open(&place, &fingerprint(), &NullProgress).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert_eq!(error.to_string(), format!("no checkpoint in {}", place.display()));
        assert_eq!(place.exists(), place == dir.path(), "asking makes nothing");
    }
}

#[test]
fn a_damaged_manifest_is_said_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let file = folder.join("manifest.json");
    let whole = fs::read(&file).unwrap();
    let mut damages: Vec<Vec<u8>> =
        (0..whole.len() - 1).step_by(13).map(|length| whole[..length].to_vec()).collect();
    // One flipped bit in a value: still JSON, no longer the run.
    let seven = whole.iter().rposition(|byte| *byte == b'7').unwrap();
    let edited = String::from_utf8(whole.clone()).unwrap().replace("0.55", "0.56");
    damages.push(edited.into_bytes());
    damages.push(b"{\"format\":1,\"fields\":[],\"checksum\":\"\"}".to_vec());
    damages.push(b"[]".to_vec());
    assert!(seven > 0);
    for damage in damages {
        fs::write(&file, &damage).unwrap();
        for place in [dir.path(), &folder] {
            let error = CheckpointStore::open(place, &fingerprint(), &NullProgress).unwrap_err();
            assert_eq!(error.exit_code(), 7);
            let text = error.to_string();
            assert!(text.contains("manifest.json is damaged"), "{text}");
        }
    }
    fs::write(&file, b"{\"format\":2,\"whatever\":0}").unwrap();
    let error = CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress).unwrap_err();
    assert!(error.to_string().contains("format 2"), "{error}");

    // Who did not ask to resume goes on with the units, which say whose they are, and is told.
    let messages = Messages::default();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &messages).unwrap();
    assert_eq!(store.done(), names([0, 1, 2]));
    assert!(messages.warnings().contains("written anew"), "{}", messages.warnings());
    drop(store);
    assert!(CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress).is_ok());
}

/// Every file of a checkpoint is replaced by a folder, by nothing, by an empty file; the store is
/// opened as without `--resume`.
#[test]
fn whatever_happens_to_a_file_the_rest_is_used() {
    type Damage = fn(&Path);
    let folder_instead: Damage = |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir_all(path.join("inside")).unwrap();
    };
    let damages: [(&str, Damage); 3] = [
        ("a folder", folder_instead),
        ("missing", |path| fs::remove_file(path).unwrap()),
        ("empty", |path| fs::write(path, "").unwrap()),
    ];
    for (what, damage) in damages {
        for file in ["manifest.json", "lock", "unit"] {
            let dir = tempfile::tempdir().unwrap();
            let folder = three_units(dir.path());
            let path = if file == "unit" { unit_file(&folder, 1) } else { folder.join(file) };
            damage(&path);
            let expected = if file == "unit" { names([0, 2]) } else { names([0, 1, 2]) };
            let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
            assert_eq!(store.done(), expected, "{file}: {what}");
            store.save(&name(1), &unit(1)).unwrap();
            drop(store);
            let store = CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress).unwrap();
            assert_eq!(store.load(&name(1)).unwrap().unwrap(), unit(1), "{file}: {what}");
        }
    }
    // A file where a folder belongs.
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    fs::remove_dir_all(folder.join("units")).unwrap();
    fs::write(folder.join("units"), "x").unwrap();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    store.save(&name(1), &unit(1)).unwrap();
    drop(store);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "x").unwrap();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    assert!(store.done().is_empty());
    store.save(&name(1), &unit(1)).unwrap();
}

#[test]
fn a_refusal_is_short_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let many = |command: &str, from: u32| {
        (0..60).fold(Fingerprint::new("org/tiny").with("command", command), |run, knob| {
            run.with(format!("recipe knob {knob}"), knob + from)
        })
    };
    let refusal = |wanted: &Fingerprint| {
        let error = CheckpointStore::open(dir.path(), wanted, &NullProgress).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        (error.to_string(), error.suggestion())
    };
    let (nothing, hint) = refusal(&many("a", 0));
    assert!(nothing.starts_with("no checkpoint in") && hint.contains("Check the path"), "{hint}");
    let kept = CheckpointStore::create(dir.path(), &many("littlebit compress", 0), &NullProgress);
    kept.unwrap().save("unit", &unit(1)).unwrap();
    let (other, hint) = refusal(&Fingerprint::new("org/tiny").with("command", "quantize gguf"));
    assert!(
        other.ends_with("belongs to another command: littlebit compress, not quantize gguf"),
        "{other}"
    );
    assert!(hint.contains("without") || hint.contains("leave out --resume"), "{hint}");
    let (knobs, _) = refusal(&many("littlebit compress", 1));
    assert!(knobs.contains("recipe knob 0 is `0` there, `1` here"), "{knobs}");
    assert!(knobs.ends_with("; and 54 more") && knobs.len() < 500, "{knobs}");
    // In use: waiting helps, starting over does not.
    let run = many("littlebit compress", 0);
    let _held = CheckpointStore::create(dir.path(), &run, &NullProgress).unwrap();
    let (busy, hint) = refusal(&run);
    assert!(
        busy.contains("in use") && hint.contains("Wait") && !hint.contains("--resume"),
        "{hint}"
    );
}

#[test]
fn creating_the_same_run_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    three_units(dir.path());
    let messages = Messages::default();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &messages).unwrap();
    assert_eq!(store.done(), names([0, 1, 2]));
    let notes = messages.notes.lock().unwrap().join("\n");
    assert_eq!(notes, "");
    store.announce(1, 4, false, &messages);
    let notes = messages.notes.lock().unwrap().join("\n");
    let folder = store.folder().display();
    assert_eq!(notes, format!("Resuming from checkpoint: {folder}\nCompleted layers: 1/4"));
}

#[test]
fn damage_during_the_run_is_an_error_and_the_unit_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let folder = three_units(dir.path());
    let store = CheckpointStore::open(&folder, &fingerprint(), &NullProgress).unwrap();
    let file = unit_file(&folder, 1);
    let mut bytes = fs::read(&file).unwrap();
    let place = bytes.len() - 40;
    bytes[place] ^= 0x10;
    fs::write(&file, &bytes).unwrap();
    let error = store.load(&name(1)).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains("checksum"), "{error}");
    assert_eq!(store.done(), names([0, 2]));
}

#[test]
fn one_process_works_on_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    for attempt in [
        CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress),
        CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress),
    ] {
        let error = attempt.unwrap_err();
        assert_eq!(error.exit_code(), 7);
        let expected = format!("in use by another process (process {})", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
    }
    // Other runs are free, and so is this one afterwards.
    let other = fingerprint().with("extra", 1);
    CheckpointStore::create(dir.path(), &other, &NullProgress).unwrap().finish().unwrap();
    store.save("unit", &unit(1)).unwrap();
    drop(store);
    let store = CheckpointStore::open(dir.path(), &fingerprint(), &NullProgress).unwrap();
    let parent = dir.path().to_path_buf();
    store.finish().unwrap();
    assert!(!parent.exists(), "the empty parent goes with the last run");
}

#[test]
fn many_threads_save_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::create(dir.path(), &fingerprint(), &NullProgress).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..8_u32 {
            let store = &store;
            scope.spawn(move || {
                for step in 0..12 {
                    let number = worker * 12 + step;
                    store.save(&name(number), &unit(number)).unwrap();
                    // All of them also fight over one name.
                    store.save("contested", &unit(500)).unwrap();
                    assert_eq!(store.load(&name(number)).unwrap().unwrap(), unit(number));
                }
            });
        }
    });
    let folder = store.folder().to_path_buf();
    assert_eq!(store.done().len(), 97);
    drop(store);
    let messages = Messages::default();
    let store = CheckpointStore::open(&folder, &fingerprint(), &messages).unwrap();
    assert_eq!(messages.warnings(), "");
    for number in 0..96 {
        assert_eq!(store.load(&name(number)).unwrap().unwrap(), unit(number));
    }
    assert_eq!(store.load("contested").unwrap().unwrap(), unit(500));
    assert_eq!(
        fs::read_dir(folder.join("units")).unwrap().count(),
        97,
        "no temporary file is left"
    );
}

/// The child of [`killed_at_any_moment_what_was_reported_is_there`]: saves units and reports each
/// on stdout once it is safe.
#[test]
#[ignore = "a child of `killed_at_any_moment_what_was_reported_is_there`, which starts it"]
fn child_saves_until_killed() {
    let folder = std::env::var_os(CHILD_FOLDER).expect("only its parent starts this");
    let first: u32 = std::env::var(CHILD_FIRST).unwrap().parse().unwrap();
    let store = CheckpointStore::create(Path::new(&folder), &fingerprint(), &NullProgress).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for number in (first + worker..first + 100_000).step_by(2) {
                    store.save(&name(number), &unit(number)).unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "saved {number}").unwrap();
                    out.flush().unwrap();
                }
            });
        }
    });
}

#[test]
fn killed_at_any_moment_what_was_reported_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut reported = BTreeSet::new();
    let mut state = std::process::id() | 1;
    for round in 0..20_u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, dir.path())
            .env(CHILD_FIRST, (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                // The harness writes before the child's first line without a line break.
                .filter_map(|line| line.rsplit_once("saved ")?.1.parse::<u32>().ok())
                .collect::<Vec<_>>()
        });
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        std::thread::sleep(Duration::from_micros(u64::from(20_000 + state % 150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        reported.extend(reader.join().unwrap());

        let messages = Messages::default();
        let store = match CheckpointStore::open(dir.path(), &fingerprint(), &messages) {
            Ok(store) => store,
            // Killed before the first manifest was whole: then nothing was reported either.
            Err(error) => {
                assert!(reported.is_empty(), "{error}");
                continue;
            }
        };
        assert_eq!(messages.warnings(), "", "round {round}");
        let done = store.done();
        for number in &reported {
            assert!(done.contains(&name(*number)), "round {round}: unit {number} was reported");
        }
        for id in &done {
            let number: u32 = id.split('.').nth(2).unwrap().parse().unwrap();
            assert_eq!(store.load(id).unwrap().unwrap(), unit(number), "round {round}");
        }
        let left = fs::read_dir(store.folder().join("units")).unwrap().count();
        assert_eq!(left, done.len(), "round {round}: temporary files are swept");
    }
    assert!(!reported.is_empty(), "no child lived long enough to save anything");
}
