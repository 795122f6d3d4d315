//! Resident sessions: what a conversation has computed is kept for its next turn, within a budget of memory.
//!
//! A session that rests knows the tokens in its caches. Whoever wants a prompt answered leases one, by these rules:
//!
//! 1. The resting session that shares the longest beginning with the prompt goes on, if at least half of what it holds is
//!    shared, or all of the prompt: it is this conversation, or the same question again. The rest is forgotten.
//! 2. Otherwise, while the budget has room, a new session: nobody's memory is spent for a shared greeting.
//! 3. Otherwise the session that was leased longest ago, cut to what it shares.
//! 4. With none resting there is none to lease; the prompt waits.
//!
//! **Invariants.** A session has one owner at a time. What a lease computes depends on its own tokens alone
//! ([`Session::truncate`] says why), so that a reused session gives bit for bit what a fresh one gives. A session that failed is
//! dropped, never kept.

use std::cmp::Reverse;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anemone_exec::Rows;

use crate::engine::{Engine, Error, Logits, Session};

/// Sessions of one engine. See the module's essay.
pub struct Pool<'e> {
    engine: &'e Engine,
    most: usize,
    shelf: Mutex<Shelf<'e>>,
}

#[derive(Default)]
struct Shelf<'e> {
    resting: Vec<Resident<'e>>,
    leased: usize,
    /// Counts leases: the time of "least recently used".
    clock: u64,
    evicted: u64,
}

/// A session and the tokens its caches hold.
struct Resident<'e> {
    session: Session<'e>,
    tokens: Vec<u32>,
    used: u64,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Sessions that rest.
    pub resting: usize,
    /// Sessions that somebody works with.
    pub leased: usize,
    /// Sessions that the budget has room for.
    pub most: usize,
    /// Sessions whose tokens were given up for another conversation, ever.
    pub evicted: u64,
}

impl<'e> Pool<'e> {
    /// A pool that keeps its caches within `budget` bytes, as [`Engine::session_bytes`] counts them. One session is always
    /// allowed, since nothing could be answered without.
    pub fn new(engine: &'e Engine, budget: usize) -> Self {
        let most = (budget / engine.session_bytes().max(1)).max(1);
        Self { engine, most, shelf: Mutex::default() }
    }

    /// The engine whose sessions these are.
    pub fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// How full it is.
    pub fn occupancy(&self) -> Occupancy {
        let shelf = self.shelf();
        Occupancy { resting: shelf.resting.len(), leased: shelf.leased, most: self.most, evicted: shelf.evicted }
    }

    /// A session for `prompt` that already holds as much of its beginning as any may give; `None` while all are leased. At
    /// least the prompt's last token is left to compute, since its logits are not kept.
    ///
    /// # Errors
    /// The runtime's, of a new state.
    pub fn lease(&self, prompt: &[u32]) -> Result<Option<Lease<'_, 'e>>, Error> {
        let mut shelf = self.shelf();
        let wanted = &prompt[..prompt.len().saturating_sub(1)];
        let shared = |r: &Resident<'_>| r.tokens.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let key = |r: &Resident<'_>| (shared(r), Reverse(r.tokens.len()));
        let best = (0..shelf.resting.len()).max_by_key(|&i| key(&shelf.resting[i]));
        let goes_on =
            |r: &Resident<'_>| shared(r) * 2 >= r.tokens.len() || (shared(r) == wanted.len() && shared(r) > 0);
        let same = best.filter(|&i| goes_on(&shelf.resting[i]));
        let room = shelf.resting.len() + shelf.leased < self.most;
        let oldest = || (0..shelf.resting.len()).min_by_key(|&i| shelf.resting[i].used);
        let mut resident = match same.or_else(|| if room { None } else { oldest() }) {
            Some(i) => {
                shelf.evicted += u64::from(same.is_none());
                shelf.resting.swap_remove(i)
            }
            None if room => Resident { session: self.engine.session()?, tokens: Vec::new(), used: 0 },
            None => return Ok(None),
        };
        let reused = shared(&resident);
        shelf.clock += 1;
        shelf.leased += 1;
        resident.used = shelf.clock;
        drop(shelf);
        let mut lease = Lease { pool: self, resident: Some(resident), reused };
        lease.truncate(reused);
        Ok(Some(lease))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<'e>> {
        // Nothing below can panic between two writes that belong together.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session on loan; dropped, it goes back to rest.
pub struct Lease<'p, 'e> {
    pool: &'p Pool<'e>,
    /// `None` once it has failed.
    resident: Option<Resident<'e>>,
    reused: usize,
}

impl<'e> Lease<'_, 'e> {
    /// The engine it runs on.
    pub fn engine(&self) -> &'e Engine {
        self.pool.engine
    }

    /// How many tokens of the prompt it held when it was leased.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// The tokens it holds.
    pub fn tokens(&self) -> &[u32] {
        self.resident.as_ref().map_or(&[], |r| &r.tokens)
    }

    /// Positions left.
    pub fn left(&self) -> usize {
        self.resident.as_ref().map_or(0, |r| r.session.left())
    }

    /// As [`Session::truncate`].
    pub fn truncate(&mut self, position: usize) {
        if let Some(r) = &mut self.resident {
            r.session.truncate(position);
            r.tokens.truncate(position);
        }
    }

    /// As [`Session::feed`].
    pub fn feed(&mut self, ids: &[u32], want: Logits) -> Result<Vec<f32>, Error> {
        let mut logits = Rows::default();
        self.feed_into(ids, want, &mut logits)?;
        Ok(logits.into_values())
    }

    /// As [`Session::feed_into`].
    pub fn feed_into(&mut self, ids: &[u32], want: Logits, logits: &mut Rows) -> Result<(), Error> {
        let Some(mut r) = self.resident.take() else { return Err(Error::Failed) };
        r.session.feed_into(ids, want, logits)?;
        r.tokens.extend(ids);
        self.resident = Some(r);
        Ok(())
    }
}

impl Drop for Lease<'_, '_> {
    fn drop(&mut self) {
        let mut shelf = self.pool.shelf();
        shelf.leased -= 1;
        shelf.resting.extend(self.resident.take());
    }
}
