//! From a request's body to an order: every field is honoured or refused by name.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use anemone_chat::generate::Limits;
use anemone_chat::grammar::Constraint;
use anemone_chat::{Bias, Conversation, Grammar, Message, Prompt, SamplingOptions};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::form::{Form, Route};
use super::refusal::Refusal;
use super::tools;
use super::work::Order;
use crate::speak::Speaker;

/// The most answers to one prompt.
const MAX_CHOICES: u64 = 8;
/// The most prompts of one request.
const MAX_PROMPTS: usize = 32;
/// The most alternatives told for a token.
const MAX_TOP: u64 = 20;
/// The most stop strings.
const MAX_STOPS: usize = 16;

/// What requests are read against.
pub struct Desk {
    /// The model.
    pub speaker: &'static Speaker,
    /// Its name.
    pub model: String,
    /// Equal where answers are: the hash of the bundle, shortened.
    pub fingerprint: String,
    /// The most tokens of a prompt.
    pub max_prompt: usize,
    /// Its vocabulary for constraints.
    pub grammar: Result<Grammar, anemone_chat::Error>,
}

/// A request that was understood.
pub struct Asked {
    /// What to do: an order for each prompt, at least one, all with as many choices.
    pub orders: Vec<Order>,
    /// How to answer.
    pub form: Form,
    /// Whether to answer as it comes.
    pub stream: bool,
    /// Whose turn it takes; the connection's, where the request names nobody.
    pub party: Option<String>,
}

impl Desk {
    /// The desk of a model, for prompts of at most `max_prompt` tokens, and in no case more than its context holds.
    pub fn new(speaker: &'static Speaker, max_prompt: Option<usize>) -> Self {
        let (manifest, contract) = (speaker.engine.manifest(), speaker.engine.contract());
        // One position is left for the answer's first token.
        let longest = contract.context.saturating_sub(1);
        Self {
            speaker,
            model: manifest.name.clone(),
            fingerprint: manifest.hash().chars().take(12).collect(),
            max_prompt: max_prompt.unwrap_or(longest).min(longest),
            grammar: Grammar::new(&speaker.voice.tokenizer, contract.vocab, &contract.tokens.stop),
        }
    }

