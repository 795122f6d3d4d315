//! A source that has been read and found to be a model that can be lowered.

use std::sync::Arc;

use anemone_bundle::Contract;
use anemone_gguf::Gguf;

use crate::arch::{self, Architecture};
use crate::contract::{self, Options};
use crate::error::Error;
use crate::keys::{Keys, Origins};
use crate::structure::Structure;

/// A source, its contract, and where the contract came from.
pub struct Model {
    /// The source.
    pub source: Arc<Gguf>,
    /// Its file name, without the folder.
    pub file_name: String,
    /// What it is.
    pub contract: Contract,
    /// Where each field of the contract was read.
    pub origins: Origins,
    pub(crate) structure: Structure,
    pub(crate) architecture: &'static dyn Architecture,
}

impl Model {
    /// Reads the contract and holds every tensor to it. Nothing is dequantised yet.
    pub fn new(source: Arc<Gguf>, file_name: &str, options: &Options) -> Result<Self, Error> {
        let name = source.metadata().str("general.architecture")?;
        let architecture = arch::find(name).ok_or_else(|| Error::Architecture {
            found: name.to_owned(),
            known: arch::ALL.map(|a| a.name()).join(", "),
        })?;
        let keys = Keys::new(&source, architecture.name());
        let (contract, structure) = contract::read(&source, architecture, &keys, options)?;
        let origins = keys.into_origins();
        Ok(Self { source, file_name: file_name.to_owned(), contract, origins, structure, architecture })
    }

    /// The model's name for people: `general.name`, or its architecture where the file has none.
    pub fn name(&self) -> &str {
        self.source.metadata().str("general.name").unwrap_or(&self.contract.architecture)
    }
}
