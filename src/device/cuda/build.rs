//! Compiles the CUDA kernels to PTX when the feature `cuda` is on; otherwise does nothing.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo:rerun-if-changed=src/device/cuda/build.rs");
}

/// PTX for compute capability 8.0 is translated by the driver for every newer GPU as well, whatever
/// `CUDA_COMPUTE_CAP` says about the kernels of other crates.
#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo:rerun-if-changed=src/device/cuda/build.rs");
    println!("cargo:rerun-if-changed=src/device/cuda/kernels");
    // Set for the whole build when cudarc shall open the driver library at run time.
    println!("cargo:rustc-check-cfg=cfg(feature, values(\"dynamic-loading\"))");
    cudaforge::KernelBuilder::new()
        .source_glob("src/device/cuda/kernels/*.cu")
        .compute_cap_arch("80")
        .arg("-O3")
        .arg("-std=c++17")
        .build_ptx()?;
    Ok(())
}
