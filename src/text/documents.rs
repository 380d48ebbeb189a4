//! Documents out of a user's file: plain text, JSON, or one JSON value per line.
//!
//! A file is mapped, and only the part that is wanted is looked at, so a file of any size costs
//! what is taken from it. Every error names the file and the line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::base::{SharedBytes, input, json as json_file};
use crate::tokenizer::chat::ChatMessage;
use crate::{Error, Result};

/// Renders a conversation as text, with the model's chat template.
pub type ChatRenderer<'a> = &'a dyn Fn(&[ChatMessage]) -> Result<String>;

/// Which part of a text is taken when it is larger than wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// The beginning.
    First,
    /// Pieces from everywhere: files are often sorted by topic or by language.
    Spread,
}

/// How a file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The whole file is one document.
    Text,
    /// A JSON array of documents, or JSON objects one after the other.
    Json,
    /// A JSON value per line.
    JsonLines,
}

/// Pieces that [`Coverage::Spread`] takes.
const PIECES: usize = 64;
/// How far a cut through plain text is moved to fall between two paragraphs, bytes.
const PARAGRAPH_SEARCH: usize = 64 << 10;
/// Longest line of a `.jsonl` file, bytes.
const LONGEST_LINE: usize = 64 << 20;
/// Largest `.json` file, bytes: an array cannot be entered in the middle.
const LARGEST_JSON: usize = 256 << 20;

/// An opened file with documents.
pub struct DocumentFile<'a> {
    path: PathBuf,
    bytes: SharedBytes,
    /// Offset of the first byte that is text: 3 after a byte-order mark.
    start: usize,
    format: Format,
    render: Option<ChatRenderer<'a>>,
}

