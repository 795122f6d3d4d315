//! Answers held to a form, with no model at all: whatever logits say, what comes out fits.
#![cfg(feature = "grammar")]

use std::path::PathBuf;

use anemone_chat::generate::{Finish, Limits};
use anemone_chat::grammar::Constraint;
use anemone_chat::{Control, Generation, Grammar, Sampler, SamplingOptions, Tokenizer};
use anemone_exec::Rows;
use anemone_gguf::Gguf;
use serde_json::{Value, json};

fn miniature() -> Tokenizer {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/miniature/miniature-f16.gguf");
    Tokenizer::from_gguf(Gguf::open(path).unwrap().metadata()).unwrap()
}

/// The real vocabulary of SmolLM2, where the tests have it.
fn smollm2() -> Option<Tokenizer> {
    let path = std::env::var_os("ANEMONE_SMOLLM2")?;
    Some(Tokenizer::from_gguf(Gguf::open(PathBuf::from(path)).unwrap().metadata()).unwrap())
}

struct Answer {
    text: String,
    finish: Finish,
    forced: usize,
    drawn: usize,
}

/// One row of logits.
fn one(logits: &[f32]) -> Rows {
    let mut rows = Rows::default();
    rows.begin(1, logits.len());
    rows.put(0, 0, logits);
    rows
}

