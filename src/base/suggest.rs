//! What somebody may have meant by a name that does not exist.

/// Most names that are offered.
const MOST: usize = 4;

/// `; did you mean Q4_K_M?`, or nothing where no name is like `word`. To be appended to a message.
#[must_use]
pub(crate) fn did_you_mean<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let found = nearest(word, names);
    match found.split_last() {
        None => String::new(),
        Some((only, [])) => format!("; did you mean {only}?"),
        Some((last, others)) => format!("; did you mean {} or {last}?", others.join(", ")),
    }
}

/// The names that are most like `word`, best first: the same but for case and punctuation, else
/// those with the fewest letters other or swapped and those that `word` begins.
#[must_use]
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let meant = letters(word);
    if meant.is_empty() {
        return Vec::new();
    }
    let mut ranked: Vec<(usize, usize, &str)> = Vec::new();
    for name in names {
        let there = letters(name);
        let common = meant.iter().zip(&there).take_while(|(a, b)| a == b).count();
        let distance = distance(&meant, &there);
        let begins = common == meant.len() && common > 1;
        if begins || distance <= (meant.len() / 2).clamp(1, 3) && distance < there.len() {
            ranked.push((distance, usize::MAX - common, name));
        }
    }
    ranked.sort_unstable();
    ranked.dedup();
    let Some(&(least, most_common, _)) = ranked.first() else { return Vec::new() };
    let begun = |common: usize| usize::MAX - common == meant.len();
    ranked
        .into_iter()
        .filter(|&(distance, common, _)| {
            let as_good = distance == least && common == most_common;
            as_good || least > 0 && begun(common)
        })
        .map(|(_, _, name)| name)
        .take(MOST)
        .collect()
}

fn letters(text: &str) -> Vec<char> {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Letters to change, add, leave out or swap with the next.
fn distance(a: &[char], b: &[char]) -> usize {
    // Rows for the last two and the current length of `a`.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] =
        ["Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16", "IQ4_XS"];

    #[test]
    fn levels_as_people_mistype_them() {
        for (word, names) in [
            ("Q4KM", &["Q4_K_M"][..]),
            ("q4-k-m", &["Q4_K_M"]),
            ("Q4_K_N", &["Q4_K_M", "Q4_K_S"]),
            ("Q4", &["Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S"]),
            ("Q4_K_XL", &["Q4_K_M", "Q4_K_S"]),
            ("f61", &["F16"]),
            ("IQ4XS", &["IQ4_XS"]),
            ("hello", &[]),
            ("", &[]),
            ("...", &[]),
        ] {
            assert_eq!(nearest(word, NAMES), names, "{word}");
        }
    }

    #[test]
    fn a_name_is_offered_as_a_question() {
        assert_eq!(did_you_mean("blanced", ["balanced", "custom"]), "; did you mean balanced?");
        assert_eq!(did_you_mean("Q4", ["Q4_0", "Q4_1"]), "; did you mean Q4_0 or Q4_1?");
        assert_eq!(did_you_mean("zzz", ["balanced"]), "");
    }

    #[test]
    fn distances_count_swaps_once() {
        let of = |a: &str, b: &str| distance(&letters(a), &letters(b));
        assert_eq!((of("abcd", "abdc"), of("abc", ""), of("kitten", "sitting")), (1, 3, 3));
    }
}
