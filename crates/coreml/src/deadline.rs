//! Waiting for handlers, with a limit.
//!
//! Core ML answers slow requests through a handler, on a queue of its choice, once; or, when something in it dies, never.
//! A [`Completion`] is the handler's end: it is delivered or dropped. [`Waiter::wait`] is the other end: it gives up after
//! its limit, and an answer that comes later is dropped by whoever delivers it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// How long the main thread runs its queue before it looks again whether the answer is there.
const SLICE: Duration = Duration::from_millis(10);

enum Answer<T> {
    Awaited,
    Given(Result<T, Failure>),
    Abandoned,
}

struct Slot<T> {
    answer: Mutex<Answer<T>>,
    changed: Condvar,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Answer<T>> {
        // Nothing panics while it holds the lock.
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handler's end.
pub struct Completion<T>(Arc<Slot<T>>);

/// The end of whoever waits.
pub struct Waiter<T>(Arc<Slot<T>>);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Late {
    /// The limit passed.
    #[error("Core ML did not answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The handler was thrown away without having been called.
    #[error("Core ML dropped the request without an answer")]
    Abandoned,
    /// The answer was an error.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Both ends of one request.
pub fn request<T>() -> (Completion<T>, Waiter<T>) {
    let slot = Arc::new(Slot { answer: Mutex::new(Answer::Awaited), changed: Condvar::new() });
    (Completion(slot.clone()), Waiter(slot))
}

impl<T> Completion<T> {
    /// Gives the answer.
    pub fn deliver(self, answer: Result<T, Failure>) {
        *self.0.lock() = Answer::Given(answer);
        self.0.changed.notify_one();
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        let mut answer = self.0.lock();
        if matches!(*answer, Answer::Awaited) {
            *answer = Answer::Abandoned;
            self.0.changed.notify_one();
        }
    }
}

impl<T> Waiter<T> {
    /// Waits at most `limit`. `turn_main_queue` is [`Foreign::turn_main_queue`](crate::Foreign::turn_main_queue): where the
    /// caller is the main thread it must not sleep, since the handler may be waiting for it.
    pub fn wait(self, limit: Duration, turn_main_queue: impl Fn(Duration) -> bool) -> Result<T, Late> {
        let start = Instant::now();
        loop {
            let mut answer = self.0.lock();
            match std::mem::replace(&mut *answer, Answer::Awaited) {
                Answer::Given(answer) => return Ok(answer?),
                Answer::Abandoned => return Err(Late::Abandoned),
                Answer::Awaited => {}
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Late::TimedOut(limit));
            }
            drop(answer);
            if turn_main_queue(left.min(SLICE)) {
                continue;
            }
            answer = self.0.lock();
            if matches!(*answer, Answer::Awaited) {
                drop(self.0.changed.wait_timeout(answer, left));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers_errors_and_silence_are_told_apart() {
        let (done, waiter) = request();
        std::thread::spawn(move || done.deliver(Ok(7)));
        assert_eq!(waiter.wait(LONG, |_| false), Ok(7));

        let failure = Failure { domain: "d".to_owned(), code: 1, text: "no".to_owned() };
        let (done, waiter) = request::<()>();
        done.deliver(Err(failure.clone()));
        assert_eq!(waiter.wait(LONG, |_| false), Err(Late::Failed(failure)));

        let (done, waiter) = request::<()>();
        std::thread::spawn(move || drop(done));
        assert_eq!(waiter.wait(LONG, |_| false), Err(Late::Abandoned));

        let (done, waiter) = request::<()>();
        let limit = Duration::from_millis(1);
        assert_eq!(waiter.wait(limit, |_| false), Err(Late::TimedOut(limit)));
        // Too late, and nobody minds.
        done.deliver(Ok(()));
    }

    #[test]
    fn the_main_thread_turns_its_queue_instead_of_sleeping() {
        let (done, waiter) = request();
        let queue = Cell::new(Some(done));
        let turns = Cell::new(0);
        // The handler is called by the very queue that the caller would block.
        let turn = |slice: Duration| {
            assert!(slice <= SLICE);
            turns.set(turns.get() + 1);
            if turns.get() == 3 {
                queue.take().unwrap().deliver(Ok("done"));
            }
            true
        };
        assert_eq!(waiter.wait(LONG, turn), Ok("done"));
        assert_eq!(turns.get(), 3);
    }
}
