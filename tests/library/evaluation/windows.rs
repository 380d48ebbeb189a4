//! How text is cut into windows.

use std::collections::HashSet;

use llm_quantize::Error;
use llm_quantize::text::{CalibrationWindows, EvaluationWindows, Protocol, TextCodec};

use super::models::{Characters, calibration_error};

const PLAIN: Characters = Characters { lead: None, separator: None };
const LED: Characters = Characters { lead: Some(1), separator: Some(2) };

/// Lines that all differ: any 24 characters of it occur once.
fn numbered_lines(count: usize) -> String {
    (0..count).map(|line| format!("{line:07} {:07}\n", line * 7919 % 9_999_991)).collect()
}

#[test]
fn papers_windows_are_the_stream_cut_without_gaps_or_overlap() {
    let stream: Vec<u32> = (0..1000).collect();
    let protocol = Protocol::papers(64);
    let windows = EvaluationWindows::from_stream(stream.clone(), Some(5), protocol, None).unwrap();
    assert_eq!((windows.count(), windows.length, windows.available), (15, 64, 15));
    assert_eq!(windows.first_target, 1);
    assert_eq!(windows.tokens, stream[..960]);
    let limited = EvaluationWindows::from_stream(stream, None, protocol, Some(4)).unwrap();
    assert_eq!((limited.count(), limited.available), (4, 15));
    assert_eq!(limited.tokens, windows.tokens[..256]);
    assert_eq!(Protocol::papers(131_072).length(), 2048);
}

#[test]
fn llama_cpp_windows_begin_with_the_leading_token() {
    let stream: Vec<u32> = (100..1124).collect();
    let protocol = Protocol::LlamaCpp { length: 512 };
    let windows = EvaluationWindows::from_stream(stream.clone(), Some(7), protocol, None).unwrap();
    assert_eq!((windows.count(), windows.first_target), (2, 257));
    assert_eq!(windows.targets_per_window(), 255);
    for (window, original) in windows.iter().zip(stream.chunks(512)) {
        assert_eq!(window[0], 7);
        assert_eq!(window[1..], original[1..]);
    }
    let without = EvaluationWindows::from_stream(stream.clone(), None, protocol, None).unwrap();
    assert_eq!(without.tokens, stream);
    let short = EvaluationWindows::from_stream(stream[..1023].to_vec(), None, protocol, None);
    assert!(calibration_error(short).contains("1024"));
}

#[test]
fn a_short_text_is_one_window_and_a_single_token_is_none() {
    let short = EvaluationWindows::from_stream(vec![1, 2, 3], None, Protocol::papers(64), None);
    let short = short.unwrap();
    assert_eq!((short.count(), short.length, short.targets_per_window()), (1, 3, 2));
    for tokens in [vec![], vec![1]] {
        let none = EvaluationWindows::from_stream(tokens, None, Protocol::papers(64), None);
        assert!(calibration_error(none).contains("are needed"));
    }
    let none = EvaluationWindows::from_stream(vec![1; 9], None, Protocol::papers(4), Some(0));
    assert!(matches!(none, Err(Error::InvalidArgument(_))));
}

#[test]
fn documents_are_framed_by_the_tokenizer_or_separated() {
    let documents = ["ab".to_owned(), "cd".to_owned()];
    let cut = |codec: &Characters| {
        EvaluationWindows::cut(&documents, codec, Protocol::Papers { length: 64 }, None).unwrap()
    };
    let [a, b, c, d] = [b'a', b'b', b'c', b'd'].map(u32::from);
    assert_eq!(cut(&LED).tokens, [1, a, b, 1, c, d]);
    assert_eq!(cut(&PLAIN).tokens, [a, b, c, d]);
    assert_eq!(cut(&Characters { lead: None, separator: Some(2) }).tokens, [a, b, 2, c, d]);
}

/// Where each window's text lies in the source; panics if it is not a piece of it.
fn places(windows: &CalibrationWindows, source: &str, lead: Option<u32>) -> Vec<usize> {
    let skip = usize::from(lead.is_some());
    windows
        .iter()
        .map(|window| {
            assert_eq!(window.len(), windows.length);
            assert_eq!(lead.is_some(), window[0] == 1);
            let text = PLAIN.decode(&window[skip..]).unwrap();
            source.find(&text).unwrap_or_else(|| panic!("{text:?} is not in the text"))
        })
        .collect()
}

#[test]
fn calibration_windows_cover_the_text_and_never_overlap() {
    let source = numbered_lines(20_000);
    // 320,000 characters for 40 windows of 128: text enough to leave most of it out. Then 2,400
    // windows, which need all of it.
    for (count, expected) in [(40, 40), (2400, 2400), (100_000, source.len() / 128)] {
        let windows =
            CalibrationWindows::sample(std::slice::from_ref(&source), &PLAIN, count, 128, 1)
                .unwrap();
        assert_eq!(windows.count(), expected);
        let places = places(&windows, &source, None);
        for (index, pair) in places.windows(2).enumerate() {
            assert!(pair[1] >= pair[0] + 128, "windows {index} and the next overlap: {pair:?}");
        }
        // Each of equal parts of the text has its window.
        for (index, &place) in places.iter().enumerate() {
            let part = source.len() * index / expected..source.len() * (index + 1) / expected + 1;
            assert!(part.contains(&place), "window {index} of {expected} at {place}");
        }
    }
}

#[test]
fn calibration_windows_depend_on_the_seed_and_on_nothing_else() {
    let source = [numbered_lines(9_000), numbered_lines(300)];
    let sample = |seed| CalibrationWindows::sample(&source, &LED, 20, 64, seed).unwrap();
    assert_eq!(sample(3), sample(3));
    assert_ne!(sample(3), sample(4));
    let windows = sample(3);
    let places = places(&windows, &source[0], Some(1));
    assert_eq!(places.iter().collect::<HashSet<_>>().len(), places.len());
}

#[test]
fn wide_characters_and_many_documents_are_no_trouble() {
    let documents: Vec<String> = (0..500).map(|i| format!("№{i} — “été”, 東京\n")).collect();
    for count in [3, 1000] {
        let windows = CalibrationWindows::sample(&documents, &LED, count, 32, 1).unwrap();
        assert!(windows.count() >= 3);
    }
    let error = CalibrationWindows::sample(&["too short".into()], &LED, 4, 64, 1);
    assert!(calibration_error(error).contains("64 tokens"));
    assert!(CalibrationWindows::sample(&["x".into()], &LED, 0, 64, 1).is_err());
    assert!(CalibrationWindows::sample(&[], &LED, 1, 64, 1).is_err());
}
