//! `tokenizer.json`: Hugging Face's form, so that other programs can open a bundle's tokenizer too.
//!
//! What is written is one canonical form: a model of type `BPE`, a pre-tokenizer of `Split` patterns, `added_tokens` for every special
//! token. What is read is that form and nothing wider; a field that says anything else is refused by name, because to ignore it would
//! mean other ids. A SentencePiece model is written as the merges that its scores imply, for readers that know no scores, and
//! with the scores beside them (`model.scores`, which other readers skip), for ours: where two tokens share a score the merges alone
//! would not tell.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::spm::SPACE;
use super::vocab::{Kind, Vocab};
use super::{Model, Tokenizer};
use crate::Error;

/// What a model is built from, besides its vocabulary.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    /// Whether symbols are bytes in GPT-2's spelling, rather than characters.
    pub byte_level: bool,
    /// Patterns of the pre-tokenizer.
    pub patterns: Vec<String>,
    /// Pairs of spellings, the earliest learned first; empty for SentencePiece.
    pub merges: Vec<(String, String)>,
    /// A word that is a token stays whole.
    pub ignore_merges: bool,
    /// SentencePiece's scores, by id.
    pub scores: Option<Vec<f32>>,
    /// The token of what has none (SentencePiece alone uses it).
    pub unknown: Option<u32>,
    /// Special tokens that swallow white space behind them.
    pub strip_after: BTreeSet<u32>,
}

#[derive(Serialize, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BpeModel {
    r#type: String,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Map<String, Value>,
    merges: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scores: Option<Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    truncation: Option<Value>,
    padding: Option<Value>,
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: BpeModel,
}

/// The pre-tokenizer of byte-level models: the patterns, then the spelling of bytes.
fn split_bytes<'a>(patterns: impl Iterator<Item = &'a str>) -> Value {
    let split =
        |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let steps: Vec<Value> = patterns.map(split).chain([bytes]).collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// The patterns alone, for models of characters.
fn split_characters<'a>(patterns: impl Iterator<Item = &'a str>) -> Value {
    let split =
        |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    json!({"type": "Sequence", "pretokenizers": patterns.map(split).collect::<Vec<_>>()})
}

fn spell_spaces(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let steps = if prefix { vec![json!({"type": "Prepend", "prepend": SPACE}), replace] } else { vec![replace] };
    json!({"type": "Sequence", "normalizers": steps})
}

