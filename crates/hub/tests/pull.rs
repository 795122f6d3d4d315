//! Pulling from a stand-in of the Hub that speaks its two endpoints, the listing and the file with its redirect, and that can
//! misbehave in every way the crate promises to survive.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anemone_hub::{Error, Hub, Name, Progress, Store};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const KEY: &str = "hf_onlyForTheHub";

/// What a stand-in does wrong.
#[derive(Clone, Default)]
struct Faults {
    /// Closes connections after these many bytes of a body, one after another; then no more.
    cuts: Vec<usize>,
    /// Answers 200 with everything, whatever range is asked for.
    no_ranges: bool,
    /// Answers a range that is not the one asked for.
    wrong_range: bool,
    /// Flips a bit.
    corrupt: bool,
    /// Sends no length, and never stops by itself.
    endless: bool,
    /// Says another length than was listed.
    wrong_length: bool,
    /// Says another sum than was listed.
    wrong_etag: bool,
    /// Answers with these statuses first.
    statuses: Vec<u16>,
    /// Redirects files there.
    redirect: Option<String>,
    /// Wants the key.
    private: bool,
    /// Answers this instead of a listing.
    listing: Option<Vec<u8>>,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    path: String,
    range: Option<String>,
    key: Option<String>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    seen: Vec<Seen>,
}

/// The Hub and, at another port, where it keeps files.
struct StandIn {
    hub: String,
    files: String,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    fn start(files: &[(&str, Vec<u8>)], faults: Faults) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, faults, seen: Vec::new() }));
        let [hub, cdn] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let stand_in = Self { hub: address(&hub), files: address(&cdn), state: Arc::clone(&state) };
        let elsewhere = stand_in.files.clone();
        for (listener, cdn) in [(hub, Some(elsewhere)), (cdn, None)] {
            let state = Arc::clone(&state);
            // The threads end with the process.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, cdn) = (Arc::clone(&state), cdn.clone());
                    std::thread::spawn(move || serve(stream.unwrap(), &state, cdn.as_deref()));
                }
            });
        }
        stand_in
    }

    fn seen(&self, of: &str) -> Vec<Seen> {
        self.state.lock().unwrap().seen.iter().filter(|s| s.path.contains(of)).cloned().collect()
    }

    fn faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }
}

/// One request a connection. An error is a client that left.
fn serve(mut stream: TcpStream, state: &Mutex<State>, cdn: Option<&str>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .take_while(|l| !l.is_empty())
        .filter_map(|l| l.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())))
        .collect();
    let (range, key) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    let (reply, body, most) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen { path: path.clone(), range: range.clone(), key: key.clone() });
        let private = state.faults.private && key.as_deref() != Some(&format!("Bearer {KEY}"));
        match cdn {
            Some(_) if private => ("401 Unauthorized\r\ncontent-length: 0".to_owned(), Vec::new(), None),
            Some(cdn) if path.starts_with("/api/models/") => list(&state, &path, cdn),
            Some(cdn) => (redirect(&state, &path, cdn), Vec::new(), None),
            None => give(&mut state, &path, range.as_deref()),
        }
    };
    let endless = reply.contains("x-endless");
    let _ = write!(stream, "HTTP/1.1 {reply}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(&body[..most.unwrap_or(body.len()).min(body.len())]);
    while endless && stream.write_all(&[0; 4096]).is_ok() {}
}

type Reply = (String, Vec<u8>, Option<usize>);

fn list(state: &State, path: &str, _: &str) -> Reply {
    let body = match &state.faults.listing {
        Some(listing) => listing.clone(),
        None if !path.starts_with("/api/models/owner/repo?blobs=true") => {
            return ("404 Not Found\r\ncontent-length: 0".to_owned(), Vec::new(), None);
        }
        None => listing(&state.files).to_string().into_bytes(),
    };
    (format!("200 OK\r\ncontent-length: {}", body.len()), body, None)
}

