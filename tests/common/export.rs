//! A model at full precision as a file.

use std::path::{Path, PathBuf};

use llm_quantize::codec::{StoredType, ggml};
use llm_quantize::files::gguf::{FileLayout, GgufWriter, PlannedTensor, Value};
use llm_quantize::job::gguf::GgufModel;

/// Writes all matrices as `matrices` and everything else as F32, as the converter does.
pub(crate) fn write(model: &GgufModel, target: &Path, matrices: StoredType) {
    write_parts(model, target, matrices, None);
}

/// The same in files of at most `most` bytes; gives their paths.
pub(crate) fn write_parts(
    model: &GgufModel,
    target: &Path,
    matrices: StoredType,
    most: Option<u64>,
) -> Vec<PathBuf> {
    let mut metadata = model.metadata.clone();
    let file_type = match matrices {
        StoredType::F32 => 0u32,
        StoredType::F16 => 1,
        other => panic!("{other:?} is not full precision"),
    };
    metadata.insert("general.file_type".into(), Value::from(file_type));
    metadata.insert("general.quantization_version".into(), Value::from(2u32));
    let plan: Vec<PlannedTensor> = model
        .tensors
        .iter()
        .map(|tensor| {
            let small = tensor.shape.len() < 2
                || tensor.name.ends_with("_norm.weight")
                || tensor.name.contains("ffn_gate_inp");
            PlannedTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                kind: if small { StoredType::F32 } else { matrices },
            }
        })
        .collect();
    let layout = FileLayout::new(&metadata, &plan, most).unwrap();
    let mut writer = GgufWriter::create(target, &layout).unwrap();
    for (tensor, plan) in model.tensors.iter().zip(&plan) {
        let mut values = vec![0.0; tensor.cols()];
        let mut bytes = vec![0; plan.kind.row_bytes(tensor.cols()).unwrap()];
        for row in 0..tensor.rows() {
            tensor.read_rows(row..row + 1, &mut values).unwrap();
            ggml::encode(plan.kind, &values, &mut bytes);
            writer.write(&bytes).unwrap();
        }
    }
    writer.finish().unwrap().into_iter().map(|file| file.path).collect()
}