    /// Reads a request.
    pub fn read(&self, route: Route, mut fields: Fields, deadline: Instant) -> Result<Asked, Refusal> {
        self.model(&mut fields)?;
        let (logprobs, top_logprobs) = match route {
            Route::Chat => chat_logprobs(&mut fields)?,
            Route::Text => text_logprobs(&mut fields)?,
        };
        let sampling = SamplingOptions { logprobs: logprobs.then_some(top_logprobs), ..sampling(&mut fields)? };
        let bias = self.bias(&mut fields)?;
        let limits = limits(route, &mut fields)?;
        let choices = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1) as usize;
        let mut constraint = constraint(&mut fields)?.map(|constraint| (constraint, "response_format"));
        let unique = RandomState::new().hash_one(());
        let mut form = Form::new(route, &self.model, &self.fingerprint, unique);
        form.logprobs = logprobs;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                return Err(Refusal::field("stream_options", "only with `stream`"));
            }
            form.include_usage = options.boolean("include_usage")?.unwrap_or(false);
            options.neutral("include_obfuscation", json!(false))?;
            options.finish()?;
        }
        let party = fields.string("user")?;
        for (name, value) in [("store", json!(false)), ("service_tier", json!("auto"))] {
            fields.neutral(name, value)?;
        }
        let prompts = match route {
            Route::Chat => {
                let Offered { tools, names, call } = offered(&mut fields)?;
                if call.is_some() && constraint.is_some() {
                    return Err(Refusal::unsupported(
                        "tool_choice",
                        "a call that must be made has a form of its own; leave `response_format` out",
                    ));
                }
                form.tools = names;
                constraint = constraint.or(call.map(|schema| (Constraint::JsonSchema(schema), "tools")));
                vec![self.chat_prompt(&mut fields, tools)?]
            }
            Route::Text => self.text_prompts(&mut fields)?,
        };
        fields.finish()?;
        let field = if route == Route::Chat { "messages" } else { "prompt" };
        prompts.iter().try_for_each(|prompt| self.check_length(prompt, field))?;
        // Compiled last: it costs most.
        let matcher = match (constraint, &self.grammar) {
            (None, _) => None,
            (Some((constraint, of)), Ok(grammar)) => {
                Some(grammar.matcher(&constraint).map_err(|error| Refusal::field(of, error))?)
            }
            (Some((_, of)), Err(error)) => return Err(Refusal::unsupported(of, error)),
        };
        let matcher = if logprobs { matcher.map(|m| m.looking()) } else { matcher };
        let order = |(number, prompt): (usize, Vec<u32>)| {
            // All choices of a request are numbered in one row, and so are their seeds.
            let seed = sampling.seed.wrapping_add((number * choices) as u64);
            let (sampling, limits) = (SamplingOptions { seed, ..sampling.clone() }, limits.clone());
            let (bias, matcher) = (bias.clone(), matcher.clone());
            Order { prompt, sampling, bias, limits, choices, matcher, deadline }
        };
        Ok(Asked { orders: prompts.into_iter().enumerate().map(order).collect(), form, stream, party })
    }

    fn model(&self, fields: &mut Fields) -> Result<(), Refusal> {
        match fields.string("model")? {
            Some(name) if name != self.model => {
                let message = format!("there is no model `{name}` here; this server has `{}`", self.model);
                let refusal = Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message);
                Err(Refusal { param: Some("model".into()), ..refusal })
            }
            _ => Ok(()),
        }
    }

    /// OpenAI's penalties, and what it adds to single tokens.
    fn bias(&self, fields: &mut Fields) -> Result<Bias, Refusal> {
        let vocab = self.speaker.engine.contract().vocab;
        let mut bias = Bias {
            presence: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            ..Bias::default()
        };
        let Some(mut tokens) = fields.object("logit_bias")? else { return Ok(bias) };
        for name in tokens.names() {
            let id = name.parse::<u32>().ok().filter(|&id| (id as usize) < vocab);
            let wrong = || Refusal::field("logit_bias", format_args!("expected token ids below {vocab} for names"));
            let id = id.ok_or_else(wrong)?;
            if let Some(value) = tokens.number(&name, -100.0..=100.0)? {
                bias.tokens.insert(id, value);
            }
        }
        Ok(bias)
    }

    fn chat_prompt(&self, fields: &mut Fields, tools: Option<Value>) -> Result<Vec<u32>, Refusal> {
        let Some(Value::Array(list)) = fields.take("messages") else {
            return Err(Refusal::field("messages", "expected a list of messages"));
        };
        if list.is_empty() {
            return Err(Refusal::field("messages", "expected at least one message"));
        }
        let messages = list.into_iter().enumerate().map(|(i, m)| message(i, m)).collect::<Result<_, _>>()?;
        let mut conversation = Conversation::new(messages);
        if let Some(variables) = fields.take("chat_template_kwargs") {
            let wrong = || Refusal::field("chat_template_kwargs", "expected an object of numbers and booleans");
            // Text of a variable could be markup, so none is taken from outside.
            let plain = |map: &Map<String, Value>| map.values().all(|v| v.is_boolean() || v.is_number());
            conversation.variables = variables.as_object().filter(|map| plain(map)).ok_or_else(wrong)?.clone();
        }
        let prompt = match tools {
            Some(tools) => self.with_tools(conversation, tools)?,
            None => self.rendered(&conversation)?,
        };
        match prompt.ids.is_empty() {
            true => Err(Refusal::field("messages", "the model's template makes no prompt of them")),
            false => Ok(prompt.ids),
        }
    }

    fn rendered(&self, conversation: &Conversation) -> Result<Prompt, Refusal> {
        self.speaker.voice.prompt(conversation).map_err(|error| match error {
            anemone_chat::Error::Template(_) => Refusal::field("messages", error),
            other => other.into(),
        })
    }

    /// The prompt with tools where the template has a place for them: the variable `tools`, or a field of the system message.
    /// Whether it has one is seen by what they change.
    fn with_tools(&self, mut conversation: Conversation, tools: Value) -> Result<Prompt, Refusal> {
        let without = self.rendered(&conversation)?;
        let mut in_message = conversation.clone();
        if in_message.messages.first().is_none_or(|m| m.role != "system") {
            in_message.messages.insert(0, Message::new("system", ""));
        }
        let bare = self.rendered(&in_message);
        let functions: Vec<_> = tools.as_array().into_iter().flatten().map(|tool| &tool["function"]).collect();
        in_message.messages[0].more.insert("tools".into(), json!(functions).to_string().into());
        conversation.tools = Some(tools);
        let prompt = self.rendered(&conversation)?;
        if prompt != without {
            return Ok(prompt);
        }
        match (self.rendered(&in_message), bare) {
            (Ok(prompt), Ok(bare)) if prompt != bare => Ok(prompt),
            _ => Err(Refusal::unsupported("tools", "the model's template has no place for tools")),
        }
    }

    /// One prompt, or a list of them; each a text or token ids.
    fn text_prompts(&self, fields: &mut Fields) -> Result<Vec<Vec<u32>>, Refusal> {
        for (name, neutral) in [("echo", json!(false)), ("suffix", json!("")), ("best_of", json!(1))] {
            fields.neutral(name, neutral)?;
        }
        match fields.take("prompt") {
            Some(Value::Array(list)) if list.iter().any(|v| v.is_string() || v.is_array()) => {
                if list.len() > MAX_PROMPTS {
                    let message = format_args!("{} prompts; at most {MAX_PROMPTS} in one request", list.len());
                    return Err(Refusal::field("prompt", message));
                }
                list.into_iter().map(|prompt| self.text_prompt(Some(prompt))).collect()
            }
            prompt => Ok(vec![self.text_prompt(prompt)?]),
        }
    }

    fn text_prompt(&self, prompt: Option<Value>) -> Result<Vec<u32>, Refusal> {
        match prompt {
            Some(Value::String(text)) => {
                let ids = self.speaker.voice.text(&text).ids;
                if ids.is_empty() { Err(Refusal::field("prompt", "is empty")) } else { Ok(ids) }
            }
            ids => self.ids(ids, "prompt"),
        }
    }

    /// Token ids of a field, as many as a prompt may have.
    pub fn ids(&self, value: Option<Value>, field: &str) -> Result<Vec<u32>, Refusal> {
        let vocab = self.speaker.engine.contract().vocab as u64;
        let id = |v: &Value| v.as_u64().filter(|&id| id < vocab).map(|id| id as u32);
        let ids: Option<Vec<u32>> = value.as_ref().and_then(Value::as_array).and_then(|l| l.iter().map(id).collect());
        match ids {
            Some(ids) if !ids.is_empty() => self.check_length(&ids, field).map(|()| ids),
            _ => {
                let text = if field == "prompt" { "a string, a list of strings or lists, or " } else { "" };
                let message = format_args!("expected {text}one list of token ids below {vocab}, not empty");
                Err(Refusal::field(field, message))
            }
        }
    }

    fn check_length(&self, prompt: &[u32], field: &str) -> Result<(), Refusal> {
        let (longest, found) = (self.max_prompt, prompt.len());
        if found <= longest {
            return Ok(());
        }
        let message = format!("`{field}`: {found} tokens, and a prompt may have at most {longest} here");
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message);
        Err(Refusal { param: Some(field.to_owned()), ..refusal })
    }
}

