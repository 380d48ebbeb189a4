//! Requests to the hub: headers, redirects, timeouts, and what each kind of refusal means.
//!
//! Redirects are followed here rather than by the HTTP library because the token must reach the
//! hub and nobody else: large files are redirected to storage hosts, whose signed addresses need
//! no token.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::address::{encode, is_downgrade, is_loopback, join, same_origin};
use super::patience::Patience;
use super::resolver::Lookup;
use super::spec::is_commit;
use super::{HubOptions, RepoKind, Target};
use crate::base::redact;
use crate::settings::Token;
use crate::{Error, Result};

const MAX_REDIRECTS: usize = 10;
/// The longest wait for the first answer of all: what takes a connection and says nothing is no hub.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// A repository listing is some hundred bytes a file.
const MAX_LISTING_BYTES: u64 = 32 << 20;
/// It is asked for to explain an error, which must not wait for it.
const LISTING_TIME: Duration = Duration::from_secs(10);

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Trying again changes nothing.
    Fatal(Error),
    /// The file is not in the repository; for an optional file that is an answer.
    Missing(Error),
    /// No connection could be made at all, or nobody answered the first question.
    Unreachable(String),
    /// The connection broke, or the server is busy.
    Passing {
        reason: String,
        /// When the server wants to be asked again.
        wait: Option<Duration>,
    },
}

impl Trouble {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing { reason: reason.into(), wait: None }
    }
}

/// What the hub says about a file without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    /// The name of its contents: SHA-256 of large files, git's object id of small ones.
    pub(super) etag: String,
    /// Bytes, if the server says.
    pub(super) size: Option<u64>,
}

impl Remote {
    /// The SHA-256 of the contents, where the hub names contents by it.
    pub(super) fn sha256(&self) -> Option<&str> {
        let hex = self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then_some(self.etag.as_str())
    }
}

pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    /// The endpoint as messages show it.
    shown: String,
    token: Option<Token>,
    retries: u32,
    retry_wait: Duration,
    stall_timeout: Duration,
    /// Whether anything has answered yet. Before that, an attempt that fails is no passing trouble:
    /// there is no network.
    answered: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
enum Method {
    Head,
    Get,
}

