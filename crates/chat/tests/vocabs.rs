//! Every vocabulary that llama.cpp publishes with texts and ids. They are large and somebody else's, so they are not in the
//! repository: the test runs where `ANEMONE_VOCABS` names the folder that `fixtures/fetch-vocabs` prints.
//!
//! A vocabulary is a GGUF without tensors; `.inp` beside it has the texts, `.out` their ids, without begin or end token and with
//! control tokens as text.

use std::collections::BTreeMap;
use std::path::Path;

use anemone_chat::{Control, Special, Tokenizer};
use anemone_gguf::Gguf;

/// What stands behind each text of an `.inp` file.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// Vocabularies of models that are no decoders, or too old to name their pre-tokenizer, with what is said of them.
const REFUSED: [(&str, &str); 4] = [
    ("aquila", "tokenizer.ggml.pre"),
    ("bert-bge", "`bert`"),
    ("gpt-neox", "tokenizer.ggml.pre"),
    ("nomic-bert-moe", "`t5`"),
];

fn ids(line: &str) -> Vec<u32> {
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn check(path: &Path, name: &str) -> usize {
    let gguf = Gguf::open(path).unwrap();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata());
    if let Some((_, word)) = REFUSED.iter().find(|(n, _)| *n == name) {
        let error = tokenizer.unwrap_err().to_string();
        assert!(error.contains(word), "{name}: {error}");
        return 0;
    }
    let tokenizer = tokenizer.unwrap();
    let json = tokenizer.to_json();
    let read = Tokenizer::from_json(&json, tokenizer.config().clone()).unwrap();
    assert_eq!(read.to_json(), json, "{name}");
    let Ok(texts) = std::fs::read_to_string(format!("{}.inp", path.display())) else { return 0 };
    let out = std::fs::read_to_string(format!("{}.out", path.display())).unwrap();
    let texts: Vec<&str> = texts.strip_suffix(SEPARATOR).unwrap_or(&texts).split(SEPARATOR).collect();
    let expected: Vec<Vec<u32>> = out.lines().map(ids).collect();
    assert_eq!(texts.len(), expected.len(), "{name}");
    for (text, expected) in texts.iter().zip(&expected) {
        let ids = tokenizer.encode(text, Special::AsText);
        assert_eq!(&ids, expected, "{name}: {text:?}");
        assert_eq!(read.encode(text, Special::AsText), ids, "{name} as JSON: {text:?}");
        assert_eq!(&tokenizer.decode(&ids, Control::Show).unwrap(), text, "{name}");
    }
    texts.len()
}

#[test]
fn ids_are_the_published_ones() {
    let Some(folder) = std::env::var_os("ANEMONE_VOCABS") else { return };
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(name) = name.strip_prefix("ggml-vocab-").and_then(|n| n.strip_suffix(".gguf")) {
            counts.insert(name.to_owned(), check(&path, name));
        }
    }
    println!("{counts:?}");
    assert!(counts.values().filter(|&&n| n > 0).count() >= 14, "{counts:?}");
}
