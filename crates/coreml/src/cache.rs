//! Compiled packages, kept by what they were compiled from.
//!
//! Compiling is slow and its result belongs to the package's bytes and the system that compiled it, so it is kept under the
//! hash of both, in a folder of the user's and never in a bundle: a bundle does not change in place. An entry appears by one
//! rename and is whole or absent; two programs that compile the same package at once both succeed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::foreign::Machine;

/// A folder of compiled packages.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// The name under which a package's compiled form is kept: a hash of its files and of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Reads every file of the package. Links are not followed out of it: one is an error.
    pub fn of(package: &Path, machine: &Machine) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(machine.to_string().as_bytes());
        let mut files = Vec::new();
        list(package, Path::new(""), &mut files)?;
        files.sort();
        for file in files {
            let name = file.to_string_lossy().into_owned();
            let path = package.join(&file);
            let length = fs::metadata(&path)?.len();
            // Lengths before contents, so that no two packages run together the same.
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&length.to_le_bytes());
            hasher.update_mmap_rayon(&path)?;
        }
        Ok(Self(hasher.finalize().to_hex().to_string()))
    }
}

/// A package has a handful of files two or three folders deep.
const MAX_FILES: usize = 1 << 16;

fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(root, &path, files)?;
        } else if kind.is_file() && files.len() < MAX_FILES {
            files.push(path);
        } else {
            let what = if kind.is_file() { "one file too many" } else { "neither a file nor a folder" };
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display())));
        }
    }
    Ok(())
}

impl Cache {
    /// A cache in this folder, which is made when something is kept.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where a compiled package lies, if it was kept.
    pub fn find(&self, key: &Key) -> Option<PathBuf> {
        Some(self.path(key)).filter(|p| p.is_dir())
    }

    /// Takes a freshly compiled package over from where Core ML put it.
    pub fn keep(&self, key: &Key, compiled: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.folder)?;
        let target = self.path(key);
        // Temporary folders may be on another volume, from which nothing can be renamed.
        let staging = tempfile::Builder::new().prefix(".partial-").tempdir_in(&self.folder)?;
        let staged = staging.path().join("compiled");
        if fs::rename(compiled, &staged).is_err() {
            copy(compiled, &staged)?;
            fs::remove_dir_all(compiled)?;
        }
        match fs::rename(&staged, &target) {
            // Somebody else kept the same one in the meantime.
            Err(_) if target.is_dir() => Ok(target),
            result => result.map(|()| target),
        }
    }

    /// Throws an entry away that turned out to be of no use.
    pub fn forget(&self, key: &Key) -> io::Result<()> {
        match fs::remove_dir_all(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.mlmodelc", key.0))
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?
        } else {
            fs::copy(entry.path(), target).map(|_| ())?
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(minor: u32) -> Machine {
        Machine { chip: "Apple M4".to_owned(), os: [15, minor, 0] }
    }

    fn package(folder: &Path, model: &str) -> PathBuf {
        let path = folder.join("a.mlpackage");
        fs::create_dir_all(path.join("Data/weights")).unwrap();
        fs::write(path.join("Manifest.json"), "{}").unwrap();
        fs::write(path.join("Data/model"), model).unwrap();
        fs::write(path.join("Data/weights/weight.bin"), vec![1; 100]).unwrap();
        path
    }

    #[test]
    fn a_key_is_the_bytes_and_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = package(folder.path(), "one");
        let key = Key::of(&path, &machine(1)).unwrap();
        assert_eq!(Key::of(&path, &machine(1)).unwrap(), key);
        assert_ne!(Key::of(&path, &machine(2)).unwrap(), key);
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(Key::of(&package(elsewhere.path(), "one"), &machine(1)).unwrap(), key);
        package(folder.path(), "two");
        assert_ne!(Key::of(&path, &machine(1)).unwrap(), key);
        package(folder.path(), "one");
        fs::rename(path.join("Data/model"), path.join("Data/other")).unwrap();
        assert_ne!(Key::of(&path, &machine(1)).unwrap(), key);
        assert!(Key::of(&folder.path().join("absent"), &machine(1)).is_err());
    }

    #[test]
    #[cfg(unix)]
    fn links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = package(folder.path(), "one");
        std::os::unix::fs::symlink(folder.path(), path.join("Data/loop")).unwrap();
        assert!(Key::of(&path, &machine(1)).unwrap_err().to_string().contains("neither a file nor a folder"));
    }

    #[test]
    fn what_is_kept_is_found_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key::of(&package(folder.path(), "one"), &machine(1)).unwrap();
        let cache = Cache::new(folder.path().join("cache/below"));
        assert_eq!(cache.find(&key), None);
        let compiled = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.join("inner")).unwrap();
            fs::write(path.join("inner/file"), "compiled").unwrap();
            path
        };
        let first = cache.keep(&key, &compiled("c1")).unwrap();
        assert_eq!(fs::read_to_string(first.join("inner/file")).unwrap(), "compiled");
        assert!(!folder.path().join("c1").exists());
        // A second one of the same key changes nothing and leaves nothing behind.
        assert_eq!(cache.keep(&key, &compiled("c2")).unwrap(), first);
        assert_eq!(cache.find(&key), Some(first.clone()));
        assert_eq!(fs::read_dir(folder.path().join("cache/below")).unwrap().count(), 1);
        cache.forget(&key).unwrap();
        cache.forget(&key).unwrap();
        assert_eq!(cache.find(&key), None);
        let copied = folder.path().join("copied");
        copy(&compiled("c3"), &copied).unwrap();
        assert_eq!(fs::read_to_string(copied.join("inner/file")).unwrap(), "compiled");
    }
}
