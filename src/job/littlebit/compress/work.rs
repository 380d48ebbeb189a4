//! One attempt at one target: factorize every matrix, write the file, measure it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::facts::Facts;
use super::quality::Reference;
use super::request::CompressRequest;
use super::statistics::Calibration;
use super::units::UnitStore;
use super::{assemble, pack};
use crate::base::progress::Progress;
use crate::device::{Backend, memory, threads};
use crate::job::littlebit::engine::{Engine, HostEngine};
use crate::job::littlebit::engine_candle::CandleEngine;
use crate::job::littlebit::estimate;
use crate::job::littlebit::normalise::Importance;
use crate::job::littlebit::plan::{CompressionPlan, LayerPlan};
use crate::job::littlebit::report::{Iteration, LayerReport, RecoveryReport};
use crate::job::littlebit::solve::solve;
use crate::job::littlebit::tuning::loss::Opinions;
use crate::measure::QualityMetrics;
use crate::model::LocalModel;
use crate::text::TextSource;
use crate::tokenizer::Tokenizer;
use crate::weight::Weight;
use crate::{Error, Result};

/// What every attempt of a run shares.
pub(super) struct Run<'a> {
    pub(super) model: &'a LocalModel,
    pub(super) request: &'a CompressRequest,
    pub(super) backend: &'a Backend,
    pub(super) progress: &'a dyn Progress,
    pub(super) store: &'a UnitStore,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) text: &'a TextSource,
    pub(super) facts: &'a Facts,
    /// Warnings given so far, for the report.
    pub(super) warnings: Mutex<Vec<String>>,
    /// What the original predicts for the sequences that recovery reads. They are the same at every
    /// target, so the attempts of a search share them.
    pub(super) opinions: OnceLock<Vec<Arc<Opinions>>>,
}

/// The result of an attempt; its file is at `path`.
pub(super) struct Candidate {
    pub(super) plan: CompressionPlan,
    pub(super) path: PathBuf,
    pub(super) file_size: u64,
    pub(super) layers: Vec<LayerReport>,
    pub(super) quality: Option<QualityMetrics>,
    pub(super) recovery: Option<RecoveryReport>,
}

impl Candidate {
    /// Whether it meets the threshold (nothing measured, nothing missed).
    pub(super) fn passed(&self) -> bool {
        self.quality.as_ref().is_none_or(|q| q.quality_passed)
    }

    pub(super) fn iteration(&self) -> Option<Iteration> {
        self.quality.as_ref().map(|q| Iteration {
            target_bpw: self.plan.target_bpw,
            achieved_bpw: self.plan.achieved_bpw(),
            perplexity: q.perplexity_compressed,
            perplexity_delta_pct: q.perplexity_delta_pct,
            passed: q.quality_passed,
        })
    }

    /// Removes the file of an attempt that is not kept.
    pub(super) fn discard(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, e))
    }
}

