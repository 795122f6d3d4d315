//! A request's fields, taken one by one: what is left over at the end is refused by name, so that no field is ever ignored.

use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::refusal::Refusal;

/// The fields nobody has taken yet. `null` counts as absent.
pub struct Fields {
    map: Map<String, Value>,
    /// Where they stand: empty, or `stream_options.` for those of a field.
    path: String,
}

impl Fields {
    /// Of a request's body.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let bad = |problem: String| Refusal::new(StatusCode::BAD_REQUEST, "invalid_json", problem);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map, path: String::new() }),
            Ok(_) => Err(bad("the body is JSON, and not an object".into())),
            Err(e) => Err(bad(format!("the body is no JSON: {e}"))),
        }
    }

    /// Of an object inside a body; `path` is where it stands.
    pub fn within(value: Value, path: String) -> Result<Self, Refusal> {
        match value {
            Value::Object(map) => Ok(Self { map, path: path + "." }),
            other => Err(Refusal::field(&path, format_args!("expected an object, found {}", brief(&other)))),
        }
    }

    /// What is not yet taken, by name.
    pub fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    /// Whether there is such a field.
    pub fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|v| !v.is_null())
    }

    /// Any value.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// A string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.of(name, "a string", |v| v.as_str().map(str::to_owned))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.of(name, "true or false", Value::as_bool)
    }

    /// A number in a range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, Refusal> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.of(name, expected, |v| v.as_f64().filter(|n| range.contains(n)).map(|n| n as f32))
    }

    /// A whole number in a range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Refusal> {
        let expected = match *range.end() {
            u64::MAX => format!("a whole number of at least {}", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.of(name, expected, |v| v.as_u64().filter(|n| range.contains(n)))
    }

    /// An object, whose fields are taken in their turn.
    pub fn object(&mut self, name: &str) -> Result<Option<Fields>, Refusal> {
        let path = format!("{}{name}.", self.path);
        let map = self.of(name, "an object", |v| v.as_object().cloned())?;
        Ok(map.map(|map| Fields { map, path }))
    }

    /// A field that OpenAI knows, and that is honoured only where it changes nothing: with the value `neutral`.
    pub fn neutral(&mut self, name: &str, neutral: Value) -> Result<(), Refusal> {
        let same = |v: &Value| *v == neutral || (v.is_number() && v.as_f64() == neutral.as_f64());
        match self.take(name) {
            Some(value) if !same(&value) => {
                Err(Refusal::unsupported(&self.name(name), format_args!("only {neutral} can be honoured here")))
            }
            _ => Ok(()),
        }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), Refusal> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(Refusal::unsupported(&self.name(name), "this field is not supported; leave it out")),
            None => Ok(()),
        }
    }

    /// How a field is called in a refusal.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    fn of<T>(
        &mut self,
        name: &str,
        expected: impl Display,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(Refusal::field(&self.name(name), format_args!("expected {expected}, found {}", brief(&value)))),
        }
    }
}

/// A value in a refusal: small ones as they are, large ones by their kind.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(s) if s.chars().count() > 40 => "a long string".into(),
        small => small.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_takes_is_refused_by_name() {
        let mut f = fields(json!({"seed": 3, "stream": null, "functions": {"5": 1}}));
        assert_eq!(f.integer("seed", 0..=u64::MAX), Ok(Some(3)));
        let refusal = f.finish().unwrap_err();
        assert_eq!((refusal.param.as_deref(), refusal.code), (Some("functions"), "unsupported_parameter"));
        let mut inner = fields(json!({"stream_options": {"include_usage": true, "x": 1}})).object("stream_options");
        let inner = inner.as_mut().unwrap().as_mut().unwrap();
        assert_eq!(inner.boolean("include_usage"), Ok(Some(true)));
        assert_eq!(inner.name("x"), "stream_options.x");
    }

    #[test]
    fn values_are_held_to_their_type_and_range() {
        for (value, expected) in [
            (json!(-1), "`n`: expected a whole number from 1 to 8, found -1"),
            (json!(9), "`n`: expected a whole number from 1 to 8, found 9"),
            (json!(1.5), "`n`: expected a whole number from 1 to 8, found 1.5"),
            (json!("1"), "`n`: expected a whole number from 1 to 8, found \"1\""),
            (json!([1]), "`n`: expected a whole number from 1 to 8, found a list"),
        ] {
            assert_eq!(fields(json!({"n": value})).integer("n", 1..=8).unwrap_err().message, expected);
        }
        assert_eq!(fields(json!({"n": 0})).neutral("n", json!(0.0)), Ok(()));
        assert!(fields(json!({"n": 0.1})).neutral("n", json!(0.0)).is_err());
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for body in ["", "[]", "{", "{\"a\":1}x", "\u{0}"] {
            assert_eq!(Fields::parse(body.as_bytes()).err().unwrap().code, "invalid_json", "{body:?}");
        }
        // serde_json stops at a depth of 128.
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
