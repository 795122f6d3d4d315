//! What can be wrong with a model, or with what is asked of it.

use std::ops::Range;

use crate::Weight;

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, a key of it, or a tensor of it.
    #[error(transparent)]
    Gguf(#[from] anemone_gguf::Error),
    /// `general.architecture` is not one that the reference knows.
    #[error("architecture `{found}` is not known to the reference, expected one of: {known}")]
    Architecture {
        /// The file's architecture.
        found: String,
        /// The known ones.
        known: String,
    },
    /// A key has a value that no model can have, or contradicts another.
    #[error("key `{key}`: {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model asks for something that the reference does not compute.
    #[error("not supported by the reference: {0}")]
    Unsupported(String),
    /// A tensor's shape is not what the keys imply.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?} ({because})")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape, outermost first.
        found: Vec<usize>,
        /// The shape that the keys imply.
        expected: Vec<usize>,
        /// How they imply it.
        because: &'static str,
    },
    /// The file has a tensor that is no part of the architecture.
    #[error("tensor `{name}` is not part of a {architecture} model as the reference knows it")]
    UnexpectedTensor {
        /// The tensor.
        name: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    Token {
        /// The id.
        token: u32,
        /// The number of tokens.
        vocabulary: usize,
    },
    /// Layers that do not exist.
    #[error("layers {}..{} do not exist: the model has {count}", range.start, range.end)]
    Layers {
        /// The layers asked for.
        range: Range<usize>,
        /// How many there are.
        count: usize,
    },
    /// A position that the cache or the context does not reach.
    #[error("{tokens} tokens at position {position}: {problem}")]
    Position {
        /// The first token's position.
        position: usize,
        /// The number of tokens.
        tokens: usize,
        /// Why not.
        problem: String,
    },
    /// A slice of activations that is not whole rows.
    #[error("{len} values are not rows of {width}")]
    Rows {
        /// The values given.
        len: usize,
        /// The width of a row.
        width: usize,
    },
    /// A source of weights cannot give one.
    #[error("weight {weight}, row {row}: {problem}")]
    Weight {
        /// The weight.
        weight: Weight,
        /// The row.
        row: usize,
        /// Why not.
        problem: String,
    },
}