impl Client {
    pub(super) fn new(options: &HubOptions) -> Self {
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("llm-quantize/", env!("CARGO_PKG_VERSION")))
            // A compressed body has other lengths and other ranges than the file.
            .accept_encoding("identity")
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_send_request(Some(options.stall_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            // Per read, not for the whole body: a large file may take hours, silence may not.
            .timeout_per_read(Some(options.stall_timeout));
        if is_loopback(&options.endpoint) {
            config = config.proxy(None);
        }
        Self {
            agent: Agent::with_parts(
                config.build(),
                DefaultConnector::default(),
                Lookup::default(),
            ),
            endpoint: options.endpoint.trim_end_matches('/').to_owned(),
            shown: redact::addresses(options.endpoint.trim_end_matches('/')),
            token: options.token.clone(),
            retries: options.retries,
            retry_wait: options.retry_wait,
            stall_timeout: options.stall_timeout,
            answered: AtomicBool::new(false),
        }
    }

    /// Asks for commit, contents and size of `file`.
    pub(super) fn remote(&self, target: &Target, file: &str) -> Result<Remote, Trouble> {
        let mut url = self.file_url(target, file);
        let mut method = Method::Head;
        let (mut commit, mut etag, mut size) = (None, None, None);
        for _ in 0..=MAX_REDIRECTS {
            let range = matches!(method, Method::Get).then_some("bytes=0-0");
            let response = self.request(method, &url, range)?;
            let headers = response.headers();
            commit = commit.or_else(|| text(headers, "x-repo-commit"));
            etag = etag.or_else(|| text(headers, "x-linked-etag"));
            size = size.or_else(|| number(headers, "x-linked-size"));
            let status = response.status();
            if status.is_redirection() {
                let next = self.redirect(&url, headers)?;
                if same_origin(&next, &self.endpoint) {
                    url = next;
                    continue;
                }
                // The storage host knows nothing of commits: the hub's own headers must do.
                etag = etag.or_else(|| text(headers, "etag"));
            } else if status.is_success() {
                etag = etag.or_else(|| text(headers, "etag"));
                size = size.or_else(|| whole_length(&response));
            } else if matches!(method, Method::Head)
                && matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
            {
                // Simple mirrors know only GET.
                method = Method::Get;
                continue;
            } else {
                return Err(self.refusal(target, Some(file), status, headers));
            }
            return self.checked(target, commit, etag, size);
        }
        Err(self.too_many_redirects())
    }

    /// The headers become file names: nothing but plain names is let through.
    fn checked(
        &self,
        target: &Target,
        commit: Option<String>,
        etag: Option<String>,
        size: Option<u64>,
    ) -> Result<Remote, Trouble> {
        let plain = |text: &String| {
            (1..=200).contains(&text.len())
                && !text.starts_with('.')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && self.token.as_ref().is_none_or(|token| !text.contains(token.secret()))
        };
        let odd = |header: &str| {
            self.wrong(format!(
                "does not answer like a Hugging Face hub ({header} is missing or odd)"
            ))
        };
        let etag = etag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(&plain).ok_or_else(|| odd("ETag"))?;
        let commit = commit.filter(|id| is_commit(id)).ok_or_else(|| odd("X-Repo-Commit"))?;
        self.same_commit(target, &commit)?;
        Ok(Remote { commit, etag, size })
    }

    /// A commit that was asked for must be the one that answers.
    fn same_commit(&self, target: &Target, answered: &str) -> Result<(), Trouble> {
        if !is_commit(&target.revision) || target.revision == answered {
            return Ok(());
        }
        let answered = printable(&self.clean(answered));
        Err(self.wrong(format!(
            "was asked for commit {} of {} and answers with {answered}",
            target.revision, target.repo
        )))
    }

    /// A hub that answers what no hub answers.
    fn wrong(&self, what: impl std::fmt::Display) -> Trouble {
        Trouble::Fatal(Error::Network {
            message: format!("{} {what}; check HF_ENDPOINT", self.shown),
            suggestion:
                "Check HF_ENDPOINT and the proxy: what answers there is no Hugging Face hub".into(),
        })
    }

    /// Starts the download of `file`, or of a part of it (`bytes=7-`), wherever the hub keeps it.
    pub(super) fn open(
        &self,
        target: &Target,
        file: &str,
        range: Option<&str>,
    ) -> Result<Response<Body>, Trouble> {
        let mut url = self.file_url(target, file);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(Method::Get, &url, range)?;
            let status = response.status();
            if same_origin(&url, &self.endpoint)
                && let Some(commit) = text(response.headers(), "x-repo-commit")
            {
                self.same_commit(target, &commit)?;
            }
            if status.is_redirection() {
                url = self.redirect(&url, response.headers())?;
            } else if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            } else {
                return Err(self.refusal(target, Some(file), status, response.headers()));
            }
        }
        Err(self.too_many_redirects())
    }

    /// The files of a repository, for an error message: `None` if the hub does not say.
    pub(super) fn listing(&self, target: &Target) -> Option<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let kind = match target.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        let revision = encode(&target.revision, false);
        let url = format!("{}/api/{kind}/{}/revision/{revision}", self.endpoint, target.repo);
        let mut request = self.agent.get(&url).config().timeout_global(Some(LISTING_TIME)).build();
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {}", token.secret()));
        }
        let response = request.call().ok()?;
        if !response.status().is_success() {
            return None;
        }
        let mut bytes = Vec::new();
        let reader = response.into_body().into_reader();
        reader.take(MAX_LISTING_BYTES).read_to_end(&mut bytes).ok()?;
        let listing: Listing = serde_json::from_slice(&bytes).ok()?;
        let names = listing.siblings.into_iter().map(|sibling| sibling.rfilename);
        Some(names.map(|name| printable(&self.clean(&name))).collect())
    }

    /// The patience for one task.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.retries, self.retry_wait)
    }

    /// The longest silence on a connection.
    pub(super) fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// Whether anything has answered yet.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// A text that may hold what a server sent, without secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let text = redact::addresses(text);
        self.token.as_ref().map_or(text.clone(), |token| redact::without(&text, token.secret()))
    }

    /// An error for people from trouble that will not be tried again.
    pub(super) fn give_up(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Fatal(error) | Trouble::Missing(error) => error,
            Trouble::Unreachable(reason) => Error::Network {
                message: format!("cannot reach {}: {reason}", self.shown),
                suggestion: "Check the network and HF_ENDPOINT; or give --offline (or \
                             HF_HUB_OFFLINE=1) to use what is already downloaded, or the path of a \
                             model on this machine"
                    .into(),
            },
            Trouble::Passing { reason, .. } => Error::Network {
                message: format!("{} does not answer properly: {reason}", self.shown),
                suggestion: "Try again later: what is already downloaded is kept".into(),
            },
        }
    }

    /// The endpoint as messages show it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    fn file_url(&self, target: &Target, file: &str) -> String {
        let kind = match target.kind {
            RepoKind::Model => "",
            RepoKind::Dataset => "datasets/",
        };
        format!(
            "{}/{kind}{}/resolve/{}/{}",
            self.endpoint,
            target.repo,
            encode(&target.revision, false),
            encode(file, true)
        )
    }

    fn request(
        &self,
        method: Method,
        url: &str,
        range: Option<&str>,
    ) -> Result<Response<Body>, Trouble> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        if let Some(token) = &self.token
            && same_origin(url, &self.endpoint)
        {
            request = request.header("Authorization", format!("Bearer {}", token.secret()));
        }
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        if !self.has_answered() {
            let patience = self.stall_timeout.min(FIRST_ANSWER);
            request = request.config().timeout_recv_response(Some(patience)).build();
        }
        let answer = request.call();
        if answer.is_ok() {
            self.answered.store(true, Ordering::Relaxed);
        }
        answer.map_err(|error| self.classify(&error))
    }

    /// What a request that got no answer means.
    fn classify(&self, error: &ureq::Error) -> Trouble {
        let said = self.clean(&error.to_string());
        match error {
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                self.wrong(format!("sends an address without sense ({said})"))
            }
            error if no_connection(error) => Trouble::Unreachable(said),
            ureq::Error::Timeout(_) if !self.has_answered() => Trouble::Unreachable(said),
            _ => Trouble::passing(said),
        }
    }

    fn redirect(&self, from: &str, headers: &HeaderMap) -> Result<String, Trouble> {
        let next = text(headers, "location").and_then(|location| join(from, &location));
        match next {
            Some(next) if !is_downgrade(from, &next) => Ok(next),
            Some(_) => Err(self.wrong("redirects from https to plain http, which is refused")),
            None => Err(self.wrong("redirects to nowhere")),
        }
    }

    fn too_many_redirects(&self) -> Trouble {
        self.wrong("redirects in circles")
    }

    /// What a status that is neither success nor redirect means. The hub tells the cases of one
    /// status apart in `X-Error-Code` and explains them in `X-Error-Message`.
    fn refusal(
        &self,
        target: &Target,
        file: Option<&str>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Trouble {
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = match text(headers, "x-error-message") {
            Some(message) => {
                format!("HTTP {}: {}", status.as_u16(), printable(&self.clean(&message)))
            }
            None => format!("HTTP {}", status.as_u16()),
        };
        let (repo, endpoint) = (target.describe(), &self.shown);
        match status.as_u16() {
            401 | 403 => Trouble::Fatal(Error::AuthRequired(self.denial(target, &code, &said))),
            404 | 410 => {
                let message = match (code.as_str(), file) {
                    ("RepoNotFound", _) => format!("{repo} does not exist on {endpoint} ({said})"),
                    ("RevisionNotFound", _) => format!(
                        "{} has no revision `{}` on {endpoint} ({said})",
                        target.repo, target.revision
                    ),
                    (_, Some(file)) => {
                        format!("{repo} has no file `{file}` on {endpoint} ({said})")
                    }
                    (_, None) => format!("{repo} is not on {endpoint} ({said})"),
                };
                let error = Error::model_not_found(message);
                match code.as_str() {
                    "RepoNotFound" | "RevisionNotFound" => Trouble::Fatal(error),
                    _ => Trouble::Missing(error),
                }
            }
            408 | 429 | 500 | 502 | 503 | 504 => Trouble::Passing {
                reason: said,
                wait: number(headers, "retry-after").map(Duration::from_secs),
            },
            _ => Trouble::Fatal(Error::Network {
                message: format!("{repo}: {endpoint} answers {said}"),
                suggestion: "Check HF_ENDPOINT and the proxy, or try again later".into(),
            }),
        }
    }

    fn denial(&self, target: &Target, code: &str, said: &str) -> String {
        let repo = target.describe();
        let page = format!("{}/{}{}", self.shown, target.kind.prefix(), target.repo);
        match (code, &self.token) {
            ("GatedRepo", None) => format!(
                "{repo} is gated ({said}): accept its terms at {page}, then set HF_TOKEN to a \
                 token of that account"
            ),
            ("GatedRepo", Some(_)) => format!(
                "{repo} is gated, and the account of this token has no access ({said}): accept \
                 its terms at {page} and wait for approval if it asks for one"
            ),
            (_, None) => format!(
                "{repo} cannot be read without a token ({said}): it is private or gated, or does \
                 not exist. Check the name; if it is right, set HF_TOKEN to a token that may read it"
            ),
            (_, Some(_)) => format!(
                "the hub refuses this token for {repo} ({said}): it is invalid or expired, may not \
                 read the repository, or the repository does not exist. Check the name and HF_TOKEN"
            ),
        }
    }
}

/// Whether no connection could be made: no such host, nobody there, no network.
fn no_connection(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Io(io) => {
            matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NetworkDown
                    | ErrorKind::AddrNotAvailable // The standard library has no kind for a name that cannot be looked up.
            ) || io.to_string().contains("failed to lookup address")
        }
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) | ureq::Error::BodyStalled => false,
        _ => true,
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// The length of the whole file: after the slash of `Content-Range` in a partial answer, else
/// `Content-Length`.
pub(super) fn whole_length(response: &Response<Body>) -> Option<u64> {
    let headers = response.headers();
    if headers.contains_key("content-encoding") {
        return None;
    }
    if response.status() == StatusCode::PARTIAL_CONTENT {
        return text(headers, "content-range")?.rsplit('/').next()?.parse().ok();
    }
    number(headers, "content-length")
}

/// The first byte of a partial answer (`Content-Range: bytes 7-99/100`).
pub(super) fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = text(response.headers(), "content-range")?;
    range.strip_prefix("bytes")?.trim().split('-').next()?.trim().parse().ok()
}

/// A server's words, made safe for a terminal.
fn printable(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(200).collect()
}
