//! The whole run: check, calibrate, quantize block after block, write as they come, verify.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use indexmap::IndexMap;
use sha2::{Digest, Sha256};

use super::card;
use super::finished::{Finished, LayerReport, Levels};
use super::plan::PackedPlan;
use super::preflight::{activation_bytes, memory_needed, refuse};
use super::report::{CalibrationReport, PackedReport};
use super::request::{Method, PackedRequest, SAMPLE_TOKENS};
use super::store::Store;
use super::work::{Text, Work, block_unit};
use crate::arch::ModelConfig;
use crate::base::progress::Progress;
use crate::codec::affine::gptq::Version;
use crate::device::{Backend, memory};
use crate::files::checkpoint::{Fingerprint, hexadecimal};
use crate::files::model_directory::{
    DEFAULT_SHARD_BYTES, DirectoryWriter, SideFile, WrittenDirectory,
};
use crate::files::packed::{
    AwqConfig, GptqConfig, QuantizationConfig, W8A8Config, awq, gptq, w8a8,
};
use crate::graph::Decoder;
use crate::job::checkpoints::Checkpoints;
use crate::model::LocalModel;
use crate::model::companions::{companions, config_with};
use crate::model::identity::identity;
use crate::text::documents::{ChatRenderer, Coverage, DocumentFile};
use crate::text::{CalibrationWindows, options};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::ChatMessage;
use crate::weight::{StoredTensor, Weight};
use crate::{Error, Result};

/// Values of a tensor that are converted at a time.
const VALUES_AT_A_TIME: usize = 1 << 22;
/// Text that is read of a file for each token wanted, and for all of them at least and at most,
/// bytes: windows are spread over more than they use.
const BYTES_PER_TOKEN: usize = 16;
const LEAST_TEXT: usize = 1 << 20;
const MOST_TEXT: usize = 256 << 20;

/// Tokens of a calibration sample for a model.
#[must_use]
pub(crate) fn sample_tokens(model: &LocalModel) -> usize {
    SAMPLE_TOKENS.min(model.config.max_positions).max(2)
}

/// Quantizes `model` into `request.output`.
///
/// # Errors
/// Those of `refuse`; [`Error::Calibration`], [`Error::Checkpoint`], [`Error::Io`],
/// [`Error::SmoothQuant`]; [`Error::Interrupted`] when the user asks to stop.
pub(crate) fn execute(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<PackedReport> {
    let began = Instant::now();
    refuse(model, plan, request, progress)?;
    let metadata = IndexMap::from([("method".to_owned(), request.method.name().to_owned())]);
    let mut writer = DirectoryWriter::create(
        &request.output,
        plan.slots.clone(),
        DEFAULT_SHARD_BYTES,
        metadata,
    )?;
    let (windows, calibration) = windows(model, request, progress)?;
    let source = identity(&model.path, progress)?;
    let fingerprint = fingerprint(model, source, plan, request, backend, windows.as_ref());
    let store = Store::open(request, &fingerprint, progress)?;
    let resumed = store.finished();
    let asked = matches!(request.checkpoints, Checkpoints::Resume(_));
    store.announce(resumed, model.config.num_layers, asked, progress);

    let decoder = Decoder::new(model, backend)?;
    let text = match windows {
        Some(windows) => {
            let bytes = activation_bytes(model, request);
            let folder = request.output.parent().filter(|folder| !folder.as_os_str().is_empty());
            let needed = memory_needed(model, plan, request, Some(bytes));
            let scratch =
                (needed > memory::available_bytes() / 2).then(|| folder.unwrap_or(Path::new(".")));
            if scratch.is_some() {
                progress.note("Activations are kept in a scratch file");
            }
            let keep = matches!(request.method, Method::Gptq(_));
            Some(Text::new(windows, &decoder, keep, scratch)?)
        }
        None => None,
    };
    let mut work = Work { model, plan, request, backend, decoder, text, store: &store, progress };
    let mut layers = Vec::new();
    progress.start("Quantizing", model.config.num_layers as u64, "layers");
    let mut slots = plan.slots.iter().peekable();
    for index in 0..model.config.num_layers {
        if progress.stop_requested() {
            return Err(work.interrupted());
        }
        let prefix = format!("model.layers.{index}.");
        while let Some(slot) = slots.next_if(|slot| !slot.name.starts_with("model.layers.")) {
            put_plain(&mut writer, model, plan, &slot.name)?;
        }
        let restored = store.has(&block_unit(index));
        let finished = work.block(index)?;
        describe(index, &finished.reports, progress);
        let mut tensors = tensors(index, &finished, plan, request)?;
        while let Some(slot) = slots.next_if(|slot| slot.name.starts_with(&prefix)) {
            match tensors.remove(&slot.name) {
                Some(bytes) => writer.put(&slot.name, &bytes)?,
                None => put_plain(&mut writer, model, plan, &slot.name)?,
            }
        }
        layers.extend(finished.reports);
        if restored {
            progress.resumed(1);
        } else {
            progress.advance(1);
        }
    }
    progress.finish();
    for slot in slots {
        put_plain(&mut writer, model, plan, &slot.name)?;
    }
    let mut report = PackedReport::new(model, plan, request);
    report.resumed_layers = resumed;
    report.calibration = calibration;
    report.layers = layers;
    report.summarize();
    let written = writer.finish(&side_files(model, plan, request, &report)?)?;
    verify(&written, model)?;
    store.finish()?;
    report.finish(&written, began.elapsed().as_secs_f64());
    Ok(report)
}

impl Work<'_> {
    /// The error of a run that was asked to stop.
    pub(super) fn interrupted(&self) -> Error {
        let resume = self.request.resume_command.clone().filter(|_| self.store.survives());
        Error::Interrupted { resume }
    }
}

