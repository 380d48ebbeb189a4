//! Where the texts of a model lie: in a folder, or carried by a `.littlebit` file.

use std::path::Path;

use crate::Result;
use crate::files::littlebit::LittleBitFile;
use crate::files::texts;

/// Texts by the names that they have in a Hugging Face directory.
#[derive(Debug, Clone, Copy)]
pub(in crate::job::gguf) enum Texts<'a> {
    /// The files of a folder.
    Folder(&'a Path),
    /// What the file carries; it has less.
    Carried(&'a LittleBitFile),
}

impl Texts<'_> {
    /// The folder or file, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Carried(file) => file.path(),
        }
    }

    /// The text of that name, at most `most` bytes. What cannot be read is a warning.
    pub(super) fn optional(
        &self,
        name: &str,
        most: u64,
        warnings: &mut Vec<String>,
    ) -> Result<Option<String>> {
        match self {
            Self::Folder(folder) => texts::optional_text(folder, name, most, warnings),
            Self::Carried(file) => file.text(name),
        }
    }

    /// The folder, if there is one.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Carried(_) => None,
        }
    }
}
