//! Models of the Hugging Face Hub: their names, where they are kept, and how they get there.
//!
//! This is the one crate that opens connections to anywhere, and only in [`Hub`], which `anemone pull` alone calls. Whatever
//! else is asked to use `hf:OWNER/REPO` looks into the [`Store`], on this machine.
//!
//! Nothing a server says is believed. The listing of a repository names files with sizes and SHA-256 sums; a name that is no
//! path below its repository is refused, a body is read to the size that was listed and no further, and a file gets its
//! name only when its sum is the listed one. What was received before a cut is kept beside it and gone on from: the sum is
//! over every byte, so it does not matter when they came.

#[cfg(feature = "net")]
mod client;
mod error;
#[cfg(feature = "net")]
mod listing;
mod name;
#[cfg(feature = "net")]
mod pull;
mod store;

pub use error::Error;
pub use name::{Name, Repo, SplitName};
pub use store::{Kept, Store};

#[cfg(feature = "net")]
pub use self::{
    client::Hub,
    listing::{Listing, Model, RemoteFile},
    pull::Progress,
};
