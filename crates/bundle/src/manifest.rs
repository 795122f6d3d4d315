//! `anemone.json`: what a bundle holds, with the size and hash of every file that may not change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::contract::Contract;
use crate::layout;

/// The manifest's own version. A reader refuses one it does not know.
pub const FORMAT: u32 = 1;

/// Manifests are small; anything larger than this is not one.
const MAX_BYTES: u64 = 16 << 20;

/// The manifest of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The tool that built the bundle, with its version.
    pub tool: String,
    /// The model's name as its source gives it, for people.
    pub name: String,
    /// Where it came from.
    pub source: Source,
    /// The contract every shard carries.
    pub contract: Contract,
    /// Its hash.
    pub contract_hash: String,
    /// Token counts of the functions in each package: `[1]` or `[1, N]`.
    pub tokens: Vec<usize>,
    /// Layer shards in order.
    pub layers: Vec<Shard>,
    /// Head slices in order.
    pub head: Vec<Shard>,
    /// Every file but the manifest and the evidence, by its path inside the bundle.
    pub files: BTreeMap<String, FileEntry>,
}

/// The file a bundle was built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// File name without its folder: a bundle does not know where it was built.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

/// One package and the part of the model it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// First layer, or first row of the vocabulary.
    pub start: usize,
    /// One past the last.
    pub end: usize,
    /// The package, relative to the bundle.
    pub path: String,
}

impl Shard {
    /// `start..end`.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Size and hash of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

/// Why a manifest could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such bundle, or not a bundle.
    #[error("{path}: not a bundle: {source}")]
    Open {
        /// The manifest's path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not a manifest.
    #[error("{path}: not a manifest: {reason}")]
    Parse {
        /// The manifest's path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The parts do not fit together.
    #[error("{path}: {reason}")]
    Inconsistent {
        /// The manifest's path.
        path: PathBuf,
        /// Which parts, and how.
        reason: String,
    },
    /// A file differs from what the manifest says of it.
    #[error("{path}: {reason}; rebuild the bundle")]
    File {
        /// The file's path.
        path: PathBuf,
        /// How it differs.
        reason: String,
    },
}

impl Manifest {
    /// Reads and checks the manifest of the bundle in `folder`. The files it lists are not opened: see
    /// [`verify_files`](Self::verify_files).
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(layout::MANIFEST);
        let parse = |reason: String| Error::Parse { path: path.clone(), reason };
        let mut text = String::new();
        let file = File::open(&path).map_err(|source| Error::Open { path: path.clone(), source })?;
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| parse(e.to_string()))?;
        if read as u64 > MAX_BYTES {
            return Err(parse(format!("larger than {MAX_BYTES} bytes")));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|e| parse(e.to_string()))?;
        manifest.check().map_err(|reason| Error::Inconsistent { path, reason })?;
        Ok(manifest)
    }

    /// The text that is written to disk.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has only finite numbers and string keys");
        text.push('\n');
        text
    }

    /// Bytes of all files that it lists.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|f| f.bytes).sum()
    }

    /// The identity of a bundle: BLAKE3 of its manifest's text. Evidence names it.
    pub fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex().to_string()
    }

    /// Whether the parts fit together: the contract has the hash stated, layers are covered once and in order, head
    /// slices cover the vocabulary, and no path leaves the bundle.
    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("manifest format {} is not {FORMAT}: use the version that wrote it", self.format));
        }
        let hash = self.contract.hash();
        if self.contract_hash != hash {
            return Err(format!("contract_hash is {} and the contract's hash is {hash}", self.contract_hash));
        }
        covers("layers", &self.layers, self.contract.layers)?;
        covers("head", &self.head, self.contract.vocab)?;
        if self.tokens.first() != Some(&1) || self.tokens.len() > 2 || self.tokens.iter().skip(1).any(|&n| n < 2) {
            return Err(format!("tokens {:?} are neither [1] nor [1, N]", self.tokens));
        }
        let listed = self.files.keys().chain(self.layers.iter().chain(&self.head).map(|s| &s.path));
        for path in listed {
            if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                return Err(format!("path `{path}` does not stay inside the bundle"));
            }
        }
        Ok(())
    }

    /// Compares every listed file with its size and hash; `seen` is told the bytes of each as it is done. The work is a
    /// read of the whole bundle, so gates and checks do it, and loading does not.
    pub fn verify_files(&self, folder: &Path, mut seen: impl FnMut(u64)) -> Result<(), Error> {
        for (name, entry) in &self.files {
            let path = folder.join(name);
            let fault = |reason: String| Error::File { path: path.clone(), reason };
            let bytes = std::fs::metadata(&path).map_err(|e| fault(e.to_string()))?.len();
            if bytes != entry.bytes {
                return Err(fault(format!("is {bytes} bytes, and the manifest says {}", entry.bytes)));
            }
            let hash = hash_file(&path).map_err(|e| fault(e.to_string()))?;
            if hash != entry.blake3 {
                return Err(fault(format!("has BLAKE3 {hash}, and the manifest says {}", entry.blake3)));
            }
            seen(bytes);
        }
        Ok(())
    }
}

/// BLAKE3 of a file, in hexadecimal, on all cores.
pub fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether `shards` cover `0..total` once and in order.
fn covers(what: &str, shards: &[Shard], total: usize) -> Result<(), String> {
    let mut next = 0;
    for s in shards {
        if s.start != next || s.end <= s.start {
            return Err(format!("{what} shard {}-{} does not follow {next}", s.start, s.end));
        }
        next = s.end;
    }
    if next != total {
        return Err(format!("{what} end at {next} of {total}"));
    }
    Ok(())
}
