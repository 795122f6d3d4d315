//! SmolLM2's prompts from messages, against transformers: digits apart, a system prompt that the template supplies. Runs where
//! `ANEMONE_SMOLLM2` names the file that `fixtures/fetch smollm2` prints.

use std::path::Path;

use anemone_chat::{ChatTemplate, Control, Conversation, Message, Special, Tokenizer, encode_chat};
use anemone_gguf::Gguf;
use serde_json::Value;

#[test]
fn prompts_and_answers_are_those_of_transformers() {
    let Some(model) = std::env::var_os("ANEMONE_SMOLLM2") else { return };
    let gguf = Gguf::open(model).unwrap();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    let template = ChatTemplate::new(gguf.metadata().str("tokenizer.chat_template").unwrap()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/smollm2");
    let rows = std::fs::read_to_string(folder.join("prompts.jsonl")).unwrap();
    let mut supplied = 0;
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(row[key].clone()).unwrap();
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        supplied += usize::from(messages[0].role != "system");
        let prompt = encode_chat(&tokenizer, &template, &Conversation::new(messages)).unwrap();
        assert_eq!(prompt.text, row["rendered"].as_str().unwrap());
        assert_eq!(prompt.ids, ids("prompt_ids"));
        assert_eq!(tokenizer.encode(&prompt.text, Special::Parse), prompt.ids);
        assert_eq!(
            tokenizer.decode(&ids("expected_ids"), Control::Skip).unwrap(),
            row["expected_text"].as_str().unwrap()
        );
    }
    assert_eq!(rows.lines().count(), 16);
    assert!((1..16).contains(&supplied), "both kinds of prompt occur");

    let text = std::fs::read_to_string(folder.join("text.txt")).unwrap();
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("text.json")).unwrap()).unwrap();
    let golden: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    assert_eq!(tokenizer.encode(&text, Special::AsText)[..golden.len()], golden);
    // Bytes that this vocabulary cannot spell are left out, and nothing else is.
    let odd = "a\u{4}b\u{40000}c";
    assert_eq!(
        tokenizer.decode(&tokenizer.encode(odd, Special::AsText), Control::Show).unwrap().replace('\u{fffd}', ""),
        "abc"
    );
}
