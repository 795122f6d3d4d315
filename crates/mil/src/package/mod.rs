//! Packages: `.mlpackage` directories, read and written.
//!
//! Reading takes hostile bytes. Every length, offset and count is checked against the file it is in before it is used;
//! weights are mapped, never copied; nothing outside of the package is opened. Writing takes a [`Valid`] program only.

mod blob;
mod blocks;
mod decode;
mod encode;
mod manifest;
mod schema;
mod wire;
mod write;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use blocks::{Blocks, write_blocks};
pub use write::{WriteError, Written, WrittenFile, write, write_watched};

use crate::diag::{Diagnostic, Report};
use crate::ir::Program;
use crate::validate::{Valid, validate_foreign};

/// The largest model (program and description, without the weight file) that is read or written.
pub const MAX_MODEL_BYTES: u64 = 256 << 20;

/// Why a package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{}: {message}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The model's protobuf is broken or says what no ML Program can.
    #[error("model, byte {offset}: {message}")]
    Model {
        /// Where in the model file.
        offset: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// The program refers to something that does not exist.
    #[error("function `{function}`{}: {message}", op.as_ref().map_or(String::new(), |(i, kind)| format!(", op {i} ({kind})")))]
    Program {
        /// The function.
        function: String,
        /// The op's index and kind, where it is about an op.
        op: Option<(usize, String)>,
        /// What was found and what was expected.
        message: String,
    },
    /// A weight file does not hold what the program says.
    #[error("weight file {file}, offset {offset}: {message}")]
    Weights {
        /// The file's name.
        file: String,
        /// The offset the program refers to.
        offset: u64,
        /// What was found and what was expected.
        message: String,
    },
}

/// Why a package could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was read is no valid program.
    #[error(transparent)]
    Invalid(#[from] Report),
}

/// Reads a package. Weights stay in their file, mapped.
pub fn read(path: &Path) -> Result<Program, ReadError> {
    read_with_notes(path).map(|(program, _)| program)
}

/// Reads a package, with warnings for what was accepted and should not be so.
pub fn read_with_notes(path: &Path) -> Result<(Program, Vec<Diagnostic>), ReadError> {
    let model = manifest::model_path(path)?;
    let io = |source| ReadError::Io { path: model.clone(), source };
    let meta = std::fs::metadata(&model).map_err(io)?;
    if !meta.is_file() || meta.len() > MAX_MODEL_BYTES {
        let message = format!("{} is not a file of at most {MAX_MODEL_BYTES} bytes", model.display());
        return Err(ReadError::Model { offset: 0, message });
    }
    let mut bytes = Vec::new();
    File::open(&model).map_err(io)?.take(MAX_MODEL_BYTES).read_to_end(&mut bytes).map_err(io)?;
    let dir = model.parent().unwrap_or(Path::new("")).join("weights");
    let mut notes = Vec::new();
    let program = decode::model(&bytes, &mut blob::Weights::new(dir), &mut notes)?;
    Ok((program, notes))
}

/// Reads and validates a package of anyone's, with warnings for what our own writer would never do.
pub fn open(path: &Path) -> Result<(Valid, Vec<Diagnostic>), OpenError> {
    let (program, mut notes) = read_with_notes(path)?;
    let (valid, warnings) = validate_foreign(program)?;
    notes.extend(warnings);
    Ok((valid, notes))
}
