//! What a build has finished, so that another may go on from there.
//!
//! The ledger is a folder inside the staging folder: `request`, the hash of everything that decides the bytes, and one file
//! for each finished piece with the sizes and hashes of its files. A piece is entered only when its files are on disk, by a
//! rename, so that several processes may work on pieces of one build and a stop at any moment loses at most what was under
//! way. Whoever goes on checks the hashes of what is entered and clears what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anemone_bundle::manifest::{FileEntry, hash_file};

use crate::staging::{Access, LOCK};

/// The ledger's name in the staging folder.
pub const FOLDER: &str = ".ledger";
const REQUEST: &str = "request";

/// Files of a piece by their path inside the bundle.
pub type Entries = BTreeMap<String, FileEntry>;

/// See the module.
pub struct Ledger {
    staging: PathBuf,
    folder: PathBuf,
}

impl Ledger {
    /// Opens the ledger of a staging folder for a request. A build that has the folder for itself clears what another request
    /// left there, and one that starts anew clears everything; jobs that share it refuse the pieces of another request.
    pub fn open(staging: &Path, request: &str, access: Access) -> io::Result<Self> {
        let ledger = Self { staging: staging.to_owned(), folder: staging.join(FOLDER) };
        let found = fs::read_to_string(ledger.folder.join(REQUEST)).ok();
        match (access, found) {
            (Access::Resumable | Access::Shared, Some(found)) if found == request => {}
            (Access::Shared, Some(_)) => return Err(ledger.foreign()),
            (Access::Shared, None) => {
                fs::create_dir_all(&ledger.folder)?;
                // Of several jobs that come first, one writes the request, and all must have meant the same.
                match ledger.temporary(request.as_bytes())?.persist_noclobber(ledger.folder.join(REQUEST)) {
                    Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => return Err(e.error),
                    _ if fs::read_to_string(ledger.folder.join(REQUEST))? != request => return Err(ledger.foreign()),
                    _ => {}
                }
            }
            (Access::Alone | Access::Resumable, _) => Self::begin(staging)?.name(request)?,
        }
        Ok(ledger)
    }

    /// A ledger of nothing in a staging folder that is cleared; it has to be [named](Self::name) before a piece is entered.
    pub fn begin(staging: &Path) -> io::Result<Self> {
        clear(staging, &|_| false)?;
        let ledger = Self { staging: staging.to_owned(), folder: staging.join(FOLDER) };
        fs::create_dir(&ledger.folder)?;
        Ok(ledger)
    }

    /// Whether a staging folder has a ledger that pieces may have been entered in.
    pub fn is_named(staging: &Path) -> bool {
        staging.join(FOLDER).join(REQUEST).exists()
    }

    /// Says whose pieces these are. What a stop leaves without a name is cleared by the next build.
    pub fn name(&self, request: &str) -> io::Result<()> {
        self.write(REQUEST, request.as_bytes())
    }

    fn foreign(&self) -> io::Error {
        let reason = "holds pieces of a build with another source or other options; join that one or remove the folder";
        io::Error::new(io::ErrorKind::AlreadyExists, reason)
    }

    /// The files of a piece, if it was finished and its files are still what they were.
    pub fn finished(&self, piece: &str) -> Option<Entries> {
        let text = fs::read(self.folder.join(file_name(piece))).ok()?;
        let entries: Entries = serde_json::from_slice(&text).ok()?;
        let whole = |(name, entry): (&String, &FileEntry)| {
            let path = self.staging.join(name);
            let size = fs::metadata(&path).ok()?.len();
            Some(size == entry.bytes && hash_file(&path).ok()? == entry.blake3)
        };
        entries.iter().all(|e| whole(e) == Some(true)).then_some(entries)
    }

    /// Enters a piece whose files are on disk.
    pub fn enter(&self, piece: &str, entries: &Entries) -> io::Result<()> {
        self.write(&file_name(piece), &serde_json::to_vec(entries)?)
    }

    /// Removes every file that no finished piece of `pieces` owns: what a stop left half done.
    pub fn clear_unfinished(&self, pieces: &[Entries]) -> io::Result<()> {
        let owned: BTreeSet<PathBuf> = pieces.iter().flatten().map(|(name, _)| self.staging.join(name)).collect();
        clear(&self.staging, &|path| path.starts_with(&self.folder) || owned.contains(path))
    }

    /// Ends the ledger: the build is whole.
    pub fn close(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.temporary(bytes)?.persist(self.folder.join(name)).map_err(|e| e.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// A file in the ledger's folder, on disk but for its name.
    fn temporary(&self, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
        let mut temporary = tempfile::NamedTempFile::new_in(&self.folder)?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        Ok(temporary)
    }
}

/// A piece's file in the ledger.
fn file_name(piece: &str) -> String {
    format!("{}.json", piece.replace('/', "-"))
}

/// Removes all files below `folder` but the lock and those that `keep` names, and the folders that are empty then.
fn clear(folder: &Path, keep: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name() == LOCK || keep(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            clear(&path, keep)?;
            if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
