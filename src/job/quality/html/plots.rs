//! The plots: perplexity against size, distribution of the divergence, error of each layer.

use super::chart::{Axis, Plot, Scale, both};
use super::series::{
    Picture, block_entry, colour, entry, line_entry, marker, model_entry, numbered, series,
};
use super::text::{escape, number, short_name};
use crate::job::quality::layers::LayerError;
use crate::job::quality::report::{BlockError, CompareReport, Compared, Divergence};
use crate::job::quality::statistics::Bin;

/// Above this ratio of largest to smallest, perplexities are drawn by their logarithm.
const LOG_FROM: f64 = 4.0;

/// A figure with its caption and its legend.
fn figure(plot: &str, legend: &[String], caption: &str) -> String {
    let legend = if legend.is_empty() {
        String::new()
    } else {
        format!("<ul class=\"legend\">{}</ul>", legend.concat())
    };
    format!("<figure>{plot}{legend}<figcaption>{}</figcaption></figure>", escape(caption))
}

/// Perplexity against size, one dot per model, and the line of those that nothing beats.
pub(super) fn frontier(report: &CompareReport) -> Option<String> {
    let original = report.perplexity_original?;
    let bytes = |result: &Compared| {
        // Present in every report: sizes follow from the bits.
        let bits = result.effective_bpw.map(|b| b * report.parameter_count as f64 / 8.0);
        result.size_bytes.map(|bytes| bytes as f64).or(bits)
    };
    let points: Vec<(f64, f64, f64, bool)> = report
        .results
        .iter()
        .filter_map(|result| {
            let p = result.perplexity.as_ref()?;
            Some((bytes(result)? / 1_048_576.0, p.perplexity, p.perplexity_stderr, p.on_frontier))
        })
        .collect();
    if points.len() != report.results.len() || points.is_empty() {
        return None;
    }
    let values = || points.iter().map(|p| p.1).chain([original]);
    let (low, high) = values().fold((f64::MAX, 0.0), |(l, h), v| (v.min(l), v.max(h)));
    let scale = if high / low > LOG_FROM { Scale::Log } else { Scale::Linear };
    let x = Axis::over("Size, MB", Scale::Linear, points.iter().map(|p| p.0));
    let with_errors = points.iter().flat_map(|p| [p.1 - p.2, p.1 + p.2]).chain([original]);
    let log = if scale == Scale::Log { " (logarithmic)" } else { "" };
    let y = Axis::over(&format!("Perplexity{log}, lower is better"), scale, with_errors);
    let mut best: Vec<(f64, f64)> = points.iter().filter(|p| p.3).map(|p| (p.0, p.1)).collect();
    best.sort_by(|a, b| a.0.total_cmp(&b.0));
    let plot = both(|narrow| {
        let mut plot = Plot::new(narrow, "Perplexity against size", x.clone(), y.clone());
        plot.level(original, &format!("original {}", number(original)));
        plot.line(&best, "c0 d1");
        for (index, &(size, perplexity, error, _)) in points.iter().enumerate() {
            let (at, low, high) =
                (plot.at_x(size), plot.at_y(perplexity - error), plot.at_y(perplexity + error));
            plot.add(&format!(
                "<g class=\"{}\"><line class=\"stroke\" x1=\"{at:.1}\" x2=\"{at:.1}\" \
                 y1=\"{low:.1}\" y2=\"{high:.1}\"/></g>",
                colour(index)
            ));
        }
        for (index, &(size, perplexity, ..)) in points.iter().enumerate() {
            let point = numbered(plot.at_x(size), plot.at_y(perplexity), index);
            plot.add(&point);
        }
        plot
    });
    let mut legend: Vec<String> = report
        .results
        .iter()
        .enumerate()
        .map(|(index, result)| {
            let picture = numbered(13.0, 8.0, index);
            entry(Picture::Marker, &picture, short_name(&result.quantized_model))
        })
        .collect();
    legend.push(entry(
        Picture::Small,
        "<line class=\"stroke c0 d1\" x1=\"1\" x2=\"25\" y1=\"8\" y2=\"8\"/>",
        "no other is both smaller and better",
    ));
    Some(figure(
        &plot,
        &legend,
        "Each mark is a model; its bar is one standard error up and down. The dashed level is the \
         original.",
    ))
}

