//! What targets and seeds agree on: how several parts lie in one input, how they become a package, and what a function is given.
//!
//! A fuzzer mutates one run of bytes. Where a target needs several (a package is three files), each part but the last is
//! preceded by its length in four little-endian bytes. A length beyond the end means all that is left, so that every
//! input has all of its parts and none is wasted.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anemone_exec::{Data, Dtype, Port, Tensor};

/// Weights are mapped from files, so a package must be a folder; one for all runs of this process, in memory where that exists.
pub static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
});

const MANIFEST: &[u8] = br#"{"fileFormatVersion": "1.0.0", "itemInfoEntries": {
    "m": {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel", "author": "com.apple.CoreML", "description": ""},
    "w": {"path": "com.apple.CoreML/weights", "name": "weights", "author": "com.apple.CoreML", "description": ""}
}, "rootModelIdentifier": "m"}"#;

/// The package whose manifest, model and weights are an input's parts; without a manifest it has the usual one. Files are made
/// anew: one that is still mapped must not change under its reader.
pub fn package(data: &[u8]) -> PathBuf {
    let [manifest, model, weights] = split::<3>(data);
    let package = FOLDER.path().join("given.mlpackage");
    let data = package.join("Data/com.apple.CoreML");
    std::fs::create_dir_all(data.join("weights")).expect("folders");
    for (path, bytes) in [
        (package.join("Manifest.json"), if manifest.is_empty() { MANIFEST } else { manifest }),
        (data.join("model.mlmodel"), model),
        (data.join("weights/weight.bin"), weights),
    ] {
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).expect("a file");
    }
    package
}

/// A tensor for an input of a function: element `i` is `value(i)`, and `free` is each dimension known at run time only. `None`
/// where it would have more than `most` elements.
pub fn tensor(port: &Port, free: usize, float: Dtype, most: usize, value: impl Fn(usize) -> f32) -> Option<Tensor> {
    let shape: Vec<usize> = port.shape.iter().map(|d| d.unwrap_or(free)).collect();
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= most)?;
    let values = (0..count).map(value);
    Some(match port.dtype {
        Dtype::I32 => Tensor::new(&shape, Data::I32(values.map(|v| v as i32).collect())),
        Dtype::F32 => Tensor::new(&shape, Data::F32(values.collect())),
        _ => Tensor::from_f32(&shape, values.collect(), float),
    })
}

/// The parts of an input.
pub fn split<const N: usize>(mut data: &[u8]) -> [&[u8]; N] {
    std::array::from_fn(|i| {
        if i + 1 == N {
            return data;
        }
        let (length, rest) =
            data.split_first_chunk::<4>().map_or((0, data), |(l, rest)| (u32::from_le_bytes(*l) as usize, rest));
        let (part, rest) = rest.split_at(length.min(rest.len()));
        data = rest;
        part
    })
}

/// An input of those parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if i + 1 < parts.len() {
            data.extend((part.len() as u32).to_le_bytes());
        }
        data.extend(*part);
    }
    data
}
