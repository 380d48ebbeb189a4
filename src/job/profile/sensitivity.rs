//! What the model as a whole loses when one of its tensors is quantized: measured, tensor by tensor.
//!
//! A tensor is replaced by itself in a low type, everything behind it is run again on a few hundred
//! tokens of text, and the Kullback–Leibler divergence of the next-token distributions from the
//! original's is the loss, in nats per token. The blocks in front of it have not changed, so each
//! measurement starts at the tensor's own block.
//!
//! A small disturbance of the weights moves the divergence by ½ δᵀFδ (F: the Fisher information of
//! the weights), so in its second power: twice the squared error costs twice as much. Between two
//! measured points the loss is a power of the squared error, and below the smallest one it is
//! proportional to it.

use candle_core::Tensor;
use indexmap::IndexMap;
use rayon::prelude::*;

use crate::arch::names;
use crate::base::SharedBytes;
use crate::base::progress::Progress;
use crate::codec::{StoredType, ggml};
use crate::device::Backend;
use crate::files::imatrix::ImportanceMatrix;
use crate::graph::{Decoder, LinearLayer, StoredLinear};
use crate::measure::original::Original;
use crate::model::LocalModel;
use crate::text::CalibrationWindows;
use crate::weight::{StoredTensor, Weight};
use crate::{Error, Result};

/// The embedding, as Hugging Face names it.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head, where it is a matrix of its own.
const HEAD: &str = "lm_head.weight";

/// A tensor in one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// The type.
    pub kind: StoredType,
    /// Σ w (x − y)² / Σ w x² over the tensor, w the importance of the column.
    pub error: f64,
    /// Mean divergence of the model with this one tensor in that type, nats per token.
    pub divergence: f64,
}

/// What the model loses by one tensor's error.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sensitivity {
    /// Measurements, smallest error first.
    points: Vec<Point>,
}

impl Sensitivity {
    /// From measurements; those without error or divergence say nothing and are dropped.
    #[must_use]
    pub(crate) fn new(mut points: Vec<Point>) -> Self {
        points.retain(|point| point.error > 0.0 && point.divergence > 0.0);
        points.sort_by(|a, b| a.error.total_cmp(&b.error));
        Self { points }
    }

    /// The measurements.
    #[must_use]
    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    /// The divergence to expect of a relative squared error, nats per token. A type that was
    /// measured has what was measured.
    #[must_use]
    pub(crate) fn divergence(&self, kind: StoredType, error: f64) -> f64 {
        if let Some(point) = self.points.iter().find(|point| point.kind == kind) {
            return point.divergence;
        }
        let Some(first) = self.points.first() else { return 0.0 };
        let last = self.points[self.points.len() - 1];
        if error <= first.error {
            return first.divergence * error / first.error;
        }
        let pair = self.points.windows(2).find(|pair| error <= pair[1].error);
        let Some([low, high]) = pair else { return last.divergence * error / last.error };
        let span = (high.error / low.error).ln();
        let power = if span > 0.0 { (high.divergence / low.divergence).ln() / span } else { 1.0 };
        low.divergence * (error / low.error).powf(power)
    }
}

/// Where a tensor works.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// The embedding and, where they are one matrix, the head.
    Embedding,
    /// The number of the block and of the linear layer in it.
    Block(usize, usize),
    /// The head alone.
    Head,
}

struct Job<'a> {
    name: String,
    tensor: &'a StoredTensor,
    kinds: Vec<StoredType>,
    place: Place,
}

/// A model that is run with some of its tensors in other types, beside itself.
///
/// After an error it must not be used any more.
pub(crate) struct Probe<'a> {
    model: &'a LocalModel,
    importance: Option<&'a ImportanceMatrix>,
    tokens: &'a [u32],
    original: Original,
    /// What goes into the block that is measured, `[tokens, hidden]`.
    input: Tensor,
}

impl<'a> Probe<'a> {
    /// Runs the original and keeps its logits.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model whose weights are factors; what running it can fail with.
    pub(crate) fn new(
        model: &'a LocalModel,
        importance: Option<&'a ImportanceMatrix>,
        windows: &'a CalibrationWindows,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let decoder = Decoder::new(model, &Backend::cpu())?;
        let original = Original::new(decoder, &windows.tokens, windows.length)?;
        let tokens = &windows.tokens[..original.tokens()];
        progress.note(&format!("Sensitivity is measured on {} tokens", tokens.len()));
        let input = original.decoder().embed(tokens)?;
        Ok(Self { model, importance, tokens, original, input })
    }

