//! Turns what the user typed as MODEL into an opened model.

use std::path::{Path, PathBuf};

use super::Context;
use super::args::{ComputeArgs, DeviceArg, HubArgs};
use crate::backend::{Backend, DeviceChoice};
use crate::littlebit::measure::TextOptions;
use crate::progress::Progress;
use crate::source::hub::{self, HubOptions, ModelSpec};
use crate::source::{self, LocalModel};
use crate::{Error, Result};

/// Opens a local path, or downloads a hub id and opens its snapshot.
pub(crate) fn open(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    progress: &dyn Progress,
) -> Result<LocalModel> {
    let check = |config: &Path| source::hf::check_supported(config);
    let (path, name) = locate(spec, args, context, &check, progress)?;
    let mut model = source::open_local(&path)?;
    if let Some(name) = name {
        model.name = name;
    }
    for warning in &model.warnings {
        progress.warn(warning);
    }
    Ok(model)
}

/// The local path of a model, downloaded if `spec` is a hub id; then also the id. `check` sees the
/// configuration before the weights are downloaded.
pub(crate) fn locate(
    spec: &str,
    args: &HubArgs,
    context: &Context,
    check: &dyn Fn(&Path) -> Result<()>,
    progress: &dyn Progress,
) -> Result<(PathBuf, Option<String>)> {
    match ModelSpec::parse(spec)? {
        ModelSpec::Path(path) => Ok((path, None)),
        ModelSpec::Hub(mut hub_spec) => {
            if let Some(revision) = &args.revision {
                hub_spec.revision.clone_from(revision);
            }
            let options = hub_options(args, context)?;
            let snapshot = hub::fetch(&hub_spec, &options, check, progress)?;
            Ok((snapshot, Some(hub_spec.repo)))
        }
    }
}

fn hub_options(args: &HubArgs, context: &Context) -> Result<HubOptions> {
    let mut options = HubOptions::from_settings(&context.settings)?;
    options.offline |= args.offline;
    if let Some(directory) = &args.cache_dir {
        options.cache_dir.clone_from(directory);
    }
    Ok(options)
}

/// Where text comes from when no file is named.
pub(crate) fn text_options(args: &HubArgs, context: &Context) -> TextOptions {
    TextOptions { hub: hub_options(args, context).ok(), ..TextOptions::default() }
}

/// Picks the device and limits the threads.
pub(crate) fn backend(args: &ComputeArgs, context: &Context) -> Result<Backend> {
    limit_threads(args.threads)?;
    let choice = match args.device {
        None => DeviceChoice::Auto,
        Some(DeviceArg::Cpu) => DeviceChoice::Cpu,
        Some(DeviceArg::Cuda) => DeviceChoice::Cuda,
    };
    Backend::choose(choice, context.settings.gpus_hidden())
}

/// Works with that many threads from now on.
pub(crate) fn limit_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if threads == 0 {
        return Err(Error::InvalidArgument("--threads must be at least 1".into()));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| Error::General(format!("cannot start {threads} threads: {e}")))
}
