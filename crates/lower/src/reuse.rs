//! Head slices and embedding of a bundle that was proven before: taken over by hash instead of made again.
//!
//! A fused topology differs from its baseline in the layer shards alone. Where contract, source, token counts and the cut of the
//! head agree, the rest is the same bytes, and sharing them (hard links where the file system has them) keeps what was proven
//! of them true.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anemone_bundle::manifest::{self, FileEntry, Source};
use anemone_bundle::{Contract, Manifest};

use crate::build::{Kind, Plan};
use crate::error::Error;
use crate::ledger::Entries;
use crate::staging::failed;

/// A bundle to take pieces from.
#[derive(Clone, Debug)]
pub struct Baseline {
    folder: PathBuf,
    manifest: Manifest,
}

impl Baseline {
    /// Opens a bundle's manifest.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let manifest = Manifest::open(folder).map_err(|e| refused(e.to_string()))?;
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Whether its head and embedding are what this plan would make; the error names every difference.
    pub(crate) fn fits(
        &self,
        contract: &Contract,
        source: &Source,
        tokens: &[usize],
        plan: &Plan,
    ) -> Result<(), Error> {
        let own = &self.manifest;
        let mut faults: Vec<String> = own.contract.differences(contract);
        let mut hold = |what: &str, theirs: String, ours: String| {
            if theirs != ours {
                faults.push(format!("{what}: {theirs} against {ours}"));
            }
        };
        hold("source", own.source.blake3.clone(), source.blake3.clone());
        hold("tokens", format!("{:?}", own.tokens), format!("{tokens:?}"));
        let theirs: Vec<_> = own.head.iter().map(|s| s.range()).collect();
        hold("head slices", format!("{theirs:?}"), format!("{:?}", plan.topology.head));
        match faults.is_empty() {
            true => Ok(()),
            false => {
                Err(refused(format!("{} cannot be reused, it differs in {}", self.folder.display(), faults.join("; "))))
            }
        }
    }

    /// Whether a piece of this kind is taken over.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        kind != Kind::Layers
    }

    /// Puts the files of a piece into `folder`, after comparing each with its hash.
    pub(crate) fn take(&self, piece: &str, folder: &Path) -> Result<Entries, Error> {
        let inside = format!("{piece}/");
        let files = self.manifest.files.iter().filter(|(name, _)| *name == piece || name.starts_with(&inside));
        let files: Entries = files.map(|(name, entry)| (name.clone(), entry.clone())).collect();
        if files.is_empty() {
            return Err(refused(format!("{} lists no file of {piece}", self.folder.display())));
        }
        for (name, entry) in &files {
            self.take_file(name, entry, folder)?;
        }
        Ok(files)
    }

    fn take_file(&self, name: &str, entry: &FileEntry, folder: &Path) -> Result<(), Error> {
        let (from, to) = (self.folder.join(name), folder.join(name));
        let hash = manifest::hash_file(&from).map_err(failed(&from))?;
        if hash != entry.blake3 {
            let path = from.display();
            return Err(refused(format!(
                "{path} has BLAKE3 {hash}, and its manifest says {}: the bundle is damaged",
                entry.blake3
            )));
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        // Another file system, or one without links: then there are two copies.
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all()).map_err(failed(&to))?;
        }
        Ok(())
    }
}

fn refused(reason: String) -> Error {
    Error::Option { option: "--reuse", reason }
}
