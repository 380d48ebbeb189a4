//! The few calls of llama.cpp's C interface that the comparison needs, through its shared library.
//!
//! Parameter structures are opaque here: the library fills them with its defaults and gets them
//! back unchanged but for a few fields: the sizes at the very front, whose place has not moved in
//! years, and some whose default is checked before they are set. The structures are larger than
//! the library's own; it reads and writes the front part, on the stack or through a pointer,
//! in the calling conventions of 64-bit Linux and macOS machines.

#![allow(unsafe_code, reason = "calls into a C library")]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};

/// A structure of up to 512 bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Opaque([u8; 512]);

impl Opaque {
    fn get(&self, offset: usize) -> i32 {
        i32::from_ne_bytes(self.0[offset..offset + 4].try_into().unwrap())
    }

    fn set(&mut self, offset: usize, value: i32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
}

/// `llama_batch`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Batch {
    n_tokens: i32,
    token: *mut i32,
    embd: *mut f32,
    pos: *mut i32,
    n_seq_id: *mut i32,
    seq_id: *mut *mut i32,
    logits: *mut i8,
}

/// `llama_model_imatrix_data`.
#[repr(C)]
struct Importance {
    name: *const c_char,
    data: *const f32,
    size: usize,
}

/// Where `llama_model_quantize_params` has the pointer to the importance matrix: after four numbers
/// and six flags.
const IMPORTANCE: usize = 24;

/// The library.
pub(crate) struct LlamaCpp {
    llama: Library,
    ggml: Library,
}

/// `LLAMA_FTYPE_ALL_F32`.
pub(crate) const F32: i32 = 0;
/// `LLAMA_FTYPE_MOSTLY_F16`.
pub(crate) const F16: i32 = 1;

/// How llama.cpp computes attention.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attention {
    /// As it does by default: flash attention over a cache of halves.
    Default,
    /// In f32 throughout.
    Exact,
}

/// Where `llama_context_params` has its fields, and their defaults as a check of that: flash
/// attention (automatic) and the types of keys and values (f16).
const FLASH_ATTENTION: (usize, i32) = (52, -1);
const CACHE_TYPES: [(usize, i32); 2] = [(104, 1), (108, 1)];

