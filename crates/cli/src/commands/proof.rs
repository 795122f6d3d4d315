//! The gates that run a bundle: their options, and how each is set going.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anemone_chat::{Engine, Voice};
use anemone_exec::{Numerics, Portable, Runtime};
use anemone_gate::prompts::{self, Prompt};
use anemone_gate::range_golden::Positions;
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
    #[arg(long, value_name = "COUNT")]
    pub sample: Option<usize>,
    /// The positions that the range golden fills, one by one or as START-END without the end: 0,1000-1016,2047. The cache holds zeros
    /// for the others.
    #[arg(long, value_name = "POSITIONS", value_delimiter = ',', value_parser = range, conflicts_with = "sample")]
    pub sample_positions: Vec<Range<usize>>,
    /// Judge these layers alone in the range golden, each cut out of its shard: 0,5,30-32. Holds a layer's state and a matrix of
    /// weights at a time. Of a full-size Phi-4-mini, at three positions and on two cores, each layer takes about 1.5 seconds and
    /// each passed over a quarter of one, in 200 MB. Proves the layers and not the shards: an export still asks for those.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', value_parser = range)]
    pub sample_layers: Vec<Range<usize>>,
    /// Keep the figures of every token of the range golden, not only of the first, middle, last and worst.
    #[arg(long)]
    pub per_token: bool,
}

impl Default for ProofArgs {
    fn default() -> Self {
        Self {
            prompts: None,
            max_tokens: 32,
            baseline: None,
            probe_prompts: None,
            sample: None,
            sample_positions: Vec::new(),
            sample_layers: Vec::new(),
            per_token: false,
        }
    }
}

/// `5`, or `20-24` for 20 to 23.
fn range(text: &str) -> Result<Range<usize>, String> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is no number"));
    let range = match text.split_once('-') {
        Some((start, end)) => number(start)?..number(end)?,
        None => {
            let one: usize = number(text)?;
            one..one.checked_add(1).ok_or("too large")?
        }
    };
    if range.is_empty() { Err(format!("nothing lies in {text}: the end is not a part of a range")) } else { Ok(range) }
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
                let positions = match self.sample {
                    Some(count) => Positions::About(count),
                    None if self.sample_positions.is_empty() => Positions::All,
                    None => Positions::These(self.sample_positions.clone()),
                };
                let options = range_golden::Options { positions, per_token: self.per_token };
                let layers = &self.sample_layers;
                let steps = match layers.iter().map(|range| range.end).max() {
                    Some(end) => end.min(subject.manifest.contract.layers),
                    None => subject.manifest.layers.len(),
                };
                let bar = ui.steps(steps as u64);
                bar.doing("range golden");
                let (engine, step) = (open(&subject.folder)?, || bar.advance(1));
                match layers.is_empty() {
                    true => range_golden::judge(subject, &run(&engine), &options, step)?,
                    false => {
                        let runtime = chosen.runtime();
                        range_golden::judge_layers(subject, &run(&engine), runtime, layers, &options, step)?
                    }
                }
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
