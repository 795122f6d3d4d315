//! Getting a model: what has arrived stays, and only what was verified gets its name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::client::{Answer, refused};
use crate::error::at;
use crate::listing::is_hex;
use crate::store::{part_path, sum_path};
use crate::{Error, Hub, Listing, Model, RemoteFile, Store};

/// Attempts in a row that bring nothing new.
const ATTEMPTS: u32 = 5;
/// What counts as something new.
const ENOUGH: u64 = 1 << 20;
/// The longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Bytes on their way at once.
const BUFFER: usize = 256 << 10;

/// Whoever watches.
pub trait Progress {
    /// This file is next.
    fn file(&self, path: &str);
    /// So much of the model is here; less than before where a server wants to begin anew.
    fn here(&self, bytes: u64);
    /// An attempt failed, and another one follows.
    fn again(&self, why: &Error);
}

impl Hub {
    /// Gets what is missing of a model, and gives its path: that of the first file.
    ///
    /// # Errors
    /// The server's, the connection's or the disk's; what has arrived stays for the next time.
    pub fn pull(
        &self,
        listing: &Listing,
        model: &Model,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<PathBuf, Error> {
        let mut before = 0;
        for file in &model.files {
            progress.file(&file.path);
            let path = store.path(&listing.repo, &file.path);
            let here = |bytes| progress.here(before + bytes);
            Download { hub: self, listing, file, here: &here, again: &|e| progress.again(e) }.run(&path)?;
            before += file.size;
            progress.here(before);
        }
        Ok(store.path(&listing.repo, model.path()))
    }
}

struct Download<'a> {
    hub: &'a Hub,
    listing: &'a Listing,
    file: &'a RemoteFile,
    here: &'a dyn Fn(u64),
    again: &'a dyn Fn(&Error),
}

/// What has arrived of a file, with the sum of it.
struct Part {
    out: File,
    path: PathBuf,
    len: u64,
    sum: Sha256,
}

impl Download<'_> {
    fn run(&self, path: &Path) -> Result<(), Error> {
        if self.is_here(path)? {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        let mut part = Part::open(part_path(path, &self.file.sha256), self.file.size)?;
        // Whoever held the lock until now may have finished it.
        if self.is_here(path)? {
            return Ok(());
        }
        (self.here)(part.len);
        if let Err(error) = self.fill(&mut part) {
            if part.len == 0 {
                forget(&part.path)?;
            }
            return Err(error);
        }
        let found = hex(&part.sum.finalize_reset());
        if found != self.file.sha256 {
            fs::remove_file(&part.path).map_err(at(&part.path))?;
            return Err(Error::Hash { file: self.file.path.clone(), found, expected: self.file.sha256.clone() });
        }
        part.out.sync_all().map_err(at(&part.path))?;
        // An older file's sum must not stand beside this one.
        forget(&sum_path(path))?;
        fs::rename(&part.path, path).map_err(at(path))?;
        self.note(path)
    }

    /// Whether the file is here already, and is the listed one.
    fn is_here(&self, path: &Path) -> Result<bool, Error> {
        if !fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() == self.file.size) {
            return Ok(false);
        }
        if fs::read_to_string(sum_path(path)).is_ok_and(|sum| sum == self.note_text(path)) {
            return Ok(true);
        }
        let mut sum = Sha256::new();
        add(&mut sum, &mut File::open(path).map_err(at(path))?).map_err(at(path))?;
        let same = hex(&sum.finalize_reset()) == self.file.sha256;
        if same {
            self.note(path)?;
        }
        Ok(same)
    }

    fn note(&self, path: &Path) -> Result<(), Error> {
        let beside = sum_path(path);
        fs::write(&beside, self.note_text(path)).map_err(at(&beside))
    }

    fn note_text(&self, path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{}  {name}\n", self.file.sha256)
    }

    /// Asks until all is there, or until asking brings nothing.
    fn fill(&self, part: &mut Part) -> Result<(), Error> {
        let mut failures = 0;
        while part.len < self.file.size {
            let before = part.len;
            let Err(error) = self.receive(part) else { continue };
            failures = if part.len >= before.saturating_add(ENOUGH) { 1 } else { failures + 1 };
            if !error.is_passing() || failures == ATTEMPTS {
                return Err(error);
            }
            (self.again)(&error);
            std::thread::sleep((self.hub.pause * (1 << (failures - 1))).min(MAX_PAUSE));
        }
        Ok(())
    }

    /// One answer, to its end or to where the file ends.
    fn receive(&self, part: &mut Part) -> Result<(), Error> {
        let Answer { response, linked_etag, url } = self.hub.file(self.listing, &self.file.path, part.len)?;
        let wrong = |problem: String| Error::Answer { url: url.clone(), problem };
        let size = self.file.size;
        let linked = linked_etag.as_deref().map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        if let Some(other) = linked.filter(|sum| is_hex(sum, 64) && *sum != self.file.sha256) {
            return Err(wrong(format!(
                "the file's SHA-256 is said to be {other}, and {} was listed",
                self.file.sha256
            )));
        }
        let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok());
        match response.status().as_u16() {
            206 => {
                let range = header(CONTENT_RANGE).unwrap_or("none");
                let expected = format!("bytes {}-{}/{size}", part.len, size - 1);
                if range != expected {
                    return Err(wrong(format!("the range `{range}` came, and `{expected}` was asked for")));
                }
            }
            200 => {
                if let Some(length) = header(CONTENT_LENGTH).filter(|length| length.parse() != Ok(size)) {
                    return Err(wrong(format!("{length} bytes, and {size} were listed")));
                }
                // A server that does not know ranges begins anew, and so does the sum.
                part.restart()?;
                (self.here)(0);
            }
            status => return Err(refused(url, status)),
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER];
        while part.len < size {
            let most = usize::try_from(size - part.len).unwrap_or(BUFFER).min(BUFFER);
            let cut = |problem: String| Error::Connection {
                url: url.clone(),
                problem: format!("cut after {} of {size} bytes ({problem})", part.len),
            };
            let count = match body.read(&mut buffer[..most]) {
                Ok(0) => return Err(cut("the server had no more".into())),
                Ok(count) => count,
                Err(e) => return Err(cut(e.to_string())),
            };
            part.push(&buffer[..count])?;
            (self.here)(part.len);
        }
        Ok(())
    }
}

impl Part {
    /// Opens what there is, and sums it up. What is longer than the file was never a part of it.
    fn open(path: PathBuf, size: u64) -> Result<Self, Error> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut out = options.map_err(at(&path))?;
        match out.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(path)),
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        let mut sum = Sha256::new();
        let len = add(&mut sum, &mut out).map_err(at(&path))?;
        let mut part = Self { out, path, len, sum };
        if part.len > size {
            part.restart()?;
        }
        Ok(part)
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.out.set_len(0).map_err(at(&self.path))?;
        self.out.seek(SeekFrom::Start(0)).map_err(at(&self.path))?;
        (self.len, self.sum) = (0, Sha256::new());
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(at(&self.path))?;
        self.sum.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Adds the rest of a file to a sum; how many bytes that was.
fn add(sum: &mut Sha256, file: &mut File) -> std::io::Result<u64> {
    let (mut buffer, mut len) = (vec![0; BUFFER], 0);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(len);
        }
        sum.update(&buffer[..count]);
        len += count as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Removes a file that may not be there.
fn forget(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}