/// The tools of a request.
struct Offered {
    /// What the template is given.
    tools: Option<Value>,
    /// What an answer may call.
    names: BTreeSet<String>,
    /// The schema of a call, where one must be made.
    call: Option<Value>,
}

/// The tools that the model may call, or must.
fn offered(fields: &mut Fields) -> Result<Offered, Refusal> {
    fields.neutral("parallel_tool_calls", json!(true))?;
    let choice = fields.take("tool_choice").unwrap_or_else(|| "auto".into());
    let tools = fields.take("tools").unwrap_or_else(|| json!([]));
    let names = tools::names(&tools)?;
    let wrong = |problem: &str| Refusal::field("tool_choice", problem);
    let call = match (choice.as_str(), choice["function"]["name"].as_str()) {
        (Some("none"), _) => return Ok(Offered { tools: None, names: BTreeSet::new(), call: None }),
        (Some("auto"), _) => None,
        (Some("required"), _) if names.is_empty() => return Err(wrong("a call is required, and there are no `tools`")),
        (Some("required"), _) => Some(tools::call_schema(&tools, None)),
        (_, Some(name)) if choice["type"] == "function" => match names.contains(name) {
            true => Some(tools::call_schema(&tools, Some(name))),
            false => return Err(wrong("names a function that is not among `tools`")),
        },
        _ => {
            return Err(wrong(
                "expected none, auto, required or `{\"type\": \"function\", \"function\": {\"name\": ...}}`",
            ));
        }
    };
    Ok(Offered { tools: Some(tools).filter(|_| !names.is_empty()), names, call })
}