/// Points of a histogram as shares: the middle of each bin and percent of the tokens.
fn shares(bins: &[Bin]) -> Vec<(f64, f64)> {
    let all: u64 = bins.iter().map(|bin| bin.tokens).sum();
    bins.iter()
        .skip(1)
        .map(|bin| ((bin.from * bin.to).sqrt(), bin.tokens as f64 * 100.0 / all.max(1) as f64))
        .collect()
}

/// The bins from the first to the last that has tokens, of all models together.
fn range(all: &[&[Bin]]) -> (f64, f64) {
    let used = || all.iter().flat_map(|bins| bins.iter().skip(1)).filter(|bin| bin.tokens > 0);
    let from = used().map(|bin| bin.from).fold(f64::INFINITY, f64::min);
    let to = used().map(|bin| bin.to).fold(0.0, f64::max);
    if from < to { (from, to) } else { (1e-6, 1.0) }
}

/// How the divergence of one model is spread over the tokens.
pub(super) fn divergence(divergence: &Divergence) -> String {
    let bins = divergence.kl_histogram.as_slice();
    let (from, to) = range(&[bins]);
    let x = Axis::over("KL divergence of a token, nats", Scale::Log, [from, to].into_iter());
    let heights = shares(bins);
    let tops = heights.iter().map(|s| s.1).chain([0.0]);
    let y = Axis::over("Share of the tokens, %", Scale::Linear, tops);
    let all: u64 = bins.iter().map(|bin| bin.tokens).sum();
    let below = bins.first().map_or(0, |bin| bin.tokens) as f64 * 100.0 / all.max(1) as f64;
    let k = &divergence.kl_divergence;
    let plot = both(|narrow| {
        let title = "Distribution of the KL divergence";
        let mut plot = Plot::new(narrow, title, x.clone(), y.clone());
        for (bin, (_, share)) in bins.iter().skip(1).zip(&heights) {
            if bin.tokens > 0 {
                plot.bar((bin.from, bin.to), *share, "c0");
            }
        }
        let marks = [("median", k.median), ("mean", k.mean), ("99 %", k.p99)];
        for (row, (name, value)) in marks.into_iter().enumerate() {
            plot.upright(value, &format!("{name} {}", number(value)), row);
        }
        plot
    });
    let caption = format!(
        "Bars have equal width on the logarithmic axis, four to a factor of ten. {below:.2} % of \
         the tokens lie below 0.000001."
    );
    figure(&plot, &[block_entry(0, "tokens of the text")], &caption)
}

/// The same of several models, as lines.
pub(super) fn divergences(results: &[Compared]) -> Option<String> {
    let models: Vec<(&str, &Divergence)> = results
        .iter()
        .filter_map(|r| Some((short_name(&r.quantized_model), &r.perplexity.as_ref()?.divergence)))
        .collect();
    if models.is_empty() {
        return None;
    }
    let bins: Vec<&[Bin]> = models.iter().map(|(_, d)| d.kl_histogram.as_slice()).collect();
    let (from, to) = range(&bins);
    let x = Axis::over("KL divergence of a token, nats", Scale::Log, [from, to].into_iter());
    let lines: Vec<Vec<(f64, f64)>> = bins
        .iter()
        .map(|bins| {
            shares(bins).into_iter().filter(|point| point.0 >= from && point.0 <= to).collect()
        })
        .collect();
    let heights = lines.iter().flatten().map(|point| point.1).chain([0.0]);
    let y = Axis::over("Share of the tokens, %", Scale::Linear, heights);
    let plot = both(|narrow| {
        let title = "Distributions of the KL divergence";
        let mut plot = Plot::new(narrow, title, x.clone(), y.clone());
        for (index, line) in lines.iter().enumerate() {
            plot.line(line, &series(index));
        }
        plot.number(&lines);
        plot
    });
    let legend: Vec<String> = models
        .iter()
        .enumerate()
        .map(|(index, (name, d))| {
            model_entry(index, &format!("{name} (mean {})", number(d.kl_divergence.mean)))
        })
        .collect();
    Some(figure(
        &plot,
        &legend,
        "Share of the tokens in bins of equal width on the logarithmic axis, four to a factor of \
         ten. Further left is better.",
    ))
}

