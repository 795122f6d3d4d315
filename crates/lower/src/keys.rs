//! Metadata keys of one architecture, read once and with a record of where each fact came from.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anemone_gguf::{Gguf, Metadata};

use crate::error::Error;

/// Where each field of a contract came from, by the field's path: `rope.dim` to `key phi3.rope.dimension_count`.
pub type Origins = BTreeMap<String, String>;

/// Typed access to `<architecture>.<suffix>` keys. Every successful read is noted as the origin of a contract field.
pub struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
    origins: RefCell<Origins>,
}

impl<'a> Keys<'a> {
    /// The keys of `architecture` in `source`.
    pub fn new(source: &'a Gguf, architecture: &'a str) -> Self {
        Self { metadata: source.metadata(), architecture, origins: RefCell::default() }
    }

    /// All metadata, for keys without the architecture's prefix.
    pub fn metadata(&self) -> &'a Metadata {
        self.metadata
    }

    /// The full name of an architecture's key.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    /// Notes that a contract field came from `origin`.
    pub fn note(&self, field: &str, origin: impl Into<String>) {
        self.origins.borrow_mut().insert(field.to_owned(), origin.into());
    }

    /// A count of at least 1 and at most 2^31.
    pub fn count(&self, field: &str, suffix: &str) -> Result<usize, Error> {
        let key = self.name(suffix);
        let value = self.metadata.usize(&key)?;
        if value == 0 || value > 1 << 31 {
            return Err(Error::Key { key, value: value.to_string(), reason: "expected 1 to 2^31".into() });
        }
        self.note(field, format!("key {key}"));
        Ok(value)
    }

    /// The same, where the file may leave it out.
    pub fn optional_count(&self, field: &str, suffix: &str) -> Result<Option<usize>, Error> {
        if self.has(suffix) { self.count(field, suffix).map(Some) } else { Ok(None) }
    }

    /// A finite number above zero.
    pub fn positive(&self, field: &str, suffix: &str) -> Result<f32, Error> {
        let key = self.name(suffix);
        let value = self.metadata.f32(&key)?;
        if !value.is_finite() || value <= 0.0 {
            return Err(Error::Key {
                key,
                value: value.to_string(),
                reason: "expected a finite number above 0".into(),
            });
        }
        self.note(field, format!("key {key}"));
        Ok(value)
    }

    /// Whether the file has the key.
    pub fn has(&self, suffix: &str) -> bool {
        self.metadata.contains(&self.name(suffix))
    }

    /// An error about one key's value.
    pub fn fault(&self, suffix: &str, value: impl ToString, reason: impl Into<String>) -> Error {
        Error::Key { key: self.name(suffix), value: value.to_string(), reason: reason.into() }
    }

    /// What was noted.
    pub fn into_origins(self) -> Origins {
        self.origins.into_inner()
    }
}
