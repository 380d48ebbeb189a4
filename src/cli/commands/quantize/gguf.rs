//! `quantize MODEL gguf`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::dynamic::Text;
use super::{dynamic, quality};
use crate::base::progress::{NullProgress, Progress};
use crate::base::size::human_bytes;
use crate::base::suggest::did_you_mean;
use crate::cli::args::quantize::{GgufArgs, QuantizeArgs, SensitivityArg};
use crate::cli::bars::Bars;
use crate::cli::commands::kept::Kept;
use crate::cli::output::{Report, cost_rows, grouped};
use crate::cli::{Context, Failure, early, interrupt, models};
use crate::files::gguf::Value;
use crate::files::imatrix::ImportanceMatrix;
use crate::job::Checkpoints;
use crate::job::gguf::mix::{Overrides, parse_type};
use crate::job::gguf::{
    GgufModel, Goal, Level, QuantizePlan, QuantizeReport, QuantizeRequest, SourceOptions,
    check_config, execute, plan,
};
use crate::{Error, Result};

pub(super) fn run(args: &QuantizeArgs, own: &GgufArgs, context: &Context) -> Result<(), Failure> {
    let began = Instant::now();
    refuse_idle(args, own, context)?;
    let profile = dynamic::profile(own, context)?;
    if profile.is_none() {
        // A level that does not exist is refused before anything is downloaded.
        own.quant_level.as_deref().map(level).transpose()?;
    }
    let overrides = overrides(own)?;
    let override_kv =
        own.file.override_kv.iter().map(|text| parse_override(text)).collect::<Result<_>>()?;
    refuse_early(args, own)?;
    let progress = Bars::new(&context.output);
    if profile.is_some() {
        progress.note(&format!("Loading model: {}", args.model));
    }
    let importance = importance(own, profile.is_some(), &progress)?;
    let options = SourceOptions {
        pre: own.file.pre.clone(),
        provenance: !own.file.no_provenance,
        override_kv,
    };
    let open = |located: &models::Located| {
        quality::check(&args.quality, &located.path)?;
        let mut model = crate::job::gguf::open(&located.path, &options)?;
        if let Some(name) = &located.name {
            model.name.clone_from(name);
        }
        Ok::<_, Error>(model)
    };
    let judge = |located: &models::Located| {
        let model = open(located)?;
        let goal = dynamic::goal(own, profile.as_ref(), &model)?;
        if reads_weights(own) {
            return Ok(());
        }
        let request = QuantizeRequest {
            overrides: overrides.clone(),
            importance: importance.clone(),
            // Which run it is follows from the weights.
            checkpoints: Checkpoints::Off,
            ..request(args, own, context, &model, goal, profile.is_some())
        };
        let plan = plan::plan(&model, &request, &NullProgress)?;
        refuse_idle_plan(&plan)?;
        execute::refuse_plan(&model, &plan, &[], &request)?;
        execute::refuse_size(&plan, &request, 0)
    };
    let located = if args.dry_run && !reads_weights(own) {
        models::outline(&args.model, &args.hub, context, &check_config, &progress)?
    } else {
        if args.dry_run && models::is_remote(&args.model) {
            progress.note("This plan is made by measuring the weights, which takes all of them");
        }
        models::locate_if(&args.model, &args.hub, context, &check_config, &judge, &progress)?
    };
    let path = located.path.clone();
    let model = open(&located).map_err(|error| located.explain(error))?;
    let goal = dynamic::goal(own, profile.as_ref(), &model)?;
    context.given.refuse(
        "for a profile without a target",
        &[("sensitivity", goal == Goal::Rules, "its assignments decide by themselves")],
    )?;
    if profile.is_some() && importance.is_none() {
        progress.note("No importance matrix: all columns count the same (see --imatrix)");
    }
    interrupt::watch();
    let mut request = QuantizeRequest {
        dynamic: dynamic::request((own, &args.hub), profile.clone(), &path, context, &progress)?,
        overrides,
        importance,
        ..request(args, own, context, &model, goal, profile.is_some())
    };
    if !located.has_weights() {
        // Which run it is follows from the weights.
        request.checkpoints = Checkpoints::Off;
    } else if !args.dry_run {
        let kept = Kept::new(&args.checkpoints, &request.output, context, &progress)?;
        request.resume_command = kept.resume_command();
        request.checkpoints = kept.into();
    }
    let mut plan = plan::plan(&model, &request, &progress)?;
    refuse_idle_plan(&plan)?;
    let replaced = replaced(&plan, &request);
    plan.warnings.extend(replaced);
    dynamic::announce(profile.as_ref(), goal, &model, &plan, &progress);
    let source = source_files(&path);
    if args.dry_run {
        execute::refuse_plan(&model, &plan, &source, &request)?;
        plan.warnings.extend(execute::shortage(&plan, &request));
        plan.warnings.extend(located.shortage());
        context.output.result(&QuantizeReport::planned(&model, &plan, &request));
        return Ok(());
    }
    plan.warnings.iter().for_each(|warning| progress.warn(warning));
    execute::refuse(&model, &plan, &source, &request, &progress)?;
    let outcome = execute::execute(&model, &plan, &request, &progress)?;
    let seconds = began.elapsed().as_secs_f64();
    let report = QuantizeReport::finished(&model, &plan, &request, &outcome, seconds);
    let quality = quality::after(
        args,
        measured_text(own),
        (&path, Path::new(&report.output_path)),
        context,
        &progress,
    )?;
    complete(&report, &progress);
    quality::finish(&report, quality, context)
}

