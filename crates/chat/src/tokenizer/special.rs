//! Special tokens inside a text: the longest at the leftmost place, then on behind it.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::Special;
use super::vocab::{Kind, Vocab};
use crate::Error;

/// A special token at a place of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub start: usize,
    pub end: usize,
    pub id: u32,
}

/// Finds special tokens.
#[derive(Clone, Debug)]
pub(super) struct Specials {
    /// All of them: control, unknown, user-defined.
    all: Finder,
    /// The user-defined ones.
    text: Finder,
    /// Those that swallow white space behind them.
    strip_after: BTreeSet<u32>,
}

/// An automaton, and the id of each of its words.
#[derive(Clone, Debug)]
struct Finder {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Finder {
    fn new(vocab: &Vocab, wanted: impl Fn(Kind) -> bool) -> Result<Self, Error> {
        let tokens = || vocab.iter().filter(|(_, text, kind)| wanted(*kind) && !text.is_empty());
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens().map(|(_, text, _)| text))
            .map_err(|e| Error::tokenizer("token_type", format!("too many special tokens: {e}")))?;
        Ok(Self { automaton, ids: tokens().map(|(id, ..)| id).collect() })
    }
}

impl Specials {
    pub fn new(vocab: &Vocab, strip_after: BTreeSet<u32>) -> Result<Self, Error> {
        let all = Finder::new(vocab, |kind| kind.is_special() || kind == Kind::UserDefined)?;
        let text = Finder::new(vocab, |kind| kind == Kind::UserDefined)?;
        Ok(Self { all, text, strip_after })
    }

    /// The special tokens of `text`, in order, not overlapping.
    pub fn find<'a>(&'a self, text: &'a str, special: Special) -> impl Iterator<Item = Found> + 'a {
        let finder = match special {
            Special::Parse => &self.all,
            Special::AsText => &self.text,
        };
        finder.automaton.find_iter(text).map(|m| Found {
            start: m.start(),
            end: m.end(),
            id: finder.ids[m.pattern().as_usize()],
        })
    }

    /// Whether white space behind that token belongs to it.
    pub fn strips_after(&self, id: u32) -> bool {
        self.strip_after.contains(&id)
    }
}
