//! Turns what the user typed as MODEL into an opened model.

use std::path::{Path, PathBuf};

use super::Context;
use super::args::{ComputeArgs, DeviceArg, HubArgs};
use crate::base::progress::Progress;
use crate::base::redact;
use crate::device::{Backend, DeviceChoice};
use crate::files::space;
use crate::hub::{self, HubOptions, ModelSpec, Outline};
use crate::model::{self, LocalModel, hf};
use crate::text::TextOptions;
use crate::{Error, Result};

/// Opens a local path, or downloads a hub id and opens its snapshot.
pub(crate) fn open(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    progress: &dyn Progress,
) -> Result<LocalModel> {
    open_if(spec, args, context, &|_| Ok(()), progress)
}

/// Opens a local path, or downloads a hub id and opens its snapshot. Where weights have to be
/// downloaded, `judge` first sees the model with their headers alone: what it refuses is not
/// downloaded.
pub(crate) fn open_if(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    judge: &dyn Fn(&LocalModel) -> Result<()>,
    progress: &dyn Progress,
) -> Result<LocalModel> {
    let judge = |located: &Located| judge(&located.open()?);
    let located = locate_if(spec, args, context, &hf::check_supported, &judge, progress)?;
    let model = located.open()?;
    for warning in &model.warnings {
        progress.warn(warning);
    }
    Ok(model)
}

/// Opens what a plan needs: of a hub id, the headers of the weights. The place must stay as long as
/// the model is used.
pub(crate) fn open_outline(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    progress: &dyn Progress,
) -> Result<(LocalModel, Located)> {
    let located = outline(spec, args, context, &hf::check_supported, progress)?;
    let model = located.open().map_err(|error| located.explain(error))?;
    for warning in &model.warnings {
        progress.warn(warning);
    }
    Ok((model, located))
}

/// Where a model is on this machine.
pub(crate) struct Located {
    /// A folder or file that opens.
    pub(crate) path: PathBuf,
    /// The hub id, if it is one.
    pub(crate) name: Option<String>,
    /// Of a hub id of which only the headers were read; it goes with this.
    outline: Option<Outline>,
}

impl Located {
    /// Whether the weights can be read.
    pub(crate) fn has_weights(&self) -> bool {
        self.outline.as_ref().is_none_or(Outline::is_complete)
    }

    /// The folder or file as it may be shown.
    pub(crate) fn shown(&self) -> &Path {
        self.outline.as_ref().map_or(self.path.as_path(), |outline| outline.snapshot.as_path())
    }

    /// What the download of the weights lacks, as a warning.
    pub(crate) fn shortage(&self) -> Option<String> {
        let outline = self.outline.as_ref().filter(|outline| !outline.is_complete())?;
        let shortage = space::shortage(&outline.snapshot, outline.missing_bytes)?;
        Some(format!("the weights have to be downloaded first: {shortage}"))
    }

    /// A text that may name the folder of an outline, with the place that stays.
    fn kept(&self, text: &str) -> String {
        text.replace(&*self.path.to_string_lossy(), &self.shown().to_string_lossy())
    }

    /// An error that may name files of an outline.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let path = |path: PathBuf| PathBuf::from(self.kept(&path.to_string_lossy()));
        match error {
            Error::Io { path: file, source } => Error::Io { path: path(file), source },
            Error::ValidationFailed { path: file, message } => {
                Error::ValidationFailed { path: path(file), message: self.kept(&message) }
            }
            Error::Unsupported { message, suggestion } => {
                Error::Unsupported { message: self.kept(&message), suggestion }
            }
            Error::ModelNotFound { message, suggestion } => {
                Error::ModelNotFound { message: self.kept(&message), suggestion }
            }
            Error::UnsupportedConversion(text) => Error::UnsupportedConversion(self.kept(&text)),
            Error::InvalidArgument(text) => Error::InvalidArgument(self.kept(&text)),
            Error::General(text) => Error::General(self.kept(&text)),
            other => other,
        }
    }

    fn open(&self) -> Result<LocalModel> {
        let mut model = model::open_local(&self.path)?;
        for warning in &mut model.warnings {
            *warning = self.kept(warning);
        }
        if let Some(name) = &self.name {
            model.name.clone_from(name);
        }
        Ok(model)
    }
}

/// The local path of a model, downloaded if `spec` is a hub id. `check` sees the configuration before
/// anything else is asked for, `judge` the model with the headers of its weights before these are
/// downloaded.
pub(crate) fn locate_if(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    check: &dyn Fn(&Path) -> Result<()>,
    judge: &dyn Fn(&Located) -> Result<()>,
    progress: &dyn Progress,
) -> Result<Located> {
    let place = outline(spec, args, context, check, progress)?;
    if place.has_weights() {
        return Ok(Located { outline: None, ..place });
    }
    judge(&place).map_err(|error| place.explain(error))?;
    drop(place);
    let ModelSpec::Hub(hub_spec) = parse(spec, args)? else {
        return Err(Error::model_not_found(format!("`{spec}` has gone")));
    };
    let path = hub::fetch(&hub_spec, &hub_options(args, context)?, check, progress)?;
    Ok(Located { path, name: Some(hub_spec.repo), outline: None })
}

/// The local path of a model, or that of the outline of a hub id.
pub(crate) fn outline(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    check: &dyn Fn(&Path) -> Result<()>,
    progress: &dyn Progress,
) -> Result<Located> {
    match parse(spec, args)? {
        ModelSpec::Path(path) => Ok(Located { path, name: None, outline: None }),
        ModelSpec::Hub(hub_spec) => {
            let options = hub_options(args, context)?;
            let outline = hub::fetch_outline(&hub_spec, &options, check, progress)?;
            let path = outline.folder().to_path_buf();
            Ok(Located { path, name: Some(hub_spec.repo), outline: Some(outline) })
        }
    }
}

/// Whether MODEL is not on this machine, as far as its name tells.
pub(crate) fn is_remote(spec: &str) -> bool {
    matches!(ModelSpec::parse(spec), Ok(ModelSpec::Hub(_)))
}

/// What MODEL means, with the revision of the command. Asks nobody.
pub(crate) fn parse(spec: &str, args: &HubArgs) -> Result<ModelSpec> {
    let mut parsed = ModelSpec::parse(spec)?;
    if let (ModelSpec::Hub(hub_spec), Some(revision)) = (&mut parsed, &args.revision) {
        hub_spec.revision.clone_from(revision);
    }
    Ok(parsed)
}

fn hub_options(args: &HubArgs, context: &Context) -> Result<HubOptions> {
    let mut options = HubOptions::from_settings(&context.settings)?;
    options.offline |= args.offline;
    if let Some(directory) = &args.cache_dir {
        options.cache_dir.clone_from(directory);
    }
    if let Some(token) = &options.token {
        redact::hide(token.secret());
    }
    Ok(options)
}

/// Where text comes from when no file is named.
pub(crate) fn text_options(args: &HubArgs, context: &Context) -> TextOptions {
    TextOptions { hub: hub_options(args, context).ok(), ..TextOptions::default() }
}

/// Picks the device.
pub(crate) fn backend(args: &ComputeArgs, context: &Context) -> Result<Backend> {
    let choice = match args.device {
        None => DeviceChoice::Auto,
        Some(DeviceArg::Cpu) => DeviceChoice::Cpu,
        Some(DeviceArg::Cuda) => DeviceChoice::Cuda,
    };
    Backend::choose(choice, context.settings.gpus_hidden())
}
