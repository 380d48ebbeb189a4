//! A small Hugging Face hub on loopback: the answers, headers and redirects of the real one, a
//! storage host on a port of its own, and faults on request. Every request is recorded.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A token that may read everything.
pub(crate) const GOOD_TOKEN: &str = "hf_good";
/// A token of an account that has not accepted the terms of gated models.
pub(crate) const OTHER_TOKEN: &str = "hf_other";

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// "hub" or "storage".
    pub(crate) host: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Contents of a file. Large ones are stored outside git, under their SHA-256.
#[derive(Debug, Clone)]
pub(crate) struct Contents {
    pub(crate) bytes: Vec<u8>,
    pub(crate) large: bool,
}

/// One commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Commit {
    pub(crate) files: BTreeMap<String, Contents>,
}

#[derive(Debug, Clone, Default)]
struct Repo {
    commits: HashMap<String, Commit>,
    refs: HashMap<String, String>,
    gated: bool,
}

/// What goes wrong. Each lasts until it is taken back, except where a number says how often.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one fault")]
pub(crate) struct Faults {
    /// The storage host closes the connection after so many bytes of a body, so many times.
    pub(crate) cut_after: Option<(usize, usize)>,
    /// The storage host answers every request with the whole file.
    pub(crate) ignore_range: bool,
    /// The storage host flips a bit of every body.
    pub(crate) flip_bit: bool,
    /// The storage host sends a body with so many bytes less and says so.
    pub(crate) shorter_by: usize,
    /// The storage host sends so many bytes more than the hub announces.
    pub(crate) longer_by: usize,
    /// The hub announces this size for large files.
    pub(crate) announced_size: Option<u64>,
    /// The hub answers with this status, so many times.
    pub(crate) status: Option<(u16, usize)>,
    /// The hub answers HEAD with 405.
    pub(crate) no_head: bool,
    /// The hub sends this ETag with everything.
    pub(crate) etag: Option<String>,
    /// The hub redirects to itself for ever.
    pub(crate) circles: bool,
    /// Nobody answers for so long.
    pub(crate) silence: Option<Duration>,
    /// The storage host is silent in the middle of the body for so long.
    pub(crate) stall_in_body: Option<Duration>,
    /// The storage host sends a byte, waits so long, and sends the next.
    pub(crate) trickle: Option<Duration>,
    /// The hub says that this is the commit, whatever was asked for.
    pub(crate) commit: Option<String>,
    /// The hub sends small files without their length, and never stops.
    pub(crate) endless: bool,
    /// The hub refuses everything and repeats what it was sent in every header of the answer.
    pub(crate) echo: Option<u16>,
}

#[derive(Default)]
struct State {
    repos: Mutex<HashMap<String, Repo>>,
    log: Mutex<Vec<Request>>,
    faults: Mutex<Faults>,
    /// Bytes of bodies that the system took.
    sent: AtomicU64,
    closing: AtomicBool,
}

pub(crate) struct FakeHub {
    state: Arc<State>,
    hub: SocketAddr,
    storage: SocketAddr,
}

impl FakeHub {
    pub(crate) fn start() -> Self {
        let state = Arc::new(State::default());
        let hub_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let storage_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, storage) =
            (hub_listener.local_addr().unwrap(), storage_listener.local_addr().unwrap());
        for (listener, host) in [(hub_listener, "hub"), (storage_listener, "storage")] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if state.closing.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || serve(&state, stream, host, storage));
                }
            });
        }
        Self { state, hub, storage }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Adds a commit to a repository and lets `main` point to it. `repo` has the prefix
    /// `datasets/` for a dataset. Returns the commit.
    pub(crate) fn push(&self, repo: &str, files: &[(&str, &[u8], bool)]) -> String {
        let files: BTreeMap<String, Contents> = files
            .iter()
            .map(|(name, bytes, large)| {
                ((*name).to_owned(), Contents { bytes: bytes.to_vec(), large: *large })
            })
            .collect();
        let mut hash = Sha256::new();
        for (name, contents) in &files {
            hash.update(name);
            hash.update(&contents.bytes);
        }
        let id = hex(&hash.finalize())[..40].to_owned();
        let mut repos = self.state.repos.lock().unwrap();
        let repo = repos.entry(repo.to_owned()).or_default();
        repo.commits.insert(id.clone(), Commit { files });
        repo.refs.insert("main".into(), id.clone());
        id
    }

    pub(crate) fn set_ref(&self, repo: &str, name: &str, commit: &str) {
        let mut repos = self.state.repos.lock().unwrap();
        repos.get_mut(repo).unwrap().refs.insert(name.into(), commit.into());
    }

    pub(crate) fn gate(&self, repo: &str) {
        self.state.repos.lock().unwrap().get_mut(repo).unwrap().gated = true;
    }

    pub(crate) fn faults(&self, faults: Faults) {
        *self.state.faults.lock().unwrap() = faults;
    }

    /// Bytes of bodies that were sent since the last call.
    pub(crate) fn take_sent(&self) -> u64 {
        self.state.sent.swap(0, Ordering::SeqCst)
    }

    /// The requests since the last call.
    pub(crate) fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::SeqCst);
        for address in [self.hub, self.storage] {
            let _ = TcpStream::connect(address);
        }
    }
}

