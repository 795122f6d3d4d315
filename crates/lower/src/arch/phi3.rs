//! Phi-3 and Phi-4-mini: pre-norm attention over a fused qkv projection and a gated feed-forward block over fused gate and up
//! rows. The rotary embedding may cover only part of a head, in half-split pairs.

use anemone_bundle::contract::Pairing;
use anemone_mil::build::BuildError;
use anemone_mil::ir::ValueId;

use super::Architecture;
use crate::blocks::{Graph, Shared};

pub struct Phi3;

impl Architecture for Phi3 {
    fn name(&self) -> &'static str {
        "phi3"
    }

    fn pairing(&self) -> Pairing {
        Pairing::HalfSplit
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
