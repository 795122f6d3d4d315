//! What every part of the system must agree on: the [`Contract`] of a model, the [`Manifest`] of a bundle, and where things
//! lie in one.
//!
//! This crate holds facts and no behaviour. The lowering writes them, sessions and gates read them, and the reference
//! forward, which must not share their blind spots, does not depend on this crate at all.

pub mod contract;
pub mod layout;
pub mod manifest;

pub use contract::Contract;
pub use manifest::Manifest;
