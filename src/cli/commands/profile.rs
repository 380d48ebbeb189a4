//! `profile`.

use std::path::PathBuf;

use serde::Serialize;

use super::quantize::dynamic::{Text, measured};
use crate::base::progress::Progress;
use crate::cli::args::profile::{CreateArgs, ProfileCommand, ShowArgs, ValidateArgs};
use crate::cli::args::quantize::SensitivityArg;
use crate::cli::bars::Bars;
use crate::cli::output::Report;
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::imatrix::ImportanceMatrix;
use crate::job::Checkpoints;
use crate::job::gguf::mix::Overrides;
use crate::job::gguf::profile::create;
use crate::job::gguf::profile::validate::ValidationReport;
use crate::job::gguf::{self, Dynamic, Goal, QuantizeRequest, SourceOptions, check_config, plan};
use crate::job::profile::Profile;
use crate::job::profile::presets::PRESETS;
use crate::job::profile::store::{self, Listed};
use crate::{Error, Result};

/// Bits per weight of a new profile when no target is given.
const DEFAULT_BITS: f64 = 3.5;

pub(crate) fn run(command: &ProfileCommand, context: &Context) -> Result<(), Failure> {
    match command {
        ProfileCommand::List => list(context),
        ProfileCommand::Show(args) => show(args, context),
        ProfileCommand::Create(args) => create_profile(args, context),
        ProfileCommand::Validate(args) => validate(args, context),
    }
}

#[derive(Debug, Serialize)]
struct ListReport {
    status: &'static str,
    directory: Option<PathBuf>,
    profiles: Vec<Listed>,
    warnings: Vec<String>,
}

fn list(context: &Context) -> Result<(), Failure> {
    let directory = context.settings.profile_dir.clone();
    let (profiles, warnings) = store::list(directory.as_deref())?;
    let progress = Bars::new(&context.output);
    warnings.iter().for_each(|warning| progress.warn(warning));
    context.output.result(&ListReport { status: "success", directory, profiles, warnings });
    Ok(())
}

impl Report for ListReport {
    fn human(&self) -> String {
        let lines = self.profiles.iter().map(|p| format!("{:<17} {}\n", p.name, p.description));
        lines.collect()
    }
}

fn show(args: &ShowArgs, context: &Context) -> Result<(), Failure> {
    let profile = store::find(&args.profile, context.settings.profile_dir.as_deref())?;
    context.output.result(&profile);
    Ok(())
}

impl Report for Profile {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row("Profile:", self.profile_name.clone());
        if let Some(description) = &self.description {
            row("Description:", description.clone());
        }
        row("Strategy:", self.strategy.name().to_owned());
        if let Some(bits) = self.target_bpw {
            row("Target:", format!("{bits} bits per weight"));
        }
        if let Some(loss) = self.target_loss {
            row("Target:", format!("smallest at an expected loss of {loss} nats per token"));
        }
        if let Some(ratio) = self.target_compression {
            row("Target:", format!("{ratio} of the model's size"));
        }
        if self.layer_assignments.is_empty() {
            row("Assignments:", "none: all types are chosen by measured error".to_owned());
        }
        for (number, rule) in self.layer_assignments.iter().enumerate() {
            let kind = rule.kind.as_ref().map_or(String::new(), |kind| format!(" ({kind})"));
            let held = if rule.is_protected { ", protected" } else { "" };
            row(
                if number == 0 { "Assignments:" } else { "" },
                format!("{:<44} {}-bit{kind}{held}", rule.layer_name, rule.bit_width),
            );
        }
        out
    }
}

#[derive(Debug, Serialize)]
struct CreateReport {
    status: &'static str,
    output_path: PathBuf,
    profile_id: String,
    profile_name: String,
    model: Option<String>,
    imatrix: PathBuf,
    sensitivity: &'static str,
    assignments: usize,
    target_bpw: Option<f64>,
    target_compression: Option<f64>,
    effective_bpw: Option<f64>,
    compression_ratio: Option<f64>,
    expected_loss: Option<f64>,
    warnings: Vec<String>,
}

