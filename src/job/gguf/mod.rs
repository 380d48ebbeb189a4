//! GGUF at every level of llama.cpp: models as a GGUF file would hold them at full precision,
//! whatever they were read from ([`model`]); which type each tensor gets ([`level`], [`mix`],
//! [`budget`]); the exact plan of the files ([`plan`]); the streaming work ([`execute`]).

pub(crate) mod budget;
pub mod execute;
mod finite;
mod from_gguf;
pub(crate) mod from_littlebit;
mod hf;
pub(crate) mod integers;
pub(crate) mod level;
pub mod mix;
pub(crate) mod model;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod protect;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod summary;
mod tensor;

pub use finite::{NonFinite, first_non_finite};
pub use hf::check_config;
pub use level::Level;
pub use model::{GgufModel, ModelShape, SourceOptions, open};
pub use plan::QuantizePlan;
pub use protect::Protection;
pub use report::{FileReport, QuantizeReport, SourceReport};
pub use request::{Dynamic, Goal, Measured, QuantizeRequest};
pub use tensor::GgufTensor;
