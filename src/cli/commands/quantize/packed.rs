//! `quantize MODEL awq|gptq|smoothquant`.

use std::path::PathBuf;

use super::dynamic::Text;
use super::quality;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::ComputeArgs;
use crate::cli::args::quantize::{
    AwqArgs, CalibrationArgs, GptqArgs, QuantizeArgs, SmoothquantArgs,
};
use crate::cli::bars::Bars;
use crate::cli::commands::kept::Kept;
use crate::cli::output::{Report, cost_rows, grouped};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::job::packed::{
    self, Alpha, Extras, Gptq, GroupSize, Method, PackedPlan, PackedReport, PackedRequest, execute,
    parse_bits, request,
};
use crate::model::LocalModel;
use crate::text::TextOptions;
use crate::{Error, Result};

/// What the three formats have in common.
pub(super) struct Packed<'a> {
    /// The method with its settings, or why they are none.
    method: Result<Method>,
    group: Option<i64>,
    calibration: &'a CalibrationArgs,
}

pub(super) fn run(args: &QuantizeArgs, own: Packed<'_>, context: &Context) -> Result<(), Failure> {
    refuse_idle(args, &own, context)?;
    let method = own.method?;
    let group = own.group.map_or(Ok(GroupSize::Default), GroupSize::parse)?;
    // Calibration reads the user's text; what is measured is measured on another one.
    let text = Text::default();
    quality::check_options(&args.quality, text)?;
    early::output_folder(&args.output.output_dir)?;
    early::resume(args.checkpoints.resume.as_deref())?;
    early::text(own.calibration.calibration_data.as_deref(), None)?;
    early::model(&args.model)?;
    let progress = Bars::new(&context.output);
    let compute = ComputeArgs { device: None, threads: args.threads };
    let backend = models::backend(&compute, context)?;
    if args.dry_run {
        let (model, located) = models::open_outline(&args.model, &args.hub, context, &progress)?;
        let (request, mut plan) = planned(args, own.calibration, context, &model, (method, group))?;
        plan.warnings.extend(packed::shortages(&model, &plan, &request));
        plan.warnings.extend(located.shortage());
        context.output.result(&PackedReport::planned(&model, &plan, &request)?);
        return Ok(());
    }
    let judge = |model: &LocalModel| {
        let (request, plan) = planned(args, own.calibration, context, model, (method, group))?;
        packed::refuse_early(model, &plan, &request)
    };
    let model = models::open_if(&args.model, &args.hub, context, &judge, &progress)?;
    let (mut request, plan) = planned(args, own.calibration, context, &model, (method, group))?;
    let kept = Kept::new(&args.checkpoints, &request.output, context, &progress)?;
    request.resume_command = kept.resume_command();
    request.checkpoints = kept.into();
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    interrupt::watch();
    let report = execute(&model, &plan, &request, &backend, &progress)?;
    let quality = quality::after(args, text, (&model.path, &request.output), context, &progress)?;
    progress.complete(&report.output_path, report.file_size, "");
    quality::finish(&report, quality, context)
}

/// What is asked for of a model, and its plan.
fn planned(
    args: &QuantizeArgs,
    calibration: &CalibrationArgs,
    context: &Context,
    model: &LocalModel,
    (method, group): (Method, GroupSize),
) -> Result<(PackedRequest, PackedPlan)> {
    let kept = Kept::stated(&args.checkpoints, context);
    let mut request = PackedRequest {
        method,
        group,
        samples: calibration.calibration_samples.unwrap_or(request::SAMPLES),
        text: TextOptions {
            calibration: calibration.calibration_data.clone(),
            ..models::text_options(&args.hub, context)
        },
        seed: 0,
        output: PathBuf::new(),
        resume_command: kept.resume_command(),
        checkpoints: kept.into(),
    };
    let mut plan = packed::plan(model, &request)?;
    plan.warnings.extend(without_effect(&request));
    request.output = args.output.output_dir.join(output_name(args, model, method, &plan));
    Ok((request, plan))
}

impl<'a> From<&'a AwqArgs> for Packed<'a> {
    fn from(args: &'a AwqArgs) -> Self {
        let method = parse_bits(&args.quant_level, "awq").map(|_| Method::Awq);
        Self { method, group: args.group.group_size, calibration: &args.calibration }
    }
}

impl<'a> From<&'a GptqArgs> for Packed<'a> {
    fn from(args: &'a GptqArgs) -> Self {
        let method = || {
            let bits = parse_bits(&args.quant_level, "gptq")?;
            let damping = args.damp_percent.unwrap_or(request::DAMPING);
            if !(damping > 0.0 && damping < 1.0) {
                return Err(Error::InvalidArgument(format!(
                    "--damp-percent {damping} must be above 0 and below 1"
                )));
            }
            Ok(Method::Gptq(Gptq {
                bits,
                symmetric: !args.asym,
                desc_act: args.desc_act,
                damping,
                extras: Extras::default(),
            }))
        };
        Self { method: method(), group: args.group.group_size, calibration: &args.calibration }
    }
}

