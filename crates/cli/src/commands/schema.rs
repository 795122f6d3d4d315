//! `anemone schema`: what programs that read the output of others may rely on.
//!
//! The schemas are files of the repository (`docs/schemas`), and `crosscheck/schemas.py` holds the commands to them.

use anyhow::Result;
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::Outcome;

/// Print the JSON Schema of what a command prints with `--json`.
#[derive(Parser)]
#[command(after_help = "A field that a schema requires stays what it is; others may be added.

Example: anemone schema bench")]
pub struct Args {
    /// The command; without it, those that there are.
    #[arg(value_parser = PossibleValuesParser::new(SCHEMAS.map(|(name, _)| name)))]
    pub command: Option<String>,
}

/// Each command that has `--json`, with its schema.
const SCHEMAS: [(&str, &str); 14] = [
    ("bench", include_str!("../../../../docs/schemas/bench.json")),
    ("build", include_str!("../../../../docs/schemas/build.json")),
    ("check", include_str!("../../../../docs/schemas/check.json")),
    ("doctor", include_str!("../../../../docs/schemas/doctor.json")),
    ("export", include_str!("../../../../docs/schemas/export.json")),
    ("gate", include_str!("../../../../docs/schemas/gate.json")),
    ("generate", include_str!("../../../../docs/schemas/generate.json")),
    ("inspect", include_str!("../../../../docs/schemas/inspect.json")),
    ("journal", include_str!("../../../../docs/schemas/journal.json")),
    ("models", include_str!("../../../../docs/schemas/models.json")),
    ("pull", include_str!("../../../../docs/schemas/pull.json")),
    ("run", include_str!("../../../../docs/schemas/run.json")),
    ("smoke", include_str!("../../../../docs/schemas/smoke.json")),
    ("sweep", include_str!("../../../../docs/schemas/sweep.json")),
];

pub fn run(args: Args) -> Result<Outcome> {
    for (name, schema) in SCHEMAS {
        match &args.command {
            None => println!("{name}"),
            Some(command) if command == name => print!("{schema}"),
            Some(_) => {}
        }
    }
    Ok(Outcome::Done)
}
