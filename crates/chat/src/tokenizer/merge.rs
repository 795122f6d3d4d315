//! Merging neighbours: the loop that byte-pair encoding and SentencePiece share.
//!
//! A word starts as a row of symbols. While any two neighbours may be joined, the pair of the best (least) priority is, the
//! leftmost among equals. The two models differ only in which pairs may join and how a pair's priority comes about, and that is
//! what [`Rules`] says. A heap holds the candidates; one that a join has overtaken is recognised by its extent and dropped, so a
//! word of n symbols costs O(n log n) whatever it is: a megabyte without a space is slow, not stuck.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of the word's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub start: usize,
    pub end: usize,
    /// The token spelled like that, if there is one.
    pub id: Option<u32>,
}

/// Which neighbours may join.
pub(super) trait Rules {
    /// Less is sooner.
    type Priority: Ord + Copy;

    /// When two neighbours of `word` may join: how soon, and into which token.
    fn join(&self, word: &[u8], left: Symbol, right: Symbol) -> Option<(Self::Priority, u32)>;
}

/// Joins neighbours of `symbols`, which cover `word` in order, until no rule applies.
pub(super) fn merge<R: Rules>(rules: &R, word: &[u8], symbols: &mut Vec<Symbol>) {
    /// No neighbour on that side.
    const NONE: usize = usize::MAX;
    let count = symbols.len();
    let mut previous: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
    let mut next: Vec<usize> = (1..=count).map(|i| if i == count { NONE } else { i }).collect();

    // (priority, left index, right index, extent when proposed, token): ordered by the first two, which are never both equal
    // for two live candidates.
    let mut heap = BinaryHeap::new();
    let propose = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
        if left != NONE
            && right != NONE
            && let Some((priority, id)) = rules.join(word, symbols[left], symbols[right])
        {
            heap.push(Reverse((priority, left, right, symbols[right].end - symbols[left].start, id)));
        }
    };
    for right in 1..count {
        propose(&mut heap, symbols, right - 1, right);
    }
    while let Some(Reverse((_, left, right, extent, id))) = heap.pop() {
        let gone = |s: Symbol| s.start == s.end;
        if gone(symbols[left]) || gone(symbols[right]) || symbols[right].end - symbols[left].start != extent {
            continue;
        }
        symbols[left] = Symbol { start: symbols[left].start, end: symbols[right].end, id: Some(id) };
        symbols[right].end = symbols[right].start;
        next[left] = next[right];
        if next[right] != NONE {
            previous[next[right]] = left;
        }
        propose(&mut heap, symbols, previous[left], left);
        propose(&mut heap, symbols, left, next[left]);
    }
    symbols.retain(|s| s.start < s.end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Joins pairs by a table of single-letter spellings.
    struct Table(Vec<(&'static str, u32)>);

    impl Rules for Table {
        type Priority = u32;
        fn join(&self, word: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)> {
            let text = &word[left.start..right.end];
            self.0.iter().find(|(t, _)| t.as_bytes() == text).map(|&(_, rank)| (rank, rank))
        }
    }

    fn letters(word: &[u8]) -> Vec<Symbol> {
        (0..word.len()).map(|i| Symbol { start: i, end: i + 1, id: None }).collect()
    }

    /// The definition, read aloud: look at every pair, join the best, start again.
    fn slow(rules: &Table, word: &[u8]) -> Vec<Symbol> {
        let mut symbols = letters(word);
        loop {
            let best = (1..symbols.len())
                .filter_map(|i| rules.join(word, symbols[i - 1], symbols[i]).map(|(p, id)| (p, i, id)))
                .min();
            let Some((_, i, id)) = best else { return symbols };
            symbols[i - 1] = Symbol { start: symbols[i - 1].start, end: symbols[i].end, id: Some(id) };
            symbols.remove(i);
        }
    }

    proptest! {
        #[test]
        fn the_heap_joins_what_the_definition_joins(word in "[abc]{0,24}") {
            let rules = Table(vec![("ab", 3), ("bc", 1), ("aa", 2), ("abc", 0), ("aab", 5), ("bcbc", 4), ("aaaa", 6), ("cc", 3)]);
            let mut fast = letters(word.as_bytes());
            merge(&rules, word.as_bytes(), &mut fast);
            prop_assert_eq!(fast, slow(&rules, word.as_bytes()));
        }
    }
}
