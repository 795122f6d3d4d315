//! Twenty long requests on end: memory stays as it is, and the end of the context is said.

mod common;

use std::collections::BTreeSet;

use anemone_chat::engine::Logits;
use anemone_chat::generate::{Feed, Finish, Limits};
use anemone_chat::{Drafts, Engine, Generation, Pool, Sampler, SamplingOptions, Voice};
use anemone_exec::{Fast, FastOptions, Rows};
use common::*;

/// Bytes of its own memory that this process has resident, where the system tells: without those of mapped files, of which every new
/// token touches another page.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

/// Twenty requests of `tokens` each through one pool, every second one sampled and every third one drafted wherever it can be.
fn twenty_requests(bundle: &Bundle, tokens: usize) {
    let engine = Engine::open(&bundle.path, &Fast::new(FastOptions::default())).unwrap();
    let voice = Voice::open(&bundle.path).unwrap();
    let pool = Pool::new(&engine, engine.session_bytes());
    let mut after_six = None;
    for request in 0..20u32 {
        let prompt: Vec<u32> = (0..20).map(|i| 50 + request + i % 7).collect();
        let warm = SamplingOptions { temperature: 1.0, seed: request.into(), ..SamplingOptions::greedy() };
        let sampler = Sampler::new(if request % 2 == 0 { SamplingOptions::greedy() } else { warm }).unwrap();
        let limits = Limits { max_tokens: Some(tokens), stop_strings: vec!["never said".into()] };
        let drafts = if request % 3 == 0 { Drafts::Always(7) } else { Drafts::Measured };
        // No token ends it: only the number does.
        let mut generation = Generation::new(&voice.tokenizer, BTreeSet::new(), prompt, sampler, limits, None)
            .unwrap()
            .with_drafts(drafts);
        let mut lease = pool.lease(generation.unfed()).unwrap().unwrap();
        generation.fed(lease.reused());
        let (mut logits, mut drawn) = (Rows::default(), Vec::new());
        while generation.finish().is_none() {
            let (ids, draft) = generation.ahead(lease.left());
            lease.feed_into(ids, Logits::Tail(1 + draft), &mut logits).unwrap();
            generation.draw(&logits, lease.left(), &mut drawn).unwrap();
            while generation.goes_on() {
                generation.draw(&logits, lease.left(), &mut drawn).unwrap();
            }
            lease.retract(generation.rejected());
        }
        assert_eq!((generation.finish(), generation.ids().len()), (Some(Finish::Length), tokens));
        // Calls of every length have been made, and keep their memory.
        if request == 5 {
            after_six = resident();
        }
    }
    if let (Some(before), Some(after)) = (after_six, resident()) {
        println!("resident after 6 requests {before} bytes, after 20 {after}");
        // What an allocator keeps of different lengths, and nothing that grows by the request.
        assert!(after < before + (4 << 20), "{before} bytes after 6 requests, {after} after 20");
    }
}

#[test]
fn twenty_requests_leave_memory_as_it_is() {
    // As many tokens as the miniature's context holds.
    twenty_requests(&Bundle::build(&fixture(MINIATURE), &["--tokens", "1,8"]), 480);
}

/// A thousand tokens each, of a real model: `cargo test --release --test long -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn twenty_requests_of_a_thousand_tokens_leave_memory_as_it_is() {
    let model = std::env::var_os("ANEMONE_SMOLLM2").expect("ANEMONE_SMOLLM2=$(fixtures/fetch smollm2)");
    twenty_requests(&Bundle::build(model.as_ref(), &["--context", "1100"]), 1000);
}

/// A context with room for four tokens behind the prompt: the answer is cut there, and that is said in every way of asking.
#[test]
fn the_end_of_the_context_is_said() {
    use std::io::Write;
    use std::process::{Command, Stdio};

    let line = &json_lines("miniature/prompts.jsonl")[0];
    let prompt = ids(&line["prompt_ids"]);
    let context = (prompt.len() + 4).to_string();
    let bundle = Bundle::build(&fixture(MINIATURE), &["--tokens", "1,8", "--context", &context]);
    let question = line["messages"][0]["content"].as_str().unwrap();

    let json = succeed(&["generate", bundle.str(), "--prompt", question, "--greedy", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&answer["finish"], ids(&answer["ids"]).len()), (&"context".into(), 5));
    let out = anemone(&["generate", bundle.str(), "--prompt", question, "--greedy"]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && said.contains("the context is full"), "{said}");

    let typed = |args: &[&str], text: String| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_anemone"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{args:?}");
        String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap()
    };
    let said = typed(&["chat", bundle.str(), "--greedy"], format!("{question}\n/quit\n"));
    assert!(said.contains("the context is full"), "{said}");
    let request = serde_json::json!({"messages": line["messages"], "temperature": 0});
    let said = typed(&["serve", bundle.str(), "--stdio"], format!("{request}\n"));
    assert!(said.contains("\"finish_reason\":\"length\""), "{said}");
}
