//! `build --intent`, `journal`: what was meant is on record before the work, and what came of it after.

mod common;

use std::fs;

use common::*;
use serde_json::Value;

fn headings(bundle: &str) -> Vec<Vec<String>> {
    let entries: Value = serde_json::from_str(&succeed(&["journal", bundle, "--json"])).unwrap();
    let heading = |l: &Value| l["heading"].as_str().unwrap().to_owned();
    let lines = |e: &Value| e["lines"].as_array().unwrap().iter().map(heading).collect();
    entries.as_array().unwrap().iter().map(lines).collect()
}

#[test]
fn an_intent_is_followed_by_what_came_of_it() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &["--topology", "0-2,2-4", "--intent", "two shards where four were"]);
    assert_eq!(headings(bundle.str()), [["Intent", "Setup", "Result"]]);
    bundle.gate(&model, "contract");
    succeed(&["journal", bundle.str(), "--add", "lesson", "two are enough"]);
    succeed(&["journal", bundle.str(), "--add", "Intent", "one shard"]);
    assert_eq!(headings(bundle.str()), [vec!["Intent", "Setup", "Result", "Result", "Next", "Lesson"], vec!["Intent"]]);
    let text = succeed(&["journal", bundle.str()]);
    assert!(text.contains("two shards where four were") && text.contains("one shard"), "{text}");
    let shown = succeed(&["journal", bundle.str(), "--show", "1"]);
    assert!(
        shown.contains("BLAKE3")
            && shown.contains("contract: ")
            && shown.contains("two are enough")
            && !shown.contains("one shard"),
        "{shown}"
    );
    refuse(&["journal", bundle.str(), "--add", "Opinion", "x"], &["Opinion", "Lesson"]);
    refuse(&["journal", bundle.str(), "--show", "9"], &["--show", "9"]);
    // The journal is outside the hash.
    bundle.gate(&model, "contract");
}

#[test]
fn a_failed_build_is_on_record_and_the_next_one_takes_it_up() {
    let model = fixture(MINIATURE);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let args = ["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--quiet", "--head-slices", "2"];
    // It fails after the plan was accepted: the baseline has other slices.
    let other = Bundle::build(&model, &["--head-slices", "3"]);
    refuse(&[&args[..], &["--intent", "first try", "--reuse", other.str()]].concat(), &["--reuse"]);
    assert!(!target.exists());
    let beside = folder.path().join("bundle.journal.jsonl");
    let record = fs::read_to_string(&beside).unwrap();
    assert!(record.contains("first try") && record.contains("the build failed"), "{record}");
    succeed(&[&args[..], &["--intent", "second try"]].concat());
    assert!(!beside.exists());
    assert_eq!(headings(target.to_str().unwrap()), [["Intent", "Setup", "Result"], ["Intent", "Setup", "Result"]]);
}

#[test]
fn without_an_intent_nothing_is_written() {
    let bundle = Bundle::build(&fixture(MINIATURE), &[]);
    assert!(!bundle.path.join("evidence").exists());
    assert!(succeed(&["journal", bundle.str()]).contains("empty"));
}
