//! The vocabulary: what each token is spelled like, and what kind of token it is.

use std::collections::HashMap;

use crate::Error;

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of text.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Markup, such as the end of a turn: never comes out of user text, and is not shown.
    Control,
    /// Text that is always one token, matched before anything else.
    UserDefined,
    /// One byte, spelled `<0x0A>`.
    Byte,
}

impl Kind {
    /// From `tokenizer.ggml.token_type`. 5 is a token the model never saw; nothing forbids spelling it, so it counts as text.
    pub(super) fn from_gguf(code: i32) -> Option<Self> {
        Some(match code {
            1 | 5 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            6 => Kind::Byte,
            _ => return None,
        })
    }

    /// Whether the token is markup rather than text.
    pub fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// Spellings and kinds, by id and back.
#[derive(Clone, Debug)]
pub(super) struct Vocab {
    texts: Vec<String>,
    kinds: Vec<Kind>,
    ids: HashMap<String, u32>,
}

impl Vocab {
    /// `texts` and `kinds` are by id and equally long. A spelling names one token; only the empty one may repeat, and names none.
    pub fn new(texts: Vec<String>, kinds: Vec<Kind>) -> Result<Self, Error> {
        let mut ids = HashMap::with_capacity(texts.len());
        if texts.is_empty() || u32::try_from(texts.len()).is_err() {
            return Err(Error::tokenizer("tokens", format!("{} tokens: expected 1 to 2^32 - 1", texts.len())));
        }
        for (id, text) in (0u32..).zip(&texts) {
            if text.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(text.clone(), id) {
                return Err(Error::tokenizer("tokens", format!("{first} and {id} are both spelled {text:?}")));
            }
        }
        Ok(Self { texts, kinds, ids })
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub fn set_kind(&mut self, id: u32, kind: Kind) {
        self.kinds[id as usize] = kind;
    }

    /// Every token: id, spelling, kind.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str, Kind)> {
        (0u32..).zip(&self.texts).zip(&self.kinds).map(|((id, text), &kind)| (id, text.as_str(), kind))
    }

    /// The tokens `<0x00>` to `<0xFF>`, where they exist.
    pub fn byte_tokens(&self) -> Box<[Option<u32>; 256]> {
        let mut table = Box::new([None; 256]);
        for (byte, slot) in table.iter_mut().enumerate() {
            *slot = self.id(&format!("<0x{byte:02X}>"));
        }
        table
    }
}

/// The byte that `<0x0A>` spells.
pub(super) fn spelled_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
