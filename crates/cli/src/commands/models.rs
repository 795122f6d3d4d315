//! `anemone models`: what the cache of bundles holds.

use std::path::Path;

use anemone_bundle::Manifest;
use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::json;

use crate::ui::{self, Ui};
use crate::{Outcome, cache};

/// List, or remove, the bundles that were made of GGUF files on the way.
#[derive(Parser)]
#[command(after_help = "The cache is $ANEMONE_CACHE/bundles, or anemone/bundles in the user's cache folder.

Example: anemone models --remove phi4-mini-1a2b3c4d.anemone")]
pub struct Args {
    /// Remove this one; may be given more than once.
    #[arg(long, value_name = "NAME")]
    pub remove: Vec<String>,
    /// Print JSON.
    #[arg(long, conflicts_with = "remove")]
    pub json: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let folder = cache::bundles()?;
    for name in &args.remove {
        remove(&folder, name)?;
        ui.say(format_args!("removed {name}"));
    }
    if !args.remove.is_empty() {
        return Ok(Outcome::Done);
    }
    let found = list(&folder)?;
    if args.json {
        let rows: Vec<_> = found
            .iter()
            .map(|(name, m)| {
                json!({"name": name, "source": m.source.file, "bytes": bytes(m), "weights": m.contract.weights, "context": m.contract.context})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(name, m)| {
            let size = ui::bytes(bytes(m)).to_string();
            vec![
                name.clone(),
                m.source.file.clone(),
                size,
                m.contract.weights.to_string(),
                m.contract.context.to_string(),
            ]
        })
        .collect();
    ui::table(&["name", "source", "size", "weights", "context"], &rows);
    Ok(Outcome::Done)
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.bytes()
}

/// Whole bundles by name; what is none is not listed.
fn list(folder: &Path) -> Result<Vec<(String, Manifest)>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e).with_context(|| folder.display().to_string()),
    };
    for entry in entries {
        let entry = entry.with_context(|| folder.display().to_string())?;
        if let Ok(manifest) = Manifest::open(&entry.path()) {
            found.push((entry.file_name().to_string_lossy().into_owned(), manifest));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Removes a bundle of the cache, and nothing else: the name is one of those listed.
fn remove(folder: &Path, name: &str) -> Result<()> {
    if !list(folder)?.iter().any(|(known, _)| known == name) {
        bail!("no bundle `{name}` in {}; `anemone models` lists them", folder.display());
    }
    let path = folder.join(name);
    std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())
}