/// The ETag of a file as the real hub has it: SHA-256 for large files, 40 hexadecimal digits (of
/// git there, of another hash here) for the others.
pub(crate) fn etag(contents: &Contents) -> String {
    let digest = hex(&Sha256::digest(&contents.bytes));
    if contents.large { digest } else { digest[..40].to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// An answer: status, headers, body, and how the body goes wrong.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut_after: Option<usize>,
    stall: Option<Duration>,
    trickle: Option<Duration>,
    endless: bool,
}

impl Answer {
    fn empty(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut_after: None,
            stall: None,
            trickle: None,
            endless: false,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        Self::empty(status).with("X-Error-Code", code).with("X-Error-Message", message)
    }
}

fn serve(state: &State, stream: TcpStream, host: &'static str, storage: SocketAddr) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader, host) {
        // Also connections that were made before the end are dead after it.
        if state.closing.load(Ordering::SeqCst) {
            return;
        }
        state.log.lock().unwrap().push(request.clone());
        let silence = state.faults.lock().unwrap().silence;
        if let Some(silence) = silence {
            std::thread::sleep(silence);
            return;
        }
        let answer = if host == "hub" {
            hub_answer(state, &request, storage)
        } else {
            stored(state, &request)
        };
        if !write_answer(state, &mut writer, &answer, request.method == "HEAD") {
            return;
        }
    }
}

fn read_request(reader: &mut impl BufRead, host: &'static str) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut parts = line.split_whitespace();
    let (method, path) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Some(Request { host, method, path, headers });
        }
        let (name, value) = line.split_once(':')?;
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
    }
}

fn write_answer(state: &State, writer: &mut TcpStream, answer: &Answer, head: bool) -> bool {
    let mut text = format!("HTTP/1.1 {} Answer\r\n", answer.status);
    for (name, value) in &answer.headers {
        write!(text, "{name}: {value}\r\n").unwrap();
    }
    let has_length = answer.headers.iter().any(|(name, _)| *name == "Content-Length");
    if !has_length && !answer.endless {
        write!(text, "Content-Length: {}\r\n", answer.body.len()).unwrap();
    }
    text.push_str("\r\n");
    if writer.write_all(text.as_bytes()).is_err() {
        return false;
    }
    if head {
        return !answer.endless;
    }
    if answer.endless {
        let blanks = vec![b' '; 1 << 16];
        while !state.closing.load(Ordering::SeqCst) && writer.write_all(&blanks).is_ok() {
            state.sent.fetch_add(blanks.len() as u64, Ordering::SeqCst);
        }
        return false;
    }
    if let Some(pause) = answer.trickle {
        for byte in &answer.body {
            if state.closing.load(Ordering::SeqCst) || writer.write_all(&[*byte]).is_err() {
                return false;
            }
            std::thread::sleep(pause);
        }
        return true;
    }
    let cut = answer.cut_after.unwrap_or(usize::MAX).min(answer.body.len());
    if let Some(stall) = answer.stall {
        let _ = writer.write_all(&answer.body[..cut / 2]);
        std::thread::sleep(stall);
        return false;
    }
    for part in answer.body[..cut].chunks(1 << 16) {
        if writer.write_all(part).is_err() {
            return false;
        }
        state.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
    }
    cut == answer.body.len()
}

