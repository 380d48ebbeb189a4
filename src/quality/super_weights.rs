//! How many super weights a quantized model keeps at high precision.
//!
//! A mask is the JSON file that stands beside an importance matrix (`NAME.superweights.json`): for
//! each GGUF tensor the positions, row by row in the order of the file, of weights that matter most.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;

use crate::source::{LocalModel, names};
use crate::{Error, Result};

/// Bits per weight from which a tensor counts as kept.
const KEPT_FROM: f64 = 8.0;

/// The part of a mask that is looked at.
#[derive(Debug, Deserialize)]
struct Mask {
    version: u32,
    tensors: IndexMap<String, Vec<u64>>,
}

/// Share of the model's parameters that the mask names and that lie in tensors of 8 bits or more.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is no mask, [`Error::ValidationFailed`] when it cannot be
/// understood or names what the model does not have.
pub fn kept(mask: &Path, model: &LocalModel) -> Result<f64> {
    let text = std::fs::read_to_string(mask).map_err(|error| Error::ModelNotFound {
        message: format!("{}: {error}", mask.display()),
        suggestion: "Make the mask with `llm-quantize analyze --identify-super-weights`".into(),
    })?;
    let parsed: Mask =
        serde_json::from_str(&text).map_err(|error| Error::damaged(mask, error.to_string()))?;
    if parsed.version != 1 {
        return Err(Error::damaged(mask, format!("version {} is not 1", parsed.version)));
    }
    let mut kept = 0u64;
    for (name, positions) in &parsed.tensors {
        let weight = names::to_hugging_face(name).and_then(|name| model.weights.get(&name));
        let Some(weight) = weight else {
            return Err(Error::damaged(mask, format!("the model has no tensor {name}")));
        };
        if positions.iter().any(|&position| position >= weight.elements() as u64) {
            return Err(Error::damaged(mask, format!("{name}: a position is outside")));
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
    use crate::source::open_local;

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
        for bad in [
            r#"{"version":2,"tensors":{}}"#,
            r#"{"version":1,"tensors":{"blk.9.ffn_down.weight":[0]}}"#,
            r#"{"version":1,"tensors":{"blk.0.attn_q.weight":[16384]}}"#,
            "[]",
        ] {
            assert_eq!(read(bad).unwrap_err().exit_code(), 6, "{bad}");
        }
        assert_eq!(kept(Path::new("/nonexistent"), &model).unwrap_err().exit_code(), 3);
    }
}
