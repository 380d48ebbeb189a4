//! User files, good and hostile, and the choice of text.

use std::path::{Path, PathBuf};

use llm_quantize::base::progress::NullProgress;
use llm_quantize::text::documents::{Coverage, DocumentFile};
use llm_quantize::text::{TextRequest, TextSource, builtin, wikitext};
use llm_quantize::tokenizer::chat::ChatMessage;
use llm_quantize::{Error, Result};
use proptest::prelude::*;
use tempfile::TempDir;

use super::models::{Recorder, calibration_error};

fn write(folder: &TempDir, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

fn read(path: &Path) -> Result<Vec<String>> {
    DocumentFile::open(path, None)?.read(Coverage::First, usize::MAX)
}

fn split(path: &Path) -> Result<(Vec<String>, Vec<String>)> {
    DocumentFile::open(path, None)?.read_split(usize::MAX, usize::MAX)
}

/// One document behind a byte-order mark: its text is split, and the mark is no part of it.
#[test]
fn a_single_line_behind_a_mark_is_split() {
    let folder = TempDir::new().unwrap();
    let words = "one two three four five six seven eight nine ten";
    let line = format!("\u{feff}{{\"text\": \"{words}\"}}\n");
    let (calibration, evaluation) = split(&write(&folder, "a.jsonl", line)).unwrap();
    let whole: String = calibration.into_iter().chain(evaluation).collect();
    assert_eq!(whole.split_whitespace().collect::<Vec<_>>().join(" "), words);
}

#[test]
fn every_documented_form_of_document_is_read() {
    let folder = TempDir::new().unwrap();
    let line = r#"{"text": "one\ntwo", "meta": {"id": 1}}
"plain string"

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]}
{"text": null, "messages": [{"role": "assistant", "content": null, "tool_calls": []}]}
"#;
    let expected = ["one\ntwo", "plain string", "user: Hi\nassistant: Hello\n", "assistant: \n"];
    assert_eq!(read(&write(&folder, "a.jsonl", line)).unwrap(), expected);
    // No newline at the end, Windows line ends, a byte-order mark.
    assert_eq!(read(&write(&folder, "b.jsonl", line.trim_end())).unwrap(), expected);
    let windows = format!("\u{feff}{}", line.replace('\n', "\r\n"));
    assert_eq!(read(&write(&folder, "c.JSONL", windows)).unwrap(), expected);
    // The same as an array, and as objects that follow each other.
    let elements: Vec<&str> = line.lines().filter(|line| !line.is_empty()).collect();
    let array = format!(" [\n{}\n] \n", elements.join(" ,\n"));
    assert_eq!(read(&write(&folder, "d.json", array)).unwrap(), expected);
    let objects = format!("{}\n{{\"text\":\n\"x\"}}", elements[0]);
    assert_eq!(read(&write(&folder, "e.json", objects)).unwrap(), ["one\ntwo", "x"]);
    let text = "First.\n\nSecond: été.\n";
    assert_eq!(read(&write(&folder, "f.txt", text)).unwrap(), [text]);
    assert_eq!(read(&write(&folder, "g.txt", format!("\u{feff}{text}"))).unwrap(), [text]);
}

#[test]
fn conversations_go_through_the_chat_template() {
    let folder = TempDir::new().unwrap();
    let conversation = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
    let path = write(&folder, "chat.jsonl", format!("{conversation}\n{conversation}"));
    let render =
        |messages: &[ChatMessage]| Ok(format!("<{}>{}", messages[0].role, messages[0].content));
    let file = DocumentFile::open(&path, Some(&render)).unwrap();
    assert_eq!(file.read(Coverage::First, usize::MAX).unwrap(), ["<user>Hi", "<user>Hi"]);
    let fail = |_: &[ChatMessage]| Err(Error::General("roles must alternate".into()));
    let file = DocumentFile::open(&path, Some(&fail)).unwrap();
    let message = calibration_error(file.read(Coverage::First, usize::MAX));
    assert!(message.contains("line 1") && message.contains("alternate"), "{message}");
}

