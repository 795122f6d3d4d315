//! Work over the rows of an output, split between threads.
//!
//! Threads are started per kernel and joined before it returns. That costs some ten microseconds, so only kernels with
//! enough work split at all. How rows are dealt out never changes what is computed for a row: results do not depend on the
//! number of threads.

use std::thread;

/// Below this many multiply-accumulates a kernel stays on the caller's thread.
const WORTH_A_THREAD: usize = 1 << 17;

/// Calls `f` with the index of the first row and the rows themselves, for chunks of `out` that together cover it.
/// `out` holds rows of `row` elements, and `work` is the number of multiply-accumulates of the whole.
pub fn split<T: Send>(out: &mut [T], row: usize, work: usize, threads: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let rows = out.len().checked_div(row).unwrap_or(0);
    let threads = threads.min(work / WORTH_A_THREAD).min(rows).max(1);
    if threads == 1 {
        return f(0, out);
    }
    let each = rows.div_ceil(threads);
    thread::scope(|scope| {
        let mut chunks = out.chunks_mut(each * row).enumerate();
        let own = chunks.next();
        for (i, chunk) in chunks {
            let f = &f;
            scope.spawn(move || f(i * each, chunk));
        }
        if let Some((_, chunk)) = own {
            f(0, chunk);
        }
    });
}
