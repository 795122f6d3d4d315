//! Errors in the form that OpenAI's clients read: a status, and an object that names the field at fault.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

/// A request that is not answered, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// A word for programs.
    pub code: &'static str,
    /// Seconds after which to ask again.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// Of that status, with a word for programs.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field that is wrong, and how.
    pub fn field(name: &str, problem: impl std::fmt::Display) -> Self {
        let refusal = Self::new(StatusCode::BAD_REQUEST, "invalid_value", format!("`{name}`: {problem}"));
        Self { param: Some(name.to_owned()), ..refusal }
    }

    /// A field that cannot be honoured.
    pub fn unsupported(name: &str, problem: impl std::fmt::Display) -> Self {
        Self { code: "unsupported_parameter", ..Self::field(name, problem) }
    }

    /// A fault of ours.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message.to_string())
    }

    /// The body: `{"error": {...}}`.
    pub fn json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }

    /// The whole answer.
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What the chat crate refuses is the request's fault, unless it is the model's.
impl From<anemone_chat::Error> for Refusal {
    fn from(error: anemone_chat::Error) -> Self {
        use anemone_chat::Error as E;
        match &error {
            E::Option { option, .. } => Self::field(option, &error),
            E::Conversation(_) | E::Role(_) | E::Injection => Self::field("messages", &error),
            E::Grammar(_) => Self::field("response_format", &error),
            _ => Self::internal(&error),
        }
    }
}

impl From<anemone_chat::engine::Error> for Refusal {
    fn from(error: anemone_chat::engine::Error) -> Self {
        anemone_chat::Error::from(error).into()
    }
}
