//! `info MODEL`: shape, size and health of a model.

use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;
use serde::Serialize;

use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::InfoArgs;
use crate::cli::bars::Bars;
use crate::cli::output::{Report, grouped};
use crate::cli::{Context, Failure, models};
use crate::files::detect::{self, PathKind};
use crate::files::imatrix::ImportanceSums;
use crate::files::packed::runtimes::Runtimes;
use crate::files::safetensors;
use crate::job::gguf::{GgufModel, GgufTensor, Level, SourceOptions, first_non_finite};
use crate::job::profile::Profile;
use crate::model::{self, LocalModel, ModelFormat, gguf_parts};
use crate::weight::Weight;
use crate::{Error, Result, job};

#[derive(Debug, Serialize)]
struct InfoReport {
    model_name: String,
    path: String,
    format: &'static str,
    architecture: String,
    parameter_count: u64,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    torch_dtype: String,
    /// Bytes of the files that hold the weights.
    size_bytes: u64,
    /// Bytes of the tensors in them.
    weight_bytes: u64,
    /// Tensors with NaN or Inf; `null` when the weights were not read.
    non_finite: Option<Vec<NonFinite>>,
    /// The level that a GGUF file names.
    file_type: Option<String>,
    tensor_types: Vec<TypeRow>,
    /// What can load it.
    runtimes: Vec<String>,
    /// With `--tensors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

#[derive(Debug, Serialize)]
struct NonFinite {
    tensor: String,
    first_index: usize,
    value: String,
}

#[derive(Debug, Serialize)]
struct TypeRow {
    r#type: String,
    tensors: usize,
    weights: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    r#type: String,
    shape: Vec<usize>,
    bytes: u64,
}

pub(crate) fn run(args: &InfoArgs, context: &Context) -> Result<(), Failure> {
    context.given.refuse_hub(&args.hub, &[&args.model], false)?;
    let progress = Bars::new(&context.output);
    // Everything that `quantize` takes can be looked at.
    let check = |config: &Path| {
        model::hf::check_supported(config).or_else(|_| job::gguf::check_config(config))
    };
    // Without a scan the headers say everything.
    let located = if args.skip_scan {
        models::outline(&args.model, &args.hub, context, &check, &progress)?
    } else {
        let judge = |located: &models::Located| match model::open_local(&located.path) {
            // It can still be looked at.
            Err(Error::Unsupported { .. }) => Ok(()),
            judged => judged.map(drop),
        };
        models::locate_if(&args.model, &args.hub, context, &check, &judge, &progress)?
    };
    let path = located.path.clone();
    let kind = detect::path_kind(&path)?;
    let is_gguf = kind == PathKind::Gguf;
    let mut report = match model::open_local(&path) {
        Ok(model) => of_model(&model, is_gguf, args, &progress)?,
        // A model of an architecture that this crate does not run can still be looked at.
        Err(error) => match (other_file(&path), kind, &error) {
            (Some(other), ..) => return Err(other.into()),
            (None, PathKind::Gguf, Error::Unsupported { .. }) => of_gguf(&path, args, &progress)?,
            (None, PathKind::Directory, Error::Unsupported { .. })
                if check(&path.join("config.json")).is_ok() =>
            {
                of_directory(&path, args, &progress)?
            }
            _ => return Err(located.explain(error).into()),
        },
    };
    if let Some(name) = &located.name {
        report.model_name.clone_from(name);
    }
    report.path = located.shown().display().to_string();
    context.output.result(&report);
    Ok(())
}

/// What looks at a file that is no model, if it is one of this program's or of llama.cpp's.
fn other_file(path: &Path) -> Option<Error> {
    /// Profiles are a few kilobytes.
    const LARGEST_PROFILE: u64 = 16 << 20;
    let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let shown = path.display();
    let refusal = |what: &str, suggestion: String| {
        Some(Error::Unsupported { message: format!("{shown} is {what}, not a model"), suggestion })
    };
    if ImportanceSums::open(path).is_ok() {
        return refusal(
            "an importance matrix",
            format!(
                "`llm-quantize analyze {shown}` shows it, and `llm-quantize quantize MODEL gguf \
                 --imatrix {shown}` uses it"
            ),
        );
    }
    let text = (metadata.len() <= LARGEST_PROFILE).then(|| std::fs::read_to_string(path).ok());
    let text = text.flatten()?;
    if Profile::parse(&text, &shown.to_string()).is_ok() {
        return refusal(
            "a profile",
            format!(
                "`llm-quantize profile show {shown}` shows it, and `llm-quantize quantize MODEL gguf \
                 -q dynamic --profile {shown}` uses it"
            ),
        );
    }
    None
}

/// Of a model that this crate can run.
fn of_model(
    model: &LocalModel,
    is_gguf: bool,
    args: &InfoArgs,
    progress: &dyn Progress,
) -> Result<InfoReport> {
    model.warnings.iter().for_each(|warning| progress.warn(warning));
    // A GGUF file with binary factors is what the .littlebit file in it is.
    let with_factors = is_gguf && model.format == ModelFormat::LittleBit;
    let tensors = if is_gguf && !with_factors {
        gguf_tensors(&job::gguf::open(&model.path, &SourceOptions::default())?)
    } else {
        model.weights.iter().map(|(name, weight)| weight_row(name, weight)).collect()
    };
    let tensor_types = histogram(&tensors);
    Ok(InfoReport {
        parameter_count: model.parameter_count(),
        size_bytes: files_bytes(&model.path, model.format)?,
        weight_bytes: model.weight_bytes(),
        path: model.path.display().to_string(),
        format: if with_factors { "gguf-ext" } else { model.format.name() },
        architecture: model.config.class_name.clone(),
        hidden_size: model.config.hidden_size,
        num_layers: model.config.num_layers,
        num_heads: model.config.num_heads,
        num_key_value_heads: model.config.num_kv_heads,
        vocab_size: model.config.vocab_size,
        max_position_embeddings: model.config.max_positions,
        torch_dtype: match (model.format, tensor_types.first()) {
            // What the weights of a GGUF file were before is not in the file.
            (ModelFormat::Gguf, Some(most)) => most.r#type.clone(),
            _ => model.config.torch_dtype.clone(),
        },
        model_name: model.name.clone(),
        non_finite: (!args.skip_scan).then(|| scan(&model.weights, progress)),
        file_type: file_type(model.format, &model.path)?,
        runtimes: runtimes(model, &tensor_types),
        tensor_types,
        tensors: args.tensors.then_some(tensors),
    })
}

/// Of a directory of any other architecture that `quantize` takes.
fn of_directory(path: &Path, args: &InfoArgs, progress: &dyn Progress) -> Result<InfoReport> {
    let survey = model::survey::survey(path)?;
    for (name, kind) in &survey.unread {
        progress.warn(&format!("{name} has element type {kind}, which is not read"));
    }
    let tensors: Vec<TensorRow> =
        survey.weights.iter().map(|(name, weight)| weight_row(name, weight)).collect();
    let tensor_types = histogram(&tensors);
    Ok(InfoReport {
        parameter_count: survey.parameter_count(),
        size_bytes: files_bytes(path, ModelFormat::HuggingFace)?,
        weight_bytes: tensors.iter().map(|row| row.bytes).sum(),
        path: path.display().to_string(),
        format: ModelFormat::HuggingFace.name(),
        architecture: survey.class_name.clone(),
        hidden_size: survey.hidden_size,
        num_layers: survey.num_layers,
        num_heads: survey.num_heads,
        num_key_value_heads: survey.num_kv_heads,
        vocab_size: survey.vocab_size,
        max_position_embeddings: survey.max_positions,
        torch_dtype: survey.torch_dtype.clone(),
        non_finite: (!args.skip_scan).then(|| scan(&survey.weights, progress)),
        file_type: None,
        runtimes: vec![
            "transformers, vLLM; `quantize gguf` makes a file for llama.cpp of it".to_owned(),
        ],
        tensor_types,
        tensors: args.tensors.then_some(tensors),
        model_name: survey.name,
    })
}

fn weight_row(name: &str, weight: &Weight) -> TensorRow {
    TensorRow {
        name: name.to_owned(),
        r#type: weight.type_name(),
        shape: weight.shape(),
        bytes: weight.stored_bytes() as u64,
    }
}

/// Of a GGUF file of any other architecture.
fn of_gguf(path: &Path, args: &InfoArgs, progress: &dyn Progress) -> Result<InfoReport> {
    let model = job::gguf::open(path, &SourceOptions::default())?;
    model.warnings.iter().for_each(|warning| progress.warn(warning));
    let mut non_finite = None;
    if !args.skip_scan {
        progress.start("Scanning", model.tensors.len() as u64, "tensors");
        let mut found = Vec::new();
        for tensor in &model.tensors {
            if let Some(bad) = first_non_finite(tensor)? {
                let first_index = bad
                    .index
                    .iter()
                    .zip(&tensor.shape)
                    .fold(0, |flat, (index, size)| flat * size + index);
                let value = bad.value.to_string();
                found.push(NonFinite { tensor: bad.tensor, first_index, value });
            }
            progress.advance(1);
        }
        progress.finish();
        non_finite = Some(found);
    }
    let tensors = gguf_tensors(&model);
    let tensor_types = histogram(&tensors);
    Ok(InfoReport {
        parameter_count: model.parameters(),
        size_bytes: files_bytes(path, ModelFormat::Gguf)?,
        weight_bytes: model.source_bytes,
        path: path.display().to_string(),
        format: ModelFormat::Gguf.name(),
        architecture: model.architecture.clone(),
        hidden_size: model.shape.hidden,
        num_layers: model.shape.layers,
        num_heads: model.shape.heads,
        num_key_value_heads: model.shape.kv_heads,
        vocab_size: model.shape.vocabulary,
        max_position_embeddings: usize::try_from(model.shape.context).unwrap_or(usize::MAX),
        torch_dtype: model.source_dtype.clone(),
        non_finite,
        file_type: file_type(ModelFormat::Gguf, path)?,
        runtimes: vec![format!("{}, if it knows the architecture", llama_cpp(&tensor_types))],
        tensor_types,
        tensors: args.tensors.then_some(tensors),
        model_name: model.name,
    })
}

/// What can load a model that this crate runs.
fn runtimes(model: &LocalModel, types: &[TypeRow]) -> Vec<String> {
    let mut runtimes = vec!["llm-quantize".to_owned()];
    match model.format {
        ModelFormat::Gguf => runtimes.push(llama_cpp(types)),
        ModelFormat::HuggingFace if model.packed().is_some() => {
            let mut of_layers = Runtimes::new(model.config.num_heads, model.config.num_kv_heads);
            for (name, weight) in &model.weights {
                if let Weight::Packed(layer) = weight {
                    of_layers.add(name, layer);
                }
            }
            runtimes.extend(of_layers.describe());
        }
        ModelFormat::HuggingFace => runtimes.push("transformers, vLLM".to_owned()),
        ModelFormat::LittleBit => {}
    }
    runtimes
}

/// llama.cpp, and what it must know that its versions before 2026 do not.
fn llama_cpp(types: &[TypeRow]) -> String {
    let new: Vec<&str> = types
        .iter()
        .map(|row| row.r#type.as_str())
        .filter(|name| matches!(*name, "Q1_0" | "Q2_0"))
        .collect();
    if new.is_empty() {
        "llama.cpp and what is built on it".to_owned()
    } else {
        format!("a llama.cpp that is new enough to know {}", new.join(" and "))
    }
}

/// Bytes of the files that hold a model's weights.
fn files_bytes(path: &Path, format: ModelFormat) -> Result<u64> {
    let files = match format {
        ModelFormat::HuggingFace => safetensors::shards(path)?,
        ModelFormat::Gguf => {
            gguf_parts::open_parts(path)?.into_iter().map(|part| part.path).collect()
        }
        ModelFormat::LittleBit => vec![path.to_path_buf()],
    };
    let bytes = |file: &std::path::PathBuf| {
        file.metadata().map(|data| data.len()).map_err(|error| Error::io(file, error))
    };
    files.iter().map(bytes).sum()
}

/// What a GGUF file calls itself.
fn file_type(format: ModelFormat, path: &Path) -> Result<Option<String>> {
    if format != ModelFormat::Gguf {
        return Ok(None);
    }
    // Of a split file only the first part has the metadata.
    let parts = gguf_parts::open_parts(path)?;
    let number = parts.first().map(|part| part.u32("general.file_type")).transpose()?.flatten();
    Ok(number.map(|number| {
        Level::from_file_type(number)
            .map_or_else(|| format!("unknown ({number})"), |level| level.name().to_owned())
    }))
}

fn gguf_tensors(model: &GgufModel) -> Vec<TensorRow> {
    let row = |tensor: &GgufTensor| TensorRow {
        name: tensor.name.clone(),
        r#type: tensor.source_type.name().into(),
        shape: tensor.shape.clone(),
        bytes: tensor.source_bytes(),
    };
    model.tensors.iter().map(row).collect()
}

/// How much there is of each type, the largest part first.
fn histogram(tensors: &[TensorRow]) -> Vec<TypeRow> {
    let mut rows: Vec<TypeRow> = Vec::new();
    for tensor in tensors {
        let at = rows.iter().position(|row| row.r#type == tensor.r#type).unwrap_or_else(|| {
            rows.push(TypeRow { r#type: tensor.r#type.clone(), tensors: 0, weights: 0, bytes: 0 });
            rows.len() - 1
        });
        rows[at].tensors += 1;
        rows[at].weights += tensor.shape.iter().map(|&size| size as u64).product::<u64>();
        rows[at].bytes += tensor.bytes;
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

/// Reads every stored tensor once. Factorized layers hold only signs and scales that were checked
/// when the file was opened.
fn scan(weights: &IndexMap<String, Weight>, progress: &dyn Progress) -> Vec<NonFinite> {
    progress.start("Scanning", weights.len() as u64, "tensors");
    let weights: Vec<_> = weights.iter().collect();
    let found = weights
        .into_par_iter()
        .filter_map(|(name, weight)| {
            let found = match weight {
                Weight::Stored(tensor) => tensor.first_non_finite(),
                Weight::Factorized(_) => None,
                Weight::Packed(tensor) => tensor.first_non_finite(),
            };
            progress.advance(1);
            found.map(|(first_index, value)| NonFinite {
                tensor: name.clone(),
                first_index,
                value: value.to_string(),
            })
        })
        .collect();
    progress.finish();
    found
}

fn table(tensors: &[TensorRow]) -> String {
    let mut out = format!("{:<44} {:<14} {:<20} {:>14}\n", "Tensor", "Type", "Shape", "Bytes");
    for tensor in tensors {
        let shape = format!("{:?}", tensor.shape);
        out.push_str(&format!(
            "{:<44} {:<14} {shape:<20} {:>14}\n",
            tensor.name,
            tensor.r#type,
            grouped(tensor.bytes)
        ));
    }
    out
}

impl Report for InfoReport {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| {
            out.push_str(&format!("{label:<14}{value}\n"));
        };
        row("Model:", self.model_name.clone());
        row("Architecture:", self.architecture.clone());
        row("Parameters:", grouped(self.parameter_count));
        row("Hidden Size:", self.hidden_size.to_string());
        row("Layers:", self.num_layers.to_string());
        row(
            "Heads:",
            match self.num_key_value_heads {
                kv if kv == self.num_heads => self.num_heads.to_string(),
                kv => format!("{} ({kv} key/value)", self.num_heads),
            },
        );
        row("Vocab Size:", self.vocab_size.to_string());
        row("Context:", format!("{} tokens", self.max_position_embeddings));
        row("Dtype:", self.torch_dtype.clone());
        row("Size:", format!("{} ({})", human_bytes(self.size_bytes), self.format));
        if let Some(level) = &self.file_type {
            row("Level:", level.clone());
        }
        for (i, count) in self.tensor_types.iter().enumerate() {
            row(
                if i == 0 { "Types:" } else { "" },
                format!(
                    "{:<14} {:>5} tensors {:>10}",
                    count.r#type,
                    count.tensors,
                    human_bytes(count.bytes)
                ),
            );
        }
        row("Runs in:", self.runtimes.join("; "));
        row(
            "NaN/Inf:",
            match &self.non_finite {
                None => "not scanned".into(),
                Some(found) if found.is_empty() => "none".into(),
                Some(found) => format!("in {} tensors", found.len()),
            },
        );
        for item in self.non_finite.iter().flatten() {
            out.push_str(&format!(
                "  {}: {} at element {}\n",
                item.tensor, item.value, item.first_index
            ));
        }
        // What is read first stands last: the table may be longer than the screen.
        match &self.tensors {
            Some(tensors) => format!("{}\n{out}", table(tensors)),
            None => out,
        }
    }
}
