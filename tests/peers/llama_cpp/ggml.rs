//! The one call of ggml's library that encoders are compared with.

#![allow(unsafe_code, reason = "calls into a C library")]
#![allow(clippy::unwrap_used, reason = "where the library is named it has to be usable")]

use std::path::Path;

use libloading::{Library, Symbol};
use llm_quantize::codec::StoredType;

type QuantizeChunk =
    unsafe extern "C" fn(i32, *const f32, *mut u8, i64, i64, i64, *const f32) -> usize;

/// `libggml-base`.
pub(crate) struct Ggml(Library);

impl Ggml {
    /// Opens the library in a folder.
    pub(crate) fn open(folder: &Path) -> Self {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let path = entries
            .filter(|path| path.to_string_lossy().contains("libggml-base."))
            .min()
            .unwrap_or_else(|| panic!("no libggml-base in {}", folder.display()));
        // SAFETY: the library is ggml's and has no initialisers of its own.
        Self(unsafe { Library::new(path) }.unwrap())
    }

    /// Encodes `values`, rows of `cols`, as ggml does.
    pub(crate) fn encode(
        &self,
        dtype: StoredType,
        values: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
        bytes: &mut [u8],
    ) {
        let rows = values.len() / cols;
        assert_eq!(bytes.len(), rows * dtype.row_bytes(cols).unwrap());
        assert!(importance.is_none_or(|importance| importance.len() == cols));
        // SAFETY: the signature is that of ggml.h, and all buffers have the sizes that it asks for.
        let written = unsafe {
            let quantize: Symbol<QuantizeChunk> = self.0.get(b"ggml_quantize_chunk").unwrap();
            quantize(
                dtype.id() as i32,
                values.as_ptr(),
                bytes.as_mut_ptr(),
                0,
                rows as i64,
                cols as i64,
                importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
            )
        };
        assert_eq!(written, bytes.len());
    }
}
