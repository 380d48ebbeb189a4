//! Which tensor lies where: shards, offsets and headers, before anything is written.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::writer::TensorSlot;
use crate::{Error, Result};

/// A file of tensors.
#[derive(Debug)]
pub(super) struct Shard {
    /// Name in the directory.
    pub(super) name: String,
    /// Everything before the data: length, JSON, padding.
    pub(super) header: Vec<u8>,
    /// Where the data of each slot begins, in the order of the slots; from the start of the file.
    pub(super) offsets: Vec<u64>,
    /// Size of the file.
    pub(super) bytes: u64,
}

/// Bytes of a tensor.
pub(super) fn slot_bytes(slot: &TensorSlot) -> Result<u64> {
    slot.shape
        .iter()
        .try_fold(1u64, |product, &size| product.checked_mul(size as u64))
        .and_then(|count| count.checked_mul(slot.dtype.bitsize() as u64))
        .filter(|bits| bits.is_multiple_of(8))
        .map(|bits| bits / 8)
        .ok_or_else(|| Error::General(format!("{} has no size in bytes", slot.name)))
}

/// Fills shards of at most `most` bytes of data in the order of the slots; a larger tensor gets one of
/// its own.
pub(super) fn shards(
    slots: &[TensorSlot],
    most: u64,
    metadata: &IndexMap<String, String>,
) -> Result<Vec<Shard>> {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    let (mut from, mut filled) = (0, 0u64);
    for (at, slot) in slots.iter().enumerate() {
        let bytes = slot_bytes(slot)?;
        if at > from && filled + bytes > most {
            parts.push((from, at));
            (from, filled) = (at, 0);
        }
        filled += bytes;
    }
    parts.push((from, slots.len()));
    let count = parts.len();
    parts
        .into_iter()
        .enumerate()
        .map(|(number, (from, to))| {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            shard(name, &slots[from..to], metadata)
        })
        .collect()
}

/// Lays out a file: types of large elements first, so that every tensor is aligned to its elements.
fn shard(name: String, slots: &[TensorSlot], metadata: &IndexMap<String, String>) -> Result<Shard> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(slots[at].dtype.bitsize()));
    let mut root = Map::new();
    root.insert("__metadata__".to_owned(), json!(metadata));
    let (mut offsets, mut end) = (vec![0; slots.len()], 0u64);
    for at in order {
        let slot = &slots[at];
        let bytes = slot_bytes(slot)?;
        offsets[at] = end;
        let entry = json!({
            "dtype": slot.dtype.to_string(),
            "shape": slot.shape,
            "data_offsets": [end, end + bytes],
        });
        if root.insert(slot.name.clone(), entry).is_some() {
            return Err(Error::General(format!("{} is there twice", slot.name)));
        }
        end += bytes;
    }
    let mut text = Value::Object(root).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    let start = header.len() as u64;
    offsets.iter_mut().for_each(|offset| *offset += start);
    Ok(Shard { name, bytes: start + end, header, offsets })
}

/// `model.safetensors.index.json`: which file holds which tensor.
pub(super) fn index(slots: &[TensorSlot], shards: &[Shard]) -> Result<String> {
    let mut map = Map::new();
    let mut slots = slots.iter();
    let mut total = 0;
    for shard in shards {
        for slot in slots.by_ref().take(shard.offsets.len()) {
            total += slot_bytes(slot)?;
            map.insert(slot.name.clone(), json!(shard.name));
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    Ok(format!("{index:#}\n"))
}
