//! Compression below one bit per weight by binary low-rank factorization:
//! `W ≈ Σ_paths diag(h) · U± · diag(l) · V±ᵀ · diag(g)` (LittleBit, arXiv 2506.13771).

pub(crate) mod admm;
pub mod budget;
pub(crate) mod compress;
pub mod engine;
pub mod engine_candle;
pub(crate) mod estimate;
pub(crate) mod itq;
pub mod normalise;
pub mod plan;
pub(crate) mod polish;
pub(crate) mod report;
pub(crate) mod rounding;
pub mod scale_choice;
pub(crate) mod scales;
pub mod solve;
pub(crate) mod speed;
pub(crate) mod svid;
pub mod tuning;
pub(crate) mod validate;
