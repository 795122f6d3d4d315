//! One answer: tokens drawn from logits until something ends it.
//!
//! [`Generation`] is an answer in the making. It sees logits and gives tokens, and owns no session, so that whoever owns one
//! may take turns between many answers ([`generate`] just loops). What ends an answer is decided here alone.
//!
//! A draft ([`crate::draft`]) is fed behind the tokens that are sure, and logits are taken after each of its tokens. Each draw then
//! is what it would have been: mask, penalty and random numbers see the tokens drawn before it and nothing else. While a draw
//! gives what the draft foresaw, the next row of logits is the right one; at the first that differs the rest of the draft is taken
//! back from the session. So **the answer and the session are the same with and without drafts**.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anemone_bundle::Contract;
use anemone_exec::{Row, Rows};
use serde::Serialize;

use crate::bias::Bias;
use crate::draft::{Drafter, Drafts};
use crate::engine::{self, Logits, Session};
use crate::grammar::Matcher;
use crate::pool::Lease;
use crate::sample::{Choice, Sampler};
use crate::stop::StopStrings;
use crate::tokenizer::{Control, StreamDecoder, Tokenizer};

/// Tokens of an answer that room is made for at its start.
const ROOM: usize = 4096;

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
    /// Tokens that were drafted,
    pub drafted_tokens: usize,
    /// of which so many were what was drawn.
    pub accepted_tokens: usize,
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

/// A token of the answer.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The token and how sure the model was.
    pub choice: Choice,
    /// Text that became certain with it.
    pub text: String,
    /// Where the token's own text begins, in bytes of the answer's text before stop strings are cut.
    pub start: usize,
    /// Whether the token itself ends the turn; then it has no text.
    pub ends_turn: bool,
}

/// An answer in the making. See the module's essay.
pub struct Generation<'t> {
    tokenizer: &'t Tokenizer,
    stop_tokens: BTreeSet<u32>,
    sampler: Sampler,
    bias: Bias,
    matcher: Option<Matcher>,
    limits: Limits,
    strings: StopStrings,
    decoder: StreamDecoder,
    /// The prompt and the answer so far,
    history: Vec<u32>,
    /// of which so many are the prompt.
    prompt: usize,
    /// Tokens at the end of `history` that the session has not been fed.
    unfed: usize,
    /// Bytes of text decoded so far.
    decoded: usize,
    forced: usize,
    drafter: Drafter,
    /// What is fed next: what is unfed, and a draft
    feed: Vec<u32>,
    /// that begins here,
    sure: usize,
    /// and of which so many tokens were drawn.
    foreseen: usize,
    finish: Option<Finish>,
}

impl<'t> Generation<'t> {
    /// The answer to `prompt`, ended by `stop_tokens` or `limits`, and held to a grammar by `matcher` where there is one.
    ///
    /// # Errors
    /// An empty stop string.
    pub fn new(
        tokenizer: &'t Tokenizer,
        stop_tokens: BTreeSet<u32>,
        prompt: Vec<u32>,
        sampler: Sampler,
        limits: Limits,
        matcher: Option<Matcher>,
    ) -> Result<Self, crate::Error> {
        let strings = StopStrings::new(limits.stop_strings.clone())?;
        let finish = (limits.max_tokens == Some(0)).then_some(Finish::Length);
        let mut prompt = prompt;
        // What was asked for, or the beginning of it.
        prompt.reserve(limits.max_tokens.unwrap_or(usize::MAX).min(ROOM));
        Ok(Self {
            tokenizer,
            stop_tokens,
            sampler,
            bias: Bias::default(),
            matcher,
            limits,
            strings,
            decoder: StreamDecoder::new(Control::Skip),
            prompt: prompt.len(),
            unfed: prompt.len(),
            history: prompt,
            decoded: 0,
            forced: 0,
            drafter: Drafter::default(),
            feed: Vec::new(),
            sure: 0,
            foreseen: 0,
            finish,
        })
    }

    /// The same, with drafts.
    pub fn with_drafts(mut self, drafts: Drafts) -> Self {
        self.drafter = Drafter::new(drafts);
        self.drafter.read(&self.history);
        self
    }

    /// The same, drawn from logits that `bias` bends; their log-probabilities are bent with them.
    pub fn biased(self, bias: Bias) -> Self {
        Self { bias, ..self }
    }

    /// What ended it, once something has.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Whether a stop string ended it.
    pub fn hit_stop_string(&self) -> bool {
        self.strings.hit().is_some()
    }

