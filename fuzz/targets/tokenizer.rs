//! A vocabulary of anyone's is refused with an error, or every text becomes tokens of it and those become text again; and its
//! JSON form is the same tokenizer.
#![no_main]

use anemone_chat::{Control, Special, Tokenizer};
use anemone_fuzz::split;
use anemone_gguf::Gguf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [text, gguf] = split::<2>(data);
    let text = String::from_utf8_lossy(text);
    let Ok(gguf) = Gguf::from_bytes(gguf.to_vec()) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(gguf.metadata()) else { return };
    let again =
        Tokenizer::from_json(&tokenizer.to_json(), tokenizer.config().clone()).expect("what was written is read");
    for special in [Special::Parse, Special::AsText] {
        let ids = tokenizer.encode(&text, special);
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "an id beyond the vocabulary");
        tokenizer.decode(&ids, Control::Show).expect("its own ids");
        assert_eq!(ids, again.encode(&text, special), "the JSON form encodes otherwise");
    }
});
