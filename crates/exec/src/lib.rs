//! Runtimes that execute ML Programs: the [`Runtime`] trait and the portable runtime behind it.
pub mod fast;
pub mod portable;
pub mod runtime;
pub mod tensor;

pub use anemone_mil::ir::Dtype;
pub use fast::{Fast, FastModel, FastOptions};
pub use portable::headroom::Headroom;
pub use portable::{Numerics, Options, Portable, PortableModel};
pub use runtime::{Error, Model, Port, Runtime, Signature, State};
pub use tensor::{Data, Tensor};
