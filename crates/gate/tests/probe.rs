//! The contract probe on models whose right contract is known: how often it cries wolf, and how often it sleeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anemone_chat::{ChatTemplate, Tokenizer, Voice};
use anemone_gate::Verdict;
use anemone_gate::probe::{Neighbour, Outcome, neighbours, probe, unjudged};
use anemone_gate::prompts::{self, Prompt};
use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use anemone_reference::{Hypothesis, Model, Options};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn model(gguf: Gguf) -> Model {
    Model::open(Arc::new(gguf), Options::new(128)).unwrap()
}

/// The file with another rotary width: nothing else in it contradicts that.
fn patched(gguf: &Gguf, key: &str, dim: u32) -> Gguf {
    let mut writer = Writer::copy_of(gguf);
    writer.key(key, dim);
    Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()
}

/// Prompts that the miniature was trained on, with the answers transformers gives.
fn trained(count: usize) -> Vec<Prompt> {
    let text = std::fs::read_to_string(fixture("miniature/prompts.jsonl")).unwrap();
    let ids = |v: &serde_json::Value| v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let lines =
        text.lines().step_by(3).take(count).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|l| Prompt { name: l["id"].to_string(), ids: ids(&l["prompt_ids"]), expected: None }).collect()
}

fn run(model: &Model, base: f64, prompts: &[Prompt], stop: u32) -> Outcome {
    let all = neighbours(model, base);
    let outcome = probe(model, &all, &unjudged(model), prompts, &|id| id == stop, |_| {}).unwrap();
    println!("{}: {}", outcome.verdict.name(), outcome.message);
    for c in outcome.neighbours.iter().take(4).chain(&outcome.unjudged) {
        println!(
            "    {} doubt {:+.3} surprise {:+.3?} better {:.2} of {}",
            c.name, c.doubt, c.surprise, c.better, c.prompts
        );
    }
    outcome
}

#[test]
fn the_miniature_passes_and_its_patched_width_is_refused_naming_96() {
    let right = Gguf::open(fixture("miniature/miniature-f16.gguf")).unwrap();
    let wrong = model(patched(&right, "phi3.rope.dimension_count", 128));
    assert_eq!(run(&model(right), 1e4, &trained(13), 1008).verdict, Verdict::Passed);
    let refused = run(&wrong, 1e4, &trained(13), 1008);
    assert_eq!(refused.verdict, Verdict::Failed);
    assert!(refused.message.contains("rope.dim = 96"), "{}", refused.message);
}

/// Equal but for the last bits of the frequencies: the right contract may be a neighbour in other words.
fn same(a: &Hypothesis, b: &Hypothesis) -> bool {
    let close = |(x, y): (&f64, &f64)| (x / y - 1.0).abs() < 1e-6;
    let (f, g) = (&a.rope.frequencies, &b.rope.frequencies);
    f.len() == g.len() && f.iter().zip(g).all(close) && (a.rope.pairing, a.variant) == (b.rope.pairing, b.variant)
}

/// Each neighbour of the right contract is declared in its turn. The right one is then a neighbour of it, and has to be named.
/// `docs/gates.md` quotes what this prints.
#[test]
fn few_wrong_contracts_of_the_miniature_go_unnoticed() {
    let right = model(Gguf::open(fixture("miniature/miniature-f16.gguf")).unwrap());
    let prompts = trained(8);
    right.forward_last(&prompts[0].ids, &mut right.cache()).unwrap(); // loads what the others share
    let (mut tried, mut refused, mut passed) = (0, 0, Vec::new());
    for wrong in neighbours(&right, 1e4) {
        let declared = right.under(wrong.hypothesis.clone()).unwrap();
        let mut all = neighbours(&declared, 1e4);
        all.retain(|n| !same(&n.hypothesis, &right.hypothesis()));
        all.push(Neighbour { name: "the right one".into(), hypothesis: right.hypothesis() });
        let outcome = probe(&declared, &all, &[], &prompts, &|id| id == 1008, |_| {}).unwrap();
        tried += 1;
        println!("{}: {}", wrong.name, outcome.message);
        match outcome.verdict {
            Verdict::Failed if outcome.message.contains("the right one") => refused += 1,
            Verdict::Passed => passed.push(wrong.name),
            _ => {}
        }
    }
    println!("{refused} of {tried} wrong contracts refused naming the right one, {} passed: {passed:?}", passed.len());
    assert!(passed.is_empty(), "passed: {passed:?}");
    assert!(refused * 10 >= tried * 8, "only {refused} of {tried} were refused");
}

