//! Keys and values of the tokens that a sequence has seen.

use candle_core::{DType, Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::{Error, Result};

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// Half the memory; what llama.cpp uses by default.
    #[default]
    F16,
    /// Exact.
    F32,
}

impl CacheType {
    /// Bytes of a value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    const fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

/// The cache of one sequence. It grows in steps of [`KvCache::STEP`] tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

impl KvCache {
    /// Tokens by which the cache grows.
    pub const STEP: usize = 256;

    /// An empty cache for `layers` blocks whose keys take `width` values per token, holding at
    /// most `capacity` tokens.
    #[must_use]
    pub fn new(
        layers: usize,
        width: usize,
        kind: CacheType,
        capacity: usize,
        device: &Device,
    ) -> Self {
        let layer = || LayerCache {
            length: 0,
            width,
            kind,
            store: if device.is_cpu() {
                match kind {
                    CacheType::F16 => Store::Half { keys: Vec::new(), values: Vec::new() },
                    CacheType::F32 => Store::Single { keys: Vec::new(), values: Vec::new() },
                }
            } else {
                Store::Device { pair: None, device: device.clone() }
            },
        };
        Self { layers: (0..layers).map(|_| layer()).collect(), capacity }
    }

    /// Tokens in the cache: the position of the next one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Whether nothing has been seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most tokens that it may hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes allocated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// Forgets all but the first `length` tokens. Memory is kept.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.truncate(length);
        }
    }

    /// The cache of block `index`.
    pub fn layer(&mut self, index: usize) -> Option<&mut LayerCache> {
        self.layers.get_mut(index)
    }

    /// Checks that `tokens` more fit.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        let needed = self.len() + tokens;
        if needed > self.capacity {
            return Err(Error::General(format!(
                "{needed} tokens do not fit a context of {}",
                self.capacity
            )));
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Store {
    Half {
        keys: Vec<f16>,
        values: Vec<f16>,
    },
    Single {
        keys: Vec<f32>,
        values: Vec<f32>,
    },
    /// `[allocated, width]` each.
    Device {
        pair: Option<(Tensor, Tensor)>,
        device: Device,
    },
}

/// Keys and values of one block, `[tokens, kv_heads · head_dim]`, rotated.
#[derive(Debug)]
pub struct LayerCache {
    length: usize,
    width: usize,
    kind: CacheType,
    store: Store,
}

/// Keys or values as attention reads them: `[tokens, kv_heads · head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cached<'a> {
    Half(&'a [f16]),
    Single(&'a [f32]),
}

impl LayerCache {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing has been seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn bytes(&self) -> usize {
        match &self.store {
            Store::Half { keys, values } => 2 * (keys.capacity() + values.capacity()),
            Store::Single { keys, values } => 4 * (keys.capacity() + values.capacity()),
            Store::Device { pair, .. } => {
                pair.as_ref().map_or(0, |(keys, _)| 2 * keys.elem_count() * self.kind.bytes())
            }
        }
    }

    fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
        let values_left = self.length * self.width;
        match &mut self.store {
            Store::Half { keys, values } => {
                keys.truncate(values_left);
                values.truncate(values_left);
            }
            Store::Single { keys, values } => {
                keys.truncate(values_left);
                values.truncate(values_left);
            }
            Store::Device { .. } => {}
        }
    }

    /// Appends rows of keys and values on the CPU.
    pub(crate) fn append(&mut self, new_keys: &[f32], new_values: &[f32]) -> Result<()> {
        let step = KvCache::STEP * self.width;
        match &mut self.store {
            Store::Half { keys, values } => {
                append_half(keys, new_keys, step);
                append_half(values, new_values, step);
            }
            Store::Single { keys, values } => {
                grow(keys, new_keys.len(), step);
                keys.extend_from_slice(new_keys);
                grow(values, new_values.len(), step);
                values.extend_from_slice(new_values);
            }
            Store::Device { .. } => return Err(wrong_device()),
        }
        self.length += new_keys.len() / self.width;
        Ok(())
    }

    /// All keys and values on the CPU.
    pub(crate) fn slices(&self) -> Result<(Cached<'_>, Cached<'_>)> {
        match &self.store {
            Store::Half { keys, values } => Ok((Cached::Half(keys), Cached::Half(values))),
            Store::Single { keys, values } => Ok((Cached::Single(keys), Cached::Single(values))),
            Store::Device { .. } => Err(wrong_device()),
        }
    }

    /// Appends rows `[tokens, width]` with candle operations and returns all rows as f32.
    pub(crate) fn append_tensors(
        &mut self,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let tokens = keys.dim(0)?;
        let length = self.length + tokens;
        if let Store::Half { .. } | Store::Single { .. } = self.store {
            self.append(
                &keys.flatten_all()?.to_vec1::<f32>()?,
                &values.flatten_all()?.to_vec1::<f32>()?,
            )?;
            let shape = (length, self.width);
            let tensor = |cached: Cached<'_>| {
                let values = match cached {
                    Cached::Half(v) => v.to_f32_vec(),
                    Cached::Single(v) => v.to_vec(),
                };
                Tensor::from_vec(values, shape, keys.device())
            };
            let (k, v) = self.slices()?;
            return Ok((tensor(k)?, tensor(v)?));
        }
        let Store::Device { pair, device } = &mut self.store else { return Err(wrong_device()) };
        let dtype = self.kind.dtype();
        let allocated = pair.as_ref().map_or(0, |(k, _)| k.dims()[0]);
        if length > allocated {
            let rows = length.next_multiple_of(KvCache::STEP);
            let bigger = |old: Option<&Tensor>| -> Result<Tensor> {
                let new = Tensor::zeros((rows, self.width), dtype, device)?;
                if let Some(old) = old {
                    new.slice_set(old, 0, 0)?;
                }
                Ok(new)
            };
            *pair =
                Some((bigger(pair.as_ref().map(|p| &p.0))?, bigger(pair.as_ref().map(|p| &p.1))?));
        }
        let Some((all_keys, all_values)) = pair else { return Err(wrong_device()) };
        all_keys.slice_set(&keys.to_dtype(dtype)?.contiguous()?, 0, self.length)?;
        all_values.slice_set(&values.to_dtype(dtype)?.contiguous()?, 0, self.length)?;
        self.length = length;
        Ok((
            all_keys.narrow(0, 0, length)?.to_dtype(DType::F32)?,
            all_values.narrow(0, 0, length)?.to_dtype(DType::F32)?,
        ))
    }
}

/// Makes room for `more` values, a step at a time, so that memory follows the length.
fn grow<T>(data: &mut Vec<T>, more: usize, step: usize) {
    let needed = data.len() + more;
    if needed > data.capacity() {
        data.reserve_exact(needed.next_multiple_of(step) - data.len());
    }
}

fn append_half(data: &mut Vec<f16>, new: &[f32], step: usize) {
    grow(data, new.len(), step);
    let start = data.len();
    data.resize(start + new.len(), f16::ZERO);
    data[start..].convert_from_f32_slice(new);
}

fn wrong_device() -> Error {
    Error::General("a key/value cache was used on another device than it was made for".into())
}
