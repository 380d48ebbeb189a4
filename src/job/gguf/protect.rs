//! Super weights: a few scalars that a model depends on, and the types that keep them.
//!
//! A tensor of a GGUF file has one type, so single values cannot be set apart as they can in other
//! formats. What can be done is measured: a tensor is protected when its super weights carry a part
//! of its output that no noise may take, and then only those types remain that reproduce these very
//! values to within `TOLERANCE`. F16 always does.

use indexmap::IndexMap;

use super::execute::round_trip;
use super::model::GgufModel;
use super::plan::{importance_of, matrices};
use super::tensor::GgufTensor;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::files::imatrix::ImportanceMatrix;
use crate::files::super_weights::{MOST_COVERAGE, SuperWeightMask, mask_path};
use crate::{Error, Result};

/// Share of a tensor's output energy, `Σ w x²` over the protected positions by that over all, from
/// which on the tensor is protected.
const SHARE: f64 = 0.01;
/// Largest relative squared error of the protected values: 1 % of their size.
const TOLERANCE: f64 = 1e-4;
/// The protected positions of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Protected {
    /// `row · columns + column`, ascending.
    pub positions: Vec<u64>,
    /// The share of the tensor's output energy that they carry.
    pub share: f64,
}

/// What is protected in a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Protection {
    /// The part of all weights that counts as super weights.
    pub coverage: f64,
    /// Super weights in all tensors, protected or not.
    pub found: u64,
    /// The tensors whose super weights carry enough.
    pub tensors: IndexMap<String, Protected>,
    /// The file that they were read from; none if they were found here.
    pub mask: Option<String>,
}

impl Protected {
    /// Whether the values at the protected positions survive being written as `kind`.
    pub(super) fn keeps(
        &self,
        tensor: &GgufTensor,
        kind: StoredType,
        importance: Option<&[f32]>,
    ) -> Result<bool> {
        let cols = tensor.cols();
        let rows_per_matrix = (tensor.rows() / matrices(tensor).max(1)).max(1);
        let mut values = vec![0.0f32; cols];
        let (mut noise, mut signal) = (0.0f64, 0.0f64);
        for group in self.positions.chunk_by(|a, b| a / cols as u64 == b / cols as u64) {
            let row = (group[0] / cols as u64) as usize;
            tensor.read_rows(row..row + 1, &mut values)?;
            let matrix = row / rows_per_matrix;
            let columns = importance.map(|all| &all[matrix * cols..(matrix + 1) * cols]);
            let decoded = round_trip(&values, cols, kind, columns);
            for position in group {
                let column = (position % cols as u64) as usize;
                let weight = columns.map_or(1.0, |columns| f64::from(columns[column]));
                noise += weight * f64::from(values[column] - decoded[column]).powi(2);
                signal += weight * f64::from(values[column]).powi(2);
            }
        }
        Ok(noise <= TOLERANCE * signal)
    }
}

impl Protection {
    /// The super weights of a model: those of the file that lies beside the importance matrix, if it
    /// is there with this coverage, else the weights with the largest `|w| √E[x²]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a coverage outside (0, 0.01], [`Error::Imatrix`] when the file
    /// is damaged or of another model.
    pub fn find(
        model: &GgufModel,
        importance: &ImportanceMatrix,
        coverage: f64,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if !(coverage > 0.0 && coverage <= MOST_COVERAGE) {
            return Err(Error::InvalidArgument(format!(
                "--protection-coverage {coverage} is not above 0 and at most {MOST_COVERAGE}"
            )));
        }
        let beside = mask_path(&importance.path);
        let mask = if beside.is_file() { Some(SuperWeightMask::read(&beside)?) } else { None };
        let usable = mask.filter(|mask| (mask.coverage - coverage).abs() <= 1e-9 * coverage.abs());
        let (positions, mask) = if let Some(mask) = usable {
            (mask.tensors, Some(beside.display().to_string()))
        } else {
            let mut scored = score(model, importance, coverage, progress)?;
            scored.values_mut().for_each(|positions| positions.sort_unstable());
            (scored, None)
        };
        let mut tensors = IndexMap::new();
        let mut found = 0;
        for (name, positions) in positions {
            let bad = |what: String| Error::imatrix(&beside, what);
            let tensor = model
                .tensor(&name)
                .ok_or_else(|| bad(format!("the model has no tensor {name}")))?;
            if positions.last().is_some_and(|&last| last >= tensor.elements() as u64) {
                return Err(bad(format!("{name} is smaller than the positions say")));
            }
            found += positions.len() as u64;
            let importance = importance_of(Some(importance), tensor)?;
            let share = share(tensor, &positions, importance)?;
            if share >= SHARE {
                tensors.insert(name, Protected { positions, share });
            }
        }
        Ok(Self { coverage, found, tensors, mask })
    }

