//! `anemone models`: what the cache of models and bundles holds.

use std::path::Path;

use anemone_bundle::Manifest;
use anemone_hub::{Kept, Name};
use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::json;

use crate::ui::{self, Ui};
use crate::{Outcome, cache};

/// List, or remove, the models that were pulled, and the bundles that were made of GGUF files on the way.
#[derive(Parser)]
#[command(after_help = "The cache is $ANEMONE_CACHE, or anemone in the user's cache folder; in it, models and bundles.

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
    let (folder, models) = (cache::bundles()?, cache::models()?);
    for name in &args.remove {
        match Name::is_meant(name) {
            true => models.remove(name).with_context(|| "`anemone models` lists what there is")?,
            false => remove(&folder, name)?,
        }
        ui.say(format_args!("removed {name}"));
    }
    if !args.remove.is_empty() {
        return Ok(Outcome::Done);
    }
    let (models, bundles) = (models.list()?, list(&folder)?);
    if args.json {
        let model =
            |m: &Kept| json!({"kind": "model", "name": m.name, "path": m.path, "bytes": m.bytes, "whole": m.whole});
        let bundle = |(name, m): &(String, Manifest)| {
            json!({"kind": "bundle", "name": name, "path": folder.join(name), "bytes": m.bytes(), "source": m.source.file,
                "weights": m.contract.weights, "context": m.contract.context})
        };
        let rows: Vec<_> = models.iter().map(model).chain(bundles.iter().map(bundle)).collect();
        ui::json(&rows)?;
        return Ok(Outcome::Done);
    }
    let model = |m: &Kept| {
        let state = if m.whole { "as pulled" } else { "in part: pull it again" };
        vec![m.name.clone(), ui::bytes(m.bytes).to_string(), state.to_owned(), String::new(), String::new()]
    };
    let bundle = |(name, m): &(String, Manifest)| {
        let (size, contract) = (ui::bytes(m.bytes()).to_string(), &m.contract);
        vec![name.clone(), size, m.source.file.clone(), contract.weights.to_string(), contract.context.to_string()]
    };
    let rows: Vec<_> = models.iter().map(model).chain(bundles.iter().map(bundle)).collect();
    ui::table(&["name", "size", "source", "weights", "context"], &rows);
    Ok(Outcome::Done)
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