#[test]
fn errors_name_file_line_and_reason() {
    let folder = TempDir::new().unwrap();
    let good = r#"{"text": "x"}"#;
    let lines = |third: &str| format!("{good}\n\n{third}\n{good}\n");
    let cases: &[(&str, Vec<u8>, &str, &str)] = &[
        ("a.jsonl", lines("{\"text\": }").into(), "line 3", "not valid JSON"),
        ("b.jsonl", lines("{\"txt\": \"x\"}").into(), "line 3", "neither `text` nor `messages`"),
        ("c.jsonl", lines("{\"text\": 5}").into(), "line 3", "`text` is a number"),
        ("d.jsonl", lines("42").into(), "line 3", "found a number"),
        ("e.jsonl", lines("{\"messages\": {}}").into(), "line 3", "`messages` is an object"),
        ("f.jsonl", lines("{\"messages\": [1]}").into(), "line 3", "a message is a number"),
        ("g.jsonl", lines("{\"messages\": [{\"content\": \"x\"}]}").into(), "line 3", "no `role`"),
        ("h.jsonl", lines("{\"messages\": [{\"role\": \"u\"}]}").into(), "line 3", "no `content`"),
        (
            "i.jsonl",
            lines(r#"{"messages": [{"role": "u", "content": [{"type": "image"}]}]}"#).into(),
            "line 3",
            "not text",
        ),
        ("j.jsonl", [b"{\"text\": \"x\"}\n\"\xff\"\n".as_slice()].concat(), "line 2", "JSON"),
        ("k.json", format!("[\n{good},\n{{\"a\": 1}}]").into(), "line 3", "neither"),
        ("l.json", format!("[\n{good},\n\n{{\n\"text\": x}}]").into(), "line 5", "not valid JSON"),
        ("m.json", format!("[{good},\n{good}").into(), "line 2", "expected a list"),
        ("n.json", format!("[{good}]\nmore").into(), "line 2", "after the end"),
        ("o.json", format!("[{good},]").into(), "line 1", "not valid JSON"),
        ("p.json", b"42".to_vec(), "line 1", "found a number"),
        ("q.json", "[".repeat(100_000).into(), "line 1", "recursion limit"),
        ("r.txt", b"good\nline\nb\xc3\x28d\n".to_vec(), "line 3", "not valid UTF-8"),
        ("s.txt", b"\xff\xfeh\0i\0".to_vec(), "s.txt", "UTF-16"),
        ("t.txt", b"".to_vec(), "t.txt", "no text"),
        ("u.jsonl", b"\n \n\t\r\n".to_vec(), "u.jsonl", "no text"),
        ("v.json", b"[]".to_vec(), "v.json", "too little text"),
        ("w.jsonl", b"{\"text\": \"\"}\n{\"text\": \" \"}".to_vec(), "w.jsonl", "too little"),
        ("x.parquet", b"PAR1".to_vec(), "x.parquet", ".parquet"),
    ];
    for (name, contents, place, reason) in cases {
        let message = calibration_error(read(&write(&folder, name, contents)));
        assert!(message.contains(name), "{name}: {message}");
        assert!(message.contains(place) && message.contains(reason), "{name}: {message}");
    }
    let message = calibration_error(read(&folder.path().join("missing.txt")));
    assert!(message.contains("missing.txt"), "{message}");
    let message = calibration_error(read(folder.path()));
    assert!(message.contains("a directory, where a file is expected"), "{message}");
}

#[test]
fn the_last_fifth_is_reserved_and_nothing_is_in_both_parts() {
    let folder = TempDir::new().unwrap();
    let lines: Vec<String> =
        (0..100).map(|i| format!("{{\"text\": \"document {i:03}\"}}")).collect();
    let (calibration, evaluation) = split(&write(&folder, "a.jsonl", lines.join("\n"))).unwrap();
    let all: Vec<String> = (0..100).map(|i| format!("document {i:03}")).collect();
    assert_eq!([calibration.clone(), evaluation].concat(), all);
    assert!((79..=81).contains(&calibration.len()), "{}", calibration.len());
    let array = format!("[{}]", lines.join(","));
    let (calibration, evaluation) = split(&write(&folder, "a.json", array)).unwrap();
    assert_eq!([calibration.clone(), evaluation].concat(), all);
    assert!((79..=81).contains(&calibration.len()), "{}", calibration.len());

    // Plain text is cut between two paragraphs.
    let text: String = (0..50).map(|i| format!("Paragraph {i}.\nSecond line.\n\n")).collect();
    let (calibration, evaluation) = split(&write(&folder, "a.txt", &text)).unwrap();
    assert_eq!(calibration[0].clone() + &evaluation[0], text);
    assert!(evaluation[0].starts_with("Paragraph 4") && calibration[0].ends_with("\n\n"));

    // Where there is no better place, between two lines or two characters.
    for text in ["word word\n".repeat(40), "é".repeat(1001), "one. two. three. four.".into()] {
        let (calibration, evaluation) = split(&write(&folder, "b.txt", &text)).unwrap();
        assert_eq!(calibration[0].clone() + &evaluation[0], text);
        let share = evaluation[0].len() as f64 / text.len() as f64;
        assert!((0.1..0.4).contains(&share), "{share} of {text:?}");
    }
    // The last document is most of the file; a single document is split itself.
    let long = format!("{{\"text\": \"a\"}}\n{{\"text\": \"{}\"}}\n\n", "b".repeat(500));
    let (calibration, evaluation) = split(&write(&folder, "c.jsonl", long)).unwrap();
    assert_eq!((calibration.as_slice(), evaluation[0].len()), (["a".to_owned()].as_slice(), 500));
    let single = format!("{{\"text\": \"{}\"}}", "c d ".repeat(100));
    for name in ["d.jsonl", "d.json"] {
        let (calibration, evaluation) = split(&write(&folder, name, &single)).unwrap();
        assert_eq!(calibration[0].clone() + &evaluation[0], "c d ".repeat(100), "{name}");
        assert_eq!((calibration.len(), evaluation.len()), (1, 1));
    }
    assert!(calibration_error(split(&write(&folder, "e.txt", "x"))).contains("too little text"));
}

#[test]
fn of_a_large_file_a_bounded_part_from_everywhere_is_read() {
    let folder = TempDir::new().unwrap();
    let lines: String =
        (0..200_000).map(|i| format!("{{\"text\": \"document number {i:06}\"}}\n")).collect();
    let path = write(&folder, "large.jsonl", &lines);
    let file = DocumentFile::open(&path, None).unwrap();
    let (calibration, evaluation) = file.read_split(100_000, 50_000).unwrap();
    let numbers = |documents: &[String]| -> Vec<usize> {
        documents.iter().map(|document| document[16..].parse().unwrap()).collect()
    };
    let (calibration, evaluation) = (numbers(&calibration), numbers(&evaluation));
    let line = "{\"text\": \"document number 000000\"}\n".len();
    assert!(calibration.len() * line <= 120_000 && evaluation.len() * line <= 60_000);
    assert!(calibration.is_sorted_by(|a, b| a < b) && evaluation.is_sorted_by(|a, b| a < b));
    assert!(calibration[0] == 0 && *calibration.last().unwrap() > 155_000);
    assert!(*calibration.last().unwrap() < 160_001 && evaluation[0] >= 159_999);
    let gaps = calibration.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(gaps < 5_000, "a gap of {gaps} documents");

    let text: String = (0..100_000).map(|i| format!("Line {i:06}\n\n")).collect();
    let path = write(&folder, "large.txt", &text);
    let (calibration, _) =
        DocumentFile::open(&path, None).unwrap().read_split(64_000, 10_000).unwrap();
    assert_eq!(calibration.len(), 64);
    assert!(calibration.iter().map(String::len).sum::<usize>() < 80_000);
    assert!(calibration.iter().all(|piece| piece.starts_with("Line ") && piece.ends_with("\n\n")));
    // Lines longer than the pieces: whole lines are read all the same.
    let long = format!("{{\"text\": \"{}\"}}\n", "x".repeat(5000)).repeat(20);
    let file = write(&folder, "long.jsonl", long);
    let documents = DocumentFile::open(&file, None).unwrap().read(Coverage::Spread, 9000).unwrap();
    assert!(!documents.is_empty() && documents.iter().all(|document| document.len() == 5000));
}

proptest! {
    /// Whatever the bytes: documents or an error, never a panic, and nothing in both parts.
    #[test]
    fn no_file_makes_it_panic(
        bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"[]{}\",:\\ntex \n\r".to_vec())], 0..300),
        extension in prop::sample::select(vec!["txt", "json", "jsonl"]),
        limit in 0usize..400,
    ) {
        let folder = TempDir::new().unwrap();
        let path = write(&folder, &format!("a.{extension}"), &bytes);
        if let Ok(file) = DocumentFile::open(&path, None) {
            let _ = file.read(Coverage::Spread, limit);
            let _ = file.read_split(limit, limit);
            if extension == "txt"
                && let Ok((calibration, evaluation)) = file.read_split(usize::MAX, usize::MAX)
            {
                let text = String::from_utf8(bytes).unwrap();
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                prop_assert_eq!(calibration.concat() + &evaluation.concat(), text);
            }
        }
    }
}

