//! `tojson` as transformers defines it: Python's `json.dumps`, by default without escaping what is not ASCII. Templates were written,
//! and models trained, with its spaces after `,` and `:`.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};

use super::python;

/// Python's layout: on one line with separators, or by [`PrettyFormatter`] over lines.
struct Layout<'a> {
    lines: Option<PrettyFormatter<'a>>,
    comma: &'a str,
    colon: &'a str,
    ascii: bool,
}

/// Passes a call on where there are lines, and does `$one_line` where not.
macro_rules! either {
    ($self:ident.$method:ident($($arg:ident),*), $one_line:expr) => {
        match &mut $self.lines {
            Some(lines) => lines.$method($($arg),*),
            None => $one_line,
        }
    };
}

impl Formatter for Layout<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(python::float(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.begin_array(out), out.write_all(b"["))
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.end_array(out), out.write_all(b"]"))
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        either!(self.begin_array_value(out, first), if first { Ok(()) } else { out.write_all(self.comma.as_bytes()) })
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.end_array_value(out), Ok(()))
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.begin_object(out), out.write_all(b"{"))
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.end_object(out), out.write_all(b"}"))
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        either!(self.begin_object_key(out, first), if first { Ok(()) } else { out.write_all(self.comma.as_bytes()) })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        either!(self.end_object_value(out), Ok(()))
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            // Noncharacters stay as they are: prompts are marked with them.
            if c.is_ascii() && c != '\u{7f}' || ('\u{fdd0}'..='\u{fdef}').contains(&c) {
                out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::Quote => out.write_all(b"\\\""),
            CharEscape::ReverseSolidus => out.write_all(b"\\\\"),
            CharEscape::Solidus => out.write_all(b"/"),
            CharEscape::Backspace => out.write_all(b"\\b"),
            CharEscape::FormFeed => out.write_all(b"\\f"),
            CharEscape::LineFeed => out.write_all(b"\\n"),
            CharEscape::CarriageReturn => out.write_all(b"\\r"),
            CharEscape::Tab => out.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(out, "\\u{byte:04x}"),
        }
    }
}

/// What the filter `tojson(indent=N, ensure_ascii=false, separators=(",", ":"))` gives, written to `out`.
pub(super) fn dumps(value: &Value, options: &Kwargs, out: &mut dyn Write) -> Result<(), Error> {
    let indent: Option<u32> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let (comma, colon) = match separators.as_deref() {
        None => (", ", ": "),
        Some([comma, colon]) if indent.is_none() => (comma.as_str(), colon.as_str()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two, and without indent"));
        }
    };
    let spaces = " ".repeat(indent.unwrap_or_default().min(32) as usize);
    let lines = indent.map(|_| PrettyFormatter::with_indent(spaces.as_bytes()));
    let layout = Layout { lines, comma, colon, ascii: ascii.unwrap_or(false) };
    let written = value.serialize(&mut Serializer::with_formatter(out, layout));
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))
}