    /// Its tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.history[self.prompt..]
    }

    /// How many of its tokens the grammar forced, without a look at logits.
    pub fn forced(&self) -> usize {
        self.forced
    }

    /// How many tokens were drafted, and how many of these were what was drawn.
    pub fn drafted(&self) -> (usize, usize) {
        self.drafter.counts()
    }

    /// Tokens the session is to be fed before the next draw.
    pub fn unfed(&self) -> &[u32] {
        &self.history[self.history.len() - self.unfed..]
    }

    /// That many of [`unfed`](Self::unfed), from its start, have been fed.
    pub fn fed(&mut self, count: usize) {
        self.unfed -= count;
    }

    /// What is unfed, with a draft behind it where one is worth its time; the second is how long that is. They are to be fed
    /// now, in one piece, and the logits after the last that is unfed and after each of the draft are what
    /// [`draw`](Self::draw) takes. `left` is how many positions the session has.
    pub fn ahead(&mut self, left: usize) -> (&[u32], usize) {
        self.feed.clear();
        self.feed.extend_from_slice(&self.history[self.history.len() - self.unfed..]);
        (self.sure, self.foreseen) = (self.unfed, 0);
        let drawn = self.history.len() - self.prompt;
        if drawn > 0 {
            // The last draw needs no draft.
            let wanted = self.limits.max_tokens.map_or(usize::MAX, |max| max.saturating_sub(drawn + 1));
            let most = left.saturating_sub(self.unfed).min(wanted);
            self.drafter.draft(&self.history, self.unfed, most, &mut self.feed);
        }
        self.unfed = 0;
        (&self.feed, self.feed.len() - self.sure)
    }

    /// Draws the next token from `logits` `[1 + draft, vocab]` after everything fed; those that a grammar forces behind it
    /// follow. All of them are put into `drawn`. `left` is how many positions the session has.
    ///
    /// # Errors
    /// Logits that are no distribution, or a grammar that no token can go on with.
    pub fn draw(&mut self, logits: &Rows, left: usize, drawn: &mut Vec<Drawn>) -> Result<(), crate::Error> {
        drawn.clear();
        self.drafter.computed(self.feed.len());
        // What is left of the draft will be taken back.
        let left = left.saturating_add(self.rejected());
        let mask = self.matcher.as_mut().map(Matcher::mask).transpose()?;
        let row = logits.row(self.foreseen);
        let (bent, mut peaks) = (self.bias.bend(row.values(), &self.history[self.prompt..]), Vec::new());
        let row = bent.as_ref().map_or(row, |bent| Row::of(bent, &mut peaks));
        let choice = self.sampler.choose(row, &self.history, mask.as_ref())?;
        drawn.push(self.take(choice, left)?);
        while self.finish.is_none() {
            let Some(id) = self.matcher.as_mut().and_then(Matcher::forced) else { break };
            self.forced += 1;
            // Without logits there is no log-probability; see `Matcher::looking`.
            drawn.push(self.take(Choice { id, logprob: None, top: Vec::new() }, left)?);
        }
        Ok(())
    }

    /// Whether the draft foresaw what was drawn, so that the same logits have a row for the next draw.
    pub fn goes_on(&mut self) -> bool {
        if self.finish.is_some() {
            return false;
        }
        let draft = &self.feed[self.sure + self.foreseen..];
        let unfed = &self.history[self.history.len() - self.unfed..];
        let foreseen = unfed.iter().zip(draft).take_while(|(a, b)| a == b).count();
        let all = foreseen == unfed.len();
        self.drafter.drawn(unfed[0], foreseen, !all && foreseen < draft.len());
        self.foreseen += foreseen;
        self.unfed -= foreseen;
        all
    }

    /// How many tokens of the draft were fed in vain: the session is to forget so many of its last.
    pub fn rejected(&self) -> usize {
        self.feed.len() - self.sure - self.foreseen
    }

    /// Ends the answer where nothing in it did, and gives the text that was held back.
    pub fn end(&mut self, finish: Finish) -> String {
        self.finish.get_or_insert(finish);
        if self.strings.hit().is_some() {
            return String::new();
        }
        let mut rest = self.strings.push(&self.decoder.finish());
        rest.push_str(&self.strings.finish());
        rest
    }

    fn take(&mut self, choice: Choice, left: usize) -> Result<Drawn, crate::Error> {
        let (id, start) = (choice.id, self.decoded);
        self.history.push(id);
        self.unfed += 1;
        if let Some(matcher) = &mut self.matcher {
            matcher.take(id)?;
        }
        let ends_turn = self.stop_tokens.contains(&id);
        let mut text = String::new();
        if !ends_turn {
            let piece = self.decoder.push(self.tokenizer, id)?;
            self.decoded += piece.len();
            text = self.strings.push(&piece);
        }
        let drawn = self.history.len() - self.prompt;
        let complete = self.matcher.as_ref().is_some_and(Matcher::is_complete);
        self.finish = if ends_turn || complete || self.strings.hit().is_some() {
            Some(Finish::Stop)
        } else if self.limits.max_tokens.is_some_and(|max| drawn >= max) {
            Some(Finish::Length)
        } else if self.unfed > left {
            Some(Finish::Context)
        } else {
            None
        };
        Ok(Drawn { choice, text, start, ends_turn })
    }
}

