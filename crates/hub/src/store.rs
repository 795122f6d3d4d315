//! Where models are kept: `OWNER/REPO/FILE` below a folder, with two kinds of files beside them.
//!
//! `FILE.sha256` is the sum it was verified with, in the form that `sha256sum -c` reads; `FILE.<start of the sum>.part` is what
//! has arrived of a file so far. A file under its own name is whole and was verified.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::at;
use crate::name::is_path;
use crate::{Error, Name, Repo, SplitName};

/// How deep files lie in a repository, at most.
const MAX_DEPTH: usize = 8;

/// The folder of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A model that is kept, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is called.
    pub name: String,
    /// Its file, the first of a split model.
    pub path: PathBuf,
    /// On disk, with what lies beside it.
    pub bytes: u64,
    /// Whether all of it is there.
    pub whole: bool,
}

impl Store {
    /// The models below a folder, which need not exist.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a file of a repository is kept.
    pub(crate) fn path(&self, repo: &Repo, file: &str) -> PathBuf {
        file.split('/').fold(self.root.join(&repo.owner).join(&repo.name), |path, part| path.join(part))
    }

    /// The model of a name; its first file, if it is split.
    ///
    /// # Errors
    /// It is not here, or the name holds for several.
    pub fn find(&self, name: &Name) -> Result<PathBuf, Error> {
        let absent = || Error::Absent(name.to_string());
        let mut models: Vec<Kept> = self.list()?.into_iter().filter(|kept| kept.whole).collect();
        match &name.file {
            Some(file) => {
                let first = first(file);
                let wanted = Name { repo: name.repo.clone(), file: Some(first) }.to_string();
                models.into_iter().find(|kept| kept.name == wanted).map(|kept| kept.path).ok_or_else(absent)
            }
            None => {
                let prefix = format!("{}:", name.repo);
                models.retain(|kept| kept.name.starts_with(&prefix));
                match &models[..] {
                    [] => Err(absent()),
                    [one] => Ok(one.path.clone()),
                    many => {
                        let names: Vec<&str> = many.iter().map(|kept| kept.name.as_str()).collect();
                        let repo = name.repo.to_string();
                        Err(Error::Ambiguous { repo, count: many.len(), names: names.join(", ") })
                    }
                }
            }
        }
    }

