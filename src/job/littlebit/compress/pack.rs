//! A solved matrix as a unit of the checkpoint store, and back.

use half::f16;
use serde_json::{Value, json};

use crate::base::SharedBytes;
use crate::codec::signs::BitMatrix;
use crate::files::checkpoint::UnitData;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::LayerReport;
use crate::job::littlebit::solve::Solution;
use crate::weight::{Factor, FactorizedLinear};
use crate::{Error, Result};

/// Packs signs and scales and keeps the errors that were measured with them.
pub(super) fn to_unit(layer: &LayerPlan, solution: &Solution, weighted: bool) -> UnitData {
    let (rows, cols) = (layer.shape.rows, layer.shape.cols);
    let rank = layer.shape.rank;
    let seconds = (solution.factorization_time + solution.binarization_time).as_secs_f64();
    let mut unit = UnitData::new(json!({
        "relative_error": solution.error,
        "weighted_error": weighted.then_some(solution.weighted_error),
        "seconds": seconds,
    }));
    for (index, path) in solution.paths.iter().enumerate() {
        let left = BitMatrix::from_signs(rows, rank, &path.left);
        let right = BitMatrix::from_signs(rank, cols, &path.right);
        unit = unit
            .with_bytes(format!("{index}.left"), left.bytes.to_vec())
            .with_bytes(format!("{index}.right"), right.bytes.to_vec())
            .with_f32(format!("{index}.row_scale"), path.row_scale.clone())
            .with_f32(format!("{index}.column_scale"), path.column_scale.clone());
        if let Some(scale) = &path.latent_scale {
            unit = unit.with_f32(format!("{index}.latent_scale"), scale.clone());
        }
    }
    unit
}

/// The factors of a unit, checked against the plan.
pub(super) fn factors_of(unit: &UnitData, layer: &LayerPlan) -> Result<FactorizedLinear> {
    let shape = &layer.shape;
    let damaged =
        |what: &str| Error::Checkpoint(format!("{}: the checkpoint has no {what}", layer.name));
    let bits = |name: String, rows, cols| {
        let bytes = unit.bytes(&name).ok_or_else(|| damaged(&name))?;
        BitMatrix::new(rows, cols, SharedBytes::from_vec(bytes.to_vec()))
    };
    let scale = |name: String| {
        let values = unit.f32(&name).ok_or_else(|| damaged(&name))?;
        // The solver gives values that are stored exactly.
        Ok::<_, Error>(values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>())
    };
    let paths = (0..shape.paths)
        .map(|index| {
            Ok(Factor {
                left: bits(format!("{index}.left"), shape.rows, shape.rank)?,
                right: bits(format!("{index}.right"), shape.rank, shape.cols)?,
                row_scale: scale(format!("{index}.row_scale"))?,
                latent_scale: if shape.middle_scale {
                    Some(scale(format!("{index}.latent_scale"))?)
                } else {
                    None
                },
                column_scale: scale(format!("{index}.column_scale"))?,
                scale_type: shape.scales,
            })
        })
        .collect::<Result<_>>()?;
    FactorizedLinear::new(shape.rows, shape.cols, paths)
}

/// What is reported of a matrix; the errors and the time are a finished unit's.
pub(super) fn report_of(layer: &LayerPlan, unit: Option<&UnitData>) -> LayerReport {
    let figure = |name: &str| unit.and_then(|u| u.meta.get(name)).and_then(Value::as_f64);
    LayerReport {
        name: layer.name.clone(),
        shape: [layer.shape.rows, layer.shape.cols],
        rank: layer.shape.rank,
        paths: layer.shape.paths,
        bpw: layer.shape.bits_per_weight(),
        bytes: layer.shape.bytes(),
        compression_ratio: 16.0 / layer.shape.bits_per_weight(),
        relative_error: figure("relative_error"),
        weighted_error: figure("weighted_error"),
        factorization_seconds: figure("seconds"),
    }
}
