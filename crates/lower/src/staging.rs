//! A folder that becomes the target when it is whole, and otherwise never was.
//!
//! The work happens in `.<name>.partial` beside the target, so that the last step is one rename within a file system. A
//! lock on a file in it keeps a second build away; the lock dies with its process, so what a killed build leaves behind is
//! found by the next one, which goes on from it or clears it.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The lock's name in the staging folder.
pub const LOCK: &str = ".lock";

/// Who else may work in the staging folder at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody: the folder is this build's, and goes with it when it fails.
    Alone,
    /// Nobody; but what is finished stays when it fails, to be resumed.
    Resumable,
    /// Other jobs of the same build.
    Shared,
}

/// See the module.
pub struct Staging {
    target: PathBuf,
    folder: PathBuf,
    access: Access,
    /// Held for its lock; gone once the folder is the target.
    lock: Option<File>,
}

impl Staging {
    /// Opens the staging folder for `target`, which must not exist. What is in it is the ledger's business.
    pub fn open(target: &Path, access: Access) -> Result<Self, Error> {
        if target.symlink_metadata().is_ok() {
            return Err(Error::TargetExists(target.to_owned()));
        }
        let name = target
            .file_name()
            .ok_or_else(|| failed(target)(io::Error::new(io::ErrorKind::InvalidInput, "not a name for a bundle")))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let folder = target.with_file_name(partial);
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let lock = folder.join(LOCK);
        let file = File::create(&lock).map_err(failed(&lock))?;
        let locked = if access == Access::Shared { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => Ok(Self { target: target.to_owned(), folder, access, lock: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(Error::Busy(target.to_owned())),
            Err(TryLockError::Error(e)) => Err(failed(&lock)(e)),
        }
    }

    /// Where to write.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder the target. Its files must be on disk already; their names are put there here.
    pub fn commit(mut self) -> Result<(), Error> {
        let run = || -> io::Result<()> {
            fs::remove_file(self.folder.join(LOCK))?;
            sync_folders(&self.folder)?;
            if self.target.symlink_metadata().is_ok() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "appeared while the bundle was built"));
            }
            fs::rename(&self.folder, &self.target)?;
            match self.target.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            }
        };
        run().map_err(failed(&self.target))?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.lock.is_some() && self.access == Access::Alone {
            // A failure to remove leaves what the next build clears.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn sync_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    File::open(folder)?.sync_all()
}

/// Names the file in an error of the system.
pub fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path: PathBuf = path.to_owned();
    move |source| Error::Write { path, source }
}
