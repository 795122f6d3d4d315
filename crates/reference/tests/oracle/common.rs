//! What the tests share: fixtures, NumPy files, greedy answers.

use std::path::PathBuf;
use std::sync::Arc;

use anemone_gguf::Gguf;
use anemone_reference::{Model, Options};
use serde_json::Value;

pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

pub fn gguf(path: &str) -> Arc<Gguf> {
    Arc::new(Gguf::open(fixture(path)).unwrap())
}

pub fn model(path: &str, context: usize) -> Model {
    Model::open(gguf(path), Options::new(context)).unwrap()
}

pub fn json_lines(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The values of a C-ordered little-endian f32 `.npy`, and its shape.
pub fn npy(path: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(fixture(path)).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header_len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + header_len]).unwrap();
    assert!(header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let shape: Vec<usize> = shape.split(',').filter_map(|dim| dim.trim().parse().ok()).collect();
    let values: Vec<f32> = bytes[10 + header_len..].as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    assert_eq!(values.len(), shape.iter().product::<usize>());
    (shape, values)
}

/// The index of the largest, the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

pub fn max_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Whether greedy decoding from `prompt` gives exactly `expected`.
pub fn answers(model: &Model, prompt: &[u32], expected: &[u32]) -> bool {
    let mut cache = model.cache();
    let mut logits = model.forward_last(prompt, &mut cache).unwrap();
    for (i, &id) in expected.iter().enumerate() {
        if argmax(&logits) != id {
            return false;
        }
        if i + 1 < expected.len() {
            logits = model.forward_last(&[id], &mut cache).unwrap();
        }
    }
    true
}