fn unspell_spaces(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// The begin and end tokens of a document.
fn template(tokenizer: &Tokenizer) -> Option<Value> {
    let config = tokenizer.config();
    let special = |id: Option<u32>, wanted: bool| id.filter(|_| wanted).and_then(|id| Some((id, tokenizer.token(id)?)));
    let before = special(config.bos, config.add_bos);
    let after = special(config.eos, config.add_eos);
    if before.is_none() && after.is_none() {
        return None;
    }
    let name = |token: Option<(u32, &str)>, kind: u32| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let sequence = |which: &str, kind: u32| json!({"Sequence": {"id": which, "type_id": kind}});
    let row =
        |which: &str, kind: u32| name(before, kind).into_iter().chain([sequence(which, kind)]).chain(name(after, kind));
    let tokens: Map<String, Value> = before
        .into_iter()
        .chain(after)
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    Some(json!({
        "type": "TemplateProcessing",
        "single": row("A", 0).collect::<Vec<_>>(),
        "pair": row("A", 0).chain(row("B", 1)).collect::<Vec<_>>(),
        "special_tokens": tokens,
    }))
}

pub(super) fn write(tokenizer: &Tokenizer) -> String {
    let Tokenizer { vocab, source, config, .. } = tokenizer;
    let special = |kind: Kind| kind.is_special() || kind == Kind::UserDefined;
    let added = vocab.iter().filter(|(_, text, kind)| special(*kind) && !text.is_empty());
    let patterns = |splitter: &super::Splitter| splitter.sources().map(str::to_owned).collect::<Vec<_>>();
    let (normalizer, pre_tokenizer, decoder, merges) = match &tokenizer.model {
        Model::ByteLevel { splitter, .. } => {
            let bytes =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
            (None, Some(split_bytes(patterns(splitter).iter().map(String::as_str))), bytes, source.merges.clone())
        }
        Model::Characters { splitter, .. } => (
            Some(spell_spaces(config.add_space_prefix)),
            Some(split_characters(patterns(splitter).iter().map(String::as_str))),
            unspell_spaces(config.add_space_prefix),
            source.merges.clone(),
        ),
        Model::SentencePiece(spm) => (
            Some(spell_spaces(config.add_space_prefix)),
            None,
            unspell_spaces(config.add_space_prefix),
            spm.merges(vocab),
        ),
    };
    let sentencepiece = source.scores.is_some();
    let file = File {
        version: "1.0".into(),
        truncation: None,
        padding: None,
        added_tokens: added
            .map(|(id, text, kind)| AddedToken {
                id,
                content: text.to_owned(),
                single_word: false,
                lstrip: false,
                rstrip: source.strip_after.contains(&id),
                normalized: false,
                special: kind.is_special(),
            })
            .collect(),
        normalizer,
        pre_tokenizer,
        post_processor: template(tokenizer),
        decoder: Some(decoder),
        model: BpeModel {
            r#type: "BPE".into(),
            dropout: None,
            unk_token: source.unknown.filter(|_| sentencepiece).and_then(|id| vocab.text(id)).map(str::to_owned),
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: sentencepiece,
            byte_fallback: !source.byte_level,
            ignore_merges: source.ignore_merges,
            vocab: vocab
                .iter()
                .filter(|(_, text, _)| !text.is_empty())
                .map(|(id, text, _)| (text.to_owned(), id.into()))
                .collect(),
            merges,
            scores: source.scores.clone(),
        },
    };
    serde_json::to_string(&file).expect("strings, integers and finite scores have a JSON form")
}

pub(super) fn read(text: &str) -> Result<(Vocab, Source), Error> {
    let file: File = serde_json::from_str(text)?;
    let model = file.model;
    let refuse = |field: &str, problem: &str| Err(Error::tokenizer(format!("tokenizer.json {field}"), problem));
    if model.r#type != "BPE" {
        return refuse("model.type", "expected `BPE`");
    }
    if model.dropout.is_some() || model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some() {
        return refuse("model", "dropout, continuing_subword_prefix and end_of_word_suffix must be null");
    }
    if file.truncation.is_some() || file.padding.is_some() {
        return refuse("truncation", "truncation and padding must be null");
    }

    // Ids need not be dense in a model's vocabulary: what is missing has no spelling.
    let mut spellings: BTreeMap<u32, String> = BTreeMap::new();
    let size = model.vocab.len() + file.added_tokens.len();
    for (text, id) in model.vocab {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let Some(id) = id.filter(|&id| (id as usize) < 2 * size) else {
            return refuse("model.vocab", &format!("{text:?} has an id that is not a small whole number"));
        };
        if let Some(other) = spellings.insert(id, text) {
            return refuse("model.vocab", &format!("id {id} is given to {other:?} and to another"));
        }
    }
    for token in &file.added_tokens {
        if token.lstrip || token.normalized || token.single_word {
            return refuse("added_tokens", &format!("{:?} is lstrip, normalized or single_word", token.content));
        }
        if spellings.get(&token.id) != Some(&token.content) {
            return refuse("added_tokens", &format!("{:?} is not id {} in model.vocab", token.content, token.id));
        }
    }
    let count = spellings.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    let count = count.max(model.scores.as_ref().map_or(0, |scores| scores.len().min(2 * size)));
    let mut texts = vec![String::new(); count];
    for (id, text) in spellings {
        texts[id as usize] = text;
    }
    let kind = |text: &String| match super::vocab::spelled_byte(text) {
        Some(_) if model.byte_fallback => Kind::Byte,
        _ => Kind::Normal,
    };
    let kinds = texts.iter().map(kind).collect();
    let mut vocab = Vocab::new(texts, kinds)?;
    for token in &file.added_tokens {
        vocab.set_kind(token.id, if token.special { Kind::Control } else { Kind::UserDefined });
    }
    let unknown = match &model.unk_token {
        None => None,
        Some(text) => match vocab.id(text) {
            Some(id) => Some(id),
            None => return refuse("model.unk_token", "is not in model.vocab"),
        },
    };
    // A model may name any token for it; one that is not markup stays a piece of text.
    if let Some(id) = unknown.filter(|&id| vocab.kind(id) == Some(Kind::Control)) {
        vocab.set_kind(id, Kind::Unknown);
    }

    let byte_level = !model.byte_fallback;
    let patterns = match &file.pre_tokenizer {
        None => Vec::new(),
        Some(steps) => {
            let found: Option<Vec<String>> = steps["pretokenizers"]
                .as_array()
                .map(|steps| steps.iter().filter_map(|s| s["pattern"]["Regex"].as_str().map(str::to_owned)).collect());
            let patterns = found.unwrap_or_default();
            let written = patterns.iter().map(String::as_str);
            let same = if byte_level { split_bytes(written) } else { split_characters(written) };
            if same != *steps {
                return refuse(
                    "pre_tokenizer",
                    "expected a Sequence of isolated Split patterns, and ByteLevel last for bytes",
                );
            }
            patterns
        }
    };
    let expected = if byte_level { vec![None] } else { vec![Some(spell_spaces(true)), Some(spell_spaces(false))] };
    if !expected.contains(&file.normalizer) {
        return refuse("normalizer", "expected none for bytes, and spaces written as U+2581 otherwise");
    }
    if model.scores.is_some() == (byte_level || file.pre_tokenizer.is_some()) {
        return refuse("model.scores", "expected exactly where there is a normalizer and no pre_tokenizer");
    }
    Ok((
        vocab,
        Source {
            byte_level,
            patterns,
            merges: if model.scores.is_some() { Vec::new() } else { model.merges },
            ignore_merges: model.ignore_merges,
            scores: model.scores,
            unknown,
            strip_after: file.added_tokens.iter().filter(|t| t.rstrip).map(|t| t.id).collect(),
        },
    ))
}
