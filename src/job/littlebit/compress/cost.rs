//! What each stage of a run takes, counted in operations and divided by what the machine does.

use super::recover::reading::{Text, share_of};
use super::request::{CompressRequest, Weighting};
use super::{sensitivity, statistics};
use crate::Result;
use crate::base::progress::NullProgress;
use crate::hub::HubOptions;
use crate::job::littlebit::estimate;
use crate::job::littlebit::plan::CompressionPlan;
use crate::job::littlebit::report::StageEstimate;
use crate::job::littlebit::speed::Speed;
use crate::job::littlebit::tuning::{Recipe, estimate as tuning};
use crate::model::LocalModel;
use crate::text::{self, TextSource, builtin, options};
use crate::tokenizer::Tokenizer;

/// Time of running a model over that of its products alone: attention, norms, the rest.
const OVERHEAD: f64 = 1.3;

/// Tokens of the coherence test that each of the two models computes one by one.
const COHERENCE_TOKENS: f64 = 800.0;

/// Characters of text that tokens are counted in.
const SAMPLE: usize = 1 << 16;

/// Bytes of a token where there is no tokenizer to ask.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Bytes of the two parts of WikiText-2, about.
const WIKITEXT: (f64, f64) = (10.9e6, 1.3e6);

/// The stages in their order.
pub(super) fn stages(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    text: &Amount,
) -> Result<Vec<StageEstimate>> {
    let speed = Speed::measured(&model.config)?;
    let costs: Vec<f64> =
        plan.layers().map(|layer| estimate::flops(&layer.shape, &request.solver)).collect();
    let config = &model.config;
    let mut stages = Vec::new();
    if let Some(recipe) = &request.recipe {
        if request.goes_by_loss() {
            let seconds = sensitivity::seconds(plan, config, &request.solver, &speed);
            stages.push(StageEstimate { stage: "sensitivity", seconds });
        }
        let seconds = writing(plan, model, recipe, text, &speed);
        if seconds > 0.0 {
            stages.push(StageEstimate { stage: "writing", seconds });
        }
        // Block by block.
        let blocks = costs.len() / config.num_layers.max(1);
        let seconds: f64 = costs
            .chunks(blocks.max(1))
            .map(|costs| estimate::makespan(costs, speed.threads) / speed.solver)
            .sum();
        let mut rest = tuning::estimate(plan, config, recipe, speed.products).stages;
        rest.insert(1.min(rest.len()), StageEstimate { stage: "factorization", seconds });
        stages.extend(rest);
    } else {
        if request.weighting == Weighting::Activation {
            let tokens = request.calibration_samples * statistics::window(config.max_positions);
            let seconds = forward(plan, tokens as f64) / speed.layers;
            stages.push(StageEstimate { stage: "calibration", seconds });
        }
        let seconds = estimate::makespan(&costs, speed.threads) / speed.solver;
        stages.push(StageEstimate { stage: "factorization", seconds });
    }
    if !request.skip_validation {
        let tokens = match request.eval_tokens {
            0 => text.evaluation,
            tokens => (tokens as f64).min(text.evaluation),
        };
        // Both models; the compressed one takes no longer than the original.
        let seconds = 2.0 * forward(plan, tokens) / speed.layers
            + 2.0 * tokens * config.vocab_size as f64 / speed.logits
            + 2.0 * forward(plan, COHERENCE_TOKENS) / speed.token;
        stages.push(StageEstimate { stage: "evaluation", seconds });
    }
    Ok(stages)
}

/// Operations of the original for some tokens.
fn forward(plan: &CompressionPlan, tokens: f64) -> f64 {
    OVERHEAD * 2.0 * plan.parameters as f64 * tokens
}

/// Seconds for the sequences that the original writes.
fn writing(
    plan: &CompressionPlan,
    model: &LocalModel,
    recipe: &Recipe,
    text: &Amount,
    speed: &Speed,
) -> f64 {
    let (wanted, length) = recipe.text_of(model.config.max_positions);
    let given = (text.calibration / length as f64) as usize;
    let missing = share_of(recipe, &Text { wanted, length, count: given.min(wanted) }).missing;
    let tokens = (missing * length) as f64;
    // Attention to the half of the sequence that is there, on the average.
    let attention = 2.0 * (model.config.num_heads * model.config.head_dim * length) as f64;
    let attention = attention * model.config.num_layers as f64 * tokens;
    (forward(plan, tokens) + attention) / speed.writing
        + tokens * model.config.vocab_size as f64 / speed.logits
}

/// How much text there is, tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Amount {
    /// To calibrate on.
    calibration: f64,
    /// To measure with.
    evaluation: f64,
}

impl Amount {
    /// Of text that is there.
    pub(super) fn of(text: &TextSource, tokenizer: Option<&Tokenizer>) -> Self {
        let size = |documents: &[String]| documents.iter().map(String::len).sum::<usize>() as f64;
        let bytes = bytes_per_token(&text.calibration, tokenizer);
        Self {
            calibration: size(&text.calibration) / bytes,
            evaluation: size(&text.evaluation) / bytes,
        }
    }

    /// Of text that a run will find: nothing is fetched for it.
    pub(super) fn expected(model: &LocalModel, request: &CompressRequest) -> Self {
        let tokenizer = model.tokenizer().ok();
        let hub = request.text.hub.clone();
        let fetched = hub.as_ref().is_some_and(|hub| !hub.offline);
        let options = text::TextOptions {
            hub: hub.map(|hub| HubOptions { offline: true, ..hub }),
            ..request.text.clone()
        };
        let (wanted, length) = match &request.recipe {
            Some(recipe) => recipe.text_of(model.config.max_positions),
            None => (request.calibration_samples, statistics::window(model.config.max_positions)),
        };
        let evaluation = (request.eval_tokens > 0).then_some(request.eval_tokens);
        let found = tokenizer.as_ref().and_then(|tokenizer| {
            let tokens = wanted.saturating_mul(length);
            options::open_text(&options, tokenizer, tokens, evaluation, &NullProgress).ok()
        });
        let text = found.unwrap_or_else(TextSource::builtin);
        let mut amount = Self::of(&text, tokenizer.as_ref());
        if fetched && text.name == builtin::NAME && request.text.calibration.is_none() {
            // WikiText-2 will be fetched.
            let bytes = bytes_per_token(&text.calibration, tokenizer.as_ref());
            amount = Self { calibration: WIKITEXT.0 / bytes, evaluation: WIKITEXT.1 / bytes };
        }
        amount
    }
}

/// Bytes that a token of a text has.
fn bytes_per_token(documents: &[String], tokenizer: Option<&Tokenizer>) -> f64 {
    let Some(tokenizer) = tokenizer else { return BYTES_PER_TOKEN };
    let characters = documents.iter().flat_map(|document| document.chars());
    let sample: String = characters.take(SAMPLE).collect();
    match tokenizer.encode(&sample, false) {
        Ok(tokens) if !tokens.is_empty() => sample.len() as f64 / tokens.len() as f64,
        _ => BYTES_PER_TOKEN,
    }
}
