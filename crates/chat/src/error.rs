//! Everything this crate refuses, each with what was wrong, where, and what would be right.

/// What can go wrong between messages and token ids.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the GGUF is missing or of the wrong type.
    #[error(transparent)]
    Gguf(#[from] anemone_gguf::Error),
    /// A tokenizer model that is not built here.
    #[error("tokenizer.ggml.model is `{found}`; known are {known}")]
    UnknownModel {
        /// What the file says.
        found: String,
        /// The names that are known, comma-separated.
        known: String,
    },
    /// A pre-tokenizer that is not in the table.
    #[error("tokenizer.ggml.pre is `{found}`; known are {known}")]
    UnknownPreTokenizer {
        /// What the file says.
        found: String,
        /// The names that are known, comma-separated.
        known: String,
    },
    /// A field of the tokenizer does not fit the others.
    #[error("tokenizer: {field}: {problem}")]
    Tokenizer {
        /// The key or JSON field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A `tokenizer.json` that is not JSON, or not of the form this crate writes.
    #[error("tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// The model has no chat template, or it is not one.
    #[error("chat template: {0}")]
    Template(String),
    /// The chat template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Conversation(String),
    /// A role that could be mistaken for markup.
    #[error("role `{0}` is not a role: expected 1 to 64 letters, digits, `_`, `-` or `.`")]
    Role(String),
    /// The template turns text of a message into control tokens.
    #[error("the chat template would turn text of a message into control tokens; the message is refused")]
    Injection,
    /// A sampling option out of its range.
    #[error("{option} is {value}: expected {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Its value.
        value: String,
        /// The range.
        expected: &'static str,
    },
    /// A form that answers cannot be held to.
    #[error("grammar: {0}")]
    Grammar(String),
    /// The bundle could not be run.
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),
    /// The logits are no distribution.
    #[error("logits: {0}")]
    Logits(String),
    /// A token id past the end of the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab} tokens")]
    TokenId {
        /// The id.
        id: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
}

impl Error {
    pub(crate) fn tokenizer(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Tokenizer { field: field.into(), problem: problem.into() }
    }
}
