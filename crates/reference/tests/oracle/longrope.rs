//! The longrope fixture against transformers: logits, because greedy tokens forgive a lost attention factor.

use std::sync::Arc;

use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use anemone_reference::{Error, Form, Model, Options, Part, Weight, Weights};

use crate::common::*;

const FILE: &str = "longrope/longrope-f16.gguf";
/// Ids and expected logits of "short" and "long", and the context that chooses the factors.
fn sequences() -> Vec<(String, usize, Vec<u32>, Vec<f32>)> {
    let text = std::fs::read_to_string(fixture("longrope/goldens.json")).unwrap();
    let goldens: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sequences = goldens["sequences"].as_array().unwrap().iter().map(|s| {
        let logits = npy(&format!("longrope/{}", s["logits"].as_str().unwrap())).1;
        let context = s["context"].as_u64().unwrap() as usize;
        (s["name"].as_str().unwrap().to_owned(), context, ids(&s["ids"]), logits)
    });
    sequences.collect()
}

fn difference(model: &Model, ids: &[u32], expected: &[f32]) -> f32 {
    max_abs_difference(&model.forward(ids, &mut model.cache()).unwrap(), expected)
}

/// The fixture, changed.
fn changed(context: usize, change: impl Fn(&mut Writer)) -> Model {
    let original = gguf(FILE);
    let mut writer = Writer::copy_of(&original);
    change(&mut writer);
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Model::open(Arc::new(gguf), Options::new(context)).unwrap()
}

#[test]
fn logits_with_short_and_with_long_factors_are_those_of_transformers() {
    for (name, context, ids, expected) in sequences() {
        let difference = difference(&model(FILE, context), &ids, &expected);
        assert!(difference < 0.01, "{name}: logits differ by {difference}");
    }
}

#[test]
fn a_lost_attention_factor_or_the_wrong_factors_show() {
    for (name, context, ids, expected) in sequences() {
        let lost = changed(context, |w| {
            w.key("phi3.rope.scaling.attn_factor", 1.0f32);
        });
        assert!(difference(&lost, &ids, &expected) > 1.0, "{name}: attention factor lost");
        // An original context beyond or below the built one chooses the other set.
        let other = if name == "short" { 1 } else { 1024 };
        let swapped = changed(context, |w| {
            w.key("phi3.rope.scaling.original_context_length", other as u32);
        });
        assert!(difference(&swapped, &ids, &expected) > 1.0, "{name}: factors swapped");
    }
}

#[test]
fn the_attention_factor_of_the_formula_is_that_of_the_key() {
    let without = {
        let original = gguf(FILE);
        let mut writer = Writer::new("phi3");
        for (key, value) in original.metadata().iter().filter(|(key, _)| !key.ends_with("attn_factor")) {
            writer.key(key, value.clone());
        }
        for info in original.tensors() {
            writer.tensor(&info.name, &info.shape, info.ty, original.tensor(&info.name).unwrap().bytes());
        }
        Model::open(Arc::new(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()), Options::new(64)).unwrap()
    };
    // Context 256 over 64: sqrt(1 + ln 4 / ln 64) = sqrt(4/3).
    assert!((without.rope().attention_factor - (4f64 / 3.0).sqrt()).abs() < 1e-12);
    assert!((model(FILE, 64).rope().attention_factor - (4f64 / 3.0).sqrt()).abs() < 1e-7);
}

/// The weights as a shard holds them: the attention factor in the rotary rows of q and k.
struct Folded {
    source: Arc<dyn Weights>,
    factor: f32,
}

impl Weights for Folded {
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
        self.source.row(weight, row, out)?;
        if matches!(weight, Weight::Layer(_, Part::Query | Part::Key)) && row % 128 < 96 {
            out.iter_mut().for_each(|x| *x *= self.factor);
        }
        Ok(())
    }
}

#[test]
fn folding_the_attention_factor_into_the_rows_changes_nothing() {
    for (name, context, ids, expected) in sequences() {
        let model = model(FILE, context);
        let folded = Folded { source: model.source().clone(), factor: model.rope().attention_factor as f32 };
        let folded = model.with_weights(Arc::new(folded), Form::Shard);
        assert!(difference(&folded, &ids, &expected) < 0.01, "{name}");
    }
}