    /// What there is, by name.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>, Error> {
        let mut models: BTreeMap<String, Kept> = BTreeMap::new();
        let mut files: BTreeMap<String, u32> = BTreeMap::new();
        for (repo, file, bytes) in self.files()? {
            let (model, is_file) = belongs(&file);
            let first = first(model);
            let name = format!("{repo}:{first}");
            let path = self.path(&repo, &first);
            let kept = models.entry(name.clone()).or_insert(Kept { name: name.clone(), path, bytes: 0, whole: false });
            kept.bytes += bytes;
            let count = files.entry(name).or_default();
            *count += u32::from(is_file);
            kept.whole = *count == SplitName::of(&first).map_or(1, |split| split.count);
        }
        Ok(models.into_values().collect())
    }

    /// Removes what is listed by that name, and the folders that are empty without it.
    ///
    /// # Errors
    /// There is none, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let mut found = false;
        for (repo, file, _) in self.files()? {
            if format!("{repo}:{}", first(belongs(&file).0)) != name {
                continue;
            }
            found = true;
            let path = self.path(&repo, &file);
            fs::remove_file(&path).map_err(at(&path))?;
            for folder in path.ancestors().skip(1).take_while(|f| *f != self.root) {
                // Not empty: others are kept there.
                if fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        if found { Ok(()) } else { Err(Error::Absent(name.to_owned())) }
    }

    /// Every file of a model or beside one, with its size.
    fn files(&self) -> Result<Vec<(Repo, String, u64)>, Error> {
        let mut found = Vec::new();
        for owner in folder(&self.root)? {
            for name in folder(&self.root.join(&owner))? {
                let repo = Repo { owner: owner.clone(), name: name.clone() };
                let start = self.root.join(&owner).join(&name);
                let mut open = vec![(String::new(), 0)];
                while let Some((inside, depth)) = open.pop() {
                    for entry in folder(&start.join(&inside))? {
                        let file = if inside.is_empty() { entry } else { format!("{inside}/{entry}") };
                        let path = start.join(&file);
                        let about = fs::symlink_metadata(&path).map_err(at(&path))?;
                        if about.is_dir() && depth < MAX_DEPTH {
                            open.push((file, depth + 1));
                        } else if about.is_file() && is_path(&file) && belongs(&file).0.ends_with(".gguf") {
                            found.push((repo.clone(), file, about.len()));
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}

/// What beside `path` says with which sum it was verified.
#[cfg(feature = "net")]
pub(crate) fn sum_path(path: &Path) -> PathBuf {
    beside(path, ".sha256")
}

/// Where what has arrived of `path` is kept.
#[cfg(feature = "net")]
pub(crate) fn part_path(path: &Path, sha256: &str) -> PathBuf {
    beside(path, &format!(".{}.part", &sha256[..12]))
}

#[cfg(feature = "net")]
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The model's file that a file is or lies beside, and whether it is that file itself.
fn belongs(file: &str) -> (&str, bool) {
    if let Some(model) = file.strip_suffix(".sha256") {
        return (model, false);
    }
    match file.strip_suffix(".part").and_then(|rest| rest.rsplit_once('.')) {
        Some((model, _)) => (model, false),
        None => (file, true),
    }
}

/// The first file of the model that `file` is of.
fn first(file: &str) -> String {
    SplitName::of(file).map_or_else(|| file.to_owned(), |split| split.file(1))
}

/// The names in a folder, in order; none where there is no such folder.
fn folder(path: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(error) => return Err(at(path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // Names that are no text are none of ours.
        names.extend(entry.map_err(at(path))?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"12345").unwrap();
    }

    #[test]
    fn models_are_listed_found_and_removed_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("models"));
        assert_eq!(store.list().unwrap(), []);
        let root = &store.root;
        for path in [
            "o/r/a.gguf",
            "o/r/a.gguf.sha256",
            "o/r/Q8/b-00001-of-00002.gguf",
            "o/r/Q8/b-00002-of-00002.gguf.0123456789ab.part",
            "o/s/c-00001-of-00002.gguf",
            "o/s/c-00002-of-00002.gguf",
            "o/s/notes.txt",
            "stray.gguf",
        ] {
            put(root, path);
        }
        let list = store.list().unwrap();
        let rows: Vec<_> = list.iter().map(|k| (k.name.as_str(), k.bytes, k.whole)).collect();
        assert_eq!(
            rows,
            [
                ("hf:o/r:Q8/b-00001-of-00002.gguf", 10, false),
                ("hf:o/r:a.gguf", 10, true),
                ("hf:o/s:c-00001-of-00002.gguf", 10, true)
            ]
        );
        let find = |name: &str| store.find(&name.parse().unwrap());
        assert_eq!(find("hf:o/r").unwrap(), root.join("o/r/a.gguf"));
        assert_eq!(find("hf:o/s:c-00002-of-00002.gguf").unwrap(), root.join("o/s/c-00001-of-00002.gguf"));
        for absent in ["hf:o/r:Q8/b-00001-of-00002.gguf", "hf:o/t", "hf:o/r:x.gguf"] {
            assert!(find(absent).unwrap_err().to_string().contains(&format!("anemone pull {absent}")));
        }
        put(root, "o/s/d.gguf");
        let several = find("hf:o/s").unwrap_err().to_string();
        assert!(several.contains("hf:o/s:d.gguf") && several.contains("hf:o/s:c-00001-of-00002.gguf"), "{several}");

        store.remove("hf:o/r:Q8/b-00001-of-00002.gguf").unwrap();
        assert!(!root.join("o/r/Q8").exists() && root.join("o/r/a.gguf").exists());
        for no in ["hf:o/r:Q8/b-00001-of-00002.gguf", "../models", "hf:o/s:notes.txt"] {
            assert!(store.remove(no).is_err(), "{no}");
        }
    }
}
