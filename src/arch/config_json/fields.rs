//! Typed access to a JSON object, with messages that name file, key and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A whole number, also when it is written as a float.
pub(super) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        ((0.0..9.0e15).contains(&float) && float.fract() == 0.0).then_some(float as u64)
    })
}

/// Typed access to a JSON object with messages that name file, key and value.
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, path: &'a Path) -> Self {
        Self { map, path }
    }

    /// Another object of the same file.
    pub(crate) fn with<'b>(&'b self, map: &'b Map<String, Value>) -> Fields<'b> {
        Fields::new(map, self.path)
    }

    /// The value of a key, null included.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// All keys with their values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The object under a key.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields::new(map, self.path))),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not an object"))),
        }
    }

    pub(crate) fn damaged(&self, message: String) -> Error {
        Error::damaged(self.path, message)
    }

    /// A whole number, if there is one.
    pub(crate) fn optional_integer(&self, key: &str, most: u64) -> Result<Option<usize>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                match whole(value) {
                    Some(number) if number <= most => Ok(Some(number as usize)),
                    _ => Err(self
                        .damaged(format!("`{key}` is {value}, not a whole number up to {most}"))),
                }
            }
        }
    }

    /// A positive whole number, if there is one.
    pub(crate) fn optional_size(&self, key: &str, most: u64) -> Result<Option<usize>> {
        match self.optional_integer(key, most)? {
            Some(0) => Err(self.damaged(format!("`{key}` is 0"))),
            other => Ok(other),
        }
    }

    /// A positive whole number that must be there.
    pub(crate) fn size(&self, key: &str, most: u64) -> Result<usize> {
        self.optional_size(key, most)?.ok_or_else(|| self.damaged(format!("`{key}` is missing")))
    }

    /// A finite number above zero, if there is one.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
                _ => Err(self.damaged(format!("`{key}` is {value}, not a positive number"))),
            },
        }
    }

    /// Whether another object says the same.
    pub(crate) fn same_as(&self, other: &Fields) -> bool {
        self.map == other.map
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not true or false"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.damaged(format!("`{key}` is {other}, not a text"))),
        }
    }
}
