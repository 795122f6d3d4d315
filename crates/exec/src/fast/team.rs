//! Threads that stay: they wake within microseconds, run a whole forward together, spin briefly, then sleep.
//!
//! All of them run the same function ([`Team::run`]); they part where work is dealt out and meet at a [`Meeting`]. A forward is
//! entered once, not once for each kernel.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of a waiting loop before its thread lets others run.
const SPINS: usize = 1 << 12;
/// Turns between two forwards before a thread sleeps: some hundred microseconds, more than a host needs between two tokens.
const AWAKE: usize = 1 << 15;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// A fixed number of threads, the caller's own among them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<(JoinHandle<()>, Thread)>,
    /// One job at a time.
    entry: Mutex<()>,
}

struct Shared {
    /// Counts jobs; a worker runs when it changes.
    epoch: AtomicUsize,
    /// The job of this epoch. Written only while no worker runs.
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers that have not finished it.
    running: AtomicUsize,
    /// Which workers sleep.
    asleep: Vec<AtomicBool>,
    quit: AtomicBool,
    /// What a worker panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written by the one thread inside `Team::run`, before it raises `epoch`, and read by workers after they have
// seen the new epoch; `run` does not return, and so the job is not written again, before `running` is 0.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` function that outlives every use of it, as above.
unsafe impl Send for Shared {}

impl Team {
    /// A team of that many threads, at least one.
    pub fn new(threads: usize) -> Self {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (0..others)
            .map(|i| {
                let shared = Arc::clone(&shared);
                let handle = thread::spawn(move || work(&shared, i));
                let thread = handle.thread().clone();
                (handle, thread)
            })
            .collect();
        Self { shared, workers, entry: Mutex::new(()) }
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job` once on every thread, with its number, and returns when all have. Jobs of several callers wait for each
    /// other. A panic of any thread is the caller's.
    pub fn run(&self, job: &Job<'_>) {
        let _entry = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes, and nobody uses the job after this function.
        let erased: *const Job<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        // SAFETY: no worker runs, see `Shared`.
        unsafe { *shared.job.get() = Some(erased) };
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, (_, thread)) in shared.asleep.iter().zip(&self.workers) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        spin_until(|| shared.running.load(Ordering::Acquire) == 0);
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            // A worker's panic was handed over by `run`.
            let _ = handle.join();
        }
    }
}

fn spin_until(done: impl Fn() -> bool) {
    let mut turns = 0;
    while !done() {
        turns += 1;
        if turns % SPINS == 0 { thread::yield_now() } else { std::hint::spin_loop() }
    }
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while shared.epoch.load(Ordering::SeqCst) == seen {
            turns += 1;
            if turns < AWAKE {
                std::hint::spin_loop();
                continue;
            }
            // The epoch is looked at once more after this is known to `run`, so that no call goes unheard.
            shared.asleep[worker].store(true, Ordering::SeqCst);
            if shared.epoch.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            shared.asleep[worker].store(false, Ordering::SeqCst);
        }
        seen = shared.epoch.load(Ordering::SeqCst);
        if shared.quit.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch has changed, so the job is there and stays until `running` is 0.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: as above.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker + 1))) {
                *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Where the threads of one job wait for each other, any number of times.
pub struct Meeting {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

impl Meeting {
    /// A meeting of that many threads.
    pub fn new(threads: usize) -> Self {
        let (arrived, round) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { threads, arrived, round, broken: AtomicBool::new(false) }
    }

    /// Returns when every thread has called it. What each wrote before, all see after.
    ///
    /// # Panics
    /// If a thread [broke](Self::guard) the meeting.
    pub fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round + 1, Ordering::Release);
            return;
        }
        spin_until(|| self.round.load(Ordering::Acquire) != round || self.broken.load(Ordering::Relaxed));
        assert!(!self.broken.load(Ordering::Relaxed), "another thread of the team panicked");
    }

    /// Breaks the meeting if it is dropped in a panic, so that nobody waits for a thread that will not come.
    pub fn guard(&self) -> Guard<'_> {
        Guard(self)
    }
}

/// See [`Meeting::guard`].
pub struct Guard<'a>(&'a Meeting);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_and_meets_the_others() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for _ in 0..200 {
                let (meeting, count) = (Meeting::new(threads), AtomicUsize::new(0));
                team.run(&|_| {
                    for round in 1..=10 {
                        count.fetch_add(1, Ordering::Relaxed);
                        meeting.wait();
                        assert_eq!(count.load(Ordering::Relaxed), round * threads);
                        meeting.wait();
                    }
                });
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_works_on() {
        let team = Team::new(3);
        for guilty in 0..3 {
            let meeting = Meeting::new(3);
            let job = |i: usize| {
                let _guard = meeting.guard();
                assert_ne!(i, guilty, "on purpose");
                meeting.wait();
            };
            assert!(catch_unwind(AssertUnwindSafe(|| team.run(&job))).is_err());
        }
        let ran = AtomicUsize::new(0);
        team.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 3);
    }

    #[test]
    fn sleepers_wake() {
        let team = Team::new(2);
        let ran = AtomicUsize::new(0);
        for pause in [0, 1, 20] {
            thread::sleep(std::time::Duration::from_millis(pause));
            team.run(&|_| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(ran.into_inner(), 6);
    }
}
