//! Every environment variable the tool knows, in one place: its name, its meaning, its default and
//! how it is read.
//!
//! The library never looks at the environment. The command line builds one [`Settings`] with
//! [`Settings::from_vars`] and passes it (or parts of it) down; tests pass a closure over a map.
//! A value that cannot be understood is an error that names the variable: a typo in
//! `HF_HUB_OFFLINE` must not mean "online".
//!
//! Two groups of variables are left to the libraries that own them: `RAYON_NUM_THREADS` (rayon) and
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` (the HTTP client).

use std::fmt;
use std::path::{Path, PathBuf};

use crate::base::input;
use crate::base::redact;
use crate::linalg::Precision;
use crate::{Error, Result};

/// Names of the environment variables.
#[expect(missing_docs, reason = "Settings::TABLE says what each one means")]
pub mod names {
    pub const HF_TOKEN: &str = "HF_TOKEN";
    pub const HUGGING_FACE_HUB_TOKEN: &str = "HUGGING_FACE_HUB_TOKEN";
    pub const HF_TOKEN_PATH: &str = "HF_TOKEN_PATH";
    pub const HF_HUB_DISABLE_IMPLICIT_TOKEN: &str = "HF_HUB_DISABLE_IMPLICIT_TOKEN";
    pub const LLM_QUANTIZE_CACHE: &str = "LLM_QUANTIZE_CACHE";
    pub const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
    pub const HUGGINGFACE_HUB_CACHE: &str = "HUGGINGFACE_HUB_CACHE";
    pub const HF_HOME: &str = "HF_HOME";
    pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
    pub const HOME: &str = "HOME";
    pub const HF_ENDPOINT: &str = "HF_ENDPOINT";
    pub const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
    pub const HF_HUB_DISABLE_PROGRESS_BARS: &str = "HF_HUB_DISABLE_PROGRESS_BARS";
    pub const LLM_QUANTIZE_CHECKPOINT_DIR: &str = "LLM_QUANTIZE_CHECKPOINT_DIR";
    pub const LLM_QUANTIZE_PROFILE_DIR: &str = "LLM_QUANTIZE_PROFILE_DIR";
    pub const LLM_QUANTIZE_IMATRIX_CACHE: &str = "LLM_QUANTIZE_IMATRIX_CACHE";
    pub const LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH: &str = "LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH";
    pub const LLM_QUANTIZE_LITTLEBIT_MIN_BPW: &str = "LLM_QUANTIZE_LITTLEBIT_MIN_BPW";
    pub const LLM_QUANTIZE_LITTLEBIT_MAX_BPW: &str = "LLM_QUANTIZE_LITTLEBIT_MAX_BPW";
    pub const LLM_QUANTIZE_SVD_PRECISION: &str = "LLM_QUANTIZE_SVD_PRECISION";
    pub const LLM_QUANTIZE_QUALITY_THRESHOLD: &str = "LLM_QUANTIZE_QUALITY_THRESHOLD";
    pub const LLM_QUANTIZE_COHERENCE_THRESHOLD: &str = "LLM_QUANTIZE_COHERENCE_THRESHOLD";
    pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
    pub const NO_COLOR: &str = "NO_COLOR";
    pub const RAYON_NUM_THREADS: &str = "RAYON_NUM_THREADS";
    pub const HTTPS_PROXY: &str = "HTTPS_PROXY";
}

/// One row of the reference table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// The name in the environment.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    /// What holds when it is unset, as shown to people.
    pub default: &'static str,
}

const fn variable(name: &'static str, meaning: &'static str, default: &'static str) -> Variable {
    Variable { name, meaning, default }
}

/// A hub access token. Shown as `hf_…` wherever it is printed, so that it cannot reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as a person would paste it: surrounding white space is dropped. Nothing but
    /// white space is no token. Fails when it holds bytes that an HTTP header cannot carry;
    /// `origin` (a variable or a file) is named in the message, the token never is.
    pub fn parse(text: &str, origin: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::InvalidArgument(format!(
                "{origin}: the token holds a space or a character outside ASCII"
            )));
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The secret itself, for the request header.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hf_…)")
    }
}

/// Where checkpoints are kept unless somebody says otherwise.
pub const CHECKPOINT_DIR: &str = "./.checkpoint";

/// What the environment asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Token given in a variable. [`Settings::hub_token`] also looks into the token file.
    pub token: Option<Token>,
    /// Where `hf auth login` keeps its token; read only when the hub is used.
    pub token_file: Option<PathBuf>,
    /// Never send a token that was not given on the command line.
    pub implicit_token_disabled: bool,
    /// Cache of hub downloads in the layout of `huggingface_hub`. `None` when no variable names
    /// one and there is no home directory to put it into.
    pub hub_cache: Option<PathBuf>,
    /// Base address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Never touch the network.
    pub offline: bool,
    /// No progress bars.
    pub progress_bars_disabled: bool,
    /// Parent folder of checkpoints.
    pub checkpoint_dir: PathBuf,
    /// The user's folder of profiles. `None` when no variable names one and there is no home.
    pub profile_dir: Option<PathBuf>,
    /// Where finished importance matrices are kept. `None` when no variable names a folder and there
    /// is no home directory to put it into.
    pub imatrix_cache: Option<PathBuf>,
    /// Most iterations of a search for a rank or a bits-per-weight that meets a quality target.
    pub rank_search: u32,
    /// Smallest accepted target, in bits per weight.
    pub min_bpw: f64,
    /// Largest accepted target, in bits per weight.
    pub max_bpw: f64,
    /// Number type of the decompositions.
    pub svd_precision: Precision,
    /// Perplexity increase that is worth a warning, in percent.
    pub quality_threshold_percent: f64,
    /// Coherence score (0 to 1) below which there is a warning.
    pub coherence_threshold: f64,
    /// `CUDA_VISIBLE_DEVICES` as it is; see [`Settings::gpus_hidden`].
    pub cuda_visible_devices: Option<String>,
}

/// Whether the variables ask for no colours. Never an error: errors are shown by it as well.
pub fn no_color(get: impl Fn(&str) -> Option<String>) -> bool {
    Reader { get }.text(names::NO_COLOR).is_some()
}

impl Settings {
    /// Every variable with its meaning and default, for the documentation and `--help`.
    pub const TABLE: &'static [Variable] = &[
        variable(names::HF_TOKEN, "Hub access token, for gated and private models", "none"),
        variable(names::HUGGING_FACE_HUB_TOKEN, "Older name of HF_TOKEN", "none"),
        variable(
            names::HF_TOKEN_PATH,
            "File with the access token, read when HF_TOKEN is unset",
            "$HF_HOME/token",
        ),
        variable(
            names::HF_HUB_DISABLE_IMPLICIT_TOKEN,
            "1: send no token unless the command line gives one",
            "0",
        ),
        variable(
            names::LLM_QUANTIZE_CACHE,
            "Folder for downloads, in the layout of the Hugging Face cache",
            "the Hugging Face cache, shared with Python: $HF_HUB_CACHE",
        ),
        variable(names::HF_HUB_CACHE, "Hugging Face hub cache", "$HF_HOME/hub"),
        variable(names::HUGGINGFACE_HUB_CACHE, "Older name of HF_HUB_CACHE", "none"),
        variable(
            names::HF_HOME,
            "Home of Hugging Face tools",
            "$XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface",
        ),
        variable(names::XDG_CACHE_HOME, "Cache folder of the desktop", "~/.cache"),
        variable(names::HF_ENDPOINT, "Address of the hub or of a mirror", "https://huggingface.co"),
        variable(names::HF_HUB_OFFLINE, "1: use downloaded models only, no network", "0"),
        variable(names::HF_HUB_DISABLE_PROGRESS_BARS, "1: no progress bars", "0"),
        variable(
            names::LLM_QUANTIZE_CHECKPOINT_DIR,
            "Folder for the checkpoints of interrupted runs",
            CHECKPOINT_DIR,
        ),
        variable(
            names::LLM_QUANTIZE_PROFILE_DIR,
            "Folder of your own quantization profiles",
            "~/.config/llm-quantize/profiles",
        ),
        variable(
            names::LLM_QUANTIZE_IMATRIX_CACHE,
            "Folder for importance matrices that `analyze` has computed",
            "~/.cache/llm-quantize/imatrix",
        ),
        variable(
            names::LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH,
            "Most iterations of the search for a rank (1 to 1000)",
            "10",
        ),
        variable(
            names::LLM_QUANTIZE_LITTLEBIT_MIN_BPW,
            "Smallest accepted --target-bpw, in bits per weight",
            "0.1",
        ),
        variable(
            names::LLM_QUANTIZE_LITTLEBIT_MAX_BPW,
            "Largest accepted --target-bpw, in bits per weight",
            "2.0",
        ),
        variable(
            names::LLM_QUANTIZE_SVD_PRECISION,
            "Numbers of the matrix decompositions: float32 or float64",
            "float64",
        ),
        variable(
            names::LLM_QUANTIZE_QUALITY_THRESHOLD,
            "Perplexity increase that is worth a warning, in percent",
            "20",
        ),
        variable(
            names::LLM_QUANTIZE_COHERENCE_THRESHOLD,
            "Coherence score that is worth a warning when not reached, 0 to 1",
            "0.5",
        ),
        variable(
            names::CUDA_VISIBLE_DEVICES,
            "GPUs to use; empty or -1 means the processor",
            "all GPUs",
        ),
        variable(names::NO_COLOR, "Anything: no colours", "unset"),
        variable(names::RAYON_NUM_THREADS, "Worker threads, when --threads is not given", "cores"),
        variable(
            names::HTTPS_PROXY,
            "Proxy for downloads; also ALL_PROXY, HTTP_PROXY and the exceptions in NO_PROXY",
            "none",
        ),
    ];

    /// Reads the variables through `get`, which returns `None` for an unset one.
    ///
    /// The download cache is the first of `LLM_QUANTIZE_CACHE`, `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` and
    /// `~/.cache/huggingface/hub`. By default it is thus the cache that Python's `huggingface_hub`
    /// uses: a model that is already on the disk must not be downloaded a second time.
    ///
    /// Fails with [`Error::InvalidArgument`] naming the variable.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let reader = Reader { get };
        let home = reader.text(names::HOME).map(PathBuf::from);
        let path = |name| reader.text(name).map(|text| expand_home(&text, home.as_deref()));

        let hf_home = path(names::HF_HOME).or_else(|| {
            path(names::XDG_CACHE_HOME)
                .or_else(|| home.as_ref().map(|home| home.join(".cache")))
                .map(|cache| cache.join("huggingface"))
        });
        let hub_cache = path(names::LLM_QUANTIZE_CACHE)
            .or_else(|| path(names::HF_HUB_CACHE))
            .or_else(|| path(names::HUGGINGFACE_HUB_CACHE))
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")));
        let token_file =
            path(names::HF_TOKEN_PATH).or_else(|| hf_home.as_ref().map(|home| home.join("token")));
        let token = match reader.token(names::HF_TOKEN)? {
            Some(token) => Some(token),
            None => reader.token(names::HUGGING_FACE_HUB_TOKEN)?,
        };

        let min_bpw = reader.number(
            names::LLM_QUANTIZE_LITTLEBIT_MIN_BPW,
            0.1,
            "a number above 0",
            |value| value > 0.0,
        )?;
        let max_bpw = reader.number(
            names::LLM_QUANTIZE_LITTLEBIT_MAX_BPW,
            2.0_f64.max(min_bpw),
            "a number above 0",
            |value| value > 0.0,
        )?;
        if max_bpw < min_bpw {
            return Err(Error::InvalidArgument(format!(
                "{}={max_bpw} is below the smallest target, {}={min_bpw}",
                names::LLM_QUANTIZE_LITTLEBIT_MAX_BPW,
                names::LLM_QUANTIZE_LITTLEBIT_MIN_BPW,
            )));
        }

        Ok(Self {
            token,
            token_file,
            implicit_token_disabled: reader.flag(names::HF_HUB_DISABLE_IMPLICIT_TOKEN)?,
            hub_cache,
            endpoint: reader.endpoint(names::HF_ENDPOINT)?,
            offline: reader.flag(names::HF_HUB_OFFLINE)?,
            progress_bars_disabled: reader.flag(names::HF_HUB_DISABLE_PROGRESS_BARS)?,
            checkpoint_dir: path(names::LLM_QUANTIZE_CHECKPOINT_DIR)
                .unwrap_or_else(|| PathBuf::from(CHECKPOINT_DIR)),
            profile_dir: path(names::LLM_QUANTIZE_PROFILE_DIR)
                .or_else(|| home.as_ref().map(|home| home.join(".config/llm-quantize/profiles"))),
            imatrix_cache: path(names::LLM_QUANTIZE_IMATRIX_CACHE).or_else(|| {
                path(names::XDG_CACHE_HOME)
                    .or_else(|| home.as_ref().map(|home| home.join(".cache")))
                    .map(|cache| cache.join("llm-quantize/imatrix"))
            }),
            rank_search: reader.iterations(names::LLM_QUANTIZE_LITTLEBIT_RANK_SEARCH)?,
            min_bpw,
            max_bpw,
            svd_precision: reader.precision(names::LLM_QUANTIZE_SVD_PRECISION)?,
            quality_threshold_percent: reader.number(
                names::LLM_QUANTIZE_QUALITY_THRESHOLD,
                20.0,
                "a percentage above 0",
                |value| value > 0.0,
            )?,
            coherence_threshold: reader.number(
                names::LLM_QUANTIZE_COHERENCE_THRESHOLD,
                0.5,
                "a number from 0 to 1",
                |value| (0.0..=1.0).contains(&value),
            )?,
            cuda_visible_devices: (reader.get)(names::CUDA_VISIBLE_DEVICES),
        })
    }

    /// Whether `CUDA_VISIBLE_DEVICES` leaves no GPU. CUDA stops reading the list at the first entry
    /// that names no device, so a list that begins with such an entry (`-1`, or nothing) is empty.
    #[must_use]
    pub fn gpus_hidden(&self) -> bool {
        self.cuda_visible_devices.as_deref().is_some_and(|list| {
            let first = list.split(',').next().unwrap_or_default().trim();
            first.is_empty() || first.starts_with('-')
        })
    }

    /// The token to send to the hub: the variable's, else the token file's, else none.
    ///
    /// A missing token file is no token; one that cannot be read is an error, because the request
    /// would otherwise fail later with a misleading "access denied".
    pub fn hub_token(&self) -> Result<Option<Token>> {
        if self.implicit_token_disabled {
            return Ok(None);
        }
        if self.token.is_some() {
            return Ok(self.token.clone());
        }
        let Some(path) = &self.token_file else { return Ok(None) };
        match input::read_to_string(path, input::MAX_SETTINGS) {
            Ok(text) => Token::parse(&text, &path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, error)),
        }
    }
}

/// Reads and checks single variables.
struct Reader<F> {
    get: F,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// A variable that is set to nothing counts as unset.
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|value| !value.is_empty())
    }

    fn token(&self, name: &str) -> Result<Option<Token>> {
        self.text(name).map_or(Ok(None), |text| Token::parse(&text, name))
    }

    fn flag(&self, name: &str) -> Result<bool> {
        let Some(text) = self.text(name) else { return Ok(false) };
        match text.trim().to_ascii_uppercase().as_str() {
            "1" | "ON" | "YES" | "TRUE" => Ok(true),
            "" | "0" | "OFF" | "NO" | "FALSE" => Ok(false),
            _ => Err(invalid(name, &text, "1, ON, YES, TRUE or 0, OFF, NO, FALSE")),
        }
    }

    fn number(
        &self,
        name: &str,
        default: f64,
        expected: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.trim()
            .parse::<f64>()
            .ok()
            .filter(|value| value.is_finite() && accept(*value))
            .ok_or_else(|| invalid(name, &text, expected))
    }

    fn iterations(&self, name: &str) -> Result<u32> {
        let Some(text) = self.text(name) else { return Ok(10) };
        text.trim()
            .parse::<u32>()
            .ok()
            .filter(|count| (1..=1000).contains(count))
            .ok_or_else(|| invalid(name, &text, "a whole number from 1 to 1000"))
    }

    fn precision(&self, name: &str) -> Result<Precision> {
        let Some(text) = self.text(name) else { return Ok(Precision::default()) };
        Precision::from_name(&text.trim().to_ascii_lowercase())
            .ok_or_else(|| invalid(name, &text, "float32 or float64"))
    }

    fn endpoint(&self, name: &str) -> Result<String> {
        let Some(text) = self.text(name) else { return Ok("https://huggingface.co".into()) };
        let trimmed = text.trim().trim_end_matches('/');
        let rest = trimmed.strip_prefix("https://").or_else(|| trimmed.strip_prefix("http://"));
        match rest {
            Some(host)
                if !host.is_empty()
                    && !host.starts_with('/')
                    && host.bytes().all(|byte| {
                        byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'@')
                    }) =>
            {
                Ok(trimmed.to_owned())
            }
            // A name and a password before the host are not sent, and not shown either.
            _ => Err(invalid(
                name,
                &without_password(&text),
                "an address such as https://huggingface.co, without a name, password or query",
            )),
        }
    }
}

/// An address as it may be shown, also where it has no scheme.
fn without_password(address: &str) -> String {
    if address.contains("://") {
        return redact::addresses(address);
    }
    address.rsplit_once('@').map_or(address, |(_, host)| host).to_owned()
}

fn invalid(name: &str, value: &str, expected: &str) -> Error {
    Error::InvalidArgument(format!("{name}={value:?}: expected {expected}"))
}

/// Replaces a leading `~` by the home directory, as Python's tools do with these variables.
fn expand_home(text: &str, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix('~'), home) {
        (Some(""), Some(home)) => home.to_path_buf(),
        (Some(rest), Some(home)) if rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests;
