//! `anemone report`: the evidence as one page.

use std::path::PathBuf;

use anemone_bundle::Manifest;
use anemone_gate::report;
use anyhow::{Context, Result};
use clap::Parser;

use crate::ui::Ui;
use crate::{Outcome, output};

/// Everything that is known of a bundle as one HTML page that asks nobody for anything.
#[derive(Parser)]
#[command(after_help = "Example: anemone report phi4-mini.anemone -o phi4-mini.html")]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// Where the page goes; one that is there is replaced.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let manifest = Manifest::open(&args.bundle)?;
    let page =
        report::render(&args.bundle, &manifest).with_context(|| format!("{}: evidence", args.bundle.display()))?;
    output::write(&args.output, &page)?;
    ui.say(format_args!("{}", args.output.display()));
    Ok(Outcome::Done)
}
