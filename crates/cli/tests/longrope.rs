//! Longrope through the whole path: the attention factor folded into weights, the factor set chosen by the built context.

mod common;

use anemone_chat::Engine;
use anemone_chat::engine::Logits;
use anemone_exec::{Numerics, Options, Portable};
use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use common::*;
use serde_json::Value;

const FILE: &str = "longrope/longrope-f16.gguf";

/// Folding the factor into fp16 rows moves logits by up to 0.011 (the fixture's page has the table).
const TOLERANCE: f32 = 0.02;

/// `(context, ids, logits)` of the short and the long sequence.
fn sequences() -> Vec<(usize, Vec<u32>, Vec<f32>)> {
    let text = std::fs::read_to_string(fixture("longrope/goldens.json")).unwrap();
    let goldens: Value = serde_json::from_str(&text).unwrap();
    let sequence = |s: &Value| {
        let logits = npy(&format!("longrope/{}", s["logits"].as_str().unwrap()));
        (s["context"].as_u64().unwrap() as usize, ids(&s["ids"]), logits)
    };
    goldens["sequences"].as_array().unwrap().iter().map(sequence).collect()
}

/// The largest difference of a logit between a bundle of `model` built for `context` and `expected`.
fn difference(model: &std::path::Path, context: usize, ids: &[u32], expected: &[f32]) -> f32 {
    let bundle = Bundle::build(model, &["--weights", "fp16", "--context", &context.to_string(), "--tokens", "1,16"]);
    let engine = Engine::open(&bundle.path, &Portable::new(Numerics::Exact, Options::default())).unwrap();
    let logits = engine.session().unwrap().feed(ids, Logits::All).unwrap();
    max_abs_difference(&logits, expected)
}

#[test]
fn logits_are_those_of_transformers_with_short_and_with_long_factors() {
    for (context, ids, expected) in sequences() {
        let difference = difference(&fixture(FILE), context, &ids, &expected);
        assert!(difference < TOLERANCE, "context {context}: logits differ by {difference}");
    }
}

#[test]
fn a_lost_or_misapplied_attention_factor_shows() {
    let original = Gguf::open(fixture(FILE)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let factor = original.metadata().f32("phi3.rope.scaling.attn_factor").unwrap();
    for (name, value) in [("lost", 1.0f32), ("applied twice", factor * factor)] {
        let mut writer = Writer::copy_of(&original);
        writer.key("phi3.rope.scaling.attn_factor", value);
        let path = folder.path().join("changed.gguf");
        writer.write_to(&path).unwrap();
        for (context, ids, expected) in sequences() {
            let difference = difference(&path, context, &ids, &expected);
            assert!(difference > 50.0 * TOLERANCE, "{name}, context {context}: logits differ by only {difference}");
        }
    }
}

#[test]
fn the_factor_set_follows_the_built_context() {
    let sequences = sequences();
    let (_, ids, expected) = &sequences[0];
    let difference = difference(&fixture(FILE), 256, ids, expected);
    assert!(difference > 1.0, "the short sequence with long factors differs by only {difference}");
}
