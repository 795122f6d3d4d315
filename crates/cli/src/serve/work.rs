//! One request's work on the model, in steps short enough to take turns: a block of the prompt, or a token.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anemone_chat::engine::Logits;
use anemone_chat::generate::{Drawn, Feed, Finish, Limits};
use anemone_chat::grammar::Matcher;
use anemone_chat::pool::Lease;
use anemone_chat::sample::Choice;
use anemone_chat::{Bias, Control, Generation, Sampler, SamplingOptions, Tokenizer};
use anemone_exec::Rows;
use axum::http::StatusCode;
use tokio::sync::mpsc::UnboundedSender;

use super::refusal::Refusal;

/// What is to be answered.
pub struct Order {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are drawn. Choice i of several starts its draws at `seed + i`.
    pub sampling: SamplingOptions,
    /// What is added to logits.
    pub bias: Bias,
    /// What ends an answer.
    pub limits: Limits,
    /// How many answers.
    pub choices: usize,
    /// What each answer is held to.
    pub matcher: Option<Matcher>,
    /// When it is too late.
    pub deadline: Instant,
}

/// What becomes of it, in order. The last is `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// Text that is certain, and the tokens that begin in it, if they were asked for.
    Text {
        /// Which answer.
        choice: usize,
        /// Never empty, unless tokens come without text.
        text: String,
        /// In order.
        tokens: Vec<Token>,
    },
    /// An answer is whole.
    End {
        /// Which.
        choice: usize,
        /// Why.
        finish: Finish,
    },
    /// All are.
    Done(Usage),
    /// Nothing more comes.
    Failed(Refusal),
}

impl Event {
    /// The same of a choice that `before` others come before.
    pub fn numbered_from(mut self, before: usize) -> Self {
        if let Self::Text { choice, .. } | Self::End { choice, .. } = &mut self {
            *choice += before;
        }
        self
    }
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its bytes; control tokens spelled.
    pub bytes: Vec<u8>,
    /// The model's own natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens in its place.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt,
    pub prompt: usize,
    /// of which so many were in a session's caches already.
    pub cached: usize,
    /// Tokens that the model computed, of the prompt and of the answers,
    pub computed: usize,
    /// Tokens drawn, those that end turns included,
    pub drawn: usize,
    /// of which a grammar forced so many.
    pub forced: usize,
    /// Tokens drafted,
    pub drafted: usize,
    /// of which so many were what was drawn.
    pub accepted: usize,
    /// From the request to its first step.
    pub waited: Duration,
    /// From there to the first logits, the turns of others included.
    pub prompt_time: Duration,
    /// From there to the end.
    pub decode_time: Duration,
}

impl Usage {
    /// Of several orders of one request. They were made side by side, or one after the other: the times are sums.
    pub fn add(&mut self, other: &Self) {
        let Self { prompt, cached, computed, drawn, forced, drafted, accepted, waited, prompt_time, decode_time } =
            *other;
        self.prompt += prompt;
        self.cached += cached;
        self.computed += computed;
        self.drawn += drawn;
        self.forced += forced;
        self.drafted += drafted;
        self.accepted += accepted;
        self.waited += waited;
        self.prompt_time += prompt_time;
        self.decode_time += decode_time;
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is.
    More,
    /// There is not: answered, failed, or nobody listens any more.
    Over,
}

/// An order with a session.
pub struct Task<'e> {
    order: Order,
    lease: Lease<'e, 'e>,
    tokenizer: &'e Tokenizer,
    events: UnboundedSender<Event>,
    block: usize,
    choice: usize,
    generation: Generation<'e>,
    /// Logits after the prompt, for the other choices.
    first: Rows,
    logits: Rows,
    drawn: Vec<Drawn>,
    /// Tokens whose text is not certain yet, with where it begins.
    held: VecDeque<(usize, Token)>,
    /// Bytes of text sent.
    sent: usize,
    usage: Usage,
    since: Instant,
}

impl<'e> Task<'e> {
    /// An order that arrived at `since` gets its session.
    pub fn new(
        order: Order,
        lease: Lease<'e, 'e>,
        tokenizer: &'e Tokenizer,
        events: UnboundedSender<Event>,
        since: Instant,
    ) -> Result<Self, Refusal> {
        let mut generation = generation(&order, &lease, tokenizer, 0)?;
        generation.fed(lease.reused());
        let usage =
            Usage { prompt: order.prompt.len(), cached: lease.reused(), waited: since.elapsed(), ..Usage::default() };
        let block = lease.engine().block_tokens();
        Ok(Self {
            order,
            lease,
            tokenizer,
            events,
            block,
            choice: 0,
            generation,
            first: Rows::default(),
            logits: Rows::default(),
            drawn: Vec::new(),
            held: VecDeque::new(),
            sent: 0,
            usage,
            since: Instant::now(),
        })
    }

    /// What it took so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Whether every answer is whole.
    pub fn is_done(&self) -> bool {
        self.choice == self.order.choices
    }

    /// One turn. A failure is told to whoever listens.
    pub fn step(&mut self) -> Progress {
        if self.events.is_closed() {
            return Progress::Over;
        }
        let stepped = match Instant::now() > self.order.deadline {
            true => Err(too_late()),
            false => self.advance(),
        };
        stepped.unwrap_or_else(|refusal| {
            self.tell(Event::Failed(refusal));
            Progress::Over
        })
    }

