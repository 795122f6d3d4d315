//! Weights in memory of their own, in the order in which they are read, on large pages.
//!
//! A mapped file comes in pages of 4 KiB. Streaming weights through them, a processor spends a good part of its time looking up
//! addresses, twice over in a virtual machine. So weights are copied once, by all threads, into memory for which the system is
//! asked to use pages of 2 MiB. Where it does not, nothing is lost but the copy. It waits for the second call: whoever calls once, or
//! waits for the first token of a prompt that one call takes, never pays for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use memmap2::MmapMut;

use super::linear::{Bytes, Matrix};
use super::team::Team;

/// A large page.
const PAGE: usize = 2 << 20;
/// Each matrix begins at a multiple of this many bytes.
const ALIGNMENT: usize = 64;
/// Bytes that a thread copies at a time.
const PIECE: usize = 1 << 20;

/// The memory of a copy, and where in it the copy begins, once it is made.
#[derive(Debug, Default)]
pub struct Resident(OnceLock<(MmapMut, usize)>);

impl Resident {
    /// A part of it.
    pub fn get(&self, part: Range<usize>) -> Option<&[u8]> {
        self.0.get().map(|(map, start)| &map[*start..][part])
    }
}

/// A copy that is to be made.
pub struct Copy {
    to: Arc<Resident>,
    /// What is copied, in order.
    from: Vec<Bytes>,
    total: usize,
    calls: AtomicUsize,
}

impl Copy {
    /// Of what the matrices hold, which will refer to it; those of equal bytes to one.
    pub fn of<'m>(matrices: impl Iterator<Item = &'m mut Matrix>) -> Self {
        let to = Arc::<Resident>::default();
        // By address: functions of a package share their weights.
        let mut places: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let (mut from, mut total) = (Vec::new(), 0usize);
        for matrix in matrices {
            let bytes = matrix.bytes();
            let (key, len) = ((bytes.as_ptr() as usize, bytes.len()), bytes.len());
            let at = *places.entry(key).or_insert_with(|| {
                from.push(matrix.data.clone());
                let at = total;
                total += len.next_multiple_of(ALIGNMENT);
                at
            });
            matrix.data.expect(&to, at..at + len);
        }
        Self { to, from, total, calls: AtomicUsize::new(0) }
    }

    /// To be told of every call before it begins: makes the copy before the second one. Where the system has no memory for it, weights
    /// stay where they are.
    pub fn before_call(&self, team: &Team) {
        // Beyond 2 nobody looks, and a count that grew for ever would share a cache line for nothing.
        if self.calls.load(Ordering::Relaxed) < 2 && self.calls.fetch_add(1, Ordering::Relaxed) == 1 {
            self.make(team);
        }
    }

    fn make(&self, team: &Team) {
        let Some(size) = self.total.checked_add(PAGE) else { return };
        let Ok(mut map) = MmapMut::map_anon(size) else { return };
        #[cfg(target_os = "linux")]
        // Only asked: without large pages everything works.
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(PAGE);

        let mut pieces = Vec::new();
        let mut rest = &mut map[start..start + self.total];
        for bytes in self.from.iter().map(Bytes::get) {
            let (here, later) = rest.split_at_mut(bytes.len().next_multiple_of(ALIGNMENT));
            let to = here[..bytes.len()].chunks_mut(PIECE);
            pieces.extend(to.zip(bytes.chunks(PIECE)).map(Mutex::new));
            rest = later;
        }
        let next = AtomicUsize::new(0);
        team.run(&|_| {
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut piece = piece.lock().unwrap_or_else(PoisonError::into_inner);
                let (to, from) = &mut *piece;
                to.copy_from_slice(from);
            }
        });
        drop(pieces);
        // Only the second call comes here.
        let _ = self.to.0.set((map, start));
    }
}
