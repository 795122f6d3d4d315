//! A real model through the whole path: SmolLM2-135M-Instruct against transformers on the same dequantised weights.
//!
//! The weights are fetched by `fixtures/fetch smollm2` and named by `ANEMONE_SMOLLM2`; `ci/test` sets it.

mod common;

use std::path::PathBuf;

use anemone_chat::engine::Logits;
use anemone_chat::sample::log_softmax;
use anemone_chat::{Engine, Session};
use anemone_exec::{Fast, FastOptions, Numerics, Options, Portable, Runtime};
use common::*;
use serde_json::{Value, json};

/// The model, or `None` with a note where nobody fetched it. In CI that is an error.
fn model() -> Option<PathBuf> {
    match std::env::var_os("ANEMONE_SMOLLM2") {
        Some(path) => Some(path.into()),
        None if std::env::var_os("CI").is_some() => panic!("ANEMONE_SMOLLM2 is not set: run through ci/test"),
        None => {
            eprintln!("not tested: set ANEMONE_SMOLLM2=$(fixtures/fetch smollm2)");
            None
        }
    }
}

/// Where the reference itself has two candidates closer than this, either is right.
const SURE: f64 = 0.05;

#[test]
fn greedy_answers_are_those_of_transformers() {
    let Some(model) = model() else { return };
    let bundle = Bundle::build(&model, &["--weights", "fp16", "--context", "256"]);
    let lines = json_lines("smollm2/prompts.jsonl");
    let request = |l: &Value| {
        let max_tokens = l["expected_ids"].as_array().unwrap().len();
        json!({"id": l["id"], "messages": l["messages"], "max_tokens": max_tokens})
    };
    let answers = bundle.batch(&lines.iter().map(request).collect::<Vec<_>>(), &["--numerics", "exact"]);
    assert_eq!((answers.len(), lines.len()), (16, 16));
    let mut equal = 0;
    for (line, answer) in lines.iter().zip(&answers) {
        assert_eq!(line["prompt_ids"], answer["prompt_ids"], "prompt {}", line["id"]);
        let (expected, found) = (ids(&line["expected_ids"]), ids(&answer["ids"]));
        match expected.iter().zip(&found).position(|(e, f)| e != f) {
            None => equal += usize::from(expected.len() == found.len()),
            Some(at) => {
                let margin = line["margins"][at].as_f64().unwrap();
                assert!(margin < SURE, "prompt {}: token {at} differs where the margin is {margin}", line["id"]);
            }
        }
    }
    println!("{equal} of 16 answers are equal to the last token");
    assert!(equal >= 12, "only {equal} of 16 answers are equal to the last token");
}

/// Sums of one bundle over the text, in nats.
#[derive(Default)]
struct Cost {
    nll: f64,
    /// From the distributions of another engine.
    kl: f64,
}

/// An engine, and the number of the one that it is compared with.
type Compared = (Engine, usize);

/// Feeds the text to all engines side by side, a block at a time, so that no more than a block of logits is in memory.
fn costs(engines: &[Compared], text: &[u32]) -> Vec<Cost> {
    let vocab = engines[0].0.contract().vocab;
    let mut sessions: Vec<Session<'_>> = engines.iter().map(|(e, _)| e.session().unwrap()).collect();
    let mut costs: Vec<Cost> = engines.iter().map(|_| Cost::default()).collect();
    for start in (0..text.len()).step_by(32) {
        let block = &text[start..text.len().min(start + 32)];
        let logits: Vec<_> = sessions.iter_mut().map(|s| s.feed(block, Logits::All).unwrap()).collect();
        for i in 0..block.len() {
            let Some(&next) = text.get(start + i + 1) else { continue };
            let row = |l: &Vec<f32>| log_softmax(&l[i * vocab..(i + 1) * vocab]).unwrap();
            let rows: Vec<_> = logits.iter().map(row).collect();
            for ((cost, own), (_, base)) in costs.iter_mut().zip(&rows).zip(engines) {
                let base = &rows[*base];
                cost.nll -= f64::from(own[next as usize]);
                cost.kl += base
                    .iter()
                    .zip(own)
                    .map(|(&b, &o)| f64::from(b).exp() * (f64::from(b) - f64::from(o)))
                    .sum::<f64>();
            }
        }
    }
    costs
}

/// Tokens of the text that are looked at where nobody asks for all.
const EXCERPT: usize = 640;

/// What each weight mode costs on a text that no model has seen, and what the fast runtime adds. The README quotes what this
/// prints with `ANEMONE_WHOLE_TEXT=1`, of all 2,000 tokens: minutes of exact arithmetic.
#[test]
fn weight_modes_cost_what_is_stated() {
    let Some(model) = model() else { return };
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(fixture("smollm2/text.json")).unwrap()).unwrap();
    let mut text = ids(&golden["ids"]);
    if std::env::var_os("ANEMONE_WHOLE_TEXT").is_none() {
        text.truncate(EXCERPT);
    }
    let nlls = golden["nlls"].as_array().unwrap()[..text.len() - 1].iter().map(|v| v.as_f64().unwrap());
    let expected = nlls.sum::<f64>() / (text.len() - 1) as f64;
    let exact = Portable::new(Numerics::Exact, Options::default());
    let fast = Fast::new(FastOptions::default());
    let modes = [("fp16", 0.001), ("int8-channel", 0.03), ("int8", 0.25)];
    let bundles = modes.map(|(weights, _)| Bundle::build(&model, &["--weights", weights, "--context", "2048"]));
    let open = |i: usize, runtime: &dyn Runtime, base: usize| (Engine::open(&bundles[i].path, runtime).unwrap(), base);
    let mut engines: Vec<Compared> = (0..modes.len()).map(|i| open(i, &exact, 0)).collect();
    engines.extend((0..modes.len()).map(|i| open(i, &fast, i)));
    println!("{:20} {:>9} {:>9}", "weights", "NLL", "KL");
    let tokens = (text.len() - 1) as f64;
    let costs = costs(&engines, &text);
    for ((weights, most), cost) in modes.into_iter().zip(&costs) {
        let (nll, kl) = (cost.nll / tokens, cost.kl / tokens);
        println!("{weights:20} {nll:9.5} {kl:9.2e}");
        let more = nll - expected;
        assert!(more.abs() < most, "{weights}: NLL moves by {more}");
        assert!(kl < most, "{weights}: KL {kl}");
    }
    for ((weights, _), cost) in modes.into_iter().zip(&costs[modes.len()..]) {
        let (nll, kl) = (cost.nll / tokens, cost.kl / tokens);
        println!("{:20} {nll:9.5} {kl:9.2e}", format!("{weights}, fast"));
        assert!(kl.abs() < 1e-5, "{weights}: KL of fast from exact {kl}");
    }
}