/// With longrope's factors in the file, a context on the wrong side of the original one runs under the other set.
#[test]
fn the_other_set_of_longrope_factors_is_a_neighbour() {
    let gguf = || Arc::new(Gguf::open(fixture("longrope/longrope-f16.gguf")).unwrap());
    for (context, other) in [(64, "rope factors = long"), (256, "rope factors = short")] {
        let model = Model::open(gguf(), Options::new(context)).unwrap();
        let elsewhere = Model::open(gguf(), Options::new(320 - context)).unwrap();
        let all = neighbours(&model, 1e4);
        let found = all.iter().find(|n| n.name == other).unwrap();
        assert_eq!(found.hypothesis.rope.frequencies, elsewhere.rope().frequencies);
        assert!(all.iter().any(|n| n.name == "rope scaling off") && all.iter().any(|n| n.name == "rope.base = 1000"));
        assert!(all.iter().all(|n| !n.name.starts_with("rope.dim")), "factors belong to their number of pairs");
    }
}

/// Losing eps or misjudging the logits' scale is shown beside the verdict and has no part in it.
#[test]
fn eps_and_the_scale_of_logits_are_reported_and_not_judged() {
    let model = model(Gguf::open(fixture("miniature/miniature-f16.gguf")).unwrap());
    let outcome = run(&model, 1e4, &trained(3), 1008);
    assert_eq!(outcome.verdict, Verdict::Passed);
    let of = |name: &str| outcome.unjudged.iter().find(|c| c.name == name).unwrap();
    assert!(of("eps / 10").doubt.abs() < 0.01 && of("eps x 10").doubt.abs() < 0.05, "norms' eps does not show");
    assert!(of("logits doubled").doubt > 0.0 && of("logits halved").doubt < 0.0, "sharper logits look surer");
    assert_eq!(outcome.unjudged.len(), 4);
    let declared = model.hypothesis();
    assert!(neighbours(&model, 1e4).iter().all(|n| {
        n.hypothesis.eps == declared.eps && n.hypothesis.variant.logit_scale == declared.variant.logit_scale
    }));
}

#[test]
fn smollm2_passes_and_its_patched_width_is_refused_naming_64() {
    let Some(path) = std::env::var_os("ANEMONE_SLOW_PROBE") else {
        return eprintln!("not tested, it takes many minutes: set ANEMONE_SLOW_PROBE=$(fixtures/fetch smollm2)");
    };
    let right = Gguf::open(path).unwrap();
    let template = ChatTemplate::new(right.metadata().str("tokenizer.chat_template").unwrap()).unwrap();
    let voice = Voice { tokenizer: Tokenizer::from_gguf(right.metadata()).unwrap(), template: Some(template) };
    let prompts = prompts::builtin_answered(&voice).unwrap();
    let base = f64::from(right.metadata().f32("llama.rope.freq_base").unwrap());
    let wrong = model(patched(&right, "llama.rope.dimension_count", 32));
    let refused = run(&wrong, base, &prompts, 2);
    assert_eq!(refused.verdict, Verdict::Failed);
    assert!(refused.message.contains("rope.dim = 64"), "{}", refused.message);
    drop(wrong);
    let passed = run(&model(right), base, &prompts, 2);
    assert_eq!(passed.verdict, Verdict::Passed, "{}", passed.message);
}
