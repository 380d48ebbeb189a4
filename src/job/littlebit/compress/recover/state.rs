//! Learning layers as units of the checkpoint store. Latents are kept as f16 (signs that do not learn
//! any more as bits), to which they are
//! rounded in memory as well when a block is done, so that a run that goes on and one that starts
//! again from here see the same values.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Tuned, short};
use crate::base::SharedBytes;
use crate::codec::signs::BitMatrix;
use crate::files::checkpoint::UnitData;
use crate::job::littlebit::budget::FactorShape;
use crate::job::littlebit::compress::units::UnitStore;
use crate::job::littlebit::compress::work::unit_id;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::BlockReport;
use crate::job::littlebit::rounding::round_values;
use crate::job::littlebit::tuning::distillation::{Best, Distillation, Session};
use crate::job::littlebit::tuning::layer::{LearningLayer, PathValues};
use crate::job::littlebit::tuning::packed::PackedPath;
use crate::weight::ScaleType;
use crate::{Error, Result};

/// Keys in the metadata of a distillation's units.
const PREVIOUS: &str = "previous";
const STEP: &str = "step";

/// Name of the unit of a tuned block. It follows from its own matrices and from all before them, whose
/// forms are `plans`.
pub(super) fn block_id(index: usize, plans: &[&LayerPlan]) -> String {
    let mut hash = Sha256::new();
    plans.iter().for_each(|plan| hash.update(unit_id(plan)));
    format!("tuned-{index}-{}", short(&hash.finalize()))
}

/// Rounds latents to f16. A latent that would become zero keeps the sign that counts.
pub(super) fn round_latents(layer: &LearningLayer) {
    for path in layer.paths_mut().iter_mut() {
        for latents in [&mut path.left, &mut path.right] {
            for latent in latents {
                *latent = if *latent >= 0.0 {
                    f16::from_f32(*latent).max(f16::MIN_POSITIVE).to_f32()
                } else {
                    f16::from_f32(*latent).min(-f16::MIN_POSITIVE).to_f32()
                };
            }
        }
    }
}

/// Rounds scales to values that the file can hold.
pub(super) fn round_scales(layer: &LearningLayer, scales: ScaleType) {
    for path in layer.paths_mut().iter_mut() {
        for scale in path.arrays_mut().skip(2) {
            let mut values: Vec<f64> = scale.iter().map(|&v| f64::from(v)).collect();
            let weights: Vec<f64> = values.iter().map(|v| v * v).collect();
            round_values(&mut values, &weights, scales);
            scale.iter_mut().zip(values).for_each(|(to, from)| *to = from as f32);
        }
    }
}

/// Adds a tuned matrix to a unit.
pub(super) fn save(mut unit: UnitData, tuned: &Tuned) -> UnitData {
    let name = &tuned.name;
    for (index, path) in tuned.layer.paths().iter().enumerate() {
        let key = |part: &str| format!("{name}.{index}.{part}");
        let [left, right] = match &path.bits {
            Some(bits) => bits.each_ref().map(|bits| bits.bytes.to_vec()),
            None => [halves(&path.left), halves(&path.right)],
        };
        unit = unit
            .with_bytes(key("left"), left)
            .with_bytes(key("right"), right)
            .with_f32(key("row"), path.row.clone())
            .with_f32(key("column"), path.column.clone());
        if let Some(latent) = &path.latent {
            unit = unit.with_f32(key("latent"), latent.clone());
        }
    }
    match &tuned.inputs {
        Some(inputs) => unit.with_f32(format!("{name}.inputs"), inputs.clone()),
        None => unit,
    }
}

/// The matrix that was saved.
pub(super) fn load(unit: &UnitData, plan: &LayerPlan) -> Result<Tuned> {
    let shape = &plan.shape;
    let paths = paths_of(unit, &plan.name, shape)?;
    Ok(Tuned {
        name: plan.name.clone(),
        layer: LearningLayer::new((shape.rows, shape.cols), shape.rank, paths)?,
        inputs: unit.f32(&format!("{}.inputs", plan.name)).map(<[f32]>::to_vec),
    })
}

/// The figures of a tuned block.
pub(super) fn report(unit: &UnitData) -> Result<BlockReport> {
    serde_json::from_value(unit.meta.clone()).map_err(|_| damaged("report"))
}

