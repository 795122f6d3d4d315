//! A chat template of anyone's is refused with an error, or it renders a conversation within its bounds.
#![no_main]

use anemone_chat::ChatTemplate;
use anemone_chat::template::Context;
use anemone_fuzz::split;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, json};

fuzz_target!(|data: &[u8]| {
    let [said, template] = split::<2>(data);
    let (Ok(said), Ok(template)) = (str::from_utf8(said), str::from_utf8(template)) else { return };
    let Ok(template) = ChatTemplate::new(template) else { return };
    let messages = json!([
        {"role": "system", "content": said},
        {"role": "user", "content": [{"type": "text", "text": said}]},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}]},
        {"role": "user", "content": said},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "number"}}}}]);
    for tools in [None, Some(&tools)] {
        let context = Context {
            messages: &messages,
            tools,
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "</s>",
            more: &Map::new(),
        };
        let once = template.render(&context, Some(0)).map_err(|e| e.to_string());
        assert_eq!(once, template.render(&context, Some(0)).map_err(|e| e.to_string()), "rendered differently");
    }
});
