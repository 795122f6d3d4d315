//! `tojson` as transformers defines it: Python's `json.dumps` without escaping of what is not ASCII. Templates were written, and
//! models trained, with its spaces after `,` and `:`.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// One line, with a space after each `,` and `:`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The filter `tojson(indent=N, ensure_ascii=false)`.
pub(super) fn dumps(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<u32> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, OneLine)),
        Some(n) => {
            let indent = vec![b' '; n.min(32) as usize];
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&indent)))
        }
    };
    let no_json = |e: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}"));
    written.map_err(|e| no_json(&e))?;
    String::from_utf8(out).map_err(|e| no_json(&e))
}
