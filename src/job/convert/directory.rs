//! A model as a directory, packed or in plain numbers.

use half::{bf16, f16};
use indexmap::IndexMap;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::Written;
use super::plan::{Plan, Request, Target, is_linear, rounded as rounded_to};
use crate::base::input;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::codec::affine::Grouped;
use crate::codec::affine::nearest::{self, Grid};
use crate::files::gguf::GgufFile;
use crate::files::model_directory::{DirectoryWriter, SideFile, TensorSlot};
use crate::files::packed::{AwqConfig, GptqConfig, Part, awq, gptq};
use crate::job::packed::finished::Levels;
use crate::job::packed::held;
use crate::model::companions::{companions, config_with};
use crate::model::{LocalModel, ModelFormat};
use crate::weight::Weight;
use crate::{Error, Result};

/// Values of a tensor that are written at a time.
const VALUES: usize = 1 << 22;

/// Writes the directory.
pub(super) fn write(
    model: &LocalModel,
    plan: &Plan,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Written> {
    let dense = |weight: &Weight| dense_type(weight, plan);
    let mut slots = Vec::new();
    for (name, weight) in &model.weights {
        slots.extend(slots_of(name, weight, plan, dense(weight)));
    }
    let metadata = IndexMap::from([("converted_from".to_owned(), plan.from.to_owned())]);
    let mut writer =
        DirectoryWriter::create(&request.output, slots, request.max_shard_bytes, metadata)?;
    progress.start("Writing", model.weights.len() as u64, "tensors");
    for (name, weight) in &model.weights {
        if packs(name, plan) {
            write_packed(&mut writer, name, weight, plan, progress)?;
        } else {
            write_dense(&mut writer, name, weight, dense(weight), progress)?;
        }
        weight.release();
        progress.advance(1);
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    let written = writer.finish(&side_files(model, plan)?)?;
    Ok(Written { path: written.path, files: written.files })
}

fn packs(name: &str, plan: &Plan) -> bool {
    is_linear(name) && !matches!(plan.target, Target::Hf(_))
}

/// The type of a tensor that is not packed: its own in a directory, F16 of a GGUF file (which runtimes
/// of packed checkpoints want), or what was asked for.
fn dense_type(weight: &Weight, plan: &Plan) -> StoredType {
    match (&plan.target, weight) {
        (Target::Hf(dtype), _) => *dtype,
        (_, Weight::Stored(tensor)) if plan.from != "gguf" => tensor.dtype,
        _ => StoredType::F16,
    }
}

fn slots_of(name: &str, weight: &Weight, plan: &Plan, dense: StoredType) -> Vec<TensorSlot> {
    let (out, inputs) = (weight.rows(), weight.cols());
    let layer = name.strip_suffix(".weight").unwrap_or(name);
    match &plan.target {
        Target::Gptq(bits, group) if packs(name, plan) => {
            gptq::slots(layer, out, inputs, *bits, group.unwrap_or(inputs))
        }
        Target::Awq(group) if packs(name, plan) => {
            awq::slots(layer, out, inputs, group.unwrap_or(inputs))
        }
        _ => {
            let dtype = match dense {
                StoredType::BF16 => Dtype::BF16,
                StoredType::F32 => Dtype::F32,
                _ => Dtype::F16,
            };
            vec![TensorSlot { name: name.to_owned(), dtype, shape: weight.shape() }]
        }
    }
}

fn write_packed(
    writer: &mut DirectoryWriter,
    name: &str,
    weight: &Weight,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<()> {
    let kept = if plan.layers.get(name) == Some(&true) { plan.carried(weight) } else { None };
    let layer = kept.map_or_else(|| rounded(name, weight, plan, progress), Ok)?;
    let prefix = name.strip_suffix(".weight").unwrap_or(name);
    let mut put = |part: &Part| writer.put(&part.slot(prefix).name, &part.bytes);
    if let Target::Awq(_) = plan.target {
        return awq::pack(&layer)?.parts().into_iter().try_for_each(&mut put);
    }
    gptq::pack_as(&layer, plan.version)?.parts().into_iter().try_for_each(&mut put)
}

/// The weight rounded to the nearest integers of the target's grid, if that can hold it.
fn rounded(name: &str, weight: &Weight, plan: &Plan, progress: &dyn Progress) -> Result<Grouped> {
    let (bits, group, kind) = match plan.target {
        Target::Gptq(bits, group) => (bits, group, Grid::Symmetric),
        Target::Awq(group) => (4, group, Grid::Asymmetric),
        _ => (8, None, Grid::Symmetric),
    };
    let mut values = vec![0.0; weight.elements()];
    read_all(weight, &mut values);
    let inputs = weight.cols();
    let levels =
        Levels::Groups(nearest::round_best(&values, inputs, group.unwrap_or(inputs), bits, kind));
    let warning = held::check(name, &values, &levels)?;
    warning.iter().for_each(|warning| progress.warn(warning));
    match levels {
        Levels::Groups(layer) => Ok(layer),
        Levels::Rows(_) => Err(Error::General(format!("{name} has rows, not groups"))),
    }
}

/// Decodes a whole weight, on all threads.
fn read_all(weight: &Weight, values: &mut [f32]) {
    use rayon::prelude::*;
    const ROWS: usize = 32;
    let cols = weight.cols();
    values.par_chunks_mut(ROWS * cols).enumerate().for_each(|(part, out)| {
        let first = part * ROWS;
        weight.read_rows(first..first + out.len() / cols, out);
    });
}

fn write_dense(
    writer: &mut DirectoryWriter,
    name: &str,
    weight: &Weight,
    dtype: StoredType,
    progress: &dyn Progress,
) -> Result<()> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let step = (VALUES / cols.max(1)).max(1);
    let mut values = Vec::new();
    let mut zeroed = 0;
    for first in (0..rows).step_by(step) {
        let range = first..rows.min(first + step);
        values.resize(range.len() * cols, 0.0f32);
        weight.read_rows(range, &mut values);
        let stored = |value: &f32| rounded_to(*value, dtype);
        if let Some(at) = values.iter().position(|value| !stored(value).is_finite()) {
            let place = [first + at / cols, at % cols];
            let place = if weight.shape().len() == 1 { &place[1..] } else { &place };
            return Err(Error::out_of_range(name, place, values[at], dtype.name()));
        }
        zeroed += values
            .chunks_exact(cols.max(1))
            .filter(|row| row.iter().any(|v| *v != 0.0) && row.iter().all(|v| stored(v) == 0.0))
            .count();
        let bytes: Vec<u8> = match dtype {
            StoredType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            StoredType::BF16 => {
                values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect()
            }
            _ => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        };
        writer.append(name, &bytes)?;
    }
    if zeroed > 0 {
        progress.warn(&format!(
            "{name}: {zeroed} of {rows} rows become zero: all of their values are smaller than {} can \
             hold",
            dtype.name()
        ));
    }
    Ok(())
}

/// Configuration, tokenizer, model card.
fn side_files(model: &LocalModel, plan: &Plan) -> Result<Vec<SideFile>> {
    let mut files = companions(model)?;
    let quantization = quantization(plan);
    let dtype = match (&plan.target, plan.from) {
        (Target::Hf(StoredType::F32), _) => Some("float32"),
        (Target::Hf(StoredType::BF16), _) => Some("bfloat16"),
        (Target::Hf(_), _) | (_, "gguf") => Some("float16"),
        _ => None,
    };
    files.push(SideFile::text("config.json", config_with(model, quantization.as_ref(), dtype)?));
    if let (Target::Gptq(..), Some(quantization)) = (&plan.target, &quantization) {
        files.push(SideFile::text("quantize_config.json", format!("{quantization:#}\n")));
    }
    files.push(SideFile::text("README.md", card(model, plan)));
    Ok(files)
}

fn quantization(plan: &Plan) -> Option<Value> {
    match plan.target {
        Target::Gptq(bits, group) => Some(
            GptqConfig {
                bits,
                group,
                symmetric: plan.symmetric,
                desc_act: false,
                version: plan.version,
                damp_percent: 0.01,
                static_groups: false,
                true_sequential: true,
                dynamic: Map::new(),
            }
            .to_json(),
        ),
        Target::Awq(group) => Some(AwqConfig { group, not_converted: Vec::new() }.to_json()),
        Target::Gguf(_) | Target::Hf(_) => None,
    }
}

/// README.md: what this is and what was done.
fn card(model: &LocalModel, plan: &Plan) -> String {
    let name = model.name.rsplit('/').next().unwrap_or(&model.name);
    let (kept, all) = plan.kept();
    let format = match plan.format() {
        "hf" => "plain numbers".to_owned(),
        format => format.to_uppercase(),
    };
    let mut text = licence(model)
        .map_or_else(String::new, |licence| format!("---\nlicense: {licence}\n---\n\n"));
    text.push_str(&format!(
        "# {name}, {format} {}\n\nConverted from {} by llm-quantize {}. ",
        plan.level(),
        plan.from,
        env!("CARGO_PKG_VERSION")
    ));
    text.push_str(&if kept == all {
        format!("All {all} linear layers of the blocks keep their values exactly.\n")
    } else {
        format!(
            "{kept} of {all} linear layers of the blocks keep their values exactly; the others were \
             rounded to the nearest value of this format, without calibration.\n"
        )
    });
    text
}

/// The licence that the source names: in a GGUF file's metadata, or at the top of a README.md.
fn licence(model: &LocalModel) -> Option<String> {
    if model.format == ModelFormat::Gguf {
        let file = GgufFile::open(&model.path).ok()?;
        return file.text("general.license").ok()?.map(str::to_owned);
    }
    let card = input::read_to_string(&model.path.join("README.md"), input::MAX_SETTINGS).ok()?;
    let front = card.strip_prefix("---\n")?.split("\n---").next()?;
    let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    Some(line.trim().to_owned())
}
