//! The journal: what was meant, what came of it, and what it taught, in the order it happened.
//!
//! An entry is opened by an `Intent` before any work starts, so that a failure has one too; everything until the next intent
//! belongs to it. Lines are appended and never rewritten. While a bundle is being built its journal lies beside the target, as
//! `<target>.journal.jsonl`: a build that fails or is killed leaves it there, and the next build of that target begins its
//! journal with it. A finished bundle carries its journal in the evidence, outside of every hash, which is why a line may
//! know the time.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anemone_bundle::layout;
use anemone_chat::template::civil;
use serde::{Deserialize, Serialize};

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heading {
    /// What is to be tried, and what is expected of it.
    Intent,
    /// With what: source, contract, cut.
    Setup,
    /// What came of it.
    Result,
    /// What was not expected.
    Surprise,
    /// What follows.
    Lesson,
    /// What to do next.
    Next,
    /// Where else to look.
    Refs,
}

impl Heading {
    /// Every heading, in the order of an entry.
    pub const ALL: [Heading; 7] = [
        Heading::Intent,
        Heading::Setup,
        Heading::Result,
        Heading::Surprise,
        Heading::Lesson,
        Heading::Next,
        Heading::Refs,
    ];

    /// The word in files.
    pub fn name(self) -> &'static str {
        match self {
            Heading::Intent => "Intent",
            Heading::Setup => "Setup",
            Heading::Result => "Result",
            Heading::Surprise => "Surprise",
            Heading::Lesson => "Lesson",
            Heading::Next => "Next",
            Heading::Refs => "Refs",
        }
    }
}

impl FromStr for Heading {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Heading::ALL.into_iter().find(|h| h.name().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("`{text}` is not one of {}", Heading::ALL.map(Heading::name).join(", ")))
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Seconds since 1970, UTC.
    pub at: u64,
    /// Its heading.
    pub heading: Heading,
    /// What it says.
    pub text: String,
    /// The bundle it speaks of; none while there is none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

impl Line {
    /// A line of now.
    pub fn now(heading: Heading, text: impl Into<String>, bundle: Option<&str>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { at, heading, text: text.into(), bundle: bundle.map(str::to_owned) }
    }

    /// Its time as `2026-11-23 07:16 UTC`.
    pub fn time(&self) -> String {
        let (days, seconds) = (self.at / 86400, self.at % 86400);
        // Days of as many seconds as a u64 holds are few for an i64.
        let (year, month, day) = civil(days as i64);
        format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
    }
}

/// Lines from one intent to the next. A journal may begin without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Counted from 1.
    pub number: usize,
    /// Its lines in order.
    pub lines: Vec<Line>,
}

impl Entry {
    /// What it is called: its first line.
    pub fn title(&self) -> &str {
        self.lines.first().map_or("", |line| line.text.as_str())
    }
}

/// Lines grouped into entries.
pub fn entries(lines: Vec<Line>) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    for line in lines {
        match all.last_mut() {
            Some(entry) if line.heading != Heading::Intent => entry.lines.push(line),
            _ => all.push(Entry { number: all.len() + 1, lines: vec![line] }),
        }
    }
    all
}

/// A journal larger than this is not read.
const MAX_BYTES: u64 = 64 << 20;

/// Where a bundle keeps its journal.
pub fn of_bundle(folder: &Path) -> PathBuf {
    folder.join(layout::JOURNAL)
}

/// Where the journal of a target lies while it is being built.
pub fn beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".journal.jsonl");
    target.with_file_name(name)
}

/// Appends lines to a journal.
pub fn append(path: &Path, lines: &[Line]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    for line in lines {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        file.write_all(&bytes)?;
    }
    file.sync_all()
}

/// Reads a journal; one that is not there is empty.
///
/// # Errors
/// Where a line is none; the error names it.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let parse = |(number, line): (usize, io::Result<String>)| {
        serde_json::from_str(&line?).map_err(|e| {
            let place = format!("{}, line {}: not a line of a journal: {e}", path.display(), number + 1);
            io::Error::new(io::ErrorKind::InvalidData, place)
        })
    };
    BufReader::new(file.take(MAX_BYTES)).lines().enumerate().map(parse).collect()
}

/// Moves what lies beside a target into the bundle that it became.
pub fn adopt(target: &Path) -> io::Result<()> {
    let beside = beside(target);
    let lines = read(&beside)?;
    append(&of_bundle(target), &lines)?;
    fs::remove_file(beside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        let line = Line { at: 1_795_418_160, heading: Heading::Intent, text: String::new(), bundle: None };
        assert_eq!(line.time(), "2026-11-23 07:16 UTC");
    }

    #[test]
    fn an_intent_opens_an_entry_and_lines_stay_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evidence/journal.jsonl");
        assert!(read(&path).unwrap().is_empty());
        for (heading, text) in [("Result", "a"), ("intent", "b"), ("Result", "c"), ("Intent", "d")] {
            append(&path, &[Line::now(heading.parse().unwrap(), text, None)]).unwrap();
        }
        let all = entries(read(&path).unwrap());
        let titles: Vec<_> = all.iter().map(|e| (e.number, e.title(), e.lines.len())).collect();
        assert_eq!(titles, [(1, "a", 1), (2, "b", 2), (3, "d", 1)]);
        fs::write(&path, "nonsense\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1"));
    }
}