/// The paths of a matrix, as latents or as bits.
fn paths_of(unit: &UnitData, name: &str, shape: &FactorShape) -> Result<Vec<PathValues>> {
    let left = (shape.rows, shape.rank);
    let right = (shape.rank, shape.cols);
    (0..shape.paths)
        .map(|index| {
            let key = |part: &str| format!("{name}.{index}.{part}");
            let latents = |part, dims| latents(unit, &key(part), dims);
            let (left, right, bits) = if let (Some(left), Some(right)) =
                (latents("left", left), latents("right", right))
            {
                (left, right, None)
            } else {
                let bits = |part, (rows, cols)| bits(unit, &key(part), rows, cols);
                (vec![], vec![], Some([bits("left", left)?, bits("right", right)?]))
            };
            Ok(PathValues {
                left,
                right,
                bits,
                row: scale(unit, &key("row"), shape.rows)?,
                latent: shape
                    .middle_scale
                    .then(|| scale(unit, &key("latent"), shape.rank))
                    .transpose()?,
                column: scale(unit, &key("column"), shape.cols)?,
            })
        })
        .collect()
}

fn scale(unit: &UnitData, key: &str, length: usize) -> Result<Vec<f32>> {
    let values = unit.f32(key).filter(|values| values.len() == length);
    values.map(<[f32]>::to_vec).ok_or_else(|| damaged(key))
}

fn latents(unit: &UnitData, key: &str, (rows, cols): (usize, usize)) -> Option<Vec<f32>> {
    unit.bytes(key).filter(|bytes| bytes.len() == 2 * rows * cols).map(singles)
}

fn bits(unit: &UnitData, key: &str, rows: usize, cols: usize) -> Result<BitMatrix> {
    let bytes = unit.bytes(key).ok_or_else(|| damaged(key))?;
    BitMatrix::new(rows, cols, SharedBytes::from_vec(bytes.to_vec()))
}

/// A distillation that was saved: where its layers lie, and what it is besides them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved {
    /// The slot of the layers, 0 or 1.
    pub(super) slot: u64,
    /// Steps that were done.
    pub(super) step: usize,
    /// Divergence before the first step, and the least one so far.
    before: f64,
    best: f64,
}

impl Saved {
    fn read(meta: &Value) -> Option<Self> {
        let number = |key: &str| meta.get(key).and_then(Value::as_f64);
        let count = |key: &str| meta.get(key).and_then(Value::as_u64);
        Some(Self {
            slot: count("slot")? & 1,
            step: usize::try_from(count("step")?).ok()?,
            before: number("before")?,
            best: number("best")?,
        })
    }

    fn meta(&self) -> Value {
        json!({
            "slot": self.slot,
            "step": self.step,
            "before": self.before,
            "best": self.best,
        })
    }
}

/// What a distillation's unit says was saved: last, and before that.
pub(super) fn saved(unit: &UnitData) -> impl Iterator<Item = Saved> + use<> {
    let last = Saved::read(&unit.meta);
    let previous = unit.meta.get(PREVIOUS).and_then(Saved::read);
    last.into_iter().chain(previous)
}

/// Whether a unit of that name says how far a distillation is.
pub(super) fn is_session(name: &str) -> bool {
    name.strip_prefix("distilled-").is_some_and(|rest| !rest.contains('-'))
}

/// Steps that such a unit has.
pub(super) fn steps(unit: &UnitData) -> usize {
    unit.meta.get("step").and_then(Value::as_u64).map_or(0, |step| step as usize)
}

/// Name of a layer's unit in a slot.
pub(super) fn slot_name(id: &str, slot: u64, layer: &str) -> String {
    format!("{id}-{slot}-{layer}")
}

/// A distillation of which only this is whole.
pub(super) fn only(saved: &Saved) -> UnitData {
    UnitData::new(saved.meta())
}

/// What a distillation is besides its layers, which are in `slot`; the ones of `previous` are still
/// in the other.
pub(super) fn session(session: &Session<'_>, slot: u64, previous: Option<&Saved>) -> UnitData {
    let (before, best) = (session.before, session.best.divergence);
    let mut meta = Saved { slot, step: session.step, before, best }.meta();
    if let Some(previous) = previous {
        meta[PREVIOUS] = previous.meta();
    }
    UnitData::new(meta)
}

