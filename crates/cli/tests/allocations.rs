//! A token allocates nothing once its kind has been seen: host, runtime and every thread of it counted, the choice of the token and
//! its drafts included. Its text does: strings are handed out.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use anemone_chat::engine::Logits;
use anemone_chat::generate::{Feed, Limits};
use anemone_chat::{
    Control, Drafts, Engine, Generation, Sampler, SamplingOptions, StopStrings, StreamDecoder, Tokenizer, Voice,
};
use anemone_exec::{Fast, FastOptions, Rows};
use common::*;

/// The system's allocator, counted.
struct Counted;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// The only test of this program: others would be counted with it.
#[test]
fn a_token_allocates_nothing() {
    let bundle = Bundle::build(
        &fixture(MINIATURE),
        &["--topology", "0-2,2-4", "--head-slices", "2", "--tokens", "1,8", "--context", "512"],
    );
    for threads in [1, 3] {
        let engine = Engine::open(&bundle.path, &Fast::new(FastOptions { threads, ..FastOptions::default() })).unwrap();
        let mut session = engine.session().unwrap();
        let mut logits = Rows::default();
        session.feed_into(&[1, 2, 3, 4, 5, 6, 7], Logits::Last, &mut logits).unwrap();
        session.feed_into(&[8], Logits::Last, &mut logits).unwrap();
        let before = COUNT.load(Ordering::Relaxed);
        for id in 0..50 {
            session.feed_into(&[id], Logits::Last, &mut logits).unwrap();
        }
        session.feed_into(&[1, 2, 3, 4, 5, 6, 7], Logits::Last, &mut logits).unwrap();
        assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "{threads} threads");
        let tokenizer = Voice::open(&bundle.path).unwrap().tokenizer;
        let warm = SamplingOptions { temperature: 0.9, seed: 5, ..SamplingOptions::greedy() };
        for sampling in [
            SamplingOptions::greedy(),
            warm.clone(),
            SamplingOptions { top_p: 0.9, ..warm.clone() },
            SamplingOptions { top_k: 40, min_p: 0.01, repetition_penalty: 1.1, ..warm.clone() },
        ] {
            // Some drafts are kept and some are not.
            for drafts in [Drafts::Never, Drafts::Always(3)] {
                an_answer_allocates_its_text_alone(&engine, &tokenizer, &sampling, drafts);
            }
        }
    }
}

fn an_answer_allocates_its_text_alone(
    engine: &Engine,
    tokenizer: &Tokenizer,
    sampling: &SamplingOptions,
    drafts: Drafts,
) {
    let prompt: Vec<u32> = (0..12).map(|i| 40 + i % 4).collect();
    let sampler = Sampler::new(sampling.clone()).unwrap();
    let limits = Limits { max_tokens: Some(300), stop_strings: Vec::new() };
    let mut generation =
        Generation::new(tokenizer, BTreeSet::new(), prompt, sampler, limits, None).unwrap().with_drafts(drafts);
    let mut session = engine.session().unwrap();
    let (mut logits, mut drawn) = (Rows::default(), Vec::new());
    // The answer's length and the count, when every kind of call was seen, and shortly before drafts are cut short by the answer's end.
    let (mut warm, mut late) = (None, None);
    while generation.finish().is_none() {
        let (ids, draft) = generation.ahead(session.left());
        session.feed_into(ids, Logits::Tail(1 + draft), &mut logits).unwrap();
        generation.draw(&logits, session.left(), &mut drawn).unwrap();
        while generation.goes_on() {
            generation.draw(&logits, session.left(), &mut drawn).unwrap();
        }
        session.retract(generation.rejected());
        let now = (generation.ids().len(), COUNT.load(Ordering::Relaxed));
        if warm.is_none() && now.0 >= 150 {
            warm = Some(now);
        }
        if late.is_none() && now.0 >= 290 {
            late = Some(now);
        }
    }
    let ((warm, before), (late, after)) = (warm.unwrap(), late.unwrap());
    let found = after - before;
    let (mut decoder, mut strings) = (StreamDecoder::new(Control::Skip), StopStrings::new(Vec::new()).unwrap());
    let mut before = 0;
    for (i, &id) in generation.ids()[..late].iter().enumerate() {
        if i == warm {
            before = COUNT.load(Ordering::Relaxed);
        }
        strings.push(&decoder.push(tokenizer, id).unwrap());
    }
    let text = COUNT.load(Ordering::Relaxed) - before;
    assert!(found <= text, "{sampling:?}, {drafts:?}: {found} allocations, {text} of them for text");
}
