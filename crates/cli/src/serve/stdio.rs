//! JSON lines: a request a line on stdin, an answer a line on stdout, one after the other. For a host program that starts the
//! model as its child, as Erlang's ports do. The first line out is `READY` and what is understood; nothing but answers follows it.
//!
//! Two kinds of request:
//!
//! - that of the published runtime, greedy and in tokens: `{"prompt_ids": [...], "max_new": N, "profile": true}` gives `{"ok": true,
//!   "generated_ids": [...], "text": ..., "timing": {...}, "profile": {...}}`, and a failure `{"ok": false, "error": ...}`. The
//!   stop token is among the ids, and `timing` has that runtime's fields; of its `profile`, whose times are those of its own
//!   stages, there is only the number of calls;
//! - the body of a chat completion (with `messages`) or of a completion (with `prompt`), which gives the body that HTTP would. With
//!   `stream` each chunk is a line, and the last of them has the usage.
//!
//! An `id` is given back with every line that answers it. State is kept between lines as the server keeps it.

use std::io::{BufRead, Read, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anemone_chat::generate::{Limits, generate};
use anemone_chat::{Control, Pool, Sampler, SamplingOptions};
use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use super::Bounds;
use super::fields::Fields;
use super::form::{Chunks, Collected, Route};
use super::refusal::Refusal;
use super::request::{Asked, Desk};
use super::work::{Event, Progress, Task, Usage};
use crate::speak::Speaker;

/// Answers until the end of input.
pub fn run(speaker: Speaker, bounds: &Bounds) -> Result<()> {
    // Held to the end of the process, which is when this function returns.
    let speaker: &'static Speaker = Box::leak(Box::new(speaker));
    let pool: &'static Pool<'static> = Box::leak(Box::new(Pool::new(&speaker.engine, bounds.cache)));
    let desk = Desk::new(speaker, bounds.prompt);
    let (mut input, mut out) = (std::io::stdin().lock(), std::io::stdout().lock());
    let fields =
        json!({"prompt_ids": "int[]", "max_new": "int", "profile": "bool", "messages": "object[]", "prompt": "string"});
    writeln!(out, "READY {}", json!({"protocol": "anemone-jsonl-v1", "model": desk.model, "fields": fields}))?;
    out.flush()?;
    let mut line = Vec::new();
    loop {
        line.clear();
        // One byte more than allowed tells a line that is too long.
        input.by_ref().take(bounds.body as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() > bounds.body {
            skip_line(&mut input)?;
            let error = json!({"ok": false, "error": format!("the line is longer than {} bytes", bounds.body)});
            writeln!(out, "{error}")?;
        } else if !line.trim_ascii().is_empty() {
            answer(&desk, pool, bounds, &line, &mut out)?;
        }
        out.flush()?;
    }
}

/// Reads on to the end of a line, keeping nothing.
fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let buffered = input.fill_buf()?;
        let (used, over) = match buffered.iter().position(|&b| b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffered.len(), buffered.is_empty()),
        };
        input.consume(used);
        if over {
            return Ok(());
        }
    }
}

fn answer(desk: &Desk, pool: &'static Pool<'static>, bounds: &Bounds, line: &[u8], out: &mut impl Write) -> Result<()> {
    let mut id = None;
    let mut say = |id: &Option<Value>, mut value: Value| {
        if let Some(id) = id {
            value["id"] = id.clone();
        }
        writeln!(out, "{value}").and_then(|()| out.flush())
    };
    let fields = Fields::parse(line).map(|mut fields| {
        id = fields.take("id");
        fields
    });
    match fields {
        Ok(fields) if fields.has("prompt_ids") => {
            let answer = published(desk, pool, fields);
            let failed = |r: Refusal| json!({"ok": false, "error": r.message});
            say(&id, answer.unwrap_or_else(failed))?;
        }
        Ok(fields) => {
            let route = if fields.has("messages") { Route::Chat } else { Route::Text };
            let asked = desk.read(route, fields, Instant::now() + bounds.time);
            let answered = asked.and_then(|asked| converse(desk, pool, asked, &mut |value| say(&id, value)));
            if let Err(refusal) = answered {
                say(&id, refusal.json())?;
            }
        }
        Err(refusal) => say(&id, refusal.json())?,
    }
    Ok(())
}

