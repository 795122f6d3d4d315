//! Files that commands leave for people: whole, or as they were before.

use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result};

/// Writes a file beside its place first, so that what was there stays if the disk is full, and no reader sees half of it.
/// What is no plain file, such as a pipe, a terminal or a link, is written to.
///
/// # Errors
/// The system's, with the path.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let plain = match fs::symlink_metadata(path) {
        Ok(about) => about.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let written = match path.file_name() {
        Some(name) if plain => beside(path, name.to_owned(), text),
        _ => fs::write(path, text),
    };
    written.with_context(|| path.display().to_string())
}

fn beside(path: &Path, name: OsString, text: &str) -> io::Result<()> {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    let partial = path.with_file_name(hidden);
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_replaced_whole_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let path = folder.path().join("page.html");
        for text in ["longer than the next", "short"] {
            write(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(), ["page.html"]);
        let missing = folder.path().join("missing/page.html");
        assert!(write(&missing, "text").unwrap_err().to_string().contains("missing/page.html"));
        assert!(write(folder.path(), "text").is_err());
        assert_eq!(names(), ["page.html"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, "text").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "text");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
