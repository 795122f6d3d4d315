//! `anemone observations`: what compute plans said against the placement rules, in the form of the rules' own data.

use std::io::Write;
use std::path::PathBuf;

use anemone_bundle::Manifest;
use anemone_gate::{evidence, residency};
use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::Value;

use crate::{Outcome, output};

/// What compute plans said against the placement rules.
#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write what a bundle's residency evidence holds against the rules, as entries of `observations.json`.
    #[command(after_help = "Example: anemone observations export phi4-mini.anemone -o observations.json --source ME")]
    Export {
        /// The bundle, after `anemone gate --only residency` on a Mac.
        bundle: PathBuf,
        /// The file; on the terminal where not given.
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// The tag under which the rules' data knows you.
        #[arg(long, default_value = residency::measured::SOURCE)]
        source: String,
    },
}

pub fn run(args: Args) -> Result<Outcome> {
    let What::Export { bundle, output: file, source } = args.what;
    let hash = Manifest::open(&bundle)?.hash();
    let findings = evidence::latest(&bundle, &hash)?;
    let plans = findings.iter().filter(|f| f.gate == residency::NAME).filter_map(|f| f.figures.get("observations"));
    let plans: Vec<&Value> = plans.collect();
    if plans.is_empty() {
        anyhow::bail!(
            "{}: no compute plan is in its evidence; run `anemone gate --only residency` on a Mac, where Core ML can be asked",
            bundle.display()
        );
    }
    let mut lines = Vec::new();
    for observation in plans.into_iter().filter_map(Value::as_array).flatten() {
        let mut observation = observation.clone();
        observation["source"] = source.clone().into();
        lines.push(format!("  {observation}"));
    }
    let text = if lines.is_empty() { "[]\n".to_owned() } else { format!("[\n{}\n]\n", lines.join(",\n")) };
    match file {
        Some(path) => output::write(&path, &text)?,
        None => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(Outcome::Done)
}
