//! Sessions on the miniature: what is forgotten leaves no trace.

mod common;

use anemone_chat::Engine;
use anemone_chat::engine::Logits;
use anemone_exec::{Numerics, Options, Portable};
use common::*;

fn engine(bundle: &Bundle, numerics: Numerics) -> Engine {
    Engine::open(&bundle.path, &Portable::new(numerics, Options::default())).unwrap()
}

#[test]
fn a_truncated_session_is_bit_for_bit_a_fresh_one() {
    let lines = json_lines("miniature/prompts.jsonl");
    let bundle = Bundle::build(&fixture(MINIATURE), &["--tokens", "1,8", "--topology", "0-2,2-4"]);
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let engine = engine(&bundle, numerics);
        for pair in lines.chunks_exact(2).take(6) {
            let (first, second) = (ids(&pair[0]["prompt_ids"]), ids(&pair[1]["prompt_ids"]));
            let fresh = engine.session().unwrap().feed(&second, Logits::All).unwrap();
            let vocab = engine.contract().vocab;
            for kept in [0, 1, second.len() / 2, second.len() - 1] {
                let mut session = engine.session().unwrap();
                session.feed(&second[..kept], Logits::None).unwrap();
                session.feed(&first, Logits::None).unwrap();
                session.truncate(kept);
                assert_eq!(session.position(), kept);
                assert_eq!(session.feed(&second[kept..], Logits::All).unwrap(), fresh[kept * vocab..]);
            }
        }
    }
}
