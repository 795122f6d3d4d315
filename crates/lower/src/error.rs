//! What can be wrong with a request to build.

use std::path::PathBuf;

/// Why a model could not be lowered or a bundle not built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source cannot be read, or lacks a key or tensor.
    #[error(transparent)]
    Source(#[from] anemone_gguf::Error),
    /// `general.architecture` names a model this version cannot lower.
    #[error("architecture `{found}` is not one of {known}")]
    Architecture {
        /// What the source says.
        found: String,
        /// What can be lowered.
        known: String,
    },
    /// A key has a value that no model of this architecture can have.
    #[error("key `{key}` is {value}: {reason}")]
    Key {
        /// The metadata key.
        key: String,
        /// Its value.
        value: String,
        /// Why it cannot be.
        reason: String,
    },
    /// A tensor's shape contradicts the keys.
    #[error("tensor `{tensor}` has shape {found:?}, and {reason} asks for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape in the file, outermost first.
        found: Vec<usize>,
        /// The shape that the keys ask for.
        expected: Vec<usize>,
        /// Which keys.
        reason: String,
    },
    /// The file holds a tensor that the lowering would leave out of the model.
    #[error("tensor `{tensor}` has no place in a `{architecture}` model as this version lowers it: {reason}")]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The architecture.
        architecture: String,
        /// What to make of it.
        reason: String,
    },
    /// The options ask for something that does not exist or does not fit.
    #[error("{option}: {reason}")]
    Option {
        /// The option as typed.
        option: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The target is there already. A bundle never changes in place.
    #[error("{}: already exists; a bundle never changes in place: choose another name or remove it", .0.display())]
    TargetExists(PathBuf),
    /// Another build is writing the same target.
    #[error("{}: another build is writing this target", .0.display())]
    Busy(PathBuf),
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A package could not be written.
    #[error(transparent)]
    Package(#[from] anemone_mil::package::WriteError),
    /// Our own program is not valid. This is a defect of this tool, never of the model.
    #[error("the program for {shard} is not valid, which is a defect of this tool: please report it\n{report}")]
    Invalid {
        /// Which shard.
        shard: String,
        /// What the validator or builder said.
        report: String,
    },
}
