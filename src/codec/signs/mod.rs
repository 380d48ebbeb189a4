//! Products of packed sign matrices with vectors, never unpacking a weight.
//!
//! For every four columns there are only sixteen different sums `±x₀ ± x₁ ± x₂ ± x₃`. A kernel
//! tabulates them once per column group and then adds, for every row, the two entries that the
//! row's byte selects: one table lookup replaces four multiplications. With AVX-512 a lookup of
//! sixteen rows is a single instruction, which makes the product faster than a dense one of the
//! same size even when the dense one is not waiting for memory; so there is no other path for
//! larger batches.
//!
//! Every kernel forms the same sums in the same order: a table entry is
//! `((±x₀ ± x₁) ± x₂) ± x₃`, and a row adds `low + high` of its column groups from left to right.
//! The result therefore has the same bits on every instruction set, for every number of threads
//! and in every batch.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod bits;
#[cfg(all(test, unix))]
mod guard_tests;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

pub use bits::BitMatrix;

use std::sync::OnceLock;

/// An instruction set for which a kernel exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// Portable reference.
    Scalar,
    /// x86-64 with 256-bit integer vectors.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL.
    Avx512,
    /// 64-bit Arm.
    Neon,
}

impl InstructionSet {
    /// All of them, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512];

    /// Whether this processor has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            _ => false,
        }
    }
}

/// A kernel that this processor can run. Holding one is the proof, so calls do not check again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    instructions: InstructionSet,
}

impl Kernel {
    /// The fastest one here; chosen once per process.
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| {
            let fastest = InstructionSet::ALL.into_iter().rev().find_map(Self::new);
            fastest.unwrap_or(Self { instructions: InstructionSet::Scalar })
        })
    }

    /// The kernel for an instruction set, if this processor has it.
    #[must_use]
    pub fn new(instructions: InstructionSet) -> Option<Self> {
        instructions.is_available().then_some(Self { instructions })
    }

    /// What it uses.
    #[must_use]
    pub fn instructions(self) -> InstructionSet {
        self.instructions
    }

    /// Multiplies rows `first_row ..` of a sign matrix with one or two vectors:
    /// `out[k][i] = Σ_j sign(first_row + i, j) · x[k][j]`.
    ///
    /// Each `x[k]` has `8 * matrix.groups()` entries, zeros beyond the last column. Computes on the
    /// calling thread.
    ///
    /// # Panics
    /// When a length does not fit.
    pub fn multiply<const T: usize>(
        self,
        matrix: &BitMatrix,
        first_row: usize,
        x: [&[f32]; T],
        out: [&mut [f32]; T],
    ) {
        const { assert!(T == 1 || T == 2, "kernels take one or two vectors") };
        self.run(Product::new(matrix, first_row, x, out));
    }

    fn run<const T: usize>(self, product: Product<'_, T>) {
        match self.instructions {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => avx2::run(product),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => avx512::run(product),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => neon::run(product),
            _ => scalar::run(product),
        }
    }
}

/// Checked operands of a product. The kernels compute addresses from these fields, so all of them
/// are made by [`Product::new`] and nothing changes them.
struct Product<'a, const T: usize> {
    /// `groups * stride` bytes.
    bytes: &'a [u8],
    /// Rows of the matrix: the distance of neighbouring column groups in bytes.
    stride: usize,
    /// Column groups, `x[k].len() / 8`.
    groups: usize,
    /// First row to compute; `first_row + count <= stride`.
    first_row: usize,
    /// Rows to compute, the length of every `out[k]`.
    count: usize,
    x: [&'a [f32]; T],
    /// Zero at the start.
    out: [&'a mut [f32]; T],
}

impl<'a, const T: usize> Product<'a, T> {
    fn new(
        matrix: &'a BitMatrix,
        first_row: usize,
        x: [&'a [f32]; T],
        mut out: [&'a mut [f32]; T],
    ) -> Self {
        let (stride, groups) = (matrix.rows, matrix.groups());
        let bytes: &[u8] = &matrix.bytes;
        let count = out.first().map_or(0, |rows| rows.len());
        assert_eq!(Some(bytes.len()), groups.checked_mul(stride), "bytes of a sign matrix");
        assert!(first_row <= stride && count <= stride - first_row, "rows of a sign matrix");
        assert!(x.iter().all(|vector| vector.len() == 8 * groups), "length of a factor");
        assert!(out.iter().all(|rows| rows.len() == count), "length of a product");
        for rows in &mut out {
            rows.fill(0.0);
        }
        Self { bytes, stride, groups, first_row, count, x, out }
    }
}

/// Signs of four columns by table index: entry `e` adds column `j` when bit `j` of `e` is set.
const SIGNS: [[f32; 16]; 4] = {
    let mut signs = [[-1.0; 16]; 4];
    let mut column = 0;
    while column < 4 {
        let mut entry = 0;
        while entry < 16 {
            if entry >> column & 1 == 1 {
                signs[column][entry] = 1.0;
            }
            entry += 1;
        }
        column += 1;
    }
    signs
};
