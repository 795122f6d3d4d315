//! `anemone demo`: the whole main job on the model that ships with the program.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anemone_chat::generate::generate;
use anemone_gate::residency::Target;
use anemone_gate::{Subject, Verdict, smoke};
use anemone_lower::Access;
use anyhow::{Context, Result};
use clap::Parser;

use super::gate::{self, Gate};
use super::proof::ProofArgs;
use super::{build, inspect};
use crate::Outcome;
use crate::options::{RuntimeArgs, WeightsArg, open_source};
use crate::speak::{LimitArgs, SamplingArgs, Speaker, question};
use crate::ui::Ui;

/// Build, gate and ask the model that ships with the program: no download, no Mac.
#[derive(Parser)]
#[command(after_help = "Example: anemone demo --keep demo")]
pub struct Args {
    /// Keep the model and its bundle in this folder, which must not exist.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// A trained model with Phi-4-mini's contract, 2.6 million parameters (`fixtures/miniature`).
pub const MODEL: &[u8] = include_bytes!("../../../../fixtures/miniature/miniature-f16.gguf");

/// The question the published pipeline answered with garbage.
const QUESTION: &str = "write hello world in Erlang";

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let temporary = tempfile::tempdir().context("no room for temporary files")?;
    let folder = match &args.keep {
        Some(folder) => {
            std::fs::create_dir(folder).with_context(|| folder.display().to_string())?;
            folder.clone()
        }
        None => temporary.path().to_owned(),
    };
    let model = folder.join("miniature.gguf");
    std::fs::File::create_new(&model)
        .and_then(|mut f| f.write_all(MODEL))
        .with_context(|| model.display().to_string())?;

    heading("1. The contract, read from the GGUF");
    inspect::contract(&model)?;

    heading("2. Core ML shards: two of two layers, two slices of the head, int8 per channel");
    let start = Instant::now();
    let source = open_source(&model)?;
    let cut = build::Cut {
        topology: Some("0-2,2-4".into()),
        layers_per_shard: None,
        head_slices: Some(2),
        weights: WeightsArg::Int8Channel,
        context: None,
        tokens: None,
    };
    let bundle = folder.join("miniature.anemone");
    build::build(&build::prepare(&model, source.clone(), &cut)?, &bundle, Access::Alone, ui)?;
    inspect::shards(&bundle)?;
    println!("\nbuilt in {:.2} s", start.elapsed().as_secs_f64());

    heading("3. The gates");
    let subject = Subject::open(&bundle, source)?;
    let gates = [Gate::Contract, Gate::Compile, Gate::Residency, Gate::Weights, Gate::RangeGolden, Gate::StackGolden];
    let findings = gate::judge(&subject, &gates, Target::default(), &ProofArgs::default(), &args.runtime, ui)?;
    gate::show(&findings);
    if findings.iter().any(|f| f.verdict == Verdict::Failed) {
        return Ok(Outcome::Failed);
    }

    heading(&format!("4. \"{QUESTION}\", answered by the shards"));
    let speaker = Speaker::open(&bundle, &args.runtime, ui)?;
    let prompt = speaker.voice.prompt(&question(None, QUESTION))?;
    let limits = LimitArgs { max_tokens: Some(128), stop: Vec::new() }.limits(None);
    let mut sampler = SamplingArgs::greedy().sampler()?;
    let mut session = speaker.engine.session()?;
    let mut listen = |_: &str| std::ops::ControlFlow::Continue(());
    let answer = generate(&mut session, &speaker.voice.tokenizer, &prompt.ids, &mut sampler, &limits, &mut listen)?;
    println!("{}", answer.text);

    heading("5. The answer, run under Erlang");
    let report = smoke::run_answer(&answer.text);
    println!("{}: {}", report.verdict.name(), report.message);
    if report.verdict == Verdict::Failed {
        return Ok(Outcome::Failed);
    }
    if let Some(folder) = &args.keep {
        println!("\nkept in {}", folder.display());
    }
    Ok(Outcome::Done)
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}