impl LlamaCpp {
    /// Opens `libllama` in `folder`, with the backends beside it.
    pub(crate) fn open(folder: &Path) -> Self {
        let find = |stem: &str| -> PathBuf {
            let entries = std::fs::read_dir(folder).unwrap();
            let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
            names.sort();
            let matches = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.strip_prefix(stem).is_some_and(|rest| {
                    rest.starts_with('.') && (rest.contains(".so") || rest.contains(".dylib"))
                })
            };
            names
                .into_iter()
                .find(matches)
                .unwrap_or_else(|| panic!("no {stem} in {}", folder.display()))
        };
        let path = CString::new(folder.as_os_str().as_bytes()).unwrap();
        // SAFETY: the libraries are those of llama.cpp; the signatures are those of its headers.
        unsafe {
            let ggml = Library::new(find("libggml")).unwrap();
            let llama = Library::new(find("libllama")).unwrap();
            let library = Self { llama, ggml };
            let silent: unsafe extern "C" fn(i32, *const c_char, *mut c_void) = quiet;
            let log_set: Symbol<
                unsafe extern "C" fn(
                    unsafe extern "C" fn(i32, *const c_char, *mut c_void),
                    *mut c_void,
                ),
            > = library.llama.get(b"llama_log_set").unwrap();
            log_set(silent, std::ptr::null_mut());
            let load_all: Symbol<unsafe extern "C" fn(*const c_char)> =
                library.ggml.get(b"ggml_backend_load_all_from_path").unwrap();
            load_all(path.as_ptr());
            let init: Symbol<unsafe extern "C" fn()> =
                library.llama.get(b"llama_backend_init").unwrap();
            init();
            library
        }
    }

    fn defaults(&self, name: &[u8]) -> Opaque {
        // SAFETY: the function returns a structure smaller than `Opaque` through a pointer to it.
        unsafe {
            let get: Symbol<unsafe extern "C" fn() -> Opaque> = self.llama.get(name).unwrap();
            get()
        }
    }

    /// Writes the model `from` to `to` with all matrices as `file_type`.
    pub(crate) fn write(&self, from: &Path, to: &Path, file_type: i32) {
        assert!(self.quantize(from, to, file_type, &[]), "llama_model_quantize failed");
    }

    /// Quantizes the model `from` to `to`: the level of `file_type`, with the importance of columns
    /// by tensor name if there is any. `false` if the library refuses.
    pub(crate) fn quantize(
        &self,
        from: &Path,
        to: &Path,
        file_type: i32,
        importance: &[(String, Vec<f32>)],
    ) -> bool {
        let mut parameters = self.defaults(b"llama_model_quantize_default_params");
        parameters.set(4, file_type);
        parameters.0[16] = 1; // allow_requantize
        let names: Vec<CString> =
            importance.iter().map(|(name, _)| CString::new(name.as_str()).unwrap()).collect();
        let mut entries: Vec<Importance> = names
            .iter()
            .zip(importance)
            .map(|(name, (_, values))| Importance {
                name: name.as_ptr(),
                data: values.as_ptr(),
                size: values.len(),
            })
            .collect();
        entries.push(Importance { name: std::ptr::null(), data: std::ptr::null(), size: 0 });
        if !importance.is_empty() {
            assert_eq!(parameters.0[IMPORTANCE..IMPORTANCE + 8], [0; 8], "another structure");
            parameters.0[IMPORTANCE..IMPORTANCE + 8]
                .copy_from_slice(&(entries.as_ptr() as usize).to_ne_bytes());
        }
        let (from, to) = (c_path(from), c_path(to));
        // SAFETY: both paths end in zero, the parameters are the library's own, and the list of
        // importances ends in an entry without a name and outlives the call.
        let status = unsafe {
            let quantize: Symbol<
                unsafe extern "C" fn(*const c_char, *const c_char, *const Opaque) -> u32,
            > = self.llama.get(b"llama_model_quantize").unwrap();
            quantize(from.as_ptr(), to.as_ptr(), &raw const parameters)
        };
        status == 0
    }

    /// Whether the library can load a model, and the token ids of texts by its tokenizer, special
    /// tokens around them as the file says.
    pub(crate) fn token_ids(&self, model: &Path, texts: &[&str]) -> Option<Vec<Vec<u32>>> {
        let path = c_path(model);
        // SAFETY: the signatures are those of llama.h; the buffer has room for as many tokens as it
        // says, and a text is passed with its length.
        unsafe {
            let llama = &self.llama;
            let load: Symbol<unsafe extern "C" fn(*const c_char, Opaque) -> *mut c_void> =
                llama.get(b"llama_model_load_from_file").unwrap();
            let model = load(path.as_ptr(), self.defaults(b"llama_model_default_params"));
            if model.is_null() {
                return None;
            }
            let get_vocab: Symbol<unsafe extern "C" fn(*const c_void) -> *const c_void> =
                llama.get(b"llama_model_get_vocab").unwrap();
            let tokenize: Symbol<
                unsafe extern "C" fn(
                    *const c_void,
                    *const c_char,
                    i32,
                    *mut i32,
                    i32,
                    bool,
                    bool,
                ) -> i32,
            > = llama.get(b"llama_tokenize").unwrap();
            let vocab = get_vocab(model);
            let ids = texts
                .iter()
                .map(|text| {
                    let mut buffer = vec![0i32; text.len() + 8];
                    let count = tokenize(
                        vocab,
                        text.as_ptr().cast(),
                        i32::try_from(text.len()).unwrap(),
                        buffer.as_mut_ptr(),
                        i32::try_from(buffer.len()).unwrap(),
                        true,
                        true,
                    );
                    buffer.truncate(usize::try_from(count).unwrap());
                    buffer.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
                })
                .collect();
            let free: Symbol<unsafe extern "C" fn(*mut c_void)> =
                llama.get(b"llama_model_free").unwrap();
            free(model);
            Some(ids)
        }
    }

    /// Logits of every token, `[tokens][vocab]`.
    pub(crate) fn logits(
        &self,
        model: &Path,
        tokens: &[u32],
        vocab: usize,
        attention: Attention,
    ) -> Vec<Vec<f32>> {
        let path = c_path(model);
        let count = i32::try_from(tokens.len()).unwrap();
        let mut parameters = self.defaults(b"llama_context_default_params");
        for offset in [0, 4, 8] {
            parameters.set(offset, count.max(512)); // n_ctx, n_batch, n_ubatch
        }
        if attention == Attention::Exact {
            for (offset, default) in CACHE_TYPES.into_iter().chain([FLASH_ATTENTION]) {
                assert_eq!(parameters.get(offset), default, "this llama.cpp has another layout");
                parameters.set(offset, 0); // f32; off
            }
        }
        // SAFETY: the signatures are those of llama.h; the batch has room for `count` tokens, and
        // the library returns `count` rows of logits because every token asks for them.
        unsafe {
            let llama = &self.llama;
            let load: Symbol<unsafe extern "C" fn(*const c_char, Opaque) -> *mut c_void> =
                llama.get(b"llama_model_load_from_file").unwrap();
            let model = load(path.as_ptr(), self.defaults(b"llama_model_default_params"));
            assert!(!model.is_null(), "llama.cpp cannot load {path:?}");
            let init: Symbol<unsafe extern "C" fn(*mut c_void, Opaque) -> *mut c_void> =
                llama.get(b"llama_init_from_model").unwrap();
            let context = init(model, parameters);
            assert!(!context.is_null(), "llama.cpp cannot make a context");
            // One thread: its workers spin, which is slow where other tests run.
            let threads: Symbol<unsafe extern "C" fn(*mut c_void, i32, i32)> =
                llama.get(b"llama_set_n_threads").unwrap();
            threads(context, 1, 1);
            let batch_init: Symbol<unsafe extern "C" fn(i32, i32, i32) -> Batch> =
                llama.get(b"llama_batch_init").unwrap();
            let mut batch = batch_init(count, 0, 1);
            for (i, token) in tokens.iter().enumerate() {
                *batch.token.add(i) = i32::try_from(*token).unwrap();
                *batch.pos.add(i) = i32::try_from(i).unwrap();
                *batch.n_seq_id.add(i) = 1;
                **batch.seq_id.add(i) = 0;
                *batch.logits.add(i) = 1;
            }
            batch.n_tokens = count;
            let decode: Symbol<unsafe extern "C" fn(*mut c_void, Batch) -> i32> =
                llama.get(b"llama_decode").unwrap();
            assert_eq!(decode(context, batch), 0, "llama_decode failed");
            let get: Symbol<unsafe extern "C" fn(*mut c_void) -> *const f32> =
                llama.get(b"llama_get_logits").unwrap();
            let all = std::slice::from_raw_parts(get(context), tokens.len() * vocab);
            let rows = all.chunks_exact(vocab).map(<[f32]>::to_vec).collect();
            let free: Symbol<unsafe extern "C" fn(*mut c_void)> = llama.get(b"llama_free").unwrap();
            free(context);
            let free: Symbol<unsafe extern "C" fn(*mut c_void)> =
                llama.get(b"llama_model_free").unwrap();
            free(model);
            rows
        }
    }
}

