//! Metadata values, read and made. Arrays keep their bytes as the file has them, mapped if they were
//! read: a vocabulary is not copied.

use crate::base::SharedBytes;

/// Types of metadata values, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with that number.
    #[must_use]
    pub const fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The name in the format's documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a value, for types of fixed size.
    #[must_use]
    pub const fn size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

/// A metadata value. Strings that are not UTF-8 have replacement characters in place of what is
/// not; the strings of arrays keep their bytes.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Appends type and value as a file holds them after the key.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.kind() as u32).to_le_bytes());
        match self {
            Self::U8(value) => out.push(*value),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::String(value) => encode_string(value.as_bytes(), out),
            Self::Array(list) => {
                out.extend((list.element as u32).to_le_bytes());
                out.extend((list.length as u64).to_le_bytes());
                out.extend_from_slice(&list.bytes);
            }
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
        }
    }

    /// The number, if this is an integer of any type that fits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U8(value) => Some(u64::from(*value)),
            Self::U16(value) => Some(u64::from(*value)),
            Self::U32(value) => Some(u64::from(*value)),
            Self::U64(value) => Some(*value),
            Self::I8(value) => u64::try_from(*value).ok(),
            Self::I16(value) => u64::try_from(*value).ok(),
            Self::I32(value) => u64::try_from(*value).ok(),
            Self::I64(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The text, if this is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// Two values are the same if a file would hold the same bytes for them: a NaN equals itself.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        self.encode(&mut ours);
        other.encode(&mut theirs);
        ours == theirs
    }
}

/// Appends a length and that many bytes.
pub(super) fn encode_string(text: &[u8], out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text);
}

macro_rules! value_from {
    ($($source:ty => $variant:ident),* $(,)?) => {$(
        impl From<$source> for Value {
            fn from(value: $source) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}

value_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    u64 => U64, i64 => I64, f64 => F64, String => String, &str => String, Array => Array,
}

/// A list of values of one type.
#[derive(Debug, Clone)]
pub struct Array {
    pub(super) element: ValueType,
    pub(super) length: usize,
    /// The values; for strings, their bytes and the lengths between them.
    pub(super) bytes: SharedBytes,
    /// For strings: where each one lies in `bytes`.
    pub(super) strings: Vec<(usize, usize)>,
}

impl Array {
    /// A list of strings, which need not be UTF-8.
    pub fn of_strings<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Self {
        let (mut bytes, mut strings) = (Vec::new(), Vec::new());
        for text in texts {
            let text = text.as_ref();
            encode_string(text, &mut bytes);
            strings.push((bytes.len() - text.len(), text.len()));
        }
        Self {
            element: ValueType::String,
            length: strings.len(),
            bytes: SharedBytes::from_vec(bytes),
            strings,
        }
    }

    fn of_numbers<const N: usize>(
        element: ValueType,
        numbers: impl Iterator<Item = [u8; N]>,
    ) -> Self {
        let bytes: Vec<u8> = numbers.flatten().collect();
        Self {
            element,
            length: bytes.len() / N,
            bytes: SharedBytes::from_vec(bytes),
            strings: Vec::new(),
        }
    }

    /// A list of f32.
    #[must_use]
    pub fn of_f32(numbers: &[f32]) -> Self {
        Self::of_numbers(ValueType::F32, numbers.iter().map(|n| n.to_le_bytes()))
    }

    /// A list of i32.
    #[must_use]
    pub fn of_i32(numbers: &[i32]) -> Self {
        Self::of_numbers(ValueType::I32, numbers.iter().map(|n| n.to_le_bytes()))
    }

    /// A list of u32.
    #[must_use]
    pub fn of_u32(numbers: &[u32]) -> Self {
        Self::of_numbers(ValueType::U32, numbers.iter().map(|n| n.to_le_bytes()))
    }

    /// A list of truth values.
    #[must_use]
    pub fn of_bool(flags: &[bool]) -> Self {
        Self::of_numbers(ValueType::Bool, flags.iter().map(|flag| [u8::from(*flag)]))
    }

    /// Type of the elements; never an array.
    #[must_use]
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The bytes of each string, if this is an array of strings.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = &[u8]>> {
        (self.element == ValueType::String)
            .then(|| self.strings.iter().map(|&(at, length)| &self.bytes[at..at + length]))
    }

    /// The numbers as i64, if this is an array of integers that fit.
    #[must_use]
    pub fn integers(&self) -> Option<Vec<i64>> {
        let bytes: &[u8] = &self.bytes;
        Some(match self.element {
            ValueType::U8 => bytes.iter().map(|&v| i64::from(v)).collect(),
            ValueType::I8 => bytes.iter().map(|&v| i64::from(v as i8)).collect(),
            ValueType::U16 => {
                bytes.as_chunks().0.iter().map(|&v| i64::from(u16::from_le_bytes(v))).collect()
            }
            ValueType::I16 => {
                bytes.as_chunks().0.iter().map(|&v| i64::from(i16::from_le_bytes(v))).collect()
            }
            ValueType::U32 => {
                bytes.as_chunks().0.iter().map(|&v| i64::from(u32::from_le_bytes(v))).collect()
            }
            ValueType::I32 => {
                bytes.as_chunks().0.iter().map(|&v| i64::from(i32::from_le_bytes(v))).collect()
            }
            ValueType::I64 => bytes.as_chunks().0.iter().map(|&v| i64::from_le_bytes(v)).collect(),
            ValueType::U64 => {
                let numbers = bytes.as_chunks().0.iter();
                return numbers.map(|&v| i64::try_from(u64::from_le_bytes(v)).ok()).collect();
            }
            _ => return None,
        })
    }

    /// The numbers, if this is an array of f32.
    #[must_use]
    pub fn floats(&self) -> Option<Vec<f32>> {
        (self.element == ValueType::F32)
            .then(|| self.bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect())
    }
}
