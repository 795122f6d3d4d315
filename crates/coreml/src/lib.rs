//! Core ML behind the [`Runtime`](anemone_exec::Runtime) trait.
//!
//! The crate is cut in two. [`Foreign`] is the list of calls that only a Mac can answer, as thin as they come: compile, load,
//! describe, make a state, predict, plan. Everything that can be thought about without a Mac stands above it and is generic
//! over it: the cache of compiled packages ([`cache`]), which functions share a state and what is done where they may not
//! ([`states`]), the memory that arrays are read from and written to in place ([`array`]), time limits on handlers
//! ([`deadline`]), what an error means ([`failure`]). So it is tested on Linux, over a fake that computes with the portable
//! runtime and can be told to misbehave.
//!
//! `apple`, behind `cfg(target_os = "macos")`, is the one implementation that makes foreign calls. On Linux it is type-checked
//! and linked (`ci/check-macos`) and never run: **no Mac has run this crate yet**.
//!
//! # What a load does
//!
//! The package is read and validated as everywhere else, which gives the order of inputs and outputs that Core ML's
//! dictionaries do not have. It is compiled, unless a package of the same bytes was compiled before on this system. Each
//! function is loaded as a model of its own, its description held against the package's, and called once with zeros: that
//! pays the lazy specialisation that others measured at up to two minutes for a large shard, and shows whether Core ML lets the
//! function work on another one's state. Compiling, loading and warming up are timed apart ([`Report`]).
//!
//! # Invariants
//!
//! - **Never the GPU silently.** [`Units::NeuralEngineAndCpu`] is the default; the GPU is used where a caller names it.
//! - **A failed call poisons its state.** Core ML may have written half of it; later calls are refused, and no other
//!   conversation is touched.
//! - **Nobody waits on the main queue.** Handlers may be delivered there, so the main thread turns its queue while it waits.
//! - **Memory that Core ML still holds after a call is not used again**, it is left to Core ML and replaced.

#[cfg(target_os = "macos")]
pub mod apple;
pub mod array;
pub mod cache;
pub mod deadline;
pub mod failure;
pub mod foreign;
pub mod model;
pub mod runtime;
pub mod states;

pub use array::{Array, Strided};
pub use deadline::Completion;
pub use failure::Failure;
pub use foreign::{Described, Description, Device, Foreign, Machine, OpUsage, Returned, Units};
pub use model::{CoreMlModel, Sharing};
pub use runtime::{CoreMl, Limits, Report};
