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
        let mut child = Command::new(env!("CARGO_BIN_EXE_anemone")).args(args).stderr(Stdio::null()).spawn().unwrap();
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

/// Kills a build at many moments; `--resume` always ends with the bytes of an undisturbed build.
#[test]
fn a_killed_build_is_resumed_to_the_same_bytes() {
    let model = fixture(MINIATURE);
    let cut = ["--layers-per-shard", "1", "--head-slices", "4"];
    let undisturbed = files(&Bundle::build(&model, &cut).path);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let mut args = vec!["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--resume"];
    args.extend(cut);
    for delay in (0..60).step_by(3) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_anemone")).args(&args).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        if target.exists() {
            break;
        }
    }
    if !target.exists() {
        succeed(&args);
    }
    assert!(files(&target) == undisturbed, "a resumed build differs from an undisturbed one");
}

#[test]
fn a_resumed_build_does_not_take_over_a_damaged_piece_or_another_request() {
    let model = fixture(MINIATURE);
    let cut = ["--layers-per-shard", "1", "--head-slices", "2"];
    let undisturbed = files(&Bundle::build(&model, &cut).path);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let build = |more: &[&str]| {
        let mut args = vec!["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--quiet"];
        args.extend(more);
        succeed(&args);
    };
    // Jobs leave finished pieces behind, as a stop does.
    for job in ["0", "1", "6"] {
        build(&[&cut[..], &["--job", job]].concat());
    }
    let damaged = folder.path().join(".bundle.partial/layers/01-02.mlpackage/Data/com.apple.CoreML/weights/weight.bin");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[5000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    build(&[&cut[..], &["--resume"]].concat());
    assert!(files(&target) == undisturbed, "a damaged piece was taken over");

    fs::remove_dir_all(&target).unwrap();
    build(&["--layers-per-shard", "1", "--head-slices", "2", "--weights", "fp16", "--job", "0"]);
    build(&[&cut[..], &["--resume"]].concat());
    assert!(files(&target) == undisturbed, "a piece of another request was taken over");
}

/// Copies everything below `from` into `to`, over what is there.
fn lay_over(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => lay_over(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn jobs_without_a_common_disk_join_when_their_folders_are_laid_over_each_other() {
    let model = fixture(MINIATURE);
    let cut = ["--layers-per-shard", "2", "--head-slices", "2"];
    let undisturbed = files(&Bundle::build(&model, &cut).path);
    let folder = tempfile::tempdir().unwrap();
    let build = |machine: &str, more: &[&str]| {
        let target = folder.path().join(machine).join("bundle");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let base = ["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--quiet"];
        succeed(&[&base[..], &cut, more].concat());
        target
    };
    for job in ["0", "1", "2", "3", "4"] {
        build(job, &["--job", job]);
        lay_over(&folder.path().join(job), &folder.path().join("joined"));
    }
    assert!(files(&build("joined", &["--join"])) == undisturbed, "joined jobs differ from one build");
}

#[test]
fn jobs_in_several_processes_join_to_the_same_bytes() {
    let model = fixture(MINIATURE);
    let cut = ["--topology", "0-1,1-4", "--head-slices", "3"];
    let undisturbed = files(&Bundle::build(&model, &cut).path);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("bundle");
    let base = [&["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--quiet"][..], &cut].concat();
    let plan = succeed(&[&base[..], &["--plan"]].concat());
    let jobs = serde_json::from_str::<serde_json::Value>(&plan).unwrap().as_array().unwrap().len();
    assert_eq!(jobs, 2 + 3 + 1);
    refuse(&[&base[..], &["--join"]].concat(), &["--join", "job 0", "layers/00-01.mlpackage"]);
    refuse(&[&base[..], &["--job", "6"]].concat(), &["--job", "0 to 5"]);
    let run = |job: usize| {
        let job = job.to_string();
        Command::new(env!("CARGO_BIN_EXE_anemone")).args([&base[..], &["--job", &job]].concat()).spawn().unwrap()
    };
    let children: Vec<_> = (0..jobs).map(run).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let other = ["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--weights", "fp16", "--job", "0"];
    refuse(&other, &["other options"]);
    succeed(&[&base[..], &["--join"]].concat());
    assert!(files(&target) == undisturbed, "joined jobs differ from one build");
}
