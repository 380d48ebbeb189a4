//! Recovery whole, on the tiny model: by every way it can be computed.

use std::path::Path;

use super::{Tuned, divide, state};
use crate::base::progress::NullProgress;
use crate::codec::StoredType;
use crate::device::Backend;
use crate::files::checkpoint::UnitData;
use crate::job::littlebit::compress::compress;
use crate::job::littlebit::compress::request::{Checkpoints, CompressRequest, Weighting};
use crate::job::littlebit::plan::{PlanRequest, headers_of, plan};
use crate::job::littlebit::report::RecoveryReport;
use crate::job::littlebit::solve::SolverConfig;
use crate::job::littlebit::tuning::layer::{LearningLayer, PathValues};
use crate::job::littlebit::tuning::recipe::RankAllocation;
use crate::job::littlebit::tuning::{Effort, Recipe};
use crate::model::open_local;
use crate::text::TextOptions;
use crate::weight::{Factor, Weight};

/// A short recipe in which everything takes part.
fn recipe() -> Recipe {
    let mut recipe = Recipe::of(Effort::Fast);
    recipe.text.sequences = 12;
    recipe.text.held_out = 3;
    recipe.text.length = 96;
    recipe.text.written = false;
    recipe.blocks.rank_allocation = RankAllocation::Uniform;
    recipe.blocks.steps = 16;
    recipe.distillation.sequences = 12;
    recipe.distillation.steps = 16;
    recipe.distillation.batch = 2;
    recipe.distillation.hidden_weight = 0.5;
    // Few signs move, so that rounding decides about few.
    (recipe.blocks.sign_rate, recipe.blocks.scale_rate) = (0.002, 0.005);
    (recipe.distillation.sign_rate, recipe.distillation.scale_rate) = (0.001, 0.005);
    recipe
}

pub(super) fn request(recipe: Recipe, output: &Path) -> CompressRequest {
    CompressRequest {
        plan: PlanRequest { target_bpw: 1.0, ..PlanRequest::default() },
        solver: SolverConfig { iterations: 12, ..SolverConfig::default() },
        // The solver follows the last bit of its weights, which is not what is compared here.
        weighting: Weighting::None,
        text: TextOptions { calibration: None, evaluation: None, hub: None },
        effort: Effort::Fast,
        recipe: Some(recipe),
        calibration_samples: 64,
        eval_tokens: 0,
        quality_threshold: None,
        warn_threshold: 100.0,
        search_iterations: 1,
        skip_validation: true,
        output: output.to_path_buf(),
        checkpoints: Checkpoints::Off,
        max_memory: None,
        resume_command: None,
    }
}

/// What recovery says of itself, and the signs and scales that it found.
fn recovered(recipe: Recipe, backend: &Backend) -> (RecoveryReport, Vec<Factor>) {
    recovered_with(recipe, StoredType::Q8_0, backend)
}

fn recovered_with(
    recipe: Recipe,
    embedding_type: StoredType,
    backend: &Backend,
) -> (RecoveryReport, Vec<Factor>) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.littlebit");
    let model = open_local(Path::new("models/tiny")).unwrap();
    let mut request = request(recipe, &output);
    request.plan.embedding_type = embedding_type;
    let report = compress(&model, &request, backend, &NullProgress);
    let report = report.map_err(|failure| failure.error).unwrap();
    let result = open_local(&output).unwrap();
    let factors = result.weights.values().filter_map(|weight| match weight {
        Weight::Factorized(layer) => Some(layer.paths.clone()),
        _ => None,
    });
    (report.recovery.unwrap(), factors.flatten().collect())
}

#[test]
fn every_device_takes_the_same_way() {
    let (host, _) = recovered(recipe(), &Backend::cpu());
    let (plain, _) = recovered(recipe(), &Backend::plain_cpu());
    let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.03;
    // Adam moves by the sign of a gradient however small it is, so rounding decides here and there;
    // what differs adds up over the blocks.
    let nearly = |a: f64, b: f64| (a / b - 1.0).abs() < 0.05;
    assert_eq!(host.blocks.len(), plain.blocks.len());
    for (a, b) in host.blocks.iter().zip(&plain.blocks) {
        // The first block's error before it is tuned is that of equal factors on equal inputs.
        assert!(close(a.error_before, b.error_before), "{a:?} {b:?}");
        assert!(close(a.error_after, b.error_after), "{a:?} {b:?}");
        assert!(b.error_after < b.error_before);
    }
    let (a, b) = (host.distillation.unwrap(), plain.distillation.unwrap());
    assert!(nearly(a.divergence_before, b.divergence_before), "{a:?} {b:?}");
    assert!(nearly(a.divergence_after, b.divergence_after), "{a:?} {b:?}");
    assert!(b.divergence_after < 0.95 * b.divergence_before, "{b:?}");
}

