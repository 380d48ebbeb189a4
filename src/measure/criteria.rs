//! The rules by which a continuation is judged, each a number from 0 (useless) to 1 (as good as
//! text gets). The constants are part of the documented test: `docs/evaluation.md`.

use std::collections::HashSet;

/// Distinct trigrams, share of all, that score 0 and 1.
pub(crate) const DISTINCT_TRIGRAMS: (f64, f64) = (0.2, 0.6);
/// Share of the tokens inside the longest loop that scores 1 and 0.
pub(crate) const LOOPED: (f64, f64) = (0.4, 0.8);
/// Times that a piece must follow itself to be a loop.
pub(crate) const LOOP_TURNS: usize = 3;
/// Known words, share of all, that score 0 and 1.
pub(crate) const KNOWN_WORDS: (f64, f64) = (0.3, 0.75);
/// Entropy above the original's, share of what lies between the original's and that of even
/// chances, that scores 1 and 0.
pub(crate) const EXCESS_ENTROPY: (f64, f64) = (0.3, 0.7);
/// Entropy, share of the original's, that scores 0 and 1.
pub(crate) const ENTROPY_LEFT: (f64, f64) = (0.1, 0.3);

/// 0 at `from` and before, 1 at `to` and behind, straight in between; `from` may be the larger one.
#[must_use]
pub(crate) fn ramp(value: f64, (from, to): (f64, f64)) -> f64 {
    ((value - from) / (to - from)).clamp(0.0, 1.0)
}

/// How free of repetition a continuation is: the lower of two ramps, over the share of distinct
/// trigrams and over the share of tokens inside the longest loop.
#[must_use]
pub(crate) fn variety(tokens: &[u32]) -> f64 {
    let distinct = ramp(distinct_trigrams(tokens), DISTINCT_TRIGRAMS);
    let looped = ramp(looped_share(tokens), (LOOPED.1, LOOPED.0));
    distinct.min(looped)
}

/// Distinct trigrams, share of all; 1 for fewer than three tokens.
#[must_use]
pub(crate) fn distinct_trigrams(tokens: &[u32]) -> f64 {
    let all = tokens.windows(3).count();
    if all == 0 {
        return 1.0;
    }
    tokens.windows(3).collect::<HashSet<_>>().len() as f64 / all as f64
}

/// Share of the tokens that lie in the longest stretch which repeats one piece, of any length, at
/// least [`LOOP_TURNS`] times.
#[must_use]
pub(crate) fn looped_share(tokens: &[u32]) -> f64 {
    let mut longest = 0;
    for period in 1..=tokens.len() / LOOP_TURNS {
        // Tokens in a row that equal the one a period earlier.
        let mut same = 0;
        for at in period..tokens.len() {
            same = if tokens[at] == tokens[at - period] { same + 1 } else { 0 };
            if same >= (LOOP_TURNS - 1) * period {
                longest = longest.max(same + period);
            }
        }
    }
    longest as f64 / tokens.len().max(1) as f64
}

/// How normal the model's own uncertainty is, compared with the original's on its own text: too
/// little means a collapsed distribution, too much means that nothing is predicted.
///
/// `even` is the entropy of even chances, `ln(vocabulary)`; all in nats.
#[must_use]
pub(crate) fn certainty(entropy: f64, original: f64, even: f64) -> f64 {
    let excess = (entropy - original) / (even - original).max(f64::MIN_POSITIVE);
    let left = entropy / original.max(f64::MIN_POSITIVE);
    ramp(excess, (EXCESS_ENTROPY.1, EXCESS_ENTROPY.0)).min(ramp(left, ENTROPY_LEFT))
}

/// Words that a text is expected to be made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct WordList {
    words: HashSet<String>,
}

impl WordList {
    /// Adds the words of a text.
    pub(crate) fn add(&mut self, text: &str) {
        for word in words(text) {
            if !self.words.contains(&word) {
                self.words.insert(word);
            }
        }
    }

