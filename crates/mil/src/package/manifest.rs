//! `Manifest.json`: what a package holds, and which of it is the model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ReadError;

/// The file's name in a package.
pub const NAME: &str = "Manifest.json";
/// Where the model is, below `Data`.
pub const MODEL_PATH: &str = "com.apple.CoreML/model.mlmodel";
/// Where its weights are, below `Data`.
pub const WEIGHTS_PATH: &str = "com.apple.CoreML/weights";
const AUTHOR: &str = "com.apple.CoreML";
const MAX_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    file_format_version: String,
    item_info_entries: BTreeMap<String, Item>,
    root_model_identifier: String,
}

#[derive(Serialize, Deserialize)]
struct Item {
    author: String,
    description: String,
    name: String,
    path: String,
}

/// The path of the model of a package, after checking the manifest by the rules of Core ML's own package library: the version,
/// every entry's fields, every entry's file, and the root entry.
pub fn model_path(package: &Path) -> Result<PathBuf, ReadError> {
    let path = package.join(NAME);
    let fail = |message: String| ReadError::Manifest { path: path.clone(), message };
    let io = |source| ReadError::Io { path: path.clone(), source };
    let meta = std::fs::metadata(&path).map_err(io)?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Err(fail(format!("not a file of at most {MAX_BYTES} bytes")));
    }
    let mut text = String::new();
    File::open(&path).map_err(io)?.take(MAX_BYTES).read_to_string(&mut text).map_err(io)?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    check_version(&manifest.file_format_version).map_err(&fail)?;
    for (id, item) in &manifest.item_info_entries {
        if !Path::new(&item.path).components().all(|c| matches!(c, Component::Normal(_))) {
            return Err(fail(format!("entry {id:?}: path {:?} may not lead out of the package", item.path)));
        }
        let file = package.join("Data").join(&item.path);
        if !file.exists() {
            return Err(fail(format!("entry {id:?}: there is no {}", file.display())));
        }
    }
    match manifest.item_info_entries.get(&manifest.root_model_identifier) {
        Some(root) => Ok(package.join("Data").join(&root.path)),
        None => Err(fail(format!("rootModelIdentifier {:?} names no entry", manifest.root_model_identifier))),
    }
}

/// Three numbers, not beyond 1.0.0.
fn check_version(version: &str) -> Result<(), String> {
    let parts: Option<Vec<u32>> = version.split('.').map(|p| p.parse().ok()).collect();
    match parts.as_deref() {
        Some([major, minor, patch]) if (*major, *minor, *patch) <= (1, 0, 0) => Ok(()),
        Some([_, _, _]) => Err(format!("fileFormatVersion {version}, 1.0.0 is the newest known")),
        _ => Err(format!("fileFormatVersion {version:?}, expected three numbers with dots between")),
    }
}

/// The manifest of a package with a model and weights. Its identifiers are made from the model's content, so that the same
/// content has the same manifest.
pub fn text(model: &[u8]) -> String {
    let item = |name: &str, path: &str, description: &str| Item {
        author: AUTHOR.to_owned(),
        description: description.to_owned(),
        name: name.to_owned(),
        path: path.to_owned(),
    };
    let (model_id, weights_id) = (identifier(MODEL_PATH, model), identifier(WEIGHTS_PATH, model));
    let manifest = Manifest {
        file_format_version: "1.0.0".to_owned(),
        item_info_entries: BTreeMap::from([
            (model_id.clone(), item("model.mlmodel", MODEL_PATH, "CoreML Model Specification")),
            (weights_id, item("weights", WEIGHTS_PATH, "CoreML Model Weights")),
        ]),
        root_model_identifier: model_id,
    };
    // Strings and maps of strings always serialise.
    serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n"
}

/// A hash in the shape of a UUID: version 8, which is for contents of one's own making.
fn identifier(path: &str, model: &[u8]) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(path.as_bytes()).update(b"\0").update(model);
    let mut b = [0u8; 16];
    hash.finalize_xof().fill(&mut b);
    b[6] = b[6] & 0x0f | 0x80;
    b[8] = b[8] & 0x3f | 0x80;
    let hex: Vec<String> = b.iter().map(|b| format!("{b:02X}")).collect();
    let part = |r: std::ops::Range<usize>| hex[r].concat();
    format!("{}-{}-{}-{}-{}", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
}
