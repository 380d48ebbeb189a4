//! Finding profiles: presets, files, and the user's folder of them.

use std::path::{Path, PathBuf};

use super::format::Profile;
use super::presets::{PRESETS, Preset};
use crate::base::input;
use crate::base::suggest::did_you_mean;
use crate::files::atomic::write_atomically;
use crate::{Error, Result};

/// The extension of profiles.
pub(crate) const EXTENSION: &str = "dqprofile";

/// A profile that `profile list` shows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Listed {
    /// What `--profile` takes.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Its file; presets have none.
    pub path: Option<PathBuf>,
}

/// The presets, then the profiles of the user's folder by name. The second value are the files that
/// cannot be read, and why.
///
/// # Errors
/// [`Error::Io`] if the folder is there and cannot be read.
pub(crate) fn list(folder: Option<&Path>) -> Result<(Vec<Listed>, Vec<String>)> {
    let mut found: Vec<Listed> = PRESETS
        .iter()
        .map(|preset| Listed {
            name: preset.name.to_owned(),
            description: preset.summary.to_owned(),
            path: None,
        })
        .collect();
    let mut broken = Vec::new();
    let Some(folder) = folder.filter(|folder| folder.exists()) else {
        return Ok((found, broken));
    };
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == EXTENSION));
    files.sort();
    for path in files {
        match read(&path) {
            Ok(profile) => found.push(Listed {
                name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                description: profile.description.unwrap_or(profile.profile_name),
                path: Some(path),
            }),
            Err(error) => broken.push(error.to_string()),
        }
    }
    Ok((found, broken))
}

/// The profile that the user means: a preset, a file, or one in the user's folder by name.
///
/// # Errors
/// [`Error::Profile`] if there is none, or it is damaged.
pub(crate) fn find(name: &str, folder: Option<&Path>) -> Result<Profile> {
    if let Some(preset) = Preset::named(name) {
        return Ok(preset.profile());
    }
    let path = Path::new(name);
    if path.exists() && !path.is_dir() {
        return read(path);
    }
    let in_folder = folder.map(|folder| folder.join(format!("{name}.{EXTENSION}")));
    if !name.contains(['/', '\\'])
        && let Some(path) = in_folder.as_deref().filter(|path| path.is_file())
    {
        return read(path);
    }
    if path.is_dir() {
        return Err(Error::Profile(format!(
            "{name} is a directory, where a .{EXTENSION} file is expected"
        )));
    }
    let presets = PRESETS.map(|preset| preset.name).join(", ");
    let place = in_folder.map_or(String::new(), |path| format!(", nor {}", path.display()));
    let known: Vec<String> = list(folder)?.0.into_iter().map(|listed| listed.name).collect();
    Err(Error::Profile(format!(
        "there is no profile {name}: it is none of {presets}, no file{place}{}",
        did_you_mean(name, known.iter().map(String::as_str))
    )))
}

fn read(path: &Path) -> Result<Profile> {
    let text = input::read_to_string(path, input::MAX_SETTINGS)
        .map_err(|error| Error::Profile(format!("{}: {error}", path.display())))?;
    Profile::parse(&text, &path.display().to_string())
}

/// Writes a profile, all of it or nothing.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write(profile: &Profile, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    write_atomically(path, profile.to_json()?.as_bytes())
}

/// A name as a file's: lower-case letters, digits and dashes.
#[must_use]
pub(crate) fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = name.trim().chars().map(plain).collect();
    let parts: Vec<&str> = text.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-")
}