#[test]
fn without_a_file_and_without_the_hub_the_built_in_text_is_used_and_said_so() {
    let progress = Recorder::default();
    let source = TextSource::open(&TextRequest::default(), &progress).unwrap();
    // Thirteen speeches and six, as models/corpus/README.md counts them.
    assert_eq!((source.calibration.len(), source.evaluation.len()), (13, 6));
    assert_eq!(source.calibration.join("\n\n").trim(), builtin::CALIBRATION.trim());
    assert_eq!(source.evaluation.join("\n\n").trim(), builtin::HELD_OUT.trim());
    assert_eq!(source.name, "built-in");
    let notice = source.notice.unwrap();
    assert!(notice.contains("built-in text") && notice.contains("--calibration-data"), "{notice}");
    assert_eq!(progress.notes(), [notice]);

    let offline = |dataset: &str, revision: &str, file: &str| {
        assert_eq!((dataset, file), (wikitext::DATASET, wikitext::ARCHIVE));
        assert_eq!(revision.len(), 40, "pinned to a commit");
        Err(Error::General("HF_HUB_OFFLINE is set and the file is not in the cache".into()))
    };
    let request = TextRequest { fetch: Some(&offline), ..TextRequest::default() };
    let source = TextSource::open(&request, &progress).unwrap();
    assert!(source.notice.unwrap().contains("HF_HUB_OFFLINE"));

    let stopped = |_: &str, _: &str, _: &str| Err(Error::Interrupted { resume: None });
    let request = TextRequest { fetch: Some(&stopped), ..TextRequest::default() };
    let result = TextSource::open(&request, &progress);
    assert!(matches!(result, Err(Error::Interrupted { .. })));

    // An archive that is not the one of the papers is not used either.
    let wrong = |_: &str, _: &str, _: &str| {
        Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/python-zipfile.zip"))
    };
    let request = TextRequest { fetch: Some(&wrong), ..TextRequest::default() };
    let source = TextSource::open(&request, &progress).unwrap();
    assert_eq!(source.name, "built-in");
    assert!(source.notice.unwrap().contains("wiki.train.raw"));
}

