//! Recipe files: what they may say, and what comes of it.

use super::*;
use crate::job::littlebit::tuning::knobs::KNOBS;

fn parsed(text: &str) -> Recipe {
    Recipe::parse(text, None).unwrap().1.unwrap()
}

fn refusal(text: &str) -> String {
    match Recipe::parse(text, None) {
        Err(error @ Error::InvalidArgument(_)) => error.to_string(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn the_list_of_knobs_is_the_recipe() {
    let table = Recipe::default().table().unwrap();
    let keys: Vec<(&str, &str)> = table
        .iter()
        .flat_map(|(t, entries)| {
            entries.as_table().unwrap().keys().map(move |k| (t.as_str(), k.as_str()))
        })
        .collect();
    let mut known: Vec<_> = KNOBS.iter().map(|knob| (knob.table, knob.key)).collect();
    known.sort_unstable();
    let mut found = keys;
    found.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn every_effort_passes_its_own_check_and_comes_back_from_its_text() {
    for effort in [Effort::Fast, Effort::Balanced, Effort::Max] {
        let recipe = Recipe::of(effort);
        recipe.check().unwrap();
        let text = recipe.to_toml().unwrap();
        let (name, back) = Recipe::parse(&text, Some(effort)).unwrap();
        assert_eq!((name, back.unwrap()), (effort, recipe), "{text}");
        assert!(!text.contains("00000"), "no digits of a widened f32: {text}");
    }
    assert_eq!(Effort::of_name("max"), Some(Effort::Max));
    assert_eq!(Effort::of_name("most"), None);
}

#[test]
fn a_file_replaces_single_knobs() {
    let recipe = parsed("effort = 'fast'\n[blocks]\nsteps = 7\nscale-rate = 1\n");
    let mut expected = Recipe::of(Effort::Fast);
    expected.blocks.steps = 7;
    expected.blocks.scale_rate = 1.0;
    assert_eq!(recipe, expected);
    assert_eq!(parsed(""), Recipe::default());
    let smooth = parsed("[distillation]\nestimator = 'smooth-sign'\nsigns = false");
    assert_eq!(smooth.distillation.estimator, Estimator::SmoothSign);
    assert!(!smooth.distillation.signs);
}

#[test]
fn the_command_line_has_the_last_word_on_the_effort() {
    let text = "effort = 'max'\n[text]\nlength = 64";
    assert_eq!(Recipe::parse(text, None).unwrap().0, Effort::Max);
    let (effort, recipe) = Recipe::parse(text, Some(Effort::Fast)).unwrap();
    assert_eq!(effort, Effort::Fast);
    let recipe = recipe.unwrap();
    assert_eq!((recipe.text.length, recipe.text.sequences), (64, 128));
    assert_eq!(Recipe::parse("effort = 'none'", None).unwrap(), (Effort::None, None));
    assert_eq!(Recipe::parse("effort = 'max'", Some(Effort::None)).unwrap(), (Effort::None, None));
    let message = Recipe::parse(text, Some(Effort::None)).unwrap_err().to_string();
    assert!(message.contains("[text]") && message.contains("none"), "{message}");
}

#[test]
fn what_makes_no_sense_is_refused_with_key_and_range() {
    for (text, words) in [
        ("[blocks]\nstep = 1", &["blocks.step", "absorption-steps"][..]),
        ("[block]\nsteps = 1", &["`block`", "[blocks]"]),
        ("sequences = 4", &["`sequences`", "[text]"]),
        ("text = 4", &["`text`", "table"]),
        ("effort = 'much'", &["\"much\"", "balanced"]),
        ("effort = 3", &["effort = 3", "balanced"]),
        ("[text]\nsequences = 0", &["text.sequences = 0", "1 to 65536"]),
        ("[text]\nsequences = 1.5", &["text.sequences = 1.5", "whole number"]),
        ("[text]\nsequences = '9'", &["text.sequences = \"9\"", "whole number"]),
        ("[text]\nheld-out = -1", &["text.held-out = -1", "0 to"]),
        ("[text]\nheld-out = 0", &["text.held-out = 0", "at least 1"]),
        ("[text]\nlength = 1", &["text.length = 1", "2 to"]),
        ("[blocks]\nbatch = 0", &["blocks.batch = 0", "1 to"]),
        ("[blocks]\nsign-rate = 0", &["blocks.sign-rate = 0", "above 0"]),
        ("[blocks]\nsign-rate = 1e-60", &["blocks.sign-rate", "above 0"]),
        ("[blocks]\nsign-rate = nan", &["blocks.sign-rate = nan", "above 0"]),
        ("[blocks]\nscale-rate = -0.5", &["blocks.scale-rate = -0.5", "above 0"]),
        ("[blocks]\nrelative-loss = 1", &["blocks.relative-loss = 1", "true or false"]),
        ("[blocks]\nestimator = 'tanh'", &["\"tanh\"", "\"smooth-sign\""]),
        ("[distillation]\ntop-k = 0", &["distillation.top-k = 0", "1 to"]),
        ("[distillation]\nhidden-weight = inf", &["hidden-weight = inf", "from 0"]),
        ("[text]\nlength = \n", &["line 2"]),
        ("[text]\nlength = 8\nlength = 9", &["line 3", "duplicate"]),
    ] {
        let message = refusal(text);
        assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
    }
    // Nothing learns, so nothing has to decide.
    let still = "[text]\nheld-out = 0\n[blocks]\nsteps = 0\n[distillation]\nsteps = 0";
    assert!(!parsed(still).learns());
}

#[test]
fn recipes_made_in_code_are_checked_too() {
    let mut recipe = Recipe::default();
    recipe.blocks.sign_rate = f32::NAN;
    assert!(recipe.check().unwrap_err().to_string().contains("blocks.sign-rate"));
    let mut recipe = Recipe::default();
    recipe.text.sequences = 0;
    assert!(recipe.check().unwrap_err().to_string().contains("text.sequences"));
    // Sequences of the blocks, of the whole model if those are more, and those held out.
    assert_eq!(Recipe::default().text_of(256), (2516, 256));
    assert_eq!(Recipe::default().on_chains(), 272);
    let mut recipe = Recipe::default();
    (recipe.distillation.steps, recipe.distillation.batch) = (150, 2);
    assert_eq!(recipe.text_of(256).0, 316);
    recipe.distillation.steps = 0;
    assert_eq!(recipe.text_of(256).0, 272);
}

#[test]
fn a_summary_counts_steps_and_tokens() {
    let mut recipe = Recipe::of(Effort::Max);
    recipe.distillation.batch = 2;
    assert_eq!(
        recipe.summary(usize::MAX),
        "10,000 sequences of 512 tokens, 512 for blocks; 400 steps per block (204,800 tokens), \
         10,000 of the whole model (10,240,000)"
    );
    let short = recipe.summary(100);
    assert!(short.contains("of 100 tokens, 512 for blocks; 400 steps per block (40,000 tokens)"));
    assert_eq!(grouped(0), "0");
}
