//! What a run takes in memory, and which settings would fit where that is too much.

use super::request::CompressRequest;
use super::sensitivity;
use crate::base::size::human_bytes;
use crate::device::memory;
use crate::job::littlebit::estimate;
use crate::job::littlebit::plan::CompressionPlan;
use crate::job::littlebit::tuning::{Effort, Recipe, estimate as tuning};
use crate::model::LocalModel;

/// Memory of the program itself and of activations, bytes: what a run takes beyond the solver's
/// matrices and the mapped files.
const BASE_MEMORY: u64 = 96 << 20;

/// Working memory with that recipe on that many threads, bytes.
pub(super) fn needed(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    recipe: Option<&Recipe>,
    threads: usize,
) -> u64 {
    // Rates play no part in memory.
    const RATE: f64 = 1.0;
    let solver = estimate::estimate(plan, &request.solver, threads, RATE).memory_bytes;
    let recovery = recipe.map_or(0, |recipe| {
        let learning = tuning::memory_bytes(plan, &model.config, recipe);
        let by_loss = CompressRequest { recipe: Some(recipe.clone()), ..request.clone() };
        if !by_loss.goes_by_loss() {
            return learning;
        }
        learning.max(sensitivity::memory(&model.config))
    });
    solver.saturating_add(recovery).saturating_add(BASE_MEMORY)
}

/// What is missing, and what would fit; `None` if the run fits.
pub(super) fn shortage(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
) -> Option<(String, String)> {
    let threads = rayon::current_num_threads();
    let bytes = needed(model, plan, request, request.recipe.as_ref(), threads);
    let memory = memory::memory();
    let work = format!("the work{} needs about {}", latents_of(plan, request), human_bytes(bytes));
    let (limit, message) = match (request.max_memory, memory) {
        (Some(limit), _) if bytes > limit => {
            (limit, format!("{work}, --max-memory allows {}", human_bytes(limit)))
        }
        (_, Some(memory)) if bytes > memory.available => (
            memory.available,
            format!(
                "{work}, and {} of {} are available",
                human_bytes(memory.available),
                human_bytes(memory.total)
            ),
        ),
        _ => return None,
    };
    let limit = memory.map_or(limit, |memory| limit.min(memory.available));
    Some((message, memory::what_fits(&changes(model, plan, request, (threads, limit)), limit)))
}

/// What can be changed, and what the run takes then, bytes; that which costs least quality first.
fn changes(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    (threads, limit): (usize, u64),
) -> Vec<(String, u64)> {
    let of = |recipe: Option<&Recipe>, threads| needed(model, plan, request, recipe, threads);
    let mut changes = Vec::new();
    let mut add = |words: &str, bytes| changes.push((words.to_owned(), bytes));
    if let Some(recipe) = request.recipe.as_ref().filter(|recipe| recipe.distillation.steps > 0) {
        let (signs, recompute) = (recipe.distillation.signs, recipe.distillation.recompute);
        let mut changed = |words: &str, signs, recompute| {
            let mut recipe = recipe.clone();
            recipe.distillation.signs = signs;
            recipe.distillation.recompute = recompute;
            add(words, of(Some(&recipe), threads));
        };
        if !recompute {
            changed("a recipe with distillation.recompute = true", signs, true);
        }
        if signs {
            changed("a recipe with distillation.signs = false", false, recompute);
        }
        if signs && !recompute {
            changed(
                "a recipe with distillation.signs = false and distillation.recompute = true",
                false,
                true,
            );
        }
    }
    for effort in
        Effort::ALL.into_iter().rev().skip_while(|effort| *effort != request.effort).skip(1)
    {
        if let Ok((_, recipe)) = Recipe::parse("", Some(effort)) {
            add(&format!("--effort {}", effort.name()), of(recipe.as_ref(), threads));
        }
    }
    // Slower, so a last resort.
    if threads > 1 && changes.iter().all(|(_, bytes)| *bytes > limit) {
        let mut add = |words: &str, bytes| changes.push((words.to_owned(), bytes));
        add("--threads 1", of(request.recipe.as_ref(), 1));
        if request.recipe.is_some() {
            add("--effort none --threads 1", of(None, 1));
        }
    }
    changes
}

/// What the memory goes to where that can be helped: signs that learn.
fn latents_of(plan: &CompressionPlan, request: &CompressRequest) -> String {
    let learning = request.recipe.as_ref().is_some_and(|r| r.distillation.needs_latents());
    if !learning {
        return String::new();
    }
    let shapes = plan.layers().map(|layer| layer.shape);
    let signs: usize = shapes.map(|s| s.paths * s.rank * (s.rows + s.cols)).sum();
    format!(" (with {:.1} million signs that learn together, 16 bytes each)", signs as f64 / 1e6)
}
