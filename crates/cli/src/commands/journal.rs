//! `anemone journal`: what was meant and what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anemone_bundle::Manifest;
use anemone_gate::journal::{self, Entry, Heading, Line};
use anemone_gate::{Finding, Verdict, evidence, runtime_meta};
use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::Outcome;
use crate::ui::{self, Ui};

/// List, show or add to a bundle's journal.
#[derive(Parser)]
#[command(
    after_help = "`anemone build --intent TEXT` opens an entry before work starts; gates and smoke append what they found. Headings: Intent, \
    Setup, Result, Surprise, Lesson, Next, Refs; an Intent opens a new entry.

Example: anemone journal phi4-mini.anemone --add Lesson 'the tail must stay split'"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// Show only this entry, in full.
    #[arg(long, value_name = "NUMBER", conflicts_with = "add")]
    pub show: Option<usize>,
    /// Append a line under a heading.
    #[arg(long, num_args = 2, value_names = ["HEADING", "TEXT"])]
    pub add: Option<Vec<String>>,
    /// As JSON.
    #[arg(long, conflicts_with = "add")]
    pub json: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let manifest = Manifest::open(&args.bundle)?;
    let path = journal::of_bundle(&args.bundle);
    if let Some([heading, text]) = args.add.as_deref() {
        let heading: Heading = heading.parse().map_err(|e| anyhow::anyhow!("--add: {e}"))?;
        if text.trim().is_empty() {
            bail!("--add: nothing to say under {}", heading.name());
        }
        let line = Line::now(heading, text.trim(), Some(&manifest.hash()));
        journal::append(&path, &[line]).with_context(|| path.display().to_string())?;
        ui.say(format_args!("added under {}", heading.name()));
        return Ok(Outcome::Done);
    }
    let mut entries = journal::entries(journal::read(&path).with_context(|| path.display().to_string())?);
    let all = entries.len();
    if let Some(number) = args.show {
        entries.retain(|e| e.number == number);
        if entries.is_empty() {
            bail!("--show: there is no entry {number}; the journal has {all}");
        }
    }
    if args.json {
        ui::json(&entries)?;
    } else if entries.is_empty() {
        println!("the journal is empty");
    } else if args.show.is_some() {
        entries.iter().for_each(show);
    } else {
        list(&entries);
    }
    Ok(Outcome::Done)
}

/// Lines for what gates found: how often each verdict, with the worst figures; what failed or decided nothing, as a surprise; and what
/// the bundle's evidence lacks before it may be exported.
pub fn record(bundle: &Path, manifest: &Manifest, findings: &[Finding]) -> Result<()> {
    let Some(first) = findings.first() else { return Ok(()) };
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for f in findings {
        *counts.entry(&f.gate).or_default().entry(f.verdict.name()).or_default() += 1;
    }
    let mut outcome = Vec::new();
    for (gate, verdicts) in counts {
        let verdicts: Vec<String> = verdicts.iter().map(|(verdict, n)| format!("{n} {verdict}")).collect();
        let of = || findings.iter().filter(|f| f.gate == gate);
        let worst = |against: &str| {
            let all = of().filter_map(|f| f.figures[against]["worst"]["relative_rmse"].as_f64());
            all.fold(None, |worst: Option<f64>, v| Some(worst.map_or(v, |w| w.max(v))))
        };
        let figures = match (worst("tight"), worst("cost")) {
            (Some(tight), Some(cost)) => {
                format!("; worst relative rmse {tight:.1e}, with quantisation {cost:.1e} ({})", first_seen(of()))
            }
            _ => String::new(),
        };
        outcome.push(format!("{gate}: {}{figures}", verdicts.join(", ")));
    }
    let surprising = |f: &&Finding| matches!(f.verdict, Verdict::Failed | Verdict::Inconclusive);
    let line = |f: &Finding| format!("{}, {}: {}", f.gate, f.subject, f.message.lines().next().unwrap_or(""));
    let surprises: Vec<String> = findings.iter().filter(surprising).map(line).collect();
    let missing = few(runtime_meta::unproven(manifest, &evidence::latest(bundle, &first.bundle)?));
    let paragraphs = [(Heading::Result, outcome), (Heading::Surprise, surprises), (Heading::Next, missing)];
    let written = paragraphs.into_iter().filter(|(_, text)| !text.is_empty());
    let lines: Vec<Line> =
        written.map(|(heading, text)| Line::now(heading, text.join("\n"), Some(&first.bundle))).collect();
    let path = journal::of_bundle(bundle);
    journal::append(&path, &lines).with_context(|| path.display().to_string())
}

/// The first few, and how many more there are.
pub fn few(mut missing: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 4;
    let more = missing.len().saturating_sub(SHOWN);
    missing.truncate(SHOWN);
    if more > 0 {
        missing.push(format!("and {more} more"));
    }
    missing
}

/// What the first of these was seen on.
fn first_seen<'a>(mut findings: impl Iterator<Item = &'a Finding>) -> &'a str {
    findings.next().map_or("", |f| f.measured_on.as_str())
}

fn list(entries: &[Entry]) {
    let row = |e: &Entry| {
        let last = e.lines.last();
        let first_line = |text: &str| text.lines().next().unwrap_or("").chars().take(70).collect::<String>();
        vec![
            e.number.to_string(),
            e.lines.first().map_or(String::new(), Line::time),
            first_line(e.title()),
            e.lines.len().to_string(),
            last.filter(|_| e.lines.len() > 1)
                .map_or(String::new(), |l| format!("{}: {}", l.heading.name(), first_line(&l.text))),
        ]
    };
    ui::table(&["entry", "opened", "intent", "lines", "last"], &entries.iter().map(row).collect::<Vec<_>>());
}

fn show(entry: &Entry) {
    println!("Entry {}", entry.number);
    for line in &entry.lines {
        println!("\n{} ({})\n{}", line.heading.name(), line.time(), line.text);
    }
}