#[test]
fn the_built_in_texts_do_not_overlap() {
    let held_out: Vec<&str> = builtin::HELD_OUT.lines().filter(|line| line.len() > 60).collect();
    assert!(held_out.len() > 100);
    for line in held_out {
        assert!(!builtin::CALIBRATION.contains(line), "in both: {line}");
    }
}

#[test]
fn a_users_file_is_used_or_it_is_an_error() {
    let folder = TempDir::new().unwrap();
    let text: String = (0..100).map(|i| format!("Paragraph {i}.\n\n")).collect();
    let mine = write(&folder, "mine.txt", &text);
    let other = write(&folder, "other.txt", "Other text.\n");
    let never = |_: &str, _: &str, _: &str| -> Result<PathBuf> { panic!("the hub was asked") };
    let request = TextRequest {
        calibration_data: Some(&mine),
        fetch: Some(&never),
        ..TextRequest::default()
    };
    let source = TextSource::open(&request, &NullProgress).unwrap();
    assert_eq!(source.name, "mine.txt");
    assert_eq!(source.evaluation_name, "mine.txt (last fifth)");
    assert_eq!(source.calibration.concat() + &source.evaluation.concat(), text);
    assert!(source.notice.unwrap().contains("four fifths"));

    let request = TextRequest { evaluation_data: Some(&other), ..request };
    let source = TextSource::open(&request, &NullProgress).unwrap();
    assert_eq!(
        (source.calibration.concat(), source.evaluation.concat()),
        (text, "Other text.\n".into())
    );
    assert_eq!(source.evaluation_name, "other.txt");
    assert_eq!(source.notice, None);

    let same = folder.path().join(".").join("mine.txt");
    let request = TextRequest { evaluation_data: Some(&same), ..request };
    assert!(calibration_error(TextSource::open(&request, &NullProgress)).contains("same file"));
    let missing = folder.path().join("missing.txt");
    let request = TextRequest { calibration_data: Some(&missing), ..TextRequest::default() };
    assert!(calibration_error(TextSource::open(&request, &NullProgress)).contains("missing.txt"));
    let request = TextRequest { evaluation_data: Some(&missing), ..TextRequest::default() };
    assert!(calibration_error(TextSource::open(&request, &NullProgress)).contains("missing.txt"));
}
