//! Integers in groups for Hugging Face directories that vLLM and transformers load: GPTQ, AWQ and
//! SmoothQuant W8A8.
//!
//! [`plan::plan`] says what will be written, [`execute::execute`] does it: blocks are quantized one
//! after the other on what the quantized blocks before them give, each is kept in the checkpoint and
//! written at once, so that memory holds one block and the activations between two.

pub(crate) mod awq;
pub(crate) mod block;
mod card;
pub(crate) mod channels;
pub(crate) mod execute;
pub(crate) mod finished;
pub(crate) mod gptq;
pub(crate) mod gram;
pub(crate) mod held;
pub(crate) mod layout;
pub(crate) mod plan;
mod preflight;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod smoothquant;
mod store;
mod work;

pub(crate) use execute::execute;
pub(crate) use plan::{PackedPlan, plan};
pub(crate) use preflight::{refuse_early, shortages};
pub(crate) use report::PackedReport;
pub(crate) use request::{Alpha, Extras, Gptq, GroupSize, Method, PackedRequest, parse_bits};
