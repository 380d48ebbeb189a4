//! `analyze`.

use std::path::{Path, PathBuf};

use super::complete;
use super::kept::Kept;
use crate::cli::args::analyze::{AnalyzeArgs, MatrixFormatArg, MethodArg};
use crate::cli::bars::Bars;
use crate::cli::output::{Report, cost_rows, grouped};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::imatrix::{ImportanceSums, Method};
use crate::job::analyze::{
    self, AnalyzeReport, AnalyzeRequest, FileRequest, MatrixFormat, Samples,
};
use crate::model::LocalModel;
use crate::{Error, Result};

/// Samples that are read unless told otherwise.
const CALIBRATION_SAMPLES: usize = 512;
/// Share of the parameters that a mask has unless told otherwise.
const COVERAGE: f64 = 1e-4;

pub(crate) fn run(args: &AnalyzeArgs, context: &Context) -> Result<(), Failure> {
    let progress = Bars::new(&context.output);
    let report = match model(args) {
        Some(name) => of_model(name, args, context, &progress)?,
        None => of_files(args, context, &progress)?,
    };
    let written = report.output_path.iter().chain(&report.plot_path).rev().map(PathBuf::from);
    complete(&written.collect::<Vec<_>>(), &progress)?;
    let shown = Shown { report, statistics: args.show_statistics };
    context.output.result(&shown);
    Ok(())
}

/// The model that was named, unless that is an importance matrix.
fn model(args: &AnalyzeArgs) -> Option<&str> {
    let name = args.model.as_deref()?;
    let path = Path::new(name);
    let matrix = path.is_file() && ImportanceSums::open(path).is_ok();
    (!matrix).then_some(name)
}

fn of_model(
    name: &str,
    args: &AnalyzeArgs,
    context: &Context,
    progress: &Bars,
) -> Result<AnalyzeReport> {
    refuse_idle(name, args, context)?;
    let samples = samples(args)?;
    if let Some(path) = &args.output {
        early::output_file(path)?;
    } else {
        early::output_folder(Path::new("."))?;
    }
    if let Some(path) = &args.plot {
        analyze::plot::check_path(path)?;
        early::output_file(path)?;
    }
    early::resume(args.kept.checkpoints.resume.as_deref())?;
    early::text(args.calibration_data.as_deref(), None)?;
    for path in &args.merge {
        ImportanceSums::open(path)?;
    }
    early::model(name)?;
    let backend = models::backend(&args.compute, context)?;
    let judge = |model: &LocalModel| {
        analyze::refuse_early(model, &request(args, samples, context, model), &backend)
    };
    let model = models::open_if(name, &args.hub, context, &judge, progress)?;
    let mut request = request(args, samples, context, &model);
    let kept = Kept::new(&args.kept.checkpoints, &request.output, context, progress)?;
    request.resume_command = kept.resume_command();
    request.checkpoints = kept.into();
    interrupt::watch();
    let mut report = analyze::analyze(&model, &request, &backend, progress)?;
    report.model_path = Some(name.to_owned());
    Ok(report)
}

/// Options that mean nothing for the analysis: named, never ignored.
fn refuse_idle(name: &str, args: &AnalyzeArgs, context: &Context) -> Result<()> {
    let given = &context.given;
    given.refuse(
        "with --chunks",
        &[("seed", args.chunks.is_some(), "it is that of the places of --calibration-samples")],
    )?;
    given.refuse(
        "with gradients",
        &[(
            "process-output",
            args.method != MethodArg::Activation,
            "it measures inputs, for --method activation",
        )],
    )?;
    args.kept.checkpoints.check()?;
    given.refuse_hub(&args.hub, &[name], true)
}

fn of_files(args: &AnalyzeArgs, context: &Context, progress: &Bars) -> Result<AnalyzeReport> {
    let with_model = [
        "method",
        "calibration-data",
        "calibration-samples",
        "chunks",
        "ctx-size",
        "seed",
        "process-output",
        "coverage",
        "identify-super-weights",
        "no-checkpoints",
        "checkpoint-dir",
        "resume",
        "no-cache",
        "device",
        "threads",
        "revision",
        "offline",
        "cache-dir",
    ];
    let what = "it needs a MODEL to look at";
    context.given.refuse("for importance matrices", &with_model.map(|o| (o, true, what)))?;
    context.given.refuse(
        "without --output",
        &[("output-format", args.output.is_none(), "it is the form of the file that is written")],
    )?;
    let mut inputs: Vec<PathBuf> = args.model.iter().map(PathBuf::from).collect();
    inputs.extend(args.merge.iter().cloned());
    let output = args.output.clone().map(|path| (path, format(args)));
    if output.is_none() && inputs.len() > 1 && !args.show_statistics && args.plot.is_none() {
        return Err(Error::InvalidArgument(
            "--merge without MODEL needs --output, --show-statistics or --plot".into(),
        ));
    }
    analyze::files(&FileRequest { inputs, output, plot: args.plot.clone() }, progress)
}

fn samples(args: &AnalyzeArgs) -> Result<Samples> {
    match args.chunks {
        None => Ok(Samples::Spread(args.calibration_samples.unwrap_or(CALIBRATION_SAMPLES))),
        Some(-1) => Ok(Samples::First(None)),
        Some(count) => {
            usize::try_from(count).map(|count| Samples::First(Some(count))).map_err(|_| {
                Error::InvalidArgument(format!("--chunks {count}: a number, or -1 for all"))
            })
        }
    }
}

