//! Reads little-endian values from bytes, never beyond their end.

use std::path::Path;

use super::value::{Array, Value, ValueType};
use crate::base::SharedBytes;
use crate::{Error, Result};

pub(super) struct Cursor<'a> {
    bytes: &'a SharedBytes,
    path: &'a Path,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a SharedBytes, path: &'a Path) -> Self {
        Self { bytes, path, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn damaged(&self, message: impl std::fmt::Display) -> Error {
        Error::damaged(self.path, format!("{message} (at byte {})", self.at))
    }

    /// The next `length` bytes; `what` is for the message when there are fewer.
    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.damaged(format!("the file ends inside {what}; truncated?")));
        };
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| self.damaged(what))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn length(&mut self, what: &str) -> Result<usize> {
        let length = self.u64(what)?;
        usize::try_from(length)
            .map_err(|_| self.damaged(format!("{what} claims a length of {length}")))
    }

    /// A length and that many bytes.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let length = self.length(what)?;
        self.take(length, what)
    }

    /// A string of at most `most` bytes that must be UTF-8.
    pub(super) fn name(&mut self, most: usize, what: &str) -> Result<String> {
        let bytes = self.string(what)?;
        if bytes.len() > most {
            return Err(self.damaged(format!("{what} of {} bytes", bytes.len())));
        }
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.damaged(format!("{what} is not UTF-8"))),
        }
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let id = self.u32(key)?;
        ValueType::from_id(id).ok_or_else(|| self.damaged(format!("{key} has value type {id}")))
    }

    /// The type and the value of `key`.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        Ok(match self.value_type(key)? {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array(key)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            ValueType::Bool => Value::Bool(self.array::<1>(key)? != [0]),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array(key)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            ValueType::String => {
                Value::String(String::from_utf8_lossy(self.string(key)?).into_owned())
            }
            ValueType::Array => Value::Array(self.array_value(key)?),
        })
    }

    fn array_value(&mut self, key: &str) -> Result<Array> {
        let element = self.value_type(key)?;
        let length = self.length(key)?;
        let start = self.at;
        let mut strings = Vec::new();
        match element.size() {
            Some(size) => {
                let total = length
                    .checked_mul(size)
                    .ok_or_else(|| self.damaged(format!("{key} claims {length} values")))?;
                self.take(total, key)?;
            }
            None if element == ValueType::String => {
                // Each string takes at least its length field, so the list cannot outgrow the file.
                for _ in 0..length {
                    let bytes = self.string(key)?;
                    strings.push((self.at - start - bytes.len(), bytes.len()));
                }
            }
            None => return Err(self.damaged(format!("{key} is an array of arrays"))),
        }
        let bytes = self.bytes.slice(start..self.at).ok_or_else(|| self.damaged(key))?;
        Ok(Array { element, length, bytes, strings })
    }
}
