//! Ids to text, one at a time.
//!
//! A token may end in the middle of a character. What comes out is always whole characters: an unfinished one waits for the tokens
//! that finish it, and only bytes that can no longer become UTF-8 are replaced by U+FFFD, one for each maximal broken part, exactly
//! as [`String::from_utf8_lossy`] does with all the bytes at once.

use super::{Control, Kind, Tokenizer};
use crate::Error;

/// Turns ids into text as they come. The concatenation of what it gives is the decoding of all of them.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    control: Control,
    /// An unfinished character: at most three bytes.
    pending: Vec<u8>,
    /// Whether the next text is the first of a stretch, whose added space is not part of it.
    at_start: bool,
}

impl StreamDecoder {
    /// At the start of a text.
    pub fn new(control: Control) -> Self {
        Self { control, pending: Vec::new(), at_start: true }
    }

    /// The characters that `id` finishes; may be none.
    ///
    /// # Errors
    /// An id outside the vocabulary; the decoder is as it was.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, Error> {
        let bytes = tokenizer.token_bytes(id, self.control)?;
        let mut bytes = bytes.as_slice();
        if tokenizer.config().add_space_prefix {
            let special = !matches!(tokenizer.kind(id), Some(Kind::Normal | Kind::Byte));
            if self.at_start && !special {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
            self.at_start = special;
        }
        self.pending.extend_from_slice(bytes);
        Ok(self.take_whole())
    }

    /// The end of the ids: what is unfinished now is broken.
    pub fn finish(&mut self) -> String {
        self.at_start = true;
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    fn take_whole(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (whole, broken) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    rest = broken;
                    let Some(length) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
