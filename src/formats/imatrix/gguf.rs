//! The GGUF form: `NAME.in_sum2`, the sums of squares `[matrices, columns]`, and `NAME.counts`, how
//! many rows were summed `[matrices, 1]`. A matrix that saw none counts as all ones.

use std::path::Path;

use super::{Contents, Importance};
use crate::formats::gguf::{GgufFile, Value};
use crate::tensor::SharedBytes;

const SUMS: &str = ".in_sum2";

pub(super) fn read(bytes: SharedBytes, path: &Path) -> Result<Contents, String> {
    let file = GgufFile::parse(bytes, path).map_err(|error| error.to_string())?;
    let kind = file.text("general.type").ok().flatten().unwrap_or("model");
    if kind != "imatrix" {
        return Err(format!("it is a GGUF file of type {kind}, no importance matrix"));
    }
    let mut contents = Contents::default();
    for name in file.tensors.keys() {
        let Some(tensor) = name.strip_suffix(SUMS) else { continue };
        let sums = values(&file, name)?;
        let counts = values(&file, &format!("{tensor}.counts"))?;
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            return Err(format!("{tensor} has {} sums of {} counts", sums.len(), counts.len()));
        }
        let columns = sums.len() / counts.len();
        let mut means = Vec::with_capacity(sums.len());
        for (matrix, count) in sums.chunks_exact(columns.max(1)).zip(&counts) {
            // A NaN is no count either, and is found in the means.
            let unseen = *count <= 0.0;
            means.extend(matrix.iter().map(|sum| if unseen { 1.0 } else { sum / count }));
        }
        contents.entries.insert(tensor.to_owned(), Importance { values: means });
    }
    if let Some(Value::Array(texts)) = file.metadata.get("imatrix.datasets") {
        let texts = texts.strings().into_iter().flatten();
        contents.datasets = texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect();
    }
    contents.chunks = file.u32("imatrix.chunk_count").ok().flatten().unwrap_or(0);
    Ok(contents)
}

fn values(file: &GgufFile, name: &str) -> Result<Vec<f32>, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    Ok(tensor.ok_or_else(|| format!("{name} is missing"))?.to_f32())
}
