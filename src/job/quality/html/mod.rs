//! Reports as a page: one file with its style and its pictures in it, without scripts and without
//! anything from elsewhere. It follows the reader's light or dark setting, fits a phone and prints.

mod chart;
mod plots;
mod series;
mod text;

use super::report::{CompareReport, MeasuredOn, QualityReport};
use crate::base::size::human_bytes;
pub(crate) use series::MODELS;
use text::{escape, number, short_name, with_error};

const STYLE: &str = include_str!("style.css");

/// The page of `quality report`.
#[must_use]
pub(crate) fn report_page(report: &QualityReport) -> String {
    let (m, d) = (&report.metrics, &report.divergence);
    let title = format!("Quality of {}", short_name(&report.quantized_model));
    let mut body = heading(&title, &report.original_model, &report.timestamp);
    for warning in &report.warnings {
        body.push_str(&format!("<p class=\"warning\">{}</p>", escape(warning)));
    }
    let mut cards = vec![
        card(
            &format!("{} / {}", number(m.perplexity_original), number(m.perplexity_quantized)),
            "perplexity: original / quantized",
        ),
        card(
            &format!("{:+.2} ± {:.2} %", m.perplexity_delta_pct, m.perplexity_delta_stderr_pct),
            "change of perplexity",
        ),
        card(
            &with_error(d.kl_divergence.mean, d.kl_divergence.stderr),
            "KL divergence, nats per token",
        ),
        card(
            &format!("{:.1} ± {:.1} %", d.same_top_token_pct, d.same_top_token_stderr_pct),
            "tokens with the same first choice",
        ),
        card(
            &format!("{:.3} bits", m.size.effective_bpw),
            &format!(
                "per weight; {} of {} ({:.1} %)",
                human_bytes(m.size.quantized_size_bytes),
                human_bytes(m.size.original_size_bytes),
                m.size.compression_ratio * 100.0
            ),
        ),
    ];
    if let (Some(score), Some(test)) = (report.coherence_score, &report.coherence) {
        let counts = format!(
            "coherence {}, {} of {} prompts",
            if test.passed { "passed" } else { "failed" },
            test.coherent_prompts,
            test.total_prompts
        );
        cards.push(card(&format!("{score:.2}"), &counts));
    }
    body.push_str(&format!("<div class=\"cards\">{}</div>", cards.concat()));

    body.push_str("<h2>How far predictions are from the original's</h2>");
    body.push_str(&plots::divergence(d));
    body.push_str(&percentiles(report));
    if let Some(figure) = plots::layers(&report.layer_errors, &report.block_errors) {
        body.push_str("<h2>Where the error is</h2>");
        body.push_str(&figure);
    }
    if !report.layer_errors.is_empty() {
        body.push_str(&layer_table(report));
    }
    if !report.benchmarks.is_empty() {
        body.push_str("<h2>Benchmarks</h2>");
        for benchmark in &report.benchmarks {
            body.push_str(&format!("<pre>{}</pre>", escape(&benchmark.human())));
        }
    }
    body.push_str(&measured(&report.measured_on, report.tool_version));
    page(&title, &body)
}

/// The page of `quality compare`.
#[must_use]
pub(crate) fn compare_page(report: &CompareReport) -> String {
    let title = format!("{} quantized models compared", report.results.len());
    let mut body = heading(&title, &report.original_model, &report.timestamp);
    if let Some(figure) = plots::frontier(report) {
        body.push_str("<h2>Perplexity and size</h2>");
        body.push_str(&figure);
    }
    body.push_str("<h2>Figures</h2>");
    body.push_str(&compare_table(report));
    if let Some(figure) = plots::divergences(&report.results) {
        body.push_str("<h2>How far predictions are from the original's</h2>");
        body.push_str(&figure);
    }
    if let Some(figure) = plots::layers_of_models(&report.results) {
        body.push_str("<h2>Where the error is</h2>");
        body.push_str(&figure);
    }
    if let Some(on) = &report.measured_on {
        body.push_str(&measured(on, report.tool_version));
    }
    page(&title, &body)
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n",
        escape(title)
    )
}

fn heading(title: &str, original: &str, timestamp: &str) -> String {
    format!(
        "<h1>{}</h1><p class=\"faint\">Original: {} · {}</p>",
        escape(title),
        escape(original),
        escape(timestamp)
    )
}