/// The last line, with the bits of the whole file; and those of its tensors, which a profile counts.
fn complete(report: &QuantizeReport, progress: &Bars) {
    let bits = report.bits_per_weight;
    if let Some(alone) = report.tensor_bpw {
        progress.detail(&format!(
            "Tensors: {alone:.2} bpw, which is what a profile's target counts; with headers and \
             tokenizer: {bits:.2} bpw"
        ));
    }
    progress.complete(&report.output_path, report.file_size, &format!(", {bits:.2} bpw"));
}

/// What can be refused before anything is opened.
fn refuse_early(args: &QuantizeArgs, own: &GgufArgs) -> Result<()> {
    dynamic::check_target(own)?;
    quality::check_options(&args.quality, measured_text(own))?;
    early::output_folder(&args.output.output_dir)?;
    early::resume(args.checkpoints.resume.as_deref())?;
    early::text(own.calibration_data.as_deref(), None)?;
    early::model(&args.model)
}

/// The importance matrix, if one is given.
fn importance(
    own: &GgufArgs,
    dynamic: bool,
    progress: &dyn Progress,
) -> Result<Option<ImportanceMatrix>> {
    let Some(path) = &own.types.imatrix else { return Ok(None) };
    if dynamic {
        progress.note(&format!("Loading importance matrix: {}", path.display()));
    }
    ImportanceMatrix::open(path).map(Some)
}

/// Files that are there already, as warnings.
fn replaced(plan: &QuantizePlan, request: &QuantizeRequest) -> Vec<String> {
    let there = plan.layout.files().iter().map(|file| file.path(&request.output));
    there
        .filter(|path| path.is_file())
        .map(|path| format!("{} exists and is replaced", path.display()))
        .collect()
}

/// Whether types are chosen by a look at the weights.
fn reads_weights(own: &GgufArgs) -> bool {
    let (types, dynamic) = (&own.types, &own.dynamic);
    types.target_size.is_some()
        || types.target_bpw.is_some()
        || dynamic::asked(own)
        || dynamic.protect_super_weights
        || dynamic.sensitivity == SensitivityArg::Measured
}

/// What is asked for, apart from what is read from files.
fn request(
    args: &QuantizeArgs,
    own: &GgufArgs,
    context: &Context,
    model: &GgufModel,
    goal: Goal,
    dynamic: bool,
) -> QuantizeRequest {
    let kept = Kept::stated(&args.checkpoints, context);
    QuantizeRequest {
        goal,
        dynamic: None,
        protection_coverage: dynamic::coverage(own),
        overrides: Overrides::default(),
        importance: None,
        allow_requantize: own.types.allow_requantize,
        provenance: !own.file.no_provenance,
        output: args.output.output_dir.join(output_name(args, model, goal, dynamic)),
        split_max: own.file.split_max_size,
        resume_command: kept.resume_command(),
        checkpoints: kept.into(),
    }
}

/// Options that mean nothing beside others: named, never ignored.
fn refuse_idle(args: &QuantizeArgs, own: &GgufArgs, context: &Context) -> Result<()> {
    // Text to measure sensitivity on, or the result.
    let measured = own.dynamic.sensitivity == SensitivityArg::Measured;
    let silent = !(measured || args.quality.quality_report);
    let text = "text is read for --quality-report and --sensitivity measured; importance is given with \
                --imatrix";
    context.given.refuse(
        "for gguf",
        &[("calibration-data", silent, text), ("calibration-samples", silent, text)],
    )?;
    context.given.refuse_hub(&args.hub, &[&args.model], !silent)
}

