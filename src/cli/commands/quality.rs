//! `quality report` and `quality compare`.

use std::path::{Path, PathBuf};

use super::complete;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::base::suggest::did_you_mean;
use crate::cli::args::HubArgs;
use crate::cli::args::quality::{
    BenchmarkArg, BenchmarkArgs, CompareArgs, QualityCommand, QualityReportArgs, TableFormat,
    TextArgs,
};
use crate::cli::bars::Bars;
use crate::cli::output::{Output, Report};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::atomic::write_atomically;
use crate::files::super_weights::SuperWeightMask;
use crate::hub::ModelSpec;
use crate::job::quality::layers::LayerError;
use crate::job::quality::{
    self, CompareReport, CompareRequest, Metric, QualityReport, QualityRequest, TextRequest, csv,
    html,
};
use crate::measure::tasks::{Benchmark, BenchmarkRequest};
use crate::model::LocalModel;
use crate::{Error, Result};

pub(crate) fn run(command: &QualityCommand, context: &Context) -> Result<(), Failure> {
    match command {
        QualityCommand::Report(args) => report(args, context, &context.output),
        QualityCommand::Compare(args) => compare(args, context, &context.output),
    }
}

fn report(args: &QualityReportArgs, context: &Context, output: &Output) -> Result<(), Failure> {
    if args.quality_threshold.is_some_and(|t| !(t.is_finite() && t > 0.0)) {
        return Err(Error::InvalidArgument(
            "--quality-threshold must be a percentage above 0".into(),
        )
        .into());
    }
    context.given.refuse_hub(&args.hub, &[&args.original, &args.quantized], true)?;
    let kinds =
        args.output.iter().map(|path| FileKind::of(path, false)).collect::<Result<Vec<_>>>()?;
    let benchmarks = benchmark_requests(&args.benchmarks, &args.hub, context)?;
    let progress = Bars::new(output);
    early::text(None, args.text.calibration_data.as_deref())?;
    if let Some(path) = &args.super_weights {
        SuperWeightMask::read(path)?;
    }
    early::benchmarks(&benchmarks, &progress)?;
    let settings = &context.settings;
    let request = QualityRequest {
        original_name: args.original.clone(),
        quantized_name: args.quantized.clone(),
        text: text_request(&args.text, &args.hub, context)?,
        layers: args.include_layers,
        coherence: !args.skip_coherence,
        benchmarks,
        quality_threshold: args.quality_threshold.unwrap_or(settings.quality_threshold_percent),
        coherence_threshold: settings.coherence_threshold,
        super_weights: args.super_weights.clone(),
    };
    let backend = models::backend(&args.compute, context)?;
    let named = [args.original.as_str(), args.quantized.as_str()];
    let mut opened = open_all(&named, &args.hub, context, &progress)?;
    let (Some(quantized), Some(original)) = (opened.pop(), opened.pop()) else {
        return Err(Error::General("two models were to be opened".into()).into());
    };
    interrupt::watch();
    let report = quality::measure(&original, &quantized, &request, &backend, &progress)?;
    for (path, kind) in args.output.iter().zip(kinds) {
        let contents = match kind {
            FileKind::Page => html::report_page(&report),
            FileKind::Table | FileKind::Json => document(output, &report)?,
        };
        write_atomically(path, contents.as_bytes())?;
    }
    complete(&args.output, &progress)?;
    if args.quality_threshold.is_some() && !report.metrics.quality_passed {
        return Err(degraded(output, &report, &report));
    }
    output.result(&report);
    Ok(())
}

/// The failure of a model that is worse than the user allows, with the whole result.
pub(super) fn degraded<R: Report>(output: &Output, result: &R, report: &QualityReport) -> Failure {
    output.human_result(result);
    let metrics = &report.metrics;
    Failure {
        error: Box::new(Error::QualityDegradation(format!(
            "Quantization quality degradation ({:.1}%) exceeds threshold ({}%)",
            metrics.perplexity_delta_pct, metrics.quality_threshold_pct
        ))),
        result: serde_json::to_value(result).ok(),
    }
}

