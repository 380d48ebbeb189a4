//! `quantize MODEL gguf -q dynamic`: the options of profiles, budgets and super weights.

use std::path::Path;

use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::HubArgs;
use crate::cli::args::quantize::{GgufArgs, SensitivityArg};
use crate::cli::output::grouped;
use crate::cli::{Context, models};
use crate::job::gguf::{Dynamic, GgufModel, Goal, Level, Measured, QuantizePlan};
use crate::job::profile::presets::PRESETS;
use crate::job::profile::{Profile, store};
use crate::text::{CalibrationWindows, options};
use crate::{Error, Result, model};

/// The profile when none is named.
const DEFAULT_PROFILE: &str = "balanced";
/// Part of the weights that are super weights when nothing else is said.
const DEFAULT_COVERAGE: f64 = 1e-4;
/// Windows of text on which sensitivity is measured, and their length.
const WINDOWS: usize = 2;
const WINDOW: usize = 256;
/// Of the places of these windows in the text.
const SEED: u64 = 7;

/// Whether the command asks for types of each tensor's own.
pub(super) fn asked(args: &GgufArgs) -> bool {
    let level = args.quant_level.as_deref();
    args.dynamic.dynamic || level.is_some_and(|level| level.eq_ignore_ascii_case("dynamic"))
}

/// The profile of the command, if it is dynamic. Refuses options that go together with nothing.
pub(super) fn profile(args: &GgufArgs, context: &Context) -> Result<Option<Profile>> {
    let dynamic = &args.dynamic;
    let wrong = |message: &str| Err(Error::InvalidArgument(message.into()));
    let named = args.quant_level.as_deref().filter(|l| !l.eq_ignore_ascii_case("dynamic"));
    if let Some(level) = named.filter(|_| dynamic.dynamic) {
        return wrong(&format!("--dynamic and --quant-level {level} are two ways: give one"));
    }
    if !asked(args) && dynamic.profile.is_some() {
        return wrong("--profile goes with --quant-level dynamic");
    }
    if context.given.has("sensitivity") && named.is_some() {
        return wrong(
            "--sensitivity goes with --quant-level dynamic, --target-size or --target-bpw",
        );
    }
    if !asked(args) {
        return Ok(None);
    }
    let name = dynamic.profile.as_deref().unwrap_or(DEFAULT_PROFILE);
    store::find(name, context.settings.profile_dir.as_deref()).map(Some)
}

/// Refuses targets that contradict each other, and none at all.
pub(super) fn check_target(args: &GgufArgs) -> Result<()> {
    let types = &args.types;
    let level = args.quant_level.as_deref().filter(|l| !l.eq_ignore_ascii_case("dynamic"));
    match (level, types.target_size, types.target_bpw) {
        (None, None, Some(bits)) if !(bits.is_finite() && bits > 0.0) => {
            Err(Error::InvalidArgument(format!("--target-bpw {bits} must be above 0")))
        }
        (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(_)) => Ok(()),
        (None, None, None) if asked(args) => Ok(()),
        _ => Err(Error::InvalidArgument(
            "give one of --quant-level, --target-size and --target-bpw".into(),
        )),
    }
}

/// What the types have to keep to: the command's target, else the profile's.
pub(super) fn goal(args: &GgufArgs, profile: Option<&Profile>, model: &GgufModel) -> Result<Goal> {
    let types = &args.types;
    let level = args.quant_level.as_deref().filter(|l| !l.eq_ignore_ascii_case("dynamic"));
    match (level, types.target_size, types.target_bpw) {
        (Some(level), None, None) => Ok(Goal::Level(Level::parse(level)?)),
        (None, Some(bytes), None) => Ok(Goal::Bytes(bytes)),
        (None, None, Some(bits)) if bits.is_finite() && bits > 0.0 => Ok(Goal::BitsPerWeight(bits)),
        (None, None, Some(bits)) => {
            Err(Error::InvalidArgument(format!("--target-bpw {bits} must be above 0")))
        }
        (None, None, None) if let Some(profile) = profile => Ok(of_profile(profile, model)),
        _ => Err(Error::InvalidArgument(
            "give one of --quant-level, --target-size and --target-bpw".into(),
        )),
    }
}

