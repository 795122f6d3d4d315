//! One answer: a prompt fed, tokens drawn until something ends it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::{Logits, Session};
use crate::sample::Sampler;
use crate::stop::StopStrings;
use crate::tokenizer::{Control, StreamDecoder, Tokenizer};

/// What bounds an answer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tokens at most, the stop token included; `None` for as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Strings that end it.
    pub stop_strings: Vec<String>,
}

/// What ended an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// A token or string that ends a turn.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// No room left in the context.
    Context,
    /// The listener had enough.
    Cancelled,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Its text, without control tokens or stop strings.
    pub text: String,
    /// What ended it.
    pub finish: Finish,
    /// How long it took.
    pub timings: Timings,
    /// Logits after the prompt, `[vocab]`.
    pub first_logits: Vec<f32>,
}

/// Wall times of one answer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timings {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: usize,
    /// From the first token fed to the first logits, in milliseconds.
    pub prompt_ms: f64,
    /// Tokens drawn.
    pub generated_tokens: usize,
    /// From the first logits to the end, in milliseconds.
    pub decode_ms: f64,
}

impl Timings {
    /// Prompt tokens a second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_tokens as f64 / (self.prompt_ms / 1e3)
    }

    /// Generated tokens a second. The first one falls out of the prompt's logits and costs nothing.
    pub fn decode_rate(&self) -> f64 {
        self.generated_tokens.saturating_sub(1) as f64 / (self.decode_ms / 1e3)
    }
}

/// Feeds `prompt` to the session and draws tokens until something ends the answer. `listen` is given text as it becomes
/// certain. The session keeps what was fed: the prompt, and every token of the answer but the last.
pub fn generate(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    sampler: &mut Sampler,
    limits: &Limits,
    listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Answer, crate::Error> {
    let stop = session.contract().tokens.stop.clone();
    let mut strings = StopStrings::new(limits.stop_strings.clone())?;
    let mut decoder = StreamDecoder::new(Control::Skip);
    let start = Instant::now();
    let mut logits = session.feed(prompt, Logits::Last)?;
    let first_logits = logits.clone();
    let prompt_time = start.elapsed();
    let mut history = prompt.to_vec();
    let mut text = String::new();
    let finish = loop {
        let drawn = history.len() - prompt.len();
        if limits.max_tokens.is_some_and(|max| drawn >= max) {
            break Finish::Length;
        }
        let id = sampler.next(&logits, &history)?.id;
        history.push(id);
        if stop.contains(&id) {
            break Finish::Stop;
        }
        let piece = strings.push(&decoder.push(tokenizer, id)?);
        text.push_str(&piece);
        if !piece.is_empty() && listen(&piece).is_break() {
            break Finish::Cancelled;
        }
        if strings.hit().is_some() {
            break Finish::Stop;
        }
        if session.left() == 0 {
            break Finish::Context;
        }
        logits = session.feed(&[id], Logits::Last)?;
    };
    if strings.hit().is_none() {
        let mut rest = strings.push(&decoder.finish());
        rest.push_str(&strings.finish());
        text.push_str(&rest);
        if !rest.is_empty() && finish != Finish::Cancelled {
            let _ = listen(&rest);
        }
    }
    let ids = history.split_off(prompt.len());
    let timings = timings(prompt.len(), prompt_time, ids.len(), start.elapsed());
    Ok(Answer { ids, text, finish, timings, first_logits })
}

fn timings(prompt_tokens: usize, prompt: Duration, generated_tokens: usize, total: Duration) -> Timings {
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    Timings { prompt_tokens, prompt_ms: ms(prompt), generated_tokens, decode_ms: ms(total - prompt) }
}
