//! Compression below one bit per weight by binary low-rank factorization:
//! `W ≈ Σ_paths diag(h) · U± · diag(l) · V±ᵀ · diag(g)` (LittleBit, arXiv 2506.13771).

pub mod admm;
pub mod budget;
pub mod compress;
pub mod engine;
pub mod engine_candle;
pub mod estimate;
pub mod itq;
pub mod normalise;
pub mod plan;
pub mod polish;
pub mod report;
pub mod rounding;
pub mod scale_choice;
pub mod scales;
pub mod solve;
pub(crate) mod speed;
pub mod svid;
pub mod tuning;
pub mod validate;
