//! A `.littlebit` file as a GGUF model: its factors are multiplied out, as many rows at a time as
//! are wanted.

use std::collections::HashMap;
use std::path::Path;

use indexmap::IndexMap;

use super::hf::{self, Texts};
use super::model::{GgufModel, SourceOptions};
use crate::arch::tensors;
use crate::base::SharedBytes;
use crate::codec::StoredType;
use crate::files::littlebit::LittleBitFile;
use crate::weight::{RowOrder, StoredTensor, Weight};
use crate::{Error, Result};

/// Opens `file`. Names, order and edits are those of the Hugging Face directory that it stands for.
///
/// # Errors
/// As [`super::model::open`].
pub(crate) fn open(file: &LittleBitFile, options: &SourceOptions) -> Result<GgufModel> {
    let mut model = file.model()?;
    let path: &Path = file.path();
    // Only the shape of a factorized tensor is looked at before it gets its factors below.
    let tensors: IndexMap<String, _> = model
        .weights
        .iter()
        .map(|(name, weight)| {
            let tensor = match weight {
                Weight::Stored(tensor) => tensor.clone(),
                Weight::Factorized(_) | Weight::Packed(_) => shape_only(weight.shape()),
            };
            (name.clone(), Ok(tensor))
        })
        .collect();
    let mut gguf = hf::open_from(Texts::Carried(file), tensors, &model.name, options)?;
    let names: HashMap<String, String> = tensors::of_model(&model.config)
        .into_iter()
        .filter(|tensor| !tensor.is_stacked())
        .map(|tensor| (tensor.gguf, tensor.name))
        .collect();
    for tensor in &mut gguf.tensors {
        let weight = names.get(&tensor.name).and_then(|name| model.weights.swap_remove(name));
        if let Some(Weight::Factorized(linear)) = weight {
            tensor.set_factors(linear);
        }
    }
    if let Some((name, _)) = model.weights.iter().find(|(_, w)| !matches!(w, Weight::Stored(_))) {
        return Err(Error::Reconstruction(format!(
            "{}: {name} has no place in a GGUF file",
            path.display()
        )));
    }
    gguf.source_bytes = gguf.tensors.iter().map(super::tensor::GgufTensor::source_bytes).sum();
    gguf.source_dtype = "littlebit".into();
    Ok(gguf)
}

/// A tensor of that shape without values, which it gets from elsewhere.
pub(super) fn shape_only(shape: Vec<usize>) -> StoredTensor {
    let bytes = SharedBytes::from_vec(Vec::new());
    StoredTensor { shape, dtype: StoredType::F32, bytes, row_order: RowOrder::Plain }
}
