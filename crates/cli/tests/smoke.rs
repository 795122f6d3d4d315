//! `smoke`: the question, the answer, what the answer does, and the evidence of it.

mod common;

use common::*;
use serde_json::Value;

fn has_erlang() -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|p| p.join("escript").is_file())
}

#[test]
fn the_miniature_says_hello_in_erlang() {
    let bundle = Bundle::build(&fixture(MINIATURE), &["--topology", "0-2,2-4"]);
    let finding: Value = serde_json::from_str(&succeed(&["smoke", bundle.str(), "--json"])).unwrap();
    // Without Erlang nothing was proven, and the verdict says so.
    assert_eq!(finding["verdict"], if has_erlang() { "passed" } else { "skipped" }, "{finding:#}");
    let code = finding["figures"]["code"].as_str().unwrap();
    assert!(
        code.contains("io:format") && finding["figures"]["answer"].as_str().unwrap().contains("```"),
        "{finding:#}"
    );
    let text = succeed(&["smoke", bundle.str()]);
    assert!(text.contains("write hello world in Erlang") && text.contains("io:format"), "{text}");
    let evidence = std::fs::read_to_string(bundle.path.join("evidence/smoke.jsonl")).unwrap();
    assert_eq!(evidence.lines().count(), 2);
    assert!(succeed(&["journal", bundle.str(), "--show", "1"]).contains("smoke "));
    let source = fixture(MINIATURE);
    let out = succeed(&["gate", bundle.str(), "--source", source.to_str().unwrap(), "--only", "smoke"]);
    assert!(out.contains("smoke"), "{out}");
}

#[test]
fn a_model_that_answers_nonsense_fails() {
    let model = fixture("longrope/longrope-f16.gguf");
    let bundle = Bundle::build(&model, &["--context", "32"]);
    let out = anemone(&["smoke", bundle.str(), "--max-tokens", "8"]);
    assert_ne!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stdout));
}
