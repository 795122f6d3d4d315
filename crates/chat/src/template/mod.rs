//! Chat templates: the Jinja programs that models carry, from messages to the text a model was trained on.
//!
//! They are run as transformers runs them: blocks are trimmed (`trim_blocks`, `lstrip_blocks`), Python's methods of strings and maps
//! exist, `tojson` writes what `json.dumps` would, `raise_exception` refuses a conversation. A template comes with a model that
//! anyone may have made, so it runs with bounded work and bounded memory; what exceeds them is an error.
//!
//! Time is the caller's to give: with no clock there is no `strftime_now`, and templates that ask for it first use the date they
//! name themselves, so the same messages give the same text on every day.

mod date;
mod json;

use std::sync::Arc;

use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use crate::Error;

/// Longest template source, in bytes. The longest published ones have some 20 000.
const MAX_SOURCE: usize = 256 << 10;
/// Most instructions of one rendering. A published template takes some hundred a message.
const MAX_STEPS: u64 = 2_000_000;
/// Longest rendered text, in bytes: far more than the longest context holds.
const MAX_OUTPUT: usize = 16 << 20;

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
}

/// What a template sees.
#[derive(Clone, Debug, Serialize)]
pub struct Context<'a> {
    /// The conversation: maps with `role`, `content` and what else the template knows.
    pub messages: &'a serde_json::Value,
    /// Tools the model may call, in the template's own form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<&'a serde_json::Value>,
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Spelling of the begin-of-sequence token, empty where there is none.
    pub bos_token: &'a str,
    /// Spelling of the end-of-sequence token, empty where there is none.
    pub eos_token: &'a str,
    /// Variables of this template's own, such as `enable_thinking`.
    #[serde(flatten)]
    pub more: &'a serde_json::Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// One that is no template, with the line, or is too long.
    pub fn new(source: &str) -> Result<Self, Error> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template(format!("{} bytes long; at most {MAX_SOURCE} are read", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(100);
        environment.add_filter("tojson", json::dumps);
        environment.add_function("raise_exception", raise_exception);
        environment
            .add_template_owned("chat_template", source.to_owned())
            .map_err(|e| Error::Template(describe(&e)))?;
        Ok(Self { environment: Arc::new(environment), source: source.to_owned() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation. `clock` is the time that `strftime_now` tells, in seconds since 1970 (UTC).
    ///
    /// # Errors
    /// [`Error::Conversation`] when the template refuses it, [`Error::Template`] when the template itself fails or exceeds its bounds.
    pub fn render(&self, context: &Context<'_>, clock: Option<i64>) -> Result<String, Error> {
        let template = self.environment.get_template("chat_template").map_err(|e| Error::Template(describe(&e)))?;
        let mut values = vec![Value::from_serialize(context)];
        if let Some(seconds) = clock {
            let strftime = Value::from_function(move |format: &str| date::strftime(format, seconds));
            values.push(Value::from_iter([("strftime_now", strftime)]));
        }
        let mut output = Bounded { text: Vec::new(), left: MAX_OUTPUT };
        let rendered = template.render_captured_to(minijinja::value::merge_maps(values), &mut output).map(drop);
        match rendered {
            Ok(()) => String::from_utf8(output.text).map_err(|e| Error::Template(e.to_string())),
            Err(_) if output.left == 0 => Err(Error::Template(format!("renders more than {MAX_OUTPUT} bytes"))),
            Err(error) => Err(refusal(&error).unwrap_or_else(|| Error::Template(describe(&error)))),
        }
    }
}

/// Marks an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &str, _: Kwargs) -> Result<Value, minijinja::Error> {
    let raised = Raised(message.to_owned());
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(raised))
}

/// The message of `raise_exception`, if that is what ended the rendering.
fn refusal(error: &minijinja::Error) -> Option<Error> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(Error::Conversation(message.clone()));
        }
        cause = error.source();
    }
    None
}

/// One line of what went wrong, with the template's line.
fn describe(error: &minijinja::Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// Takes so many bytes and no more.
struct Bounded {
    text: Vec<u8>,
    left: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.left {
            self.left = 0;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.left -= bytes.len();
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
