//! Evidence: findings appended to the bundle they speak of, a file a gate. Nothing is ever rewritten.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use anemone_bundle::layout;

use crate::verdict::Finding;

/// Appends findings, one JSON line each, to `evidence/<gate>.jsonl` of the bundle in `folder`.
pub fn append(folder: &Path, findings: &[Finding]) -> io::Result<()> {
    let evidence = folder.join(layout::EVIDENCE);
    fs::create_dir_all(&evidence)?;
    for finding in findings {
        let path = evidence.join(format!("{}.jsonl", finding.gate));
        let mut line = serde_json::to_vec(finding)?;
        line.push(b'\n');
        // One write a line: two gates at once may interleave lines, never parts of them.
        OpenOptions::new().create(true).append(true).open(path)?.write_all(&line)?;
    }
    Ok(())
}

/// A file of evidence larger than this is not read: a finding is some kilobytes, and nobody gates a bundle a million times.
const MAX_BYTES: u64 = 1 << 30;

/// Every finding about the bundle with `hash`, the last one of each gate and part, gate by gate in the order of their names.
/// What is said of another hash, a rebuilt bundle that kept its evidence for instance, is not evidence here.
///
/// # Errors
/// Where a file cannot be read or a line of it is no finding; the error names both.
pub fn latest(folder: &Path, hash: &str) -> io::Result<Vec<Finding>> {
    let evidence = folder.join(layout::EVIDENCE);
    let mut files = Vec::new();
    match fs::read_dir(&evidence) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "jsonl") && path != folder.join(layout::JOURNAL) {
                    files.push(path);
                }
            }
        }
    }
    files.sort();
    let mut found: BTreeMap<(String, String), (usize, Finding)> = BTreeMap::new();
    let mut order = 0;
    for path in files {
        for (number, line) in BufReader::new(File::open(&path)?.take(MAX_BYTES)).lines().enumerate() {
            let line = line?;
            let finding: Finding = serde_json::from_str(&line).map_err(|e| {
                let place = format!("{}, line {}: not a finding: {e}", path.display(), number + 1);
                io::Error::new(io::ErrorKind::InvalidData, place)
            })?;
            if finding.bundle != hash {
                continue;
            }
            let key = (finding.gate.clone(), finding.subject.clone());
            // The first sighting gives the part its place, the last one its verdict.
            let place = found.get(&key).map_or(order, |(place, _)| *place);
            found.insert(key, (place, finding));
            order += 1;
        }
    }
    let mut all: Vec<_> = found.into_values().collect();
    all.sort_by(|a, b| a.1.gate.cmp(&b.1.gate).then(a.0.cmp(&b.0)));
    Ok(all.into_iter().map(|(_, finding)| finding).collect())
}
