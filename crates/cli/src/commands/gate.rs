//! `anemone gate`: a bundle judged against its source.

use std::io::Write;
use std::path::{Path, PathBuf};

use anemone_gate::residency::Target;
use anemone_gate::{Finding, Subject, Verdict, contract, evidence};
use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use super::proof::ProofArgs;
use super::{journal, smoke};
use crate::Outcome;
use crate::cache;
use crate::options::{NumericsArg, RuntimeArgs, TargetArgs, open_source};
use crate::ui::{self, Ui};

/// Judge a bundle against the model it was built from. Findings are appended to the bundle's evidence.
#[derive(Parser)]
#[command(
    after_help = "Exit codes: 0 no gate failed; 1 a gate failed; 2 the request was bad; 3 with --strict, a verdict is \
    only predicted, well-formed or skipped.

Example: anemone gate phi4-mini.anemone --source phi4-mini.gguf --json verdicts.json"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// The GGUF it was built from.
    #[arg(long)]
    pub source: PathBuf,
    /// Only these gates.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Gate>,
    /// Write every finding with every figure to this file; `-` prints them in place of the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Fail with 3 where a verdict is less than `passed`.
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub proof: ProofArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// The gates, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gate {
    /// Source, shards and manifest agree.
    Contract,
    /// Every package is well formed.
    Compile,
    /// Where every op is placed: Core ML's compute plan, or a prediction where there is no Core ML.
    Residency,
    /// Every row that a package stores is the source's, as near as its encoding allows.
    Weights,
    /// Every shard computes what the reference computes over the same layers.
    RangeGolden,
    /// Prompts through everything: logits and greedy tokens are the reference's.
    StackGolden,
    /// The fused chain is the one-layer chain of `--baseline`.
    Parity,
    /// Every value keeps within fp16's cliffs, chip by chip.
    Numeric,
    /// No neighbouring contract explains the model better than the declared one.
    Probe,
    /// The answer to "write hello world in Erlang" is a program that does it. Runs when asked for by name: a model that
    /// never learned Erlang has not failed.
    Smoke,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let source = open_source(&cache::model(&args.source)?)?;
    let subject = Subject::open(&args.bundle, source)?;
    let by_default = Gate::value_variants().iter().copied().filter(|g| *g != Gate::Smoke);
    let gates = if args.only.is_empty() { by_default.collect() } else { args.only.clone() };
    let findings = judge(&subject, &gates, args.target.target(), &args.proof, &args.runtime, ui)?;
    evidence::append(&args.bundle, &findings).with_context(|| format!("{}: evidence", args.bundle.display()))?;
    journal::record(&args.bundle, &subject.manifest, &findings)?;
    let printed = args.json.as_deref() == Some(Path::new("-"));
    if printed {
        ui::json(&serde_json::to_value(&findings)?)?;
    } else if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(&findings)?;
        std::fs::File::create(path).and_then(|mut f| f.write_all(&text)).with_context(|| path.display().to_string())?;
    }
    if !printed {
        show(&findings);
    }
    let any = |v: Verdict| findings.iter().any(|f| f.verdict == v);
    let less = [Verdict::Predicted, Verdict::WellFormed, Verdict::Inconclusive, Verdict::Skipped].into_iter().any(any);
    Ok(match () {
        () if any(Verdict::Failed) => Outcome::Failed,
        () if args.strict && less => Outcome::Unproven,
        () => Outcome::Done,
    })
}

/// Runs the gates in order, whatever those before found; a package of another contract is refused when it is loaded.
pub fn judge(
    subject: &Subject,
    gates: &[Gate],
    target: Target,
    proof: &ProofArgs,
    runtime: &RuntimeArgs,
    ui: &Ui,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for gate in gates {
        match gate {
            Gate::Contract => {
                let bar = ui.bytes(subject.manifest.bytes());
                bar.doing("contract");
                findings.extend(contract::judge(subject, |bytes| bar.advance(bytes)));
            }
            Gate::Compile => findings.extend(runtime.choose(NumericsArg::Exact)?.compile(subject)),
            Gate::Residency => {
                findings.extend(runtime.choose(NumericsArg::Exact)?.residency(subject, target));
            }
            Gate::Smoke => {
                findings.push(smoke::judge(&subject.folder, &subject.manifest, None, smoke::MAX_TOKENS, runtime, ui)?.0)
            }
            Gate::Weights | Gate::RangeGolden | Gate::StackGolden | Gate::Parity | Gate::Numeric | Gate::Probe => {
                // By name: the list leaves out a gate that runs unasked.
                let asked = Gate::value_variants().iter().any(|g| *g != Gate::Smoke && !gates.contains(g));
                findings.extend(proof.judge(*gate, asked, subject, runtime, ui)?);
            }
        }
    }
    Ok(findings)
}

/// The findings as a table.
pub fn show(findings: &[Finding]) {
    let row = |f: &Finding| {
        let message = f.message.lines().next().unwrap_or("").to_owned();
        vec![f.gate.clone(), f.subject.clone(), f.verdict.name().to_owned(), message]
    };
    ui::table(&["gate", "part", "verdict", "finding"], &findings.iter().map(row).collect::<Vec<_>>());
    // Each gate has its own: a prediction was seen on nothing.
    let mut seen: Vec<(&str, &str)> = findings.iter().map(|f| (f.gate.as_str(), f.measured_on.as_str())).collect();
    seen.dedup();
    if !seen.is_empty() {
        println!();
    }
    for same in seen.chunk_by(|a, b| a.1 == b.1) {
        let gates: Vec<&str> = same.iter().map(|(gate, _)| *gate).collect();
        println!("measured on {}: {}", same[0].1, gates.join(", "));
    }
}
