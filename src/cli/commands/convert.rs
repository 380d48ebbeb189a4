//! `convert`.

use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::convert::{ConvertArgs, ConvertFormat};
use crate::cli::bars::Bars;
use crate::cli::output::{Report, cost_rows, grouped};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::model_directory::DEFAULT_SHARD_BYTES;
use crate::job::convert::plan::Format;
use crate::job::convert::{self, ConversionReport, Plan, Request};
use crate::model::LocalModel;
use crate::{Error, Result};

pub(crate) fn run(args: &ConvertArgs, context: &Context) -> Result<(), Failure> {
    args.output.check_name()?;
    refuse_idle(args, context)?;
    early::output_folder(&args.output.output_dir)?;
    early::model(&args.input_model)?;
    let progress = Bars::new(&context.output);
    let mut request = Request {
        format: match args.output_format {
            ConvertFormat::Gguf => Format::Gguf,
            ConvertFormat::Awq => Format::Awq,
            ConvertFormat::Gptq => Format::Gptq,
            ConvertFormat::Hf => Format::Hf,
        },
        level: args.quant_level.clone(),
        group: args.group_size,
        max_shard_bytes: args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES),
        provenance: !args.no_provenance,
        output: args.output.output_dir.clone(),
    };
    request.check()?;
    let judge = |model: &LocalModel| convert::plan::refuse_early(model, &request);
    let model = models::open_if(&args.input_model, &args.hub, context, &judge, &progress)?;
    interrupt::watch();
    let plan = convert::plan(&model, &request, &progress)?;
    request.output = args.output.output_dir.join(output_name(args, &model, &plan));
    if args.dry_run {
        let report = ConversionReport::planned(&model, &plan, &request.output);
        context.output.result(&report);
        return Ok(());
    }
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    if plan.is_lossy() {
        progress.warn(&plan.loss());
        if !args.force && !context.output.confirm("Convert all the same?") {
            return Err(Error::Cancelled("the lossy conversion was not confirmed".into()).into());
        }
    }
    let report = convert::convert(&model, &plan, &request, &progress)?;
    if let Some(size) = report.file_size {
        progress.complete(&report.output_path, size, "");
    }
    context.output.result(&report);
    Ok(())
}

/// Options that mean nothing for the format: named, never ignored.
fn refuse_idle(args: &ConvertArgs, context: &Context) -> Result<()> {
    let gguf = args.output_format == ConvertFormat::Gguf;
    let grouped = matches!(args.output_format, ConvertFormat::Awq | ConvertFormat::Gptq);
    context.given.refuse(
        &format!("for {}", format!("{:?}", args.output_format).to_lowercase()),
        &[
            ("group-size", !grouped, "it is for awq and gptq"),
            ("max-shard-size", gguf, "it is for directories; a GGUF file is written as one"),
            ("no-provenance", !gguf, "it leaves keys out of a GGUF file"),
        ],
    )?;
    context.given.refuse_hub(&args.hub, &[&args.input_model], false)
}

/// `--output-name`, else the last part of the model's name, the format and the level.
fn output_name(args: &ConvertArgs, model: &LocalModel, plan: &Plan) -> String {
    let gguf = args.output_format == ConvertFormat::Gguf;
    let name = args.output.output_name.clone().unwrap_or_else(|| {
        let name = model.name.rsplit(['/', '\\']).next().unwrap_or(&model.name);
        match args.output_format {
            ConvertFormat::Gguf => format!("{name}-{}", plan.level()),
            ConvertFormat::Hf => format!("{name}-hf-{}", plan.level()),
            _ => format!("{name}-{}-{}", plan.format().to_uppercase(), plan.level()),
        }
    });
    if gguf && !name.to_lowercase().ends_with(".gguf") { format!("{name}.gguf") } else { name }
}

impl Report for ConversionReport {
    fn human(&self) -> String {
        let planned = self.status == "planned";
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row(if planned { "Would write:" } else { "Output:" }, self.output_path.clone());
        row("Input:", format!("{} ({})", self.input_path, self.input_format));
        row("Format:", format!("{} {}", self.format, self.quantization_level));
        row(
            "Source:",
            format!(
                "{}, {}",
                self.metadata.original_dtype,
                human_bytes(self.metadata.original_size)
            ),
        );
        let layers = &self.layers_kept;
        row("Layers kept:", format!("{} of {} exactly", layers.kept, layers.all));
        row("Parameters:", grouped(self.metadata.parameter_count));
        if planned {
            for warning in &self.warnings {
                out.push_str(&format!("Warning: {warning}\n"));
            }
            return out;
        }
        if let Some(bytes) = self.file_size {
            row("Size:", format!("{} ({} bytes)", human_bytes(bytes), grouped(bytes)));
        }
        row("Without loss:", if self.lossless { "yes, compared" } else { "no" }.into());
        if let Some(tensors) = &self.tensors {
            row(
                "Tensors:",
                format!(
                    "{} exact, {} rounded to plain numbers, {} requantized",
                    tensors.exact, tensors.rounded, tensors.requantized
                ),
            );
            if let Some(error) = self.relative_rms_error.filter(|_| tensors.requantized > 0) {
                row(
                    "Error:",
                    format!("{:.3} % of the requantized tensors' values (RMS)", error * 100.0),
                );
            }
        }
        out.push_str(&cost_rows(self.duration_seconds, self.peak_memory_bytes));
        out
    }
}