/// Sums over tokens of the squares of a matrix's input columns, and the number of tokens.
pub(crate) type Squares = HashMap<String, (Vec<f64>, u64)>;

/// Where `llama_context_params` has the callback for computed tensors and its argument.
const CALLBACK: usize = 88;
/// `ggml_tensor`, up to its name.
#[repr(C)]
struct Tensor {
    kind: i32,
    buffer: *const c_void,
    sizes: [i64; 4],
    strides: [usize; 4],
    operation: i32,
    parameters: [i32; 16],
    flags: i32,
    sources: [*const Tensor; 10],
    viewed: *const Tensor,
    view_offset: usize,
    data: *const f32,
    name: [c_char; 64],
}

impl Tensor {
    fn count(&self) -> usize {
        usize::try_from(self.sizes.iter().product::<i64>()).unwrap()
    }
}

impl LlamaCpp {
    /// What `llama-imatrix` sums: for every matrix of the blocks the squares of its input columns,
    /// over chunks of `length` tokens, four of them at a time. With the seconds that the library
    /// needs to compute `chunks` on `threads` threads, its logits included as `llama-imatrix` has
    /// them unless told otherwise.
    pub(crate) fn squares(
        &self,
        model: &Path,
        chunks: &[u32],
        length: usize,
        threads: i32,
    ) -> (Squares, f64) {
        let mut squares = Squares::new();
        let mut parameters = self.defaults(b"llama_context_default_params");
        let tokens = i32::try_from(4 * length).unwrap();
        parameters.set(0, tokens); // n_ctx
        parameters.set(4, tokens); // n_batch
        parameters.set(12, 4); // n_seq_max
        for (offset, default) in CACHE_TYPES.into_iter().chain([FLASH_ATTENTION]) {
            assert_eq!(parameters.get(offset), default, "this llama.cpp has another layout");
        }
        assert_eq!(parameters.0[CALLBACK..CALLBACK + 16], [0; 16], "another structure");
        let mut collector = Collector { squares: &mut squares, describe: None };
        let path = c_path(model);
        // SAFETY: the signatures are those of llama.h and ggml.h; the batch has room for the tokens
        // of four chunks; the callback gets the collector, which outlives the context.
        unsafe {
            let describe: Symbol<unsafe extern "C" fn(*const Tensor) -> *const c_char> =
                self.ggml.get(b"ggml_op_desc").unwrap();
            collector.describe = Some(*describe);
            let callback: unsafe extern "C" fn(*const Tensor, bool, *mut c_void) -> bool = collect;
            let pointers = [callback as usize, (&raw mut collector) as usize];
            for (index, pointer) in pointers.into_iter().enumerate() {
                let at = CALLBACK + 8 * index;
                parameters.0[at..at + 8].copy_from_slice(&pointer.to_ne_bytes());
            }
            let llama = &self.llama;
            let load: Symbol<unsafe extern "C" fn(*const c_char, Opaque) -> *mut c_void> =
                llama.get(b"llama_model_load_from_file").unwrap();
            let model = load(path.as_ptr(), self.defaults(b"llama_model_default_params"));
            assert!(!model.is_null(), "llama.cpp cannot load {path:?}");
            let init: Symbol<unsafe extern "C" fn(*mut c_void, Opaque) -> *mut c_void> =
                llama.get(b"llama_init_from_model").unwrap();
            let context = init(model, parameters);
            assert!(!context.is_null(), "llama.cpp cannot make a context");
            let set: Symbol<unsafe extern "C" fn(*mut c_void, i32, i32)> =
                llama.get(b"llama_set_n_threads").unwrap();
            set(context, threads, threads);
            let batch_init: Symbol<unsafe extern "C" fn(i32, i32, i32) -> Batch> =
                llama.get(b"llama_batch_init").unwrap();
            let decode: Symbol<unsafe extern "C" fn(*mut c_void, Batch) -> i32> =
                llama.get(b"llama_decode").unwrap();
            let memory: Symbol<unsafe extern "C" fn(*mut c_void) -> *mut c_void> =
                llama.get(b"llama_get_memory").unwrap();
            let clear: Symbol<unsafe extern "C" fn(*mut c_void, bool)> =
                llama.get(b"llama_memory_clear").unwrap();
            let began = std::time::Instant::now();
            for part in chunks.chunks(4 * length) {
                let mut batch = batch_init(tokens, 0, 1);
                for (i, token) in part.iter().enumerate() {
                    *batch.token.add(i) = i32::try_from(*token).unwrap();
                    *batch.pos.add(i) = i32::try_from(i % length).unwrap();
                    *batch.n_seq_id.add(i) = 1;
                    **batch.seq_id.add(i) = i32::try_from(i / length).unwrap();
                    *batch.logits.add(i) = 1;
                }
                batch.n_tokens = i32::try_from(part.len()).unwrap();
                clear(memory(context), true);
                assert_eq!(decode(context, batch), 0, "llama_decode failed");
            }
            let seconds = began.elapsed().as_secs_f64();
            let free: Symbol<unsafe extern "C" fn(*mut c_void)> = llama.get(b"llama_free").unwrap();
            free(context);
            let free: Symbol<unsafe extern "C" fn(*mut c_void)> =
                llama.get(b"llama_model_free").unwrap();
            free(model);
            (squares, seconds)
        }
    }

