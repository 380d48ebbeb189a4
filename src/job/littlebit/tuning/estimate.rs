//! What recovery will cost in time and memory, from operation counts and a short measurement.

use std::time::{Duration, Instant};

use super::recipe::Recipe;
use crate::arch::ModelConfig;
use crate::job::littlebit::plan::CompressionPlan;
use crate::job::littlebit::report::StageEstimate;
use crate::linalg::products::{Operand, multiply};

/// What recovery needs besides the solver.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecoveryEstimate {
    /// Its stages in order.
    pub stages: Vec<StageEstimate>,
    /// Working memory, bytes.
    pub memory_bytes: u64,
}

/// Time of a stage over that of its products alone: attention, norms, optimizer, waiting. From
/// SmolLM2-135M at one bit per weight on two cores (about 65 ms for a step of 512 tokens in a block,
/// 2 s for one of the whole model). Small models wait more and take up to twice the estimate.
const OVERHEAD: f64 = 1.6;

/// Sequences that input statistics are measured on.
const STATISTICS_SEQUENCES: usize = 64;

/// Times that held-out text is looked at: while a block is tuned, while the model is distilled.
const LOOKS: (f64, f64) = (5.0, 11.0);

/// What backpropagation keeps for a token of a block whose tokens have 576 values, bytes.
const GRAPH_BYTES: f64 = 48.0 * 1024.0;

/// Most that sequences which are being written take, bytes.
const WRITING_BYTES: u64 = 1 << 30;

/// Bytes of a sign that learns: value, gradient and two moments.
const SIGN_BYTES: u64 = 16;

/// Bytes of a sign that does not learn while its block is at work: unpacked.
const UNPACKED_BYTES: u64 = 4;

/// Estimates a recipe on a machine that does `flops_per_second` on all threads (see [`calibrate`]).
#[must_use]
pub(crate) fn estimate(
    plan: &CompressionPlan,
    config: &ModelConfig,
    recipe: &Recipe,
    flops_per_second: f64,
) -> RecoveryEstimate {
    let (mut weights, mut signs) = (0.0, 0.0);
    for shape in plan.layers().map(|layer| layer.shape) {
        weights += shape.rows as f64 * shape.cols as f64;
        signs += (shape.paths * shape.rank * (shape.rows + shape.cols)) as f64;
    }
    let head = config.vocab_size as f64 * config.hidden_size as f64;
    let (sequences, length) = recipe.text_of(config.max_positions);
    let tokens = (recipe.on_chains() * length) as f64;
    let passing = ((sequences - recipe.on_chains()) * length) as f64;
    let held_out = (recipe.text.held_out * length) as f64;
    let (blocks, whole) = (&recipe.blocks, &recipe.distillation);

    let refreshed = if blocks.refresh_statistics {
        (recipe.text.sequences.min(STATISTICS_SEQUENCES) * length) as f64
    } else {
        0.0
    };
    // The original on its chain and, for statistics, on the other one; the compressed blocks.
    let chains = 2.0 * weights * (tokens + refreshed) + 2.0 * signs * tokens;
    let step = (blocks.batch * length) as f64;
    let absorption = 6.0 * weights * step * blocks.absorption_steps as f64;
    let looks = if blocks.steps > 0 { LOOKS.0 * held_out } else { 0.0 };
    let tuning = signs * (6.0 * step * blocks.steps as f64 + 2.0 * looks);

    let mut stages = vec![("activations", chains), ("tuning", absorption + tuning)];
    if whole.steps > 0 {
        let step = (whole.batch * length) as f64;
        let teacher = if whole.hidden_weight > 0.0 { 2.0 * weights } else { 0.0 };
        // Forwards, backwards to inputs and to signs, and forwards again where nothing is kept.
        let passes = if whole.recompute { 8.0 } else { 6.0 };
        let learning = (passes * signs + 4.0 * head + teacher) * step * whole.steps as f64;
        let looking = (2.0 * signs + 2.0 * head) * LOOKS.1 * held_out;
        stages.push(("opinions", 2.0 * head * (tokens + passing) + 2.0 * weights * passing));
        stages.push(("distillation", learning + looking));
    }
    let stages = stages
        .into_iter()
        .map(|(stage, flops)| StageEstimate { stage, seconds: OVERHEAD * flops / flops_per_second })
        .collect();
    RecoveryEstimate { stages, memory_bytes: memory(config, recipe, signs as u64) }
}

