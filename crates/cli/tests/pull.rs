//! `anemone pull` from a stand-in of the Hub: what is printed, where it lies, and that other commands take its name.
//! Faults of servers are the business of the hub crate's own tests.
#![cfg(feature = "pull")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use common::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the miniature as `owner/one`, and its two files as `owner/two`; the address.
fn stand_in() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = ["miniature-f16.gguf", "miniature-q8_0.gguf"];
    let files = files.map(|name| (name, std::fs::read(fixture("miniature").join(name)).unwrap()));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let repository = |path: &str| if path.contains("/one") { 1 } else { 2 };
            let (status, body) = if path.starts_with("/api/models/owner/none") {
                ("404 Not Found", Vec::new())
            } else if path.starts_with("/api/models/") {
                let sibling = |(name, bytes): &(&str, Vec<u8>)| {
                    let sum: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
                    json!({"rfilename": name, "lfs": {"sha256": sum, "size": bytes.len()}})
                };
                let siblings: Vec<_> = files[..repository(&path)].iter().map(sibling).collect();
                ("200 OK", json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes())
            } else {
                let (_, bytes) = files.iter().find(|(name, _)| path.ends_with(name)).unwrap();
                ("200 OK", bytes.clone())
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    address
}

fn run(args: &[&str], hub: &str, cache: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anemone"));
    command.args(args).env("HF_ENDPOINT", hub).env("ANEMONE_CACHE", cache).env_remove("HF_TOKEN").output().unwrap()
}

/// Its stdout, after success.
#[track_caller]
fn done(args: &[&str], hub: &str, cache: &Path) -> String {
    let out = run(args, hub, cache);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn what_was_pulled_is_a_model_by_its_name() {
    let (hub, folder) = (stand_in(), tempfile::tempdir().unwrap());
    let cache = folder.path();
    let fails = |args: &[&str], words: &[&str]| {
        let out = run(args, &hub, cache);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), stderr.lines().count()), (Some(2), 1), "{args:?}: {stderr}");
        words.iter().for_each(|word| assert!(stderr.contains(word), "`{word}` is not in: {stderr}"));
        String::from_utf8(out.stdout).unwrap()
    };
    fails(&["inspect", "hf:owner/one"], &["anemone pull hf:owner/one"]);
    fails(&["pull", "hf:owner/none"], &["404", "no such repository"]);
    fails(&["pull", "owner/one"], &["owner/one", "hf:OWNER/REPO"]);

    let path = done(&["pull", "hf:owner/one"], &hub, cache);
    assert_eq!(std::fs::read(path.trim_end()).unwrap(), std::fs::read(fixture(MINIATURE)).unwrap());
    let name = "hf:owner/one:miniature-f16.gguf";
    // From here on nothing is asked of anyone.
    let nobody = "http://127.0.0.1:1";
    let dry = ["build", "hf:owner/one", "-o", "nowhere", "--dry-run", "--json"];
    assert!(done(&dry, nobody, cache).contains("pieces"));
    let listed: Vec<Value> = serde_json::from_str(&done(&["models", "--json"], nobody, cache)).unwrap();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["kind"], &listed[0]["whole"]),
        (&json!(name), &json!("model"), &json!(true))
    );

    // Several models are listed, and one is to be chosen.
    let listed = fails(&["pull", "hf:owner/two"], &["2 models", "anemone pull hf:owner/two:miniature-f16.gguf"]);
    assert!(listed.contains("hf:owner/two:miniature-q8_0.gguf") && listed.contains("MiB"), "{listed}");
    let pulled = done(&["pull", "hf:owner/two:miniature-q8_0.gguf", "--json"], &hub, cache);
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!((&pulled["revision"], &pulled["files"][0]["file"]), (&json!(COMMIT), &json!("miniature-q8_0.gguf")));

    done(&["models", "--remove", name], nobody, cache);
    fails(&["models", "--remove", name], &[name, "anemone models"]);
    fails(&["inspect", name], &["anemone pull"]);
    done(&["inspect", "hf:owner/two"], nobody, cache);
}
