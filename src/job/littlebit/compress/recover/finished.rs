//! What of a run is in its checkpoint already.

use super::state;
use crate::job::littlebit::compress::request::CompressRequest;
use crate::job::littlebit::compress::statistics;
use crate::job::littlebit::compress::units::UnitStore;

/// Shares of the stages that are done, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::job::littlebit::compress) struct Finished {
    sensitivity: f64,
    writing: f64,
    factorization: f64,
    tuning: f64,
    distillation: f64,
    calibration: f64,
}

impl Finished {
    /// Of a stage. The activations are computed again, and so is what the original predicts.
    pub(in crate::job::littlebit::compress) fn share(&self, stage: &str) -> f64 {
        match stage {
            "sensitivity" => self.sensitivity,
            "writing" => self.writing,
            "factorization" => self.factorization,
            "tuning" => self.tuning,
            "distillation" => self.distillation,
            "calibration" => self.calibration,
            _ => 0.0,
        }
    }
}

/// Counts the units of a store for a model of `blocks` blocks.
pub(in crate::job::littlebit::compress) fn finished(
    store: &UnitStore,
    blocks: usize,
    request: &CompressRequest,
) -> Finished {
    let units = store.done();
    let count = |prefix: &str| units.iter().filter(|unit| unit.starts_with(prefix)).count();
    let share = |done: usize, all: usize| (done as f64 / all.max(1) as f64).min(1.0);
    let Some(recipe) = &request.recipe else {
        // Each matrix is a unit by its name.
        return Finished {
            calibration: share(usize::from(units.contains(statistics::UNIT)), 1),
            factorization: share(count("model.layers."), 7 * blocks),
            ..Finished::default()
        };
    };
    // `written-COUNT-FIRST-SEQUENCES`.
    let written = units.iter().filter_map(|unit| {
        let mut numbers = unit.strip_prefix("written-")?.split('-').map(str::parse::<usize>);
        let (count, _, sequences) =
            (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(sequences as f64 / count.max(1) as f64)
    });
    let mut steps = 0;
    for unit in units.iter().filter(|unit| state::is_session(unit)) {
        // One that is damaged is found out where it is used.
        let unit = store.load(unit).ok().flatten();
        steps = unit.map_or(0, |unit| state::steps(&unit)).max(steps);
    }
    let tuned = share(count("tuned-"), blocks);
    Finished {
        sensitivity: share(count("sensitivity-"), blocks),
        writing: written.sum::<f64>().min(1.0),
        factorization: tuned,
        tuning: tuned,
        distillation: share(steps, recipe.distillation.steps),
        calibration: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::files::checkpoint::UnitData;
    use crate::job::littlebit::tuning::{Effort, Recipe};

    #[test]
    fn what_an_earlier_run_did_is_no_longer_to_do() {
        let store = UnitStore::Memory(Mutex::new(HashMap::new()));
        let mut recipe = Recipe::of(Effort::Balanced);
        recipe.distillation.steps = 200;
        let mut request = crate::job::littlebit::compress::recover::tests::request(
            recipe,
            Path::new("m.littlebit"),
        );
        assert_eq!(finished(&store, 4, &request), Finished::default());
        for unit in ["sensitivity-0", "sensitivity-1", "written-100-0-64", "tuned-0-abc"] {
            store.save(unit, UnitData::default()).unwrap();
        }
        let meta = serde_json::json!({"step": 50});
        store.save("distilled-0123456789ab", UnitData::new(meta)).unwrap();
        let done = finished(&store, 4, &request);
        for (stage, share) in [
            ("sensitivity", 0.5),
            ("writing", 0.64),
            ("activations", 0.0),
            ("factorization", 0.25),
            ("tuning", 0.25),
            ("opinions", 0.0),
            ("distillation", 0.25),
            ("evaluation", 0.0),
        ] {
            assert!((done.share(stage) - share).abs() < 1e-12, "{stage}: {done:?}");
        }
        // Without recovery a matrix is a unit.
        request.recipe = None;
        for linear in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            let unit = format!("model.layers.0.self_attn.{linear}@1x20");
            store.save(&unit, UnitData::default()).unwrap();
        }
        store.save("statistics", UnitData::default()).unwrap();
        let done = finished(&store, 4, &request);
        assert!((done.share("factorization") - 1.0 / 7.0).abs() < 1e-12, "{done:?}");
        assert!((done.share("calibration") - 1.0).abs() < 1e-12, "{done:?}");
    }
}
