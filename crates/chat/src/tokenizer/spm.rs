//! SentencePiece's byte-pair model as llama.cpp runs it: characters join while the joined spelling is a token, the highest score
//! first, the leftmost among equals. Scores belong to the joined token, not to the pair. A character that ends up alone and has no
//! token falls apart into `<0x0A>` tokens, or into the unknown token where a byte has none.

use std::cmp::Reverse;

use super::merge::{Rules, Symbol, merge};
use super::vocab::Vocab;
use crate::Error;

/// What SentencePiece writes for a space.
pub(super) const SPACE: char = '\u{2581}';

#[derive(Clone, Debug)]
pub(super) struct Spm {
    scores: Vec<f32>,
    bytes: Box<[Option<u32>; 256]>,
    unknown: Option<u32>,
}

impl Spm {
    pub fn new(vocab: &Vocab, scores: Vec<f32>, unknown: Option<u32>) -> Result<Self, Error> {
        if scores.len() != vocab.len() {
            let problem = format!("{} scores for {} tokens", scores.len(), vocab.len());
            return Err(Error::tokenizer("scores", problem));
        }
        if let Some(bad) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::tokenizer(
                "scores",
                format!("score {bad} is {}: expected a finite number", scores[bad]),
            ));
        }
        Ok(Self { scores, bytes: vocab.byte_tokens(), unknown })
    }

    /// Appends the tokens of `text`, whose spaces are spelled already.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let letter = |(i, c): (usize, char)| Symbol {
            start: i,
            end: i + c.len_utf8(),
            id: vocab.id(&text[i..i + c.len_utf8()]),
        };
        let mut symbols: Vec<Symbol> = text.char_indices().map(letter).collect();
        merge(&Scored { vocab, scores: &self.scores }, bytes, &mut symbols);
        for symbol in symbols {
            match symbol.id {
                Some(id) => out.push(id),
                None => {
                    let fallback = |&b: &u8| self.bytes[usize::from(b)].or(self.unknown);
                    out.extend(bytes[symbol.start..symbol.end].iter().filter_map(fallback));
                }
            }
        }
    }

    /// The merges of the same model in byte-pair form, for readers that know no scores: every way to put a token together from
    /// two, the highest score first.
    pub fn merges(&self, vocab: &Vocab) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (id, text, kind) in vocab.iter() {
            if kind != super::Kind::Normal {
                continue;
            }
            let splits = text.char_indices().skip(1).map(|(i, _)| text.split_at(i));
            let mut pairs: Vec<_> =
                splits.filter_map(|(l, r)| Some((vocab.id(l)?, vocab.id(r)?, l.to_owned(), r.to_owned()))).collect();
            pairs.sort_unstable();
            found.extend(pairs.into_iter().map(|(_, _, l, r)| (Score(self.scores[id as usize]), id, l, r)));
        }
        found.sort_by_key(|(score, id, ..)| (Reverse(*score), *id));
        found.into_iter().map(|(_, _, left, right)| (left, right)).collect()
    }
}

/// A finite score, ordered.
#[derive(Clone, Copy, PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Adding 0 makes both zeros the same one.
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}

struct Scored<'a> {
    vocab: &'a Vocab,
    scores: &'a [f32],
}

impl Rules for Scored<'_> {
    type Priority = Reverse<Score>;

    fn join(&self, word: &[u8], left: Symbol, right: Symbol) -> Option<(Self::Priority, u32)> {
        let text = std::str::from_utf8(&word[left.start..right.end]).ok()?;
        let id = self.vocab.id(text)?;
        Some((Reverse(Score(self.scores[id as usize])), id))
    }
}