#[test]
fn blocks_that_are_computed_again_learn_the_same() {
    let mut again = recipe();
    again.distillation.recompute = true;
    let (whole, factors) = recovered(recipe(), &Backend::cpu());
    let (by_blocks, others) = recovered(again.clone(), &Backend::cpu());
    assert_eq!(whole.distillation, by_blocks.distillation);
    assert_eq!(factors.len(), 28);
    for (a, b) in factors.iter().zip(&others) {
        assert!(a.left.bytes[..] == b.left.bytes[..]);
        assert!(a.right.bytes[..] == b.right.bytes[..]);
        assert_eq!(a.row_scale, b.row_scale);
        assert_eq!(a.column_scale, b.column_scale);
    }
    let (plain, _) = recovered(again, &Backend::plain_cpu());
    let (a, b) = (whole.distillation.unwrap(), plain.distillation.unwrap());
    assert!((a.divergence_after / b.divergence_after - 1.0).abs() < 0.05, "{a:?} {b:?}");
}

#[test]
fn one_matrix_after_the_other_is_another_order_that_learns_too() {
    let mut one_by_one = recipe();
    one_by_one.blocks.interleaved = true;
    one_by_one.blocks.absorption_steps = 14;
    let (joint, _) = recovered(recipe(), &Backend::cpu());
    let (ordered, _) = recovered(one_by_one.clone(), &Backend::cpu());
    assert_ne!(joint.blocks, ordered.blocks);
    // Its last matrix learns last, with all others in place.
    assert!(ordered.blocks.iter().all(|block| block.error_after <= block.error_before));
    let learned = ordered.distillation.unwrap();
    assert!(learned.divergence_after < 0.95 * learned.divergence_before, "{learned:?}");
    let output = Path::new("m.littlebit");
    let refused = super::check(&request(one_by_one, output), &Backend::plain_cpu()).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
}

#[test]
fn layers_learn_behind_the_embedding_that_the_file_holds() {
    let mut short = recipe();
    short.blocks.steps = 1;
    short.distillation.steps = 1;
    let first = |embedding_type| {
        let (report, _) = recovered_with(short.clone(), embedding_type, &Backend::cpu());
        (report.blocks[0].error_before, report.distillation.unwrap().divergence_before)
    };
    let (exact, coarse) = (first(StoredType::F16), first(StoredType::Q4_0));
    assert!(coarse.0 > 1.0005 * exact.0, "{coarse:?} {exact:?}");
    assert!((coarse.1 - exact.1).abs() > 1e-3, "{coarse:?} {exact:?}");
}

#[test]
fn latents_and_bits_come_back_from_their_units() {
    let model = open_local(Path::new("models/tiny")).unwrap();
    let request = PlanRequest { target_bpw: 0.3, ..PlanRequest::default() };
    let plan = plan(&headers_of(&model), &request).unwrap();
    let layer = plan.layers().next().unwrap();
    let (rows, cols, rank) = (layer.shape.rows, layer.shape.cols, layer.shape.rank);
    // Numbers that f16 holds exactly, of both signs.
    let latents = |count: usize| -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.5) / 64.0).collect()
    };
    let path = PathValues {
        left: latents(rows * rank),
        right: latents(rank * cols),
        bits: None,
        row: vec![0.25; rows],
        latent: None,
        column: vec![2.0; cols],
    };
    let layer_of = || LearningLayer::new((rows, cols), rank, vec![path.clone()]).unwrap();
    for freeze in [false, true] {
        let tuned = Tuned { name: layer.name.clone(), layer: layer_of(), inputs: None };
        if freeze {
            tuned.layer.freeze();
        }
        let unit = state::save(UnitData::default(), &tuned);
        let loaded = state::load(&unit, layer).unwrap();
        let paths = loaded.layer.paths();
        assert_eq!(paths[0].bits.is_some(), freeze);
        let [left, right] = paths[0].factors();
        if freeze {
            assert!(left.iter().zip(&path.left).all(|(sign, latent)| sign * latent > 0.0));
            assert!(right.iter().zip(&path.right).all(|(sign, latent)| sign * latent > 0.0));
        } else {
            assert_eq!((&*left, &*right), (&*path.left, &*path.right));
        }
        assert_eq!(paths[0].row, path.row);
        assert_eq!(paths[0].column, path.column);
    }
}

#[test]
fn sequences_are_divided_completely_and_evenly() {
    for (count, held_out) in [(2, 1), (10, 3), (272, 16), (7, 100), (5, 0)] {
        let (learn, decide) = divide(count, held_out);
        assert_eq!(decide.len(), held_out.clamp(1, count / 2));
        let mut all: Vec<usize> = learn.iter().chain(&decide).copied().collect();
        all.sort_unstable();
        assert!(all.iter().copied().eq(0..count));
    }
}