    /// Tokens of text that everything is measured on.
    #[must_use]
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Measures every tensor for which `kinds` (by GGUF name and tensor) names types, each alone.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asks to stop, and what running the model can fail with.
    pub(crate) fn each(
        &mut self,
        kinds: &dyn Fn(&str, &StoredTensor) -> Vec<StoredType>,
        progress: &dyn Progress,
    ) -> Result<IndexMap<String, Sensitivity>> {
        let jobs = self.jobs(kinds)?;
        let count: usize = jobs.iter().map(|job| job.kinds.len()).sum();
        progress.start("Measuring sensitivity", count as u64, "measurements");
        let mut found: IndexMap<String, Vec<Point>> = IndexMap::new();
        self.input = self.original.decoder().embed(self.tokens)?;
        let mut at = 0;
        for job in &jobs {
            if let Place::Block(block, _) = job.place {
                while at < block {
                    self.input = self.original.pass(at, &self.input, None)?;
                    at += 1;
                }
            }
            for &kind in &job.kinds {
                if progress.stop_requested() {
                    return Err(Error::Interrupted { resume: None });
                }
                let point = self.point(job, kind)?;
                progress.verbose(&format!(
                    "{} {}: error {:.4}, divergence {:.6}",
                    job.name,
                    kind.name(),
                    point.error,
                    point.divergence
                ));
                found.entry(job.name.clone()).or_default().push(point);
                progress.advance(1);
            }
        }
        progress.finish();
        Ok(found.into_iter().map(|(name, points)| (name, Sensitivity::new(points))).collect())
    }

    /// Mean divergence with all tensors at once in the types that `kinds` (by GGUF name) says,
    /// nats per token. Those of which it says nothing stay as they are.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asks to stop, and what running the model can fail with.
    pub(crate) fn together(
        &mut self,
        kinds: &dyn Fn(&str) -> Option<StoredType>,
        progress: &dyn Progress,
    ) -> Result<f64> {
        let table = self.replacement(EMBEDDING, kinds)?;
        let head = if self.model.config.tie_word_embeddings {
            table.clone()
        } else {
            self.replacement(HEAD, kinds)?
        };
        let mut x = match &table {
            Some(table) => embed(table, self.tokens)?,
            None => self.original.decoder().embed(self.tokens)?,
        };
        let blocks = self.original.decoder().blocks().len();
        progress.start("Measuring the whole", blocks as u64, "blocks");
        for block in 0..blocks {
            if progress.stop_requested() {
                return Err(Error::Interrupted { resume: None });
            }
            let projections = self.original.decoder().block(block).projections();
            let names: Vec<String> =
                projections.iter().map(|p| format!("{}.weight", p.name)).collect();
            let mut originals = Vec::new();
            for (number, name) in names.iter().enumerate() {
                let Some(tensor) = self.replacement(name, kinds)? else { continue };
                let layer = Box::new(StoredLinear::new(tensor)?);
                originals.push((number, self.original.exchange(block, number, layer)?));
            }
            x = self.original.pass(block, &x, None)?;
            for (number, original) in originals {
                self.original.exchange(block, number, original)?;
            }
            progress.advance(1);
        }
        progress.finish();
        let hidden = self.original.decoder().final_norm(&x)?;
        let head = head.map(StoredLinear::new).transpose()?;
        self.divergence(&hidden, head.as_ref())
    }

    /// The tensor of that Hugging Face name in its new type, if `kinds` has one for it.
    fn replacement(
        &self,
        name: &str,
        kinds: &dyn Fn(&str) -> Option<StoredType>,
    ) -> Result<Option<StoredTensor>> {
        let tensor = stored(self.model, name)?;
        let name = gguf_name(name)?;
        match kinds(&name).filter(|&kind| kind != tensor.dtype) {
            Some(kind) => Ok(Some(written_as(tensor, kind, self.columns(&name, tensor))?.0)),
            None => Ok(None),
        }
    }

