//! `generate MODEL --prompt …`: text, straight from whatever the model is stored as.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use crate::Error;
use crate::base::size;
use crate::cli::args::GenerateArgs;
use crate::cli::bars::Bars;
use crate::cli::output::{Output, OutputFormat, Report, Verbosity};
use crate::cli::{Context, Failure, models};
use crate::device::memory;
use crate::graph::generate::StopReason;
use crate::graph::{CacheType, Decoder, Generator, Sampling};
use crate::tokenizer::chat::ChatMessage;

#[derive(Debug, Serialize)]
struct GenerateReport {
    status: &'static str,
    model: String,
    prompt: String,
    text: String,
    prompt_tokens: usize,
    generated_tokens: usize,
    stop_reason: &'static str,
    prompt_tokens_per_second: f64,
    generated_tokens_per_second: f64,
    load_seconds: f64,
    /// At the end of the generation; pages of mapped files included.
    resident_memory_bytes: Option<u64>,
    kv_cache_bytes: usize,
    peak_memory_bytes: Option<u64>,
}

pub(crate) fn run(args: &GenerateArgs, context: &Context) -> Result<(), Failure> {
    let began = Instant::now();
    let progress = Bars::new(&context.output);
    let sampling = sampling(args)?;
    let greedy = args.temperature == 0.0;
    let what = "the most likely token is always taken";
    context
        .given
        .refuse("without --temperature", &[("top-p", greedy, what), ("seed", greedy, what)])?;
    context.given.refuse_hub(&args.hub, &[&args.model], false)?;
    let backend = models::backend(&args.compute, context)?;
    let model = models::open(&args.model, &args.hub, context, &progress)?;
    let tokenizer = model.tokenizer()?;
    let tokens = if args.chat {
        tokenizer.encode_chat(&[ChatMessage::user(args.prompt.as_str())])?
    } else {
        tokenizer.encode(&args.prompt, true)?
    };
    let decoder = Decoder::new(&model, &backend)?;
    let name = model.name.clone();
    drop(model);
    memory::return_free_memory();
    let load_seconds = began.elapsed().as_secs_f64();

    let streaming = context.output.format == OutputFormat::Human;
    let mut stream = tokenizer.stream(true);
    let mut failure = None;
    let mut generator = Generator::new(&decoder, &sampling, CacheType::F16)?;
    generator.stop_at(tokenizer.end_tokens());
    let result =
        generator.generate(&tokens, args.max_tokens, |token| match stream.push(token) {
            Ok(piece) => {
                if streaming {
                    Output::print_piece(&piece);
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    if streaming {
        Output::print_piece(&stream.finish()?);
        Output::print_piece("\n");
    }
    let report = GenerateReport {
        status: "success",
        model: name,
        prompt: args.prompt.clone(),
        text: tokenizer.decode(&result.tokens, true)?,
        prompt_tokens: tokens.len(),
        generated_tokens: result.tokens.len(),
        stop_reason: match result.stop {
            StopReason::EndOfText => "end_of_text",
            StopReason::MaxTokens => "max_tokens",
            StopReason::ContextFull => "context_full",
            StopReason::Cancelled => "cancelled",
        },
        prompt_tokens_per_second: result.prompt_speed(),
        generated_tokens_per_second: result.generation_speed(),
        load_seconds,
        resident_memory_bytes: memory::resident_bytes(),
        kv_cache_bytes: result.cache_bytes,
        peak_memory_bytes: memory::peak_resident_bytes(),
    };
    if streaming {
        context.output.line(Verbosity::Verbose, &report.human());
    } else {
        context.output.result(&report);
    }
    Ok(())
}

fn sampling(args: &GenerateArgs) -> Result<Sampling, Error> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Error::InvalidArgument("--temperature must be 0 or more".into()));
    }
    if args.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return Err(Error::InvalidArgument("--top-p must be above 0 and at most 1".into()));
    }
    if args.max_tokens == 0 {
        return Err(Error::InvalidArgument("--max-tokens must be at least 1".into()));
    }
    Ok(Sampling { temperature: args.temperature, top_p: args.top_p, top_k: None, seed: args.seed })
}

impl Report for GenerateReport {
    fn human(&self) -> String {
        format!(
            "[llm-quantize] {} prompt tokens at {:.1}/s, {} generated at {:.1}/s, stopped at {}{}",
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.generated_tokens,
            self.generated_tokens_per_second,
            self.stop_reason,
            self.peak_memory_bytes.map_or(String::new(), |bytes| {
                format!(", peak memory {}", size::human_bytes(bytes))
            }),
        )
    }
}