fn compare(args: &CompareArgs, context: &Context, output: &Output) -> Result<(), Failure> {
    let kinds =
        args.output.iter().map(|path| FileKind::of(path, true)).collect::<Result<Vec<_>>>()?;
    if kinds.contains(&FileKind::Page) && args.quantized.len() > html::MODELS {
        return Err(Error::InvalidArgument(format!(
            "a page tells up to {} models apart, not {}: write .csv or .json, or compare fewer at a \
             time",
            html::MODELS,
            args.quantized.len()
        ))
        .into());
    }
    let metrics = metrics(&args.metrics)?;
    let unread = !metrics.contains(&Metric::Perplexity);
    let what = "no model is run";
    context.given.refuse(
        "with these --metrics",
        &[
            ("calibration-data", unread, what),
            ("calibration-samples", unread, what),
            ("device", unread, what),
        ],
    )?;
    let names: Vec<&str> =
        args.quantized.iter().chain([&args.original]).map(String::as_str).collect();
    context.given.refuse_hub(&args.hub, &names, !unread)?;
    let text = text_request(&args.text, &args.hub, context)?;
    let progress = Bars::new(output);
    early::text(None, args.text.calibration_data.as_deref())?;
    let backend = models::backend(&args.compute, context)?;
    let named: Vec<&str> =
        std::iter::once(&args.original).chain(&args.quantized).map(String::as_str).collect();
    let mut quantized = open_all(&named, &args.hub, context, &progress)?;
    let original = quantized.remove(0);
    let request = CompareRequest {
        original_name: args.original.clone(),
        quantized_names: args.quantized.clone(),
        text,
        metrics,
        layers: args.include_layers,
    };
    interrupt::watch();
    let report = quality::compare(&original, &quantized, &request, &backend, &progress)?;
    for (path, kind) in args.output.iter().zip(kinds) {
        let contents = match kind {
            FileKind::Page => html::compare_page(&report),
            FileKind::Table => csv::table(&report),
            FileKind::Json => document(output, &report)?,
        };
        write_atomically(path, contents.as_bytes())?;
    }
    complete(&args.output, &progress)?;
    if args.format == Some(TableFormat::Csv) {
        Output::print_data(&csv::table(&report));
    } else {
        output.result(&report);
    }
    Ok(())
}

/// Opens models, in the order in which they are named. What is here is opened before anything is
/// downloaded, and nothing is looked for unless all of it may be there.
fn open_all(
    names: &[&str],
    hub: &HubArgs,
    context: &Context,
    progress: &dyn Progress,
) -> Result<Vec<LocalModel>> {
    let specs = names.iter().map(|name| models::parse(name, hub)).collect::<Result<Vec<_>>>()?;
    let mut opened: Vec<Option<LocalModel>> = names.iter().map(|_| None).collect();
    for here in [true, false] {
        for (at, spec) in specs.iter().enumerate() {
            if matches!(spec, ModelSpec::Path(_)) == here {
                // The first one is the original of all others.
                let judge = |model: &LocalModel| match opened.iter().flatten().next() {
                    Some(other) if at == 0 => quality::check_pair(model, other),
                    _ => opened[0].as_ref().map_or(Ok(()), |o| quality::check_pair(o, model)),
                };
                let model = models::open_if(names[at], hub, context, &judge, progress)?;
                opened[at] = Some(model);
            }
        }
    }
    Ok(opened.into_iter().flatten().collect())
}

fn metrics(names: &[String]) -> Result<Vec<Metric>> {
    let mut metrics = Vec::new();
    for name in names {
        let name = name.trim();
        if name == "all" {
            metrics.extend(Metric::ALL);
            continue;
        }
        let known = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        metrics.push(known.ok_or_else(|| {
            Error::InvalidArgument(format!(
                "--metrics {name}: perplexity, size, bpw and all are understood{}",
                did_you_mean(name, Metric::ALL.iter().map(|metric| metric.name()).chain(["all"]))
            ))
        })?);
    }
    Ok(metrics)
}

pub(super) fn text_request(
    args: &TextArgs,
    hub: &HubArgs,
    context: &Context,
) -> Result<TextRequest> {
    if args.calibration_samples == 0 {
        return Err(Error::InvalidArgument("--calibration-samples must be at least 1".into()));
    }
    Ok(TextRequest {
        data: args.calibration_data.clone(),
        hub: models::text_options(hub, context).hub,
        samples: args.calibration_samples,
    })
}