/// The target of a profile.
fn of_profile(profile: &Profile, model: &GgufModel) -> Goal {
    match (profile.target_bpw, profile.target_compression, profile.target_loss) {
        (Some(bits), ..) => Goal::TensorBits(bits),
        (None, Some(ratio), _) => {
            let part = if ratio > 1.0 { 1.0 / ratio } else { ratio };
            let bits = model.source_bytes as f64 * 8.0 / model.parameters().max(1) as f64;
            Goal::TensorBits(bits * part)
        }
        (None, None, Some(loss)) => Goal::Loss(loss),
        (None, None, None) => Goal::Rules,
    }
}

/// The part of the weights to protect.
pub(super) fn coverage(args: &GgufArgs) -> Option<f64> {
    let dynamic = &args.dynamic;
    let asked = dynamic.protect_super_weights;
    asked.then(|| dynamic.protection_coverage.unwrap_or(DEFAULT_COVERAGE))
}

/// The request's dynamic part.
pub(super) fn request(
    (args, hub): (&GgufArgs, &HubArgs),
    profile: Option<Profile>,
    path: &Path,
    context: &Context,
    progress: &dyn Progress,
) -> Result<Option<Dynamic>> {
    let measured = if args.dynamic.sensitivity == SensitivityArg::Measured {
        let text =
            Text { data: args.calibration_data.as_deref(), samples: args.calibration_samples };
        Some(measured(path, &text, hub, context, progress)?)
    } else {
        None
    };
    let Some(profile) = profile else {
        // A plain budget is a profile without rules.
        return Ok(measured.map(|measured| Dynamic {
            named: false,
            profile: PRESETS[1].profile(),
            measured: Some(measured),
        }));
    };
    Ok(Some(Dynamic { named: true, profile, measured }))
}

/// Which text something is measured on.
#[derive(Clone, Copy, Default)]
pub(in crate::cli::commands) struct Text<'a> {
    pub(in crate::cli::commands) data: Option<&'a Path>,
    pub(in crate::cli::commands) samples: Option<usize>,
}

/// Opens the source so that it can be run, and the text.
pub(in crate::cli::commands) fn measured(
    path: &Path,
    text: &Text<'_>,
    hub: &HubArgs,
    context: &Context,
    progress: &dyn Progress,
) -> Result<Measured> {
    let samples = text.samples.unwrap_or(WINDOWS);
    if samples == 0 {
        return Err(Error::InvalidArgument("--calibration-samples must be at least 1".into()));
    }
    let model = model::open_local(path)?;
    model.warnings.iter().for_each(|warning| progress.warn(warning));
    let tokenizer = model.tokenizer()?;
    let length = WINDOW.min(model.config.max_positions).max(2);
    let mut options = models::text_options(hub, context);
    options.calibration = text.data.map(Path::to_path_buf);
    let source = options::open_text(&options, &tokenizer, samples * length, Some(0), progress)?;
    let windows =
        CalibrationWindows::sample(&source.calibration, &tokenizer, samples, length, SEED)?;
    Ok(Measured { model, windows })
}

/// What was decided, as the contract words it.
pub(super) fn announce(
    profile: Option<&Profile>,
    goal: Goal,
    model: &GgufModel,
    plan: &QuantizePlan,
    progress: &dyn Progress,
) {
    if let Some(profile) = profile {
        let target = match goal {
            Goal::TensorBits(bits) | Goal::BitsPerWeight(bits) => format!("target: {bits} bpw"),
            Goal::Bytes(bytes) => format!("target: {}", human_bytes(bytes)),
            Goal::Loss(loss) => format!("target: an expected loss of {loss} nats per token"),
            Goal::Rules | Goal::Level(_) => "no target".to_owned(),
        };
        progress.note(&format!("Applying profile: {} ({target})", profile.profile_name));
        progress.note("Layer assignments:");
        for group in plan.groups(model) {
            progress.detail(&format!(
                "- {} ({}): {:.2}-bit ({})",
                group.name, group.layers, group.bits_per_weight, group.types
            ));
        }
    }
    if let Some(protection) = &plan.protection {
        let types = plan.protected_types(model);
        progress.detail(&if protection.tensors.is_empty() {
            format!(
                "- Protected weights: none ({} super weights, none of which carries 1 % of its \
                 tensor's output)",
                grouped(protection.found)
            )
        } else {
            format!(
                "- Protected weights: {} at {types} ({} of {} super weights, in {} tensors)",
                grouped(protection.total()),
                grouped(protection.total()),
                grouped(protection.found),
                protection.tensors.len()
            )
        });
    }
}