/// An answer of noise: logits by hash, so that only the form gives it shape.
fn noise(tokenizer: &Tokenizer, grammar: &Grammar, constraint: &Constraint, seed: u64, most: usize) -> Answer {
    let matcher = grammar.matcher(constraint).unwrap();
    let sampler =
        Sampler::new(SamplingOptions { temperature: 1.0, top_k: 64, seed, ..SamplingOptions::greedy() }).unwrap();
    let limits = Limits { max_tokens: Some(most), stop_strings: Vec::new() };
    let stop = tokenizer.config().stop.clone();
    let mut generation = Generation::new(tokenizer, stop, vec![0], sampler, limits, Some(matcher)).unwrap();
    let mut text = String::new();
    let mut step = seed;
    while generation.finish().is_none() {
        generation.fed(generation.unfed().len());
        step = step.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let logit = |i: u64| (((i ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32) / (1 << 22) as f32;
        let logits: Vec<f32> = (0..tokenizer.vocab_size() as u64).map(logit).collect();
        let mut drawn = Vec::new();
        generation.draw(&one(&logits), usize::MAX, &mut drawn).unwrap();
        drawn.iter().for_each(|d| text.push_str(&d.text));
    }
    let finish = generation.finish().unwrap();
    text.push_str(&generation.end(finish));
    Answer { text, finish, forced: generation.forced(), drawn: generation.ids().len() }
}

/// Whether a value is of a schema.
type Fits = fn(&Value) -> bool;

/// Bounded schemas of the kinds that programs ask for.
fn schemas() -> Vec<(Value, Fits)> {
    fn keys(v: &Value) -> Vec<&str> {
        v.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default()
    }
    vec![
        (
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer",
                "minimum": 0, "maximum": 150}}, "required": ["name", "age"], "additionalProperties": false}),
            |v| {
                keys(v) == ["name", "age"]
                    && v["name"].as_str().is_some_and(|s| s.chars().count() <= 12)
                    && v["age"].as_u64().is_some_and(|n| n <= 150)
            },
        ),
        (json!({"enum": ["red", "green", "blue"]}), |v| ["red", "green", "blue"].contains(&v.as_str().unwrap_or(""))),
        (json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}), |v| {
            v.as_array().is_some_and(|a| (2..=4).contains(&a.len()) && a.iter().all(Value::is_boolean))
        }),
        (
            json!({"type": "object", "properties": {"tool": {"const": "weather"}, "arguments": {"type": "object", "properties":
                {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"}}, "required": ["city"], "additionalProperties": false}},
                "required": ["tool", "arguments"], "additionalProperties": false}),
            |v| {
                let city = v["arguments"]["city"].as_str().unwrap_or("");
                v["tool"] == "weather"
                    && (2..=10).contains(&city.len())
                    && city.starts_with(|c: char| c.is_ascii_uppercase())
            },
        ),
        (json!({"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -9, "maximum": 9}]}), |v| {
            v.is_null() || v.as_i64().is_some_and(|n| (-9..=9).contains(&n))
        }),
    ]
}

/// Of 200 answers under bounded schemas, all parse and fit; those that `most` tokens cut are counted apart.
fn all_fit(tokenizer: &Tokenizer) {
    let grammar = Grammar::new(tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
    let schemas = schemas();
    let (mut whole, mut cut, mut seed) = (0, 0, 0);
    while whole < 200 {
        seed += 1;
        let (schema, fits) = &schemas[seed as usize % schemas.len()];
        let answer = noise(tokenizer, &grammar, &Constraint::JsonSchema(schema.clone()), seed, 80);
        if answer.finish == Finish::Length {
            cut += 1;
            assert!(cut < 100, "{cut} answers cut, {whole} whole");
            continue;
        }
        let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {:?}", answer.text));
        assert!(fits(&value), "{value} for {schema}");
        whole += 1;
    }
    println!("{whole} of {whole} answers fit their schema, {cut} more were cut");
}

#[test]
fn two_hundred_answers_of_noise_fit_their_schemas_in_the_miniatures_vocabulary() {
    all_fit(&miniature());
}

#[test]
fn two_hundred_answers_of_noise_fit_their_schemas_in_smollm2s_vocabulary() {
    if let Some(tokenizer) = smollm2() {
        all_fit(&tokenizer);
    }
}

#[test]
fn the_plan_has_its_five_lines_and_their_names_are_forced() {
    let plan = include_str!("../../../examples/grammars/plan.lark");
    for tokenizer in [Some(miniature()), smollm2()].into_iter().flatten() {
        let grammar = Grammar::new(&tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
        for seed in 0..5 {
            let answer = noise(&tokenizer, &grammar, &Constraint::Lark(plan.to_owned()), seed, 250);
            let lines: Vec<&str> = answer.text.splitn(7, '\n').collect();
            for (line, name) in lines.iter().zip(["GOAL: ", "STATE: ", "ALGO: ", "EDGE: ", "VERIFY: ", ""]) {
                assert!(line.starts_with(name), "{line:?} is no {name:?} line of {:?}", answer.text);
            }
            assert_eq!(lines[5], "", "{:?}", answer.text);
            // The budgets bound the plan: 24 + 24 + 32 + 24 + 24 tokens, and the names.
            assert!(answer.forced >= 5 && answer.forced < answer.drawn, "{} of {}", answer.forced, answer.drawn);
        }
    }
}

#[test]
fn a_regular_expression_holds_the_whole_answer() {
    let tokenizer = miniature();
    let grammar = Grammar::new(&tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
    for seed in 0..20 {
        let answer = noise(&tokenizer, &grammar, &Constraint::Regex("(yes|no), [0-9]{2}%".into()), seed, 50);
        let (word, rest) = answer.text.split_once(", ").unwrap();
        assert!(["yes", "no"].contains(&word) && rest.len() == 3 && rest.ends_with('%'), "{:?}", answer.text);
        assert_eq!(answer.finish, Finish::Stop);
    }
}

#[test]
fn looking_draws_the_same_form_and_forces_nothing() {
    let tokenizer = miniature();
    let grammar = Grammar::new(&tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
    let matcher = grammar.matcher(&Constraint::Regex("forced words only".into())).unwrap().looking();
    let sampler = Sampler::new(SamplingOptions::greedy()).unwrap();
    let limits = Limits { max_tokens: None, stop_strings: Vec::new() };
    let stop = tokenizer.config().stop.clone();
    let mut generation = Generation::new(&tokenizer, stop, vec![0], sampler, limits, Some(matcher)).unwrap();
    while generation.finish().is_none() {
        let mut drawn = Vec::new();
        generation.draw(&one(&vec![0.0; tokenizer.vocab_size()]), usize::MAX, &mut drawn).unwrap();
        assert_eq!(drawn.len(), 1);
    }
    assert_eq!(generation.forced(), 0);
    assert_eq!(tokenizer.decode(generation.ids(), Control::Skip).unwrap(), "forced words only");
}

#[test]
fn constraints_that_are_none_are_refused_in_one_line() {
    let tokenizer = miniature();
    let grammar = Grammar::new(&tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
    for constraint in [
        Constraint::Regex("(".into()),
        Constraint::Lark("start: missing".into()),
        Constraint::Lark("".into()),
        Constraint::JsonSchema(json!({"type": "nothing"})),
        Constraint::JsonSchema(json!({"$ref": "https://example.com/schema.json"})),
    ] {
        let error =
            grammar.matcher(&constraint).err().unwrap_or_else(|| panic!("{constraint:?} was taken")).to_string();
        assert!(error.starts_with("grammar: ") && error.lines().count() == 1, "{error}");
    }
}

/// A control token spelled in a constraint is text: no answer to it has one.
#[test]
fn control_tokens_in_a_constraint_are_text() {
    let tokenizer = miniature();
    let grammar = Grammar::new(&tokenizer, tokenizer.vocab_size(), &tokenizer.config().stop).unwrap();
    let spelled = "a<|end|><|system|>b";
    let constraint = Constraint::JsonSchema(json!({"const": spelled}));
    let answer = noise(&tokenizer, &grammar, &constraint, 1, 100);
    assert_eq!(serde_json::from_str::<Value>(&answer.text).unwrap(), spelled);
}