/// Numbers of the blocks with the relative errors of one of their parts.
fn part(errors: &[LayerError], part: &str) -> Vec<(f64, f64)> {
    errors
        .iter()
        .filter_map(|error| {
            let rest = error.layer_name.strip_prefix("model.layers.")?;
            let (number, name) = rest.split_once('.')?;
            (name == part).then_some((number.parse().ok()?, error.relative_error))
        })
        .collect()
}

/// Relative error of each block's weights, and behind it of its hidden states.
pub(super) fn layers(errors: &[LayerError], blocks: &[BlockError]) -> Option<String> {
    let hidden: Vec<(f64, f64)> =
        blocks.iter().enumerate().map(|(i, block)| (i as f64, block.relative_error)).collect();
    let lines = [
        ("attention weights", part(errors, "self_attn")),
        ("MLP weights", part(errors, "mlp")),
        ("hidden states behind the block", hidden),
    ];
    layer_lines(
        &lines,
        false,
        "Squared error relative to the squared original, on a logarithmic axis. Errors of hidden \
         states include what the blocks before did wrong.",
    )
}

/// Relative error of the weights of each block, one line per model.
pub(super) fn layers_of_models(results: &[Compared]) -> Option<String> {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = results
        .iter()
        .map(|result| {
            let (attention, mlp) =
                (part(&result.layer_errors, "self_attn"), part(&result.layer_errors, "mlp"));
            let mean = attention.iter().zip(&mlp).map(|(a, b)| (a.0, f64::midpoint(a.1, b.1)));
            (short_name(&result.quantized_model), mean.collect())
        })
        .collect();
    layer_lines(
        &lines,
        true,
        "Mean of the relative squared errors of attention and MLP weights, on a logarithmic axis.",
    )
}

/// `models`: whether each line is a model, with its number.
fn layer_lines(lines: &[(&str, Vec<(f64, f64)>)], models: bool, caption: &str) -> Option<String> {
    let points = || lines.iter().flat_map(|(_, line)| line);
    // Nothing to see where nothing was changed.
    if !points().any(|point| point.1 > 0.0) {
        return None;
    }
    let last = points().map(|point| point.0 as usize).max().unwrap_or(0);
    let x = Axis::count("Block", last);
    let y = Axis::over("Relative squared error", Scale::Log, points().map(|point| point.1));
    let plot = both(|narrow| {
        let mut plot = Plot::new(narrow, "Error of each layer", x.clone(), y.clone());
        for (index, (_, line)) in lines.iter().enumerate() {
            let line: Vec<(f64, f64)> = line.iter().copied().filter(|p| p.1 > 0.0).collect();
            plot.line(&line, &series(index));
            for &(block, error) in &line {
                let point = marker(plot.at_x(block), plot.at_y(error), index, 2.5);
                plot.add(&point);
            }
        }
        if models {
            let drawn: Vec<Vec<(f64, f64)>> = lines
                .iter()
                .map(|(_, line)| line.iter().copied().filter(|p| p.1 > 0.0).collect())
                .collect();
            plot.number(&drawn);
        }
        plot
    });
    let legend: Vec<String> = lines
        .iter()
        .enumerate()
        .filter(|(_, (_, line))| line.iter().any(|point| point.1 > 0.0))
        .map(
            |(index, (name, _))| {
                if models { model_entry(index, name) } else { line_entry(index, name) }
            },
        )
        .collect();
    Some(figure(&plot, &legend, caption))
}
