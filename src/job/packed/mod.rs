//! Integers in groups for Hugging Face directories that vLLM and transformers load: GPTQ, AWQ and
//! SmoothQuant W8A8.
//!
//! [`plan::plan`] says what will be written, [`execute::execute`] does it: blocks are quantized one
//! after the other on what the quantized blocks before them give, each is kept in the checkpoint and
//! written at once, so that memory holds one block and the activations between two.

pub mod awq;
pub mod block;
mod card;
pub mod channels;
pub mod execute;
pub mod finished;
pub mod gptq;
pub mod gram;
pub mod held;
pub mod plan;
mod preflight;
pub mod report;
pub mod request;
pub mod smoothquant;
mod store;
mod work;

pub use execute::execute;
pub use plan::{PackedPlan, plan};
pub use preflight::{refuse_early, shortages};
pub use report::PackedReport;
pub use request::{Alpha, Extras, Gptq, GroupSize, Method, PackedRequest, parse_bits};
