//! Text to token ids and back.
//!
//! A tokenizer is read once from GGUF metadata ([`Tokenizer::from_gguf`]), written into the bundle as a `tokenizer.json` in
//! Hugging Face's form and a small [`TokenizerConfig`] for what that form cannot say, and opened from those two alone
//! ([`Tokenizer::from_json`]).
//!
//! Encoding has two steps. Special tokens are cut out of the text first, the longest at each place; what lies between is encoded by
//! the model: byte-pair merges inside pre-tokenized words, or SentencePiece's merges over the whole stretch. Which special tokens are
//! cut is the caller's choice and the crate's main promise: with [`Special::AsText`] a control token that somebody typed is text and
//! nothing else.
//!
//! | part | file |
//! |---|---|
//! | spellings and kinds | `vocab` |
//! | special tokens in a text | `special` |
//! | words | `split` |
//! | merging, shared | `merge` |
//! | byte-pair encoding | `bpe` |
//! | SentencePiece | `spm` |
//! | `tokenizer.json` | `json` |
//! | ids to text, streaming | `stream` |

mod bpe;
mod json;
mod merge;
mod special;
mod split;
mod spm;
mod stream;
mod vocab;

use std::collections::BTreeSet;

use anemone_gguf::{Metadata, optional};
use serde::{Deserialize, Serialize};

use crate::{Error, stop};
use bpe::{Alphabet, Bpe};
use special::Specials;
use split::Splitter;
use spm::{SPACE, Spm};
pub use stream::StreamDecoder;
pub use vocab::Kind;
use vocab::Vocab;

/// What happens to special tokens that occur in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Control tokens become what they say: for text of a template or another trusted source.
    Parse,
    /// Control tokens are text like any other: for what a user typed. User-defined tokens, which are text, still apply.
    AsText,
}

/// What happens to control tokens on the way back to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// They are left out.
    Skip,
    /// They are spelled.
    Show,
}

/// What a `tokenizer.json` cannot say, or says in places that differ from model to model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// Every token that ends a turn ([`stop::end_tokens`]).
    pub stop: BTreeSet<u32>,
    /// Whether a document (not a chat: its template says so itself) begins with `bos`.
    pub add_bos: bool,
    /// Whether a document ends with `eos`.
    pub add_eos: bool,
    /// Whether a stretch of text after a special token, or at the start, gets a space before it (SentencePiece).
    pub add_space_prefix: bool,
}

/// How stretches between special tokens are encoded.
#[derive(Clone, Debug)]
enum Model {
    /// Words of bytes.
    ByteLevel { splitter: Splitter, bpe: Bpe },
    /// Words of characters, spaces spelled `▁` (Gemma 4).
    Characters { splitter: Splitter, bpe: Bpe },
    /// No words: the whole stretch, spaces spelled `▁`.
    SentencePiece(Spm),
}

/// Text to token ids and back. See the module's essay.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    model: Model,
    config: TokenizerConfig,
    /// Merges and flags as `tokenizer.json` has them.
    source: json::Source,
}

/// The tokenizer models this crate builds, as `tokenizer.ggml.model` names them.
const MODELS: [&str; 3] = ["gpt2", "llama", "gemma4"];