fn listing(files: &BTreeMap<String, Vec<u8>>) -> Value {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        json!({"rfilename": name, "size": bytes.len(), "blobId": "x",
            "lfs": {"sha256": sum(bytes), "size": bytes.len(), "pointerSize": 135}})
    };
    let readme = json!({"rfilename": "README.md", "size": 5, "blobId": "x"});
    json!({"id": "owner/repo", "sha": COMMIT, "siblings": files.iter().map(sibling).chain([readme]).collect::<Vec<_>>()})
}

fn redirect(state: &State, path: &str, cdn: &str) -> String {
    let Some(file) = path.strip_prefix(&format!("/owner/repo/resolve/{COMMIT}/")) else {
        return "404 Not Found\r\ncontent-length: 0".into();
    };
    let to = state.faults.redirect.clone().unwrap_or_else(|| format!("{cdn}/{file}?signature=s3cret"));
    let known = state.files.get(&file.replace("%20", " ")).map(|bytes| sum(bytes)).unwrap_or_default();
    let etag = if state.faults.wrong_etag { "f".repeat(64) } else { known };
    format!("302 Found\r\nlocation: {to}\r\nx-linked-etag: \"{etag}\"\r\ncontent-length: 0")
}

fn give(state: &mut State, path: &str, range: Option<&str>) -> Reply {
    if !state.faults.statuses.is_empty() {
        let status = state.faults.statuses.remove(0);
        return (format!("{status} No\r\ncontent-length: 0"), Vec::new(), None);
    }
    let file = path.trim_start_matches('/').split('?').next().unwrap().replace("%20", " ");
    let mut bytes = state.files[&file].clone();
    let size = bytes.len();
    if state.faults.corrupt {
        bytes[size / 2] ^= 1;
    }
    let cut = if state.faults.cuts.is_empty() { None } else { Some(state.faults.cuts.remove(0)) };
    if state.faults.endless {
        return ("200 OK\r\nx-endless: yes".into(), bytes, None);
    }
    let start = range.filter(|_| !state.faults.no_ranges);
    let start = start.map(|r| r.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap());
    match start {
        Some(start) => {
            let told = if state.faults.wrong_range { start - 1 } else { start };
            let head = format!("206 Partial Content\r\ncontent-range: bytes {told}-{}/{size}", size - 1);
            (format!("{head}\r\ncontent-length: {}", size - start), bytes.split_off(start), cut)
        }
        None => {
            let told = if state.faults.wrong_length { size + 7 } else { size };
            (format!("200 OK\r\ncontent-length: {told}"), bytes, cut)
        }
    }
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes that no two places have alike.
fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8 ^ seed).collect()
}

#[derive(Default)]
struct Watch {
    files: RefCell<Vec<String>>,
    here: RefCell<Vec<u64>>,
    again: RefCell<Vec<String>>,
}

impl Progress for Watch {
    fn file(&self, path: &str) {
        self.files.borrow_mut().push(path.to_owned());
    }
    fn here(&self, bytes: u64) {
        self.here.borrow_mut().push(bytes);
    }
    fn again(&self, why: &Error) {
        self.again.borrow_mut().push(why.to_string());
    }
}

struct Case {
    stand_in: StandIn,
    folder: tempfile::TempDir,
    watch: Watch,
}

impl Case {
    fn new(files: &[(&str, Vec<u8>)], faults: Faults) -> Self {
        Self { stand_in: StandIn::start(files, faults), folder: tempfile::tempdir().unwrap(), watch: Watch::default() }
    }

    fn one(faults: Faults) -> Self {
        Self::new(&[("m.gguf", content(0, SIZE))], faults)
    }

    fn store(&self) -> Store {
        Store::new(self.folder.path().join("models"))
    }

    fn pull_as(&self, name: &str, token: Option<&str>) -> Result<PathBuf, Error> {
        let hub = Hub::new(&self.stand_in.hub, token)?.pausing(Duration::ZERO);
        let name: Name = name.parse()?;
        let listing = hub.list(&name.repo)?;
        hub.pull(&listing, &listing.choose(name.file.as_deref())?, &self.store(), &self.watch)
    }

    fn pull(&self, name: &str) -> Result<PathBuf, Error> {
        self.pull_as(name, None)
    }

