//! The last stage, with its checkpoints.

use std::sync::Arc;

use candle_core::Tensor;
use sha2::{Digest, Sha256};

use super::{Job, Tuned, short, state};
use crate::graph::weights::{head_name, head_of};
use crate::job::littlebit::compress::assemble::as_stored;
use crate::job::littlebit::compress::work::unit_id;
use crate::job::littlebit::plan::LayerPlan;
use crate::job::littlebit::report::DistillationReport;
use crate::job::littlebit::tuning::distillation::{Curriculum, Distillation, Session};
use crate::job::littlebit::tuning::layer::LearningLayer;
use crate::job::littlebit::tuning::loss::{Head, Opinions};
use crate::job::littlebit::tuning::{place_of, rows};
use crate::{Error, Result};

/// Activations of sequences that pass the original together, bytes.
const PASSING_BYTES: usize = 128 << 20;

impl Job<'_> {
    /// Distils the whole model. Also gives the number of steps.
    pub(super) fn distil(
        &mut self,
        tuned: &[Tuned],
    ) -> Result<(Option<DistillationReport>, usize)> {
        let recipe = &self.recipe.distillation;
        if recipe.steps == 0 {
            return Ok((None, 0));
        }
        let run = self.run;
        let layers: Vec<LearningLayer> = tuned.iter().map(|tuned| tuned.layer.clone()).collect();
        let opinions = if let Some(known) = run.opinions.get() {
            known.clone()
        } else {
            let opinions = self.opinions(&self.head(head_of(run.model)?)?)?;
            // Other attempts need them only where a threshold may ask for other attempts.
            if run.request.quality_threshold.is_some() {
                run.opinions.get_or_init(|| opinions.clone());
            }
            opinions
        };
        // The head that the file will hold.
        let stored = as_stored(run.model, self.plan, head_name(self.config()))?;
        let head = self.head(stored.to_f32())?;
        let learn = self.reading.learn_whole();
        let curriculum = Curriculum {
            tokens: self.reading.windows.iter().collect(),
            opinions,
            learn: &learn,
            decide: &self.decide,
        };
        let distillation = Distillation {
            student: &self.student,
            teacher: &self.teacher,
            layers: &layers,
            head: &head,
            curriculum: &curriculum,
            recipe,
            seed: run.request.solver.seed,
        };
        let id = self.distillation_id();
        let progress = run.progress;
        progress.start("Distilling", recipe.steps as u64, "steps");
        let mut session = match self.resumed(&distillation, &id)? {
            Some(session) => {
                progress.resumed(session.step as u64);
                session
            }
            None => distillation.begin()?,
        };
        while !session.is_done() {
            let look = session.advance(|| {
                progress.advance(1);
                run.check_stop()
            })?;
            progress.verbose(&format!(
                "step {}: loss {:.4}, held-out divergence {:.4} nats per token",
                session.step, look.learning, look.held_out
            ));
            self.save(&id, &mut session, tuned)?;
        }
        let before = session.before;
        let best = session.finish();
        progress.finish();
        progress.note(&format!(
            "Distilled: held-out divergence {before:.3} → {:.3} nats per token",
            best.divergence
        ));
        let report =
            DistillationReport { divergence_before: before, divergence_after: best.divergence };
        Ok((Some(report), recipe.steps))
    }

    /// The distillation as it was saved last; as it was saved before that, if a part of the last one
    /// is missing or damaged; `None` if there is neither.
    fn resumed<'d>(&self, task: &'d Distillation<'d>, id: &str) -> Result<Option<Session<'d>>> {
        let store = self.run.store;
        let Some(unit) = store.load(id)? else { return Ok(None) };
        let plans = self.plans_in_order()?;
        for saved in state::saved(&unit) {
            match state::resume(task, &saved, &plans, id, store) {
                Err(Error::Checkpoint(reason)) => self.run.progress.warn(&format!(
                    "the distillation cannot go on from step {}: {reason}",
                    saved.step
                )),
                session => {
                    // The next save must not take the place of this one.
                    store.save(id, state::only(&saved))?;
                    return session.map(Some);
                }
            }
        }
        self.run.progress.warn("The distillation begins anew");
        Ok(None)
    }

    /// A head of that weight where the models compute.
    fn head(&self, weight: Vec<f32>) -> Result<Head> {
        let vocabulary = self.config().vocab_size;
        match place_of(&self.student) {
            None => Ok(Head::new(weight, vocabulary)),
            Some(device) => Head::on_device(&weight, vocabulary, device),
        }
    }

    /// What the original predicts for every sequence. Its chain has passed all blocks; sequences
    /// that are not on it pass them here, some at a time.
    fn opinions(&mut self, head: &Head) -> Result<Vec<Arc<Opinions>>> {
        let (count, length) = (self.reading.windows.count(), self.reading.windows.length);
        let (on_chain, hidden) = (self.reading.on_chains(), self.config().hidden_size);
        let progress = self.run.progress;
        progress.start("Predicting", count as u64, "sequences");
        let mut opinions = Vec::with_capacity(count);
        for index in 0..on_chain {
            let x = rows([self.original.sequence(index)], hidden, self.teacher.device())?;
            opinions.push(self.opinion(head, &x)?);
        }
        let together = (PASSING_BYTES / (4 * length * hidden)).max(1);
        let positions = self.teacher.positions(1, length, 0);
        for first in (on_chain..count).step_by(together) {
            let tokens = self.reading.windows.iter().skip(first).take(together);
            let mut passing =
                tokens.map(|tokens| self.teacher.embed(tokens)).collect::<Result<Vec<_>>>()?;
            for index in 0..self.config().num_layers {
                let stored = self.decode_block(index)?;
                for x in &mut passing {
                    self.run.check_stop()?;
                    *x = self.teacher.block(index).forward(x, &positions, None, None)?;
                }
                self.put_back(index, stored);
            }
            for x in passing {
                opinions.push(self.opinion(head, &x)?);
            }
        }
        progress.finish();
        Ok(opinions)
    }

    /// What the original predicts after its last block gave `x`, `[tokens, hidden]`.
    fn opinion(&self, head: &Head, x: &Tensor) -> Result<Arc<Opinions>> {
        self.run.check_stop()?;
        let x = self.teacher.final_norm(x)?;
        let opinions = head.opinions(&x, self.recipe.distillation.top_k)?;
        self.run.progress.advance(1);
        Ok(Arc::new(opinions))
    }

    /// Saves a session: every layer into the slot that the last one did not use, then the unit
    /// that says which slot is whole. What is saved is rounded, also in memory; so it is without
    /// checkpoints, which do not change the result.
    fn save(&self, id: &str, session: &mut Session<'_>, tuned: &[Tuned]) -> Result<()> {
        let survives = self.run.store.survives();
        let before = self.run.store.load(id)?;
        let before = before.as_ref().and_then(|unit| state::saved(unit).next());
        let slot = before.as_ref().map_or(0, |saved| 1 - saved.slot);
        let mut moments = session.adam.moments_mut();
        for (index, tuned) in tuned.iter().enumerate() {
            state::round_latents(&tuned.layer);
            let unit = state::save_learning(
                tuned,
                &mut moments,
                &session.best.layers[index],
                self.recipe.distillation.signs,
                session.step,
            );
            if survives {
                self.run.store.save(&state::slot_name(id, slot, &tuned.name), unit)?;
            }
        }
        drop(moments);
        if survives {
            self.run.store.save(id, state::session(session, slot, before.as_ref()))?;
        }
        Ok(())
    }

    fn plans_in_order(&self) -> Result<Vec<&LayerPlan>> {
        let blocks = (0..self.config().num_layers).map(|block| self.plans_of(block));
        Ok(blocks.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Names the distillation by everything that it follows from.
    fn distillation_id(&self) -> String {
        let mut hash = Sha256::new();
        self.layers.iter().for_each(|plan| hash.update(unit_id(plan)));
        hash.update(serde_json::to_string(self.recipe).unwrap_or_default());
        format!("distilled-{}", short(&hash.finalize()))
    }
}
