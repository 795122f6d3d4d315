//! A file of known size that many threads write in any order, and that is hashed on the way.
//!
//! Weights come in tiles that end anywhere. They are gathered into blocks of 1 MiB that lie on multiples of it. The thread
//! that fills a block hashes it while it is in its cache and hands it to one writer thread. So nothing is read again to be
//! hashed, computing goes on while the disk works, and the system gets large aligned writes, which can go past the page cache
//! where the file system allows it (`O_DIRECT` on Linux): filling pages that nobody reads soon costs several times the CPU
//! of everything else in a build.
//!
//! BLAKE3 is a tree over chunks of 1 KiB in which every subtree of 2^k chunks can be hashed by itself, given its place; a
//! block is such a subtree, and their chaining values are merged when all are there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// A power of two of at least one BLAKE3 chunk, and large enough for a disk to reach its rate.
const BLOCK: usize = 1 << 20;

/// What direct writes are aligned to, in memory and in the file: no common disk asks for more.
const ALIGN: usize = 4096;

/// Full blocks that wait for the disk at most: then those who fill them wait too, which bounds memory.
const QUEUE: usize = 16;

/// Creates the file at `path`, which must not exist, lets `fill` write all of its `size` bytes, each once, from any threads,
/// and returns its BLAKE3 once it is on disk. The work of `fill` and that of the disk overlap.
///
/// # Errors
/// Those of `fill` and of the system; and an error of kind `InvalidData` if bytes are missing at the end.
pub fn write_blocks<E: From<io::Error>>(
    path: &Path,
    size: u64,
    fill: impl FnOnce(&Blocks) -> Result<(), E>,
) -> Result<blake3::Hash, E> {
    fill_target(Target::create(path, size)?, size, fill)
}

fn fill_target<E: From<io::Error>>(
    mut target: Target,
    size: u64,
    fill: impl FnOnce(&Blocks) -> Result<(), E>,
) -> Result<blake3::Hash, E> {
    let (queue, full) = sync_channel::<(u64, Buffer)>(QUEUE);
    let spare = Arc::new(Mutex::new(Vec::new()));
    let blocks =
        Blocks { size, gathering: Mutex::default(), hashed: Mutex::default(), spare: Arc::clone(&spare), queue };
    let hash = thread::scope(|scope| {
        let writer = scope.spawn(move || -> io::Result<Target> {
            for (offset, buffer) in full {
                let length = (size - offset).min(BLOCK as u64) as usize;
                target.write(&buffer.bytes()[..length], offset)?;
                lock(&spare).push(buffer);
            }
            Ok(target)
        });
        let filled = fill(&blocks);
        let hash = blocks.finish();
        // If the disk failed, that is why the others did.
        let target = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        filled?;
        target.file.sync_all()?;
        Ok::<_, E>(hash)
    })?;
    Ok(hash?)
}

/// Takes the bytes of one file: see [`write_blocks`].
pub struct Blocks {
    size: u64,
    /// The blocks that are begun, by number.
    gathering: Mutex<BTreeMap<u64, Arc<Mutex<Gathering>>>>,
    /// The chaining values of those that are full, by number; of a file of one block, its hash.
    hashed: Mutex<BTreeMap<u64, ChainingValue>>,
    /// Buffers to use again.
    spare: Arc<Mutex<Vec<Buffer>>>,
    queue: SyncSender<(u64, Buffer)>,
}

/// A block that is not full yet.
struct Gathering {
    buffer: Buffer,
    filled: usize,
}

