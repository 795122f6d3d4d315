//! `anemone export`: the published runtime's manifest.

use std::path::{Path, PathBuf};

use anemone_bundle::Manifest;
use anemone_chat::{Conversation, Message, Voice};
use anemone_gate::{evidence, runtime_meta};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use serde_json::json;

use super::journal;
use crate::ui::{self, Ui};
use crate::{Outcome, output};

/// Write the published runtime's manifest into a bundle that the gates have proven.
#[derive(Parser)]
#[command(
    after_help = "The file lies beside the bundle's own manifest and is no part of its hash. Its paths name compiled packages, which only a \
    Mac can make: the two lines that make them are printed.

Example: anemone export phi4-mini.anemone --runtime-meta"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// The runtime's manifest. NAME is a file name ending in .json, or a family that replaces the model's name in the usual one:
    /// <family>_runtime_meta_rope<R>_<tag>_<sizes>.json
    #[arg(long, value_name = "NAME", num_args = 0..=1, required = true, default_missing_value = "")]
    pub runtime_meta: String,
    /// The tag in the file's name.
    #[arg(long, default_value = "fast")]
    pub tag: String,
    /// Export without evidence, and say so in the file.
    #[arg(long)]
    pub unproven: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let manifest = Manifest::open(&args.bundle)?;
    let reasons = runtime_meta::inexpressible(&manifest);
    if !reasons.is_empty() {
        bail!("the published runtime cannot run this model: {}", reasons.join("; "));
    }
    let turn_end = turn_end(&args.bundle, &manifest)?;
    let hash = manifest.hash();
    let findings =
        evidence::latest(&args.bundle, &hash).with_context(|| format!("{}: evidence", args.bundle.display()))?;
    let missing = runtime_meta::unproven(&manifest, &findings);
    if !missing.is_empty() && !args.unproven {
        bail!(
            "bundle {} is not proven: {}; run `anemone gate`, or export with --unproven",
            &hash[..12],
            journal::few(missing).join("; ")
        );
    }
    let bar = ui.bytes(manifest.bytes());
    bar.doing("comparing hashes");
    // Evidence speaks of the manifest's hash; the files must still be the ones it lists.
    manifest.verify_files(&args.bundle, |bytes| bar.advance(bytes))?;
    drop(bar);

    let name = file_name(&args, &manifest)?;
    let path = args.bundle.join(&name);
    let mut text = serde_json::to_string_pretty(&runtime_meta::meta(&manifest, turn_end, &missing))?;
    text.push('\n');
    output::write(&path, &text)?;
    if args.json {
        ui::json(&json!({
            "path": path,
            "unproven": missing,
            "remarks": runtime_meta::remarks(&manifest, turn_end),
            "compile": runtime_meta::compile_lines(),
        }))?;
        return Ok(Outcome::Done);
    }
    println!("{}", path.display());
    for remark in runtime_meta::remarks(&manifest, turn_end) {
        ui.say(format_args!("note: {remark}"));
    }
    if !missing.is_empty() {
        ui.say(format_args!("note: exported without proof; the file lists what is missing in `anemone_unproven`"));
    }
    println!("\nOn a Mac, in the bundle's folder:");
    for line in runtime_meta::compile_lines() {
        println!("  {line}");
    }
    Ok(Outcome::Done)
}

/// The token that ends a turn, as the bundle's own chat template shows it.
fn turn_end(bundle: &Path, manifest: &Manifest) -> Result<u32> {
    let voice = Voice::open(bundle).with_context(|| bundle.display().to_string())?;
    let turns = [("user", "a"), ("assistant", "b"), ("user", "c")].map(|(role, text)| Message::new(role, text));
    let between = match voice.template.is_some() {
        true => voice.prompt(&Conversation::new(turns.into()))?.ids,
        false => Vec::new(),
    };
    runtime_meta::turn_end(&manifest.contract, &between)
        .map_err(|e| anyhow!("the published runtime cannot run this model: {e}"))
}

/// The file's name; it stays inside the bundle and replaces nothing of it.
fn file_name(args: &Args, manifest: &Manifest) -> Result<String> {
    let plain = |text: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !text.starts_with('.')
    };
    if !plain(&args.tag) {
        bail!("--tag: `{}` is not letters, digits, `-`, `_` and `.`", args.tag);
    }
    let name = match args.runtime_meta.as_str() {
        "" => runtime_meta::file_name(&runtime_meta::family(&manifest.name), &args.tag, manifest),
        name if name.ends_with(".json") => name.to_owned(),
        family => runtime_meta::file_name(family, &args.tag, manifest),
    };
    if !plain(&name) {
        bail!("--runtime-meta: `{name}` is not a file name of letters, digits, `-`, `_` and `.`");
    }
    if name == anemone_bundle::layout::MANIFEST || manifest.files.contains_key(&name) {
        bail!("--runtime-meta: `{name}` is a file of the bundle");
    }
    Ok(name)
}
