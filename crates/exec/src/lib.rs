//! Runtimes that execute ML Programs: the [`Runtime`] trait and the portable runtime behind it.
pub mod border;
pub mod fast;
pub mod portable;
pub mod rows;
pub mod runtime;
pub mod tensor;
pub mod together;

pub use anemone_mil::ir::Dtype;
pub use border::{Port, Signature};
pub use fast::{Fast, FastModel, FastOptions};
pub use portable::headroom::Headroom;
pub use portable::{Numerics, Options, Portable, PortableModel};
pub use rows::{Row, Rows};
pub use runtime::{Error, Model, Runtime, State, open};
pub use tensor::{Data, Tensor};
pub use together::{Call, together};
