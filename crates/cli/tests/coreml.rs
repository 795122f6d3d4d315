//! Whole bundles through Core ML's runtime, over the Core ML that computes with the portable one and misbehaves on demand: what
//! a session is given is the portable runtime's answer bit for bit, and what fails takes nothing with it.

mod common;
#[allow(dead_code, reason = "its own crate's tests use the rest")]
#[path = "../../coreml/tests/fake/mod.rs"]
mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anemone_chat::engine::{Logits, Session};
use anemone_chat::{Drafts, Engine};
use anemone_coreml::{CoreMl, Limits, Sharing, Units};
use anemone_exec::{Numerics, Options, Portable, Runtime};
use anemone_gate::prompts::Prompt;
use anemone_gate::{Run, Subject, Verdict, compile, parity};
use anemone_gguf::Gguf;
use common::*;
use fake::{Fake, Handler, Outputs, failure};
use tempfile::TempDir;

const SLICES: usize = 3;

fn bundle() -> Bundle {
    Bundle::build(&fixture(MINIATURE), &["--topology", "0-2,2-4", "--head-slices", "3", "--tokens", "1,8"])
}

/// Core ML over a fake.
struct Mac {
    _folder: TempDir,
    fake: Fake,
    runtime: CoreMl<Fake>,
}

fn mac() -> Mac {
    let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let runtime = CoreMl::new(fake.clone(), Units::default(), folder.path().join("cache"), Limits::default());
    Mac { _folder: folder, fake, runtime }
}

/// Logits of a prompt of a whole block, a short one and single tokens, then greedy tokens with theirs.
fn converse(session: &mut Session<'_>) -> Vec<Vec<f32>> {
    let prompt: Vec<u32> = (0..13).map(|i| 37 * i + 11).collect();
    let mut all = vec![session.feed(&prompt, Logits::All).unwrap()];
    let vocab = session.contract().vocab;
    for _ in 0..6 {
        let last = all.last().unwrap();
        let last = &last[last.len() - vocab..];
        let best = (0..vocab).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        all.push(session.feed(&[best as u32], Logits::Last).unwrap());
    }
    all
}

fn expected(bundle: &Bundle) -> Vec<Vec<f32>> {
    let portable = Portable::new(Numerics::Ane, Options { threads: 1, ..Options::default() });
    converse(&mut Engine::open(&bundle.path, &portable).unwrap().session().unwrap())
}

#[test]
fn a_session_is_the_portable_one_bit_for_bit_wherever_outputs_and_states_are() {
    let bundle = bundle();
    let expected = expected(&bundle);
    for (outputs, holds_memory, refuses_borrowed_states) in
        [(Outputs::InPlace, false, false), (Outputs::Padded, true, false), (Outputs::InPlace, false, true)]
    {
        let mac = mac();
        mac.fake.faults().outputs = outputs;
        mac.fake.faults().holds_memory = holds_memory;
        mac.fake.faults().refuses_borrowed_states = refuses_borrowed_states;
        let engine = Engine::open(&bundle.path, &mac.runtime).unwrap();
        let shared = |layers: usize| match &mac.runtime.reports()[layers].sharing {
            Sharing::Shared => !refuses_borrowed_states,
            Sharing::Copied(functions, _) => refuses_borrowed_states && functions == &["prefill"],
            Sharing::Alone => false,
        };
        assert!(shared(0) && shared(1));
        engine.warm_up().unwrap();
        assert_eq!(mac.fake.live_states(), 0, "the first calls keep nothing");
        let mut session = engine.session().unwrap();
        assert!(converse(&mut session) == expected);
        drop(session);
        assert_eq!(mac.fake.live_states(), 0);
    }
}

#[test]
fn head_slices_are_submitted_together() {
    let bundle = bundle();
    let expected = expected(&bundle);
    let mac = mac();
    let engine = Engine::open(&bundle.path, &mac.runtime).unwrap();
    // From here on a slice's call that is made alone fails.
    mac.fake.faults().meeting = Some(SLICES);
    assert!(converse(&mut engine.session().unwrap()) == expected);
}

