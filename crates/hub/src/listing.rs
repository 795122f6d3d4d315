//! What a repository holds, as the Hub lists it: `GET /api/models/OWNER/REPO?blobs=true`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::name::is_path;
use crate::{Error, Repo, SplitName};

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// In its repository, parts separated by `/`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of its content, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The models of a repository, at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which repository.
    pub repo: Repo,
    /// The commit, so that all files come from one.
    pub revision: String,
    /// By path.
    files: BTreeMap<String, RemoteFile>,
}

/// A model: one file, or all of a split one in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// At least one.
    pub files: Vec<RemoteFile>,
}

impl Model {
    /// What it is called in its repository.
    pub fn path(&self) -> &str {
        &self.files[0].path
    }

    /// Of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Of the Hub's answer. What is wrong with it is told as text.
    pub(crate) fn parse(repo: &Repo, answer: &[u8]) -> Result<Self, String> {
        let info: Info = serde_json::from_slice(answer).map_err(|e| format!("no listing of a repository: {e}"))?;
        if !is_hex(&info.sha, 40) {
            return Err("the listing names no commit".into());
        }
        let mut files = BTreeMap::new();
        for Sibling { rfilename: path, lfs } in info.siblings {
            if !path.ends_with(".gguf") {
                continue;
            }
            if !is_path(&path) {
                return Err(format!("the listing names a file \"{}\", which is no path", path.escape_debug()));
            }
            let Some(Lfs { sha256, size }) = lfs else {
                return Err(format!("the listing has no SHA-256 of {path}, so it could not be verified"));
            };
            if !is_hex(&sha256, 64) || size == 0 {
                return Err(format!("the listing has no SHA-256, or no size, of {path}"));
            }
            files.insert(path.clone(), RemoteFile { path, size, sha256 });
        }
        Ok(Self { repo: repo.clone(), revision: info.sha, files })
    }

    /// The model that `file` is, or is a part of; the only one, where no file is named.
    ///
    /// # Errors
    /// There is none, or several, or a part is missing.
    pub fn choose(&self, file: Option<&str>) -> Result<Model, Error> {
        if let Some(file) = file {
            return match self.files.get(file) {
                Some(file) => self.model(file),
                None => Err(Error::NoFile { repo: self.repo.to_string(), file: file.to_owned() }),
            };
        }
        let is_first = |f: &&RemoteFile| SplitName::of(&f.path).is_none_or(|split| split.number == 1);
        let models = self.files.values().filter(is_first).map(|f| self.model(f)).collect::<Result<Vec<_>, _>>()?;
        match &models[..] {
            [] => Err(Error::NoModel(self.repo.to_string())),
            [one] => Ok(one.clone()),
            many => {
                let models = many.iter().map(|m| (m.path().to_owned(), m.bytes())).collect();
                Err(Error::Several { repo: self.repo.to_string(), models })
            }
        }
    }

    fn model(&self, file: &RemoteFile) -> Result<Model, Error> {
        let Some(split) = SplitName::of(&file.path) else { return Ok(Model { files: vec![file.clone()] }) };
        let part = |number| {
            let file = split.file(number);
            let missing = || Error::NoFile { repo: self.repo.to_string(), file: file.clone() };
            self.files.get(&file).cloned().ok_or_else(missing)
        };
        Ok(Model { files: (1..=split.count).map(part).collect::<Result<_, _>>()? })
    }
}

/// Whether a text is so many lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
