//! Published chat templates against what Jinja2 makes of them. They are somebody else's, so the test runs where `ANEMONE_VOCABS` names
//! the folder that `fixtures/fetch-vocabs` prints, after `crosscheck/goldens/templates.py` has rendered what is in it.

use std::path::Path;

use anemone_chat::ChatTemplate;
use anemone_chat::template::Context;
use serde_json::{Map, Value};

/// 2024-07-26 12:34:56 UTC.
const CLOCK: i64 = 1_721_997_296;

#[test]
fn published_templates_render_as_jinja2_renders_them() {
    let Some(folder) = std::env::var_os("ANEMONE_VOCABS") else { return };
    let folder = Path::new(&folder).join("templates");
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    let mut right = 0;
    for (name, texts) in expected["rendered"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = match ChatTemplate::new(&source) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (i, (case, text)) in expected["cases"].as_array().unwrap().iter().zip(texts.as_array().unwrap()).enumerate()
        {
            let more: &Map<String, Value> = case["variables"].as_object().unwrap();
            let context = Context {
                messages: &case["messages"],
                tools: Some(&case["tools"]).filter(|t| !t.is_null()),
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                bos_token: "<s>",
                eos_token: "</s>",
                more,
            };
            match (template.render(&context, Some(CLOCK)), text.as_str()) {
                (Ok(ours), Some(theirs)) if ours == theirs => right += 1,
                (Err(_), None) => right += 1,
                // Jinja2 has a lazy sequence there, which Python's JSON refuses.
                (Ok(_), None) if name == "llama-cpp-deepseek-r1" && !case["tools"].is_null() => right += 1,
                (Ok(ours), Some(theirs)) => {
                    let at = ours.bytes().zip(theirs.bytes()).take_while(|(a, b)| a == b).count();
                    let near = |t: &str| {
                        String::from_utf8_lossy(&t.as_bytes()[at.saturating_sub(30)..(at + 60).min(t.len())])
                            .into_owned()
                    };
                    wrong.push(format!("{name} {i}: {:?} for {:?}", near(&ours), near(theirs)));
                }
                (ours, theirs) => wrong.push(format!("{name} {i}: {ours:?} for {theirs:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{right} right, {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(right >= 600, "{right}");
}
