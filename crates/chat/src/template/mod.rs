//! Chat templates: the Jinja programs that models carry, from messages to the text a model was trained on.
//!
//! They are run as transformers runs them: blocks are trimmed (`trim_blocks`, `lstrip_blocks`), Python's methods of strings and maps
//! exist, `tojson` writes what `json.dumps` would, `raise_exception` refuses a conversation. A template comes with a model that
//! anyone may have made, so it runs with bounded work and bounded memory; what exceeds them is an error.
//!
//! Time is the caller's to give: with no clock there is no `strftime_now`, and templates that ask for it first use the date they
//! name themselves, so the same messages give the same text on every day.

mod date;
mod guard;
mod json;
mod meter;
mod python;
mod shape;

use std::borrow::Cow;

use minijinja::machinery::{Vm, WhitespaceConfig, make_string_output};
use minijinja::value::{Kwargs, Value, merge_maps};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde::Serialize;

use crate::Error;
pub use date::civil;
use meter::Meter;

/// Longest template source, in bytes. The longest published ones have some 20 000.
const MAX_SOURCE: usize = 128 << 10;
/// Most instructions of one rendering. A published template takes some hundred a message.
const MAX_STEPS: u64 = 2_000_000;
/// Four times the macros that may call each other at once.
const MAX_RECURSION: usize = 200;
/// As transformers has it.
const WHITESPACE: WhitespaceConfig =
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// A chat template that compiles.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

/// What a template sees.
#[derive(Clone, Debug, Serialize)]
pub struct Context<'a> {
    /// The conversation: maps with `role`, `content` and what else the template knows.
    pub messages: &'a serde_json::Value,
    /// Tools the model may call, in the template's own form. As in transformers, a template sees `none` where there are none.
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
        guard::compile(&without_generation(source))?;
        Ok(Self { source: source.to_owned() })
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
        let source = without_generation(&self.source);
        let template = guard::compile(&source)?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_debug(false);
        environment.add_function("raise_exception", raise_exception);
        meter::install(&mut environment, &Meter::new());
        // transformers names documents too, and has none unless they are given.
        let mut values = vec![Value::from_serialize(context), Value::from_iter([("documents", Value::from(()))])];
        if let Some(seconds) = clock {
            let strftime = Value::from_function(move |format: &str| date::strftime(format, seconds));
            values.push(Value::from_iter([("strftime_now", strftime)]));
        }
        let mut text = String::new();
        let rendered = Vm::new(&environment)
            .eval(
                &template.instructions,
                merge_maps(values),
                &template.blocks,
                &mut make_string_output(&mut text),
                AutoEscape::None,
            )
            .map(drop);
        match rendered {
            Ok(()) => Ok(text),
            Err(error) => Err(refusal(&error).unwrap_or_else(|| Error::Template(describe(&error)))),
        }
    }
}

/// The template with the tag `generation` as a plain block: it marks what the assistant said, for training, and renders what is in it.
fn without_generation(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return source.into();
    }
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = rest.split_once("{%").and_then(|(before, tag)| {
        let (tag, after) = tag.split_once("%}")?;
        Some((before, tag, after))
    }) {
        let renamed = match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "with"),
            "endgeneration" => tag.replace("endgeneration", "endwith"),
            _ => tag.to_owned(),
        };
        text.extend([before, "{%", &renamed, "%}"]);
        rest = after;
    }
    text.push_str(rest);
    text.into()
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
        ErrorKind::OutOfFuel if error.detail().is_none() => format!("takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}
