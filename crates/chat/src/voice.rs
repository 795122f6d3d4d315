//! What a bundle needs to speak besides its shards: tokenizer and template, read from the bundle alone.

use std::path::Path;

use anemone_bundle::layout;

use crate::Error;
use crate::engine;
use crate::prompt::{Conversation, Prompt, encode_chat};
use crate::template::ChatTemplate;
use crate::tokenizer::{Special, Tokenizer};

/// A bundle's tokenizer and template.
pub struct Voice {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template; a model without one completes text.
    pub template: Option<ChatTemplate>,
}

impl Voice {
    /// Reads the host files of the bundle in `folder`.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| engine::Error::Read { path, source })
        };
        let config = serde_json::from_str(&read(layout::TOKENIZER_CONFIG)?)?;
        let tokenizer = Tokenizer::from_json(&read(layout::TOKENIZER)?, config)?;
        let template = match folder.join(layout::CHAT_TEMPLATE).exists() {
            true => Some(ChatTemplate::new(&read(layout::CHAT_TEMPLATE)?)?),
            false => None,
        };
        Ok(Self { tokenizer, template })
    }

    /// The prompt of a conversation.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Prompt, Error> {
        let none = || Error::Template("the model has none; give it plain text to complete".into());
        encode_chat(&self.tokenizer, self.template.as_ref().ok_or_else(none)?, conversation)
    }

    /// Plain text to be continued, control tokens in it being text.
    pub fn text(&self, text: &str) -> Prompt {
        Prompt { text: text.to_owned(), ids: self.tokenizer.encode_document(text, Special::AsText) }
    }
}
