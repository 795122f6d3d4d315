//! Conversations: tokenizer, chat template, sampler, and the Session that drives a bundle's shards.
//!
//! ```text
//! messages --template--> text --tokenizer--> ids --Session--> logits --sampler--> id --StreamDecoder--> text --StopStrings--> answer
//! ```
//!
//! Everything here takes what strangers wrote: a model's vocabulary and template, and what people type. **Text of a message never
//! becomes a control token** ([`prompt`]), and a template runs with bounded time and memory ([`template`]).

#![deny(unsafe_code)]

pub mod bias;
pub mod draft;
pub mod engine;
mod error;
pub mod generate;
pub mod grammar;
pub mod host;
pub mod pool;
pub mod prompt;
pub mod sample;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod voice;

pub use bias::Bias;
pub use draft::Drafts;
pub use engine::{Engine, Session};
pub use error::Error;
pub use generate::Generation;
pub use grammar::Grammar;
pub use pool::Pool;
pub use prompt::{Conversation, Message, Prompt, encode_chat};
pub use sample::{Choice, Sampler, SamplingOptions};
pub use stop::StopStrings;
pub use template::ChatTemplate;
pub use tokenizer::{Control, Special, StreamDecoder, Tokenizer, TokenizerConfig};
pub use voice::Voice;
