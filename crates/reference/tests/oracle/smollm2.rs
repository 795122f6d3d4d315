//! SmolLM2-135M-Instruct against transformers in f32 on the same dequantised weights. Its 93 MB are not in the
//! repository: the test runs where `ANEMONE_SMOLLM2` names the file that `fixtures/fetch smollm2` prints, and wants
//! `--release`.

use std::sync::Arc;

use anemone_gguf::Gguf;
use anemone_reference::{Model, Options};

use crate::common::*;

fn smollm2(context: usize) -> Option<Model> {
    let Some(path) = std::env::var_os("ANEMONE_SMOLLM2") else {
        eprintln!("skipped: ANEMONE_SMOLLM2 names no file");
        return None;
    };
    Some(Model::open(Arc::new(Gguf::open(path).unwrap()), Options::new(context)).unwrap())
}

/// Each expected token follows from the prompt and the expected tokens before it, so the greedy answer is the expected
/// one, unless a token is second where the first is no more than 0.05 ahead in the goldens.
#[test]
fn greedy_answers_are_those_of_transformers() {
    let Some(model) = smollm2(2048) else { return };
    for line in json_lines("smollm2/prompts.jsonl") {
        let (prompt, expected) = (ids(&line["prompt_ids"]), ids(&line["expected_ids"]));
        let all = [prompt.as_slice(), &expected].concat();
        let hidden = model.hidden(&all[..all.len() - 1], &mut model.cache()).unwrap();
        let width = model.hyperparameters().width;
        let logits = model.head(&hidden[(prompt.len() - 1) * width..]).unwrap();
        for (i, logits) in logits.chunks(model.vocabulary()).enumerate() {
            let sure = line["margins"][i].as_f64().unwrap() >= 0.05;
            assert!(argmax(logits) == expected[i] || !sure, "prompt {} differs at token {i}", line["id"]);
        }
        for top in line["first_top"].as_array().unwrap() {
            let (id, logit) = (top[0].as_u64().unwrap() as usize, top[1].as_f64().unwrap() as f32);
            assert!((logits[id] - logit).abs() < 0.01, "prompt {}: {} against {logit}", line["id"], logits[id]);
        }
    }
}

#[test]
fn the_logits_after_two_thousand_tokens_are_those_of_transformers() {
    let Some(model) = smollm2(2048) else { return };
    let text = std::fs::read_to_string(fixture("smollm2/text.json")).unwrap();
    let text: serde_json::Value = serde_json::from_str(&text).unwrap();
    let logits = model.forward_last(&ids(&text["ids"]), &mut model.cache()).unwrap();
    let difference = max_abs_difference(&logits, &npy("smollm2/text_last.npy").1);
    assert!(difference < 0.02, "logits differ by {difference}");
}