impl<'a> From<&'a SmoothquantArgs> for Packed<'a> {
    fn from(args: &'a SmoothquantArgs) -> Self {
        let method = || {
            if let Some(level) = &args.quant_level {
                parse_bits(level, "smoothquant")?;
            }
            let alpha = args.alpha.as_deref().map(Alpha::parse).transpose()?;
            Ok(Method::SmoothQuant(alpha.unwrap_or(Alpha::Fixed(request::ALPHA))))
        };
        Self { method: method(), group: None, calibration: &args.calibration }
    }
}

/// Options that mean nothing beside others: named, never ignored.
fn refuse_idle(args: &QuantizeArgs, own: &Packed<'_>, context: &Context) -> Result<()> {
    let unread = own.calibration.calibration_samples == Some(0);
    context.given.refuse(
        "with --calibration-samples 0",
        &[
            ("calibration-data", unread, "it is the text that samples are taken from"),
            ("damp-percent", unread, "it is for the statistics of samples"),
            ("desc-act", unread, "the order of columns is that of their activations"),
            ("alpha", unread, "activations are smoothed as samples show them"),
        ],
    )?;
    context.given.refuse_hub(&args.hub, &[&args.model], true)
}

/// Settings that do nothing without calibration.
fn without_effect(request: &PackedRequest) -> Option<String> {
    (request.samples == 0).then(|| {
        "without calibration samples every weight is rounded to nearest: no method does better with \
         nothing to go by"
            .to_owned()
    })
}

/// `--output-name`, else the model's name with method, level and group.
fn output_name(
    args: &QuantizeArgs,
    model: &LocalModel,
    method: Method,
    plan: &PackedPlan,
) -> String {
    if let Some(name) = &args.output.output_name {
        return name.clone();
    }
    let name = model.name.rsplit(['/', '\\']).next().unwrap_or(&model.name);
    let group = match (method, plan.group) {
        (Method::SmoothQuant(_), _) => String::new(),
        (_, Some(group)) => format!("-g{group}"),
        (_, None) => "-row".to_owned(),
    };
    let level = packed::report::level_name(method);
    format!("{name}-{}-{level}{group}", method.name())
}

impl PackedReport {
    /// Of a plan: every tensor.
    fn table(&self) -> String {
        let mut out = format!("{:<48} {:<16} {:<5} {:>14}\n", "Tensor", "Shape", "Type", "Bytes");
        for tensor in &self.tensors {
            out.push_str(&format!(
                "{:<48} {:<16} {:<5} {:>14}\n",
                tensor.name,
                format!("{:?}", tensor.shape),
                tensor.kind,
                grouped(tensor.bytes)
            ));
        }
        out
    }
}

impl Report for PackedReport {
    fn human(&self) -> String {
        let planned = self.status == "planned";
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row(if planned { "Would write:" } else { "Output:" }, self.output_path.clone());
        let group = match self.group_size {
            -1 => "a scale for each row".to_owned(),
            size => format!("groups of {size}"),
        };
        row("Format:", format!("{} {}, {group}", self.format, self.quantization_level));
        row("Size:", human_bytes(self.file_size));
        row(
            "Bits per weight:",
            format!(
                "{:.4} of all tensors, {:.4} of the packed layers",
                self.bits_per_weight, self.packed_layers_bpw
            ),
        );
        row(
            "Source:",
            format!(
                "{}, {} ({:.1} % of it is left)",
                self.metadata.original_dtype,
                human_bytes(self.metadata.original_size),
                self.compression_ratio * 100.0
            ),
        );
        row("Parameters:", grouped(self.metadata.parameter_count));
        if planned {
            for warning in &self.warnings {
                out.push_str(&format!("Warning: {warning}\n"));
            }
            // What is read first stands last: the table may be longer than the screen.
            return format!("{}\n{out}", self.table());
        }
        if let Some(text) = &self.calibration {
            row(
                "Calibration:",
                format!("{}, {} samples, {} tokens", text.dataset, text.samples, text.tokens),
            );
        }
        if let Some(error) = self.mean_relative_error {
            row("Mean error:", format!("{error:.5} of the squared outputs of a layer"));
        }
        if self.fallbacks > 0 {
            row("Rounded to nearest:", format!("{} layers", self.fallbacks));
        }
        for problem in &self.problematic_layers {
            row("Problem:", format!("{}, {:.1} dB", problem.name, problem.sqnr_db));
        }
        if self.resumed_layers > 0 {
            row("Resumed:", format!("{} layers were finished already", self.resumed_layers));
        }
        out.push_str(&cost_rows(self.duration_seconds, self.peak_memory_bytes));
        out
    }
}
