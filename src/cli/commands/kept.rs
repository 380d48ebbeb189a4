//! Where a command keeps its checkpoints.

use std::path::{Path, PathBuf};

use super::resume_command;
use crate::base::progress::Progress;
use crate::cli::Context;
use crate::cli::args::CheckpointArgs;
use crate::files::space;
use crate::settings::CHECKPOINT_DIR;
use crate::{Error, Result};

/// What becomes of it.
pub(crate) enum Kept {
    Off,
    Under(PathBuf),
    Resume(PathBuf),
}

impl Kept {
    /// What was asked for, whether or not it can be had.
    pub(crate) fn stated(asked: &CheckpointArgs, context: &Context) -> Self {
        if asked.no_checkpoints {
            return Self::Off;
        }
        if let Some(directory) = &asked.resume {
            return Self::Resume(directory.clone());
        }
        let default = &context.settings.checkpoint_dir;
        Self::Under(asked.checkpoint_dir.as_ref().unwrap_or(default).clone())
    }

    /// Takes the folder that was asked for, else the default one. A default that cannot be written (it
    /// lies in the working directory) is no reason not to work: checkpoints then go beside `output`,
    /// or, where that is impossible as well, are left out.
    ///
    /// # Errors
    /// [`Error::CheckpointRefused`] for a folder that was asked for and cannot be written.
    pub(crate) fn new(
        asked: &CheckpointArgs,
        output: &Path,
        context: &Context,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let stated = Self::stated(asked, context);
        let Self::Under(directory) = &stated else { return Ok(stated) };
        let Err(error) = space::check_writable(directory) else {
            return Ok(stated);
        };
        let reason = match &error {
            Error::Io { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        if asked.checkpoint_dir.is_some() || directory != Path::new(CHECKPOINT_DIR) {
            return Err(Error::CheckpointRefused {
                message: format!("no checkpoints can be kept in {}: {reason}", directory.display()),
                suggestion: "Give another folder with --checkpoint-dir, or --no-checkpoints".into(),
            });
        }
        let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
        let beside = folder.unwrap_or(Path::new(".")).join(".checkpoint");
        if space::check_writable(&beside).is_ok() {
            progress.warn(&format!(
                "No checkpoints can be kept in {}: {reason}; they go to {} (see --checkpoint-dir, \
                 --no-checkpoints)",
                directory.display(),
                beside.display()
            ));
            return Ok(Self::Under(beside));
        }
        progress.warn(&format!(
            "No checkpoints can be kept in {}: {reason}; an interrupted run will begin anew (see \
             --checkpoint-dir, --no-checkpoints)",
            directory.display()
        ));
        Ok(Self::Off)
    }

    /// The command line that continues an interrupted run.
    pub(crate) fn resume_command(&self) -> Option<String> {
        match self {
            Self::Off => None,
            Self::Under(directory) | Self::Resume(directory) => Some(resume_command(directory)),
        }
    }
}

impl From<Kept> for crate::job::Checkpoints {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Off => Self::Off,
            Kept::Under(directory) => Self::Under(directory),
            Kept::Resume(directory) => Self::Resume(directory),
        }
    }
}

impl From<Kept> for crate::job::littlebit::compress::Checkpoints {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Off => Self::Off,
            Kept::Under(directory) => Self::Under(directory),
            Kept::Resume(directory) => Self::Resume(directory),
        }
    }
}