    fn columns(&self, name: &str, tensor: &StoredTensor) -> Option<&'a [f32]> {
        self.importance.and_then(|all| all.columns(name, 1, tensor.cols()).ok().flatten())
    }

    /// The tensors to measure: the embedding, block by block the linear layers, the head.
    fn jobs(&self, kinds: &dyn Fn(&str, &StoredTensor) -> Vec<StoredType>) -> Result<Vec<Job<'a>>> {
        let mut places = vec![(EMBEDDING.to_owned(), Place::Embedding)];
        for (block, parts) in self.original.decoder().blocks().iter().enumerate() {
            for (number, projection) in parts.projections().iter().enumerate() {
                places.push((format!("{}.weight", projection.name), Place::Block(block, number)));
            }
        }
        if !self.model.config.tie_word_embeddings {
            places.push((HEAD.to_owned(), Place::Head));
        }
        let mut jobs = Vec::new();
        for (name, place) in places {
            let tensor = stored(self.model, &name)?;
            let name = gguf_name(&name)?;
            let kinds = kinds(&name, tensor);
            jobs.push(Job { name, tensor, kinds, place });
        }
        Ok(jobs)
    }

    fn point(&mut self, job: &Job<'a>, kind: StoredType) -> Result<Point> {
        let columns = self.columns(&job.name, job.tensor);
        let (tensor, error) = written_as(job.tensor, kind, columns)?;
        let hidden = match job.place {
            Place::Head => self.original.hidden().clone(),
            Place::Embedding => self.original.behind(0, &embed(&tensor, self.tokens)?)?,
            Place::Block(block, number) => {
                let layer = Box::new(StoredLinear::new(tensor.clone())?);
                self.original.exchanged(block, number, &self.input, layer)?
            }
        };
        let tied = self.model.config.tie_word_embeddings;
        let replaced = match job.place {
            Place::Head => true,
            Place::Embedding => tied,
            Place::Block(..) => false,
        };
        let changed = if replaced { Some(StoredLinear::new(tensor)?) } else { None };
        let divergence = self.divergence(&hidden, changed.as_ref())?;
        Ok(Point { kind, error, divergence })
    }

    fn divergence(&self, hidden: &Tensor, head: Option<&StoredLinear>) -> Result<f64> {
        let head = head.map(|head| head as &dyn LinearLayer);
        let mean = self.original.divergence(hidden, head)?;
        // A type so poor that a token becomes impossible is as bad as can be.
        Ok(if mean.is_finite() { mean } else { f64::MAX })
    }
}

fn gguf_name(name: &str) -> Result<String> {
    names::to_gguf(name).ok_or_else(|| Error::General(format!("{name} has no name in GGUF files")))
}

fn stored<'a>(model: &'a LocalModel, name: &str) -> Result<&'a StoredTensor> {
    match model.weights.get(name) {
        Some(Weight::Stored(tensor)) => Ok(tensor),
        Some(_) => Err(Error::Unsupported {
            message: format!("{name} is not stored as a matrix"),
            suggestion: "Give the original model".to_owned(),
        }),
        None => Err(Error::damaged(&model.path, format!("the tensor {name} is missing"))),
    }
}

/// A matrix in another type, rows in Hugging Face order, and its relative squared error.
fn written_as(
    tensor: &StoredTensor,
    kind: StoredType,
    columns: Option<&[f32]>,
) -> Result<(StoredTensor, f64)> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let row_bytes = kind.row_bytes(cols).ok_or_else(|| {
        Error::General(format!("rows of {cols} values do not fill blocks of {}", kind.name()))
    })?;
    let mut bytes = vec![0; rows * row_bytes];
    let sums: Vec<(f64, f64)> = bytes
        .par_chunks_exact_mut(row_bytes)
        .enumerate()
        .map_init(
            || (vec![0.0f32; cols], vec![0.0f32; cols]),
            |(values, decoded), (row, bytes)| {
                tensor.read_rows(row..row + 1, values);
                ggml::encode_row(kind, values, columns, bytes);
                ggml::decode(kind, bytes, decoded);
                squares(values, decoded, columns)
            },
        )
        .collect();
    let (noise, signal) = sums.iter().fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    let error = if signal > 0.0 { noise / signal } else { 0.0 };
    let shape = vec![rows, cols];
    Ok((StoredTensor::new(shape, kind, SharedBytes::from_vec(bytes))?, error))
}

/// Σ w (x − y)² and Σ w x².
pub(crate) fn squares(values: &[f32], decoded: &[f32], columns: Option<&[f32]>) -> (f64, f64) {
    let (mut noise, mut signal) = (0.0f64, 0.0f64);
    for (column, (x, y)) in values.iter().zip(decoded).enumerate() {
        let weight = columns.map_or(1.0, |columns| f64::from(columns[column]));
        noise += weight * f64::from(x - y).powi(2);
        signal += weight * f64::from(*x).powi(2);
    }
    (noise, signal)
}

fn embed(table: &StoredTensor, tokens: &[u32]) -> Result<Tensor> {
    let cols = table.cols();
    let mut out = vec![0.0; tokens.len() * cols];
    for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(cols)) {
        let row = token as usize;
        if row >= table.rows() {
            return Err(Error::General(format!("token {token} is outside the vocabulary")));
        }
        table.read_rows(row..row + 1, out);
    }
    Ok(Tensor::from_vec(out, (tokens.len(), cols), &candle_core::Device::Cpu)?)
}