pub(super) fn benchmark_requests(
    args: &BenchmarkArgs,
    hub: &HubArgs,
    context: &Context,
) -> Result<Vec<BenchmarkRequest>> {
    if args.benchmark_data.is_some() && args.benchmark.len() != 1 {
        return Err(Error::InvalidArgument(
            "--benchmark-data goes with one --benchmark: run the others by themselves".into(),
        ));
    }
    if args.benchmark_tasks == Some(0) {
        return Err(Error::InvalidArgument("--benchmark-tasks must be at least 1".into()));
    }
    let hub = models::text_options(hub, context).hub;
    let request = |benchmark: &BenchmarkArg| BenchmarkRequest {
        benchmark: match benchmark {
            BenchmarkArg::Wikitext => Benchmark::Wikitext,
            BenchmarkArg::Hellaswag => Benchmark::HellaSwag,
            BenchmarkArg::Arc => Benchmark::Arc,
        },
        data: args.benchmark_data.clone(),
        limit: args.benchmark_tasks,
        hub: hub.clone(),
    };
    Ok(args.benchmark.iter().map(request).collect())
}

/// What a report file becomes, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Page,
    Table,
    Json,
}

impl FileKind {
    /// Refuses what cannot be written before anything is measured.
    fn of(path: &Path, table: bool) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        if !folder.is_dir() {
            return Err(Error::io(&folder, std::io::ErrorKind::NotFound.into()));
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        match extension.as_str() {
            "html" | "htm" => Ok(Self::Page),
            "csv" if table => Ok(Self::Table),
            "qreport" | "json" => Ok(Self::Json),
            _ => Err(Error::InvalidArgument(format!(
                "--output {}: the name must end in .html, {}.qreport or .json",
                path.display(),
                if table { ".csv, " } else { "" }
            ))),
        }
    }
}

fn document(output: &Output, report: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(&output.document(report)?)
        .map(|text| text + "\n")
        .map_err(|error| Error::General(format!("the report cannot be written as JSON: {error}")))
}

impl Report for QualityReport {
    fn human(&self) -> String {
        let (m, d) = (&self.metrics, &self.divergence);
        let k = &d.kl_divergence;
        let mut out = format!(
            "Quality: {} vs {}\n\n\
             Perplexity (original):   {:.4} ± {:.4}\n\
             Perplexity (quantized):  {:.4} ± {:.4}\n\
             Perplexity delta:        {:+.2} ± {:.2} %\n\
             KL divergence:           {:.6} ± {:.6} nats per token\n\
             \x20 median {:.6}, 90 % {:.6}, 95 % {:.6}, 99 % {:.6}, 99.9 % {:.6}, max {:.6}\n\
             Same top token:          {:.2} ± {:.2} %\n\
             Δ probability:           mean {:+.3} ± {:.3}, RMS {:.3} ± {:.3} percentage points\n",
            self.quantized_model,
            self.original_model,
            m.perplexity_original,
            m.perplexity_original_stderr,
            m.perplexity_quantized,
            m.perplexity_quantized_stderr,
            m.perplexity_delta_pct,
            m.perplexity_delta_stderr_pct,
            k.mean,
            k.stderr,
            k.median,
            k.p90,
            k.p95,
            k.p99,
            k.p99_9,
            k.max,
            d.same_top_token_pct,
            d.same_top_token_stderr_pct,
            d.probability_change.mean,
            d.probability_change.stderr,
            d.probability_change_rms,
            d.probability_change_rms_stderr,
        );
        let on = &self.measured_on;
        out.push_str(&format!(
            "Measured on:             {}, {} tokens scored in {} windows of {}\n",
            on.dataset, on.tokens_scored, on.windows, on.window
        ));
        out.push_str(&format!(
            "Size:                    {} → {} ({:.1} %), {:.3} bits per weight\n",
            human_bytes(m.size.original_size_bytes),
            human_bytes(m.size.quantized_size_bytes),
            m.size.compression_ratio * 100.0,
            m.size.effective_bpw
        ));
        if let (Some(score), Some(test)) = (self.coherence_score, &self.coherence) {
            out.push_str(&format!(
                "Coherence:               {} ({}/{} prompts coherent, score {score:.2})\n",
                if test.passed { "PASSED" } else { "FAILED" },
                test.coherent_prompts,
                test.total_prompts,
            ));
        }
        for benchmark in &self.benchmarks {
            out.push_str(&format!("\n{}\n", benchmark.human()));
        }
        if let Some(bytes) = self.peak_memory_bytes {
            out.push_str(&format!("\nPeak memory:             {}\n", human_bytes(bytes)));
        }
        // What is read first stands last: there may be more layers than lines on the screen.
        match layer_table(&self.layer_errors) {
            Some(table) => format!("{table}\n{out}"),
            None => out,
        }
    }
}