impl Blocks {
    /// Writes `bytes` at `offset` of the file.
    pub fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size) {
            let message = format!("{} bytes at {offset} of a file of {}", bytes.len(), self.size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        while !bytes.is_empty() {
            let (number, at) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - at));
            self.gather(number, at, now)?;
            offset += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn gather(&self, number: u64, at: usize, bytes: &[u8]) -> io::Result<()> {
        let begin = || Arc::new(Mutex::new(Gathering { buffer: self.buffer(), filled: 0 }));
        let block = Arc::clone(lock(&self.gathering).entry(number).or_insert_with(begin));
        let mut block = lock(&block);
        block.buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        block.filled += bytes.len();
        let length = (self.size - number * BLOCK as u64).min(BLOCK as u64) as usize;
        if block.filled < length {
            return Ok(());
        }
        lock(&self.gathering).remove(&number);
        let buffer = std::mem::take(&mut block.buffer);
        drop(block);
        let offset = number * BLOCK as u64;
        lock(&self.hashed).insert(number, self.chaining_value(offset, &buffer.bytes()[..length]));
        // It fails where the writer has, and then the writer's error is the one that is reported.
        self.queue.send((offset, buffer)).map_err(|_| io::Error::other("the file can no longer be written"))
    }

    fn chaining_value(&self, offset: u64, bytes: &[u8]) -> ChainingValue {
        if self.size <= BLOCK as u64 {
            return *blake3::hash(bytes).as_bytes();
        }
        blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
    }

    fn buffer(&self) -> Buffer {
        lock(&self.spare).pop().unwrap_or_default()
    }

    /// The hash of it all. Ends the queue, and with it the writer.
    fn finish(self) -> io::Result<blake3::Hash> {
        let hashed: Vec<ChainingValue> = lock(&self.hashed).values().copied().collect();
        let expected = self.size.div_ceil(BLOCK as u64);
        if hashed.len() as u64 != expected || !lock(&self.gathering).is_empty() {
            let message = format!("{} of {expected} blocks of a file were filled", hashed.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(match hashed.as_slice() {
            [] => blake3::hash(&[]),
            [whole] => blake3::Hash::from_bytes(*whole),
            many => {
                let (left, right) = halves(many);
                merge_subtrees_root(&merged(left), &merged(right), Mode::Hash)
            }
        })
    }
}

fn merged(subtrees: &[ChainingValue]) -> ChainingValue {
    match subtrees {
        [one] => *one,
        many => {
            let (left, right) = halves(many);
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// The two children of a node: on the left the largest power of two that leaves something for the right.
fn halves(subtrees: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    subtrees.split_at(subtrees.len().next_power_of_two() / 2)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory for a block, aligned for direct writes.
struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; BLOCK + ALIGN])
    }
}

impl Buffer {
    fn start(&self) -> usize {
        self.0.as_ptr().align_offset(ALIGN)
    }

    fn bytes(&self) -> &[u8] {
        let start = self.start();
        &self.0[start..start + BLOCK]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.0[start..start + BLOCK]
    }
}

/// The file, and a second way into it past the page cache where there is one.
struct Target {
    file: File,
    direct: Option<File>,
}

impl Target {
    fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = File::create_new(path)?;
        file.set_len(size)?;
        Ok(Self { file, direct: (size >= BLOCK as u64).then(|| open_direct(path)).flatten() })
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| bytes.len() == BLOCK) {
            match direct.write_all_at(bytes, offset) {
                // A file system that promises and refuses, or a disk that asks for more than we align to.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                done => return done,
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rayon::prelude::*;

    use super::*;

    fn pattern(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]).collect()
    }

    /// Writes `bytes` in pieces cut at `cuts`, in an order that `seed` shuffles, from several threads.
    fn written(bytes: &[u8], cuts: &[usize], seed: u64) -> (blake3::Hash, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        ends.sort_unstable();
        let mut pieces: Vec<_> = ends.windows(2).map(|w| w[0]..w[1]).collect();
        pieces.sort_by_key(|p| (p.start as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let hash = write_blocks(&path, bytes.len() as u64, |blocks| {
            pieces.par_iter().try_for_each(|p| blocks.write_at(&bytes[p.clone()], p.start as u64))
        });
        (hash.unwrap(), std::fs::read(path).unwrap())
    }

    #[test]
    fn sizes_around_blocks_are_written_and_hashed() {
        for blocks in [0, 1, 2, 3, 4, 5, 7] {
            for more in [0, 1, 1023, 4096, 5000] {
                let bytes = pattern(blocks * BLOCK + more);
                let (hash, found) = written(&bytes, &[BLOCK - 1, 3 * BLOCK / 2], 7);
                assert_eq!(hash, blake3::hash(&bytes), "{blocks} blocks and {more} bytes");
                assert!(found == bytes, "{blocks} blocks and {more} bytes");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_cut_in_any_order_gives_the_file_and_its_hash(
            size in 0..6 * BLOCK,
            cuts in prop::collection::vec(any::<usize>(), 0..40),
            seed in any::<u64>(),
        ) {
            let bytes = pattern(size);
            let (hash, found) = written(&bytes, &cuts, seed);
            prop_assert_eq!(hash, blake3::hash(&bytes));
            prop_assert!(found == bytes);
        }
    }

    #[test]
    fn missing_bytes_and_bytes_beyond_the_end_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, at: u64, length: usize| {
            let path = folder.path().join(name);
            write_blocks(&path, 100, |b| b.write_at(&vec![0; length], at)).unwrap_err().kind()
        };
        assert_eq!(run("short", 0, 99), io::ErrorKind::InvalidData);
        assert_eq!(run("late", 1, 100), io::ErrorKind::InvalidInput);
        assert_eq!(run("far", u64::MAX, 2), io::ErrorKind::InvalidInput);
    }

    // The device takes no byte: what a full disk says must come through, not what follows from it.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_error_of_the_disk_is_the_one_reported() {
        let target = Target { file: File::options().write(true).open("/dev/full").unwrap(), direct: None };
        let blocks = 3 * QUEUE as u64;
        let fill = |b: &Blocks| (0..blocks).try_for_each(|i| b.write_at(&[1; BLOCK], i * BLOCK as u64));
        let error = fill_target(target, blocks * BLOCK as u64, fill).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