/// A message: its role, its text, and what else templates read.
fn message(index: usize, message: Value) -> Result<Message, Refusal> {
    let mut fields = Fields::within(message, format!("messages[{index}]"))?;
    let role = match fields.string("role")?.as_deref() {
        // OpenAI's newer name; templates know the older.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => {
            let expected = "expected system, developer, user, assistant or tool";
            return Err(Refusal::field(&fields.name("role"), expected));
        }
    }
    .to_owned();
    let calls = match fields.take("tool_calls") {
        None => None,
        Some(calls) if role == "assistant" => Some(tools::earlier(calls).ok_or_else(|| {
            let expected = "expected a list of calls with JSON objects for arguments";
            Refusal::field(&fields.name("tool_calls"), expected)
        })?),
        Some(_) => return Err(Refusal::field(&fields.name("tool_calls"), "only of the assistant")),
    };
    let content = match fields.take("content") {
        None if calls.is_some() => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let part = |p: Value| match (p.get("type").and_then(Value::as_str), p.get("text").and_then(Value::as_str)) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                _ => Err(Refusal::unsupported(&fields.name("content"), "only parts of type `text` can be read")),
            };
            parts.into_iter().map(part).collect::<Result<String, _>>()?
        }
        _ => {
            let expected = "expected a string, or a list of parts of type `text`";
            return Err(Refusal::field(&fields.name("content"), expected));
        }
    };
    let mut more = Map::new();
    more.extend(calls.map(|calls| ("tool_calls".to_owned(), calls)));
    for field in ["name", "tool_call_id"] {
        more.extend(fields.string(field)?.map(|text| (field.to_owned(), text.into())));
    }
    // What OpenAI's own answers have, and clients send back.
    for field in ["refusal", "annotations"] {
        fields.neutral(field, json!([]))?;
    }
    fields.finish()?;
    let mut message = Message::new(&role, &content);
    message.more = more;
    Ok(message)
}

/// OpenAI's defaults, and three fields more that its clients send as extra body.
fn sampling(fields: &mut Fields) -> Result<SamplingOptions, Refusal> {
    let base = SamplingOptions::greedy();
    Ok(SamplingOptions {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        top_k: fields.integer("top_k", 0..=u64::from(u32::MAX))?.unwrap_or(0) as usize,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(1.0),
        seed: fields.integer("seed", 0..=u64::MAX)?.unwrap_or_else(|| RandomState::new().hash_one(())),
        ..base
    })
}

fn limits(route: Route, fields: &mut Fields) -> Result<Limits, Refusal> {
    let mut max_tokens = fields.integer("max_tokens", 1..=u64::MAX)?;
    if route == Route::Chat {
        let newer = fields.integer("max_completion_tokens", 1..=u64::MAX)?;
        if newer.is_some() && max_tokens.is_some() {
            return Err(Refusal::field("max_tokens", "give this or `max_completion_tokens`, not both"));
        }
        max_tokens = max_tokens.or(newer);
    }
    let wrong =
        || Refusal::field("stop", format_args!("expected a string or a list of at most {MAX_STOPS}, none empty"));
    let stop_strings: Vec<String> = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) if list.len() <= MAX_STOPS => {
            list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    if stop_strings.iter().any(String::is_empty) {
        return Err(wrong());
    }
    Ok(Limits { max_tokens: max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)), stop_strings })
}

/// `logprobs: true`, and how many alternatives.
fn chat_logprobs(fields: &mut Fields) -> Result<(bool, usize), Refusal> {
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    match fields.integer("top_logprobs", 0..=MAX_TOP)? {
        Some(_) if !logprobs => Err(Refusal::field("top_logprobs", "only with `logprobs`")),
        top => Ok((logprobs, top.unwrap_or(0) as usize)),
    }
}

/// On the older route the number of alternatives turns them on.
fn text_logprobs(fields: &mut Fields) -> Result<(bool, usize), Refusal> {
    let top = fields.integer("logprobs", 0..=MAX_TOP)?;
    Ok((top.is_some(), top.unwrap_or(0) as usize))
}

/// The form the answer is held to.
fn constraint(fields: &mut Fields) -> Result<Option<Constraint>, Refusal> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind = format.string("type")?;
    let text = |format: &mut Fields, name: &str| {
        let missing = || Refusal::field(&format!("response_format.{name}"), "expected a string");
        format.string(name)?.ok_or_else(missing)
    };
    let constraint = match kind.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Constraint::JsonSchema(json!({"type": "object"}))),
        Some("regex") => Some(Constraint::Regex(text(&mut format, "regex")?)),
        Some("lark") => Some(Constraint::Lark(text(&mut format, "lark")?)),
        Some("json_schema") => {
            let missing = |name: &str| Refusal::field(&format!("response_format.{name}"), "expected an object");
            let mut inner = format.object("json_schema")?.ok_or_else(|| missing("json_schema"))?;
            let schema = inner.take("schema").filter(Value::is_object).ok_or_else(|| missing("json_schema.schema"))?;
            // Names and describes the schema to people; every schema is held to strictly.
            inner.string("name")?;
            inner.string("description")?;
            inner.boolean("strict")?;
            inner.finish()?;
            Some(Constraint::JsonSchema(schema))
        }
        _ => {
            return Err(Refusal::field(
                "response_format.type",
                "expected text, json_object, json_schema, regex or lark",
            ));
        }
    };
    format.finish()?;
    Ok(constraint)
}
