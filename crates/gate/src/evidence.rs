//! Evidence: findings appended to the bundle they speak of, a file a gate. Nothing is ever rewritten.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
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
