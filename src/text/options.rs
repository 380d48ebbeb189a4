//! Which text a job reads, and opening it.

use std::path::PathBuf;

use super::documents::ChatRenderer;
use super::source::{TextRequest, TextSource};
use crate::base::progress::Progress;
use crate::hub::{self, HubOptions};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat::ChatMessage;
use crate::{Error, Result};

/// Which text to use.
#[derive(Debug, Clone, Default)]
pub struct TextOptions {
    /// The user's file to calibrate on.
    pub calibration: Option<PathBuf>,
    /// The user's file to measure with.
    pub evaluation: Option<PathBuf>,
    /// How to reach the hub for WikiText-2, if it may be asked.
    pub hub: Option<HubOptions>,
}

/// Opens the text that the options name, or the default one.
pub(crate) fn open_text(
    options: &TextOptions,
    tokenizer: &Tokenizer,
    calibration_tokens: usize,
    evaluation_tokens: Option<usize>,
    progress: &dyn Progress,
) -> Result<TextSource> {
    let render = tokenizer
        .chat_template()
        .map(|template| |messages: &[ChatMessage]| template.render(messages, false));
    let fetch = |dataset: &str, revision: &str, file: &str| match &options.hub {
        // There is other text to fall back on, so nobody waits for a hub that does not answer.
        Some(hub) => {
            let hub = HubOptions { retries: 0, ..hub.clone() };
            hub::fetch_dataset_file(dataset, revision, file, &hub, progress)
        }
        None => Err(Error::General("the hub is not asked".into())),
    };
    TextSource::open(
        &TextRequest {
            calibration_data: options.calibration.as_deref(),
            evaluation_data: options.evaluation.as_deref(),
            calibration_tokens,
            evaluation_tokens,
            render: render.as_ref().map(|render| render as ChatRenderer<'_>),
            fetch: Some(&fetch),
        },
        progress,
    )
}