/// Working memory of a recipe for the layers of a plan, bytes: as [`estimate`] has it.
#[must_use]
pub(crate) fn memory_bytes(plan: &CompressionPlan, config: &ModelConfig, recipe: &Recipe) -> u64 {
    let shapes = plan.layers().map(|layer| layer.shape);
    let signs: usize = shapes.map(|s| s.paths * s.rank * (s.rows + s.cols)).sum();
    memory(config, recipe, signs as u64)
}

/// Working memory of a recipe for layers of `signs` signs, bytes.
fn memory(config: &ModelConfig, recipe: &Recipe, signs: u64) -> u64 {
    let hidden = config.hidden_size as u64;
    let (sequences, length) = recipe.text_of(config.max_positions);
    let chains = 2 * 4 * (recipe.on_chains() * length) as u64 * hidden;
    let graph = |batch: usize, blocks: usize| {
        (GRAPH_BYTES * hidden as f64 / 576.0) as u64 * (batch * length * blocks) as u64
    };
    let layers = config.num_layers.max(1);
    let distillation = if recipe.distillation.steps > 0 {
        // The head in f32, and a token and a probability for each opinion.
        let head = 4 * config.vocab_size as u64 * hidden;
        let opinions = 8 * (sequences * length) as u64 * recipe.distillation.top_k as u64;
        let batch = recipe.distillation.batch;
        let kept = if recipe.distillation.recompute {
            graph(batch, 1) + 4 * hidden * (batch * length * layers) as u64
        } else {
            graph(batch, layers)
        };
        let learning = match (recipe.distillation.signs, recipe.distillation.recompute) {
            (false, _) => signs / 8 + UNPACKED_BYTES * signs / layers as u64,
            (true, false) => SIGN_BYTES * signs,
            // Gradients of one block at a time.
            (true, true) => (SIGN_BYTES - 4) * signs + 4 * signs / layers as u64,
        };
        // The best state so far is kept as bits.
        head + opinions + kept + learning + signs / 8
    } else {
        0
    };
    // The blocks that are done keep their latents, or only signs where these do not learn any more.
    let done = if recipe.distillation.needs_latents() { 4 * signs } else { signs / 8 };
    let block = SIGN_BYTES * signs / layers as u64 + done;
    let learning = chains + distillation.max(block + graph(recipe.blocks.batch, 1));
    // Where text is written, that is before the chains are there.
    learning.max(if recipe.text.written { WRITING_BYTES } else { 0 })
}