    /// The means in a GGUF importance matrix, read with ggml's own reader as llama.cpp does it: sums
    /// over counts; and its keys `imatrix.chunk_count` and `imatrix.chunk_size`.
    pub(crate) fn read_importance(&self, path: &Path) -> (Vec<(String, Vec<f32>)>, u32, u32) {
        #[repr(C)]
        struct Parameters {
            no_alloc: bool,
            context: *mut *mut c_void,
        }
        let path = c_path(path);
        let mut tensors: *mut c_void = std::ptr::null_mut();
        // SAFETY: the signatures are those of gguf.h and ggml.h; tensors lie in the context, which
        // lives until the end of the process.
        unsafe {
            let ggml = &self.ggml;
            let open: Symbol<unsafe extern "C" fn(*const c_char, Parameters) -> *mut c_void> =
                ggml.get(b"gguf_init_from_file").unwrap();
            let parameters = Parameters { no_alloc: false, context: &raw mut tensors };
            let file = open(path.as_ptr(), parameters);
            assert!(!file.is_null(), "ggml cannot read {path:?}");
            let find: Symbol<unsafe extern "C" fn(*const c_void, *const c_char) -> i64> =
                ggml.get(b"gguf_find_key").unwrap();
            let number: Symbol<unsafe extern "C" fn(*const c_void, i64) -> u32> =
                ggml.get(b"gguf_get_val_u32").unwrap();
            let count: Symbol<unsafe extern "C" fn(*const c_void) -> i64> =
                ggml.get(b"gguf_get_n_tensors").unwrap();
            let name_of: Symbol<unsafe extern "C" fn(*const c_void, i64) -> *const c_char> =
                ggml.get(b"gguf_get_tensor_name").unwrap();
            let get: Symbol<unsafe extern "C" fn(*const c_void, *const c_char) -> *const Tensor> =
                ggml.get(b"ggml_get_tensor").unwrap();
            let key = |name: &std::ffi::CStr| {
                let at = find(file, name.as_ptr());
                assert!(at >= 0, "{name:?} is missing");
                at
            };
            key(c"imatrix.datasets");
            let chunks = number(file, key(c"imatrix.chunk_count"));
            let chunk_size = number(file, key(c"imatrix.chunk_size"));
            let values = |name: &str| -> Vec<f32> {
                let name = CString::new(name).unwrap();
                let tensor = get(tensors, name.as_ptr());
                assert!(!tensor.is_null(), "{name:?} is missing");
                std::slice::from_raw_parts((*tensor).data, (*tensor).count()).to_vec()
            };
            let mut all = Vec::new();
            for index in 0..count(file) {
                let name = std::ffi::CStr::from_ptr(name_of(file, index)).to_str().unwrap();
                let Some(tensor) = name.strip_suffix(".in_sum2") else { continue };
                let counts = values(&format!("{tensor}.counts"));
                let sums = values(name);
                let columns = sums.len() / counts.len();
                let means = sums.iter().enumerate().map(|(i, sum)| sum / counts[i / columns]);
                all.push((tensor.to_owned(), means.collect()));
            }
            (all, chunks, chunk_size)
        }
    }
}

