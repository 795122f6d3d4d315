//! Tools: offered to a model in its template's own form, and its calls read back from what it answers.
//!
//! Models write calls as JSON objects with a name and arguments, one or a list of them, most between markers of their family.
//! An answer is a call if it consists of such objects and nothing else, and every name is one that was offered; otherwise it is
//! text, as it came. So nothing a model says can call what the request did not name.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::refusal::Refusal;

/// What families write around calls. Those that are control tokens are not in the text to begin with.
const MARKERS: [&str; 8] = [
    "<tool_call>",
    "</tool_call>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "```json",
    "```",
];

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    name: String,
    arguments: Value,
}

impl Call {
    /// As OpenAI has it; the arguments are JSON in a string.
    pub fn json(&self, id: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments.to_string()}})
    }
}

/// The names in a request's `tools`.
pub fn names(tools: &Value) -> Result<BTreeSet<String>, Refusal> {
    let wrong =
        || Refusal::field("tools", "expected a list of `{\"type\": \"function\", \"function\": {\"name\": ...}}`");
    let name = |tool: &Value| match (tool["type"].as_str(), tool["function"]["name"].as_str()) {
        (Some("function"), Some(name)) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(wrong()),
    };
    tools.as_array().ok_or_else(wrong)?.iter().map(name).collect()
}

/// The schema of an answer that is one call: of `name`, or of any of the tools, whose own schemas bound the arguments.
pub fn call_schema(tools: &Value, name: Option<&str>) -> Value {
    let functions = tools.as_array().into_iter().flatten().map(|tool| &tool["function"]);
    let call = |function: &Value| {
        let parameters = function.get("parameters").filter(|p| p.is_object());
        json!({
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": parameters.cloned().unwrap_or_else(|| json!({"type": "object"})),
            },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    let calls: Vec<_> = functions.filter(|f| name.is_none_or(|name| f["name"] == name)).map(call).collect();
    json!({"anyOf": calls})
}

/// The calls that an answer consists of, if it consists of calls of `known` tools.
pub fn calls(answer: &str, known: &BTreeSet<String>) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = answer.trim_start();
    while !rest.is_empty() {
        if let Some(after) = MARKERS.iter().find_map(|marker| rest.strip_prefix(marker)) {
            rest = after.trim_start();
            continue;
        }
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(list) => list.into_iter().try_for_each(|v| call(v, known).map(|c| calls.push(c)))?,
            value => calls.push(call(value, known)?),
        }
        rest = rest[values.byte_offset()..].trim_start_matches([' ', '\n', '\r', '\t', ';', ',']);
    }
    (!calls.is_empty()).then_some(calls)
}

fn call(mut value: Value, known: &BTreeSet<String>) -> Option<Call> {
    let name = value.get("name")?.as_str().filter(|name| known.contains(*name))?.to_owned();
    let fields = value.as_object_mut()?;
    let arguments = fields.remove("arguments").or_else(|| fields.remove("parameters")).unwrap_or_else(|| json!({}));
    arguments.is_object().then_some(Call { name, arguments })
}

/// Calls in an earlier answer of the conversation, with arguments as templates expect them: objects, not strings.
pub fn earlier(calls: Value) -> Option<Value> {
    let Value::Array(mut list) = calls else { return None };
    for call in &mut list {
        let arguments = call.get_mut("function")?.get_mut("arguments")?;
        if let Some(text) = arguments.as_str() {
            *arguments = serde_json::from_str(text).ok().filter(Value::is_object)?;
        }
    }
    Some(Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_the_families_write_them() {
        let known: BTreeSet<String> = ["weather", "time"].map(String::from).into();
        let weather = || Call { name: "weather".into(), arguments: json!({"city": "Oslo"}) };
        let time = || Call { name: "time".into(), arguments: json!({}) };
        for (answer, expected) in [
            (r#"{"name": "weather", "arguments": {"city": "Oslo"}}"#, vec![weather()]),
            (r#"{"name": "weather", "parameters": {"city": "Oslo"}}"#, vec![weather()]),
            (
                "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>",
                vec![weather()],
            ),
            (r#"<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|/tool_call|>"#, vec![weather()]),
            (
                r#"[TOOL_CALLS] [{"name": "time"}, {"name": "weather", "arguments": {"city": "Oslo"}}]"#,
                vec![time(), weather()],
            ),
            (
                "<tool_call>{\"name\": \"time\"}</tool_call>\n<tool_call>{\"name\": \"time\"}</tool_call>",
                vec![time(), time()],
            ),
        ] {
            assert_eq!(calls(answer, &known), Some(expected), "{answer}");
        }
        for text in [
            "",
            "The weather is fine.",
            r#"Sure: {"name": "time"}"#,
            r#"{"name": "time"} is what I would call."#,
            r#"{"name": "delete_everything", "arguments": {}}"#,
            r#"{"name": "weather", "arguments": "Oslo"}"#,
            r#"[{"name": "time"}, {"name": "rm"}]"#,
            r#"{"name": "weather", "arguments": {"city": "Os"#,
            "[]",
            "42",
        ] {
            assert_eq!(calls(text, &known), None, "{text}");
        }
    }

    #[test]
    fn earlier_calls_get_their_arguments_as_objects() {
        let call = |arguments: Value| json!([{"id": "1", "function": {"name": "time", "arguments": arguments}}]);
        assert_eq!(earlier(call(json!("{\"a\": 1}"))), Some(call(json!({"a": 1}))));
        assert_eq!(earlier(call(json!("nothing"))), None);
        assert_eq!(earlier(json!("x")), None);
    }
}
