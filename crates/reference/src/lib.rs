//! A plain f32 forward from a GGUF: the oracle the gates compare with.
//!
//! What this crate is for is being *other*: it depends on the reader alone, reads the model's keys by itself and shares
//! no code and no assumption with the lowering, so a contract read wrongly there cannot be wrong here in the same way.
//! Hence also its habits:
//!
//! - **It never guesses.** A missing key is an error that names it; the few defaults are listed, with their source, in
//!   `hyperparameters.rs`. A key or tensor of the model that it does not know is an error too, for what it means might
//!   change the answer.
//! - **Structure is checked against keys.** The shape of every tensor must be what the keys imply: rows against heads,
//!   a factor tensor's length against half the rotary dimension.
//! - **It is simple.** f32 throughout, one loop nest per operation, weights dequantised where they are used.
//! - **It is deterministic**: a token's numbers are bit-identical whatever number of tokens, of threads, or split of the
//!   layers computed them.
//!
//! Two architectures are known, `llama` and `phi3`. They differ in where projections are stored (phi3 fuses q, k, v and
//! gate, up) and in how rotary pairs are laid out (`rope.rs`).
//!
//! The pieces of a forward can be had one by one, so that a gate may run layers `[a, b)` alone: [`Model::embed`],
//! [`Model::layer_range`], [`Model::head`]. The same forward runs on other weights through [`Weights`].

mod error;
mod hyperparameters;
mod hypothesis;
mod layer;
mod math;
mod model;
mod rope;
mod stage;
mod weights;

pub use error::Error;
pub use hyperparameters::{Architecture, Hyperparameters};
pub use hypothesis::{Hypothesis, Variant};
pub use model::{Cache, Model, Options};
pub use rope::{FactorSet, Pairing, Rope};
pub use stage::{Stage, Tap};
pub use weights::{Form, Part, Weight, Weights};
