//! What a run is: everything that decides its result, as an ordered list of named values.

use sha2::{Digest, Sha256};

/// Name of the field that says which command a run belongs to.
const COMMAND: &str = "command";

/// An ordered list of (field, value): the version of the tool, the model and its contents, every
/// option that changes the result, and `command`, the one that runs. Two runs may share their work exactly if these are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    model: String,
    fields: Vec<(String, String)>,
}

impl Fingerprint {
    /// Starts the list with the model's name, which also names the run's folder.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        let model = model.into();
        Self { fields: vec![("model".into(), model.clone())], model }
    }

    /// Adds a field.
    ///
    /// # Panics
    /// When the field is there already: two values for one name are a mistake of the caller.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "callers write literals and temporaries")]
    pub fn with(mut self, field: impl Into<String>, value: impl ToString) -> Self {
        let field = field.into();
        assert!(
            self.fields.iter().all(|(known, _)| *known != field),
            "the fingerprint field `{field}` is given twice"
        );
        self.fields.push((field, value.to_string()));
        self
    }

    /// The command that the run belongs to: the field `command`.
    #[must_use]
    pub fn command(&self) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field == COMMAND);
        found.map(|(_, command)| command.as_str())
    }

    /// The fields in order.
    #[must_use]
    pub fn fields(&self) -> &[(String, String)] {
        &self.fields
    }

    /// Rebuilds a stored list; `None` unless it begins with the model and names no field twice.
    pub(super) fn from_fields(fields: Vec<(String, String)>) -> Option<Self> {
        let (first, model) = fields.first()?;
        let mut names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let distinct = names.windows(2).all(|pair| pair[0] != pair[1]);
        let model = (first == "model" && distinct).then(|| model.clone())?;
        Some(Self { model, fields })
    }

    /// SHA-256 of the list, in hexadecimal. Lengths are hashed along, so that no two lists are
    /// written alike.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for text in self.fields.iter().flat_map(|(field, value)| [field, value]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        super::hexadecimal(&hash.finalize())
    }

    /// The name of the run's folder: the model's name, reduced to what every file system takes,
    /// and the beginning of the hash.
    #[must_use]
    pub fn folder_name(&self) -> String {
        const LONGEST: usize = 80;
        let mut name: String = self
            .model
            .chars()
            .map(
                |c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' },
            )
            .take(LONGEST)
            .collect();
        if name.starts_with('.') || name.is_empty() {
            name.insert(0, '-');
        }
        format!("{name}-{}", &self.hash()[..12])
    }

    /// What is different in `stored`: one phrase a field, in the order of the fields.
    #[must_use]
    pub fn differences(&self, stored: &Self) -> Vec<String> {
        let find = |list: &Self, field: &str| {
            list.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value.clone())
        };
        let show = |value: Option<String>| {
            value.map_or_else(|| "absent".to_owned(), |value| format!("`{value}`"))
        };
        let extra = stored.fields.iter().filter(|(field, _)| find(self, field).is_none());
        self.fields
            .iter()
            .chain(extra)
            .filter_map(|(field, _)| {
                let (theirs, ours) = (find(stored, field), find(self, field));
                (theirs != ours)
                    .then(|| format!("{field} is {} there, {} here", show(theirs), show(ours)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_both_values_in_order() {
        let ours = Fingerprint::new("tiny").with("version", "1").with("seed", 7).with("bpw", 0.5);
        let theirs =
            Fingerprint::new("tiny").with("version", "2").with("bpw", 0.5).with("old", "x");
        assert_eq!(
            ours.differences(&theirs),
            [
                "version is `2` there, `1` here",
                "seed is absent there, `7` here",
                "old is `x` there, absent here"
            ]
        );
        assert!(ours.differences(&ours).is_empty());
    }

    #[test]
    fn the_hash_is_of_the_list_and_not_of_its_letters() {
        let a = Fingerprint::new("m").with("ab", "c");
        let b = Fingerprint::new("m").with("a", "bc");
        assert_ne!(a.hash(), b.hash());
        // printf '\5\0\0\0\0\0\0\0model\1\0\0\0\0\0\0\0m' | sha256sum
        assert_eq!(
            Fingerprint::new("m").hash(),
            "f107c2f216aa879dd2ba5f0cb3e776d2fa934e7c123212af4b97f90fa77d10e7"
        );
    }

    #[test]
    fn folder_names_are_plain() {
        assert!(Fingerprint::new("org/name").folder_name().starts_with("org-name-"));
        assert!(Fingerprint::new("..").folder_name().starts_with("-..-"));
        assert!(Fingerprint::new("").folder_name().starts_with("--"));
        let long = Fingerprint::new("ü".repeat(500)).folder_name();
        assert!(long.len() < 120 && long.is_ascii(), "{long}");
    }

    #[test]
    #[should_panic(expected = "`seed` is given twice")]
    fn a_field_given_twice_is_a_mistake() {
        let _ = Fingerprint::new("m").with("seed", 1).with("seed", 2);
    }
}
