//! Compiles the CUDA kernels to PTX when the feature `cuda` is on; otherwise does nothing.

fn main() {}
