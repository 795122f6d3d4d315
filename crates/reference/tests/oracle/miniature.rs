//! The trained miniature against what transformers answered in f32: a judge that nobody here wrote.

use std::sync::Arc;

use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use anemone_reference::{Error, Form, Model, Options, Part, Stage, Weight, Weights};

use crate::common::*;

const F16: &str = "miniature/miniature-f16.gguf";

/// (prompt, answer) of every line.
fn prompts(path: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    json_lines(path).iter().map(|line| (ids(&line["prompt_ids"]), ids(&line["expected_ids"]))).collect()
}

fn survivors(model: &Model, prompts: &[(Vec<u32>, Vec<u32>)]) -> usize {
    prompts.iter().filter(|(prompt, expected)| answers(model, prompt, expected)).count()
}

#[test]
fn all_forty_prompts_are_answered_token_for_token() {
    for path in [F16, "miniature/miniature-q8_0.gguf"] {
        assert_eq!(survivors(&model(path, 512), &prompts("miniature/prompts.jsonl")), 40, "{path}");
    }
}

#[test]
fn all_sixty_unseen_prompts_are_answered_token_for_token() {
    assert_eq!(survivors(&model(F16, 512), &prompts("miniature/unseen.jsonl")), 60);
}

#[test]
fn the_last_logits_are_those_of_transformers() {
    let model = model(F16, 512);
    let (shape, expected) = npy("miniature/logits_last.npy");
    assert_eq!(shape, [40, 1024]);
    for ((prompt, _), expected) in prompts("miniature/prompts.jsonl").iter().zip(expected.chunks(1024)) {
        let found = model.forward_last(prompt, &mut model.cache()).unwrap();
        let difference = max_abs_difference(&found, expected);
        assert!(difference < 0.01, "logits differ by {difference}");
    }
}

/// The miniature with one key replaced.
fn patched(key: &str, value: u32) -> Model {
    let original = gguf(F16);
    let mut writer = Writer::copy_of(&original);
    writer.key(key, value);
    let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
    Model::open(Arc::new(gguf), Options::new(512)).unwrap()
}

/// The failure this project is about: every dimension rotated instead of 96 of 128.
#[test]
fn rotating_all_dimensions_leaves_at_most_two_of_forty() {
    let prompts = prompts("miniature/prompts.jsonl");
    assert_eq!(survivors(&patched("phi3.rope.dimension_count", 96), &prompts), 40);
    let left = survivors(&patched("phi3.rope.dimension_count", 128), &prompts);
    assert!(left <= 2, "{left} survive");
}

#[test]
fn a_token_does_not_depend_on_how_it_was_computed() {
    let model = model(F16, 512);
    let (prompt, answer) = &prompts("miniature/prompts.jsonl")[0];
    let ids = [prompt.as_slice(), answer].concat();
    let together = model.forward(&ids, &mut model.cache()).unwrap();

    let mut cache = model.cache();
    let one_by_one: Vec<f32> = ids.iter().flat_map(|&id| model.forward(&[id], &mut cache).unwrap()).collect();
    assert_eq!(together, one_by_one, "token by token");

    // Layers in two ranges, the second after the whole first.
    let mut cache = model.cache();
    let mut hidden = model.embed(&ids).unwrap();
    model.layer_range(0..3, &mut hidden, &mut cache, 0).unwrap();
    model.layer_range(3..4, &mut hidden, &mut cache, 0).unwrap();
    assert_eq!(together, model.head(&hidden).unwrap(), "in two ranges");

    // A position run again replaces what was there.
    cache.truncate(ids.len() - 1);
    let last = &ids[ids.len() - 1..];
    let mut hidden = model.embed(last).unwrap();
    model.layer_range(0..4, &mut hidden, &mut cache, ids.len() - 1).unwrap();
    assert_eq!(model.head(&hidden).unwrap(), together[together.len() - 1024..], "run again");

    // Windows that leave nothing out.
    let mut hidden = model.embed(&ids).unwrap();
    let (a, b, n) = (3, 7, ids.len());
    model.layer_windows(0..4, &mut hidden, &mut model.cache(), &[0..a, a..b, b..n], None).unwrap();
    assert_eq!(together, model.head(&hidden).unwrap(), "in windows");

    let unkept = Model::open(gguf(F16), Options { context: 512, keep_weights: false }).unwrap();
    assert_eq!(together, unkept.forward(&ids, &mut unkept.cache()).unwrap(), "weights not kept");
}

