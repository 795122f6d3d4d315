//! A contract other than the file's, to be tried out.
//!
//! Reading never guesses; this is for who must ask whether another reading would explain the model better. A hypothesis is made
//! from what the file says and changed by hand, one thing at a time, and a model that runs under one says so by its type's
//! name alone: [`Model::under`](crate::Model::under) is the only way to it.

use crate::Rope;

/// How the forward is to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// The rotation: as many frequencies as pairs turn.
    pub rope: Rope,
    /// Added to the mean square under the root of RMSNorm.
    pub eps: f32,
    /// How the rest of the forward differs from the file's architecture.
    pub variant: Variant,
}

/// Choices that an architecture makes and no key states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Multiplies each row of the embedding.
    pub embedding_scale: f32,
    /// Multiplies every logit.
    pub logit_scale: f32,
    /// Added to every weight of every norm: 1 where a file stores them less one.
    pub norm_offset: f32,
    /// Whether what is stored as the gate is what is gated, and the other way round.
    pub gate_is_up: bool,
    /// Whether query head `h` reads kv head `h % kv_heads` instead of `h / (heads / kv_heads)`.
    pub kv_round_robin: bool,
}

impl Variant {
    /// What the architectures here are.
    pub const DECLARED: Variant =
        Variant { embedding_scale: 1.0, logit_scale: 1.0, norm_offset: 0.0, gate_is_up: false, kv_round_robin: false };
}