/// The published runtime's request.
fn published(desk: &Desk, pool: &Pool<'static>, mut fields: Fields) -> Result<Value, Refusal> {
    let prompt = desk.ids(fields.take("prompt_ids"), "prompt_ids")?;
    let max_tokens = fields.integer("max_new", 1..=u64::MAX)?.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let profile = fields.boolean("profile")?.unwrap_or(false);
    fields.finish()?;
    let tokenizer = &desk.speaker.voice.tokenizer;
    let limits = Limits { max_tokens, stop_strings: Vec::new() };
    let mut sampler = Sampler::new(SamplingOptions::greedy())?;
    // Between two lines every session rests.
    let mut lease = pool.lease(&prompt)?.ok_or_else(|| Refusal::internal("no session"))?;
    let reused = lease.reused();
    let answer = generate(&mut lease, tokenizer, &prompt, &mut sampler, &limits, &mut |_| ControlFlow::Continue(()))?;
    let (prefill, decode) = (answer.timings.prompt_ms / 1e3, answer.timings.decode_ms / 1e3);
    // Each token is drawn after a call, but where a draft foresaw it, and no call follows the last.
    let (calls, decoded) = (answer.ids.len() - answer.timings.accepted_tokens, answer.ids.len().saturating_sub(1));
    let mut value = json!({
        "ok": true,
        "generated_ids": answer.ids,
        "text": tokenizer.decode(&answer.ids, Control::Skip)?,
        "finish": answer.finish,
        "timing": {
            "prefill_tokens": prompt.len(),
            "prefill_s": prefill,
            "decode_tokens": decoded,
            "decode_s": decode,
            "decode_tok_s": rate(decoded, decode),
            "forward_calls": calls,
            "forward_s": prefill + decode,
            "forward_tok_s": rate(prompt.len() - reused + decoded, prefill + decode),
        },
    });
    if profile {
        value["profile"] = json!({"calls": calls, "cached_tokens": reused});
    }
    Ok(value)
}

/// A rate; over no time it is none.
fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// A request of OpenAI's form.
fn converse(
    desk: &Desk,
    pool: &'static Pool<'static>,
    asked: Asked,
    say: &mut dyn FnMut(Value) -> std::io::Result<()>,
) -> Result<(), Refusal> {
    let Asked { orders, mut form, stream, .. } = asked;
    form.include_usage |= stream;
    let choices = orders.iter().map(|order| order.choices).sum();
    let mut chunks = Chunks::new(choices);
    let mut collected = vec![Collected::default(); choices];
    let (mut before, mut total) = (0, Usage::default());
    for order in orders {
        let these = order.choices;
        let (events, mut heard) = unbounded_channel();
        let lease = pool.lease(&order.prompt)?.ok_or_else(|| Refusal::internal("no session"))?;
        let mut task = Task::new(order, lease, &desk.speaker.voice.tokenizer, events, Instant::now())?;
        let mut progress = Progress::More;
        while progress == Progress::More {
            progress = task.step();
            while let Ok(event) = heard.try_recv() {
                match event.numbered_from(before) {
                    Event::Failed(refusal) => return Err(refusal),
                    Event::Done(usage) => total.add(&usage),
                    event if stream => {
                        chunks.of(&form, event).into_iter().try_for_each(&mut *say).map_err(Refusal::internal)?;
                    }
                    event => Collected::add(&mut collected, event),
                }
            }
        }
        before += these;
    }
    let last = if stream { form.usage(&total) } else { Some(form.whole(&collected, &total)) };
    last.into_iter().try_for_each(say).map_err(Refusal::internal)
}