/// The text that the result is measured with; not the one on which types were chosen.
fn measured_text(own: &GgufArgs) -> Text<'_> {
    let chosen_on_it = own.dynamic.sensitivity == SensitivityArg::Measured;
    Text {
        data: own.calibration_data.as_deref().filter(|_| !chosen_on_it),
        samples: own.calibration_samples,
    }
}

/// Options that decide about no tensor of this model.
fn refuse_idle_plan(plan: &QuantizePlan) -> Result<()> {
    match plan.idle_options.first() {
        None => Ok(()),
        Some(idle) => Err(Error::InvalidArgument(idle.clone())),
    }
}

/// The level of that name, for a person who may have meant `dynamic`.
fn level(text: &str) -> Result<Level> {
    Level::parse(text).map_err(|error| match did_you_mean(text, ["dynamic"]) {
        none if none.is_empty() => error,
        hint => Error::InvalidArgument(format!("{text} is not a GGUF level{hint}")),
    })
}

fn overrides(own: &GgufArgs) -> Result<Overrides> {
    let types = &own.types;
    let mut overrides = Overrides::default();
    overrides.output = types.output_tensor_type.as_deref().map(parse_type).transpose()?;
    overrides.embedding = types.token_embedding_type.as_deref().map(parse_type).transpose()?;
    overrides.pure = types.pure;
    overrides.leave_output = types.leave_output_tensor;
    for text in &types.tensor_type {
        overrides.add(text)?;
    }
    if types.pure && (own.quant_level.is_none() || dynamic::asked(own)) {
        return Err(Error::InvalidArgument("--pure goes with --quant-level".into()));
    }
    Ok(overrides)
}

/// Reads `KEY=TYPE:VALUE`. Integers become u32, as in llama.cpp.
fn parse_override(text: &str) -> Result<(String, Value)> {
    let wrong = |what: &str| {
        Error::InvalidArgument(format!(
            "--override-kv {text}: {what}; KEY=int:N, KEY=float:X, KEY=bool:true and KEY=str:TEXT \
             are understood"
        ))
    };
    let (key, rest) = text.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    let (kind, value) = rest.split_once(':').ok_or_else(|| wrong("there is no type"))?;
    if key.is_empty() {
        return Err(wrong("there is no key"));
    }
    let value = match kind {
        "int" => value.parse().map(Value::U32).map_err(|_| wrong("not a number from 0 to 2^32"))?,
        "float" => value.parse().map(Value::F32).map_err(|_| wrong("not a number"))?,
        "bool" => value.parse().map(Value::Bool).map_err(|_| wrong("neither true nor false"))?,
        "str" => Value::String(value.into()),
        _ => return Err(wrong("an unknown type")),
    };
    Ok((key.into(), value))
}

/// `--output-name`, else the last part of the model's name, without the level that it may end in, and
/// the level; always with the extension.
fn output_name(args: &QuantizeArgs, model: &GgufModel, goal: Goal, dynamic: bool) -> String {
    let stem = args.output.output_name.clone().unwrap_or_else(|| {
        let name = model.name.rsplit(['/', '\\']).next().unwrap_or(&model.name);
        let name = without_level(name);
        match goal {
            _ if dynamic => format!("{name}-dynamic"),
            Goal::Level(level) => format!("{name}-{}", level.name()),
            Goal::Bytes(bytes) => format!("{name}-{}MB", bytes >> 20),
            Goal::BitsPerWeight(bits) => format!("{name}-{bits}bpw"),
            Goal::TensorBits(_) | Goal::Loss(_) | Goal::Rules => format!("{name}-dynamic"),
        }
    });
    let whole = Path::new(&stem).extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if whole { stem } else { format!("{stem}.gguf") }
}

/// `model-Q8_0` → `model`: the new file has another level.
fn without_level(name: &str) -> &str {
    let Some((front, end)) = name.rsplit_once(['-', '.']) else { return name };
    let is_level = Level::all().any(|level| level.name().eq_ignore_ascii_case(end));
    let known = is_level || end.eq_ignore_ascii_case("dynamic");
    if known && !front.is_empty() { front } else { name }
}

/// The GGUF files that a model at `path` lies in, which must not be written over: the file itself
/// and the other parts of a split one.
fn source_files(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_path_buf()];
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = name
        .rsplit_once("-of-")
        .and_then(|(front, count)| Some((front.rsplit_once('-')?.0, format!("-of-{count}"))));
    if let (Some((stem, end)), Some(folder)) = (part, path.parent()) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{stem}-")) && name.ends_with(&end)
        }));
    }
    files
}

