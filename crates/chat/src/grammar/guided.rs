//! The form by llguidance.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher as Parser, ParserFactory};
use serde_json::{Value, json};

use super::Constraint;
use crate::Error;
use crate::sample::Mask;
use crate::tokenizer::{Control, Special, Tokenizer};

/// Most states of a compiled lexer; each takes up to 2 KiB.
const MAX_LEXER_STATES: usize = 50_000;
/// Most symbols of a grammar.
const MAX_GRAMMAR: usize = 100_000;

/// A vocabulary that answers can be held to a form in.
pub struct Grammar(ParserFactory);

impl Grammar {
    /// Of a model with `vocab` logits whose turns end with `stop`.
    ///
    /// # Errors
    /// A model without a stop token: no answer of a form would ever end.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, stop: &BTreeSet<u32>) -> Result<Self, Error> {
        let stop: Vec<u32> = stop.iter().copied().collect();
        let Some(&first) = stop.first() else {
            return Err(Error::Grammar("the model has no token that ends a turn".into()));
        };
        let ids = u32::try_from(vocab).map_err(|_| Error::Grammar(format!("{vocab} tokens are too many")))?;
        // Control tokens are marked apart, so that no text matches them; ids without a token match nothing.
        let word = |id: u32| match tokenizer.kind(id) {
            Some(kind) if kind.is_special() => {
                let text = tokenizer.token(id).unwrap_or_default();
                [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat()
            }
            _ => tokenizer.token_bytes(id, Control::Skip).unwrap_or_default(),
        };
        let words: Vec<Vec<u8>> = (0..ids).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(ids, first), &words).with_eos_tokens(&stop);
        let vocabulary: Arc<dyn TokenizerEnv + Sync> = Arc::new(Vocabulary { trie, tokenizer: tokenizer.clone() });
        let mut factory = ParserFactory::new_simple(&vocabulary).map_err(refused)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.max_grammar_size = MAX_GRAMMAR;
        limits.verbose_errors = false;
        Ok(Self(factory))
    }

    /// Compiles a constraint, for one answer.
    ///
    /// # Errors
    /// A constraint that is none, uses what is not supported, or is too large.
    pub fn matcher(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        let grammar = match constraint {
            Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(spaced(schema)),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        };
        let parser = Parser::new(self.0.create_parser(grammar));
        match parser.get_error() {
            Some(error) => Err(Error::Grammar(first_line(&error))),
            None => Ok(Matcher { parser, forced: VecDeque::new(), looks: false }),
        }
    }
}

/// The schema, with white space as Python's `json.dumps` sets it. Free white space would let an answer of a bounded schema go on
/// without end, and leave nothing between two values to be forced.
fn spaced(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        fields.entry("x-guidance").or_insert(style);
    }
    schema
}

/// Where one answer is in its form.
#[derive(Clone)]
pub struct Matcher {
    parser: Parser,
    /// Tokens that must come next, as far as they are known.
    forced: VecDeque<u32>,
    looks: bool,
}

impl Matcher {
    /// The same, forcing nothing: every token is drawn from logits, and so has a log-probability.
    pub fn looking(self) -> Self {
        Self { looks: true, ..self }
    }

    /// The tokens that may come next, those that end the turn among them where the form may end.
    pub(crate) fn mask(&mut self) -> Result<Mask, Error> {
        let mask = self.parser.compute_mask_or_eos().map_err(refused)?;
        Ok(Mask::new(mask.as_slice().to_vec()))
    }

    /// The token that must come next, where only one can.
    pub(crate) fn forced(&mut self) -> Option<u32> {
        if self.forced.is_empty() && !self.looks {
            self.forced = self.parser.compute_ff_tokens().into();
        }
        self.forced.pop_front()
    }

    /// `id` came.
    pub(crate) fn take(&mut self, id: u32) -> Result<(), Error> {
        self.parser.consume_token(id).map_err(refused)
    }

    /// Whether nothing more may come.
    pub(crate) fn is_complete(&self) -> bool {
        self.parser.is_stopped() && !self.parser.is_error()
    }
}

/// Our tokenizer as llguidance asks for it.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Bytes that are no UTF-8 are taken by the longest tokens instead.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let encode = |text: &str| self.tokenizer.encode(text, Special::AsText);
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }

    /// A tokenizer that puts a space before a text spells a part of an answer otherwise than the whole; then nothing is forced.
    fn tokenize_is_canonical(&self) -> bool {
        !self.tokenizer.config().add_space_prefix
    }
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Grammar(first_line(&format!("{error:#}")))
}

/// llguidance explains on many lines.
fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("not understood").to_owned()
}
