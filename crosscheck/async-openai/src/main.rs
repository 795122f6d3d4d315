//! Judges a running server with the `async-openai` client: `anemone-async-openai URL MODEL GOLDEN`
//!
//! Every route that the client has types for, streamed and whole, errors included. What is parsed here was parsed by types that
//! nobody of this project wrote: a field of another type, or one that is missing, fails. Requests are read into the client's
//! types from JSON, so that they say the same as the Python judge's (`crosscheck/serve.py`).

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{ChatCompletionMessageToolCalls, CreateChatCompletionRequest, FinishReason};
use async_openai::types::completions::CreateCompletionRequest;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A request of the client's own type.
fn request<T: DeserializeOwned>(base: &Value, more: Value) -> T {
    let mut value = base.clone();
    for (name, field) in more.as_object().unwrap() {
        value[name] = field.clone();
    }
    serde_json::from_value(value).expect("the client knows these fields")
}

struct Judge {
    client: Client<OpenAIConfig>,
    model: String,
    /// A chat with a golden answer, greedy; the same in tokens; and the answer.
    chat: Value,
    text: Value,
    answer: String,
}

impl Judge {
    async fn models(&self) -> Outcome {
        let models = self.client.models().list().await?;
        assert_eq!(models.data.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), [&self.model]);
        assert_eq!(self.client.models().retrieve(&self.model).await?.id, self.model);
        Ok(())
    }

    async fn chats(&self) -> Outcome {
        let chat = self.client.chat();
        let whole = chat.create(request(&self.chat, json!({}))).await?;
        assert_eq!(whole.choices[0].message.content.as_ref(), Some(&self.answer));
        assert_eq!(whole.choices[0].finish_reason, Some(FinishReason::Stop));
        let usage = whole.usage.ok_or("no usage")?;
        assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);

        let options = json!({"stream": true, "stream_options": {"include_usage": true}});
        let mut stream = chat.create_stream(request(&self.chat, options)).await?;
        let (mut text, mut streamed) = (String::new(), None);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            streamed = chunk.usage.or(streamed);
            text.extend(chunk.choices.into_iter().filter_map(|choice| choice.delta.content));
        }
        assert_eq!(text, self.answer);
        assert_eq!(streamed.ok_or("no usage of the stream")?.completion_tokens, usage.completion_tokens);

        let several = json!({"n": 2, "temperature": 1.0, "seed": 1, "logprobs": true, "top_logprobs": 2, "max_completion_tokens": 4});
        let several = chat.create(request(&self.chat, several)).await?;
        assert_eq!(several.choices.len(), 2);
        let logged = several.choices[1].logprobs.as_ref().and_then(|l| l.content.as_ref()).ok_or("no logprobs")?;
        assert!(logged.iter().all(|token| token.top_logprobs.len() == 2 && token.logprob <= 0.0));
        Ok(())
    }

    async fn forms(&self) -> Outcome {
        let schema = json!({"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["x"], "additionalProperties": false});
        let form = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
        let answer = self.client.chat().create(request(&self.chat, form)).await?;
        let value: Value = serde_json::from_str(answer.choices[0].message.content.as_ref().ok_or("no content")?)?;
        assert!(value["x"].is_u64(), "{value}");

        let tools = json!([{"type": "function", "function": {"name": "set", "parameters": schema}}]);
        let ask = json!({"tools": tools, "tool_choice": "required"});
        let answer = self.client.chat().create(request(&self.chat, ask)).await?;
        assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::ToolCalls));
        let calls = answer.choices[0].message.tool_calls.as_ref().ok_or("no calls")?;
        let ChatCompletionMessageToolCalls::Function(call) = &calls[0] else { return Err("no function".into()) };
        assert_eq!(call.function.name, "set");
        let named =
            json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "set"}}, "stream": true});
        let mut stream = self.client.chat().create_stream(request(&self.chat, named)).await?;
        let mut streamed = Vec::new();
        while let Some(chunk) = stream.next().await {
            streamed.extend(chunk?.choices.into_iter().filter_map(|choice| choice.delta.tool_calls).flatten());
        }
        let function = streamed[0].function.as_ref().ok_or("no function")?;
        assert_eq!((function.name.as_deref(), streamed.len()), (Some("set"), 1));
        Ok(())
    }

    async fn completions(&self) -> Outcome {
        let completions = self.client.completions();
        let whole = completions.create(request(&self.text, json!({}))).await?;
        assert_eq!(whole.choices[0].text, self.answer);
        let bent = json!({"logprobs": 2, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logit_bias": {"5": -1}});
        assert!(completions.create(request(&self.text, bent)).await?.choices[0].logprobs.is_some());
        let prompts = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 2});
        assert_eq!(completions.create(request(&self.text, prompts)).await?.choices.len(), 4);
        let mut stream = completions.create_stream(request(&self.text, json!({"stream": true}))).await?;
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            text.extend(chunk?.choices.into_iter().map(|choice| choice.text));
        }
        assert_eq!(text, self.answer);
        Ok(())
    }

    async fn errors(&self) -> Outcome {
        let chat: CreateChatCompletionRequest = request(&self.chat, json!({"model": "gpt-4"}));
        let text: CreateCompletionRequest = request(&self.text, json!({"echo": true}));
        let name = |error: OpenAIError| match error {
            OpenAIError::ApiError(response) => {
                let error = response.api_error;
                (error.code.unwrap_or_default(), error.param.unwrap_or_default())
            }
            other => (other.to_string(), String::new()),
        };
        let found = [
            name(self.client.chat().create(chat.clone()).await.err().ok_or("another model was taken")?),
            name(self.client.completions().create(text).await.err().ok_or("echo was taken")?),
            name(self.client.models().retrieve("gpt-4").await.err().ok_or("another model is there")?),
        ];
        assert_eq!(found[0], ("model_not_found".into(), "model".into()));
        assert_eq!(found[1], ("unsupported_parameter".into(), "echo".into()));
        assert_eq!(found[2].0, "model_not_found");
        let mut stream =
            match self.client.chat().create_stream(CreateChatCompletionRequest { stream: Some(true), ..chat }).await {
                Err(_) => return Ok(()),
                Ok(stream) => stream,
            };
        match stream.next().await {
            Some(Err(_)) => Ok(()),
            _ => Err("a stream of another model".into()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, model, golden] = &arguments[..] else {
        return Err("usage: anemone-async-openai URL MODEL GOLDEN".into());
    };
    let text = std::fs::read_to_string(golden)?;
    let record: Value = serde_json::from_str(text.lines().next().ok_or("no golden answer")?)?;
    let config = OpenAIConfig::new().with_api_base(format!("{url}/v1")).with_api_key("none");
    let base = json!({"model": model, "temperature": 0.0, "max_tokens": 200});
    let with = |name: &str, value: &Value| {
        let mut base = base.clone();
        base[name] = value.clone();
        base
    };
    let judge = Judge {
        client: Client::with_config(config),
        model: model.clone(),
        chat: {
            let mut chat = with("messages", &record["messages"]);
            chat.as_object_mut().and_then(|fields| fields.remove("max_tokens"));
            chat
        },
        text: with("prompt", &record["prompt_ids"]),
        answer: record["expected_text"].as_str().ok_or("no golden text")?.to_owned(),
    };
    judge.models().await?;
    judge.chats().await?;
    judge.forms().await?;
    judge.completions().await?;
    judge.errors().await?;
    println!("ok    async-openai: models, chat, forms and calls, completions, errors");
    Ok(())
}
