//! The tokenizer of llama.cpp, through its shared library.

#![allow(unsafe_code, reason = "calls a C library")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

/// `struct llama_model_params`, passed by value in memory: larger than any version of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct ModelParams {
    words: [u64; 32],
}

/// The library, with its backends loaded.
pub(crate) struct Llama {
    llama: Library,
    _ggml: Library,
}

/// The file of `folder` whose name begins with `stem` (versions follow).
fn find(folder: &Path, stem: &str) -> PathBuf {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.strip_prefix(stem)
                .is_some_and(|rest| rest.starts_with('.') && rest.contains(".so"))
                || name == format!("{stem}.so")
        })
        .collect();
    files.sort();
    files.into_iter().next().unwrap_or_else(|| panic!("no {stem} in {}", folder.display()))
}

extern "C" fn silent(_level: c_int, _text: *const c_char, _data: *mut c_void) {}

impl Llama {
    pub(crate) fn load(folder: &Path) -> Self {
        // SAFETY: the signatures are those of llama.h and ggml-backend.h; the libraries stay loaded
        // as long as `self`.
        unsafe {
            let ggml = Library::new(find(folder, "libggml")).unwrap();
            let llama = Library::new(find(folder, "libllama")).unwrap();
            let log: libloading::Symbol<
                extern "C" fn(extern "C" fn(c_int, *const c_char, *mut c_void), *mut c_void),
            > = llama.get(b"llama_log_set").unwrap();
            log(silent, std::ptr::null_mut());
            let load: libloading::Symbol<extern "C" fn(*const c_char)> =
                ggml.get(b"ggml_backend_load_all_from_path").unwrap();
            let folder = CString::new(folder.to_str().unwrap()).unwrap();
            load(folder.as_ptr());
            let init: libloading::Symbol<extern "C" fn()> =
                llama.get(b"llama_backend_init").unwrap();
            init();
            Self { llama, _ggml: ggml }
        }
    }

    /// Opens a GGUF file with its weights.
    pub(crate) fn vocabulary(&self, path: &Path) -> Vocabulary<'_> {
        // SAFETY: as above; the model is not freed before the process ends.
        unsafe {
            let defaults: libloading::Symbol<extern "C" fn() -> ModelParams> =
                self.llama.get(b"llama_model_default_params").unwrap();
            let open: libloading::Symbol<extern "C" fn(*const c_char, ModelParams) -> *mut c_void> =
                self.llama.get(b"llama_model_load_from_file").unwrap();
            let get: libloading::Symbol<extern "C" fn(*const c_void) -> *const c_void> =
                self.llama.get(b"llama_model_get_vocab").unwrap();
            let path = CString::new(path.to_str().unwrap()).unwrap();
            let model = open(path.as_ptr(), defaults());
            assert!(!model.is_null(), "llama.cpp does not open {path:?}");
            Vocabulary { llama: self, vocab: get(model) }
        }
    }
}

/// The vocabulary of an opened file.
pub(crate) struct Vocabulary<'a> {
    llama: &'a Llama,
    vocab: *const c_void,
}

impl Vocabulary<'_> {
    /// Token ids; special tokens in the text count as such.
    pub(crate) fn tokenize(&self, text: &str, add_special: bool) -> Vec<u32> {
        type Tokenize =
            extern "C" fn(*const c_void, *const c_char, i32, *mut i32, i32, bool, bool) -> i32;
        let mut ids = vec![0i32; text.len() + 16];
        // SAFETY: the buffer has the length that is passed; the text need not end with a zero.
        let count = unsafe {
            let tokenize: libloading::Symbol<Tokenize> =
                self.llama.llama.get(b"llama_tokenize").unwrap();
            tokenize(
                self.vocab,
                text.as_ptr().cast(),
                text.len() as i32,
                ids.as_mut_ptr(),
                ids.len() as i32,
                add_special,
                true,
            )
        };
        ids.truncate(usize::try_from(count).unwrap());
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }
}
