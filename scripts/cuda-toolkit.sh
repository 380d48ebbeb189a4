#!/bin/sh
# Installs the CUDA 13.0 compiler and headers from PyPI (270 MB, no root, no GPU needed) and prints the
# environment for a build whose binary opens the CUDA libraries at run time, and so starts without them:
#
#   eval "$(scripts/cuda-toolkit.sh [FOLDER])"       (default: target/cuda)
#   cargo build --release --features cuda --target x86_64-unknown-linux-gnu
#
# CUDA_COMPUTE_CAP says which GPU candle's own kernels are built for: 80 = A100 (default), 89 = RTX 40,
# 90 = H100. CUDA 13.0 emits code that drivers from 580 on accept; later compilers need later drivers.
set -eu

folder=${1:-$(dirname "$0")/../target/cuda}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
toolkit=$folder/toolkit
if [ ! -e "$folder/complete" ]; then
    rm -rf "$toolkit"
    python3 -m venv "$folder/python" >&2
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 >&2
    installed=$(cd "$folder"/python/lib/python3.*/site-packages/nvidia/cu13 && pwd)
    mkdir -p "$toolkit/lib64/stubs"
    for part in bin include nvvm; do ln -s "$installed/$part" "$toolkit/$part"; done
    ln -s "$installed/lib/libcudart_static.a" "$installed/lib/libcudadevrt.a" "$toolkit/lib64/"
    # -lcudart then finds the static runtime.
    ln -s libcudart_static.a "$toolkit/lib64/libcudart.a"
    # Empty libraries: nothing refers to them, so the linker drops them again.
    for library in cuda cublas cublasLt curand nvrtc; do
        cc -shared -o "$toolkit/lib64/stubs/lib$library.so" -x c /dev/null
    done
    touch "$folder/complete"
fi
cat <<ENVIRONMENT
export CUDA_HOME='$toolkit' CUDA_PATH='$toolkit' PATH='$toolkit/bin':"\$PATH"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS='--cfg feature="dynamic-loading"'
ENVIRONMENT
