//! Who works on the model when: a queue, and turns.
//!
//! The model runs on threads of its own, never on those that talk HTTP. Each takes a task from the front of a ring, does one
//! step of it (a block of a prompt, or a token) and puts it back at the end: every conversation gets its turn, and a long
//! prompt holds nobody up for longer than a block. A request becomes a task when the pool has a session for it; until then it
//! waits in its party's line, and the parties (a user by the request's field, or a connection) are served in rotation, so that
//! whoever asks for fifty answers at once delays others by one.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anemone_chat::{Pool, Tokenizer};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::metrics::Metrics;
use super::refusal::Refusal;
use super::work::{Event, Order, Progress, Task, too_late};

/// The queue, the ring, and what the threads work with.
pub struct Turns<'e> {
    pool: &'e Pool<'e>,
    tokenizer: &'e Tokenizer,
    metrics: &'e Metrics,
    state: Mutex<State<'e>>,
    /// Something was added, or the doors were closed.
    news: Condvar,
}

#[derive(Default)]
struct State<'e> {
    /// Lines of the parties that wait.
    lines: BTreeMap<String, VecDeque<Waiting>>,
    /// The parties with a line, in the order in which they are served.
    rotation: VecDeque<String>,
    /// Tasks that are nobody's turn.
    ring: VecDeque<Task<'e>>,
    /// Tasks in a thread's hands.
    in_hand: usize,
    closed: bool,
}

struct Waiting {
    order: Order,
    events: UnboundedSender<Event>,
    since: Instant,
}

impl<'e> Turns<'e> {
    /// Nothing waits yet.
    pub fn new(pool: &'e Pool<'e>, tokenizer: &'e Tokenizer, metrics: &'e Metrics) -> Self {
        Self { pool, tokenizer, metrics, state: Mutex::default(), news: Condvar::new() }
    }

    /// Puts an order into its party's line. Dropping the receiver cancels it.
    pub fn submit(&self, party: String, order: Order) -> UnboundedReceiver<Event> {
        let (events, receiver) = unbounded_channel();
        let mut state = self.state();
        if !state.lines.contains_key(&party) {
            state.rotation.push_back(party.clone());
        }
        state.lines.entry(party).or_default().push_back(Waiting { order, events, since: Instant::now() });
        drop(state);
        self.news.notify_one();
        receiver
    }

    /// No order comes any more; [`work`](Self::work) returns when all are done.
    pub fn close(&self) {
        self.state().closed = true;
        self.news.notify_all();
    }

    /// How many orders wait, and how many are worked on.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.lines.values().map(VecDeque::len).sum(), state.ring.len() + state.in_hand)
    }

    /// What a model thread does.
    pub fn work(&self) {
        while let Some(mut task) = self.next() {
            // A fault in one conversation ends that one; its session was taken out for the step, and is gone.
            let stepped = catch_unwind(AssertUnwindSafe(|| task.step()));
            let progress = stepped.unwrap_or_else(|_| task.give_up());
            self.metrics.stepped(&task, progress);
            let mut state = self.state();
            state.in_hand -= 1;
            match progress {
                Progress::More => state.ring.push_back(task),
                // The session goes back outside the lock, and before anyone is told to look for one.
                Progress::Over => {
                    drop(state);
                    drop(task);
                }
            }
            self.news.notify_all();
        }
    }

    /// The next task to take a step; waits for one, and is `None` when none can come.
    fn next(&self) -> Option<Task<'e>> {
        let mut state = self.state();
        loop {
            if let Some(task) = self.start(&mut state).or_else(|| state.ring.pop_front()) {
                state.in_hand += 1;
                return Some(task);
            }
            if state.closed && state.rotation.is_empty() && state.in_hand == 0 {
                return None;
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The order whose turn it is, if there is a session for it. What nobody waits for any more is dropped.
    fn start(&self, state: &mut State<'e>) -> Option<Task<'e>> {
        state.forget_the_gone();
        loop {
            let lease = match self.pool.lease(&state.first()?.order.prompt) {
                Ok(None) => return None,
                Ok(Some(lease)) => Ok(lease),
                Err(error) => Err(Refusal::from(error)),
            };
            let Waiting { order, events, since } = state.pop()?;
            match lease.and_then(|lease| Task::new(order, lease, self.tokenizer, events.clone(), since)) {
                Ok(task) => return Some(task),
                Err(refusal) => drop(events.send(Event::Failed(refusal))),
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State<'e>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State<'_> {
    /// The order whose turn it is.
    fn first(&self) -> Option<&Waiting> {
        self.lines.get(self.rotation.front()?)?.front()
    }

    /// Takes it, and sends its party to the end of the rotation.
    fn pop(&mut self) -> Option<Waiting> {
        let party = self.rotation.pop_front()?;
        let line = self.lines.get_mut(&party)?;
        let first = line.pop_front();
        match line.is_empty() {
            true => drop(self.lines.remove(&party)),
            false => self.rotation.push_back(party),
        }
        first
    }

    /// Drops orders whose client has left, and those it is too late for.
    fn forget_the_gone(&mut self) {
        let now = Instant::now();
        self.lines.retain(|_, line| {
            line.retain(|waiting| {
                let late = now > waiting.order.deadline;
                if late {
                    let _ = waiting.events.send(Event::Failed(too_late()));
                }
                !late && !waiting.events.is_closed()
            });
            !line.is_empty()
        });
        self.rotation.retain(|party| self.lines.contains_key(party));
    }
}