/// A layer in the middle of a distillation: its values, its moments rounded to bfloat16 (here and
/// in memory), and its best state.
pub(super) fn save_learning<'m>(
    tuned: &Tuned,
    moments: &mut impl Iterator<Item = [&'m mut Vec<f32>; 2]>,
    best: &[PackedPath],
    signs: bool,
    step: usize,
) -> UnitData {
    let mut unit = save(UnitData::new(json!({ STEP: step })), tuned);
    for index in 0..arrays(&tuned.layer, signs) {
        let Some(pair) = moments.next() else { break };
        for (order, values) in pair.into_iter().enumerate() {
            let rounded: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            values.iter_mut().zip(&rounded).for_each(|(to, from)| *to = from.to_f32());
            let bytes = rounded.iter().flat_map(|v| v.to_le_bytes()).collect();
            unit = unit.with_bytes(format!("moment.{index}.{order}"), bytes);
        }
    }
    for (index, path) in best.iter().enumerate() {
        let key = |part: &str| format!("best.{index}.{part}");
        unit = unit
            .with_bytes(key("left"), path.left.bytes.to_vec())
            .with_bytes(key("right"), path.right.bytes.to_vec())
            .with_f32(key("row"), path.row.clone())
            .with_f32(key("column"), path.column.clone());
        if let Some(latent) = &path.latent {
            unit = unit.with_f32(key("latent"), latent.clone());
        }
    }
    unit
}

/// Arrays of a layer that have moments.
fn arrays(layer: &LearningLayer, signs: bool) -> usize {
    let fixed = if signs { 0 } else { 2 };
    layer.paths().iter().map(|path| path.arrays().count() - fixed).sum()
}

/// A distillation as it was saved. The layers are as before unless this succeeds.
///
/// # Errors
/// [`Error::Checkpoint`] when a part of it is missing, or was written by another save.
pub(super) fn resume<'d>(
    task: &'d Distillation<'d>,
    saved: &Saved,
    plans: &[&LayerPlan],
    id: &str,
    store: &UnitStore,
) -> Result<Session<'d>> {
    let mut best = Best { divergence: saved.best, layers: Vec::new() };
    let (mut moments, mut paths) = (Vec::new(), Vec::new());
    for plan in plans {
        let name = slot_name(id, saved.slot, &plan.name);
        let unit = store.load(&name)?.ok_or_else(|| damaged(&name))?;
        if unit.meta.get(STEP).and_then(Value::as_u64) != Some(saved.step as u64) {
            return Err(Error::Checkpoint(format!("{name} is of another step")));
        }
        paths.push(paths_of(&unit, &plan.name, &plan.shape)?);
        for index in 0.. {
            let Some(first) = unit.bytes(&format!("moment.{index}.0")) else { break };
            let second = unit.bytes(&format!("moment.{index}.1")).ok_or(damaged("moments"))?;
            moments.push([wide(first), wide(second)]);
        }
        best.layers.push(best_of(&unit, &plan.shape)?);
    }
    let mut session = task.resume(saved.step, saved.before, best);
    let mut places = session.adam.moments_mut();
    for saved in moments {
        let place = places.next().ok_or(damaged("moments"))?;
        for (to, from) in place.into_iter().zip(saved) {
            if to.len() != from.len() {
                return Err(damaged("moments"));
            }
            *to = from;
        }
    }
    drop(places);
    task.layers.iter().zip(paths).for_each(|(layer, paths)| *layer.paths_mut() = paths);
    Ok(session)
}

fn best_of(unit: &UnitData, shape: &FactorShape) -> Result<Vec<PackedPath>> {
    (0..shape.paths)
        .map(|index| {
            let key = |part: &str| format!("best.{index}.{part}");
            let bits = |part, rows, cols| bits(unit, &key(part), rows, cols);
            Ok(PackedPath {
                left: bits("left", shape.rows, shape.rank)?,
                right: bits("right", shape.rank, shape.cols)?,
                row: scale(unit, &key("row"), shape.rows)?,
                latent: shape
                    .middle_scale
                    .then(|| scale(unit, &key("latent"), shape.rank))
                    .transpose()?,
                column: scale(unit, &key("column"), shape.cols)?,
            })
        })
        .collect()
}

fn damaged(what: &str) -> Error {
    Error::Checkpoint(format!("{what} is missing in the checkpoint, or damaged"))
}

fn halves(values: &[f32]) -> Vec<u8> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

fn singles(bytes: &[u8]) -> Vec<f32> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|pair| f16::from_le_bytes(*pair).to_f32()).collect()
}

fn wide(bytes: &[u8]) -> Vec<f32> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
}