impl Tokenizer {
    /// Reads the keys `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// A model or pre-tokenizer that is not known, a missing key, or fields that do not fit each other: each named.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, Error> {
        let name = metadata.str("tokenizer.ggml.model")?;
        let texts = metadata.strings("tokenizer.ggml.tokens")?.to_vec();
        let types = optional(metadata.i32s("tokenizer.ggml.token_type"))?;
        let kinds = match &types {
            None => vec![Kind::Normal; texts.len()],
            Some(codes) if codes.len() == texts.len() => codes
                .iter()
                .enumerate()
                .map(|(id, &code)| {
                    let problem = || format!("token {id} has type {code}: expected 1 to 6");
                    Kind::from_gguf(code).ok_or_else(|| Error::tokenizer("token_type", problem()))
                })
                .collect::<Result<_, _>>()?,
            Some(codes) => {
                let problem = format!("{} types for {} tokens", codes.len(), texts.len());
                return Err(Error::tokenizer("token_type", problem));
            }
        };
        let mut vocab = Vocab::new(texts, kinds)?;
        let id = |key: &str| -> Result<Option<u32>, Error> {
            match optional(metadata.u32(&format!("tokenizer.ggml.{key}")))? {
                Some(id) if id as usize >= vocab.len() => Err(Error::TokenId { id, vocab: vocab.len() }),
                id => Ok(id),
            }
        };
        let (bos, eos, unknown) = (id("bos_token_id")?, id("eos_token_id")?, id("unknown_token_id")?);
        let mut declared = BTreeSet::from_iter(eos);
        for key in ["eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"] {
            declared.extend(id(key)?);
        }
        let named = vocab.iter().filter(|&(_, _, kind)| match kind {
            Kind::Control | Kind::UserDefined => true,
            // Text that is spelled like markup is text, unless the file tells no kinds apart.
            Kind::Normal => types.is_none(),
            Kind::Unknown | Kind::Byte => false,
        });
        let stop = stop::end_tokens(declared, named.map(|(id, text, _)| (id, text)));
        for &id in &stop {
            if vocab.kind(id) != Some(Kind::Normal) || types.is_none() {
                vocab.set_kind(id, Kind::Control);
            }
        }
        let flag = |key: &str, default: bool| -> Result<bool, Error> {
            Ok(optional(metadata.bool(&format!("tokenizer.ggml.{key}")))?.unwrap_or(default))
        };
        let sentencepiece = name == "llama";
        let mut source = json::Source {
            byte_level: name == "gpt2",
            unknown,
            strip_after: BTreeSet::new(),
            ..json::Source::default()
        };
        let mut add_bos = sentencepiece || name == "gemma4";
        match name {
            "gpt2" => {
                let pre = split::find(metadata.str("tokenizer.ggml.pre")?)?;
                source.patterns = pre.patterns.iter().map(|&p| p.to_owned()).collect();
                source.ignore_merges = pre.ignore_merges;
                add_bos = pre.add_bos;
            }
            "gemma4" => source.patterns = split::GEMMA4.iter().map(|&p| p.to_owned()).collect(),
            "llama" => source.scores = Some(metadata.f32s("tokenizer.ggml.scores")?.into_owned()),
            _ => return Err(Error::UnknownModel { found: name.to_owned(), known: MODELS.join(", ") }),
        }
        if !sentencepiece {
            let pair = |(rank, merge): (usize, &String)| {
                // The first character may itself be a space.
                let rest = merge.char_indices().nth(1).map_or("", |(i, _)| &merge[i..]);
                match rest.find(' ') {
                    Some(at) => {
                        let at = merge.len() - rest.len() + at;
                        Ok((merge[..at].to_owned(), merge[at + 1..].to_owned()))
                    }
                    None => {
                        Err(Error::tokenizer("merges", format!("merge {rank} is {merge:?}: expected two spellings")))
                    }
                }
            };
            source.merges =
                metadata.strings("tokenizer.ggml.merges")?.iter().enumerate().map(pair).collect::<Result<_, _>>()?;
        }
        // GGUF does not carry it: markup of Phi-3 swallows the white space behind it, except for these three.
        let model_name = optional(metadata.str("general.name"))?.unwrap_or_default().to_lowercase();
        if sentencepiece && (model_name.contains("phi-3") || model_name.contains("phi3")) {
            let keeps = ["<unk>", "<s>", "<|endoftext|>"];
            let strips = |&(_, text, kind): &(u32, &str, Kind)| {
                matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined) && !keeps.contains(&text)
            };
            source.strip_after = vocab.iter().filter(strips).map(|(id, ..)| id).collect();
        }
        let config = TokenizerConfig {
            bos,
            eos,
            stop,
            add_bos: flag("add_bos_token", add_bos)?,
            add_eos: flag("add_eos_token", false)?,
            add_space_prefix: flag("add_space_prefix", sentencepiece)?,
        };
        Self::assemble(vocab, source, config)
    }

    /// Opens what [`to_json`](Self::to_json) wrote, with the configuration it was written with.
    ///
    /// # Errors
    /// Text that is not JSON, a form other than the written one, or ids outside the vocabulary.
    pub fn from_json(text: &str, config: TokenizerConfig) -> Result<Self, Error> {
        let (vocab, source) = json::read(text)?;
        Self::assemble(vocab, source, config)
    }

    /// The tokenizer as a `tokenizer.json` in Hugging Face's form. The same tokenizer gives the same bytes.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    fn assemble(vocab: Vocab, source: json::Source, config: TokenizerConfig) -> Result<Self, Error> {
        for id in config.stop.iter().copied().chain(config.bos).chain(config.eos) {
            if id as usize >= vocab.len() {
                return Err(Error::TokenId { id, vocab: vocab.len() });
            }
        }
        for (flag, id, name) in [(config.add_bos, config.bos, "bos"), (config.add_eos, config.eos, "eos")] {
            if flag && id.is_none() {
                let problem = format!("says to add the {name} token, but names none");
                return Err(Error::tokenizer(format!("add_{name}_token"), problem));
            }
        }
        let model = match &source.scores {
            Some(scores) => Model::SentencePiece(Spm::new(&vocab, scores.clone(), source.unknown)?),
            None => {
                let splitter = Splitter::new(&source.patterns)?;
                let alphabet = if source.byte_level { Alphabet::Bytes } else { Alphabet::Characters };
                let merges = source.merges.iter().map(|(l, r)| (l.as_str(), r.as_str()));
                let bpe = Bpe::new(&vocab, alphabet, merges, source.ignore_merges)?;
                if source.byte_level { Model::ByteLevel { splitter, bpe } } else { Model::Characters { splitter, bpe } }
            }
        };
        let specials = Specials::new(&vocab, source.strip_after.clone())?;
        Ok(Self { vocab, specials, model, config, source })
    }

    /// What the JSON form cannot say.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// The number of tokens: ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// A token's id by its spelling in the vocabulary.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// A token's spelling in the vocabulary, where a space may be `Ġ` or `▁`; `None` past its end.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// What a token is for; `None` past the vocabulary's end.
    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.vocab.kind(id)
    }

    /// The ids of `text`, with nothing added before or after. Any text has some: a byte that the vocabulary cannot spell is left
    /// out (a few control characters in some small vocabularies), as transformers and llama.cpp do.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut encoder = Encoder { tokenizer: self, after_special: true, out: &mut ids };
        encoder.text(text, special);
        ids
    }

    /// The ids of a whole document: [`encode`](Self::encode), with the begin and end tokens the model was trained with.
    pub fn encode_document(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::new();
        ids.extend(self.config.bos.filter(|_| self.config.add_bos));
        ids.extend(self.encode(text, special));
        ids.extend(self.config.eos.filter(|_| self.config.add_eos));
        ids
    }

    /// The ids of text in which `mark` follows characters that came from messages: a control token that holds a mark, or is
    /// followed by one, is text. Marks themselves are dropped.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut encoder = Encoder { tokenizer: self, after_special: true, out: &mut ids };
        let mut rest = 0;
        for found in self.specials.find(text, Special::Parse) {
            let kept = self.vocab.kind(found.id).is_some_and(|kind| !kind.is_special());
            if kept || text[found.end..].starts_with(mark) {
                continue;
            }
            encoder.text(&text[rest..found.start].replace(mark, ""), Special::AsText);
            encoder.special(found.id);
            rest = found.end;
        }
        encoder.text(&text[rest..].replace(mark, ""), Special::AsText);
        ids
    }

    /// The spellings of control tokens.
    pub(crate) fn markup(&self) -> impl Iterator<Item = &str> {
        self.vocab.iter().filter(|(_, text, kind)| kind.is_special() && !text.is_empty()).map(|(_, text, _)| text)
    }

    /// The ids of control tokens in text where they may be, in order.
    pub(crate) fn control_tokens(&self, text: &str, mark: char) -> Vec<u32> {
        let control = |id: u32| self.vocab.kind(id).is_some_and(Kind::is_special);
        let found = self.specials.find(text, Special::Parse);
        found.filter(|f| control(f.id) && !text[f.end..].starts_with(mark)).map(|f| f.id).collect()
    }

    /// The bytes one token stands for, without regard to its neighbours.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn token_bytes(&self, id: u32, control: Control) -> Result<Vec<u8>, Error> {
        let (Some(text), Some(kind)) = (self.vocab.text(id), self.vocab.kind(id)) else {
            return Err(Error::TokenId { id, vocab: self.vocab.len() });
        };
        Ok(match kind {
            Kind::Control | Kind::Unknown if control == Control::Skip => Vec::new(),
            Kind::Control | Kind::Unknown | Kind::UserDefined => text.as_bytes().to_vec(),
            Kind::Byte => match vocab::spelled_byte(text) {
                Some(byte) => vec![byte],
                None => text.as_bytes().to_vec(),
            },
            Kind::Normal => match &self.model {
                // A spelling outside the byte alphabet stands for itself.
                Model::ByteLevel { .. } => bpe::bytes_of(text).unwrap_or_else(|| text.as_bytes().to_vec()),
                Model::Characters { .. } | Model::SentencePiece(_) => text.replace(SPACE, " ").into_bytes(),
            },
        })
    }

    /// The text of `ids`. Bytes that are no UTF-8 become U+FFFD, as [`String::from_utf8_lossy`] places them.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], control: Control) -> Result<String, Error> {
        let mut decoder = StreamDecoder::new(control);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(self, id)?);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }
}

