//! A comparison as comma-separated values (RFC 4180): a header, the original, a line per model. A
//! column is there when its metric was asked for.

use super::report::{CompareReport, Compared};

/// The table, lines ended with a line feed.
#[must_use]
pub(crate) fn table(report: &CompareReport) -> String {
    let original = report
        .perplexity_original
        .map(|perplexity| (perplexity, report.perplexity_original_stderr.unwrap_or(0.0)));
    let asked = |metric: &str| report.metrics.contains(&metric);
    let (perplexity, size, bpw) = (asked("perplexity"), asked("size"), asked("bpw"));
    let mut columns = vec!["model"];
    if size {
        columns.extend(["size_bytes", "compression_ratio"]);
    }
    if bpw {
        columns.push("effective_bpw");
    }
    if perplexity {
        columns.extend([
            "perplexity",
            "perplexity_stderr",
            "perplexity_delta_pct",
            "perplexity_delta_stderr_pct",
            "kl_divergence",
            "kl_divergence_stderr",
            "kl_divergence_median",
            "kl_divergence_p99",
            "kl_divergence_max",
            "same_top_token_pct",
            "same_top_token_stderr_pct",
            "on_frontier",
        ]);
    }
    let layers = report.results.iter().any(|result| result.mean_layer_error().is_some());
    if layers {
        columns.push("mean_layer_error");
    }
    let mut out = line(columns.iter().map(ToString::to_string));
    let mut first = vec![report.original_model.clone()];
    if size {
        first.extend([report.original_size_bytes.to_string(), "1".into()]);
    }
    if bpw {
        let parameters = report.parameter_count.max(1) as f64;
        first.push((report.original_size_bytes as f64 * 8.0 / parameters).to_string());
    }
    if let Some((value, error)) = original {
        // Beside itself: no distance, no error of it.
        first.extend([value.to_string(), error.to_string()]);
        first.extend(["0"; 7].map(String::from));
        first.extend(["100", "0", ""].map(String::from));
    }
    if layers {
        first.push("0".into());
    }
    out.push_str(&line(first.into_iter()));
    for compared in &report.results {
        out.push_str(&line(row(compared).into_iter()));
    }
    out
}

fn row(compared: &Compared) -> Vec<String> {
    let mut row = vec![compared.quantized_model.clone()];
    row.extend(compared.size_bytes.map(|bytes| bytes.to_string()));
    row.extend(compared.compression_ratio.map(|ratio| ratio.to_string()));
    row.extend(compared.effective_bpw.map(|bits| bits.to_string()));
    if let Some(measured) = &compared.perplexity {
        let divergence = &measured.divergence;
        let distribution = &divergence.kl_divergence;
        let values = [
            measured.perplexity,
            measured.perplexity_stderr,
            measured.perplexity_delta_pct,
            measured.perplexity_delta_stderr_pct,
            distribution.mean,
            distribution.stderr,
            distribution.median,
            distribution.p99,
            distribution.max,
            divergence.same_top_token_pct,
            divergence.same_top_token_stderr_pct,
        ];
        row.extend(values.map(|value| value.to_string()));
        row.push(measured.on_frontier.to_string());
    }
    row.extend(compared.mean_layer_error().map(|error| error.to_string()));
    row
}

/// A record; fields with commas, quotes or line ends are quoted.
fn line(fields: impl Iterator<Item = String>) -> String {
    let fields: Vec<String> = fields
        .map(|field| {
            if field.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", field.replace('"', "\"\""))
            } else {
                field
            }
        })
        .collect();
    fields.join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_as_rfc_4180_says() {
        let fields = ["plain", "a,b", "say \"x\"", "two\nlines"].map(String::from);
        assert_eq!(line(fields.into_iter()), "plain,\"a,b\",\"say \"\"x\"\"\",\"two\nlines\"\n");
    }
}
