//! Benchmarks of both models: multiple-choice questions answered by the likelihood of each choice
//! ([`choices`]), and the perplexity of WikiText-2. Data comes from a file ([`data`]) or the hub.

pub mod choices;
pub mod data;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LanguageModel;
use super::perplexity::Perplexity;
use crate::base::input;
use crate::base::progress::Progress;
use crate::device::Backend;
use crate::graph::Decoder;
use crate::hub::{self, HubOptions};
use crate::model::LocalModel;
use crate::text::{EvaluationWindows, Protocol, TextCodec, wikitext};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
pub use choices::{Answers, ChoiceScores, Question};

/// Hub dataset with HellaSwag and ARC in the binary form that llama-perplexity reads, and the
/// commit of it that is asked for.
const DATASET: &str = "ikawrakow/validation-datasets-for-llama.cpp";
const REVISION: &str = "37884b81b4957f1950a53b6ff48d77c8dd5e430c";

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Benchmark {
    /// Perplexity of the test part of WikiText-2, measured as papers do.
    Wikitext,
    /// Which of four endings follows (Zellers et al., arXiv 1905.07830).
    HellaSwag,
    /// Science questions for schools (Clark et al., arXiv 1803.05457), the easy and the hard ones.
    Arc,
}

impl Benchmark {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Wikitext, Self::HellaSwag, Self::Arc];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wikitext => "wikitext",
            Self::HellaSwag => "hellaswag",
            Self::Arc => "arc",
        }
    }

    /// The benchmark of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|benchmark| benchmark.name() == name)
    }

    /// Names and files of the hub's dataset.
    const fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Wikitext => &[],
            Self::HellaSwag => &[("hellaswag", "hellaswag-validation.bin")],
            Self::Arc => &[
                ("arc_easy", "arc-easy-validation.bin"),
                ("arc_challenge", "arc-challenge-validation.bin"),
            ],
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct BenchmarkRequest {
    /// Which benchmark.
    pub benchmark: Benchmark,
    /// The user's file with its data.
    pub data: Option<PathBuf>,
    /// Most questions, or windows of WikiText: the first ones.
    pub limit: Option<usize>,
    /// How to reach the hub, if it may be asked.
    pub hub: Option<HubOptions>,
}

/// A benchmark with its data.
#[derive(Debug, Clone)]
pub struct Loaded {
    name: String,
    dataset: String,
    limit: Option<usize>,
    contents: Contents,
}

#[derive(Debug, Clone)]
enum Contents {
    Text(String),
    Questions(Vec<Question>),
}

/// What a benchmark says about both models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchmarkReport {
    /// `wikitext`, `hellaswag`, `arc`, `arc_easy` or `arc_challenge`.
    pub benchmark: String,
    /// Where the data came from.
    pub dataset: String,
    /// Questions that were answered, or windows that were read.
    pub tasks: usize,
    /// Questions or windows that there are.
    pub available: usize,
    /// The original's scores.
    pub original: Scores,
    /// The quantized model's scores.
    pub quantized: Scores,
    /// Questions that both models answer alike (by `acc_norm`), percent; absent for WikiText.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_answer_pct: Option<f64>,
    /// Change of `acc_norm`, percentage points; absent for WikiText.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm_change_pct: Option<f64>,
    /// Standard error of that change, from the questions that the models answer differently: both
    /// were asked the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm_change_stderr_pct: Option<f64>,
}

/// Scores of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scores {
    /// Of questions.
    Choices(ChoiceScores),
    /// Of text.
    Perplexity(PerplexityScore),
}

/// Perplexity of a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PerplexityScore {
    /// Perplexity.
    pub perplexity: f64,
    /// Standard error of it.
    pub perplexity_stderr: f64,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens that were scored.
    pub tokens_scored: u64,
}

/// One model's result.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Of questions.
    Answers(Answers),
    /// Of text, with the windows that it has.
    Perplexity(Perplexity, usize),
}

