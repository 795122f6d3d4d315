//! Architectures. Each is one file that names its blocks; a new one is that file and a row in [`ALL`].

use anemone_bundle::contract::Pairing;
use anemone_mil::build::BuildError;
use anemone_mil::ir::ValueId;

use crate::blocks::{Graph, Shared};

mod llama;
mod phi3;

/// What is particular to an architecture.
pub trait Architecture: Sync {
    /// `general.architecture` in a source.
    fn name(&self) -> &'static str;

    /// Which elements its sources pair for rotation. llama.cpp's converters permute some families' rows to interleaved
    /// pairs and leave others half-split; the file does not say which.
    fn pairing(&self) -> Pairing;

    /// One decoder layer: from the residual stream to the residual stream. `layer` is its number in the model, `state` in
    /// the shard.
    fn layer(
        &self,
        g: &mut Graph<'_>,
        layer: usize,
        state: usize,
        x: ValueId,
        shared: &Shared,
    ) -> Result<ValueId, BuildError>;
}

/// Every architecture that can be lowered.
pub const ALL: [&dyn Architecture; 2] = [&llama::Llama, &phi3::Phi3];

/// The architecture of that name.
pub fn find(name: &str) -> Option<&'static dyn Architecture> {
    ALL.into_iter().find(|a| a.name() == name)
}
