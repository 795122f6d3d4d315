//! What the tests of the program share: running it, fixtures, NumPy files.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

pub const MINIATURE: &str = "miniature/miniature-f16.gguf";

/// Runs the program and gives what it printed.
pub fn anemone(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_anemone")).args(args).output().unwrap()
}

/// Runs the program, which must succeed, and gives its stdout.
#[track_caller]
pub fn succeed(args: &[&str]) -> String {
    let out = anemone(args);
    assert!(out.status.success(), "anemone {args:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs the program, which must refuse with exit code 2 and one line that holds every one of `words`.
#[track_caller]
pub fn refuse(args: &[&str], words: &[&str]) {
    let out = anemone(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "anemone {args:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "more than one line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

/// A bundle in a folder of its own, removed when dropped.
pub struct Bundle {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Bundle {
    pub fn build(model: &Path, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle");
        let mut args = vec!["build", model.to_str().unwrap(), "-o", path.to_str().unwrap(), "--quiet"];
        args.extend(options);
        succeed(&args);
        Self { _folder: folder, path }
    }

    pub fn str(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Judges the bundle by these gates, all of which must pass.
    #[track_caller]
    pub fn gate(&self, model: &Path, gates: &str) {
        succeed(&["gate", self.str(), "--source", model.to_str().unwrap(), "--only", gates, "--quiet"]);
    }

    /// Answers a batch of prompts: the lines that came back, in order.
    pub fn batch(&self, requests: &[Value], options: &[&str]) -> Vec<Value> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = requests.iter().map(Value::to_string).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let mut args = vec!["generate", self.str(), "--batch", file.path().to_str().unwrap(), "--greedy"];
        args.extend(options);
        succeed(&args).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

pub fn json_lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The values of a C-ordered little-endian f32 `.npy`.
pub fn npy(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

pub fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
