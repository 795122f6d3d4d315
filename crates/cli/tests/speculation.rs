//! Drafts change nothing: the same tokens and the same state, bit for bit, with and without them.

mod common;

use std::collections::BTreeSet;

use anemone_chat::engine::Logits;
use anemone_chat::generate::{Feed, Finish, Limits};
use anemone_chat::grammar::{Constraint, Grammar, Matcher};
use anemone_chat::{Drafts, Engine, Generation, Sampler, SamplingOptions, Session, Voice};
use anemone_exec::{Fast, FastOptions, Numerics, Options, Portable, Rows};
use common::*;
use serde_json::json;

/// How an answer is asked for.
#[derive(Clone)]
struct Ask {
    sampling: SamplingOptions,
    limits: Limits,
    stop: BTreeSet<u32>,
    matcher: Option<Matcher>,
}

impl Ask {
    fn new(engine: &Engine, sampling: SamplingOptions, max_tokens: usize) -> Self {
        let limits = Limits { max_tokens: Some(max_tokens), stop_strings: Vec::new() };
        Self { sampling, limits, stop: engine.contract().tokens.stop.clone(), matcher: None }
    }
}

/// What came, and what the session computes afterwards.
#[derive(Debug, PartialEq)]
struct Came {
    ids: Vec<u32>,
    logprobs: Vec<Option<f32>>,
    text: String,
    finish: Finish,
    forced: usize,
    position: usize,
    after: Vec<f32>,
}

/// One answer, and how many tokens of drafts were kept.
fn answer(engine: &Engine, voice: &Voice, prompt: &[u32], ask: &Ask, drafts: Drafts) -> (Came, usize) {
    let Ask { sampling, limits, stop, matcher } = ask.clone();
    let sampler = Sampler::new(sampling).unwrap();
    let mut generation =
        Generation::new(&voice.tokenizer, stop, prompt.to_vec(), sampler, limits, matcher).unwrap().with_drafts(drafts);
    let mut session: Session<'_> = engine.session().unwrap();
    let (mut logits, mut drawn) = (Rows::default(), Vec::new());
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    while generation.finish().is_none() {
        let (ids, draft) = generation.ahead(session.left());
        session.feed_into(ids, Logits::Tail(1 + draft), &mut logits).unwrap();
        loop {
            generation.draw(&logits, session.left(), &mut drawn).unwrap();
            for d in &drawn {
                text.push_str(&d.text);
                logprobs.push(d.choice.logprob);
            }
            if !generation.goes_on() {
                break;
            }
        }
        session.retract(generation.rejected());
    }
    let finish = generation.finish().unwrap();
    text.push_str(&generation.end(finish));
    let (position, left) = (session.position(), session.left());
    let after = session.feed(&[1, 2, 3][..left.min(3)], Logits::All).unwrap();
    let kept = generation.drafted().1;
    let (ids, forced) = (generation.ids().to_vec(), generation.forced());
    (Came { ids, logprobs, text, finish, forced, position, after }, kept)
}

/// The same with every kind of draft; how many tokens of drafts were kept.
#[track_caller]
fn same(engine: &Engine, voice: &Voice, prompt: &[u32], ask: &Ask, most: &[usize]) -> usize {
    let (plain, _) = answer(engine, voice, prompt, ask, Drafts::Never);
    let kinds = most.iter().map(|&n| Drafts::Always(n)).chain([Drafts::Measured]);
    kinds
        .map(|drafts| {
            let (came, kept) = answer(engine, voice, prompt, ask, drafts);
            assert_eq!(came, plain, "{drafts:?}, {:?}", ask.sampling);
            kept
        })
        .sum()
}

fn sampled(seed: u64) -> SamplingOptions {
    SamplingOptions { temperature: 0.8, top_p: 0.9, seed, ..SamplingOptions::greedy() }
}

fn miniature(options: &[&str]) -> (Bundle, Voice) {
    let bundle = Bundle::build(&fixture(MINIATURE), options);
    let voice = Voice::open(&bundle.path).unwrap();
    (bundle, voice)
}

/// One thread: beside other tests, threads that meet at every step mostly wait for each other.
fn fast() -> Fast {
    Fast::new(FastOptions { threads: 1, ..FastOptions::default() })
}

#[test]
fn the_miniature_answers_the_same_on_every_prompt() {
    let (bundle, voice) = miniature(&["--topology", "0-2,2-4", "--head-slices", "2", "--tokens", "1,8"]);
    let engine = Engine::open(&bundle.path, &fast()).unwrap();
    assert_eq!(engine.drafts(), Drafts::Measured, "the default of the fast runtime");
    let lines = [json_lines("miniature/prompts.jsonl"), json_lines("miniature/unseen.jsonl")].concat();
    let mut kept = 0;
    for (i, line) in lines.iter().enumerate() {
        let prompt = ids(&line["prompt_ids"]);
        let greedy = SamplingOptions { logprobs: Some(0), ..SamplingOptions::greedy() };
        let penalty = SamplingOptions { repetition_penalty: 1.1, ..sampled(i as u64) };
        let warm =
            SamplingOptions { temperature: 1.5, ..SamplingOptions { seed: i as u64, ..SamplingOptions::greedy() } };
        let others = [sampled(i as u64), penalty, warm];
        for sampling in [greedy, others[i % others.len()].clone()] {
            let mut ask = Ask::new(&engine, sampling, 60);
            kept += same(&engine, &voice, &prompt, &ask, &[1, 4, 15]);
            // Nothing but the number of tokens ends it: the model runs into loops, which drafts foresee.
            ask.stop.clear();
            ask.limits.stop_strings = vec!["```\n".into(), "the the".into()];
            kept += same(&engine, &voice, &prompt, &ask, &[7]);
        }
    }
    assert!(kept > 200, "only {kept} tokens of drafts were kept: nothing was tried");
}