/// Finds and reads the data, before anything expensive is done.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is none, [`Error::Calibration`] when a file cannot be
/// understood, [`Error::Interrupted`].
pub fn load(request: &BenchmarkRequest, progress: &dyn Progress) -> Result<Vec<Loaded>> {
    let benchmark = request.benchmark;
    let loaded = |name: &str, dataset: String, contents| Loaded {
        name: name.to_owned(),
        dataset,
        limit: request.limit,
        contents,
    };
    if let Some(path) = &request.data {
        if !path.is_file() {
            return Err(Error::ModelNotFound {
                message: if path.is_dir() {
                    format!("{} is a directory, where a file of tasks is expected", path.display())
                } else {
                    format!("no benchmark data at {}", path.display())
                },
                suggestion: "Check --benchmark-data".into(),
            });
        }
        let dataset = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let contents = match benchmark {
            Benchmark::Wikitext => Contents::Text(read_text(path)?),
            _ => Contents::Questions(data::read(path)?),
        };
        return Ok(vec![loaded(benchmark.name(), dataset, contents)]);
    }
    if benchmark == Benchmark::Wikitext {
        let archive =
            fetch(request, wikitext::DATASET, wikitext::REVISION, wikitext::ARCHIVE, progress)?;
        let [test, _] = wikitext::load(&archive, [wikitext::TEST, wikitext::TEST])
            .map_err(|what| Error::damaged(&archive, what))?;
        let dataset = format!("{} test", wikitext::NAME);
        return Ok(vec![loaded(benchmark.name(), dataset, Contents::Text(test))]);
    }
    benchmark
        .files()
        .iter()
        .map(|(name, file)| {
            let path = fetch(request, DATASET, REVISION, file, progress)?;
            let questions = Contents::Questions(data::read(&path)?);
            Ok(loaded(name, format!("{DATASET} {file}"), questions))
        })
        .collect()
}

fn read_text(path: &Path) -> Result<String> {
    input::read_to_string(path, input::MAX_DATA)
        .map_err(|error| Error::Calibration(format!("{}: {error}", path.display())))
}

fn fetch(
    request: &BenchmarkRequest,
    dataset: &str,
    revision: &str,
    file: &str,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let name = request.benchmark.name();
    let missing = |why: &str| Error::ModelNotFound {
        message: format!("no data for the benchmark {name}: {why}"),
        suggestion: match request.benchmark {
            Benchmark::Wikitext => {
                "Give --benchmark-data wiki.test.raw, or run once with a network".into()
            }
            _ => {
                "Give --benchmark-data FILE (.jsonl, .bin, or .txt with six lines a task), or run \
                  once with a network"
                    .into()
            }
        },
    };
    let Some(hub) = &request.hub else { return Err(missing("the hub is not asked")) };
    let hub = HubOptions { retries: 1, ..hub.clone() };
    hub::fetch_dataset_file(dataset, revision, file, &hub, progress).map_err(|error| match error {
        Error::Interrupted { .. } => error,
        other => missing(&other.to_string()),
    })
}

impl Loaded {
    /// Lets a model take the benchmark.
    ///
    /// # Errors
    /// [`Error::General`] when the model gives NaN or does not know a token; [`Error::Interrupted`].
    pub fn run(
        &self,
        model: &dyn LanguageModel,
        codec: &dyn TextCodec,
        which: &str,
        progress: &dyn Progress,
    ) -> Result<Outcome> {
        let stage = format!("{} ({which})", self.name);
        match &self.contents {
            Contents::Text(text) => {
                let protocol = Protocol::papers(model.context());
                let text = std::slice::from_ref(text);
                let windows = EvaluationWindows::cut(text, codec, protocol, self.limit)?;
                let perplexity = Perplexity::measure(model, &windows, &stage, progress)?;
                Ok(Outcome::Perplexity(perplexity, windows.available))
            }
            Contents::Questions(questions) => {
                let count = self.limit.unwrap_or(usize::MAX).min(questions.len());
                choices::answer(model, codec, &questions[..count], &stage, progress)
                    .map(Outcome::Answers)
            }
        }
    }