fn create_profile(args: &CreateArgs, context: &Context) -> Result<(), Failure> {
    refuse_idle(args, context)?;
    let id = store::slug(&args.name);
    if id.is_empty() {
        return Err(Error::InvalidArgument("--name has no letter or digit".into()).into());
    }
    for (option, value) in [("--target-bpw", args.target_bpw), ("--target-size", args.target_size)]
    {
        if value.is_some_and(|value| !(value.is_finite() && value > 0.0)) {
            return Err(Error::InvalidArgument(format!("{option} must be above 0")).into());
        }
    }
    if args.calibration_samples == Some(0) {
        return Err(
            Error::InvalidArgument("--calibration-samples must be at least 1".into()).into()
        );
    }
    early::text(args.calibration_data.as_deref(), None)?;
    let path = match (&args.output, &context.settings.profile_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(folder)) => folder.join(format!("{id}.{}", store::EXTENSION)),
        (None, None) => {
            return Err(
                Error::InvalidArgument("there is no folder of profiles: give -o".into()).into()
            );
        }
    };
    early::output_file(&path)?;
    let progress = Bars::new(&context.output);
    let importance = ImportanceMatrix::open(&args.imatrix)?;
    let mut report = CreateReport {
        status: "success",
        output_path: path,
        profile_id: id,
        profile_name: args.name.clone(),
        model: args.model.clone(),
        imatrix: args.imatrix.clone(),
        sensitivity: "estimated",
        assignments: 0,
        target_bpw: args.target_bpw,
        target_compression: args.target_size,
        effective_bpw: None,
        compression_ratio: None,
        expected_loss: None,
        warnings: Vec::new(),
    };
    let profile = match &args.model {
        Some(model) => with_model(args, model, importance, context, &progress, &mut report)?,
        None => without_model(args, &importance, &mut report)?,
    };
    report.assignments = profile.layer_assignments.len();
    store::write(&profile, &report.output_path)?;
    report.warnings.iter().for_each(|warning| progress.warn(warning));
    super::complete(std::slice::from_ref(&report.output_path), &progress)?;
    context.output.result(&report);
    Ok(())
}

/// Options that mean nothing here: named, never ignored.
fn refuse_idle(args: &CreateArgs, context: &Context) -> Result<()> {
    let given = &context.given;
    let Some(model) = &args.model else {
        let options = [
            "sensitivity",
            "calibration-data",
            "calibration-samples",
            "allow-requantize",
            "threads",
            "revision",
            "offline",
            "cache-dir",
        ];
        return given.refuse("without --model", &options.map(|o| (o, true, "it needs the model")));
    };
    let silent = args.sensitivity != SensitivityArg::Measured;
    let what = "it is for --sensitivity measured";
    given.refuse(
        "with --sensitivity estimated",
        &[("calibration-data", silent, what), ("calibration-samples", silent, what)],
    )?;
    given.refuse_hub(&args.hub, &[model], !silent)
}

fn with_model(
    args: &CreateArgs,
    name: &str,
    importance: ImportanceMatrix,
    context: &Context,
    progress: &dyn Progress,
    report: &mut CreateReport,
) -> Result<Profile> {
    let judge =
        |located: &models::Located| gguf::open(&located.path, &SourceOptions::default()).map(drop);
    let located = models::locate_if(name, &args.hub, context, &check_config, &judge, progress)?;
    let path = located.path;
    let mut model = gguf::open(&path, &SourceOptions::default())?;
    if let Some(name) = located.name {
        model.name = name;
    }
    let goal = match (args.target_bpw, args.target_size) {
        (Some(bits), _) => Goal::BitsPerWeight(bits),
        (None, Some(ratio)) => {
            let part = if ratio > 1.0 { 1.0 / ratio } else { ratio };
            Goal::Bytes((model.source_bytes as f64 * part) as u64)
        }
        (None, None) => Goal::TensorBits(DEFAULT_BITS),
    };
    let text = Text { data: args.calibration_data.as_deref(), samples: args.calibration_samples };
    let measure = args.sensitivity == SensitivityArg::Measured;
    interrupt::watch();
    let dynamic = if measure {
        report.sensitivity = "measured";
        let measured = measured(&path, &text, &args.hub, context, progress)?;
        let profile = PRESETS[1].profile();
        Some(Dynamic { named: false, profile, measured: Some(measured) })
    } else {
        None
    };
    let request = QuantizeRequest {
        goal,
        dynamic,
        protection_coverage: None,
        overrides: Overrides::default(),
        importance: Some(importance),
        allow_requantize: args.allow_requantize,
        provenance: true,
        output: PathBuf::from("model.gguf"),
        split_max: None,
        checkpoints: Checkpoints::Off,
        resume_command: None,
    };
    let plan = plan::plan(&model, &request, progress)?;
    report.effective_bpw = Some(plan.bits_per_weight);
    report.compression_ratio =
        Some(plan.layout.total_bytes() as f64 / model.source_bytes.max(1) as f64);
    report.expected_loss = plan.expected_loss;
    report.warnings.clone_from(&plan.warnings);
    Ok(Profile {
        target_bpw: args.target_bpw,
        target_compression: args.target_size,
        ..create::from_plan(&model, &plan, &args.name)
    })
}

