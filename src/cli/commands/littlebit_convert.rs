//! `littlebit convert`.

use std::path::Path;

use crate::Error;
use crate::base::progress::Progress;
use crate::base::size::human_bytes;
use crate::cli::args::littlebit::{ConvertArgs, FileFormat};
use crate::cli::bars::Bars;
use crate::cli::output::Report;
use crate::cli::{Context, Failure, interrupt};
use crate::job::convert::littlebit::{self, ConversionReport, Target};
use crate::job::gguf::Level;

pub(super) fn run(args: &ConvertArgs, context: &Context) -> Result<(), Failure> {
    context.given.refuse(
        "for this format",
        &[(
            "gguf-quant",
            args.output_format != FileFormat::GgufLossy,
            "it is the level of gguf-lossy",
        )],
    )?;
    let target = match args.output_format {
        FileFormat::Littlebit => Target::LittleBit,
        FileFormat::GgufExt => Target::GgufExt,
        FileFormat::GgufLossy => Target::GgufLossy(Level::parse(&args.gguf_quant)?),
    };
    args.output.check_name()?;
    let (file, from) = littlebit::open(&args.input)?;
    let output = args.output.output_dir.join(output_name(args, target));
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if from != target.name() && same(&args.input, &output) {
        return Err(Error::InvalidArgument(format!(
            "{} is the file that is converted; give another --output-name",
            output.display()
        ))
        .into());
    }
    let progress = Bars::new(&context.output);
    if let Target::GgufLossy(level) = target {
        let warning = format!(
            "{} holds dense weights: the binary factors are multiplied out and quantized again, so \
             the file is larger, quality is lost once more, and there is no way back",
            level.name()
        );
        progress.warn(&warning);
        if !args.force && !context.output.confirm("Convert all the same?") {
            return Err(Error::Cancelled("the lossy conversion was not confirmed".into()).into());
        }
    }
    interrupt::watch();
    let report = littlebit::convert(&file, from, target, &output, &progress)?;
    report.warnings.iter().for_each(|warning| progress.warn(warning));
    progress.complete(&report.output_path, report.file_size, "");
    context.output.result(&report);
    Ok(())
}

/// `--output-name`, else the input's stem: `m.littlebit`, `m.ext.gguf`, `m-lossy-Q4_K_M.gguf`.
fn output_name(args: &ConvertArgs, target: Target) -> String {
    let extension = if target == Target::LittleBit { ".littlebit" } else { ".gguf" };
    if let Some(name) = &args.output.output_name {
        return if name.ends_with(extension) { name.clone() } else { format!("{name}{extension}") };
    }
    default_name(&args.input.file_stem().unwrap_or_default().to_string_lossy(), target)
}

/// The name of a file of `target` for a model called `stem`.
pub(super) fn default_name(stem: &str, target: Target) -> String {
    let stem = stem.strip_suffix(".ext").unwrap_or(stem);
    match target {
        Target::LittleBit => format!("{stem}.littlebit"),
        Target::GgufExt => format!("{stem}.ext.gguf"),
        Target::GgufLossy(level) => format!("{stem}-lossy-{}.gguf", level.name()),
    }
}

impl Report for ConversionReport {
    fn human(&self) -> String {
        let mut out = String::new();
        let mut row = |label: &str, value: String| out.push_str(&format!("{label:<20}{value}\n"));
        row("Output:", self.output_path.clone());
        row("Input:", format!("{} ({})", self.input_path, self.input_format));
        match &self.quantization_level {
            Some(level) => row("Format:", format!("{} ({level})", self.format)),
            None => row("Format:", self.format.into()),
        }
        row(
            "Size:",
            format!("{} → {}", human_bytes(self.input_size_bytes), human_bytes(self.file_size)),
        );
        row("Without loss:", if self.lossless { "yes, compared" } else { "no" }.into());
        row("SHA-256:", self.sha256.clone());
        out
    }
}