    /// It fails, with these words, and nothing got the model's name.
    #[track_caller]
    fn fails(&self, name: &str, words: &[&str]) {
        let error = self.pull(name).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` is not in: {error}");
        }
        assert!(!error.contains("s3cret") && !error.contains('\n'), "{error}");
        assert!(!self.files().iter().any(|f| f.ends_with(".gguf")), "{:?}", self.files());
    }

    /// What lies in the store.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path.to_str().unwrap().to_owned()) }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        found.sort();
        let root = format!("{}/models/owner/repo/", self.folder.path().display());
        found.into_iter().map(|f| f.strip_prefix(&root).map_or(f.clone(), str::to_owned)).collect()
    }
}

const SIZE: usize = 3_000_000;

#[test]
fn a_model_arrives_under_its_name_with_its_sum_and_only_once() {
    let case = Case::one(Faults::default());
    let path = case.pull("hf:owner/repo").unwrap();
    assert_eq!(fs::read(&path).unwrap(), content(0, SIZE));
    assert_eq!(case.files(), ["m.gguf", "m.gguf.sha256"]);
    let noted = fs::read_to_string(path.with_extension("gguf.sha256")).unwrap();
    assert_eq!(noted, format!("{}  m.gguf\n", sum(&content(0, SIZE))));
    assert_eq!(case.watch.here.borrow().last(), Some(&(SIZE as u64)));
    assert_eq!(case.store().find(&"hf:owner/repo".parse().unwrap()).unwrap(), path);

    // Nothing but the listing is asked for again; nor where the sum was lost, since it can be taken again.
    case.pull("hf:owner/repo:m.gguf").unwrap();
    fs::remove_file(path.with_extension("gguf.sha256")).unwrap();
    case.pull("hf:owner/repo:m.gguf").unwrap();
    assert_eq!(case.stand_in.seen("resolve").len(), 1);
    // Another file of the same size is another file.
    case.stand_in.state.lock().unwrap().files.insert("m.gguf".into(), content(9, SIZE));
    case.pull("hf:owner/repo").unwrap();
    assert_eq!(fs::read(&path).unwrap(), content(9, SIZE));
}

#[test]
fn what_was_cut_is_gone_on_from() {
    let cuts = vec![1_200_000, 1_100_000];
    let case = Case::one(Faults { cuts, ..Faults::default() });
    let path = case.pull("hf:owner/repo").unwrap();
    assert_eq!(fs::read(path).unwrap(), content(0, SIZE));
    let ranges: Vec<_> = case.stand_in.seen("signature").into_iter().map(|s| s.range).collect();
    assert_eq!(ranges, [None, Some("bytes=1200000-".into()), Some("bytes=2300000-".into())]);
    assert_eq!(case.watch.again.borrow().len(), 2);
    assert!(case.watch.again.borrow()[0].contains("1200000 of 3000000"), "{:?}", case.watch.again);
}

#[test]
fn a_later_command_goes_on_from_what_an_earlier_one_left() {
    let case = Case::one(Faults { cuts: vec![1000, 10, 0, 0, 0, 0, 0], ..Faults::default() });
    case.fails("hf:owner/repo", &["cut after 1010 of 3000000 bytes", "/m.gguf"]);
    let part = format!("m.gguf.{}.part", &sum(&content(0, SIZE))[..12]);
    assert_eq!(case.files(), [part]);
    let kept = case.store().list().unwrap();
    assert_eq!((kept[0].name.as_str(), kept[0].bytes, kept[0].whole), ("hf:owner/repo:m.gguf", 1010, false));

    case.stand_in.faults(Faults::default());
    let path = case.pull("hf:owner/repo").unwrap();
    assert_eq!(fs::read(path).unwrap(), content(0, SIZE));
    assert_eq!(case.stand_in.seen("signature").last().unwrap().range.as_deref(), Some("bytes=1010-"));
    assert_eq!(case.files(), ["m.gguf", "m.gguf.sha256"]);
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let case = Case::one(Faults { cuts: vec![1000], no_ranges: true, ..Faults::default() });
    let path = case.pull("hf:owner/repo").unwrap();
    assert_eq!(fs::read(path).unwrap(), content(0, SIZE));
    assert!(case.watch.here.borrow().windows(2).any(|w| w == [1000, 0]), "{:?}", case.watch.here);
}

#[test]
fn what_is_not_the_listed_file_gets_no_name() {
    let case = Case::one(Faults { corrupt: true, ..Faults::default() });
    case.fails("hf:owner/repo", &["m.gguf", "SHA-256", &sum(&content(0, SIZE))]);
    assert_eq!(case.files(), [""; 0]);
    // A part that was damaged on the disk is found out in the same way.
    let case = Case::one(Faults { cuts: vec![5000, 0, 0, 0, 0], ..Faults::default() });
    case.fails("hf:owner/repo", &["cut"]);
    let part = case.folder.path().join("models/owner/repo").join(&case.files()[0]);
    let mut bytes = fs::read(&part).unwrap();
    bytes[7] ^= 1;
    fs::write(&part, bytes).unwrap();
    case.fails("hf:owner/repo", &["SHA-256"]);
    case.pull("hf:owner/repo").unwrap();
    // One that is too long was none.
    let case = Case::one(Faults::default());
    let folder = case.folder.path().join("models/owner/repo");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("m.gguf.{}.part", &sum(&content(0, SIZE))[..12])), vec![1; SIZE + 1]).unwrap();
    assert_eq!(fs::read(case.pull("hf:owner/repo").unwrap()).unwrap(), content(0, SIZE));
}

#[test]
fn servers_that_contradict_themselves_are_not_believed() {
    for (faults, words) in [
        (Faults { wrong_length: true, ..Faults::default() }, &["3000007 bytes", "3000000"][..]),
        (Faults { wrong_etag: true, ..Faults::default() }, &["SHA-256", "ffff"]),
        (
            Faults { cuts: vec![500], wrong_range: true, ..Faults::default() },
            &["bytes 499-", "bytes 500-2999999/3000000"],
        ),
        (Faults { statuses: vec![418], ..Faults::default() }, &["418"]),
        (Faults { statuses: vec![404], ..Faults::default() }, &["404", "no such"]),
        (Faults { statuses: vec![416; 9], ..Faults::default() }, &["416"]),
        (Faults { statuses: vec![503; 9], ..Faults::default() }, &["503", "later"]),
    ] {
        Case::one(faults).fails("hf:owner/repo", words);
    }
    // A passing trouble passes.
    Case::one(Faults { statuses: vec![503, 429, 500], ..Faults::default() }).pull("hf:owner/repo").unwrap();
    // A body without an end is read to where the file has its end.
    let path = Case::one(Faults { endless: true, ..Faults::default() });
    assert_eq!(fs::read(path.pull("hf:owner/repo").unwrap()).unwrap(), content(0, SIZE));
}

#[test]
fn redirects_lead_to_https_or_stay_on_this_machine() {
    for to in ["http://elsewhere.example/x", "ftp://127.0.0.1/x", "//elsewhere.example/x", "", "http://u:p@127.0.0.1/x"]
    {
        let redirect = Some(to.to_owned());
        Case::one(Faults { redirect, ..Faults::default() }).fails("hf:owner/repo", &["redirect"]);
    }
    let loops = Some(format!("/owner/repo/resolve/{COMMIT}/m.gguf"));
    let case = Case::one(Faults { redirect: loops, ..Faults::default() });
    case.fails("hf:owner/repo", &["more than 5 redirects"]);
    assert_eq!(case.stand_in.seen("resolve").len(), 6);
}

#[test]
fn the_key_goes_to_the_hub_alone() {
    let case = Case::one(Faults { private: true, ..Faults::default() });
    case.fails("hf:owner/repo", &["401", "HF_TOKEN", "/api/models/owner/repo"]);
    let error = case.pull_as("hf:owner/repo", Some("hf_another")).unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("hf_another"), "{error}");
    case.pull_as("hf:owner/repo", Some(KEY)).unwrap();
    let bearer = Some(format!("Bearer {KEY}"));
    assert_eq!(case.stand_in.seen("resolve").last().unwrap().key, bearer);
    // Another port is another server.
    assert_eq!(case.stand_in.seen("signature").last().unwrap().key, None);
}

#[test]
fn repositories_that_are_not_there_or_hold_no_model() {
    Case::one(Faults::default()).fails("hf:owner/other", &["404", "no such repository"]);
    Case::one(Faults::default()).fails("hf:owner/repo:x.gguf", &["hf:owner/repo", "`x.gguf`"]);
    Case::new(&[], Faults::default()).fails("hf:owner/repo", &["no .gguf"]);
    // Nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Hub::new(&address, None).unwrap().list(&"hf:a/b".parse::<Name>().unwrap().repo).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
}

#[test]
fn hostile_listings_are_refused() {
    let files = |name: &str| listing(&[(name.to_owned(), vec![1])].into());
    let mut cases: Vec<(Vec<u8>, &str)> =
        ["../m.gguf", "/m.gguf", "a/../../m.gguf", "a\\m.gguf", "a\u{1b}[2J.gguf", ".gguf"]
            .map(|name| (files(name).to_string().into_bytes(), "no path"))
            .into();
    let mut changed = |path: &str, value: Value, word| {
        let mut listing = files("m.gguf");
        *listing.pointer_mut(path).unwrap() = value;
        cases.push((listing.to_string().into_bytes(), word));
    };
    changed("/sha", json!("../../../other"), "commit");
    changed("/siblings/0/lfs", Value::Null, "SHA-256");
    changed("/siblings/0/lfs/sha256", json!("../x"), "SHA-256");
    changed("/siblings/0/lfs/size", json!(-1), "no listing");
    changed("/siblings", json!("x"), "no listing");
    cases.push((b"<html>".to_vec(), "no listing"));
    cases.push((b"[".repeat(100_000), "no listing"));
    cases.push((vec![b' '; (32 << 20) + 2], "more than"));
    for (listing, word) in cases {
        let case = Case::one(Faults { listing: Some(listing), ..Faults::default() });
        case.fails("hf:owner/repo", &["/api/models/owner/repo", word]);
        assert_eq!(case.files(), [""; 0]);
    }
}

#[test]
fn several_models_are_told_apart_and_split_ones_come_whole() {
    let files = [
        ("Q8 0/b-00001-of-00002.gguf", content(1, 1000)),
        ("Q8 0/b-00002-of-00002.gguf", content(2, 2000)),
        ("a.gguf", content(3, 10)),
    ];
    let case = Case::new(&files, Faults { cuts: vec![400], ..Faults::default() });
    match case.pull("hf:owner/repo").unwrap_err() {
        Error::Several { repo, models } => {
            assert_eq!(repo, "hf:owner/repo");
            assert_eq!(models, [("Q8 0/b-00001-of-00002.gguf".into(), 3000), ("a.gguf".into(), 10)]);
        }
        other => panic!("{other}"),
    }
    assert!(case.stand_in.seen("resolve").is_empty());
    let path = case.pull("hf:owner/repo:Q8 0/b-00002-of-00002.gguf").unwrap();
    assert!(path.ends_with("owner/repo/Q8 0/b-00001-of-00002.gguf"));
    let names = [files[0].0, files[1].0];
    assert_eq!(*case.watch.files.borrow(), names);
    for (name, bytes) in &files[..2] {
        assert_eq!(&fs::read(case.folder.path().join("models/owner/repo").join(name)).unwrap(), bytes);
    }
    let case = Case::new(&files[1..2], Faults::default());
    case.fails(&format!("hf:owner/repo:{}", files[1].0), &["Q8 0/b-00001-of-00002.gguf"]);
}

#[test]
fn two_at_once_do_not_write_one_file() {
    let case = Case::one(Faults { cuts: vec![100, 0, 0, 0, 0], ..Faults::default() });
    case.fails("hf:owner/repo", &["cut"]);
    let part = case.folder.path().join("models/owner/repo").join(&case.files()[0]);
    let held = fs::OpenOptions::new().write(true).open(part).unwrap();
    held.lock().unwrap();
    case.fails("hf:owner/repo", &["another process"]);
    drop(held);
    case.pull("hf:owner/repo").unwrap();
}