/// Encodes stretch after stretch; SentencePiece wants to know what went before.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    after_special: bool,
    out: &'a mut Vec<u32>,
}

impl Encoder<'_> {
    fn text(&mut self, text: &str, special: Special) {
        let tokenizer = self.tokenizer;
        let mut rest = 0;
        for found in tokenizer.specials.find(text, special) {
            self.plain(&text[rest..found.start]);
            self.special(found.id);
            rest = found.end;
        }
        self.plain(&text[rest..]);
    }

    fn special(&mut self, id: u32) {
        self.out.push(id);
        self.after_special = true;
    }

    fn plain(&mut self, text: &str) {
        let text = match self.out.last() {
            Some(id) if self.after_special && self.tokenizer.specials.strips_after(*id) => {
                text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}')
            }
            _ => text,
        };
        if text.is_empty() {
            return;
        }
        let vocab = &self.tokenizer.vocab;
        let prefix = if self.tokenizer.config.add_space_prefix && self.after_special { " " } else { "" };
        let spelled = || format!("{prefix}{text}").replace(' ', SPACE.encode_utf8(&mut [0; 4]));
        match &self.tokenizer.model {
            Model::ByteLevel { splitter, bpe } => {
                splitter.split(text).into_iter().for_each(|word| bpe.encode(vocab, word, self.out));
            }
            Model::Characters { splitter, bpe } => {
                splitter.split(&spelled()).into_iter().for_each(|word| bpe.encode(vocab, word, self.out));
            }
            Model::SentencePiece(spm) => spm.encode(vocab, &spelled(), self.out),
        }
        self.after_special = false;
    }
}
