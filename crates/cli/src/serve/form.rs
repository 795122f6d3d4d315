//! The form of answers on each route: whole, and as the chunks of a stream.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anemone_chat::generate::Finish;
use serde_json::{Value, json};

use super::refusal::Refusal;
use super::tools;
use super::work::{Event, Token, Usage};

/// Which route an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// What every part of an answer carries.
pub struct Form {
    route: Route,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    /// Whether the last chunk of a stream tells the usage.
    pub include_usage: bool,
    /// Whether tokens come with their log-probabilities.
    pub logprobs: bool,
    /// Names of the tools that an answer may call.
    pub tools: BTreeSet<String>,
}

/// One answer, collected.
#[derive(Clone, Default)]
pub struct Collected {
    /// Its text.
    pub text: String,
    /// Its tokens, if they were asked for.
    pub tokens: Vec<Token>,
    /// What ended it.
    pub finish: Option<Finish>,
}

impl Collected {
    /// Adds what an event tells of one of several answers.
    pub fn add(all: &mut [Self], event: Event) {
        match event {
            Event::Text { choice, text, tokens } => {
                all[choice].text.push_str(&text);
                all[choice].tokens.extend(tokens);
            }
            Event::End { choice, finish } => all[choice].finish = Some(finish),
            Event::Done(_) | Event::Failed(_) => {}
        }
    }
}

/// How far the chunks of a stream are.
pub struct Chunks {
    /// What came of answers that may be calls of tools,
    held: Vec<Collected>,
    /// which answers have their opening chunk,
    begun: Vec<bool>,
    /// and how many characters of each are out.
    sent: Vec<usize>,
}

impl Chunks {
    /// Of so many answers.
    pub fn new(choices: usize) -> Self {
        Self { held: vec![Collected::default(); choices], begun: vec![false; choices], sent: vec![0; choices] }
    }

    /// The chunks that tell of an event.
    pub fn of(&mut self, form: &Form, event: Event) -> Vec<Value> {
        let (choice, chunks) = match event {
            Event::Text { .. } if !form.tools.is_empty() => {
                Collected::add(&mut self.held, event);
                return Vec::new();
            }
            Event::Text { choice, text, tokens } => {
                let chunk = form.text(choice, &text, &tokens, self.sent[choice]);
                self.sent[choice] += text.chars().count();
                (choice, vec![chunk])
            }
            Event::End { choice, .. } if !form.tools.is_empty() => {
                Collected::add(&mut self.held, event);
                (choice, form.late(choice, &self.held[choice]))
            }
            Event::End { choice, finish } => (choice, vec![form.closing(choice, finish)]),
            Event::Done(usage) => return form.usage(&usage).into_iter().collect(),
            Event::Failed(refusal) => return vec![Refusal::json(&refusal)],
        };
        let first = !std::mem::replace(&mut self.begun[choice], true);
        let opening = if first { form.opening(choice) } else { None };
        opening.into_iter().chain(chunks).collect()
    }
}

impl Form {
    /// An answer of a model; the fingerprint is equal where answers are.
    pub fn new(route: Route, model: &str, fingerprint: &str, unique: u64) -> Self {
        let id = match route {
            Route::Chat => format!("chatcmpl-{unique:016x}"),
            Route::Text => format!("cmpl-{unique:016x}"),
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (model, fingerprint) = (model.to_owned(), fingerprint.to_owned());
        Self { route, id, created, model, fingerprint, include_usage: false, logprobs: false, tools: BTreeSet::new() }
    }

    /// The whole answer.
    pub fn whole(&self, choices: &[Collected], usage: &Usage) -> Value {
        let choices = choices.iter().enumerate().map(|(index, c)| {
            let finish = c.finish.map(finish_reason);
            let logprobs = self.logprobs(&c.tokens, 0);
            match self.route {
                Route::Chat => {
                    let mut message = json!({"role": "assistant", "content": c.text, "refusal": null});
                    let calls = self.calls(index, c);
                    if let Some(calls) = &calls {
                        message["content"] = Value::Null;
                        message["tool_calls"] = json!(calls);
                    }
                    let finish = if calls.is_some() { Some(CALLS) } else { finish };
                    json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
                }
                Route::Text => {
                    json!({"index": index, "text": c.text, "logprobs": logprobs, "finish_reason": finish})
                }
            }
        });
        let object = match self.route {
            Route::Chat => "chat.completion",
            Route::Text => "text_completion",
        };
        self.envelope(object, choices.collect(), Some(usage))
    }

    /// The calls of tools that an answer consists of, if it does.
    fn calls(&self, index: usize, answer: &Collected) -> Option<Vec<Value>> {
        let calls = tools::calls(&answer.text, &self.tools).filter(|_| answer.finish == Some(Finish::Stop))?;
        let id = |k: usize| format!("call_{}_{index}_{k}", self.id.trim_start_matches("chatcmpl-"));
        Some(calls.iter().enumerate().map(|(k, call)| call.json(&id(k))).collect())
    }

    /// The chunks of an answer that may be calls, which is known when it is whole.
    fn late(&self, index: usize, answer: &Collected) -> Vec<Value> {
        let finish = answer.finish.unwrap_or(Finish::Stop);
        let Some(calls) = self.calls(index, answer) else {
            return vec![self.text(index, &answer.text, &answer.tokens, 0), self.closing(index, finish)];
        };
        let numbered = calls.into_iter().enumerate().map(|(k, mut call)| {
            call["index"] = k.into();
            call
        });
        let delta = json!({"tool_calls": numbered.collect::<Vec<_>>()});
        let mut closing = self.delta(index, json!({}), Some(finish), &[], 0);
        closing["finish_reason"] = CALLS.into();
        vec![self.chunk(vec![self.delta(index, delta, None, &answer.tokens, 0)]), self.chunk(vec![closing])]
    }

    /// The chunk before an answer's text, where the route has one.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.route == Route::Chat).then(|| self.chunk(vec![self.delta(index, delta, None, &[], 0)]))
    }

