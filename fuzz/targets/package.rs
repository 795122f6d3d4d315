//! A package of anyone's is refused with an error, or it prints, its constants decode, and what our writer makes of it reads
//! back as the same program.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anemone_fuzz::split;
use anemone_mil::text::to_text;
use anemone_mil::{open, read, validate, write};
use libfuzzer_sys::fuzz_target;

/// Weights are mapped from files, so a package must be a folder; one for all runs of this process, in memory where that exists.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
});

const MANIFEST: &[u8] = br#"{"fileFormatVersion": "1.0.0", "itemInfoEntries": {
    "m": {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel", "author": "com.apple.CoreML", "description": ""},
    "w": {"path": "com.apple.CoreML/weights", "name": "weights", "author": "com.apple.CoreML", "description": ""}
}, "rootModelIdentifier": "m"}"#;

/// The folder, holding those files. Files are made anew: one that is still mapped must not change under its reader.
fn package(manifest: &[u8], model: &[u8], weights: &[u8]) -> PathBuf {
    let package = FOLDER.path().join("given.mlpackage");
    let data = package.join("Data/com.apple.CoreML");
    std::fs::create_dir_all(data.join("weights")).expect("folders");
    for (path, bytes) in [
        (package.join("Manifest.json"), manifest),
        (data.join("model.mlmodel"), model),
        (data.join("weights/weight.bin"), weights),
    ] {
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("a file");
    }
    package
}

fuzz_target!(|data: &[u8]| {
    let [manifest, model, weights] = split::<3>(data);
    let package = package(if manifest.is_empty() { MANIFEST } else { manifest }, model, weights);
    let Ok((program, _)) = open(&package) else { return };
    let text = to_text(&program);
    // Lenient in what is read, strict in what is written: only what is valid by our own rules goes on.
    let Ok(valid) = read(&package).map_err(drop).and_then(|p| validate(p).map_err(drop)) else { return };
    let again = FOLDER.path().join("written.mlpackage");
    let _ = std::fs::remove_dir_all(&again);
    write(&valid, &again).expect("what is valid can be written");
    assert_eq!(to_text(&read(&again).expect("what our writer wrote is read")), text);
});
