//! Weights in memory of their own, in the order in which they are read, on large pages.
//!
//! A mapped file comes in pages of 4 KiB. Streaming weights through them, a processor spends a good part of its time looking up
//! addresses, twice over in a virtual machine. So weights are copied once, at load, by all threads, into memory for which
//! the system is asked to use pages of 2 MiB. Where it does not, nothing is lost but the copy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use super::linear::{Bytes, Matrix};
use super::team::Team;

/// A large page.
const PAGE: usize = 2 << 20;
/// Each matrix begins at a multiple of this many bytes.
const ALIGNMENT: usize = 64;
/// Bytes that a thread copies at a time.
const PIECE: usize = 1 << 20;

/// Copies what the matrices hold and lets them refer to the copy, those of equal bytes to one. Where the system has no
/// memory for it, they stay as they are.
pub fn gather<'m>(matrices: impl Iterator<Item = &'m mut Matrix>, team: &Team) {
    let matrices: Vec<&mut Matrix> = matrices.collect();
    // By address: functions of a package share their weights.
    let mut at: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut order = Vec::new();
    let mut total = 0usize;
    for matrix in &matrices {
        let bytes = matrix.bytes();
        let key = (bytes.as_ptr() as usize, bytes.len());
        if let std::collections::btree_map::Entry::Vacant(vacant) = at.entry(key) {
            vacant.insert(total);
            order.push(matrix.data.clone());
            total += bytes.len().next_multiple_of(ALIGNMENT);
        }
    }
    let Some(size) = total.checked_add(PAGE) else { return };
    let Ok(mut map) = MmapMut::map_anon(size) else { return };
    #[cfg(target_os = "linux")]
    // Only asked: without large pages everything works.
    let _ = map.advise(memmap2::Advice::HugePage);
    let start = map.as_ptr().align_offset(PAGE);

    let mut pieces = Vec::new();
    let mut rest = &mut map[start..start + total];
    for bytes in &order {
        let (here, later) = rest.split_at_mut(bytes.get().len().next_multiple_of(ALIGNMENT));
        let to = here[..bytes.get().len()].chunks_mut(PIECE);
        pieces.extend(to.zip(bytes.get().chunks(PIECE)).map(Mutex::new));
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
    let map = Arc::new(map);
    for matrix in matrices {
        let (address, len) = (matrix.bytes().as_ptr() as usize, matrix.bytes().len());
        let from = start + at[&(address, len)];
        matrix.data = Bytes::Resident(Arc::clone(&map), from..from + len);
    }
}
