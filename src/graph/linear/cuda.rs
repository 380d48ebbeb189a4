//! Factorized layers on the GPU: the packed bytes and scales live there, and every product is
//! computed from them.
//!
//! Few tokens go through the table kernels of `signs.cu` (activations and sums in f32). For many
//! tokens a factor is unpacked to f32 for the duration of one matrix product: unpacking costs as
//! much as a handful of tokens, and the product then runs at the speed of cuBLAS.

#![allow(unsafe_code, reason = "kernel launches")]

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage, WrapErr};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor};
use half::f16;

use super::LinearLayer;
use crate::codec::signs::BitMatrix;
use crate::weight::{Factor, FactorizedLinear};

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/signs.ptx"));

/// The name under which candle keeps the translated kernels of a device.
const MODULE: &str = "llm_quantize_signs";

/// Threads of a block, and rows of a block of the products (`ROWS` in `signs.cu`).
const BLOCK: u32 = 128;

/// Column groups per table tile (`GROUPS` in `signs.cu`).
const TILE_GROUPS: usize = 16;

/// Blocks that keep a large GPU busy; columns are split until there are about as many.
const BUSY_BLOCKS: usize = 256;

/// Most tokens for which the table kernels are used.
const FEW_TOKENS: usize = 32;

/// A matrix of signs on the GPU, in the layout of [`BitMatrix`].
#[derive(Debug)]
struct Signs {
    rows: usize,
    cols: usize,
    /// U8.
    bytes: Tensor,
}

/// One path on the GPU; scales are f32.
#[derive(Debug)]
struct Path {
    left: Signs,
    right: Signs,
    row_scale: Tensor,
    latent_scale: Option<Tensor>,
    column_scale: Tensor,
}

/// A [`FactorizedLinear`] in GPU memory.
#[derive(Debug)]
pub(crate) struct CudaFactorized {
    out_features: usize,
    in_features: usize,
    device: CudaDevice,
    paths: Vec<Path>,
}

impl CudaFactorized {
    /// Copies the packed bytes and the scales to the GPU.
    ///
    /// # Errors
    /// When its memory does not suffice.
    pub(crate) fn new(layer: &FactorizedLinear, device: &CudaDevice) -> crate::Result<Self> {
        let to = Device::Cuda(device.clone());
        let paths = layer.paths.iter().map(|path| Path::new(path, &to)).collect::<Result<_>>()?;
        Ok(Self {
            out_features: layer.out_features,
            in_features: layer.in_features,
            device: device.clone(),
            paths,
        })
    }