impl<'a> DocumentFile<'a> {
    /// Opens a `.txt`, `.json` or `.jsonl` file. Conversations (`messages`) go through `render`, or
    /// become `role: content` lines without it.
    ///
    /// # Errors
    /// [`Error::Calibration`] when the file is missing, empty, no file, or of another kind.
    pub fn open(path: &Path, render: Option<ChatRenderer<'a>>) -> Result<Self> {
        let refuse = |what: &str| Error::Calibration(format!("{}: {what}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| refuse(&error.to_string()))?;
        input::check(&metadata).map_err(|error| refuse(&error.to_string()))?;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        let format = match extension.as_str() {
            "json" => Format::Json,
            "jsonl" | "ndjson" => Format::JsonLines,
            "txt" | "text" | "raw" | "md" | "" => Format::Text,
            other => return Err(refuse(&format!("`.{other}` is not .txt, .json or .jsonl"))),
        };
        let bytes = SharedBytes::map(path).map_err(|error| match error {
            Error::Io { source, .. } => refuse(&source.to_string()),
            other => other,
        })?;
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            return Err(refuse("the text is UTF-16; save it as UTF-8"));
        }
        if format == Format::Json && bytes.len() > LARGEST_JSON {
            return Err(refuse(&format!(
                "a .json file may have {LARGEST_JSON} bytes; write one document per line (.jsonl)"
            )));
        }
        let start = if bytes.starts_with(&[0xef, 0xbb, 0xbf]) { 3 } else { 0 };
        if is_blank(&bytes[start..]) {
            return Err(refuse("the file has no text"));
        }
        Ok(Self { path: path.to_path_buf(), bytes, start, format, render })
    }

    /// All documents, or about `limit` bytes of them.
    pub fn read(&self, coverage: Coverage, limit: usize) -> Result<Vec<String>> {
        let documents = self.documents(self.start..self.bytes.len(), coverage, limit)?;
        self.require_text(&documents)?;
        Ok(documents)
    }

    /// The documents of the first four fifths and those of the last fifth of the file: to
    /// calibrate on (pieces from everywhere) and to measure with (its beginning). The cut falls
    /// between two documents, or between two paragraphs of a single one.
    pub fn read_split(
        &self,
        calibration_limit: usize,
        evaluation_limit: usize,
    ) -> Result<(Vec<String>, Vec<String>)> {
        let end = self.bytes.len();
        let cut = self.start + (end - self.start) / 5 * 4;
        let at = match self.format {
            Format::Json => None,
            Format::Text => {
                let forward = paragraph_start(&self.bytes, cut);
                let text_follows = !is_blank(&self.bytes[forward..]);
                Some(if text_follows { forward } else { character_start(&self.bytes, cut) })
            }
            Format::JsonLines => {
                let forward = line_start(&self.bytes, cut);
                let text_follows = !is_blank(&self.bytes[forward..]);
                let last = || last_line_start(&self.bytes).max(self.start);
                let at = if text_follows { forward } else { last() };
                // A file of one line is one document, whose text is split.
                (!is_blank(&self.bytes[self.start..at])).then_some(at)
            }
        };
        let (calibration, evaluation) = if let Some(at) = at {
            (
                self.documents(self.start..at, Coverage::Spread, calibration_limit)?,
                self.documents(at..end, Coverage::First, evaluation_limit)?,
            )
        } else {
            split(self.documents(self.start..end, Coverage::First, usize::MAX)?)
        };
        self.require_text(&calibration)?;
        self.require_text(&evaluation)?;
        Ok((calibration, evaluation))
    }

    /// Documents of a range that begins and ends between two of them.
    fn documents(
        &self,
        range: Range<usize>,
        coverage: Coverage,
        limit: usize,
    ) -> Result<Vec<String>> {
        let documents = match self.format {
            Format::Json => self.json(range)?,
            Format::Text => pieces(&range, coverage, limit, |at| paragraph_start(&self.bytes, at))
                .into_iter()
                .map(|piece| self.utf8(piece).map(str::to_owned))
                .collect::<Result<_>>()?,
            Format::JsonLines => {
                let start = |at| line_start(&self.bytes, at);
                let mut chosen = pieces(&range, coverage, limit, start);
                if chosen.is_empty() {
                    // Every piece fell inside a line; take the first lines.
                    chosen = pieces(&range, Coverage::First, limit, start);
                }
                let mut documents = Vec::new();
                for piece in chosen {
                    self.json_lines(piece, &mut documents)?;
                }
                documents
            }
        };
        // What was looked at need not stay in memory.
        self.bytes.release();
        Ok(documents)
    }

    fn json_lines(&self, range: Range<usize>, documents: &mut Vec<String>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let length = position(&self.bytes[at..range.end], b'\n');
            let line = at..at + length.unwrap_or(range.end - at);
            if line.len() > LONGEST_LINE {
                return Err(self.error(at, &format!("longer than {LONGEST_LINE} bytes")));
            }
            if !is_blank(&self.bytes[line.clone()]) {
                let value: Value = json_file::read_bytes(&self.bytes[line.clone()])
                    .map_err(|error| self.error(at, &json_message(&error)))?;
                documents.push(self.document(value).map_err(|what| self.error(at, &what))?);
            }
            at = line.end + 1;
        }
        Ok(())
    }