/// Calibration windows, unless nothing is to be calibrated.
fn windows(
    model: &LocalModel,
    request: &PackedRequest,
    progress: &dyn Progress,
) -> Result<(Option<CalibrationWindows>, Option<CalibrationReport>)> {
    if request.samples == 0 {
        return Ok((None, None));
    }
    let length = sample_tokens(model);
    let tokenizer = model.tokenizer()?;
    let tokens = request.samples * length;
    let (name, documents) = documents(request, &tokenizer, tokens, progress)?;
    let windows =
        CalibrationWindows::sample(&documents, &tokenizer, request.samples, length, request.seed)?;
    if windows.count() < request.samples {
        progress.warn(&format!(
            "{} gives {} of {} calibration samples of {length} tokens",
            name,
            windows.count(),
            request.samples
        ));
    }
    let mut hash = Sha256::new();
    windows.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    let report = CalibrationReport {
        dataset: name,
        samples: windows.count(),
        tokens: windows.tokens.len() as u64,
        tokens_sha256: hexadecimal(&hash.finalize()),
    };
    Ok((Some(windows), Some(report)))
}

/// The text to calibrate on, with its name. A file of the user's is used whole: nothing is measured
/// on it.
fn documents(
    request: &PackedRequest,
    tokenizer: &Tokenizer,
    tokens: usize,
    progress: &dyn Progress,
) -> Result<(String, Vec<String>)> {
    let Some(path) = &request.text.calibration else {
        let text = options::open_text(&request.text, tokenizer, tokens, Some(1), progress)?;
        return Ok((text.name, text.calibration));
    };
    let render = tokenizer
        .chat_template()
        .map(|template| |messages: &[ChatMessage]| template.render(messages, false));
    let file = DocumentFile::open(path, render.as_ref().map(|render| render as ChatRenderer<'_>))?;
    let limit = tokens.saturating_mul(BYTES_PER_TOKEN).clamp(LEAST_TEXT, MOST_TEXT);
    let name =
        path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok((name, file.read(Coverage::Spread, limit)?))
}

/// Everything that decides the bytes of the result.
fn fingerprint(
    model: &LocalModel,
    source: String,
    plan: &PackedPlan,
    request: &PackedRequest,
    backend: &Backend,
    windows: Option<&CalibrationWindows>,
) -> Fingerprint {
    let mut hash = Sha256::new();
    for token in windows.iter().flat_map(|windows| &windows.tokens) {
        hash.update(token.to_le_bytes());
    }
    let length = windows.map_or(0, |windows| windows.length);
    Fingerprint::new(&model.name)
        .with("version", env!("CARGO_PKG_VERSION"))
        .with("command", format!("quantize {}", request.method.name()))
        .with("source", source)
        .with("method", format!("{:?}", request.method))
        .with("group size", plan.group.map_or("row".to_owned(), |group| group.to_string()))
        .with("calibration samples", windows.map_or(0, CalibrationWindows::count))
        .with("calibration length", length)
        .with("calibration tokens sha256", hexadecimal(&hash.finalize()))
        .with("device", backend.describe())
}

fn describe(index: usize, reports: &[LayerReport], progress: &dyn Progress) {
    for report in reports {
        let figure = match (report.sqnr_db, report.relative_error) {
            (Some(decibels), _) => format!("{decibels:.1} dB"),
            (None, Some(error)) => format!("relative error {error:.5}"),
            (None, None) => "rounded to nearest".to_owned(),
        };
        progress.verbose(&format!("{}: {figure}", report.name));
    }
    let errors: Vec<f64> = reports.iter().filter_map(|report| report.relative_error).collect();
    if !errors.is_empty() {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        progress.detail(&format!("Layer {index}: relative error {mean:.5}"));
    }
}

/// The packed tensors of a block, its norms and biases, by name.
fn tensors(
    index: usize,
    finished: &Finished,
    plan: &PackedPlan,
    request: &PackedRequest,
) -> Result<HashMap<String, Vec<u8>>> {
    let mut tensors = HashMap::new();
    for (linear, (levels, bias)) in finished.linears.iter().zip(&finished.biases).enumerate() {
        let layer = ModelConfig::module_name(index, &plan.layout.slots[linear].name);
        let mut add = |suffix: &str, bytes: &[u8]| {
            tensors.insert(format!("{layer}.{suffix}"), bytes.to_vec());
        };
        match (levels, request.method) {
            (Levels::Groups(grouped), Method::Awq) => {
                let packed = awq::pack(grouped)?;
                packed.parts().into_iter().for_each(|part| add(part.suffix, &part.bytes));
            }
            (Levels::Groups(grouped), _) => {
                let packed = gptq::pack(grouped)?;
                packed.parts().into_iter().for_each(|part| add(part.suffix, &part.bytes));
            }
            (Levels::Rows(rows), _) => {
                let packed = w8a8::pack(rows, plan.plain_dtype())?;
                packed.parts().into_iter().for_each(|part| add(part.suffix, &part.bytes));
            }
        }
        if let Some(bias) = bias {
            tensors.insert(format!("{layer}.bias"), plan.plain.bytes(bias));
        }
    }
    let mut norm = |name: &str, values: &[f32]| {
        let name = format!("model.layers.{index}.{name}.weight");
        tensors.insert(name, plan.plain.bytes(values));
    };
    for (name, values) in plan.layout.norms.iter().zip(&finished.norms) {
        norm(name, values);
    }
    Ok(tensors)
}

/// Writes a tensor that is not packed, some rows at a time.
fn put_plain(
    writer: &mut DirectoryWriter,
    model: &LocalModel,
    plan: &PackedPlan,
    name: &str,
) -> Result<()> {
    let Some(Weight::Stored(tensor)) = model.weights.get(name) else {
        return Err(Error::model_not_found(format!("the model has no tensor {name}")));
    };
    let tensor: &StoredTensor = tensor;
    if tensor.shape.len() < 2 {
        let values = tensor.to_f32();
        let length = values.len();
        let ordered: Vec<f32> =
            (0..length).map(|at| values[tensor.row_order.file_row(at, length)]).collect();
        return writer.put(name, &plan.plain.bytes(&ordered));
    }
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let step = (VALUES_AT_A_TIME / cols.max(1)).clamp(1, rows.max(1));
    let mut values = Vec::new();
    for from in (0..rows).step_by(step) {
        let to = rows.min(from + step);
        values.resize((to - from) * cols, 0.0);
        tensor.read_rows(from..to, &mut values);
        writer.append(name, &plan.plain.bytes(&values))?;
    }
    tensor.bytes.release();
    Ok(())
}

/// What readers need to know about the packed layers.
fn quantization_config(plan: &PackedPlan, request: &PackedRequest) -> QuantizationConfig {
    match request.method {
        Method::Gptq(settings) => QuantizationConfig::Gptq(GptqConfig {
            bits: settings.bits,
            group: plan.group,
            symmetric: settings.symmetric,
            desc_act: settings.desc_act,
            version: Version::V1,
            damp_percent: settings.damping,
            static_groups: settings.extras.static_groups && !settings.desc_act,
            true_sequential: true,
            dynamic: serde_json::Map::new(),
        }),
        Method::Awq => {
            QuantizationConfig::Awq(AwqConfig { group: plan.group, not_converted: Vec::new() })
        }
        Method::SmoothQuant(_) => {
            QuantizationConfig::W8A8(W8A8Config { ignore: vec!["lm_head".into()] })
        }
    }
}

fn side_files(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    report: &PackedReport,
) -> Result<Vec<SideFile>> {
    let quantization = quantization_config(plan, request).to_json();
    let config = config_with(model, Some(&quantization), Some(plan.plain.torch_name()))?;
    let mut files = vec![SideFile::text("config.json", config)];
    if matches!(request.method, Method::Gptq(_)) {
        files.push(SideFile::text("quantize_config.json", format!("{quantization:#}\n")));
    }
    files.push(SideFile::text("README.md", card::card(model, plan, request, report)));
    files.extend(companions(model)?);
    Ok(files)
}

/// The writer has compared every byte; this asks whether all layers are there by name.
fn verify(written: &WrittenDirectory, model: &LocalModel) -> Result<()> {
    if written.files.is_empty() || model.config.num_layers == 0 {
        return Err(Error::damaged(&written.path, "nothing was written"));
    }
    Ok(())
}