struct Collector<'a> {
    squares: &'a mut Squares,
    describe: Option<unsafe extern "C" fn(*const Tensor) -> *const c_char>,
}

/// Called before (`ask`) and after a tensor is computed.
unsafe extern "C" fn collect(tensor: *const Tensor, ask: bool, data: *mut c_void) -> bool {
    // SAFETY: the fields lie where ggml.h has them; the tensors of this context are in the host's
    // memory; the argument is the collector.
    unsafe {
        let collector = &mut *data.cast::<Collector>();
        let text = |at: *const c_char| std::ffi::CStr::from_ptr(at).to_string_lossy().into_owned();
        let Some(describe) = collector.describe else { return false };
        if text(describe(tensor)) != "MUL_MAT" {
            return false;
        }
        let [weight, input, ..] = (*tensor).sources;
        let name = text((*weight).name.as_ptr());
        if !name.starts_with("blk.") {
            return false;
        }
        if ask {
            return true;
        }
        let input = &*input;
        let columns = usize::try_from(input.sizes[0]).unwrap();
        let rows = input.count() / columns;
        assert!(input.strides[0] == 4 && input.sizes[2] * input.sizes[3] == 1, "another input");
        let entry = collector.squares.entry(name).or_insert_with(|| (vec![0.0; columns], 0));
        for row in 0..rows {
            let row = input.data.add(row * input.strides[1] / 4);
            let row = std::slice::from_raw_parts(row, columns);
            for (sum, x) in entry.0.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        entry.1 += rows as u64;
        true
    }
}

extern "C" fn quiet(_: i32, _: *const c_char, _: *mut c_void) {}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}
