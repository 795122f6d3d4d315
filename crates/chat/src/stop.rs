//! When an answer ends: at a token that ends a turn, or at a string the caller asked for.
//!
//! The end is a *set* of tokens. A model's file names one end of sequence, and its template ends a turn with another; generation that
//! knows only the first runs on through the next turn. So the set is gathered: what the file's keys declare, and the markup that
//! models are known to end a turn with.
//!
//! Stop strings are matched in the text as it streams. What could still become one is held back, so that no part of a stop string
//! ever leaves, and how the text was cut into pieces makes no difference.

use std::collections::BTreeSet;

use crate::Error;

/// Spellings of control tokens that end a turn or a text, as published templates use them.
const ENDS: [&str; 27] = [
    "</s>",
    "<EOT>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|call|>",
    "<|calls|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|file_sep|>",
    "<|fim_pad|>",
    "<|flush|>",
    "<|im_end|>",
    "<|repo_name|>",
    "<|return|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "[EOT]",
    "[e~[",
    "_<EOT>",
];

/// The tokens that end a turn: the `declared` ones (keys for end of sequence, of turn, of message) and those among `named` (the
/// special tokens, by id and spelling) that are known to.
///
/// Two families use one of the known spellings for something else: where messages end with `<|return|>` or `<|call|>` (or their
/// like), `<|end|>` only separates parts of an answer; and where `<|tool_response>` exists, `</s>` is ordinary markup.
pub fn end_tokens<'a>(declared: BTreeSet<u32>, named: impl Iterator<Item = (u32, &'a str)>) -> BTreeSet<u32> {
    let named: Vec<_> = named.filter(|(_, text)| ENDS.contains(text)).collect();
    let has = |text: &str| named.iter().any(|&(_, t)| t == text);
    let parts = (has("<|return|>") && has("<|call|>")) || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
    let ends = |text: &str| !(text == "<|end|>" && parts || text == "</s>" && has("<|tool_response>"));
    let mut stop = declared;
    for &(id, text) in &named {
        if ends(text) {
            stop.insert(id);
        }
    }
    stop
}

/// Strings that end an answer, looked for in text as it streams.
#[derive(Clone, Debug)]
pub struct StopStrings {
    strings: Vec<String>,
    /// What came but may still become a stop string.
    held: String,
    /// Which string ended it.
    hit: Option<usize>,
}

impl StopStrings {
    /// Looks for `strings`; with none, text passes through at once.
    ///
    /// # Errors
    /// An empty string, which would end every answer before its start.
    pub fn new(strings: Vec<String>) -> Result<Self, Error> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::Option { option: "stop", value: "\"\"".into(), expected: "strings that are not empty" });
        }
        Ok(Self { strings, held: String::new(), hit: None })
    }

    /// Takes the next piece, and gives what is now certain to be part of the answer. The answer ends with the first stop string to be
    /// complete (of several complete at once, the longest); neither it nor anything behind it is given.
    pub fn push(&mut self, piece: &str) -> String {
        if self.hit.is_some() {
            return String::new();
        }
        let known = self.held.len();
        self.held.push_str(piece);
        if let Some((start, which)) = self.first_complete(known) {
            self.hit = Some(which);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.strings.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the answer by other means: what was held back is part of it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that ended the answer, by its place in the list given.
    pub fn hit(&self) -> Option<usize> {
        self.hit
    }

    /// Where the first stop string to be complete starts, and which it is. None ends within the first `known` bytes.
    fn first_complete(&self, known: usize) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize, usize)> = None;
        for (which, stop) in self.strings.iter().enumerate() {
            let mut from = known.saturating_sub(stop.len() - 1);
            while !self.held.is_char_boundary(from) {
                from -= 1;
            }
            if let Some(at) = self.held[from..].find(stop.as_str()) {
                let (start, end) = (from + at, from + at + stop.len());
                // The earliest end, then the earliest start, which is the longest string.
                if best.is_none_or(|(e, s, _)| (end, start) < (e, s)) {
                    best = Some((end, start, which));
                }
            }
        }
        best.map(|(_, start, which)| (start, which))
    }
}

/// The length of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(i, _)| i).rev();
    beginnings.filter(|&n| n <= text.len()).find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(|s| s.to_string()).collect()).unwrap()
    }

    #[test]
    fn a_beginning_is_held_until_it_fails_or_completes() {
        let mut s = stops(&["\nUser:"]);
        assert_eq!(s.push("Hi\nUs"), "Hi");
        assert_eq!(s.push("age"), "\nUsage");
        assert_eq!(s.push("\nUser"), "");
        assert_eq!(s.push(": more"), "");
        assert_eq!((s.hit(), s.push("x"), s.finish()), (Some(0), String::new(), String::new()));
    }

    #[test]
    fn what_is_held_at_the_end_belongs_to_the_answer() {
        let mut s = stops(&["éa", "漢字"]);
        assert_eq!(s.push("xé"), "x");
        assert_eq!(s.push("漢"), "é");
        assert_eq!(s.finish(), "漢");
        assert_eq!(s.hit(), None);
    }

    #[test]
    fn the_first_complete_string_wins_and_the_longest_of_those() {
        let mut s = stops(&["abcd", "bc"]);
        assert_eq!((s.push("xabcd"), s.hit()), ("xa".into(), Some(1)));
        let mut s = stops(&["c", "abc"]);
        assert_eq!((s.push("xabc"), s.hit()), ("x".into(), Some(1)));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(vec!["a".into(), String::new()]).is_err());
    }

    #[test]
    fn known_ends_are_gathered_and_the_two_exceptions_kept() {
        let ends = |names: &[&'static str], declared: &[u32]| {
            let named = (0u32..).zip(names.iter().copied());
            end_tokens(declared.iter().copied().collect(), named).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(ends(&["<|user|>", "<|end|>", "<|endoftext|>"], &[7]), [1, 2, 7]);
        assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"], &[]), [1, 2]);
        assert_eq!(ends(&["</s>", "<|tool_response>"], &[]), [1]);
    }

    /// The rule, a character at a time: the answer is what came before the first stop string to be complete.
    fn by_character(strings: &[String], text: &str) -> (String, Option<usize>) {
        let mut so_far = String::new();
        for c in text.chars() {
            so_far.push(c);
            let complete = strings.iter().enumerate().filter(|(_, s)| so_far.ends_with(s.as_str()));
            if let Some((which, stop)) = complete.max_by_key(|(i, s)| (s.len(), std::cmp::Reverse(*i))) {
                so_far.truncate(so_far.len() - stop.len());
                return (so_far, Some(which));
            }
        }
        (so_far, None)
    }

    proptest! {
        #[test]
        fn no_part_of_a_stop_string_leaves_however_the_text_is_cut(
            strings in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,3}", 0..12),
        ) {
            let mut stop = StopStrings::new(strings.clone()).unwrap();
            let whole = pieces.concat();
            let (expected, which) = by_character(&strings, &whole);
            let mut given = String::new();
            for piece in &pieces {
                given.push_str(&stop.push(piece));
                // At no time is there more outside than the answer has.
                prop_assert!(expected.starts_with(&given), "{given:?} of {expected:?}");
            }
            given.push_str(&stop.finish());
            prop_assert_eq!(given, expected);
            prop_assert_eq!(stop.hit(), which);
        }
    }
}
