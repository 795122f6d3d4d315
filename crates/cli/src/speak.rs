//! What commands that answer share: a loaded bundle with its voice, and sampling arguments.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use anemone_chat::generate::Limits;
use anemone_chat::{Conversation, Drafts, Engine, Message, Sampler, SamplingOptions, Voice};
use anemone_gate::{evidence, parity};
use anyhow::{Context, Result, bail};
use clap::Args;

use crate::options::{NumericsArg, RuntimeArg, RuntimeArgs};
use crate::ui::Ui;

/// A bundle that can answer.
pub struct Speaker {
    /// Its shards.
    pub engine: Engine,
    /// Its tokenizer and template.
    pub voice: Voice,
    /// What its shards run on.
    pub runtime: String,
}

impl Speaker {
    /// Loads everything.
    pub fn open(bundle: &Path, runtime: &RuntimeArgs, ui: &Ui) -> Result<Self> {
        let bar = ui.steps(1);
        bar.doing("loading");
        let chosen = runtime.choose(NumericsArg::Fast)?;
        // Large vocabularies take as long to read as shards do.
        let (engine, voice) = std::thread::scope(|scope| {
            let voice = scope.spawn(|| Voice::open(bundle));
            let engine = Engine::open(bundle, chosen.runtime());
            (engine, voice.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let engine = engine?;
        chosen.tell_loads(ui);
        let voice = voice.with_context(|| bundle.display().to_string())?;
        Ok(Self { engine, voice, runtime: chosen.runtime().describe() })
    }

    /// Pays what only first calls cost before anybody waits for an answer; says how long it took.
    pub fn warm_up(&self, ui: &Ui) -> Result<()> {
        let bar = ui.steps(1);
        bar.doing("first calls");
        let took = self.engine.warm_up()?;
        drop(bar);
        ui.say(format_args!("first calls of every function: {:.2} s", took.as_secs_f64()));
        Ok(())
    }
}

/// Whether tokens are drafted ahead.
#[derive(Args, Clone, Copy)]
pub struct SpeculationArgs {
    /// Guess tokens ahead from what was said before, and compute several at once; the answer stays the same. The default where
    /// it costs nothing: in `fast` numerics, on a bundle with a function of several tokens.
    #[arg(long, overrides_with = "no_speculate")]
    pub speculate: bool,
    /// Compute one token after the other.
    #[arg(long, overrides_with = "speculate")]
    pub no_speculate: bool,
}

impl SpeculationArgs {
    /// The speaker of `bundle`, told so. Where drafts rest on evidence, it is named.
    pub fn apply(self, speaker: Speaker, bundle: &Path, runtime: &RuntimeArgs, ui: &Ui) -> Result<Speaker> {
        if self.speculate {
            if runtime.runtime == RuntimeArg::Coreml {
                let findings = evidence::latest(bundle, &speaker.engine.manifest().hash())
                    .with_context(|| format!("{}: evidence", bundle.display()))?;
                match parity::drafts(&findings, &speaker.runtime) {
                    Ok(shown) => ui.say(format_args!("drafts rest on {shown}")),
                    Err(missing) => bail!(
                        "--speculate: an unchanged answer rests on `prefill` giving the tokens that `main` gives, which of Core ML has \
                         to be shown: {missing}; run `anemone gate --only parity --baseline ONE_LAYER_BUNDLE`, leave \
                         --speculate out, or use `--runtime portable`"
                    ),
                }
            }
            if speaker.engine.block_tokens() == 1 {
                bail!("--speculate: the bundle has no function of several tokens; build it with `--tokens 1,32`");
            }
        }
        let drafts = match (self.speculate, self.no_speculate) {
            (true, _) => Drafts::Measured,
            (_, true) => Drafts::Never,
            _ => speaker.engine.drafts(),
        };
        Ok(Speaker { engine: speaker.engine.with_drafts(drafts), ..speaker })
    }
}

/// How tokens are drawn.
#[derive(Args, Clone)]
pub struct SamplingArgs {
    /// Always the likeliest token.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub greedy: bool,
    /// Flattens (above 1) or sharpens (below) the distribution; 0 is greedy.
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f32,
    /// Only the K likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Only tokens at least this likely, as a part of the likeliest one's probability.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Divides the logits of recent tokens; 1 for none.
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// The same seed gives the same answer. Default: another each time.
    #[arg(long)]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The greedy choice, for commands that do not ask.
    pub fn greedy() -> Self {
        let base = SamplingOptions::greedy();
        Self {
            greedy: true,
            temperature: base.temperature,
            top_k: base.top_k,
            top_p: base.top_p,
            min_p: base.min_p,
            repetition_penalty: base.repetition_penalty,
            seed: Some(base.seed),
        }
    }

    /// A sampler of these.
    pub fn sampler(&self) -> Result<Sampler> {
        let base = SamplingOptions::greedy();
        let seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one(()));
        let repetition_penalty = self.repetition_penalty;
        let options = match self.greedy {
            true => SamplingOptions { repetition_penalty, seed, ..base },
            false => SamplingOptions {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty,
                seed,
                ..base
            },
        };
        Ok(Sampler::new(options)?)
    }
}

/// What ends an answer.
#[derive(Args, Clone)]
pub struct LimitArgs {
    /// Tokens at most, the stop token included. Default: as many as the context holds.
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// A string that ends the answer; may be given more than once.
    #[arg(long)]
    pub stop: Vec<String>,
}

impl LimitArgs {
    /// The bounds, with a request's own number of tokens before the command's.
    pub fn limits(&self, max_tokens: Option<usize>) -> Limits {
        Limits { max_tokens: max_tokens.or(self.max_tokens), stop_strings: self.stop.clone() }
    }
}

/// A conversation of one question, after a system prompt where there is one.
pub fn question(system: Option<&str>, text: &str) -> Conversation {
    let system = system.map(|s| Message::new("system", s));
    Conversation::new(system.into_iter().chain([Message::new("user", text)]).collect())
}