fn card(value: &str, name: &str) -> String {
    format!("<div class=\"card\"><b>{}</b><span>{}</span></div>", escape(value), escape(name))
}

fn measured(on: &MeasuredOn, version: &str) -> String {
    format!(
        "<h2>How this was measured</h2><p class=\"faint\">{} tokens of {} scored in {} windows of {} \
         tokens, the second half of each, as llama-perplexity does; ± is one standard error. \
         llm-quantize {}.</p>",
        on.tokens_scored,
        escape(&on.dataset),
        on.windows,
        on.window,
        escape(version)
    )
}

/// A table: heads, then rows whose first cell is a name.
fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut head = String::new();
    for name in heads {
        head.push_str(&format!("<th>{}</th>", escape(name)));
    }
    let mut body = String::new();
    for row in rows {
        body.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            let class = if index == 0 { " class=\"name\"" } else { "" };
            body.push_str(&format!("<td{class}>{}</td>", escape(cell)));
        }
        body.push_str("</tr>");
    }
    format!(
        "<div class=\"table\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
}

fn percentiles(report: &QualityReport) -> String {
    let d = &report.divergence;
    let row = |name: &str, x: &super::statistics::Distribution| {
        let values = [x.mean, x.min, x.p1, x.p10, x.median, x.p90, x.p95, x.p99, x.p99_9, x.max];
        let mut row = vec![name.to_owned()];
        row.extend(values.map(number));
        row
    };
    table(
        &["", "Mean", "Min", "1 %", "10 %", "Median", "90 %", "95 %", "99 %", "99.9 %", "Max"],
        &[
            row("KL divergence, nats", &d.kl_divergence),
            row("Δ probability, points", &d.probability_change),
        ],
    )
}

fn layer_table(report: &QualityReport) -> String {
    let rows: Vec<Vec<String>> = report
        .layer_errors
        .iter()
        .map(|layer| {
            vec![
                layer.layer_name.clone(),
                number(layer.bit_width),
                number(layer.relative_error),
                number(layer.mse),
                number(layer.max_error),
                layer.parameter_count.to_string(),
            ]
        })
        .collect();
    let heads = ["Layer", "Bits", "Relative error", "MSE", "Max error", "Parameters"];
    format!(
        "<details open><summary>Weights of every layer</summary>{}</details>",
        table(&heads, &rows)
    )
}

fn compare_table(report: &CompareReport) -> String {
    let mut heads = vec!["Model"];
    let asked = |metric: &str| report.metrics.contains(&metric);
    if asked("size") {
        heads.extend(["Size", "Ratio"]);
    }
    if asked("bpw") {
        heads.push("Bits per weight");
    }
    if asked("perplexity") {
        heads.extend(["Perplexity", "Change", "KL divergence", "99 %", "Same first choice"]);
    }
    let mut original = vec!["original".to_owned()];
    if asked("size") {
        original.extend([human_bytes(report.original_size_bytes), "100.0 %".into()]);
    }
    if asked("bpw") {
        let parameters = report.parameter_count.max(1) as f64;
        original.push(format!("{:.3}", report.original_size_bytes as f64 * 8.0 / parameters));
    }
    if let (Some(value), Some(error)) =
        (report.perplexity_original, report.perplexity_original_stderr)
    {
        original.push(with_error(value, error));
        original.extend(["", "", "", ""].map(String::from));
    }
    let mut rows = vec![original];
    for (index, result) in report.results.iter().enumerate() {
        let mut row = vec![format!("{} {}", index + 1, short_name(&result.quantized_model))];
        row.extend(result.size_bytes.map(human_bytes));
        row.extend(result.compression_ratio.map(|ratio| format!("{:.1} %", ratio * 100.0)));
        row.extend(result.effective_bpw.map(|bits| format!("{bits:.3}")));
        if let Some(p) = &result.perplexity {
            let k = &p.divergence.kl_divergence;
            row.push(with_error(p.perplexity, p.perplexity_stderr));
            row.push(format!(
                "{:+.2} ± {:.2} %",
                p.perplexity_delta_pct, p.perplexity_delta_stderr_pct
            ));
            row.push(with_error(k.mean, k.stderr));
            row.push(number(k.p99));
            row.push(format!("{:.2} %", p.divergence.same_top_token_pct));
        }
        rows.push(row);
    }
    table(&heads, &rows)
}