    /// The protected positions of a tensor.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&Protected> {
        self.tensors.get(name)
    }

    /// Weights that are protected.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.positions.len() as u64).sum()
    }

    /// The smallest type from `kind` on that keeps the super weights of a tensor.
    pub(super) fn lift(
        &self,
        tensor: &GgufTensor,
        kind: StoredType,
        importance: Option<&[f32]>,
    ) -> Result<StoredType> {
        const LADDER: [StoredType; 9] = [
            StoredType::Q4_K,
            StoredType::IQ4_NL,
            StoredType::Q4_1,
            StoredType::Q5_K,
            StoredType::Q5_0,
            StoredType::Q5_1,
            StoredType::Q6_K,
            StoredType::Q8_0,
            StoredType::F16,
        ];
        let Some(protected) = self.of(&tensor.name) else { return Ok(kind) };
        let higher = LADDER
            .into_iter()
            .filter(|other| other.bits_per_weight() > kind.bits_per_weight())
            .filter(|other| other.fits(tensor.cols()));
        for kind in std::iter::once(kind).chain(higher) {
            if protected.keeps(tensor, kind, importance)? {
                return Ok(kind);
            }
        }
        Ok(StoredType::F16)
    }
}

/// Calls `visit` with position and energy `w x²` of every weight of a tensor.
fn each_energy(
    tensor: &GgufTensor,
    importance: Option<&[f32]>,
    mut visit: impl FnMut(u64, f64),
) -> Result<()> {
    let cols = tensor.cols();
    let rows_per_matrix = (tensor.rows() / matrices(tensor).max(1)).max(1);
    let mut values = vec![0.0f32; cols];
    for row in 0..tensor.rows() {
        tensor.read_rows(row..row + 1, &mut values)?;
        let matrix = row / rows_per_matrix;
        let columns = importance.map(|all| &all[matrix * cols..(matrix + 1) * cols]);
        for (column, value) in values.iter().enumerate() {
            let weight = columns.map_or(1.0, |columns| f64::from(columns[column]));
            visit((row * cols + column) as u64, weight * f64::from(*value).powi(2));
        }
    }
    Ok(())
}

/// The part of a tensor's energy at some positions.
fn share(tensor: &GgufTensor, positions: &[u64], importance: Option<&[f32]>) -> Result<f64> {
    let (mut all, mut some) = (0.0, 0.0);
    let mut next = positions.iter().peekable();
    each_energy(tensor, importance, |position, energy| {
        all += energy;
        if next.next_if(|&&wanted| wanted == position).is_some() {
            some += energy;
        }
    })?;
    tensor.release();
    Ok(if all > 0.0 { some / all } else { 0.0 })
}

/// The `coverage` part of all weights of measured matrices with the largest scores.
fn score(
    model: &GgufModel,
    importance: &ImportanceMatrix,
    coverage: f64,
    progress: &dyn Progress,
) -> Result<IndexMap<String, Vec<u64>>> {
    let measured: Vec<(&GgufTensor, &[f32])> = model
        .tensors
        .iter()
        .filter(|tensor| tensor.may_be_quantized())
        .filter_map(|tensor| match importance_of(Some(importance), tensor) {
            Ok(Some(columns)) => Some(Ok((tensor, columns))),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_>>()?;
    let weights: u64 = measured.iter().map(|(tensor, _)| tensor.elements() as u64).sum();
    let wanted = ((coverage * weights as f64).round() as usize).max(1);
    progress.start("Finding super weights", measured.len() as u64, "tensors");
    // The largest so far; pruned to the wanted number whenever it has twice as many.
    let mut top: Vec<(f64, u32, u64)> = Vec::new();
    let mut least = 0.0;
    let order = |a: &(f64, u32, u64), b: &(f64, u32, u64)| {
        b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)))
    };
    for (number, (tensor, columns)) in measured.iter().enumerate() {
        each_energy(tensor, Some(columns), |position, energy| {
            if energy > least {
                top.push((energy, number as u32, position));
                if top.len() >= 2 * wanted + 1024 {
                    top.select_nth_unstable_by(wanted - 1, order);
                    top.truncate(wanted);
                    least = top.iter().map(|entry| entry.0).fold(f64::INFINITY, f64::min);
                }
            }
        })?;
        tensor.release();
        progress.advance(1);
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    top.sort_by(order);
    top.truncate(wanted);
    let mut found: IndexMap<String, Vec<u64>> = IndexMap::new();
    for (_, number, position) in top {
        let name = &measured[number as usize].0.name;
        found.entry(name.clone()).or_default().push(position);
    }
    Ok(found)
}
