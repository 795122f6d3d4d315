//! Bundles made on the way: a GGUF where a bundle is expected is built into a folder of this user's, once. Beside them are the
//! models that `anemone pull` got, which have names of their own.
//!
//! A bundle there is named by its model's file name and a hash of where, how large and how new that file is: a file that
//! changed is another model, and is built anew.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anemone_bundle::Manifest;
use anemone_gate::residency::Target;
use anemone_gate::{Subject, Verdict};
use anemone_hub::{Name, Store};
use anemone_lower::Access;
use anyhow::{Context, Result, bail};

use crate::commands::build::{self, Cut};
use crate::commands::gate::{self, Gate};
use crate::commands::proof::ProofArgs;
use crate::options::{RuntimeArgs, WeightsArg, open_source};
use crate::ui::Ui;

/// This program's folder of things that can be made again: `ANEMONE_CACHE`, or `anemone` in the user's cache.
pub fn home() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set(if cfg!(windows) { "LOCALAPPDATA" } else { "HOME" });
    let caches = || if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    let user = || set("XDG_CACHE_HOME").or_else(|| home().map(|h| if cfg!(windows) { h } else { h.join(caches()) }));
    set("ANEMONE_CACHE")
        .or_else(|| user().map(|c| c.join("anemone")))
        .context("no folder to keep bundles and compiled packages in: set ANEMONE_CACHE")
}

/// Where the bundles are.
pub fn bundles() -> Result<PathBuf> {
    Ok(home()?.join("bundles"))
}

/// The models that were pulled.
pub fn models() -> Result<Store> {
    Ok(Store::new(home()?.join("models")))
}

/// The file of a model that is named by its path, or as `hf:OWNER/REPO:FILE` if it was pulled.
pub fn model(path: &Path) -> Result<PathBuf> {
    match path.to_str().filter(|text| Name::is_meant(text)) {
        Some(name) => Ok(models()?.find(&name.parse()?)?),
        None => Ok(path.to_owned()),
    }
}

/// The bundle that `path` is, or of the GGUF that it is: made and gated if it is not there yet.
pub fn bundle(path: &Path, runtime: &RuntimeArgs, ui: &Ui) -> Result<PathBuf> {
    let path = &model(path)?;
    if !path.is_file() {
        return Ok(path.to_owned());
    }
    let target = bundles()?.join(name(path)?);
    if Manifest::open(&target).is_ok() {
        return Ok(target);
    }
    ui.say(format_args!("building {} into {}; the next time it starts at once", path.display(), target.display()));
    let source = open_source(path)?;
    std::fs::create_dir_all(bundles()?).with_context(|| target.display().to_string())?;
    let cut = Cut {
        topology: None,
        layers_per_shard: None,
        head_slices: None,
        weights: WeightsArg::Int8Channel,
        context: None,
        tokens: None,
    };
    build::build(&build::prepare(path, source.clone(), &cut)?, &target, Access::Alone, ui)?;
    // The gates that need no long forward: is it well formed, and of this model?
    let subject = Subject::open(&target, source)?;
    let gates = [Gate::Contract, Gate::Compile, Gate::Weights];
    let findings = gate::judge(&subject, &gates, Target::default(), &ProofArgs::default(), runtime, ui)?;
    let failed: Vec<String> = findings
        .iter()
        .filter(|f| f.verdict == Verdict::Failed)
        .map(|f| format!("{}: {}", f.gate, f.message))
        .collect();
    if !failed.is_empty() {
        std::fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
        bail!("the bundle of {} fails its gates ({})", path.display(), failed.join("; "));
    }
    ui.say(format_args!("none of {} gates failed; `anemone gate` runs all of them", gates.len()));
    Ok(target)
}

/// What the bundle of a file is called.
fn name(path: &Path) -> Result<String> {
    let whole = path.canonicalize().with_context(|| path.display().to_string())?;
    let about = whole.metadata().with_context(|| path.display().to_string())?;
    let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let facts = format!("{}\n{}\n{}", whole.display(), about.len(), changed.as_nanos());
    let hash = blake3::hash(facts.as_bytes()).to_hex();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(format!("{stem}-{}.anemone", &hash[..8]))
}