/// Operations per second of products on all threads, from up to a tenth of a second of work: of
/// `tokens` that a matrix of `inputs` makes `outputs` of. Small products are slower.
#[must_use]
pub(crate) fn calibrate((tokens, inputs, outputs): (usize, usize, usize)) -> f64 {
    const TIME: Duration = Duration::from_millis(80);
    let (m, k, n) = (tokens, inputs, outputs);
    let (a, b) = (vec![0.5; m * k], vec![0.25; k * n]);
    let mut out = vec![0.0; m * n];
    let mut product = || multiply(&mut out, Operand::new(&a, m, k), Operand::new(&b, k, n), false);
    // The first one also finds the processor asleep and the memory unmapped.
    product();
    let started = Instant::now();
    let mut count = 0.0;
    while started.elapsed() < TIME {
        product();
        count += 1.0;
    }
    count * 2.0 * (m * k * n) as f64 / started.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::families::LLAMA;
    use crate::job::littlebit::plan::{PlanRequest, headers_from_config, plan};
    use crate::job::littlebit::tuning::recipe::Effort;

    /// SmolLM2-135M.
    fn model() -> ModelConfig {
        ModelConfig {
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            vocab_size: 49_152,
            max_positions: 8192,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            torch_dtype: "bfloat16".into(),
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            ..ModelConfig::base(&LLAMA)
        }
    }

    fn estimated(recipe: &Recipe) -> RecoveryEstimate {
        let request = PlanRequest { target_bpw: 1.0, ..PlanRequest::default() };
        let plan = plan(&headers_from_config(&model()), &request).unwrap();
        estimate(&plan, &model(), recipe, 350e9)
    }

    fn seconds(recipe: &Recipe, stage: &str) -> f64 {
        let stages = estimated(recipe).stages;
        stages.iter().find(|s| s.stage == stage).map_or(0.0, |s| s.seconds)
    }

    #[test]
    fn stages_cost_what_was_measured() {
        // The machine of the measurements does about 350 billion operations per second.
        let mut recipe = Recipe::of(Effort::Balanced);
        let near = |estimate: f64, measured: f64| {
            assert!((0.75..1.33).contains(&(estimate / measured)), "{estimate} s, {measured} s");
        };
        let mut without = recipe.clone();
        without.blocks.steps = 0;
        recipe.text.held_out = 1;
        recipe.blocks.refresh_statistics = true;
        let steps = (30 * recipe.blocks.steps) as f64;
        near(seconds(&recipe, "tuning") / steps, 0.065);
        near(seconds(&recipe, "distillation") / recipe.distillation.steps as f64, 1.7);
        assert!(seconds(&without, "tuning") < 1e-12);
        // 0.35 s per block and pass for 13,000 tokens; two passes, and the statistics.
        let tokens = (257 * 512 + 32 * 512) as f64;
        near(seconds(&recipe, "activations"), 2.0 * 30.0 * 0.35 * tokens / 13_000.0);
    }

    #[test]
    fn knobs_cost_what_they_should() {
        let base = Recipe::of(Effort::Fast);
        let mut twice = base.clone();
        twice.blocks.batch *= 2;
        twice.distillation.batch *= 2;
        twice.text.held_out = 0;
        let mut once = base.clone();
        once.text.held_out = 0;
        for stage in ["tuning", "distillation"] {
            let ratio = seconds(&twice, stage) / seconds(&once, stage);
            assert!((ratio - 2.0).abs() < 1e-9, "{stage} {ratio}");
        }
        let more = |change: &dyn Fn(&mut Recipe)| {
            let mut changed = base.clone();
            change(&mut changed);
            let total = |recipe| estimated(recipe).stages.iter().map(|s| s.seconds).sum::<f64>();
            total(&changed) - total(&base)
        };
        assert!(more(&|r| r.blocks.absorption_steps = 10) > 0.0);
        assert!(more(&|r| r.distillation.hidden_weight = 1.0) > 0.0);
        assert!(more(&|r| r.distillation.recompute = true) > 0.0);
        assert!(more(&|r| r.blocks.refresh_statistics = true) > 0.0);
        assert!(more(&|r| r.distillation.steps = 0) < 0.0);
        // Beyond the model's context sequences do not grow.
        assert!(more(&|r| r.text.length = 100_000) > 0.0);
        let (mut long, mut longer) = (base.clone(), base.clone());
        (long.text.length, longer.text.length) = (8192, 100_000);
        assert_eq!(estimated(&long), estimated(&longer));
    }

    #[test]
    fn memory_is_the_larger_stage_and_both_chains() {
        let mut recipe = Recipe::of(Effort::Balanced);
        let chains = 2 * 272 * 512 * 576 * 4;
        let all = estimated(&recipe).memory_bytes;
        // 106 million signs, 48 KiB for each of 512 tokens of 30 blocks, and for each token that is
        // read 64 others with their probabilities.
        let distillation = 16 * 106_000_000 + 512 * 30 * 48 * 1024 + 2516 * 512 * 64 * 8;
        assert!(all > chains + distillation, "{all}");
        assert!((all as f64) < 1.2 * (chains + distillation) as f64, "{all}");
        // Signs as bits: what is left are the chains, the head and the opinions.
        recipe.distillation.signs = false;
        let scales = estimated(&recipe).memory_bytes;
        recipe.distillation.recompute = true;
        let by_blocks = estimated(&recipe).memory_bytes;
        assert!(scales < all - 15 * 106_000_000, "{scales}");
        assert!(by_blocks < scales - 28 * 512 * 48 * 1024 + 31 * 512 * 576 * 4, "{by_blocks}");
        recipe.distillation.steps = 0;
        let blocks = estimated(&recipe).memory_bytes;
        assert!(blocks > chains && blocks < all / 2, "{blocks}");
    }

    #[test]
    fn calibration_measures_something_plausible() {
        let rate = calibrate((64, 96, 128));
        assert!(rate > 1e8 && rate < 1e15, "{rate:e}");
    }
}
