//! Compression below one bit per weight by binary low-rank factorization:
//! `W ≈ Σ_paths diag(h) · U± · diag(l) · V±ᵀ · diag(g)` (LittleBit, arXiv 2506.13771).

pub mod factor;