#[test]
fn the_end_of_the_context_is_the_same() {
    let (bundle, voice) = miniature(&["--tokens", "1,8", "--context", "64"]);
    let engine = Engine::open(&bundle.path, &fast()).unwrap();
    let prompt: Vec<u32> = (0..20).map(|i| 100 + i % 4).collect();
    for sampling in [SamplingOptions::greedy(), sampled(3)] {
        let mut ask = Ask::new(&engine, sampling, usize::MAX);
        ask.stop.clear();
        same(&engine, &voice, &prompt, &ask, &[1, 3, 15]);
        let (came, _) = answer(&engine, &voice, &prompt, &ask, Drafts::Always(7));
        assert_eq!((came.finish, came.position, came.ids.len()), (Finish::Context, 64, 45));
    }
}

#[test]
fn forms_and_forced_tokens_are_the_same() {
    let (bundle, voice) = miniature(&["--tokens", "1,8"]);
    let engine = Engine::open(&bundle.path, &fast()).unwrap();
    let contract = engine.contract();
    let grammar = Grammar::new(&voice.tokenizer, contract.vocab, &contract.tokens.stop).unwrap();
    let item = json!({"type": "object", "properties": {"name": {"enum": ["alpha", "beta"]}, "n": {"type": "integer"}},
        "required": ["name", "n"], "additionalProperties": false});
    let schema = json!({"type": "array", "items": item, "minItems": 3, "maxItems": 5});
    let (mut kept, mut forced) = (0, 0);
    for seed in 0..6 {
        let prompt = ids(&json_lines("miniature/prompts.jsonl")[seed as usize]["prompt_ids"]);
        for matcher in [
            grammar.matcher(&Constraint::JsonSchema(schema.clone())).unwrap(),
            grammar.matcher(&Constraint::JsonSchema(schema.clone())).unwrap().looking(),
        ] {
            let mut ask = Ask::new(&engine, sampled(seed), 120);
            ask.matcher = Some(matcher);
            kept += same(&engine, &voice, &prompt, &ask, &[1, 4, 15]);
            forced += answer(&engine, &voice, &prompt, &ask, Drafts::Always(4)).0.forced;
        }
    }
    assert!(kept > 100 && forced > 100, "{kept} kept, {forced} forced");
}

/// Runtimes that pad to the function's number of tokens give the same too, where drafts are asked for.
#[test]
fn runtimes_that_pad_answer_the_same() {
    let (bundle, voice) = miniature(&["--tokens", "1,8"]);
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let engine = Engine::open(&bundle.path, &Portable::new(numerics, Options::default())).unwrap();
        assert_eq!(engine.drafts(), Drafts::Never, "drafts that pay nothing");
        let prompt = ids(&json_lines("miniature/prompts.jsonl")[0]["prompt_ids"]);
        let mut ask = Ask::new(&engine, sampled(1), 40);
        ask.stop.clear();
        same(&engine, &voice, &prompt, &ask, &[3, 9]);
    }
}

#[test]
fn a_bundle_without_a_function_of_several_tokens_drafts_nothing() {
    let (bundle, _) = miniature(&["--tokens", "1"]);
    let engine = Engine::open(&bundle.path, &fast()).unwrap();
    assert_eq!(engine.drafts(), Drafts::Never);
    assert_eq!(engine.with_drafts(Drafts::Measured).drafts(), Drafts::Never);
    refuse(&["generate", bundle.str(), "--prompt", "hi", "--speculate"], &["--speculate", "--tokens 1,32"]);
}

/// On the real model of `ci/test`: its own prompts, and text that repeats.
#[test]
fn smollm2_answers_the_same() {
    let Some(model) = std::env::var_os("ANEMONE_SMOLLM2") else {
        assert!(std::env::var_os("CI").is_none(), "ANEMONE_SMOLLM2 is not set: run through ci/test");
        return eprintln!("not tested: set ANEMONE_SMOLLM2=$(fixtures/fetch smollm2)");
    };
    let bundle = Bundle::build(model.as_ref(), &["--context", "512"]);
    let voice = Voice::open(&bundle.path).unwrap();
    let engine = Engine::open(&bundle.path, &fast()).unwrap();
    let mut prompts: Vec<Vec<u32>> =
        json_lines("smollm2/prompts.jsonl").iter().map(|l| ids(&l["prompt_ids"])).collect();
    let list: Vec<String> =
        (1..12).map(|i| format!("{i}. The number {i} comes after the number {}.\n", i - 1)).collect();
    prompts.push(voice.text(&list.concat()).ids);
    let mut kept = 0;
    for (i, prompt) in prompts.iter().enumerate() {
        for sampling in [SamplingOptions::greedy(), sampled(i as u64)] {
            kept += same(&engine, &voice, prompt, &Ask::new(&engine, sampling, 32), &[7]);
        }
    }
    assert!(kept > 40, "only {kept} tokens of drafts were kept");
}
