//! Conversations in the form that a model was trained on: the chat template of its tokenizer.
//!
//! Templates are Jinja as transformers renders it: `trim_blocks` and `lstrip_blocks`, Python's
//! string methods, `raise_exception`, `strftime_now` (in UTC), `tojson` as `json.dumps` writes it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat_functions::{format_time, python_json};
use super::{chat_size, special_token};
use crate::confine::{self, Limits};
use crate::{Error, Result};

/// Steps after which a template is stopped: far more than a long conversation takes. Each can put a
/// value into another one; taking the last value apart takes 150 bytes of stack for each.
const FUEL: u64 = 2_000_000;

/// What a template may use, beside what the conversation itself takes. Real ones need about a
/// megabyte and a millisecond.
const LIMITS: Limits = Limits { memory: 256 << 20, stack: 512 << 20, time: Duration::from_secs(5) };

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of the user.
    #[must_use]
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }
}

/// The template of a model.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    special_tokens: Vec<(&'static str, String)>,
}

const SPECIAL_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

impl ChatTemplate {
    /// A template by itself, without special tokens.
    #[must_use]
    pub fn new(source: &str) -> Self {
        Self { source: without_generation_marks(source), special_tokens: Vec::new() }
    }

    /// The template of a `tokenizer_config.json`: one, or the one named "default" of several.
    pub(super) fn from_config(config: &Value) -> Option<Self> {
        let template = match config.get("chat_template") {
            Some(Value::String(template)) => template,
            Some(Value::Array(list)) => {
                let named = |name: &str| list.iter().find(|entry| entry["name"] == name);
                named("default").or(list.first()).and_then(|entry| entry["template"].as_str())?
            }
            _ => return None,
        };
        let special_tokens = SPECIAL_TOKENS
            .into_iter()
            .filter_map(|name| Some((name, special_token(config, name)?)))
            .collect();
        Some(Self { source: without_generation_marks(template), special_tokens })
    }

    /// The prompt for a conversation; with `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the template refuses the messages, [`Error::Unsupported`] if it
    /// cannot be rendered.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        self.render_at(messages, add_generation_prompt, SystemTime::now())
    }

    /// As [`Self::render`] at another time than now.
    pub fn render_at(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String> {
        chat_size::check(&self.source).map_err(|e| unusable(&e))?;
        let length: usize = messages.iter().map(|message| message.content.len()).sum();
        let limits =
            Limits { memory: LIMITS.memory.saturating_add(length.saturating_mul(64)), ..LIMITS };
        let (template, messages) = (self.clone(), messages.to_vec());
        confine::run(limits, move || template.render_here(&messages, add_generation_prompt, now))
            .unwrap_or_else(|fault| Err(unusable(&fault.to_string())))
    }

    /// Renders on the current thread.
    fn render_here(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, _> {
            Err::<Jinja, _>(
                minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Refusal),
            )
        });
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        environment
            .add_function("strftime_now", move |format: String| format_time(&format, seconds));
        for (name, token) in &self.special_tokens {
            environment.add_global(*name, Jinja::from(token.as_str()));
        }
        environment
            .render_str(
                &self.source,
                context! {
                    messages => messages,
                    add_generation_prompt => add_generation_prompt,
                    tools => Jinja::from(()),
                    documents => Jinja::from(()),
                },
            )
            .map_err(|error| failure(&error))
    }
}

/// Marks errors that the template raised itself.
#[derive(Debug)]
struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raised by the template")
    }
}

impl std::error::Error for Refusal {}

fn failure(error: &minijinja::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.is::<Refusal>() {
            let message = error.detail().unwrap_or("no reason given");
            return Error::InvalidArgument(format!(
                "the model's chat template refuses the messages: {message}"
            ));
        }
        source = cause.source();
    }
    unusable(&error.to_string())
}

fn unusable(why: &str) -> Error {
    Error::Unsupported {
        message: format!("the model's chat template cannot be rendered: {why}"),
        suggestion: "Use plain text instead of a conversation, or repair the model's chat template"
            .to_owned(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands filters their arguments so")]
fn tojson(value: Jinja, options: Kwargs) -> Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(&value).map_err(|e| {
        minijinja::Error::new(ErrorKind::BadSerialization, "not JSON").with_source(e)
    })?;
    Ok(Jinja::from_safe_string(python_json(
        &json,
        indent,
        sort_keys.unwrap_or(false),
        ascii.unwrap_or(false),
    )))
}

/// Transformers marks the assistant's words with `{% generation %}` … `{% endgeneration %}` for
/// training masks. For the text they mean nothing; `if true` keeps their effect on blanks.
fn without_generation_marks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(|c| matches!(c, '{' | '}' | '%' | '-' | '+' | ' ' | '\n'));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