/// Windows apart are one call after another, and what lies between them is zeros that every later token sees.
#[test]
fn positions_that_windows_leave_out_are_zeros() {
    let model = model(F16, 64);
    let mut together = model.embed(&[11, 12, 13, 14]).unwrap();
    let mut one_by_one = together.clone();
    let (mut cache, mut other) = (model.cache(), model.cache());
    model.layer_windows(0..4, &mut together, &mut cache, &[2..4, 9..11], None).unwrap();
    let (first, second) = one_by_one.split_at_mut(2 * 256);
    model.layer_windows(0..4, first, &mut other, std::slice::from_ref(&(2..4)), None).unwrap();
    model.layer_windows(0..4, second, &mut other, std::slice::from_ref(&(9..11)), None).unwrap();
    assert_eq!(together, one_by_one);
    for layer in 0..4 {
        assert_eq!((cache.keys(layer), cache.values(layer)), (other.keys(layer), other.values(layer)));
        assert_eq!(cache.positions(layer), 11);
        let row = cache.keys(layer).len() / 11;
        let at = |position: usize| &cache.keys(layer)[position * row..(position + 1) * row];
        assert!((0..11).all(|p| at(p).iter().all(|v| *v == 0.0) != [2, 3, 9, 10].contains(&p)), "layer {layer}");
    }
    // A key of zeros has a score of 0 and takes its share: two zeros before a token are not none.
    let mut alone = model.embed(&[11, 12]).unwrap();
    model.layer_range(0..4, &mut alone, &mut model.cache(), 0).unwrap();
    assert_ne!(together[..2 * 256], alone);
}

/// The model's own weights with q halved and k doubled: other numbers, the same scores.
struct Doubled(Arc<dyn Weights>);

impl Weights for Doubled {
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
        self.0.row(weight, row, out)?;
        match weight {
            Weight::Layer(_, Part::Query) => out.iter_mut().for_each(|x| *x *= 0.5),
            Weight::Layer(_, Part::Key) => out.iter_mut().for_each(|x| *x *= 2.0),
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn the_same_forward_runs_on_other_weights() {
    let model = model(F16, 512);
    let ids = [1, 2, 3, 4, 5];
    let expected = model.forward(&ids, &mut model.cache()).unwrap();
    let other = model.with_weights(Arc::new(Doubled(model.source().clone())), Form::Shard);
    let mut cache = other.cache();
    assert_eq!(other.forward(&ids, &mut cache).unwrap(), expected);
    let mut own = model.cache();
    model.forward(&ids, &mut own).unwrap();
    assert!(cache.keys(0).iter().zip(own.keys(0)).all(|(a, b)| *a == 2.0 * b), "the other weights were used");
    assert_eq!((cache.values(3), cache.positions(3), other.weights().count()), (own.values(3), 5, 3 + 4 * 9));
}

#[test]
fn stages_are_told_in_order_and_change_nothing() {
    let model = model(F16, 64);
    let ids = [1009, 876, 885, 976];
    let (mut plain, mut tapped) = (model.embed(&ids).unwrap(), model.embed(&ids).unwrap());
    model.layer_range(0..4, &mut plain, &mut model.cache(), 0).unwrap();
    let mut told = Vec::new();
    let mut tap = |layer: usize, stage: Stage, rows: &[f32]| told.push((layer, stage, rows.to_vec()));
    model.layer_range_tapped(0..4, &mut tapped, &mut model.cache(), 0, Some(&mut tap)).unwrap();
    assert_eq!(plain, tapped);
    assert!(told.is_sorted_by_key(|(layer, stage, _)| (*layer, *stage)), "stages out of order");
    assert_eq!(told.len(), 4 * 19);
    let (_, _, last) = told.pop().unwrap();
    assert_eq!(last, plain);
    for (_, _, weights) in told.iter().filter(|(_, stage, _)| *stage == Stage::Weights) {
        let sums: Vec<f32> = weights.chunks_exact(ids.len()).map(|row| row.iter().sum()).collect();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{sums:?}");
    }
}

#[test]
fn what_is_asked_for_wrongly_is_refused() {
    let model = model(F16, 16);
    let mut cache = model.cache();
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(message(model.embed(&[1024]).map(drop)), "token 1024 is outside the vocabulary of 1024");
    let mut hidden = vec![0.0; 256];
    assert_eq!(
        message(model.layer_range(2..5, &mut hidden, &mut cache, 0)),
        "layers 2..5 do not exist: the model has 4"
    );
    assert_eq!(
        message(model.layer_range(0..4, &mut hidden, &mut cache, 3)),
        "1 tokens at position 3: layer 0 has seen 0 positions"
    );
    assert_eq!(message(model.layer_range(0..4, &mut hidden[1..], &mut cache, 0)), "255 values are not rows of 256");
    let mut windows = |windows: &[std::ops::Range<usize>]| {
        message(model.layer_windows(0..4, &mut hidden, &mut model.cache(), windows, None))
    };
    let two = 0..2;
    for wrong in [&[3..4, 2..2][..], std::slice::from_ref(&two), &[]] {
        assert!(windows(wrong).contains("do not hold as many in ascending order"), "{wrong:?}: {}", windows(wrong));
    }
    assert_eq!(windows(std::slice::from_ref(&(16..17))), "1 tokens at position 16: the context is 16");
    assert_eq!(message(model.head(&hidden[1..]).map(drop)), "255 values are not rows of 256");
    model.forward(&[7; 16], &mut cache).unwrap();
    assert_eq!(message(model.forward(&[7], &mut cache).map(drop)), "1 tokens at position 16: the context is 16");
}