fn without_model(
    args: &CreateArgs,
    importance: &ImportanceMatrix,
    report: &mut CreateReport,
) -> Result<Profile> {
    let bits = match (args.target_bpw, args.target_size) {
        (Some(bits), _) => bits,
        (None, Some(ratio)) => 16.0 * if ratio > 1.0 { 1.0 / ratio } else { ratio },
        (None, None) => DEFAULT_BITS,
    };
    report.sensitivity = "roles";
    report.warnings.push(
        "without --model no weight is looked at: widths follow from the roles of the tensors, and a \
         compression ratio is taken for one of 16 bits"
            .to_owned(),
    );
    create::from_importance(importance, &args.name, bits)
}

impl Report for CreateReport {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row("Output:", self.output_path.display().to_string());
        row("Profile:", self.profile_name.clone());
        row("Assignments:", self.assignments.to_string());
        row("Sensitivity:", self.sensitivity.to_owned());
        if let Some(bits) = self.effective_bpw {
            row("Bits per weight:", format!("{bits:.4} of the whole file"));
        }
        if let Some(ratio) = self.compression_ratio {
            row("Size:", format!("{:.1} % of the model's weights", ratio * 100.0));
        }
        if let Some(loss) = self.expected_loss {
            row("Expected loss:", format!("{loss:.4} nats per token"));
        }
        out
    }
}

fn validate(args: &ValidateArgs, context: &Context) -> Result<(), Failure> {
    context.given.refuse_hub(&args.hub, &[&args.model], false)?;
    let profile = store::find(&args.profile, context.settings.profile_dir.as_deref())?;
    let progress = Bars::new(&context.output);
    // Names and shapes are all that is looked at.
    let located = models::outline(&args.model, &args.hub, context, &check_config, &progress)?;
    let model = gguf::open(&located.path, &SourceOptions::default())
        .map_err(|error| located.explain(error))?;
    model.warnings.iter().for_each(|warning| progress.warn(warning));
    let report = ValidationReport::new(&profile, &model, &args.model)?;
    report.warnings.iter().for_each(|warning| progress.warn(warning));
    let Some(error) = report.failure() else {
        context.output.result(&report);
        return Ok(());
    };
    context.output.human_result(&report);
    Err(Failure { error: Box::new(error), result: serde_json::to_value(&report).ok() })
}

impl Report for ValidationReport {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row("Profile:", self.profile.clone());
        row("Model:", self.model.clone());
        row("Valid:", if self.valid { "yes" } else { "no" }.to_owned());
        row("Tensors:", format!("{} of {} have an assignment", self.assigned, self.tensors));
        for (number, rule) in self.rules.iter().enumerate() {
            let shadow = if rule.holds < rule.matches {
                format!(
                    ", {} shadowed by {}",
                    rule.matches - rule.holds,
                    rule.shadowed_by.join(", ")
                )
            } else {
                String::new()
            };
            row(
                if number == 0 { "Assignments:" } else { "" },
                format!(
                    "{:<44} {}-bit: {} tensors{shadow}",
                    rule.layer_name, rule.bit_width, rule.holds
                ),
            );
        }
        out
    }
}