    /// After a fault of ours.
    pub fn give_up(&self) -> Progress {
        self.tell(Event::Failed(Refusal::internal("the model failed on this request; the server's log has more")));
        Progress::Over
    }

    fn advance(&mut self) -> Result<Progress, Refusal> {
        let unfed = self.generation.unfed();
        if unfed.len() > self.block {
            self.lease.feed_into(&unfed[..self.block], Logits::None, &mut self.logits)?;
            self.generation.fed(self.block);
            self.usage.computed += self.block;
            return Ok(Progress::More);
        }
        let (ids, draft) = self.generation.ahead(self.lease.left());
        self.usage.computed += ids.len();
        self.lease.feed_into(ids, Logits::Tail(1 + draft), &mut self.logits)?;
        if self.first.is_empty() {
            self.usage.prompt_time = self.since.elapsed();
            self.since = Instant::now();
            self.first.clone_from(&self.logits);
        }
        self.draw()
    }

    /// Draws as many tokens as the logits have rows for.
    fn draw(&mut self) -> Result<Progress, Refusal> {
        loop {
            self.generation.draw(&self.logits, self.lease.left(), &mut self.drawn)?;
            self.usage.drawn += self.drawn.len();
            let drawn = std::mem::take(&mut self.drawn);
            let text: String = drawn.iter().map(|d| d.text.as_str()).collect();
            for Drawn { choice, start, ends_turn, .. } in &drawn {
                if let (Some(logprob), false) = (choice.logprob, ends_turn) {
                    self.held.push_back((*start, self.token(choice, logprob)?));
                }
            }
            self.drawn = drawn;
            let on = self.generation.goes_on();
            if let Some(finish) = self.generation.finish() {
                self.lease.retract(self.generation.rejected());
                let rest = self.generation.end(finish);
                // Behind a stop string nothing is certain any more.
                let all = !self.generation.hit_stop_string();
                self.send(text + &rest, all);
                self.tell(Event::End { choice: self.choice, finish });
                return self.next_choice();
            }
            self.send(text, false);
            if !on {
                self.lease.retract(self.generation.rejected());
                return Ok(Progress::More);
            }
        }
    }

    /// The session goes back to where the prompt ended.
    fn next_choice(&mut self) -> Result<Progress, Refusal> {
        self.usage.forced += self.generation.forced();
        let (drafted, accepted) = self.generation.drafted();
        self.usage.drafted += drafted;
        self.usage.accepted += accepted;
        self.choice += 1;
        if self.choice == self.order.choices {
            self.usage.decode_time = self.since.elapsed();
            self.tell(Event::Done(self.usage));
            return Ok(Progress::Over);
        }
        self.lease.truncate(self.order.prompt.len());
        self.generation = generation(&self.order, &self.lease, self.tokenizer, self.choice)?;
        self.generation.fed(self.order.prompt.len());
        (self.sent, self.held) = (0, VecDeque::new());
        self.logits.clone_from(&self.first);
        self.draw()
    }

    /// Sends text, with the tokens that begin in what is out now, or with all of them.
    fn send(&mut self, text: String, all: bool) {
        self.sent += text.len();
        let certain = self.held.iter().take_while(|(start, _)| all || *start < self.sent).count();
        let tokens: Vec<Token> = self.held.drain(..certain).map(|(_, token)| token).collect();
        if !text.is_empty() || !tokens.is_empty() {
            self.tell(Event::Text { choice: self.choice, text, tokens });
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listening is seen at the next step.
        let _ = self.events.send(event);
    }

    fn token(&self, choice: &Choice, logprob: f32) -> Result<Token, Refusal> {
        let bytes = |id: u32| self.tokenizer.token_bytes(id, Control::Show);
        let top = choice.top.iter().map(|&(id, p)| Ok((bytes(id)?, p)));
        Ok(Token { bytes: bytes(choice.id)?, logprob, top: top.collect::<Result<_, anemone_chat::Error>>()? })
    }
}

fn generation<'e>(
    order: &Order,
    lease: &Lease<'e, 'e>,
    tokenizer: &'e Tokenizer,
    choice: usize,
) -> Result<Generation<'e>, Refusal> {
    let seed = order.sampling.seed.wrapping_add(choice as u64);
    let sampler = Sampler::new(SamplingOptions { seed, ..order.sampling.clone() })?;
    let stop = lease.engine().contract().tokens.stop.clone();
    let (prompt, limits, matcher) = (order.prompt.clone(), order.limits.clone(), order.matcher.clone());
    let generation = Generation::new(tokenizer, stop, prompt, sampler, limits, matcher)?.biased(order.bias.clone());
    Ok(generation.with_drafts(lease.engine().drafts()))
}

/// What is told when the time is over.
pub fn too_late() -> Refusal {
    let message = "the answer was not whole within the server's time limit; ask for fewer tokens, or again later";
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_adds_up_whole() {
        let time = Duration::from_millis;
        let one = Usage {
            prompt: 1,
            cached: 2,
            computed: 3,
            drawn: 4,
            forced: 5,
            drafted: 6,
            accepted: 7,
            waited: time(8),
            prompt_time: time(9),
            decode_time: time(10),
        };
        let mut sum = Usage::default();
        sum.add(&one);
        assert_eq!(sum, one);
    }
}
