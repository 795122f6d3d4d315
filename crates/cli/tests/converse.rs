//! Conversations by pipe: `chat` with its commands and its cache, and `serve --stdio`.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use serde_json::{Value, json};

/// Runs the program on `input` with its cache in `cache`; its stdout and stderr. It must succeed.
#[track_caller]
fn talk(args: &[&str], cache: &Path, input: &str) -> (String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_anemone"))
        .args(args)
        .env("ANEMONE_CACHE", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(out.stdout), text(out.stderr));
    assert!(out.status.success(), "{args:?}: {}\n{stderr}", out.status);
    (stdout, stderr)
}

fn hello() -> (String, String) {
    let lines = json_lines("miniature/prompts.jsonl");
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    (text(&lines[0]["messages"][0]["content"]), text(&lines[0]["expected_text"]))
}

#[test]
fn a_gguf_is_built_once_and_talked_with() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, saved) = (folder.path().join("cache"), folder.path().join("talk.json"));
    let model = fixture(MINIATURE);
    let args = ["chat", model.to_str().unwrap(), "--greedy", "--max-tokens", "60"];
    let (question, answer) = hello();

    let input = format!("{question}\n/retry\n/stats\n/nothing\n/save {}\n", saved.display());
    let (stdout, stderr) = talk(&args, &cache, &input);
    assert_eq!(stdout, format!("{answer}\n{answer}\n"));
    assert!(stderr.contains("building") && stderr.contains("no command `/nothing`"), "{stderr}");
    // The second answer computed the prompt's last token alone.
    assert!(stderr.contains("9 tokens were kept, 1 computed"), "{stderr}");
    assert!(!stdout.contains('\x1b'), "escape codes where there is no terminal");

    let messages: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(
        messages,
        [json!({"role": "user", "content": question}), json!({"role": "assistant", "content": answer})]
    );

    // At once, from what was saved; a text of many lines is one question.
    let many = question.split(' ').collect::<Vec<_>>().join("\\\n");
    let input =
        format!("/load {}\n/retry\n/reset\n{many}\n\"\"\"\n{question}\n\"\"\"\n/load /nowhere\n", saved.display());
    let (stdout, stderr) = talk(&args, &cache, &input);
    assert!(stdout.starts_with(&format!("{answer}\n")), "{stdout}");
    assert!(!stderr.contains("building") && stderr.contains("error: /nowhere"), "{stderr}");

    let (listed, _) = talk(&["models", "--json"], &cache, "");
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed.len(), &listed[0]["source"]), (1, &json!("miniature-f16.gguf")));
    let name = listed[0]["name"].as_str().unwrap();
    talk(&["models", "--remove", name], &cache, "");
    assert_eq!(talk(&["models", "--json"], &cache, "").0, "[]\n");
    refuse(&["models", "--remove", "../bundles"], &["../bundles", "anemone models"]);
}

#[test]
fn json_lines_are_answered_in_order_and_nothing_else_is_on_stdout() {
    let bundle = Bundle::build(&fixture(MINIATURE), &[]);
    let record = &json_lines("miniature/prompts.jsonl")[0];
    let ask = json!({"messages": record["messages"], "temperature": 0});
    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    streamed["id"] = "s".into();
    let requests = [
        json!({"id": 1, "prompt_ids": record["prompt_ids"], "max_new": 60, "profile": true}).to_string(),
        json!({"id": 2, "prompt_ids": [], "max_new": 4}).to_string(),
        "{".to_owned(),
        "x".repeat(5000),
        ask.to_string(),
        json!({"id": 3, "messages": [], "frobnicate": 1}).to_string(),
        streamed.to_string(),
    ];
    let args = ["serve", bundle.str(), "--stdio", "--max-body-kib", "4"];
    let (stdout, _) = talk(&args, bundle.path.parent().unwrap(), &(requests.join("\n") + "\n"));
    let mut lines = stdout.lines();
    let ready = lines.next().unwrap().strip_prefix("READY ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(ready).unwrap()["protocol"], "anemone-jsonl-v1");
    let mut next = || serde_json::from_str::<Value>(lines.next().unwrap()).unwrap();

    let published = next();
    assert_eq!((&published["id"], &published["ok"]), (&json!(1), &json!(true)));
    assert_eq!(published["generated_ids"], record["expected_ids"]);
    assert_eq!(published["text"], record["expected_text"]);
    assert_eq!(published["timing"]["prefill_tokens"], record["prompt_ids"].as_array().unwrap().len());
    assert_eq!(published["profile"]["calls"], record["expected_ids"].as_array().unwrap().len());

    let refused = next();
    assert_eq!((&refused["id"], &refused["ok"]), (&json!(2), &json!(false)));
    assert_eq!(next()["error"]["code"], "invalid_json");
    assert!(next()["error"].as_str().unwrap().contains("longer than 4096 bytes"));

    let whole = next();
    assert_eq!(whole["choices"][0]["message"]["content"], record["expected_text"]);
    // The same prompt was answered before.
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 9);
    let refused = next();
    assert_eq!((&refused["id"], refused["error"]["param"].as_str()), (&json!(3), Some("messages")));

    let chunks: Vec<Value> = lines.map(|l| serde_json::from_str(l).unwrap()).collect();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, record["expected_text"].as_str().unwrap());
    assert!(chunks.iter().all(|c| c["id"] == "s"));
    assert!(chunks.last().unwrap()["usage"].is_object());
}

#[test]
fn shells_and_man_are_told_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = succeed(&["completions", shell]);
        assert!(text.contains("serve") && text.contains("stdio"), "{shell}");
    }
    succeed(&["man", "-o", folder.path().to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.path().join("anemone-serve.1")).unwrap();
    assert!(page.contains("max\\-requests"), "{page}");
    assert!(succeed(&["man"]).contains(".TH anemone 1"));
}

#[test]
fn a_server_that_others_can_reach_wants_a_key() {
    let bundle = Bundle::build(&fixture(MINIATURE), &[]);
    refuse(&["serve", bundle.str(), "--host", "0.0.0.0"], &["0.0.0.0", "ANEMONE_API_KEY", "--api-key-file"]);
    refuse(&["serve", bundle.str(), "--api-key-file", "/nowhere"], &["/nowhere"]);
}
