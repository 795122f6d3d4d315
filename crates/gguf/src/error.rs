//! One error type for everything that can be wrong with a GGUF, a key of it, or a block of it.

use std::path::PathBuf;

use crate::BlockType;

/// What went wrong, where in the file, and what was expected there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A stream handed to the [writer](crate::writer) refused.
    #[error("writing a gguf: {0}")]
    Write(#[from] std::io::Error),
    /// Zero bytes.
    #[error("the file is empty, not a gguf")]
    Empty,
    /// The first four bytes are not `GGUF`.
    #[error("not a gguf: the file begins with {found:02x?}, expected the bytes of \"GGUF\"")]
    Magic {
        /// The bytes found, four of them or as many as there are.
        found: Vec<u8>,
    },
    /// The counts and values are in big-endian order.
    #[error("the gguf is big-endian (version field at offset 4); only little-endian files are read")]
    BigEndian,
    /// A version other than 2 and 3.
    #[error("gguf version {version} at offset 4 is not supported, expected 2 or 3{}", version_hint(*version))]
    Version {
        /// The version found.
        version: u32,
    },
    /// The file ends inside a field, or a count promises more than the file can hold.
    #[error("truncated gguf: {field} at offset {offset} needs {needed} bytes, {available} are left")]
    Truncated {
        /// The field.
        field: String,
        /// Where the field begins, in bytes from the start of the file.
        offset: u64,
        /// The least number of bytes that the field takes.
        needed: u64,
        /// The bytes left in the file from `offset`.
        available: u64,
    },
    /// A field's value is not one the format allows.
    #[error("malformed gguf: {field} at offset {offset}: {problem}")]
    Malformed {
        /// The field.
        field: String,
        /// Where the field begins, in bytes from the start of the file.
        offset: u64,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// A file of a split model is not the one its name or its keys say.
    #[error("split gguf: {0}")]
    Split(String),
    /// An error in one named file of a split model.
    #[error("{}: {source}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The metadata lacks a key.
    #[error("the gguf has no key `{key}`")]
    MissingKey {
        /// The key asked for.
        key: String,
    },
    /// A key's value has another type than was asked for, or an integer that does not fit.
    #[error("key `{key}` is {found}, expected {expected}")]
    KeyType {
        /// The key asked for.
        key: String,
        /// The type asked for.
        expected: &'static str,
        /// The type, or the value that does not fit.
        found: String,
    },
    /// The file has no tensor of that name.
    #[error("the gguf has no tensor `{name}`")]
    MissingTensor {
        /// The name asked for.
        name: String,
    },
    /// A row past a tensor's last.
    #[error("row {row} of tensor `{name}` does not exist: it has {rows} rows")]
    Row {
        /// The tensor.
        name: String,
        /// The row asked for.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// Bytes and elements do not correspond.
    #[error("{bytes} bytes of {ty} do not hold {elements} elements: a block is {} bytes and holds {}", ty.block_bytes(), ty.block_len())]
    BlockSize {
        /// The block type.
        ty: BlockType,
        /// The bytes given.
        bytes: usize,
        /// The elements asked for.
        elements: usize,
    },
    /// The [writer](crate::writer) was given something a reader would refuse.
    #[error("cannot write {what}: {problem}")]
    Unwritable {
        /// The key or tensor.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn version_hint(version: u32) -> &'static str {
    if version == 1 { " (version 1 has 32-bit counts; convert the model again with a current tool)" } else { "" }
}

/// Turns the absence of a key into `None` and leaves every other error, so that an optional key of the wrong type
/// is still reported: `optional(metadata.u32("a.b"))?`.
///
/// # Errors
/// Whatever `result` holds, unless it is [`Error::MissingKey`].
pub fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::MissingKey { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
