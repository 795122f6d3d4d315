//! Answers held to a form: a JSON schema, a regular expression, or a Lark grammar.
//!
//! A [`Grammar`] knows a model's vocabulary and compiles constraints; a [`Matcher`] follows one answer. Before each draw it says
//! which tokens may come ([`Matcher::mask`]), after it which must ([`Matcher::forced`]): those need no logits, and so no run of
//! the head. Text of a constraint is text: it cannot ask for a control token.
//!
//! The engine is llguidance, behind the feature `grammar`; without it every constraint is refused.

#[cfg(not(feature = "grammar"))]
mod absent;
#[cfg(feature = "grammar")]
mod guided;

#[cfg(not(feature = "grammar"))]
pub use absent::{Grammar, Matcher};
#[cfg(feature = "grammar")]
pub use guided::{Grammar, Matcher};

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// A JSON value of this schema; `{"type": "object"}` for any object.
    JsonSchema(serde_json::Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A text of this Lark grammar, in llguidance's dialect.
    Lark(String),
}
