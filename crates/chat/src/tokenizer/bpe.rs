//! Byte-pair encoding over bytes or over characters.
//!
//! Byte-level models (GPT-2's kind) spell each of the 256 bytes as a printable character, so that any text is a row of known
//! symbols; merges then join pairs in the order they were learned. Models of Gemma 4's kind start from characters, spell a space
//! as `▁`, and fall back to `<0x0A>` tokens for a character that has none.

use std::collections::HashMap;

use super::merge::{Rules, Symbol, merge};
use super::vocab::{Kind, Vocab};
use crate::Error;

/// What a word is a row of before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Bytes, in GPT-2's spelling.
    Bytes,
    /// Characters.
    Characters,
}

/// A pair that may join: how early it was learned, and the token it becomes.
type Merge = (u32, u32);

#[derive(Clone, Debug)]
pub(super) struct Bpe {
    alphabet: Alphabet,
    merges: HashMap<(u32, u32), Merge>,
    /// The token of each byte: in GPT-2's spelling, or `<0x0A>` for an alphabet of characters.
    bytes: Box<[Option<u32>; 256]>,
    /// Tokens by what they stand for. `None` unless a whole word that is a token stays one, merges or not.
    whole: Option<HashMap<Vec<u8>, u32>>,
    /// Every token of an alphabet of characters, by its spelling.
    characters: HashMap<char, u32>,
}

impl Bpe {
    /// `merges` are pairs of spellings, the earliest learned first. `ignore_merges`: a word that is a token is that token.
    pub fn new<'a>(
        vocab: &Vocab,
        alphabet: Alphabet,
        merges: impl Iterator<Item = (&'a str, &'a str)>,
        ignore_merges: bool,
    ) -> Result<Self, Error> {
        let mut table = HashMap::new();
        for (rank, (left, right)) in (0u32..).zip(merges) {
            let find = |text: &str| {
                vocab.id(text).ok_or_else(|| {
                    Error::tokenizer(
                        "merges",
                        format!("merge {rank} of {left:?} and {right:?} needs the token {text:?}, which the vocabulary lacks"),
                    )
                })
            };
            let pair = (find(left)?, find(right)?);
            let joined = find(&format!("{left}{right}"))?;
            // A pair that is listed again was learned when it was first listed.
            table.entry(pair).or_insert((rank, joined));
        }
        let normal = || vocab.iter().filter(|(_, _, kind)| *kind == Kind::Normal);
        let (bytes, characters) = match alphabet {
            Alphabet::Bytes => (byte_letters(vocab), HashMap::new()),
            Alphabet::Characters => {
                let single = |(id, text, _): (u32, &str, Kind)| {
                    let mut chars = text.chars();
                    chars.next().filter(|_| chars.next().is_none()).map(|c| (c, id))
                };
                (vocab.byte_tokens(), normal().filter_map(single).collect())
            }
        };
        let whole = ignore_merges.then(|| {
            let spelled = |(id, text, _): (u32, &str, Kind)| match alphabet {
                Alphabet::Bytes => bytes_of(text).map(|bytes| (bytes, id)),
                Alphabet::Characters => Some((text.as_bytes().to_vec(), id)),
            };
            normal().filter_map(spelled).collect()
        });
        Ok(Self { alphabet, merges: table, bytes, whole, characters })
    }

    /// Appends the tokens of one word. A byte that no token spells is left out, as transformers and llama.cpp do: the token
    /// that files name as unknown is often the end of text, which user text must not become.
    pub fn encode(&self, vocab: &Vocab, word: &str, out: &mut Vec<u32>) {
        let bytes = word.as_bytes();
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(bytes)) {
            out.push(id);
            return;
        }
        let mut symbols: Vec<Symbol> = match self.alphabet {
            Alphabet::Bytes => {
                let letter =
                    |(i, &byte): (usize, &u8)| Symbol { start: i, end: i + 1, id: self.bytes[usize::from(byte)] };
                bytes.iter().enumerate().map(letter).collect()
            }
            // A run of line feeds that is a token is that token: their merges were never learned.
            Alphabet::Characters if word.bytes().all(|b| b == b'\n') && vocab.id(word).is_some() => {
                out.extend(vocab.id(word));
                return;
            }
            Alphabet::Characters => {
                let letter = |(i, c): (usize, char)| Symbol {
                    start: i,
                    end: i + c.len_utf8(),
                    id: self.characters.get(&c).copied(),
                };
                word.char_indices().map(letter).collect()
            }
        };
        merge(self, bytes, &mut symbols);
        for symbol in symbols {
            match symbol.id {
                Some(id) => out.push(id),
                None => out.extend(bytes[symbol.start..symbol.end].iter().filter_map(|&b| self.bytes[usize::from(b)])),
            }
        }
    }
}

impl Rules for Bpe {
    type Priority = u32;

    fn join(&self, _: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)> {
        self.merges.get(&(left.id?, right.id?)).copied()
    }
}

/// GPT-2's spelling of a byte: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and on, in order.
pub(super) fn letter_of(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=b' ' => char::from_u32(0x100 + u32::from(byte)).unwrap_or_default(),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap_or_default(),
        0xad => '\u{143}',
    }
}

fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => code,
    };
    u8::try_from(byte).ok().filter(|&b| letter_of(b) == letter)
}

/// The bytes a byte-level spelling stands for; `None` where it is not one.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

fn byte_letters(vocab: &Vocab) -> Box<[Option<u32>; 256]> {
    let mut table = Box::new([None; 256]);
    for (byte, slot) in (0u8..=255).zip(table.iter_mut()) {
        *slot = vocab.id(letter_of(byte).encode_utf8(&mut [0; 4]));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter_and_comes_back() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(letter_of).collect();
        assert_eq!(letters.len(), 256);
        for byte in 0..=255 {
            assert_eq!(byte_of(letter_of(byte)), Some(byte));
        }
        assert_eq!((letter_of(b' '), letter_of(b'\n'), letter_of(0x7f), letter_of(0xad)), ('Ġ', 'Ċ', 'ġ', 'Ń'));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('\u{ad}'), None);
    }
}
