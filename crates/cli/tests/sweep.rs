//! `sweep`: tries topologies, rejects what the rules send away, and goes on where it stopped.

mod common;

use common::*;
use serde_json::Value;

#[test]
fn a_sweep_goes_on_from_its_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let evidence = folder.path().join("sweep.jsonl");
    let model = fixture(MINIATURE);
    let sweep = |more: &[&str]| {
        let common = ["sweep", model.to_str().unwrap(), "--evidence", evidence.to_str().unwrap(), "--tokens", "4"];
        succeed(&[&common[..], &["--sample", "4", "--runtime", "portable", "--quiet"], more].concat())
    };
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&evidence).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let ran = |lines: &[Value]| lines.iter().filter(|l| l.get("ran").is_some()).count();
    let first = sweep(&["--tries", "1"]);
    assert!(first.contains("fastest as a whole") && first.contains("times: portable exact"), "{first}");
    assert!(first.contains("placement: rules for M4 on macOS 15"), "{first}");
    assert_eq!(ran(&lines()), 1);
    sweep(&["--tries", "1"]);
    let both = lines();
    let topologies: Vec<&Value> = both.iter().filter_map(|l| l.get("ran")).map(|p| &p["topology"]).collect();
    assert_eq!(topologies.len(), 2);
    assert_ne!(topologies[0], topologies[1], "what was tried is not tried again");
    assert_eq!(both.iter().filter(|l| l.get("about").is_some()).count(), 1);
    // Another question is another file.
    let args = [
        "sweep",
        model.to_str().unwrap(),
        "--evidence",
        evidence.to_str().unwrap(),
        "--chip",
        "M1",
        "--runtime",
        "portable",
    ];
    refuse(&args, &["sweep.jsonl", "rules for M1", "--evidence"]);
    std::fs::write(&evidence, "nonsense\n").unwrap();
    refuse(&args, &["sweep.jsonl, line 1"]);
}
