//! Writes GGUF files for tests, well formed or not.

/// A file in the making. Fields are public so that tests can break them.
pub(crate) struct GgufBytes {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) values: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
}

/// A tensor: dimensions innermost first, as in the file.
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dimensions: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
    /// Instead of the right one.
    pub(crate) offset: Option<u64>,
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl GgufBytes {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, values: Vec::new(), tensors: Vec::new() }
    }

    pub(crate) fn raw(&mut self, key: &str, kind: u32, bytes: Vec<u8>) {
        self.values.push((key.to_owned(), kind, bytes));
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.raw(key, 4, value.to_le_bytes().to_vec());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.raw(key, 6, value.to_le_bytes().to_vec());
    }

    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.raw(key, 7, vec![u8::from(value)]);
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.raw(key, 8, string(value));
    }

    fn array(&mut self, key: &str, kind: u32, length: usize, items: impl Iterator<Item = u8>) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((length as u64).to_le_bytes());
        bytes.extend(items);
        self.raw(key, 9, bytes);
    }

    pub(crate) fn texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) {
        self.array(key, 8, values.len(), values.iter().flat_map(|v| string(v.as_ref())));
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len(), values.iter().flat_map(|v| v.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len(), values.iter().flat_map(|v| v.to_le_bytes()));
    }

    pub(crate) fn tensor(&mut self, name: &str, dimensions: &[u64], kind: u32, data: Vec<u8>) {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            kind,
            data,
            offset: None,
        });
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.values {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut next = 0u64;
        for tensor in &self.tensors {
            out.extend(string(&tensor.name));
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            out.extend(tensor.dimensions.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += (tensor.data.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }
}