fn hub_answer(state: &State, request: &Request, storage: SocketAddr) -> Answer {
    let mut faults = state.faults.lock().unwrap();
    if let Some((status, times)) = &mut faults.status
        && *times > 0
    {
        *times -= 1;
        return Answer::empty(*status).with("Retry-After", "0");
    }
    if faults.no_head && request.method == "HEAD" {
        return Answer::empty(405);
    }
    if faults.circles {
        return Answer::empty(302).with("Location", format!("{}x", request.path));
    }
    if let Some(status) = faults.echo {
        let said = request.header("authorization").unwrap_or("nothing").to_owned();
        let token = said.replace("Bearer ", "");
        return Answer::empty(status)
            .with("X-Error-Code", &said)
            .with("X-Error-Message", format!("you sent {said} to https://x:{token}@h/?{token}"))
            .with("ETag", &said)
            .with("X-Repo-Commit", token)
            .with("Location", format!("http://{storage}/?t={}", said.replace(' ', "+")));
    }
    let faults = faults.clone();
    let path = request.path.split('?').next().unwrap();
    let path = path.trim_start_matches('/').replace("%2F", "/");
    let repos = state.repos.lock().unwrap();

    if let Some(rest) = path.strip_prefix("api/models/") {
        let Some((name, revision)) = rest.split_once("/revision/") else {
            return Answer::empty(404);
        };
        let Some(commit) = repos.get(name).and_then(|repo| find(repo, revision)) else {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        };
        let siblings: Vec<_> =
            commit.1.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let body = serde_json::json!({ "sha": commit.0, "siblings": siblings }).to_string();
        return Answer { body: body.into_bytes(), ..Answer::empty(200) };
    }

    // Small files are served from a second address of the same host.
    let (cached, path) = match path.strip_prefix("api/resolve-cache/") {
        Some(rest) => (true, rest.to_owned()),
        None => (false, path),
    };
    let Some((name, rest)) = path.split_once("/resolve/") else { return Answer::empty(404) };
    let bearer = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    if bearer.is_some_and(|token| token != GOOD_TOKEN && token != OTHER_TOKEN) {
        return Answer::empty(401)
            .with("X-Error-Message", "Invalid credentials in Authorization header");
    }
    let Some(repo) = repos.get(name) else {
        // Strangers are not told whether a repository exists.
        let status = if bearer.is_some() { 404 } else { 401 };
        return Answer::error(status, "RepoNotFound", "Repository not found");
    };
    if repo.gated && bearer != Some(GOOD_TOKEN) {
        let status = if bearer.is_some() { 403 } else { 401 };
        return Answer::error(status, "GatedRepo", "Access to this model is restricted");
    }
    let Some((revision, file)) = split_revision(repo, rest) else {
        return Answer::error(404, "RevisionNotFound", "Invalid rev id");
    };
    let (id, commit) = find(repo, &revision).unwrap();
    let said = faults.commit.clone().unwrap_or_else(|| id.clone());
    let Some(contents) = commit.files.get(file) else {
        return Answer::error(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", said);
    };
    let tag = faults.etag.clone().unwrap_or_else(|| etag(contents));
    if contents.large {
        let size = faults.announced_size.unwrap_or(contents.bytes.len() as u64);
        return Answer::empty(302)
            .with("X-Repo-Commit", said)
            .with("X-Linked-Size", size.to_string())
            .with("X-Linked-ETag", format!("\"{tag}\""))
            .with("ETag", "\"pointer\"")
            .with("Location", format!("http://{storage}/{name}/{id}/{file}?signature=abc"));
    }
    if !cached {
        return Answer::empty(307)
            .with("X-Repo-Commit", said)
            .with("Location", format!("/api/resolve-cache/{name}/resolve/{id}/{file}?x=y"));
    }
    if faults.endless {
        let answer = Answer { endless: true, ..Answer::empty(200) };
        return answer.with("X-Repo-Commit", said).with("ETag", format!("W/\"{tag}\""));
    }
    let range = request.header("range");
    ranged(&contents.bytes, range).with("X-Repo-Commit", said).with("ETag", format!("W/\"{tag}\""))
}

fn stored(state: &State, request: &Request) -> Answer {
    let repos = state.repos.lock().unwrap();
    let path = request.path.split('?').next().unwrap().trim_start_matches('/');
    let contents = repos.iter().find_map(|(name, repo)| {
        let rest = path.strip_prefix(name.as_str())?.strip_prefix('/')?;
        let (id, file) = rest.split_once('/')?;
        repo.commits.get(id)?.files.get(file)
    });
    let Some(contents) = contents else { return Answer::empty(404) };
    let mut bytes = contents.bytes.clone();
    let mut faults = state.faults.lock().unwrap();
    if faults.flip_bit {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    bytes.truncate(bytes.len() - faults.shorter_by);
    bytes.resize(bytes.len() + faults.longer_by, 7);
    let range = request.header("range").filter(|_| !faults.ignore_range);
    let mut answer = ranged(&bytes, range);
    answer.stall = faults.stall_in_body;
    answer.trickle = faults.trickle;
    if request.method == "GET"
        && let Some((after, times)) = &mut faults.cut_after
        && *times > 0
    {
        *times -= 1;
        answer.cut_after = Some(*after);
    }
    answer
}

/// The part of `bytes` that the `Range` header asks for.
fn ranged(bytes: &[u8], range: Option<&str>) -> Answer {
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return Answer { body: bytes.to_vec(), ..Answer::empty(200) };
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
    if first >= bytes.len() {
        return Answer::empty(416).with("Content-Range", format!("bytes */{}", bytes.len()));
    }
    Answer { body: bytes[first..=last].to_vec(), ..Answer::empty(206) }
        .with("Content-Range", format!("bytes {first}-{last}/{}", bytes.len()))
}

fn find<'a>(repo: &'a Repo, revision: &str) -> Option<(String, &'a Commit)> {
    let id = repo.refs.get(revision).cloned().unwrap_or_else(|| revision.to_owned());
    let commit = repo.commits.get(&id)?;
    Some((id, commit))
}

/// Splits `refs/pr/1/dir/file` into a revision that exists and the file.
fn split_revision<'a>(repo: &Repo, rest: &'a str) -> Option<(String, &'a str)> {
    rest.match_indices('/').find_map(|(at, _)| {
        let (revision, file) = (&rest[..at], &rest[at + 1..]);
        find(repo, revision).map(|_| (revision.to_owned(), file))
    })
}