impl QuantizeReport {
    /// Of a plan every tensor, of a dynamic quantization every layer. What is read first stands
    /// last: these may be longer than the screen.
    fn tables(&self) -> String {
        let mut out = String::new();
        if !self.tensors.is_empty() {
            out.push_str(&format!(
                "{:<40} {:<20} {:>6}    {:<8} {:>14}  {}\n",
                "Tensor", "Shape", "From", "To", "Bytes", "Why"
            ));
        }
        for tensor in &self.tensors {
            let why = match tensor.instead_of {
                Some(meant) => format!("{}, instead of {meant}", tensor.reason),
                None => tensor.reason.clone(),
            };
            out.push_str(&format!(
                "{:<40} {:<20} {:>6} → {:<8} {:>14}  {why}\n",
                tensor.name,
                format!("{:?}", tensor.shape),
                tensor.source_type,
                tensor.kind,
                grouped(tensor.bytes)
            ));
        }
        if !self.tensors.is_empty() {
            out.push('\n');
        }
        if !self.layer_summary.is_empty() {
            out.push_str(&format!("{:<24} {:>14} {:>7}\n", "Layer", "Parameters", "Bits"));
        }
        for layer in &self.layer_summary {
            let held = if layer.is_protected { "  protected" } else { "" };
            out.push_str(&format!(
                "{:<24} {:>14} {:>7.2}{held}\n",
                layer.layer_name,
                grouped(layer.parameter_count),
                layer.bit_width
            ));
        }
        if !self.layer_summary.is_empty() {
            out.push('\n');
        }
        out
    }
}

impl Report for QuantizeReport {
    fn human(&self) -> String {
        let planned = self.status == "planned";
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row(if planned { "Would write:" } else { "Output:" }, self.output_path.clone());
        if self.files.len() > 1 {
            row("Files:", self.files.len().to_string());
        }
        row("Level:", self.quantization_level.clone());
        if let Some(profile) = &self.profile {
            row("Profile:", profile.clone());
        }
        row(
            "Size:",
            format!("{} ({} bytes)", human_bytes(self.file_size), grouped(self.file_size)),
        );
        let alone = self.tensor_bpw.map_or(String::new(), |bits| {
            format!(" of the whole file, {bits:.4} of its tensors alone (a profile's target)")
        });
        row("Bits per weight:", format!("{:.4}{alone}", self.bits_per_weight));
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
        for (i, count) in self.tensor_types.iter().enumerate() {
            row(
                if i == 0 { "Types:" } else { "" },
                format!(
                    "{:<8} {:>5} tensors {:>10}",
                    count.kind,
                    count.tensors,
                    human_bytes(count.bytes)
                ),
            );
        }
        if let Some(matrix) = &self.imatrix {
            row("Importance:", format!("{}, used for {} tensors", matrix.path, matrix.used));
        }
        if let Some(found) = &self.super_weights {
            row(
                "Super weights:",
                format!(
                    "{} protected in {} tensors",
                    grouped(found.total_protected),
                    found.tensors.len()
                ),
            );
        }
        if planned {
            for warning in &self.warnings {
                out.push_str(&format!("Warning: {warning}\n"));
            }
            return format!("{}{out}", self.tables());
        }
        if self.resumed_tensors > 0 {
            row("Resumed:", format!("{} tensors were finished already", self.resumed_tensors));
        }
        if let Some(hash) = &self.sha256 {
            row("SHA-256:", hash.clone());
        }
        out.push_str(&cost_rows(self.duration_seconds, self.peak_memory_bytes));
        format!("{}{out}", self.tables())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_the_level_they_had() {
        for (name, stem) in [
            ("model-Q8_0", "model"),
            ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct"),
            ("m-bf16", "m"),
            ("m-dynamic", "m"),
            ("Llama-3.2-1B", "Llama-3.2-1B"),
            ("Q8_0", "Q8_0"),
            ("-F16", "-F16"),
        ] {
            assert_eq!(without_level(name), stem);
        }
    }

    #[test]
    fn metadata_values_have_a_type() {
        let read = |text| parse_override(text).unwrap();
        assert_eq!(read("a.b=int:7"), ("a.b".into(), Value::U32(7)));
        assert_eq!(read("a=float:-0.5"), ("a".into(), Value::F32(-0.5)));
        assert_eq!(read("a=bool:true"), ("a".into(), Value::Bool(true)));
        assert_eq!(read("a=str:x=y:z"), ("a".into(), Value::String("x=y:z".into())));
        for bad in ["a", "a=7", "=int:7", "a=int:-7", "a=int:x", "a=bool:yes", "a=list:1"] {
            assert_eq!(parse_override(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
