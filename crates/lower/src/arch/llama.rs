//! Llama and its kin (SmolLM2 among them): pre-norm attention and a gated feed-forward block. Its sources hold query and key
//! rows permuted to interleaved pairs, as llama.cpp's converter writes them for this architecture.

use anemone_bundle::contract::Pairing;
use anemone_mil::build::BuildError;
use anemone_mil::ir::ValueId;

use super::Architecture;
use crate::blocks::{Graph, Shared};

pub struct Llama;

impl Architecture for Llama {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn pairing(&self) -> Pairing {
        Pairing::Interleaved
    }

    fn layer(
        &self,
        g: &mut Graph<'_>,
        layer: usize,
        state: usize,
        x: ValueId,
        shared: &Shared,
    ) -> Result<ValueId, BuildError> {
        g.pre_norm_layer(layer, state, x, shared)
    }
}
