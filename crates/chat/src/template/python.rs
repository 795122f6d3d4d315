//! Values as Python prints them. Templates print lists and maps, and models saw the result: `{'a': None}`, not `{"a": null}`.

use std::fmt::{self, Display, Formatter, Write};

use minijinja::value::{Value, ValueKind};

/// `str(value)`.
pub(super) struct Text<'a>(pub &'a Value);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            Some(text) => f.write_str(text),
            None => Repr(self.0).fmt(f),
        }
    }
}

/// `repr(value)`.
struct Repr<'a>(&'a Value);

impl Display for Repr<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let value = self.0;
        match value.kind() {
            ValueKind::String => quoted(value.as_str().unwrap_or_default(), f),
            ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
                Ok(number) => f.write_str(&float(number)),
                Err(_) => value.fmt(f),
            },
            ValueKind::Seq | ValueKind::Iterable => {
                f.write_char('[')?;
                for (i, item) in value.as_object().and_then(|o| o.try_iter()).into_iter().flatten().enumerate() {
                    write!(f, "{}{}", if i > 0 { ", " } else { "" }, Repr(&item))?;
                }
                f.write_char(']')
            }
            ValueKind::Map => {
                f.write_char('{')?;
                for (i, (key, item)) in
                    value.as_object().and_then(|o| o.try_iter_pairs()).into_iter().flatten().enumerate()
                {
                    write!(f, "{}{}: {}", if i > 0 { ", " } else { "" }, Repr(&key), Repr(&item))?;
                }
                f.write_char('}')
            }
            _ => value.fmt(f),
        }
    }
}

/// A string literal. Noncharacters stay as they are: prompts are marked with them.
fn quoted(text: &str, f: &mut Formatter<'_>) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    f.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c == quote => write!(f, "\\{c}")?,
            ' ' => f.write_char(c)?,
            c if c.is_control()
                || c.is_whitespace()
                || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{feff}') =>
            {
                match u32::from(c) {
                    code @ ..=0xff => write!(f, "\\x{code:02x}")?,
                    code => write!(f, "\\u{code:04x}")?,
                }
            }
            c => f.write_char(c)?,
        }
    }
    f.write_char(quote)
}

/// A float with the fewest digits that give it back: an exponent from 1e16 and below 1e-4 on, of two digits at least.
pub(super) fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "nan".into()
        } else if number > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let size = number.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        let text = number.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_look_as_in_python() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"a": [1, 2.0, true, null, "it's", "\"", "'\"", "x\n\u00a0é\u0001"], "b": {}}"#)
                .unwrap();
        let text = Text(&Value::from_serialize(&value)).to_string();
        assert_eq!(text, r#"{'a': [1, 2.0, True, None, "it's", '"', '\'"', 'x\n\xa0é\x01'], 'b': {}}"#);
        assert_eq!(Text(&Value::from("a'b")).to_string(), "a'b");
    }

    #[test]
    fn floats_look_as_in_python() {
        let texts = [0.0, -0.0, 1.0, 0.1, 1e-4, 1e-5, 1.5e-7, 1e15, 1e16, 1.25e20, -1e100, f64::MAX].map(float);
        let python =
            "0.0 -0.0 1.0 0.1 0.0001 1e-05 1.5e-07 1000000000000000.0 1e+16 1.25e+20 -1e+100 1.7976931348623157e+308";
        assert_eq!(texts.join(" "), python);
    }
}
