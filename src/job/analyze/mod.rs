//! What matters in a model: the importance of every column of every matrix, measured on text, and
//! the single weights that must not be lost.
//!
//! Three measures ([`Method`](crate::files::imatrix::Method)): the mean square of each column's input, which is `llama-imatrix`'s
//! quantity; the mean absolute gradient of the loss with respect to each column's weights; and its
//! mean square (the diagonal of the empirical Fisher information). The result is an importance matrix
//! that llama.cpp reads, and on demand a [mask](crate::files::super_weights::SuperWeightMask) of the weights with the largest scores
//! and a [picture](plot).

mod cache;
mod collector;
mod gradient;
mod pass;
pub(crate) mod plot;
mod recorder;
pub(crate) mod report;
pub(crate) mod request;
mod run;
pub(crate) mod scores;
pub(crate) mod spikes;
pub(crate) mod statistics;
mod text;
mod weights;

pub use report::AnalyzeReport;
pub use request::{AnalyzeRequest, MatrixFormat, Samples};
pub use run::{FileRequest, analyze, files, refuse_early};
