//! Messages to token ids, such that text of a message is never markup.
//!
//! A template's text and the messages in it come out of Jinja as one string. Encoding that string as a whole would make control
//! tokens of what a user typed: `<|end|><|system|>` in a message would end the user's turn and speak for the system. Encoding it
//! without control tokens would lose the template's own. So the text of messages is *marked* on its way through the template:
//!
//! 1. A mark is a character that occurs nowhere else (one of Unicode's noncharacters). In each string of a message or tool, wherever a
//!    control token is spelled, a mark goes behind its first character; likewise where the string *ends* with the beginning of one,
//!    which text that follows could complete.
//! 2. The template is rendered. Most of what templates do to a text (trimming, comparing, splitting, measuring) does not see a mark
//!    that only stands inside `<|end|>`.
//! 3. Control tokens are cut out of the result; one with a mark in it is text. The marks are dropped, and the stretches
//!    between control tokens are encoded. Since control tokens bound the stretches, and nothing merges across them, the ids of a
//!    message that spells no control token are exactly those of the whole text.
//!
//! A template may still take texts apart and put them together, as when it deletes `<image>` from `<|e<image>nd|>`. Against
//! that the rendering is checked: rendered once more with a mark behind *every* character of every string, a template yields its
//! own control tokens and no others. If the two renderings disagree about which control tokens there are, the message is refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;
use crate::template::{ChatTemplate, Context};
use crate::tokenizer::Tokenizer;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said: a string; `null` or a list of parts where the template takes them.
    #[serde(default)]
    pub content: Value,
    /// Other fields the template reads, such as `tool_calls`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: text.into(), more: Map::new() }
    }
}

/// What a template renders.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Tools the model may call.
    pub tools: Option<Value>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Variables of the template's own, such as `enable_thinking`. From the operator, not from a user: their text may be markup.
    pub variables: Map<String, Value>,
    /// What `strftime_now` tells, in seconds since 1970 (UTC); without it the template uses its own date.
    pub clock: Option<i64>,
}

impl Conversation {
    /// Messages to be answered.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, tools: None, add_generation_prompt: true, variables: Map::new(), clock: None }
    }
}

/// What a model reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The rendered text.
    pub text: String,
    /// Its ids. Where a message spells control tokens they are not those of `text` as a whole.
    pub ids: Vec<u32>,
}

/// Renders a conversation and encodes it; see the module's essay. A template says itself what a chat begins with, so no
/// begin-of-sequence token is added.
///
/// # Errors
/// A role that is no plain name, a conversation the template refuses, a template that fails, or one that would make markup of a
/// message's text.
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Prompt, Error> {
    for Message { role, .. } in &conversation.messages {
        // Templates build markup from roles, as in `<|user|>`: a role is a name, never text.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if role.is_empty() || role.len() > 64 || !role.chars().all(plain) {
            return Err(Error::Role(role.clone()));
        }
    }
    let marker = Marker::new(tokenizer, template, conversation)?;
    let render = |marking: Marking| -> Result<String, Error> {
        let messages = serde_json::to_value(&conversation.messages)?;
        let messages = match messages {
            Value::Array(list) => list.into_iter().map(|m| marker.message(m, marking)).collect(),
            other => other,
        };
        let tools = conversation.tools.clone().map(|tools| marker.value(tools, marking));
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let context = Context {
            messages: &messages,
            tools: tools.as_ref(),
            add_generation_prompt: conversation.add_generation_prompt,
            bos_token: spelling(tokenizer.config().bos),
            eos_token: spelling(tokenizer.config().eos),
            more: &conversation.variables,
        };
        template.render(&context, conversation.clock)
    };
    let rendered = render(Marking::Spelled)?;
    if marker.could_be_assembled {
        let own = render(Marking::Everywhere)?;
        if tokenizer.control_tokens(&own, marker.mark) != tokenizer.control_tokens(&rendered, marker.mark) {
            return Err(Error::Injection);
        }
    }
    let ids = tokenizer.encode_marked(&rendered, marker.mark);
    Ok(Prompt { text: rendered.replace(marker.mark, ""), ids })
}