    /// A chunk of text; `offset` is where it begins in its answer.
    pub fn text(&self, index: usize, text: &str, tokens: &[Token], offset: usize) -> Value {
        self.chunk(vec![match self.route {
            Route::Chat => self.delta(index, json!({"content": text}), None, tokens, offset),
            Route::Text => self.delta(index, json!(text), None, tokens, offset),
        }])
    }

    /// The chunk behind an answer's text.
    pub fn closing(&self, index: usize, finish: Finish) -> Value {
        let empty = if self.route == Route::Chat { json!({}) } else { json!("") };
        self.chunk(vec![self.delta(index, empty, Some(finish), &[], 0)])
    }

    /// The chunk behind all answers, if the usage was asked for.
    pub fn usage(&self, usage: &Usage) -> Option<Value> {
        self.include_usage.then(|| self.envelope(self.chunk_object(), Vec::new(), Some(usage)))
    }

    fn delta(&self, index: usize, text: Value, finish: Option<Finish>, tokens: &[Token], offset: usize) -> Value {
        let content = if self.route == Route::Chat { "delta" } else { "text" };
        json!({
            "index": index,
            content: text,
            "logprobs": if tokens.is_empty() { Value::Null } else { self.logprobs(tokens, offset) },
            "finish_reason": finish.map(finish_reason),
        })
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        self.envelope(self.chunk_object(), choices, None)
    }

    fn chunk_object(&self) -> &'static str {
        match self.route {
            Route::Chat => "chat.completion.chunk",
            Route::Text => "text_completion",
        }
    }

    fn envelope(&self, object: &str, choices: Vec<Value>, usage: Option<&Usage>) -> Value {
        let mut value = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        });
        if let Some(u) = usage {
            let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
            value["usage"] = json!({
                "prompt_tokens": u.prompt,
                "completion_tokens": u.drawn,
                "total_tokens": u.prompt + u.drawn,
                "prompt_tokens_details": {"cached_tokens": u.cached},
                "completion_tokens_details": {"forced_tokens": u.forced},
            });
            value["timings"] = json!({
                "queue_ms": ms(u.waited),
                "prompt_ms": ms(u.prompt_time),
                "decode_ms": ms(u.decode_time),
                "computed_tokens": u.computed,
                "drafted_tokens": u.drafted,
                "accepted_tokens": u.accepted,
            });
        }
        value
    }

    /// Log-probabilities as the route has them: a list of objects, or four parallel lists.
    fn logprobs(&self, tokens: &[Token], offset: usize) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.route {
            Route::Chat => {
                let entry = |bytes: &[u8], p: f32| json!({"token": text(bytes), "logprob": p, "bytes": bytes});
                let content = tokens.iter().map(|t| {
                    let mut value = entry(&t.bytes, t.logprob);
                    value["top_logprobs"] = t.top.iter().map(|(bytes, p)| entry(bytes, *p)).collect();
                    value
                });
                json!({"content": content.collect::<Vec<_>>(), "refusal": null})
            }
            Route::Text => {
                let top = |t: &Token| t.top.iter().map(|(b, p)| (text(b), json!(p))).collect::<serde_json::Map<_, _>>();
                let starts = tokens.iter().scan(offset, |at, t| {
                    let start = *at;
                    *at += text(&t.bytes).chars().count();
                    Some(start)
                });
                json!({
                    "tokens": tokens.iter().map(|t| text(&t.bytes)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": starts.collect::<Vec<_>>(),
                })
            }
        }
    }
}

/// OpenAI's word for an answer that calls tools.
const CALLS: &str = "tool_calls";

/// OpenAI's word. A full context is a length like any other.
fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Cancelled => "stop",
        Finish::Length | Finish::Context => "length",
    }
}