    /// Puts the results of both models side by side.
    #[must_use]
    pub fn report(&self, original: &Outcome, quantized: &Outcome) -> BenchmarkReport {
        let (tasks, available) = match (&self.contents, original) {
            (_, Outcome::Perplexity(perplexity, windows)) => {
                (perplexity.windows as usize, *windows)
            }
            (Contents::Questions(questions), Outcome::Answers(answers)) => {
                (answers.count(), questions.len())
            }
            (Contents::Text(_), Outcome::Answers(answers)) => (answers.count(), answers.count()),
        };
        let paired = match (original, quantized) {
            (Outcome::Answers(a), Outcome::Answers(b)) => Some(a.change(b)),
            _ => None,
        };
        BenchmarkReport {
            benchmark: self.name.clone(),
            dataset: self.dataset.clone(),
            tasks,
            available,
            original: original.scores(),
            quantized: quantized.scores(),
            same_answer_pct: paired.map(|paired| paired.same_answer * 100.0),
            acc_norm_change_pct: paired.map(|paired| paired.change * 100.0),
            acc_norm_change_stderr_pct: paired.map(|paired| paired.standard_error * 100.0),
        }
    }
}

impl Outcome {
    fn scores(&self) -> Scores {
        match self {
            Self::Answers(answers) => Scores::Choices(answers.scores()),
            Self::Perplexity(perplexity, _) => Scores::Perplexity(PerplexityScore {
                perplexity: perplexity.perplexity,
                perplexity_stderr: perplexity.standard_error,
                window: perplexity.window_length,
                tokens_scored: perplexity.tokens,
            }),
        }
    }
}

impl BenchmarkReport {
    /// The report as lines for people, without a final line end.
    #[must_use]
    pub fn human(&self) -> String {
        let mut out =
            format!("{} ({}, {} of {})", self.benchmark, self.dataset, self.tasks, self.available);
        for (which, scores) in [("original", &self.original), ("quantized", &self.quantized)] {
            let text = match scores {
                Scores::Choices(s) => format!(
                    "acc {:.2} ± {:.2} %, acc_norm {:.2} ± {:.2} %, llama.cpp score {:.2} ± {:.2} %",
                    s.acc * 100.0,
                    s.acc_stderr * 100.0,
                    s.acc_norm * 100.0,
                    s.acc_norm_stderr * 100.0,
                    s.llama_cpp_score * 100.0,
                    s.llama_cpp_score_stderr * 100.0
                ),
                Scores::Perplexity(s) => {
                    format!("perplexity {:.4} ± {:.4}", s.perplexity, s.perplexity_stderr)
                }
            };
            out.push_str(&format!("\n  {which:<10} {text}"));
        }
        if let (Some(change), Some(error), Some(same)) =
            (self.acc_norm_change_pct, self.acc_norm_change_stderr_pct, self.same_answer_pct)
        {
            out.push_str(&format!(
                "\n  change     acc_norm {change:+.2} ± {error:.2} points, same answer {same:.1} %"
            ));
        }
        out
    }
}
/// Runs benchmarks, one model after the other.
///
/// # Errors
/// As [`Loaded::run`].
pub fn run_benchmarks(
    original: &LocalModel,
    quantized: &LocalModel,
    tokenizer: &Tokenizer,
    benchmarks: &[Loaded],
    backend: &Backend,
    progress: &dyn Progress,
) -> Result<Vec<BenchmarkReport>> {
    if benchmarks.is_empty() {
        return Ok(Vec::new());
    }
    let take = |model: &LocalModel, which: &str| {
        let decoder = Decoder::new(model, backend)?;
        benchmarks
            .iter()
            .map(|benchmark| benchmark.run(&decoder, tokenizer, which, progress))
            .collect::<Result<Vec<_>>>()
    };
    let before = take(original, "original")?;
    let after = take(quantized, "quantized")?;
    let pairs = before.iter().zip(&after);
    Ok(benchmarks.iter().zip(pairs).map(|(b, (before, after))| b.report(before, after)).collect())
}