fn format(args: &AnalyzeArgs) -> MatrixFormat {
    match args.output_format {
        MatrixFormatArg::Gguf => MatrixFormat::Gguf,
        MatrixFormatArg::Dat => MatrixFormat::Dat,
    }
}

fn request(
    args: &AnalyzeArgs,
    samples: Samples,
    context: &Context,
    model: &LocalModel,
) -> AnalyzeRequest {
    let stem = model.name.rsplit(['/', '\\']).next().unwrap_or(&model.name);
    let output = args.output.clone().unwrap_or_else(|| format!("./{stem}.imatrix").into());
    let kept = Kept::stated(&args.kept.checkpoints, context);
    AnalyzeRequest {
        output,
        format: format(args),
        method: match args.method {
            MethodArg::Activation => Method::Activation,
            MethodArg::Gradient => Method::Gradient,
            MethodArg::Fisher => Method::Fisher,
        },
        text: crate::text::TextOptions {
            calibration: args.calibration_data.clone(),
            ..models::text_options(&args.hub, context)
        },
        samples,
        chunk_size: args.ctx_size,
        seed: args.seed,
        process_output: args.process_output,
        merge: args.merge.clone(),
        coverage: args
            .super_weights
            .identify_super_weights
            .then(|| args.super_weights.coverage.unwrap_or(COVERAGE)),
        plot: args.plot.clone(),
        cache: context.settings.imatrix_cache.clone().filter(|_| !args.kept.no_cache),
        resume_command: kept.resume_command(),
        checkpoints: kept.into(),
    }
}

/// A report, with the statistics of tensors for people who asked for them; JSON always has them.
struct Shown {
    report: AnalyzeReport,
    statistics: bool,
}

impl serde::Serialize for Shown {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.report.serialize(serializer)
    }
}

impl Report for Shown {
    fn human(&self) -> String {
        let report = &self.report;
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        if let Some(path) = &report.output_path {
            row("Output:", path.clone());
        }
        if let Some(model) = &report.model_path {
            row("Model:", model.clone());
        }
        for (i, path) in report.merged.iter().enumerate() {
            row(if i == 0 { "Files:" } else { "" }, path.clone());
        }
        row("Method:", report.method.into());
        row("Layers:", report.num_layers.to_string());
        match &report.calibration {
            Some(text) => row(
                "Measured on:",
                format!(
                    "{}, {} samples of {} tokens",
                    text.dataset, text.samples, text.sequence_length
                ),
            ),
            None => row("Chunks:", report.calibration_samples.to_string()),
        }
        let all = &report.global_statistics;
        row(
            "Importance:",
            format!(
                "{} to {}, mean {}, deviation {}",
                figure(all.min),
                figure(all.max),
                figure(all.mean),
                figure(all.std)
            ),
        );
        if report.cached {
            row("Cache:", "the matrix of an earlier run was used".into());
        }
        let found = &report.super_weights;
        if found.identified {
            row("Super weights:", format!("{} found", found.super_weights.len()));
            for weight in &found.super_weights {
                let effect = match (found.perplexity, weight.perplexity_without) {
                    (Some(with), Some(without)) => {
                        format!(", perplexity {with:.2} → {without:.2} without it")
                    }
                    _ => String::new(),
                };
                row(
                    "",
                    format!(
                        "{}[{}, {}] = {:.4}{effect}",
                        weight.tensor, weight.row, weight.column, weight.value
                    ),
                );
            }
            if let Some(path) = &found.mask_path {
                let total = grouped(found.total_protected);
                row("Mask:", format!("{path}: {total} weights"));
            }
        }
        if let Some(path) = &report.plot_path {
            row("Plot:", path.clone());
        }
        out.push_str(&cost_rows(Some(report.duration_seconds), report.peak_memory_bytes));
        // What is read first stands last: the table may be longer than the screen.
        if self.statistics { format!("{}\n{out}", table(report)) } else { out }
    }
}

fn table(report: &AnalyzeReport) -> String {
    let mut out = format!(
        "{:<28} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8} {:>8} {:>7}\n",
        "Tensor",
        "Columns",
        "Sum",
        "Min",
        "Max",
        "Mean",
        "Deviation",
        "Active%",
        "Entropy",
        "Ent.%",
        "|z|>1 %",
        "Cosine"
    );
    for tensor in &report.tensor_statistics {
        out.push_str(&format!(
            "{:<28} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8.2} {:>8.3} {:>8.2} {:>8.2} {:>7}\n",
            tensor.tensor,
            tensor.columns,
            figure(tensor.sum),
            figure(tensor.min),
            figure(tensor.max),
            figure(tensor.mean),
            figure(tensor.std),
            100.0 * tensor.active,
            tensor.entropy,
            100.0 * tensor.normalized_entropy,
            100.0 * tensor.outliers,
            tensor.cosine_to_previous.map_or(String::new(), |cosine| format!("{cosine:.4}"))
        ));
    }
    out
}

/// Four digits, with an exponent where a number is very small or very large.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e6).contains(&size) => format!("{value:.4}"),
        _ => format!("{value:.3e}"),
    }
}