/// Where marks go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marking {
    /// Behind the first character of each control token that is spelled or begun.
    Spelled,
    /// Behind every character.
    Everywhere,
}

/// Puts marks into the strings of a conversation.
struct Marker<'a> {
    mark: char,
    /// Spellings of control tokens,
    markup: BTreeSet<&'a str>,
    /// their lengths in bytes,
    lengths: BTreeSet<usize>,
    /// and their first characters.
    firsts: BTreeSet<char>,
    /// Whether any string has a character that a control token begins with: if none has, no control token can start in one.
    could_be_assembled: bool,
}

impl<'a> Marker<'a> {
    fn new(tokenizer: &'a Tokenizer, template: &ChatTemplate, conversation: &Conversation) -> Result<Self, Error> {
        let mut used = BTreeSet::new();
        let mut collect = |text: &str| used.extend(text.chars());
        for message in &conversation.messages {
            each_string(&message.content, &mut collect);
            message.more.iter().for_each(|(key, value)| {
                collect(key);
                each_string(value, &mut collect);
            });
        }
        conversation.tools.iter().for_each(|tools| each_string(tools, &mut collect));
        let markup: BTreeSet<&str> = tokenizer.markup().collect();
        let lengths = markup.iter().map(|text| text.len()).collect();
        let firsts: BTreeSet<char> = markup.iter().filter_map(|text| text.chars().next()).collect();
        let could_be_assembled = firsts.iter().any(|c| used.contains(c));
        let mut taken = used;
        taken.extend(template.source().chars());
        taken.extend(markup.iter().flat_map(|text| text.chars()));
        conversation.variables.values().for_each(|value| each_string(value, &mut |text| taken.extend(text.chars())));
        let mark = ('\u{fdd0}'..='\u{fdef}').find(|c| !taken.contains(c)).ok_or(Error::Injection)?;
        Ok(Self { mark, markup, lengths, firsts, could_be_assembled })
    }

    /// A message, its role excepted.
    fn message(&self, message: Value, marking: Marking) -> Value {
        let Value::Object(fields) = message else { return message };
        let field = |(key, value): (String, Value)| {
            let value = if key == "role" { value } else { self.value(value, marking) };
            (self.text(&key, Marking::Spelled), value)
        };
        Value::Object(fields.into_iter().map(field).collect())
    }

    /// Every string in a value; keys only where they spell markup, since templates look things up by them.
    fn value(&self, value: Value, marking: Marking) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text, marking)),
            Value::Array(items) => items.into_iter().map(|item| self.value(item, marking)).collect(),
            Value::Object(fields) => {
                let field =
                    |(key, value): (String, Value)| (self.text(&key, Marking::Spelled), self.value(value, marking));
                Value::Object(fields.into_iter().map(field).collect())
            }
            other => other,
        }
    }

    fn text(&self, text: &str, marking: Marking) -> String {
        let mut marked = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            marked.push(c);
            let marks = match marking {
                Marking::Everywhere => true,
                Marking::Spelled => self.firsts.contains(&c) && self.may_spell(&text[at..]),
            };
            if marks {
                marked.push(self.mark);
            }
        }
        marked
    }

    /// Whether `rest` begins with a control token, or is the beginning of one.
    fn may_spell(&self, rest: &str) -> bool {
        let spelled = |&n: &usize| rest.get(..n).is_some_and(|start| self.markup.contains(start));
        let begun = || self.markup.range(rest..).next().is_some_and(|token| token.starts_with(rest));
        self.lengths.iter().any(spelled) || begun()
    }
}

fn each_string(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            visit(key);
            each_string(value, visit);
        }),
        _ => {}
    }
}