impl Run<'_> {
    /// Factorizes, writes `path`, and measures unless that was declined.
    pub(super) fn attempt(
        &self,
        plan: CompressionPlan,
        path: PathBuf,
        calibration: Option<&Calibration>,
        reference: &mut Option<Reference>,
    ) -> Result<Candidate> {
        let mut recovery = None;
        let layers = match &self.request.recipe {
            Some(recipe) => {
                let (layers, report) = self.recover(&plan, recipe)?;
                recovery = Some(report);
                layers
            }
            None => self.factorize(&plan, calibration)?,
        };
        let file_size = assemble::write(self, &plan, &layers, &path)?;
        self.progress.note(&format!(
            "Achieved: {:.2} BPW, {:.1}x compression",
            plan.achieved_bpw(),
            plan.compression_ratio(file_size)
        ));
        let quality = if self.request.skip_validation {
            None
        } else {
            Some(self.measure(&path, plan.target_bpw, reference)?)
        };
        Ok(Candidate { plan, path, file_size, layers, quality, recovery })
    }

    /// Warns the user now and in the report.
    pub(super) fn warn(&self, text: String) {
        self.progress.warn(&text);
        lock(&self.warnings).push(text);
    }

    /// The error of a run that was asked to stop.
    pub(super) fn interrupted(&self) -> Error {
        Error::Interrupted { resume: self.request.resume_command.clone() }
    }

    /// Solves every matrix that is not in the store yet, several at a time, in plan order.
    fn factorize(
        &self,
        plan: &CompressionPlan,
        calibration: Option<&Calibration>,
    ) -> Result<Vec<LayerReport>> {
        let layers: Vec<&LayerPlan> = plan.layers().collect();
        let blocks = plan.summary().blocks;
        let tally = Tally::new(&layers);
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let reports: Vec<Mutex<Option<LayerReport>>> =
            layers.iter().map(|_| Mutex::new(None)).collect();
        let workers = self.workers(&layers);
        self.progress.debug(&format!("{workers} matrices are factorized at a time"));
        self.progress.start("Factorizing", blocks as u64, "layers");
        threads::on_several(workers, || {
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&layer) = layers.get(index) else { break };
                let outcome = if self.progress.stop_requested() {
                    Err(self.interrupted())
                } else {
                    self.layer(layer, calibration)
                };
                match outcome {
                    Ok((report, restored)) => {
                        tally.add(layer, &report, restored, self.progress);
                        *lock(&reports[index]) = Some(report);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        lock(&failure).get_or_insert(error);
                    }
                }
            }
        });
        self.progress.finish();
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        reports
            .into_iter()
            .map(|slot| {
                slot.into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .ok_or_else(|| Error::General("a layer was left without a result".into()))
            })
            .collect()
    }

    /// Matrices solved at the same time: one per thread as far as memory allows; one on a GPU.
    pub(super) fn workers(&self, layers: &[&LayerPlan]) -> usize {
        if !self.backend.device.is_cpu() {
            return 1;
        }
        let sizes = layers.iter().map(|layer| estimate::memory(&layer.shape, &self.request.solver));
        let largest = sizes.max().unwrap_or(1).max(1);
        let available = memory::available_bytes();
        let limit = self.request.max_memory.map_or(available, |m| m.min(available));
        let by_memory = usize::try_from(limit / largest).unwrap_or(usize::MAX);
        rayon::current_num_threads().min(by_memory).clamp(1, layers.len().max(1))
    }

    /// One matrix: from the store if it is there, else solved and saved. Also says whether it was there.
    fn layer(
        &self,
        layer: &LayerPlan,
        calibration: Option<&Calibration>,
    ) -> Result<(LayerReport, bool)> {
        let id = unit_id(layer);
        if let Some(unit) = self.store.load(&id)? {
            return Ok((pack::report_of(layer, Some(&unit)), true));
        }
        let weight_name = format!("{}.weight", layer.name);
        let Some(Weight::Stored(tensor)) = self.model.weights.get(&weight_name) else {
            return Err(Error::model_not_found(format!("the model has no tensor {weight_name}")));
        };
        let weight = tensor.to_f32();
        tensor.bytes.release();
        let columns = calibration.map(|c| c.columns(&layer.name)).transpose()?;
        let importance = Importance { rows: None, columns: columns.as_deref() };
        let solution = solve(
            &layer.name,
            &weight,
            &layer.shape,
            &self.request.solver,
            importance,
            self.engine().as_ref(),
        )?;
        drop(weight);
        let unit = pack::to_unit(layer, &solution, columns.is_some());
        let report = pack::report_of(layer, Some(&unit));
        self.store.save(&id, unit)?;
        Ok((report, false))
    }

    /// Where the large products of the solver run.
    pub(super) fn engine(&self) -> Box<dyn Engine> {
        if self.backend.device.is_cpu() {
            Box::new(HostEngine)
        } else {
            Box::new(CandleEngine::new(self.backend.device.clone()))
        }
    }
}

/// Name of a matrix's unit: its form is part of it, so that a search reuses what it can.
pub(super) fn unit_id(layer: &LayerPlan) -> String {
    let shape = &layer.shape;
    let scales = if shape.middle_scale { "+latent" } else { "" };
    let scale_type = shape.scales.unit_suffix();
    format!("{}@{}x{}{scales}{scale_type}", layer.name, shape.paths, shape.rank)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The slots are written once, by one assignment each.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Counts finished matrices per block and prints a line when a block is complete.
struct Tally {
    blocks: Mutex<BTreeMap<usize, Block>>,
}

#[derive(Clone, Default)]
struct Block {
    missing: usize,
    ranks: usize,
    matrices: usize,
    bits: f64,
    weights: f64,
    error: f64,
    /// Matrices that were solved now.
    solved: usize,
}

impl Tally {
    fn new(layers: &[&LayerPlan]) -> Self {
        let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
        for layer in layers {
            blocks.entry(layer.block).or_default().missing += 1;
        }
        Self { blocks: Mutex::new(blocks) }
    }

    fn add(
        &self,
        layer: &LayerPlan,
        report: &LayerReport,
        restored: bool,
        progress: &dyn Progress,
    ) {
        let error = report.weighted_error.or(report.relative_error).unwrap_or(f64::NAN);
        progress.verbose(&format!(
            "{}: rank={}, bpw={:.3}, error={error:.4}",
            layer.name, report.rank, report.bpw
        ));
        let mut blocks = lock(&self.blocks);
        let Some(block) = blocks.get_mut(&layer.block) else { return };
        let weights = (report.shape[0] * report.shape[1]) as f64;
        block.missing -= 1;
        block.matrices += 1;
        block.solved += usize::from(!restored);
        block.ranks += report.rank;
        block.weights += weights;
        block.bits += report.bpw * weights;
        block.error += error;
        if block.missing == 0 {
            progress.detail(&format!(
                "Layer {}: rank={:.0}, bpw={:.2}, error={:.3}",
                layer.block,
                block.ranks as f64 / block.matrices as f64,
                block.bits / block.weights,
                block.error / block.matrices as f64
            ));
            if block.solved == 0 {
                progress.resumed(1);
            } else {
                progress.advance(1);
            }
        }
    }
}