    /// Elements of the array that the file is, or the objects that follow each other in it.
    fn json(&self, range: Range<usize>) -> Result<Vec<String>> {
        let bytes = &self.bytes[range.clone()];
        let blank = |at: &mut usize| {
            *at += bytes[*at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        };
        let mut at = 0;
        blank(&mut at);
        let is_array = bytes.get(at) == Some(&b'[');
        if is_array {
            at += 1;
            blank(&mut at);
            if bytes.get(at) == Some(&b']') {
                return Ok(Vec::new());
            }
        }
        let mut documents = Vec::new();
        loop {
            let mut values = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter();
            let (value, length): (Value, usize) = match values.next() {
                Some(Ok(value)) => (value, values.byte_offset()),
                Some(Err(error)) => {
                    // As Python writes it, perhaps; then where it ends is to be found first.
                    let length = json_file::first_value(&bytes[at..]);
                    match json_file::read_bytes(&bytes[at..at + length]) {
                        Ok(value) => (value, length),
                        Err(_) => return Err(self.json_error(range.start + at, &error)),
                    }
                }
                None => return Err(self.error(range.start + at, "the JSON array does not end")),
            };
            let document =
                self.document(value).map_err(|what| self.error(range.start + at, &what))?;
            documents.push(document);
            at += length;
            blank(&mut at);
            match bytes.get(at) {
                None if !is_array => return Ok(documents),
                Some(b'{' | b'"') if !is_array => {}
                Some(b',') if is_array => {
                    at += 1;
                    blank(&mut at);
                }
                Some(b']') if is_array => {
                    at += 1;
                    blank(&mut at);
                    if at < bytes.len() {
                        let what = "there is more after the end of the array";
                        return Err(self.error(range.start + at, what));
                    }
                    return Ok(documents);
                }
                _ => {
                    let what = "expected a list of documents";
                    return Err(self.error(range.start + at.min(bytes.len()), what));
                }
            }
        }
    }

    /// The text of a JSON document: a string, or an object with `text` or `messages`.
    fn document(&self, value: Value) -> Result<String, String> {
        let mut object = match value {
            Value::String(text) => return Ok(text),
            Value::Object(object) => object,
            other => return Err(format!("expected a string or an object, found {}", kind(&other))),
        };
        match (object.remove("text"), object.remove("messages")) {
            (Some(Value::String(text)), _) => Ok(text),
            (None | Some(Value::Null), Some(Value::Array(messages))) => {
                let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
                match self.render {
                    Some(render) => render(&messages).map_err(|error| error.to_string()),
                    None => Ok(plain(&messages)),
                }
            }
            (None | Some(Value::Null), Some(other)) => {
                Err(format!("`messages` is {}, not a list", kind(&other)))
            }
            (None | Some(Value::Null), None) => {
                Err("the document has neither `text` nor `messages`".to_owned())
            }
            (Some(other), _) => Err(format!("`text` is {}, not a string", kind(&other))),
        }
    }

    fn utf8(&self, range: Range<usize>) -> Result<&str> {
        std::str::from_utf8(&self.bytes[range.clone()])
            .map_err(|error| self.error(range.start + error.valid_up_to(), "not valid UTF-8"))
    }

    fn require_text(&self, documents: &[String]) -> Result<()> {
        if documents.iter().all(|document| document.trim().is_empty()) {
            let path = self.path.display();
            return Err(Error::Calibration(format!(
                "{path}: too little text to calibrate on one part and to measure with another"
            )));
        }
        Ok(())
    }

    /// Number of the line that holds the byte at `offset`, counted from 1.
    fn line(&self, offset: usize) -> usize {
        self.bytes[..offset].split(|&byte| byte == b'\n').count()
    }

    fn error(&self, offset: usize, what: &str) -> Error {
        self.error_at_line(self.line(offset), what)
    }

    /// The line is counted from the element at `offset`, which is where the parser started.
    fn json_error(&self, offset: usize, error: &serde_json::Error) -> Error {
        let line = self.line(offset) + error.line().saturating_sub(1);
        self.error_at_line(line, &json_message(error))
    }

    fn error_at_line(&self, line: usize, what: &str) -> Error {
        Error::Calibration(format!("{}: line {line}: {what}", self.path.display()))
    }
}

/// Splits documents in memory: the last fifth of the text is the second part.
fn split(mut documents: Vec<String>) -> (Vec<String>, Vec<String>) {
    if let [only] = documents.as_mut_slice() {
        let cut = only.len() / 5 * 4;
        let forward = paragraph_start(only.as_bytes(), cut);
        let text_follows = !is_blank(&only.as_bytes()[forward..]);
        let at = if text_follows { forward } else { character_start(only.as_bytes(), cut) };
        let rest = only.split_off(at);
        return (documents, vec![rest]);
    }
    let total: usize = documents.iter().map(String::len).sum();
    let mut before = 0;
    let index = documents.iter().position(|document| {
        before += document.len();
        before >= total / 5 * 4
    });
    let at = index.map_or(0, |index| (index + 1).min(documents.len().saturating_sub(1)));
    let rest = documents.split_off(at);
    (documents, rest)
}

/// The ranges to read: everything if it fits, else about `limit` bytes, each range beginning and
/// ending where `start` allows it at or after an offset.
fn pieces(
    range: &Range<usize>,
    coverage: Coverage,
    limit: usize,
    start: impl Fn(usize) -> usize,
) -> Vec<Range<usize>> {
    let length = range.len();
    if length <= limit {
        return std::iter::once(range.clone()).collect();
    }
    let align = |at: usize| start(at).min(range.end);
    match coverage {
        Coverage::First => {
            std::iter::once(range.start..align(range.start + limit.max(1))).collect()
        }
        Coverage::Spread => (0..PIECES)
            .map(|piece| {
                let at = range.start + length / PIECES * piece;
                let from = if piece == 0 { at } else { align(at) };
                from..align(at + limit / PIECES)
            })
            .filter(|piece| !piece.is_empty())
            .collect(),
    }
}

/// Offset of the first line that begins at `at` or later, or the end.
fn line_start(bytes: &[u8], at: usize) -> usize {
    if at == 0 {
        return 0;
    }
    let at = at.min(bytes.len());
    position(&bytes[at - 1..], b'\n').map_or(bytes.len(), |length| at + length)
}

/// Offset of the last line that is not blank.
fn last_line_start(bytes: &[u8]) -> usize {
    let text_end = bytes.iter().rposition(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    bytes[..text_end].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

/// Offset of a place to cut plain text at or shortly after `at`: behind a blank line, else behind a
/// line, else between two characters.
fn paragraph_start(bytes: &[u8], at: usize) -> usize {
    let at = at.min(bytes.len());
    let end = bytes.len().min(at + PARAGRAPH_SEARCH);
    let mut line = line_start(&bytes[..end], at);
    let first_line = line;
    while line < end {
        let length = position(&bytes[line..end], b'\n');
        let Some(length) = length else { break };
        let blank = is_blank(&bytes[line..line + length]);
        line += length + 1;
        if blank && !is_blank(&bytes[line..end]) {
            return line;
        }
    }
    if first_line < end { first_line } else { character_start(bytes, at) }
}

/// `at`, or the few bytes more that it takes not to cut a UTF-8 character.
fn character_start(bytes: &[u8], at: usize) -> usize {
    let continuation = |byte: &&u8| **byte & 0xc0 == 0x80;
    at + bytes[at..].iter().take(3).take_while(continuation).count()
}

fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    bytes.iter().position(|&byte| byte == wanted)
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

/// A turn: `{"role": …, "content": text | [{"type": "text", "text": …}, …] | null}`.
fn message(value: Value) -> Result<ChatMessage, String> {
    let Value::Object(mut object) = value else {
        return Err(format!("a message is {}, not an object", kind(&value)));
    };
    let Some(Value::String(role)) = object.remove("role") else {
        return Err("a message has no `role`".to_owned());
    };
    let content = match object.remove("content") {
        Some(Value::String(content)) => content,
        // A turn that only calls tools.
        Some(Value::Null) => String::new(),
        Some(Value::Array(parts)) => {
            let mut content = String::new();
            for part in &parts {
                let text = part.get("text").and_then(Value::as_str);
                content.push_str(text.ok_or("a message has a part that is not text")?);
            }
            content
        }
        _ => return Err("a message has no `content`".to_owned()),
    };
    Ok(ChatMessage { role, content })
}

fn plain(messages: &[ChatMessage]) -> String {
    let mut text = String::new();
    for ChatMessage { role, content } in messages {
        text.push_str(role);
        text.push_str(": ");
        text.push_str(content);
        text.push('\n');
    }
    text
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser's message without its own line number, which counts from where it started.
fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    format!("not valid JSON: {} (column {})", &text[..end], error.column())
}