#[test]
fn an_error_in_any_call_of_a_token_is_told_and_nothing_of_it_stays() {
    let bundle = bundle();
    let expected = expected(&bundle);
    let mac = mac();
    let engine = Engine::open(&bundle.path, &mac.runtime).unwrap();
    let mut other = engine.session().unwrap();
    other.feed(&[1, 2, 3], Logits::None).unwrap();
    let states = mac.fake.live_states();
    // Two layer shards, three slices: a token's calls, each failing once. Slices are called in no order.
    for call in 0..5 {
        let mut session = engine.session().unwrap();
        session.feed(&[1], Logits::Last).unwrap();
        let next = mac.fake.seen().predicted.load(Relaxed);
        mac.fake.faults().predictions = Some((next + call, 1, failure(0, "error code: -14")));
        let error = session.feed(&[2], Logits::Last).unwrap_err().to_string();
        assert!(error.starts_with("main: Core ML failed") && error.contains("more shards"), "call {call}: {error}");
        mac.fake.faults().predictions = None;
        drop(session);
        assert_eq!(mac.fake.live_states(), states, "call {call}");
        assert!(converse(&mut engine.session().unwrap()) == expected, "call {call}: the next one begins anew");
    }
    // A conversation that was in between goes on as if nothing had been.
    let mut alone = engine.session().unwrap();
    alone.feed(&[1, 2, 3], Logits::None).unwrap();
    assert!(other.feed(&[4], Logits::Last).unwrap() == alone.feed(&[4], Logits::Last).unwrap());
}

#[test]
fn the_compile_gate_passes_what_core_ml_loads_and_tells_what_it_refuses() {
    let bundle = bundle();
    let subject = Subject::open(&bundle.path, Arc::new(Gguf::open(fixture(MINIATURE)).unwrap())).unwrap();
    let mac = mac();
    let judge = || {
        let ask = |package: &std::path::Path| {
            mac.runtime.try_load(package).map(|_| "loaded".to_owned()).map_err(|e| e.to_string())
        };
        compile::measured(&subject, &mac.runtime.describe(), &ask)
    };
    let findings = judge();
    assert_eq!(findings.len(), 5);
    for finding in &findings {
        assert_eq!(finding.verdict, Verdict::Passed, "{}", finding.message);
        assert!(
            finding.measured_on.starts_with("core ml on neural engine and cpu of a fake"),
            "{}",
            finding.measured_on
        );
    }
    assert_eq!(mac.fake.seen().predicted.load(Relaxed), 0, "loading alone calls nothing");
    // The first shard is refused twice: kept, and compiled anew.
    mac.fake.faults().load = Handler::Fails(failure(0, "error code: -14"), 2);
    let findings = judge();
    assert_eq!(findings[0].verdict, Verdict::Failed);
    assert!(findings[0].message.contains("more shards"), "{}", findings[0].message);
    assert!(findings[1..].iter().all(|f| f.verdict == Verdict::Passed));
}

#[test]
fn drafts_are_off_until_parity_has_shown_on_this_machine_that_blocks_and_single_tokens_agree() {
    let bundle = bundle();
    let subject = Subject::open(&bundle.path, Arc::new(Gguf::open(fixture(MINIATURE)).unwrap())).unwrap();
    let mac = mac();
    let engine = Engine::open(&bundle.path, &mac.runtime).unwrap();
    assert_eq!(engine.drafts(), Drafts::Never);
    let run = || Run { engine: &engine, measured_on: mac.runtime.describe(), numerics: Numerics::Ane };
    let prompts = [Prompt { name: "one".to_owned(), ids: (0..11).map(|i| 41 * i + 7).collect(), expected: None }];
    let findings = parity::judge(&subject, &run(), &run(), &prompts, 4, |_| {}).unwrap();
    let shown = parity::drafts(&findings, &mac.runtime.describe()).unwrap();
    assert!(shown.contains("core ml on neural engine and cpu of a fake") && shown.contains("1 prompts"), "{shown}");
    let missing = parity::drafts(&findings, "core ml on cpu only of a fake, macOS 15.0.0").unwrap_err();
    assert!(missing.contains("has not run on core ml on cpu only"), "{missing}");
}
