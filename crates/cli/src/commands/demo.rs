//! `anemone demo`: the whole main job on the model that ships with the program.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anemone_gate::residency::Target;
use anemone_gate::{Subject, Verdict};
use anemone_lower::Access;
use anyhow::{Context, Result};
use clap::Parser;

use super::gate::{self, Gate};
use super::proof::ProofArgs;
use super::{build, inspect, smoke};
use crate::Outcome;
use crate::options::{RuntimeArgs, WeightsArg, open_source};
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

/// How the model that ships with the program is cut: shards and slices enough to show what they are.
pub fn cut() -> build::Cut {
    build::Cut {
        topology: Some("0-2,2-4".into()),
        layers_per_shard: None,
        head_slices: Some(2),
        weights: WeightsArg::Int8Channel,
        context: None,
        tokens: None,
    }
}

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
    let cut = cut();
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

    heading(&format!("4. \"{}\", answered by the shards", smoke::QUESTION));
    let (finding, answer) = smoke::judge(&bundle, &subject.manifest, None, 128, &args.runtime, ui)?;
    println!("{}", answer.text);

    heading("5. The answer, run under Erlang");
    println!("{}: {}", finding.verdict.name(), finding.message);
    if finding.verdict == Verdict::Failed {
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
