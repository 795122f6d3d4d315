//! GGUF architectures to ML Programs, and programs to a bundle.
//!
//! The way of a model through this crate: [`Model::new`] reads its contract and holds every tensor to it; [`Plan`] cuts it;
//! [`shard`] makes one program a piece out of the [`blocks`] that its architecture names; [`build()`] writes them with
//! weights that stream from the source in tiles. **Nothing here executes a program.**

pub mod arch;
pub mod blocks;
pub mod build;
pub mod contract;
pub mod error;
pub mod keys;
pub mod ledger;
pub mod model;
pub mod pool;
pub mod quantize;
pub mod reuse;
pub mod shard;
pub mod staging;
pub mod structure;
pub mod topology;
pub mod weights;

pub use build::{Options, Plan, Progress, build, build_piece, join};
pub use error::Error;
pub use model::Model;
pub use reuse::Baseline;
pub use staging::Access;
pub use topology::{LayerCut, Topology};
