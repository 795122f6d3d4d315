//! Prompts for gates that run the whole chain: from a file, or a few that suit any model that chats.

use std::path::Path;

use anemone_chat::{Conversation, Message, Special, Voice};
use serde::Deserialize;

/// A prompt, and the answer where somebody knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What findings call it.
    pub name: String,
    /// Its tokens; at least one.
    pub ids: Vec<u32>,
    /// Greedy tokens that somebody else's program gave.
    pub expected: Option<Vec<u32>>,
}

/// A line of a prompt file.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Option<serde_json::Value>,
    #[serde(default, alias = "ids")]
    prompt_ids: Option<Vec<u32>>,
    #[serde(default)]
    messages: Option<Vec<LineMessage>>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    expected_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct LineMessage {
    role: String,
    content: String,
}

/// Why prompts could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not a prompt.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A prompt could not be encoded.
    #[error("prompt `{name}`: {source}")]
    Encode {
        /// The prompt.
        name: String,
        /// What the tokenizer or template said.
        source: anemone_chat::Error,
    },
}

/// Reads a file of JSON lines: `messages`, `text` or `prompt_ids`, and `expected_ids` where the answer is known.
pub fn read(path: &Path, voice: &Voice) -> Result<Vec<Prompt>, Error> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: name.clone(), source })?;
    let mut prompts = Vec::new();
    for (i, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let fault = |reason: String| Error::Line { path: name.clone(), line: i + 1, reason };
        let line: Line = serde_json::from_str(text).map_err(|e| fault(e.to_string()))?;
        let label =
            line.id.as_ref().map_or_else(|| (i + 1).to_string(), |id| id.to_string().trim_matches('"').to_owned());
        let ids = match (line.prompt_ids, line.messages, line.text) {
            (Some(ids), _, _) => ids,
            (None, Some(messages), _) => {
                let messages = messages.iter().map(|m| Message::new(&m.role, &m.content)).collect();
                voice.prompt(&Conversation::new(messages)).map_err(|e| fault(e.to_string()))?.ids
            }
            (None, None, Some(text)) => voice.text(&text).ids,
            (None, None, None) => return Err(fault("expected `messages`, `text` or `prompt_ids`".into())),
        };
        if ids.is_empty() {
            return Err(fault("the prompt has no token".into()));
        }
        prompts.push(Prompt { name: label, ids, expected: line.expected_ids });
    }
    Ok(prompts)
}

/// Questions that a model of any size was trained towards, each with an answer that any of them finds likely.
const QUESTIONS: [(&str, &str); 12] = [
    (
        "write hello world in Erlang",
        "```erlang\n-module(hello).\n-export([start/0]).\n\nstart() -> io:format(\"Hello, World!~n\").\n```",
    ),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is 2 + 2?", "2 + 2 = 4"),
    ("Name three colors.", "Red, blue, and green."),
    ("What do bees make?", "Bees make honey."),
    ("What comes after Monday?", "Tuesday comes after Monday."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("What is the largest planet in our solar system?", "The largest planet in our solar system is Jupiter."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    (
        "What is the boiling point of water?",
        "The boiling point of water is 100 degrees Celsius (212 degrees Fahrenheit).",
    ),
    (
        "Write one sentence about the sea.",
        "The sea is a vast and beautiful expanse of water that covers most of the Earth.",
    ),
];

/// The first `count` of the built-in questions, as the model's template frames them; without a template, as plain text.
pub fn builtin(voice: &Voice, count: usize) -> Result<Vec<Prompt>, Error> {
    let prompt = |(question, _): &(&str, &str)| {
        Ok(Prompt { name: (*question).into(), ids: framed(voice, question)?, expected: None })
    };
    QUESTIONS.iter().take(count).map(prompt).collect()
}

/// The built-in questions with their answers, for who asks how likely a model finds them.
pub fn builtin_answered(voice: &Voice) -> Result<Vec<Prompt>, Error> {
    let prompt = |(question, answer): &(&str, &str)| {
        let expected = Some(voice.tokenizer.encode(answer, Special::AsText));
        Ok(Prompt { name: (*question).into(), ids: framed(voice, question)?, expected })
    };
    QUESTIONS.iter().map(prompt).collect()
}

fn framed(voice: &Voice, question: &str) -> Result<Vec<u32>, Error> {
    if voice.template.is_none() {
        return Ok(voice.text(question).ids);
    }
    let conversation = Conversation::new(vec![Message::new("user", question)]);
    let prompt = voice.prompt(&conversation).map_err(|source| Error::Encode { name: question.to_owned(), source })?;
    Ok(prompt.ids)
}
