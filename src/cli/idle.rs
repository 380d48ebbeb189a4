//! Options that would do nothing. They are refused by name and with what they are for: who gives an
//! option expects it to matter.

use std::collections::BTreeSet;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::args::HubArgs;
use crate::hub::ModelSpec;
use crate::{Error, Result};

/// The options that were typed, by their long names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given(BTreeSet<String>);

/// An option, whether it does nothing here, and what it is for.
pub(crate) type Check<'a> = (&'a str, bool, &'a str);

impl Given {
    /// Those of the command, wherever it stands.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let mut command = matches;
        while let Some((_, below)) = command.subcommand() {
            command = below;
        }
        let typed = |id: &&str| command.value_source(id) == Some(ValueSource::CommandLine);
        let ids = command.ids().map(clap::Id::as_str).filter(typed);
        Self(ids.map(|id| id.replace('_', "-")).collect())
    }

    /// Whether it was typed; `option` without the dashes.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.0.contains(option)
    }

    /// Refuses the first option that was typed and does nothing at that `place`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn refuse(&self, place: &str, checks: &[Check<'_>]) -> Result<()> {
        match checks.iter().find(|(option, idle, _)| *idle && self.has(option)) {
            None => Ok(()),
            Some((option, _, what)) => {
                Err(Error::InvalidArgument(format!("--{option} does nothing {place}: {what}")))
            }
        }
    }

    /// Refuses hub options where nothing comes from the hub.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub(crate) fn refuse_hub(
        &self,
        args: &HubArgs,
        models: &[&str],
        reads_text: bool,
    ) -> Result<()> {
        // What is neither here nor a hub id is refused as such, elsewhere.
        let from_hub = |model: &&&str| !matches!(ModelSpec::parse(model), Ok(ModelSpec::Path(_)));
        let hub: Vec<&&str> = models.iter().filter(from_hub).collect();
        let place = if models.is_empty() { "without a model" } else { "for a local model" };
        self.refuse(
            place,
            &[
                ("revision", hub.is_empty(), "it names a version of a model on the hub"),
                (
                    "cache-dir",
                    hub.is_empty() && !reads_text,
                    "it is where downloads from the hub are kept",
                ),
            ],
        )?;
        let named = |model: &&&&str| model.contains('@');
        if let (Some(revision), Some(model)) = (&args.revision, hub.iter().find(named))
            && !model.ends_with(&format!("@{revision}"))
        {
            return Err(Error::InvalidArgument(format!(
                "{model} and --revision {revision} name two versions: give one"
            )));
        }
        Ok(())
    }
}
