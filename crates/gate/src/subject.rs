//! What is judged: a bundle, and the source it claims to come from.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anemone_bundle::{Manifest, manifest};
use anemone_gguf::Gguf;
use anemone_reference as reference;
use serde_json::Value;

use crate::verdict::{Finding, TOOL, Verdict};

/// A bundle and its source.
pub struct Subject {
    /// The bundle's folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The source.
    pub source: Arc<Gguf>,
    hash: String,
    /// The reference on the source: [`own::source`](crate::own::source).
    pub(crate) reference: OnceLock<Arc<reference::Model>>,
}

impl Subject {
    /// Opens the manifest. Everything else is a gate's work.
    pub fn open(folder: &Path, source: Arc<Gguf>) -> Result<Self, manifest::Error> {
        let manifest = Manifest::open(folder)?;
        let hash = manifest.hash();
        Ok(Self { folder: folder.to_owned(), manifest, source, hash, reference: OnceLock::new() })
    }

    /// Paths of all packages with the role each must state, layer shards first.
    pub fn packages(&self) -> impl Iterator<Item = (&str, String)> {
        use anemone_bundle::layout::{head_role, layers_role};
        let layers = self.manifest.layers.iter().map(|s| (s.path.as_str(), layers_role(&s.range())));
        layers.chain(self.manifest.head.iter().map(|s| (s.path.as_str(), head_role(&s.range()))))
    }

    /// A finding about a part of this bundle.
    pub(crate) fn finding(
        &self,
        gate: &str,
        subject: &str,
        verdict: Verdict,
        seen_on: &str,
        message: String,
    ) -> Finding {
        Finding {
            gate: gate.to_owned(),
            subject: subject.to_owned(),
            verdict,
            measured_on: format!("{seen_on}, {TOOL}"),
            bundle: self.hash.clone(),
            message,
            figures: Value::Null,
        }
    }
}
