//! `anemone smoke`: the Erlang question, its answer, and what the answer does.

use std::path::{Path, PathBuf};

use anemone_bundle::Manifest;
use anemone_chat::generate::{Answer, generate};
use anemone_gate::journal::{self, Heading, Line};
use anemone_gate::verdict::TOOL;
use anemone_gate::{Finding, Verdict, evidence, smoke};
use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use crate::Outcome;
use crate::options::RuntimeArgs;
use crate::speak::{LimitArgs, SamplingArgs, Speaker, question};
use crate::ui::{self, Ui};

/// The question the published pipeline answered with garbage.
pub const QUESTION: &str = "write hello world in Erlang";

/// Tokens of the answer at most, where nobody says: a hello world with its explanation.
pub const MAX_TOKENS: usize = 256;

/// Ask a bundle for hello world in Erlang, and run what it answers.
#[derive(Parser)]
#[command(
    after_help = "The program runs under escript in a scratch folder, without network where the system allows that, with limits on time, memory \
    and output. It passes when it prints `Hello, World!` and ends well; without Erlang the verdict is `skipped`.

Exit codes: 0 passed or skipped; 1 failed; 2 the request was bad.

Example: anemone smoke phi4-mini.anemone"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// Ask with a system prompt.
    #[arg(long)]
    pub system: Option<String>,
    /// Tokens of the answer at most.
    #[arg(long, default_value_t = MAX_TOKENS)]
    pub max_tokens: usize,
    /// Print the finding as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let manifest = Manifest::open(&args.bundle)?;
    let (finding, answer) = judge(&args.bundle, &manifest, args.system.as_deref(), args.max_tokens, &args.runtime, ui)?;
    evidence::append(&args.bundle, std::slice::from_ref(&finding))
        .with_context(|| format!("{}: evidence", args.bundle.display()))?;
    record(&args.bundle, &finding)?;
    match args.json {
        true => ui::json(&finding)?,
        false => {
            println!("> {QUESTION}\n\n{}\n", answer.text.trim_end());
            println!("{}: {}", finding.verdict.name(), finding.message);
            println!("measured on: {}", finding.measured_on);
        }
    }
    Ok(if finding.verdict == Verdict::Failed { Outcome::Failed } else { Outcome::Done })
}

/// Asks, runs the answer, and gives the finding with question, answer and timings.
pub fn judge(
    bundle: &Path,
    manifest: &Manifest,
    system: Option<&str>,
    max_tokens: usize,
    runtime: &RuntimeArgs,
    ui: &Ui,
) -> Result<(Finding, Answer)> {
    let speaker = Speaker::open(bundle, runtime, ui)?;
    let prompt = speaker.voice.prompt(&question(system, QUESTION))?;
    let limits = LimitArgs { max_tokens: Some(max_tokens), stop: Vec::new() }.limits(None);
    let mut sampler = SamplingArgs::greedy().sampler()?;
    let mut session = speaker.engine.session()?;
    let bar = ui.steps(1);
    bar.doing("answering");
    let mut listen = |_: &str| std::ops::ControlFlow::Continue(());
    let answer = generate(&mut session, &speaker.voice.tokenizer, &prompt.ids, &mut sampler, &limits, &mut listen)?;
    bar.doing("running the answer");
    let ran = smoke::run_answer(&answer.text);
    drop(bar);
    let t = &answer.timings;
    let finding = Finding {
        gate: smoke::NAME.into(),
        subject: "bundle".into(),
        verdict: ran.verdict,
        measured_on: format!("{}, {TOOL}", speaker.runtime),
        bundle: manifest.hash(),
        message: ran.message,
        figures: json!({
            "question": QUESTION,
            "answer": answer.text,
            "code": smoke::fenced(&answer.text),
            "timings": {
                "prompt_tokens": t.prompt_tokens,
                "prompt_ms": t.prompt_ms,
                "generated_tokens": t.generated_tokens,
                "decode_ms": t.decode_ms,
                "prompt_tokens_per_second": finite(t.prompt_rate()),
                "generated_tokens_per_second": finite(t.decode_rate()),
            },
        }),
    };
    Ok((finding, answer))
}

/// A rate over no time at all is none.
fn finite(rate: f64) -> Option<f64> {
    rate.is_finite().then_some(rate)
}

/// The journal's line.
fn record(bundle: &Path, finding: &Finding) -> Result<()> {
    let rate = finding.figures["timings"]["generated_tokens_per_second"].as_f64();
    let rate = rate.map_or(String::new(), |r| format!("; {r:.1} tokens a second"));
    let text = format!("smoke {}: {}{rate} ({})", finding.verdict.name(), finding.message, finding.measured_on);
    let path = journal::of_bundle(bundle);
    journal::append(&path, &[Line::now(Heading::Result, text, Some(&finding.bundle))])
        .with_context(|| path.display().to_string())
}