/// What takes tokens and gives logits: a session, or one on loan.
pub trait Feed {
    /// The contract of the bundle it runs on.
    fn contract(&self) -> &Contract;
    /// How many tokens of the prompt it holds already.
    fn held(&self) -> usize;
    /// Positions left.
    fn left(&self) -> usize;
    /// Whether its runtime is given drafts.
    fn drafts(&self) -> Drafts;
    /// As [`Session::feed_into`].
    fn feed_into(&mut self, ids: &[u32], want: Logits, logits: &mut Rows) -> Result<(), engine::Error>;
    /// Forgets the last `count` tokens.
    fn retract(&mut self, count: usize);
}

impl Feed for Session<'_> {
    fn contract(&self) -> &Contract {
        self.contract()
    }

    fn held(&self) -> usize {
        0
    }

    fn left(&self) -> usize {
        self.left()
    }

    fn drafts(&self) -> Drafts {
        self.engine().drafts()
    }

    fn feed_into(&mut self, ids: &[u32], want: Logits, logits: &mut Rows) -> Result<(), engine::Error> {
        self.feed_into(ids, want, logits)
    }

    fn retract(&mut self, count: usize) {
        self.truncate(self.position() - count);
    }
}

impl Feed for Lease<'_, '_> {
    fn contract(&self) -> &Contract {
        self.engine().contract()
    }

    fn held(&self) -> usize {
        self.reused()
    }

    fn left(&self) -> usize {
        self.left()
    }

    fn drafts(&self) -> Drafts {
        self.engine().drafts()
    }

    fn feed_into(&mut self, ids: &[u32], want: Logits, logits: &mut Rows) -> Result<(), engine::Error> {
        self.feed_into(ids, want, logits)
    }

    fn retract(&mut self, count: usize) {
        self.truncate(self.tokens().len() - count);
    }
}

/// Feeds what `session` does not hold of `prompt` and draws tokens until something ends the answer. `listen` is given text as it
/// becomes certain. The session keeps what was fed: the prompt, and every token of the answer but the last.
pub fn generate(
    session: &mut impl Feed,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    sampler: &mut Sampler,
    limits: &Limits,
    listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Answer, crate::Error> {
    let stop = session.contract().tokens.stop.clone();
    let mut generation = Generation::new(tokenizer, stop, prompt.to_vec(), sampler.clone(), limits.clone(), None)?
        .with_drafts(session.drafts());
    let start = Instant::now();
    generation.fed(session.held());
    let computed = generation.unfed().len();
    let (mut logits, mut drawn) = (Rows::default(), Vec::new());
    session.feed_into(generation.ahead(session.left()).0, Logits::Last, &mut logits)?;
    let first_logits = logits.values().to_vec();
    let prompt_time = start.elapsed();
    let mut text = String::new();
    let mut cancelled = false;
    while generation.finish().is_none() && !cancelled {
        generation.draw(&logits, session.left(), &mut drawn)?;
        for drawn in &drawn {
            text.push_str(&drawn.text);
            cancelled |= !drawn.text.is_empty() && listen(&drawn.text).is_break();
        }
        if cancelled || !generation.goes_on() {
            session.retract(generation.rejected());
            if generation.finish().is_none() && !cancelled {
                let (ids, draft) = generation.ahead(session.left());
                session.feed_into(ids, Logits::Tail(1 + draft), &mut logits)?;
            }
        }
    }
    let finish = if cancelled { Finish::Cancelled } else { generation.finish().unwrap_or(Finish::Stop) };
    let rest = generation.end(finish);
    text.push_str(&rest);
    if !rest.is_empty() && !cancelled {
        let _ = listen(&rest);
    }
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let (drafted_tokens, accepted_tokens) = generation.drafted();
    let ids = generation.history.split_off(generation.prompt);
    let timings = Timings {
        prompt_tokens: computed,
        prompt_ms: ms(prompt_time),
        generated_tokens: ids.len(),
        decode_ms: ms(start.elapsed() - prompt_time),
        drafted_tokens,
        accepted_tokens,
    };
    *sampler = generation.sampler;
    Ok(Answer { ids, text, finish, timings, first_logits })
}
