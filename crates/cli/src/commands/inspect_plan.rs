//! `anemone inspect --plan`: how the fast runtime executes a package, or every package of a bundle.

use std::path::{Path, PathBuf};

use anemone_bundle::{Manifest, layout};
use anemone_exec::{Fast, Model};
use anyhow::Result;
use serde_json::{Map, Value as Json, json};

use crate::ui;

/// Shows the plan of each function: its kernels in order, and equal layers once.
pub fn show(path: &Path, fast: &Fast, as_json: bool) -> Result<()> {
    let mut all = Map::new();
    for (name, package) in packages(path)? {
        let model = fast.load_fast(&package)?;
        let functions = model.functions().iter().enumerate();
        let listings = functions.map(|(i, f)| (f.name.clone(), model.listing(i), model.most_tokens(i)));
        if as_json {
            let listings = listings.map(|(f, steps, most)| (f, json!({"steps": steps, "most_tokens": most})));
            all.insert(name, Json::Object(listings.collect()));
            continue;
        }
        for (function, steps, most) in listings {
            let most = most.map_or(String::new(), |most| format!(", any number of tokens up to {most}"));
            println!("{name}: {function}, {} steps{most}", steps.len());
            steps.iter().enumerate().for_each(|(i, step)| println!("{i:>5}  {step}"));
            println!();
        }
    }
    if as_json {
        ui::json(&all)?;
    }
    Ok(())
}

/// A package by its own path, or those of a bundle.
fn packages(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !path.join(layout::MANIFEST).is_file() {
        return Ok(vec![(path.display().to_string(), path.to_owned())]);
    }
    let manifest = Manifest::open(path)?;
    let shards = manifest.layers.iter().chain(&manifest.head);
    Ok(shards.map(|shard| (shard.path.clone(), path.join(&shard.path))).collect())
}
