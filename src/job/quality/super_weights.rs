//! How many super weights a quantized model keeps at high precision.
//!
//! A mask is the JSON file that stands beside an importance matrix (`NAME.superweights.json`): for
//! each GGUF tensor the positions, row by row in the order of the file, of weights that matter most.

use std::path::Path;

use crate::arch::names;
use crate::files::super_weights::SuperWeightMask;
use crate::model::LocalModel;
use crate::{Error, Result};

/// Bits per weight from which a tensor counts as kept.
const KEPT_FROM: f64 = 8.0;

/// Share of the model's parameters that the mask names and that lie in tensors of 8 bits or more.
///
/// # Errors
/// As [`SuperWeightMask::read`]; [`Error::Imatrix`] when it names what the model does not have.
pub(crate) fn kept(mask: &Path, model: &LocalModel) -> Result<f64> {
    let parsed = SuperWeightMask::read(mask)?;
    let mut kept = 0u64;
    for (name, positions) in &parsed.tensors {
        let weight = names::to_hugging_face(name).and_then(|name| model.weights.get(&name));
        let Some(weight) = weight else {
            return Err(Error::imatrix(mask, format!("the model has no tensor {name}")));
        };
        if positions.iter().any(|&position| position >= weight.elements() as u64) {
            return Err(Error::imatrix(mask, format!("{name}: a position is outside")));
        }
        let bits = weight.stored_bytes() as f64 * 8.0 / weight.elements().max(1) as f64;
        if bits >= KEPT_FROM {
            kept += positions.len() as u64;
        }
    }
    Ok(kept as f64 / model.parameter_count().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::open_local;

    #[test]
    fn positions_in_tensors_of_many_bits_are_kept() {
        let model = open_local(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.superweights.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            kept(&path, &model)
        };
        let share = read(
            r#"{"version":1,"coverage":1e-5,"method":"x","total_protected":3,
                "tensors":{"blk.1.ffn_down.weight":[0,7],"blk.0.attn_q.weight":[16383]}}"#,
        );
        // The tiny model is stored in f16.
        assert!((share.unwrap() - 3.0 / 1_049_728.0).abs() < 1e-12);
        let of = |version: u32, tensors: &str| {
            format!(
                r#"{{"version":{version},"coverage":1e-5,"method":"x","total_protected":1,
                    "tensors":{tensors}}}"#
            )
        };
        for bad in [
            of(2, r#"{"blk.0.attn_q.weight":[0]}"#),
            of(1, r#"{"blk.9.ffn_down.weight":[0]}"#),
            of(1, r#"{"blk.0.attn_q.weight":[16384]}"#),
            "[]".to_owned(),
        ] {
            assert_eq!(read(&bad).unwrap_err().exit_code(), 10, "{bad}");
        }
        assert_eq!(kept(Path::new("/nonexistent"), &model).unwrap_err().exit_code(), 10);
    }
}
