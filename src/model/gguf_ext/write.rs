//! From a `.littlebit` file to GGUF.

use std::path::Path;

use indexmap::IndexMap;

use super::{
    ARCHITECTURE, FILE_KEY, INDEX_KEY, VERSION, VERSION_KEY, factor_name, signs, tensor_name,
};
use crate::arch::names::size_label;
use crate::base::json;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::files::gguf::{FileLayout, GgufWriter, PlannedTensor, Value, WrittenFile};
use crate::files::littlebit::{Entry, LittleBitFile, TOKENIZER_CONFIG_FILE};
use crate::files::space;
use crate::weight::{Factor, Weight};
use crate::{Error, Result};

/// llama.cpp's number for files of mostly Q1_0, the type of the signs.
const FILE_TYPE: u32 = 40;

/// Writes `file` as a GGUF file to `target`, and reads it back: what it becomes again must be the
/// bytes of `file`.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, [`Error::Reconstruction`] if the bytes differ (scales on a
/// grid that is wider than they need, which this program never writes).
pub(crate) fn write(
    file: &LittleBitFile,
    target: &Path,
    progress: &dyn Progress,
) -> Result<WrittenFile> {
    let metadata = metadata(file)?;
    let tensors = plan(file);
    let layout = FileLayout::new(&metadata, &tensors, None)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    space::check_free_space(folder, layout.total_bytes())?;
    let mut writer = GgufWriter::create(target, &layout)?;
    let names = &file.contents().tensors;
    progress.start("Writing", names.len() as u64, "tensors");
    for name in names.keys() {
        if progress.stop_requested() {
            return Err(Error::Interrupted { resume: None });
        }
        match file.tensor(name)? {
            Some(Weight::Stored(tensor)) => {
                for row in 0..tensor.rows() {
                    writer.write(tensor.row_bytes(row))?;
                }
            }
            Some(Weight::Factorized(linear)) => {
                for factor in &linear.paths {
                    arrays(factor).into_iter().try_for_each(|bytes| writer.write(&bytes))?;
                }
            }
            Some(Weight::Packed(_)) | None => {
                return Err(Error::General(format!("{name} has vanished")));
            }
        }
        progress.advance(1);
    }
    progress.finish();
    let mut written = writer.finish_checked(|path| {
        if file.bytes() == super::read::restore(path, progress)?.bytes() {
            return Ok(());
        }
        Err(Error::Reconstruction(format!(
            "{} does not come back from GGUF as it is; it was written by another program",
            file.path().display()
        )))
    })?;
    written.pop().ok_or_else(|| Error::General("no file was written".into()))
}

/// Number of parameters: values, not bits.
fn parameters(file: &LittleBitFile) -> Result<u64> {
    let mut parameters = 0;
    for name in file.contents().tensors.keys() {
        parameters += file.tensor(name)?.map_or(0, |weight| weight.elements() as u64);
    }
    Ok(parameters)
}

/// The default chat template of the model's tokenizer.
fn chat_template(file: &LittleBitFile) -> Result<Option<String>> {
    let Some(text) = file.text(TOKENIZER_CONFIG_FILE)? else { return Ok(None) };
    let root: serde_json::Value = json::read(&text).unwrap_or_default();
    let template = &root["chat_template"];
    let named = |entry: &&serde_json::Value| entry["name"] == "default";
    let default = template.as_array().and_then(|list| Some(&list.iter().find(named)?["template"]));
    Ok(default.unwrap_or(template).as_str().map(str::to_owned))
}

fn metadata(file: &LittleBitFile) -> Result<IndexMap<String, Value>> {
    let config = file.config()?;
    let architecture = format!("{ARCHITECTURE}{}", config.family.gguf);
    let about = file.about();
    let mut metadata = IndexMap::new();
    let mut set = |key: String, value: Value| {
        metadata.insert(key, value);
    };
    set("general.architecture".into(), architecture.as_str().into());
    set("general.type".into(), "model".into());
    if let Some(name) = &about.source.name {
        set("general.name".into(), name.as_str().into());
    }
    set("general.size_label".into(), size_label(parameters(file)?, 0, 0).as_str().into());
    set("general.file_type".into(), FILE_TYPE.into());
    if let Some(template) = chat_template(file)? {
        set("tokenizer.chat_template".into(), template.as_str().into());
    }
    set("general.quantized_by".into(), about.tool.as_str().into());
    set("general.quantization_version".into(), 2u32.into());
    for (key, value) in [
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        set(format!("{architecture}.{key}"), (value as u32).into());
    }
    set(
        format!("{architecture}.attention.layer_norm_rms_epsilon"),
        (config.rms_norm_eps as f32).into(),
    );
    set(format!("{architecture}.rope.freq_base"), (config.rope.theta as f32).into());
    set(VERSION_KEY.into(), VERSION.into());
    set("littlebit.target_bpw".into(), (about.target_bpw as f32).into());
    set("littlebit.achieved_bpw".into(), (file.index().achieved_bpw as f32).into());
    set("littlebit.factorized_count".into(), (file.contents().factorized().count() as u32).into());
    set(INDEX_KEY.into(), file.index_text()?.into());
    for name in file.contents().files.keys() {
        if let Some(text) = file.text(name)? {
            set(format!("{FILE_KEY}{name}"), text.into());
        }
    }
    Ok(metadata)
}

/// Every tensor of the GGUF file, in the order in which they are written.
fn plan(file: &LittleBitFile) -> Vec<PlannedTensor> {
    let mut tensors = Vec::new();
    for (name, entry) in &file.contents().tensors {
        match entry {
            Entry::Stored(entry) => tensors.push(PlannedTensor {
                name: tensor_name(name),
                shape: entry.shape.clone(),
                kind: entry.dtype,
            }),
            Entry::Factorized(entry) => {
                let (out, input) = (entry.out_features, entry.in_features);
                for (path, record) in entry.paths.iter().enumerate() {
                    let mut add = |part: &str, shape: Vec<usize>, kind| {
                        let name = factor_name(name, path, part);
                        tensors.push(PlannedTensor { name, shape, kind });
                    };
                    // Transposed: outputs and inputs fill blocks more often than ranks do.
                    add("left", vec![record.rank, signs::padded(out)], StoredType::Q1_0);
                    add("right", vec![record.rank, signs::padded(input)], StoredType::Q1_0);
                    add("row_scale", vec![out], StoredType::F16);
                    if record.latent_scale.is_some() {
                        add("latent_scale", vec![record.rank], StoredType::F16);
                    }
                    add("column_scale", vec![input], StoredType::F16);
                }
            }
        }
    }
    tensors
}

/// The arrays of a path as the file holds them.
fn arrays(factor: &Factor) -> Vec<Vec<u8>> {
    let (left, right) = (&factor.left, &factor.right);
    let mut arrays = vec![
        signs::to_blocks((left.cols, left.rows), |k, i| left.get(i, k)),
        signs::to_blocks((right.rows, right.cols), |k, j| right.get(k, j)),
    ];
    for scale in [Some(&factor.row_scale), factor.latent_scale.as_ref(), Some(&factor.column_scale)]
    {
        arrays.extend(scale.map(|s| s.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    arrays
}