/// Errors of the weights of each layer, if they were asked for.
fn layer_table(layers: &[LayerError]) -> Option<String> {
    if layers.is_empty() {
        return None;
    }
    let mut out = format!(
        "{:<32} {:>12} {:>10} {:>10} {:>6} {:>14}\n",
        "Layer", "MSE", "Relative", "Max error", "Bits", "Parameters"
    );
    for layer in layers {
        out.push_str(&format!(
            "{:<32} {:>12.4e} {:>10.2e} {:>10.4} {:>6.2} {:>14}\n",
            layer.layer_name,
            layer.mse,
            layer.relative_error,
            layer.max_error,
            layer.bit_width,
            crate::cli::output::grouped(layer.parameter_count)
        ));
    }
    Some(out)
}

impl Report for CompareReport {
    fn human(&self) -> String {
        let mut out = format!("Quality compared with {}\n\n", self.original_model);
        let asked = |metric: &str| self.metrics.contains(&metric);
        let width =
            self.results.iter().map(|r| r.quantized_model.chars().count()).max().unwrap_or(0);
        let width = width.max(8);
        let mut header = format!("{:<width$}", "Model");
        let mut first = format!("{:<width$}", "original");
        if asked("size") {
            header.push_str(&format!(" {:>10} {:>7}", "Size", "Ratio"));
            first.push_str(&format!(
                " {:>10} {:>6.1}%",
                human_bytes(self.original_size_bytes),
                100.0
            ));
        }
        if asked("bpw") {
            let bits = self.original_size_bytes as f64 * 8.0 / self.parameter_count.max(1) as f64;
            header.push_str(&format!(" {:>7}", "BPW"));
            first.push_str(&format!(" {bits:>7.3}"));
        }
        if let (Some(value), Some(error)) =
            (self.perplexity_original, self.perplexity_original_stderr)
        {
            header.push_str(&format!(
                " {:>18} {:>17} {:>19} {:>9}",
                "Perplexity", "Delta", "KL divergence", "Same top"
            ));
            first.push_str(&format!(" {:>18}", format!("{value:.4} ± {error:.3}")));
        }
        let layers = self.results.iter().any(|result| result.mean_layer_error().is_some());
        if layers {
            header.push_str(&format!(" {:>12}", "Layer error"));
        }
        out.push_str(&format!("{}\n{}\n", header, first.trim_end()));
        for result in &self.results {
            let mut row = format!("{:<width$}", result.quantized_model);
            if let (Some(bytes), Some(ratio)) = (result.size_bytes, result.compression_ratio) {
                row.push_str(&format!(" {:>10} {:>6.1}%", human_bytes(bytes), ratio * 100.0));
            }
            if let Some(bits) = result.effective_bpw {
                row.push_str(&format!(" {bits:>7.3}"));
            }
            if let Some(p) = &result.perplexity {
                let k = &p.divergence.kl_divergence;
                row.push_str(&format!(
                    " {:>18} {:>17} {:>19} {:>8.2}%",
                    format!("{:.4} ± {:.3}", p.perplexity, p.perplexity_stderr),
                    format!(
                        "{:+.2} ± {:.2} %",
                        p.perplexity_delta_pct, p.perplexity_delta_stderr_pct
                    ),
                    format!("{:.5} ± {:.5}", k.mean, k.stderr),
                    p.divergence.same_top_token_pct
                ));
            }
            if let Some(error) = result.mean_layer_error() {
                row.push_str(&format!(" {error:>12.2e}"));
            }
            if result.perplexity.as_ref().is_some_and(|p| p.on_frontier) {
                row.push_str("  *");
            }
            out.push_str(&format!("{row}\n"));
        }
        if layers {
            out.push_str(
                "\nLayer error: mean over the layers of Σ (w − ŵ)² / Σ w²; each layer is in the \
                 JSON document\n",
            );
        }
        if let Some(on) = &self.measured_on {
            out.push_str(&format!(
                "\n* no other model here is both smaller and better\n\
                 Measured on {}, {} tokens scored in {} windows of {}\n",
                on.dataset, on.tokens_scored, on.windows, on.window
            ));
        }
        out
    }
}
