//! A folder that becomes the target when it is whole, and otherwise never was.
//!
//! The work happens in `.<name>.partial` beside the target, so that the last step is one rename within a file system. A
//! lock on a file in it keeps a second build away; the lock dies with its process, so what a killed build leaves behind is
//! recognised and cleared by the next one.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

const LOCK: &str = ".lock";

/// See the module.
pub struct Staging {
    target: PathBuf,
    folder: PathBuf,
    lock: Option<File>,
}

impl Staging {
    /// Opens an empty staging folder for `target`, which must not exist.
    pub fn open(target: &Path) -> Result<Self, Error> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Write { path, source }
        };
        if target.symlink_metadata().is_ok() {
            return Err(Error::TargetExists(target.to_owned()));
        }
        let name = target
            .file_name()
            .ok_or_else(|| fail(target)(io::Error::new(io::ErrorKind::InvalidInput, "not a name for a bundle")))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let folder = target.with_file_name(partial);
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(fail(parent))?;
        }
        match fs::create_dir(&folder) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(fail(&folder)(e)),
            _ => {}
        }
        let lock = folder.join(LOCK);
        let file = File::create(&lock).map_err(fail(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(target.to_owned())),
            Err(TryLockError::Error(e)) => return Err(fail(&lock)(e)),
        }
        let staging = Self { target: target.to_owned(), folder, lock: Some(file) };
        staging.clear().map_err(fail(&staging.folder))?;
        Ok(staging)
    }

    /// Where to write.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes what a killed build left, except our own lock.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        Ok(())
    }

    /// Makes the folder the target. Its files must be on disk already; the names are put there here.
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
        run().map_err(|source| Error::Write { path: self.target.clone(), source })?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Committed, or nothing to save: a failure to remove leaves what the next build clears.
        if self.lock.is_some() {
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
