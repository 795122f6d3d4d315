//! `anemone pull`: the one command that goes out for something.

use std::cell::Cell;

use anemone_hub::{Error, Hub, Name, Progress};
use anyhow::Result;
use clap::Parser;
use serde_json::json;

use crate::ui::{self, Bar, Ui};
use crate::{Outcome, cache};

/// Get a model from the Hugging Face Hub, verified, into the cache.
#[derive(Parser)]
#[command(
    after_help = "What arrived before a cut is kept, and the next pull goes on from there. The file gets its name when its SHA-256 is \
the listed one. Of a split model all files come. $HF_TOKEN is sent to the hub alone; $HF_ENDPOINT names another one.

Other commands take the same name for a model, and never go out for it: anemone chat hf:OWNER/REPO

Example: anemone pull hf:bartowski/microsoft_Phi-4-mini-instruct-GGUF:microsoft_Phi-4-mini-instruct-Q8_0.gguf"
)]
pub struct Args {
    /// hf:OWNER/REPO:FILE, or hf:OWNER/REPO where that has one model; where it has several, they are listed.
    #[arg(value_name = "MODEL")]
    pub name: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let name: Name = args.name.parse()?;
    let hub = Hub::from_env()?;
    let listing = hub.list(&name.repo)?;
    let model = match listing.choose(name.file.as_deref()) {
        Err(Error::Several { repo, models }) => {
            if args.json {
                let row = |(file, bytes): &(String, u64)| json!({"name": format!("{repo}:{file}"), "bytes": bytes});
                ui::json(&json!({"several": models.iter().map(row).collect::<Vec<_>>()}))?;
            } else {
                let row = |(file, bytes): &(String, u64)| vec![format!("{repo}:{file}"), ui::bytes(*bytes).to_string()];
                ui::table(&["model", "size"], &models.iter().map(row).collect::<Vec<_>>());
            }
            return Err(Error::Several { repo, models }.into());
        }
        chosen => chosen?,
    };
    let watch = Watch { bar: ui.bytes(model.bytes()), here: Cell::new(None), ui };
    let path = hub.pull(&listing, &model, &cache::models()?, &watch)?;
    drop(watch);
    let name = format!("{}:{}", name.repo, model.path());
    if args.json {
        let file = |f: &anemone_hub::RemoteFile| json!({"file": f.path, "bytes": f.size, "sha256": f.sha256});
        let files: Vec<_> = model.files.iter().map(file).collect();
        ui::json(&json!({"name": name, "revision": listing.revision, "path": path, "files": files}))?;
    } else {
        println!("{}", path.display());
        ui.say(format_args!("verified; `anemone chat {name}` talks with it"));
    }
    Ok(Outcome::Done)
}

/// A bar, which what an earlier command left does not make fast.
struct Watch<'a> {
    bar: Bar,
    here: Cell<Option<u64>>,
    ui: &'a Ui,
}

impl Progress for Watch<'_> {
    fn file(&self, path: &str) {
        self.bar.doing(path);
    }

    fn here(&self, bytes: u64) {
        match self.here.replace(Some(bytes)) {
            Some(before) if before <= bytes => self.bar.advance(bytes - before),
            _ => self.bar.begins_at(bytes),
        }
    }

    fn again(&self, why: &Error) {
        self.ui.say(format_args!("{why}; asking again"));
    }
}
