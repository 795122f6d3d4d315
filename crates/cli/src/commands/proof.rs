//! The gates that run a bundle: their options, and how each is set going.

use std::path::{Path, PathBuf};

use anemone_chat::{Engine, Voice};
use anemone_exec::{Numerics, Portable, Runtime};
use anemone_gate::prompts::{self, Prompt};
use anemone_gate::{Finding, Run, Subject, numeric, parity, probe, range_golden, stack_golden, weights};
use anyhow::{Context, Result};
use clap::Args;

use super::gate::Gate;
use crate::options::{NumericsArg, RuntimeArgs};
use crate::ui::Ui;

/// What the gates that run a bundle may be told.
#[derive(Args, Clone)]
pub struct ProofArgs {
    /// Prompts for the whole chain: JSON lines with `messages`, `text` or `prompt_ids`, and `expected_ids` where the answer is
    /// known. Default: a few built-in questions.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Tokens of each answer that are compared, at most.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub max_tokens: usize,
    /// A bundle of the same source and contract, cut into one-layer shards: adds the parity gate.
    #[arg(long, value_name = "BUNDLE")]
    pub baseline: Option<PathBuf>,
    /// Prompts that the model was made for, for the contract probe: as --prompts. Default: built-in questions that suit a general
    /// model; a narrow one has to be asked what it knows.
    #[arg(long, value_name = "FILE")]
    pub probe_prompts: Option<PathBuf>,
    /// Positions that the range golden fills, a third each at the beginning, in the middle and at the end of the context, for models
    /// where the whole context takes too long. Default: all.
    #[arg(long, value_name = "POSITIONS")]
    pub sample: Option<usize>,
    /// Keep the figures of every token of the range golden, not only of the first, middle, last and worst.
    #[arg(long)]
    pub per_token: bool,
}

impl Default for ProofArgs {
    fn default() -> Self {
        Self { prompts: None, max_tokens: 32, baseline: None, probe_prompts: None, sample: None, per_token: false }
    }
}

/// How many of the built-in questions the chain is asked.
const QUESTIONS: usize = 4;

impl ProofArgs {
    fn prompts(&self, subject: &Subject) -> Result<Vec<Prompt>> {
        let voice = Voice::open(&subject.folder).with_context(|| subject.folder.display().to_string())?;
        Ok(match &self.prompts {
            Some(path) => prompts::read(path, &voice)?,
            None => prompts::builtin(&voice, QUESTIONS)?,
        })
    }

    /// Sets one of these gates going; `asked` says whether it was asked for by name, whatever it takes.
    pub fn judge(
        &self,
        gate: Gate,
        asked: bool,
        subject: &Subject,
        runtime: &RuntimeArgs,
        ui: &Ui,
    ) -> Result<Vec<Finding>> {
        let chosen = runtime.choose(NumericsArg::Exact)?;
        // Only what compares with a bundle's own runs loads its packages.
        let open = |folder: &Path| Engine::open(folder, chosen.runtime());
        let run = |engine| Run { engine, measured_on: chosen.runtime().describe(), numerics: chosen.numerics() };
        let max_tokens = self.max_tokens.max(1);
        Ok(match gate {
            Gate::Weights => {
                let bar = ui.steps(1);
                bar.doing("weights");
                weights::judge(subject, &run(&open(&subject.folder)?))?
            }
            Gate::RangeGolden => {
                let bar = ui.steps(subject.manifest.layers.len() as u64);
                bar.doing("range golden");
                let options = range_golden::Options { sample: self.sample, per_token: self.per_token };
                range_golden::judge(subject, &run(&open(&subject.folder)?), options, |_| bar.advance(1))?
            }
            Gate::StackGolden => {
                let prompts = self.prompts(subject)?;
                let bar = ui.steps(prompts.len() as u64);
                bar.doing("stack golden");
                stack_golden::judge(subject, &run(&open(&subject.folder)?), &prompts, max_tokens, |_| bar.advance(1))?
            }
            Gate::Parity => {
                let Some(folder) = &self.baseline else { return Ok(Vec::new()) };
                let prompts = self.prompts(subject)?;
                let bar = ui.steps(prompts.len() as u64);
                bar.doing("parity");
                let (own, baseline) = (open(&subject.folder)?, open(folder)?);
                parity::judge(subject, &run(&own), &run(&baseline), &prompts, max_tokens, |_| bar.advance(1))?
            }
            Gate::Numeric => {
                let exact = Portable::new(Numerics::Exact, runtime.portable_options());
                let engine = Engine::open(&subject.folder, &exact)?;
                let run = Run { engine: &engine, measured_on: exact.describe(), numerics: Numerics::Exact };
                let prompts = self.prompts(subject)?;
                let bar = ui.steps(subject.manifest.layers.len() as u64);
                bar.doing("numeric");
                numeric::judge(subject, &run, &prompts, |_| bar.advance(1))?
            }
            Gate::Probe => {
                let voice = Voice::open(&subject.folder).with_context(|| subject.folder.display().to_string())?;
                let prompts = match &self.probe_prompts {
                    Some(path) => prompts::read(path, &voice)?,
                    None => prompts::builtin_answered(&voice)?,
                };
                let bar = ui.steps(20);
                bar.doing("contract probe");
                vec![probe::judge(subject, &prompts, asked, |_| bar.advance(1))?]
            }
            Gate::Contract | Gate::Compile | Gate::Residency | Gate::Smoke => Vec::new(),
        })
    }
}
