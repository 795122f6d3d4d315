//! Builds: deterministic bytes, nothing half done.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(k, v)| (format!("{name}/{k}"), v)));
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn two_builds_give_the_same_bytes() {
    for weights in ["int8-channel", "int8", "fp16"] {
        let options = ["--weights", weights, "--topology", "0-1,1-4", "--head-slices", "3"];
        let (a, b) = (Bundle::build(&fixture(MINIATURE), &options), Bundle::build(&fixture(MINIATURE), &options));
        let (a, b) = (files(&a.path), files(&b.path));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, bytes) in &a {
            assert!(*bytes == b[name], "{weights}: {name} differs between two builds");
        }
    }
}

/// `main` and `prefill` of a package carry one copy of the weights.
#[test]
fn a_prefill_function_adds_no_weights() {
    let size = |tokens: &str| {
        let bundle = Bundle::build(&fixture(MINIATURE), &["--tokens", tokens]);
        let weights = |(name, bytes): (&String, &Vec<u8>)| name.ends_with("weight.bin").then_some(bytes.len());
        files(&bundle.path).iter().filter_map(weights).sum::<usize>()
    };
    assert_eq!(size("1"), size("1,16"));
}

#[test]
fn a_killed_build_leaves_no_bundle_and_the_next_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let model = fixture(MINIATURE);
    let args = ["build", model.to_str().unwrap(), "-o", target.to_str().unwrap()];
    for delay in [0, 5, 10, 20, 40] {
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_anemone")).args(args).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        if target.exists() {
            // It was faster than the kill: then it is whole.
            succeed(&["gate", target.to_str().unwrap(), "--source", model.to_str().unwrap(), "--only", "contract"]);
            fs::remove_dir_all(&target).unwrap();
        }
    }
    succeed(&args);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["bundle"]);
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_would_be() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let model = fixture(MINIATURE);
    let args = ["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--dry-run", "--topology", "0-2,2-4"];
    let text = succeed(&args);
    assert!(text.contains("layers/00-02.mlpackage") && text.contains("head/0.mlpackage"), "{text}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}
