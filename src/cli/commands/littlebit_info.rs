//! `littlebit info`.

use crate::Error;
use crate::base::progress::Progress;
use crate::cli::args::littlebit::LittlebitInfoArgs;
use crate::cli::bars::Bars;
use crate::cli::output::Report;
use crate::cli::{Context, Failure};
use crate::files::littlebit::metadata_export;
use crate::model::gguf_ext;
use crate::model::littlebit_info::FileInfo;

pub(super) fn run(args: &LittlebitInfoArgs, context: &Context) -> Result<(), Failure> {
    let progress = Bars::new(&context.output);
    if !args.file.exists() {
        let message = format!("{} does not exist", args.file.display());
        return Err(Error::model_not_found(message).into());
    }
    let file = gguf_ext::open_either(&args.file)?;
    if args.verify {
        file.verify_checksums(&progress)?;
        progress.note("Every checksum matches");
    }
    if let Some(path) = &args.export_metadata {
        metadata_export::export(&file, path)?;
        progress.note(&format!("Complete: {0}.safetensors, {0}.json", path.display()));
    }
    context.output.result(&file.info(args.layers)?);
    Ok(())
}

impl Report for FileInfo {
    fn human(&self) -> String {
        self.to_string()
    }
}
