//! A token allocates nothing once its kind has been seen: host, runtime and every thread of it counted.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use anemone_chat::Engine;
use anemone_chat::engine::Logits;
use anemone_exec::{Fast, FastOptions};
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
    let bundle =
        Bundle::build(&fixture(MINIATURE), &["--topology", "0-2,2-4", "--head-slices", "2", "--tokens", "1,8"]);
    for threads in [1, 3] {
        let engine = Engine::open(&bundle.path, &Fast::new(FastOptions { threads, ..FastOptions::default() })).unwrap();
        let mut session = engine.session().unwrap();
        let mut logits = Vec::new();
        session.feed_into(&[1, 2, 3, 4, 5, 6, 7], Logits::Last, &mut logits).unwrap();
        session.feed_into(&[8], Logits::Last, &mut logits).unwrap();
        let before = COUNT.load(Ordering::Relaxed);
        for id in 0..50 {
            session.feed_into(&[id], Logits::Last, &mut logits).unwrap();
        }
        session.feed_into(&[1, 2, 3, 4, 5, 6, 7], Logits::Last, &mut logits).unwrap();
        assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "{threads} threads");
    }
}
