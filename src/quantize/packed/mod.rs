//! Integers in groups for Hugging Face directories: AWQ, GPTQ and SmoothQuant.

pub mod awq;
pub mod block;
pub mod channels;
pub mod gptq;
pub mod gram;
pub mod grid;
pub mod grouped;
pub mod smoothquant;
