//! The model card that is written beside the weights.

use std::fmt::Write;

use super::plan::PackedPlan;
use super::report::{PackedReport, level_name};
use super::request::{Method, PackedRequest};
use crate::model::LocalModel;

/// The card's text.
pub(super) fn card(
    model: &LocalModel,
    plan: &PackedPlan,
    request: &PackedRequest,
    report: &PackedReport,
) -> String {
    let level = level_name(request.method);
    let title = match request.method {
        Method::Gptq(_) => "GPTQ",
        Method::Awq => "AWQ",
        Method::SmoothQuant(_) => "SmoothQuant",
    };
    let mut text = String::from("---\nlibrary_name: transformers\n");
    if model.name.split('/').count() == 2 && !model.name.starts_with(['/', '.']) {
        let _ = writeln!(text, "base_model: {}\nbase_model_relation: quantized", model.name);
    }
    let _ = writeln!(text, "tags:\n- {}\n- {level}\n---\n", request.method.name());
    let name = model.name.rsplit(['/', '\\']).next().unwrap_or(&model.name);
    let _ = writeln!(text, "# {name}, {title} {level}\n");
    let _ = writeln!(
        text,
        "Made from `{name}` by llm-quantize {}. {}\n",
        env!("CARGO_PKG_VERSION"),
        method_sentence(request, report)
    );
    text.push_str("| | |\n|---|---|\n");
    let mut row = |key: &str, value: String| {
        let _ = writeln!(text, "| {key} | {value} |");
    };
    row("Layers", format!("{} in {} blocks", report.layers.len(), model.config.num_layers));
    if !matches!(request.method, Method::SmoothQuant(_)) {
        let size = plan.group.map_or("-1 (whole rows)".to_owned(), |group| group.to_string());
        row("Group size", size);
    }
    if let Some(symmetric) = report.settings.symmetric {
        row("Zero points", if symmetric { "no (symmetric)" } else { "yes" }.into());
    }
    if let Some(desc_act) = report.settings.desc_act {
        row("desc_act", desc_act.to_string());
    }
    if let Some(alpha) = &report.settings.alpha {
        row("Alpha", alpha.clone());
    }
    row(
        "Bits per weight",
        format!("{:.3} (packed layers, scales included)", plan.bits_per_weight()),
    );
    row("Everything else", plan.plain.torch_name().into());
    match &report.calibration {
        Some(text) => row(
            "Calibration",
            format!("{}: {} samples, {} tokens", text.dataset, text.samples, text.tokens),
        ),
        None => row("Calibration", "none (rounded to nearest)".into()),
    }
    if let Some(error) = report.mean_relative_error {
        row(
            "Error of a layer's outputs",
            format!(
                "{error:.5} of their squared size, mean of all layers, on the calibration text"
            ),
        );
    }
    if report.fallbacks > 0 {
        row("Rounded to nearest instead", format!("{} layers", report.fallbacks));
    }
    for problem in &report.problematic_layers {
        row("Below 20 dB", format!("{} ({:.1} dB)", problem.name, problem.sqnr_db));
    }
    for warning in &plan.warnings {
        let _ = write!(text, "\n{}.\n", warning.trim_end_matches('.'));
    }
    text.push_str("\n## Use\n\n```sh\n");
    text.push_str("vllm serve .\nllm-quantize generate . --prompt \"Once upon a time\"\n```\n");
    text
}

fn method_sentence(request: &PackedRequest, report: &PackedReport) -> String {
    if report.calibration.is_none() {
        return "Weights are rounded to nearest.".into();
    }
    match request.method {
        Method::Gptq(settings) => {
            let mut extras = Vec::new();
            if settings.extras.search {
                extras.push("scales chosen for the least weighted error");
            }
            if settings.desc_act {
                extras.push("columns and groups in the order of their activations");
            } else if settings.extras.static_groups {
                extras.push("columns rounded in the order of their activations, groups left in place");
            }
            if settings.extras.refinements > 0 {
                extras.push("levels and scales chosen once more when all are known");
            }
            let extras = if extras.is_empty() {
                String::new()
            } else {
                format!(": {}", extras.join("; "))
            };
            format!("Weights are rounded by GPTQ (arXiv 2210.17323){extras}.")
        }
        Method::Awq => "Scales and ranges are searched as AWQ does (arXiv 2306.00978); the scales \
                        are folded into the layers before."
            .into(),
        Method::SmoothQuant(_) => "Weights have 8 bits and a scale per row; activations are rounded \
                                   to 8 bits as they come, a scale per token. Part of their range was \
                                   moved into the weights (SmoothQuant, arXiv 2211.10438)."
            .into(),
    }
}
