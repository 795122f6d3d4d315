//! Sessions on the miniature: what is forgotten leaves no trace.

mod common;

use anemone_chat::engine::Logits;
use anemone_chat::pool::{Lease, Occupancy};
use anemone_chat::{Engine, Pool};
use anemone_exec::{Fast, FastOptions, Numerics, Options, Portable, Runtime};
use common::*;

fn fast() -> Box<dyn Runtime> {
    Box::new(Fast::new(FastOptions::default()))
}

fn portable(numerics: Numerics) -> Box<dyn Runtime> {
    Box::new(Portable::new(numerics, Options::default()))
}

#[test]
fn a_truncated_session_is_bit_for_bit_a_fresh_one() {
    let lines = json_lines("miniature/prompts.jsonl");
    let bundle = Bundle::build(&fixture(MINIATURE), &["--tokens", "1,8", "--topology", "0-2,2-4"]);
    for runtime in [fast(), portable(Numerics::Exact), portable(Numerics::Ane)] {
        let engine = Engine::open(&bundle.path, runtime.as_ref()).unwrap();
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

/// A pool of the miniature with room for `sessions`, and the prompts it was trained on.
fn with_pool(sessions: usize, check: impl FnOnce(&Pool, &[Vec<u32>])) {
    let lines = json_lines("miniature/prompts.jsonl");
    let prompts: Vec<_> = lines.iter().map(|l| ids(&l["prompt_ids"])).collect();
    let bundle = Bundle::build(&fixture(MINIATURE), &["--tokens", "1,8"]);
    let engine = Engine::open(&bundle.path, fast().as_ref()).unwrap();
    check(&Pool::new(&engine, sessions * engine.session_bytes()), &prompts);
}

/// Feeds what the session does not hold yet; gives the last logits and how many tokens were computed.
fn answer(lease: &mut Lease, prompt: &[u32]) -> (Vec<f32>, usize) {
    let rest = &prompt[lease.tokens().len()..];
    (lease.feed(rest, Logits::Last).unwrap(), rest.len())
}

#[test]
fn a_second_turn_computes_only_the_new_tokens() {
    with_pool(2, |pool, prompts| {
        let (first, other) = (&prompts[0], &prompts[1]);
        let mut lease = pool.lease(first).unwrap().unwrap();
        assert_eq!(answer(&mut lease, first).1, first.len());
        // The answer, and the next question.
        lease.feed(&[5, 6, 7], Logits::Last).unwrap();
        drop(lease);
        let second = [&first[..], &[5, 6, 7, 8], other].concat();
        let mut lease = pool.lease(&second).unwrap().unwrap();
        assert_eq!(lease.reused(), first.len() + 3);
        let (logits, computed) = answer(&mut lease, &second);
        assert_eq!(computed, 1 + other.len());
        assert_eq!(logits, pool.engine().session().unwrap().feed(&second, Logits::Last).unwrap());
        drop(lease);
        // The same prompt again: its last token alone, for its logits.
        let mut lease = pool.lease(&second).unwrap().unwrap();
        assert_eq!(answer(&mut lease, &second), (logits, 1));
    });
}

#[test]
fn a_session_has_one_owner_and_the_oldest_makes_room() {
    with_pool(2, |pool, prompts| {
        let occupancy = |resting, leased, evicted| Occupancy { resting, leased, most: 2, evicted };
        let a = pool.lease(&prompts[0]).unwrap().unwrap();
        let b = pool.lease(&prompts[0]).unwrap().unwrap();
        assert!(pool.lease(&prompts[1]).unwrap().is_none(), "both sessions are leased");
        assert_eq!(pool.occupancy(), occupancy(0, 2, 0));
        drop((a, b));
        let held = |start: &[u32]| [start, &[1; 9]].concat();
        for prompt in [held(&[10]), held(&[11])] {
            answer(&mut pool.lease(&prompt).unwrap().unwrap(), &prompt);
        }
        assert_eq!(pool.occupancy(), occupancy(2, 0, 0));
        // A third conversation takes the place of the first, the second goes on.
        let third = held(&[12]);
        assert_eq!(answer(&mut pool.lease(&third).unwrap().unwrap(), &third).1, 10);
        assert_eq!(pool.occupancy(), occupancy(2, 0, 1));
        assert_eq!(pool.lease(&held(&[11])).unwrap().unwrap().reused(), 9);
        assert_eq!(pool.lease(&held(&[10])).unwrap().unwrap().reused(), 0);
    });
}

#[test]
fn a_shared_greeting_does_not_cost_a_conversation_its_session() {
    with_pool(2, |pool, _| {
        let greeting = [1, 2, 3];
        let long = [&greeting[..], &[4; 20]].concat();
        answer(&mut pool.lease(&long).unwrap().unwrap(), &long);
        // Another conversation with the same beginning has a session of its own, while there is room.
        let other = [&greeting[..], &[5; 4]].concat();
        let mut lease = pool.lease(&other).unwrap().unwrap();
        assert_eq!((lease.reused(), answer(&mut lease, &other).1), (0, 7));
        drop(lease);
        // The same question again goes on from there, though most of what the session holds is an answer.
        let mut lease = pool.lease(&long).unwrap().unwrap();
        assert_eq!(lease.reused(), 22);
        lease.feed(&[6; 40], Logits::None).unwrap();
        drop(lease);
        assert_eq!(pool.lease(&long).unwrap().unwrap().reused(), 22);
    });
}

#[test]
fn a_session_that_failed_is_not_kept() {
    with_pool(1, |pool, prompts| {
        let mut lease = pool.lease(&prompts[0]).unwrap().unwrap();
        assert!(lease.feed(&[u32::MAX], Logits::Last).is_err());
        assert!(lease.feed(&prompts[0], Logits::Last).is_err());
        drop(lease);
        assert_eq!(pool.occupancy(), Occupancy { resting: 0, leased: 0, most: 1, evicted: 0 });
        let mut lease = pool.lease(&prompts[0]).unwrap().unwrap();
        assert_eq!(answer(&mut lease, &prompts[0]).1, prompts[0].len());
    });
}

/// Conversations in any order through one small pool: each answer is a fresh session's, bit for bit.
#[test]
fn whatever_was_computed_before_answers_are_those_of_a_fresh_session() {
    with_pool(3, |pool, prompts| {
        let fresh: Vec<_> =
            prompts.iter().take(10).map(|p| pool.engine().session().unwrap().feed(p, Logits::Last).unwrap()).collect();
        let mut at = 7;
        for round in 0..60 {
            at = (at * 31 + round) % fresh.len();
            let mut lease = pool.lease(&prompts[at]).unwrap().unwrap();
            assert_eq!(answer(&mut lease, &prompts[at]).0, fresh[at], "round {round}, prompt {at}");
            // Some leave an answer behind, some nothing, some are cut short.
            lease.feed(&prompts[round % 40][..round % 5], Logits::None).unwrap();
        }
    });
}