    /// `x`, f32 `[tokens, in]`, through dense copies of the factors that live for one product.
    fn forward_unpacked(&self, x: &Tensor) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for path in &self.paths {
            let right =
                path.right.unpacked(path.latent_scale.as_ref(), Some(&path.column_scale))?;
            let latent = x.matmul(&right.t()?)?;
            drop(right);
            let left = path.left.unpacked(Some(&path.row_scale), None)?;
            let y = latent.matmul(&left.t()?)?;
            sum = Some(match sum {
                Some(sum) => (sum + y)?,
                None => y,
            });
        }
        sum.ok_or_else(|| candle_core::Error::Msg("a factorized layer without paths".into()))
    }

    /// The table kernels for all paths.
    fn products(&self, x: &CudaView<f32>, tokens: usize) -> Result<CudaSlice<f32>> {
        let device = &self.device;
        // SAFETY: the first path writes every entry.
        let y = unsafe { device.alloc::<f32>(tokens * self.out_features)? };
        for (index, path) in self.paths.iter().enumerate() {
            let (latent, splits) =
                path.right.product(device, x, 1, Some(&path.column_scale), tokens)?;
            let latent_scale = path.latent_scale.as_ref();
            let (sums, splits) =
                path.left.product(device, &latent.as_view(), splits, latent_scale, tokens)?;

            let function = device.get_or_load_custom_func("add_splits", MODULE, PTX)?;
            let (storage, layout) = path.row_scale.storage_and_layout();
            let scale = view::<f32>(&storage, layout)?;
            let mut call = function.builder();
            let (splits, accumulate) = (size(splits)?, u32::from(index > 0));
            let (tokens, rows) = (size(tokens)?, size(self.out_features)?);
            call.arg(&sums).arg(&splits).arg(&scale).arg(&tokens).arg(&rows);
            call.arg(&accumulate).arg(&y);
            let config = LaunchConfig {
                grid_dim: (rows.div_ceil(BLOCK), tokens, 1),
                block_dim: (BLOCK, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the argument list is that of `add_splits`; `sums` has `[splits, tokens,
            // rows]` values, `scale` one per row, `y` `[tokens, rows]`.
            unsafe { call.launch(config) }.w()?;
        }
        Ok(y)
    }
}

impl LinearLayer for CudaFactorized {
    fn dims(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    fn forward(&self, x: &Tensor) -> crate::Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.in_features || x.dtype() != DType::F32 {
            let (dtype, expected) = (x.dtype(), self.in_features);
            return Err(candle_core::Error::Msg(format!(
                "a factorized layer takes f32 [tokens, {expected}], not {dtype:?} [{tokens}, {inputs}]"
            ))
            .into());
        }
        let x = x.contiguous()?;
        Ok(if tokens <= FEW_TOKENS {
            x.apply_op1_no_bwd(&TableProducts { layer: self, tokens })?
        } else {
            self.forward_unpacked(&x)?
        })
    }
}

impl Path {
    fn new(path: &Factor, device: &Device) -> Result<Self> {
        let scale = |values: &[f16]| {
            let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
            Tensor::from_slice(&values, values.len(), device)
        };
        Ok(Self {
            left: Signs::new(&path.left, device)?,
            right: Signs::new(&path.right, device)?,
            row_scale: scale(&path.row_scale)?,
            latent_scale: path.latent_scale.as_deref().map(scale).transpose()?,
            column_scale: scale(&path.column_scale)?,
        })
    }
}

impl Signs {
    fn new(matrix: &BitMatrix, device: &Device) -> Result<Self> {
        let bytes = Tensor::from_slice(&matrix.bytes, matrix.bytes.len(), device)?;
        Ok(Self { rows: matrix.rows, cols: matrix.cols, bytes })
    }

    /// `signs · (scale ∘ x)` as partial sums `[splits, tokens, rows]`, and the number of splits.
    /// `x` is partial sums `[splits_in, tokens, cols]` itself. The splits depend on the shape
    /// alone, so that a token's result does not depend on the others.
    fn product(
        &self,
        device: &CudaDevice,
        x: &CudaView<f32>,
        splits_in: usize,
        scale: Option<&Tensor>,
        tokens: usize,
    ) -> Result<(CudaSlice<f32>, usize)> {
        let row_blocks = self.rows.div_ceil(BLOCK as usize);
        let tiles = self.cols.div_ceil(8 * TILE_GROUPS);
        let tiles_per_split = tiles.div_ceil((BUSY_BLOCKS / row_blocks).clamp(1, tiles));
        let splits = tiles.div_ceil(tiles_per_split);
        let (name, tile) = match tokens {
            0..=1 => ("sign_product_1", 1),
            2 => ("sign_product_2", 2),
            3..=4 => ("sign_product_4", 4),
            _ => ("sign_product_8", 8),
        };

        // SAFETY: the kernel writes every entry.
        let out = unsafe { device.alloc::<f32>(splits * tokens * self.rows)? };
        let function = device.get_or_load_custom_func(name, MODULE, PTX)?;
        let (storage, layout) = self.bytes.storage_and_layout();
        let bytes = view::<u8>(&storage, layout)?;
        let scale = scale.map(Tensor::storage_and_layout);
        let scale =
            scale.as_ref().map(|(storage, layout)| view::<f32>(storage, layout)).transpose()?;
        let config = LaunchConfig {
            grid_dim: (size(row_blocks)?, size(splits)?, size(tokens.div_ceil(tile))?),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let (rows, cols, splits_in) = (size(self.rows)?, size(self.cols)?, size(splits_in)?);
        let (tokens, groups_per_split) = (size(tokens)?, size(tiles_per_split * TILE_GROUPS)?);
        let no_scale = 0_u64;
        let mut call = function.builder();
        call.arg(&bytes).arg(&rows).arg(&cols).arg(x).arg(&splits_in);
        match &scale {
            Some(scale) => call.arg(scale),
            None => call.arg(&no_scale),
        };
        call.arg(&tokens).arg(&groups_per_split).arg(&out);
        // SAFETY: the argument list is that of `sign_product_*`; the sizes are those of the
        // buffers, and the grid covers all rows, columns and tokens.
        unsafe { call.launch(config) }.w()?;
        Ok((out, splits))
    }

    /// `diag(row_scale) · signs · diag(column_scale)`, f32 `[rows, cols]`.
    fn unpacked(
        &self,
        row_scale: Option<&Tensor>,
        column_scale: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.bytes.apply_op1_no_bwd(&Unpack { signs: self, row_scale, column_scale })
    }
}

/// [`CudaFactorized::products`] as an operation on a tensor.
struct TableProducts<'a> {
    layer: &'a CudaFactorized,
    tokens: usize,
}

impl CustomOp1 for TableProducts<'_> {
    fn name(&self) -> &'static str {
        "sign_products"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a factorized layer in GPU memory takes its input from there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let start = layout.start_offset();
        let length = self.tokens * self.layer.in_features;
        let x = storage.as_cuda_slice::<f32>()?.slice(start..start + length);
        let y = self.layer.products(&x, self.tokens)?;
        let shape = Shape::from((self.tokens, self.layer.out_features));
        Ok((CudaStorage::wrap_cuda_slice(y, storage.device().clone()), shape))
    }
}