    /// Share of a text's words that are on the list; 0 for a text without words. Numbers and
    /// punctuation do not count.
    #[must_use]
    pub(crate) fn known(&self, text: &str) -> f64 {
        let (mut all, mut known) = (0u32, 0u32);
        for word in words(text) {
            all += 1;
            known += u32::from(self.words.contains(&word));
        }
        if all == 0 { 0.0 } else { f64::from(known) / f64::from(all) }
    }
}

/// Words of a text, lower case: what stands between spaces and dashes, without the punctuation
/// around it and without a final 's. What has no letter in it is none.
fn words(text: &str) -> impl Iterator<Item = String> {
    let dash = |c: char| c.is_whitespace() || matches!(c, '-' | '–' | '—' | '/');
    text.split(dash).filter_map(|piece| {
        let word = piece.trim_matches(|c: char| c.is_ascii_punctuation() || "“”‘’…".contains(c));
        // A character that could not be decoded has no letters either, but is no punctuation.
        let has_letters = word.chars().any(|c| c.is_alphabetic() || c == '\u{fffd}');
        let word = word.strip_suffix("'s").or(word.strip_suffix("’s")).unwrap_or(word);
        has_letters.then(|| word.to_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_go_both_ways() {
        for (value, expected) in [(0.1, 0.0), (0.2, 0.0), (0.4, 0.5), (0.6, 1.0), (0.9, 1.0)] {
            assert!((ramp(value, (0.2, 0.6)) - expected).abs() < 1e-12);
            assert!((ramp(value, (0.6, 0.2)) - (1.0 - expected)).abs() < 1e-12);
        }
    }

    #[test]
    fn trigrams_are_counted() {
        // abc bca cab abc bca: five trigrams, three different ones.
        assert!((distinct_trigrams(&[1, 2, 3, 1, 2, 3, 1]) - 3.0 / 5.0).abs() < 1e-12);
        assert!((distinct_trigrams(&[1, 2]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn loops_are_found_wherever_they_are() {
        let varied: Vec<u32> = (0..40).collect();
        assert!(looped_share(&varied).abs() < 1e-12);
        // Twice is no loop, three times is.
        assert!(looped_share(&[1, 2, 3, 1, 2, 3, 9, 8]).abs() < 1e-12);
        assert!((looped_share(&[1, 2, 3, 1, 2, 3, 1, 2, 3, 9]) - 0.9).abs() < 1e-12);
        // Seven of ten tokens are one; the loop is in the middle.
        assert!((looped_share(&[5, 6, 1, 1, 1, 1, 1, 1, 1, 7]) - 0.7).abs() < 1e-12);
        assert!(looped_share(&[]).abs() < 1e-12);
        assert!(variety(&[3; 48]).abs() < 1e-12);
        assert!((variety(&varied) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn certainty_is_judged_against_the_original() {
        let even = 10.0;
        assert!((certainty(3.0, 3.0, even) - 1.0).abs() < 1e-12);
        assert!((certainty(1.0, 3.0, even) - 1.0).abs() < 1e-12);
        assert!(certainty(0.2, 3.0, even).abs() < 1e-12);
        assert!(certainty(9.9, 3.0, even).abs() < 1e-12);
        // Half of the way from the original's to even chances.
        assert!((certainty(6.5, 3.0, even) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn words_are_recognised_as_people_write_them() {
        let mut list = WordList::default();
        list.add("The people's well-known House, of 1934 \u{2014} (and) Senate.");
        for word in ["the", "people", "well", "known", "house", "of", "and", "senate"] {
            assert!((list.known(word) - 1.0).abs() < 1e-12, "{word}");
        }
        assert_eq!(list.words.len(), 8);
        assert!((list.known("The HOUSE, 42 qwx zzq!") - 0.5).abs() < 1e-12);
        assert!(list.known("12 345 ... --").abs() < 1e-12);
        assert!(list.known("\u{fffd}\u{fffd}").abs() < 1e-12);
    }
}
