//! GGUF at every level of llama.cpp: models as a GGUF file would hold them at full precision,
//! whatever they were read from ([`model`]); which type each tensor gets ([`level`], [`mix`],
//! [`budget`]); the exact plan of the files ([`plan`]); the streaming work ([`execute`]).

pub mod budget;
pub mod execute;
mod finite;
mod from_gguf;
pub mod from_littlebit;
pub mod ggml_type;
mod hf;
pub mod integers;
pub mod level;
pub mod mix;
pub mod model;
pub mod plan;
pub mod report;
pub mod request;
mod tensor;

pub use finite::{NonFinite, first_non_finite};
pub use ggml_type::GgmlType;
pub use hf::check_config;
pub use level::Level;
pub use model::{GgufModel, ModelShape, SourceOptions, open};
pub use plan::QuantizePlan;
pub use report::{FileReport, QuantizeReport, SourceReport};
pub use request::{Checkpoints, Goal, QuantizeRequest};
pub use tensor::GgufTensor;
