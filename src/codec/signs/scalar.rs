//! The portable kernel: the reference of the others, and the fallback.

use super::{Product, SIGNS};

/// Computes the product.
pub(super) fn run<const T: usize>(mut product: Product<'_, T>) {
    let rows = product.first_row..product.first_row + product.count;
    for (group, bytes) in product.bytes.chunks_exact(product.stride).enumerate() {
        for (x, out) in product.x.iter().zip(&mut product.out) {
            let low = table(&x[8 * group..8 * group + 4]);
            let high = table(&x[8 * group + 4..8 * group + 8]);
            for (byte, sum) in bytes[rows.clone()].iter().zip(out.iter_mut()) {
                *sum += low[usize::from(byte & 15)] + high[usize::from(byte >> 4)];
            }
        }
    }
}

/// The sixteen signed sums of four values. A product with ±1 is exact, so only the additions
/// round, in the order in which the other kernels do them.
fn table(x: &[f32]) -> [f32; 16] {
    std::array::from_fn(|entry| {
        ((SIGNS[0][entry] * x[0] + SIGNS[1][entry] * x[1]) + SIGNS[2][entry] * x[2])
            + SIGNS[3][entry] * x[3]
    })
}
