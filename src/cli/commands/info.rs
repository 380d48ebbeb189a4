//! `info MODEL`: shape, size and health of a model.

use rayon::prelude::*;
use serde::Serialize;

use crate::cli::args::InfoArgs;
use crate::cli::bars::Bars;
use crate::cli::output::{Report, grouped, human_bytes};
use crate::cli::{Context, Failure, models};
use crate::progress::Progress;
use crate::source::{LocalModel, Weight};

#[derive(Debug, Serialize)]
struct InfoReport {
    model_name: String,
    path: String,
    format: &'static str,
    architecture: String,
    parameter_count: u64,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    torch_dtype: String,
    size_bytes: u64,
    /// Tensors with NaN or Inf; `null` when the weights were not read.
    non_finite: Option<Vec<NonFinite>>,
}

#[derive(Debug, Serialize)]
struct NonFinite {
    tensor: String,
    first_index: usize,
    value: String,
}

pub(crate) fn run(args: &InfoArgs, context: &Context) -> Result<(), Failure> {
    let progress = Bars::new(&context.output);
    let model = models::open(&args.model, &args.hub, context, &progress)?;
    let non_finite = (!args.skip_scan).then(|| scan(&model, &progress));
    context.output.result(&InfoReport {
        parameter_count: model.parameter_count(),
        size_bytes: model.weight_bytes(),
        path: model.path.display().to_string(),
        format: model.format.name(),
        architecture: model.config.class_name.clone(),
        hidden_size: model.config.hidden_size,
        num_layers: model.config.num_layers,
        num_heads: model.config.num_heads,
        num_key_value_heads: model.config.num_kv_heads,
        vocab_size: model.config.vocab_size,
        max_position_embeddings: model.config.max_positions,
        torch_dtype: model.config.torch_dtype.clone(),
        model_name: model.name,
        non_finite,
    });
    Ok(())
}

/// Reads every stored tensor once. Factorized layers hold only signs and scales that were checked
/// when the file was opened.
fn scan(model: &LocalModel, progress: &dyn Progress) -> Vec<NonFinite> {
    progress.start("Scanning", model.weights.len() as u64, "tensors");
    let weights: Vec<_> = model.weights.iter().collect();
    let found = weights
        .into_par_iter()
        .filter_map(|(name, weight)| {
            let found = match weight {
                Weight::Stored(tensor) => tensor.first_non_finite(),
                Weight::Factorized(_) => None,
            };
            progress.advance(1);
            found.map(|(first_index, value)| NonFinite {
                tensor: name.clone(),
                first_index,
                value: value.to_string(),
            })
        })
        .collect();
    progress.finish();
    found
}

impl Report for InfoReport {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| {
            out.push_str(&format!("{label:<14}{value}\n"));
        };
        row("Model:", self.model_name.clone());
        row("Architecture:", self.architecture.clone());
        row("Parameters:", grouped(self.parameter_count));
        row("Hidden Size:", self.hidden_size.to_string());
        row("Layers:", self.num_layers.to_string());
        row(
            "Heads:",
            match self.num_key_value_heads {
                kv if kv == self.num_heads => self.num_heads.to_string(),
                kv => format!("{} ({kv} key/value)", self.num_heads),
            },
        );
        row("Vocab Size:", self.vocab_size.to_string());
        row("Context:", format!("{} tokens", self.max_position_embeddings));
        row("Dtype:", self.torch_dtype.clone());
        row("Size:", format!("{} ({})", human_bytes(self.size_bytes), self.format));
        row(
            "NaN/Inf:",
            match &self.non_finite {
                None => "not scanned".into(),
                Some(found) if found.is_empty() => "none".into(),
                Some(found) => format!("in {} tensors", found.len()),
            },
        );
        for item in self.non_finite.iter().flatten() {
            out.push_str(&format!(
                "  {}: {} at element {}\n",
                item.tensor, item.value, item.first_index
            ));
        }
        out
    }
}
