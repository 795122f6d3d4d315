//! What can be wrong.

use std::io;
use std::path::PathBuf;

/// Every error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is none.
    #[error("`{name}`: {problem}; expected hf:OWNER/REPO or hf:OWNER/REPO:FILE.gguf")]
    Name {
        /// As it was given.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A model that this machine does not have.
    #[error("{0} is not on this machine; `anemone pull {0}` gets it")]
    Absent(String),
    /// A repository of which this machine has several models.
    #[error("{repo}: this machine has {count} models of it; say which: {names}")]
    Ambiguous {
        /// The repository.
        repo: String,
        /// How many.
        count: usize,
        /// Their whole names.
        names: String,
    },
    /// A file or folder that cannot be used.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Another process is at it.
    #[error("{0}: another process is pulling this file")]
    Busy(PathBuf),
    /// The address of the Hub cannot be used.
    #[error("HF_ENDPOINT: {0}; expected https://HOST, or http on the loopback address")]
    Endpoint(String),
    /// The key cannot be sent. Its text is not told.
    #[error("HF_TOKEN holds characters that no key has")]
    Token,
    /// What a server said cannot be true, or may not be followed.
    #[error("{url}: {problem}")]
    Answer {
        /// What was asked for, without its query, which may hold a signature.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A server refused.
    #[error("{url}: status {status}: {hint}")]
    Refused {
        /// As above.
        url: String,
        /// HTTP's.
        status: u16,
        /// What it means here.
        hint: &'static str,
    },
    /// The connection failed, or was cut; what was received is kept.
    #[error("{url}: {problem}")]
    Connection {
        /// As above.
        url: String,
        /// What happened.
        problem: String,
    },
    /// A repository without models.
    #[error("{0} holds no .gguf file")]
    NoModel(String),
    /// A repository without this file.
    #[error("{repo} holds no file `{file}`")]
    NoFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// A repository of several models.
    #[error("{repo} holds {} models; say which, as in `anemone pull {repo}:{}`", models.len(), models[0].0)]
    Several {
        /// The repository.
        repo: String,
        /// The models' file names, the first of a split one, and their sizes in bytes. Not empty.
        models: Vec<(String, u64)>,
    },
    /// A file that is not what was listed. It was removed.
    #[error(
        "{file}: its SHA-256 is {found}, and {expected} was listed; what was received is removed, so pull it again"
    )]
    Hash {
        /// Which.
        file: String,
        /// What arrived.
        found: String,
        /// What should have.
        expected: String,
    },
}

impl Error {
    /// Whether asking again may help.
    #[cfg(feature = "net")]
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502..=504),
            _ => false,
        }
    }
}

/// Names the file in what the system says.
pub(crate) fn at(path: &std::path::Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |error| Error::File { path: path.to_owned(), error }
}
