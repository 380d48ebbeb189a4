//! GPTQ (arXiv 2210.17323): weights are rounded column by column, and what is not rounded yet makes
//! up for the errors of what is.
//!
//! The layer's error on the calibration text is `tr(E H Eᵀ)` with `H = XᵀX` and `E = W − Ŵ`. With
//! `H = M Mᵀ`, `M` upper triangular, it is the sum over the columns of
//! `M_jj² (e_j + Σ_{k<j} e_k U_kj)²` with `U = M diag(M)⁻¹`: each column is rounded at
//! `w_j + Σ_{k<j} e_k U_kj`. That is the paper's algorithm without an inverse (arXiv 2307.13304,
//! theorem 6, shows that the two are the same), and every row can be done by itself.

mod factor;
mod refine;
mod solve;

pub(crate) use factor::{Order, SecondMoments};
pub(crate) use solve::{Groups, Options, solve};

#[cfg(test)]
mod tests;