/// [`Signs::unpacked`] as an operation on the packed bytes.
struct Unpack<'a> {
    signs: &'a Signs,
    row_scale: Option<&'a Tensor>,
    column_scale: Option<&'a Tensor>,
}

impl CustomOp1 for Unpack<'_> {
    fn name(&self) -> &'static str {
        "unpack_signs"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("packed signs in GPU memory are unpacked there")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let Signs { rows, cols, .. } = *self.signs;
        let bytes = storage.as_cuda_slice::<u8>()?.slice(layout.start_offset()..);
        // SAFETY: the kernel writes every entry.
        let out = unsafe { device.alloc::<f32>(rows * cols)? };
        let function = device.get_or_load_custom_func("unpack_signs", MODULE, PTX)?;
        let row_scale = self.row_scale.map(Tensor::storage_and_layout);
        let row_scale =
            row_scale.as_ref().map(|(storage, layout)| view::<f32>(storage, layout)).transpose()?;
        let column_scale = self.column_scale.map(Tensor::storage_and_layout);
        let column_scale = column_scale
            .as_ref()
            .map(|(storage, layout)| view::<f32>(storage, layout))
            .transpose()?;
        let config = LaunchConfig {
            grid_dim: (size(rows)?.div_ceil(BLOCK), size(cols.div_ceil(8))?, 1),
            block_dim: (BLOCK, 1, 1),
            shared_mem_bytes: 0,
        };
        let (kernel_rows, kernel_cols) = (size(rows)?, size(cols)?);
        let no_scale = 0_u64;
        let mut call = function.builder();
        call.arg(&bytes).arg(&kernel_rows).arg(&kernel_cols);
        for scale in [&row_scale, &column_scale] {
            match scale {
                Some(scale) => call.arg(scale),
                None => call.arg(&no_scale),
            };
        }
        call.arg(&out);
        // SAFETY: the argument list is that of `unpack_signs`; there is one scale per row or
        // column, and the grid covers all rows and column groups.
        unsafe { call.launch(config) }.w()?;
        Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), Shape::from((rows, cols))))
    }
}

/// The signs of a matrix in the layout of [`BitMatrix`], as 1 and -1, f32 `[rows, cols]`; `bytes` is U8
/// in GPU memory.
///
/// # Errors
/// If the launch fails.
pub(crate) fn unpack(bytes: &Tensor, rows: usize, cols: usize) -> Result<Tensor> {
    Signs { rows, cols, bytes: bytes.flatten_all()? }.unpacked(None, None)
}

/// What a tensor in GPU memory holds, from its first value on.
fn view<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match storage {
        Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..)),
        _ => candle_core::bail!("a tensor of a GPU layer is elsewhere"),
    }
}

/// A size as the kernels take it.
fn size(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| candle_core::Error::Msg(format!("{value} is too large")))
}
