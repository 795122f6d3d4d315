//! The meter: what a template's operations cost, and where they stop.
//!
//! One [`Meter`] belongs to one rendering. Everything that makes or walks data charges it, before it does so where the size is known:
//! a byte or an element made costs as many units as bounds the memory that all of them together can take, a node of a tree seen as
//! many as bounds the time. [`guard`](super::guard) puts the functions defined here where a template's operations were.

use std::fmt::{self, Display, Write as _};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::json;
use super::python::Text;

/// Units of one rendering. Text of half a megabyte, each message looked at ten times over, takes some 20 million.
const UNITS: u64 = 1 << 28;
/// Cost of a byte made: at most 64 MiB of text in all.
const BYTE: u64 = 4;
/// Cost of an element of a list made.
const ELEMENT: u64 = 128;
/// Cost of a byte written to the output, or into a variable by a block: at most 16 MiB in all.
const WRITTEN: u64 = 16;
/// Cost of a node of a tree seen: at most 16 million, a second's work or two.
const NODE: u64 = 16;
/// How deep lists and maps may nest. Serde reads JSON to the same depth.
const MAX_DEPTH: usize = 128;

/// Names of functions, such as no template can spell.
pub(super) const CONCAT: &str = "~";
pub(super) const ADD: &str = "+";
pub(super) const MULTIPLY: &str = "*";
/// Looks a value through, as a tree, and gives it back.
pub(super) const SEEN: &str = "?";
/// The same, and lets only plain data pass.
pub(super) const PLAIN: &str = "!";
/// Charges for a string's length, and gives the value back.
pub(super) const TEXT: &str = "#";
/// A part of a string or list.
pub(super) const SLICE: &str = ":";
/// Makes a list of a lazy sequence.
pub(super) const WHOLE: &str = "@";
/// The same for what a loop runs over, which must be a sequence, a map, or nothing defined.
pub(super) const EACH: &str = "%";
/// Refuses, with the message it is given.
pub(super) const REFUSE: &str = "";

/// What is left of a rendering's units.
#[derive(Debug)]
pub(super) struct Meter(AtomicU64);

impl Meter {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(UNITS)))
    }

    fn charge(&self, count: usize, cost: u64) -> Result<(), Error> {
        let units = (count as u64).saturating_mul(cost);
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(units));
        match spent {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(ErrorKind::OutOfFuel, "makes or reads more data than any conversation needs")),
        }
    }

    /// Walks a value as the tree that comparing and writing would walk.
    fn see(&self, value: &Value, depth: usize, plain: bool) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            let message = format!("lists and maps nest deeper than {MAX_DEPTH}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        // Bytes of a string cost a comparison little; what copies them is charged for it.
        self.charge(1, NODE + value.as_str().map_or(0, str::len) as u64 / 64)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        let kind = value.kind();
        // The engine's own objects, which hold on to variables: namespaces, macros, loops.
        let name = object.type_name();
        if plain && (kind == ValueKind::Plain || name.ends_with("::Namespace") || name.starts_with("minijinja::vm::")) {
            let message = "namespaces, macros and loops cannot be part of other values";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        match kind {
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.see(&key, depth + 1, plain)?;
                    self.see(&item, depth + 1, plain)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in object.try_iter().into_iter().flatten() {
                    self.see(&item, depth + 1, plain)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The text of a value, as templates print it.
    fn text(&self, value: &Value) -> Result<String, Error> {
        let mut text = Metered { meter: self, text: String::new(), cost: BYTE, error: None };
        self.see(value, 0, false)?;
        text.push(&Text(value))?;
        Ok(text.text)
    }

    /// Lazy sequences as lists, also inside one another.
    fn whole(&self, value: Value, depth: usize) -> Result<Value, Error> {
        if depth > 4 {
            return Err(Error::new(ErrorKind::InvalidOperation, "lazy sequences nest too deep"));
        }
        match value.kind() {
            ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()? {
                    self.charge(1, ELEMENT)?;
                    items.push(self.whole(item, depth + 1)?);
                }
                Ok(Value::from(items))
            }
            ValueKind::Seq => self.charge(value.len().unwrap_or(0), ELEMENT).map(|()| value),
            _ => self.charge(value.as_str().map_or(0, str::len), BYTE).map(|()| value),
        }
    }

    /// Two texts in a row. As in Python, text that is marked safe for HTML has what is *added* to it escaped.
    fn concat(&self, left: &Value, right: &Value, added: bool) -> Result<Value, Error> {
        let mut text = Metered { meter: self, text: String::new(), cost: BYTE, error: None };
        let safe = added && (left.is_safe() || right.is_safe());
        for value in [left, right] {
            self.see(value, 0, false)?;
            if safe && !value.is_safe() {
                text.push(&HtmlEscaped(Text(value)))?;
            } else {
                text.push(&Text(value))?;
            }
        }
        Ok(if safe { Value::from_safe_string(text.text) } else { Value::from(text.text) })
    }

    fn add(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        if left.as_str().is_some() && right.as_str().is_some() {
            return self.concat(left, right, true);
        }
        let list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable);
        if list(left) && list(right) {
            let mut items = Vec::new();
            for item in left.try_iter()?.chain(right.try_iter()?) {
                self.charge(1, ELEMENT)?;
                items.push(item);
            }
            return Ok(Value::from(items));
        }
        arithmetic("+", left, right, i128::checked_add, |a, b| a + b)
    }

    fn multiply(&self, left: &Value, right: &Value) -> Result<Value, Error> {
        let (value, count) = if right.is_number() { (left, right) } else { (right, left) };
        let times = || count.as_i64().map(|n| usize::try_from(n).unwrap_or(0)).ok_or_else(|| unfit("*", left, right));
        if let Some(text) = value.as_str() {
            let times = times()?;
            self.charge(text.len().saturating_mul(times), BYTE)?;
            return Ok(Value::from(text.repeat(if text.is_empty() { 0 } else { times })));
        }
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            let (times, mut items) = (times()?, Vec::new());
            let list: Vec<Value> = value.try_iter()?.collect();
            self.charge(list.len().saturating_mul(times), ELEMENT)?;
            for _ in 0..if list.is_empty() { 0 } else { times } {
                items.extend_from_slice(&list);
            }
            return Ok(Value::from(items));
        }
        arithmetic("*", left, right, i128::checked_mul, |a, b| a * b)
    }

    /// Python's `value[start:stop:step]`; of nothing defined, the empty list.
    fn slice(&self, value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Error::new(ErrorKind::InvalidOperation, "a slice's step cannot be 0"));
        }
        if let Some(text) = value.as_str() {
            self.charge(text.len(), BYTE)?;
            let chars: Vec<char> = text.chars().collect();
            return Ok(indices(chars.len(), start, stop, step).map(|i| chars[i]).collect::<String>().into());
        }
        let items: Vec<Value> = match value.kind() {
            ValueKind::Undefined | ValueKind::None => Vec::new(),
            ValueKind::Seq | ValueKind::Iterable => self.whole(value.clone(), 0)?.try_iter()?.collect(),
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} cannot be sliced"))),
        };
        Ok(indices(items.len(), start, stop, step).map(|i| items[i].clone()).collect())
    }

    fn join(&self, values: &Value, separator: &str) -> Result<Value, Error> {
        let mut text = Metered { meter: self, text: String::new(), cost: BYTE, error: None };
        for (i, value) in values.try_iter()?.enumerate() {
            if i > 0 {
                text.push(&separator)?;
            }
            text.push(&Text(&value))?;
        }
        Ok(Value::from(text.text))
    }

    fn replace(&self, text: &str, from: &str, to: &str, limit: usize) -> Result<Value, Error> {
        self.charge(text.len(), BYTE)?;
        let found = text.matches(from).count().min(limit);
        self.charge(found.saturating_mul(to.len()), BYTE)?;
        Ok(Value::from(text.replacen(from, to, limit)))
    }

    /// Python's methods of strings, lists and maps.
    fn method(&self, state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
        let Some(text) = value.as_str() else { return unknown_method_callback(state, value, name, args) };
        self.charge(text.len(), BYTE)?;
        let string = |i: usize| args.get(i).and_then(Value::as_str);
        match (name, string(0), args) {
            ("replace", Some(from), [_, to]) if to.as_str().is_some() => {
                self.replace(text, from, to.as_str().unwrap_or_default(), usize::MAX)
            }
            ("replace", Some(from), [_, to, limit]) if to.as_str().is_some() => {
                let limit = limit.as_i64().map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
                self.replace(text, from, to.as_str().unwrap_or_default(), limit)
            }
            ("join", _, [values]) => self.join(values, text),
            // The empty string occurs between all characters; looked for in earnest it is found for ever.
            ("count", Some(""), _) => Ok(Value::from(text.chars().count() + 1)),
            ("split", Some(""), _) => Err(Error::new(ErrorKind::InvalidOperation, "split: empty separator")),
            ("split" | "splitlines", _, _) => {
                let pieces = match string(0) {
                    Some(separator) => text.matches(separator).count(),
                    None => text.chars().filter(|c| c.is_whitespace()).count(),
                };
                self.charge(pieces + 1, ELEMENT)?;
                unknown_method_callback(state, value, name, args)
            }
            // Without widths, each field is as long as what fills it.
            ("format", ..) if !text.contains(':') => {
                let mut longest = 0;
                for arg in args {
                    longest = longest.max(self.text(arg)?.len());
                }
                self.charge(text.matches('{').count().saturating_mul(longest), BYTE)?;
                unknown_method_callback(state, value, name, args)
            }
            ("format", ..) => {
                Err(Error::new(ErrorKind::InvalidOperation, "format: widths and precisions are not known"))
            }
            _ => unknown_method_callback(state, value, name, args),
        }
    }
}

/// Text that charges as it grows.
struct Metered<'a> {
    meter: &'a Meter,
    text: String,
    cost: u64,
    error: Option<Error>,
}

impl Metered<'_> {
    fn push(&mut self, value: &dyn Display) -> Result<(), Error> {
        match write!(self, "{value}") {
            Ok(()) => Ok(()),
            Err(_) => Err(self.error.take().unwrap_or_else(|| ErrorKind::WriteFailure.into())),
        }
    }
}

impl fmt::Write for Metered<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.meter.charge(part.len(), self.cost).map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })?;
        self.text.push_str(part);
        Ok(())
    }
}

impl io::Write for Metered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Serde writes whole pieces of UTF-8.
        let part = std::str::from_utf8(bytes).map_err(io::Error::other)?;
        self.write_str(part).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What HTML would show as the text within.
struct HtmlEscaped<'a>(Text<'a>);

impl Display for HtmlEscaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escaping<'_, '_> {
            fn write_str(&mut self, part: &str) -> fmt::Result {
                part.chars().try_for_each(|c| match c {
                    '&' => self.0.write_str("&amp;"),
                    '<' => self.0.write_str("&lt;"),
                    '>' => self.0.write_str("&gt;"),
                    '\'' => self.0.write_str("&#39;"),
                    '"' => self.0.write_str("&#34;"),
                    c => self.0.write_char(c),
                })
            }
        }
        write!(Escaping(f), "{}", self.0)
    }
}

/// Which elements of so many a slice takes, by Python's rules: bounds count from the end where they are negative, and those
/// outside are moved to the nearest end.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = len as i64;
    let (first, last) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |at: i64| if at < 0 { at.saturating_add(len) } else { at }.clamp(first, last);
    let (from, to) = if step > 0 { (first, last) } else { (last, first) };
    let (start, stop) = (start.map_or(from, bound), stop.map_or(to, bound));
    let inside = move |at: &i64| if step > 0 { *at < stop } else { *at > stop };
    std::iter::successors(Some(start), move |at| at.checked_add(step)).take_while(inside).map(|at| at as usize)
}

fn unfit(operator: &str, left: &Value, right: &Value) -> Error {
    let message = format!("{} {operator} {} is not defined", left.kind(), right.kind());
    Error::new(ErrorKind::InvalidOperation, message)
}

fn arithmetic(
    operator: &str,
    left: &Value,
    right: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let number = |v: &Value| v.is_number() || v.kind() == ValueKind::Bool;
    if !number(left) || !number(right) {
        return Err(unfit(operator, left, right));
    }
    if let (Ok(a), Ok(b)) = (i128::try_from(left.clone()), i128::try_from(right.clone()))
        && !(is_float(left) || is_float(right))
    {
        let sum = whole(a, b).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the number is too large"))?;
        return Ok(i64::try_from(sum).map_or_else(|_| Value::from(sum), Value::from));
    }
    Ok(Value::from(real(f64::try_from(left.clone())?, f64::try_from(right.clone())?)))
}

fn is_float(value: &Value) -> bool {
    value.is_number() && !value.is_integer()
}

/// Puts the meter's functions, filters and methods into an environment.
pub(super) fn install(environment: &mut Environment<'_>, meter: &Arc<Meter>) {
    /// Defines a closure's own copy of the meter.
    macro_rules! metered {
        (|$meter:ident $(, $arg:ident : $ty:ty)*| $body:expr) => {{
            let $meter = meter.clone();
            move |$($arg: $ty),*| $body
        }};
    }
    environment.add_function(CONCAT, metered!(|m, a: Value, b: Value| m.concat(&a, &b, false)));
    environment.add_function(ADD, metered!(|m, a: Value, b: Value| m.add(&a, &b)));
    environment.add_function(MULTIPLY, metered!(|m, a: Value, b: Value| m.multiply(&a, &b)));
    environment.add_function(SEEN, metered!(|m, a: Value| m.see(&a, 0, false).map(|()| a)));
    environment.add_function(PLAIN, metered!(|m, a: Value| m.see(&a, 0, true).map(|()| a)));
    environment.add_function(TEXT, metered!(|m, a: Value| m.charge(a.as_str().map_or(1, str::len), 1).map(|()| a)));
    environment.add_function(
        SLICE,
        metered!(|m, a: Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>| m.slice(&a, start, stop, step)),
    );
    environment.add_function(WHOLE, metered!(|m, a: Value| m.whole(a, 0)));
    environment.add_function(
        EACH,
        metered!(|m, a: Value| match a.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                Err(Error::new(ErrorKind::InvalidOperation, format!("{} is not iterable", a.kind())))
            }
            _ => m.whole(a, 0),
        }),
    );
    environment
        .add_function(REFUSE, |message: String| Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message)));
    // As in Jinja2, whose `none` is not iterable, and whose strings and maps are sequences.
    let iterable = |kind| {
        matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::String | ValueKind::Undefined)
    };
    environment.add_test("iterable", move |a: &Value| iterable(a.kind()));
    environment.add_test("sequence", move |a: &Value| iterable(a.kind()));

    environment.add_filter("string", metered!(|m, a: Value| m.text(&a)));
    environment.add_filter(
        "list",
        metered!(|m, a: Value| {
            match a.as_str() {
                Some(text) => m.charge(text.len(), ELEMENT).map(|()| text.chars().map(Value::from).collect::<Value>()),
                None => {
                    m.whole(Value::make_object_iterable(a.clone(), |a| Box::new(a.try_iter().into_iter().flatten())), 0)
                }
            }
        }),
    );
    environment.add_filter(
        "join",
        metered!(|m, a: Value, separator: Option<String>| {
            m.see(&a, 0, false)?;
            m.join(&a, separator.as_deref().unwrap_or_default())
        }),
    );
    environment.add_filter(
        "replace",
        metered!(|m, a: StringInput<'_>, from: String, to: String| { m.replace(a.as_str(), &from, &to, usize::MAX) }),
    );
    environment.add_filter(
        "indent",
        metered!(|m, text: String, width: usize, rest: Rest<Value>| {
            let on = |i: usize| rest.get(i).is_some_and(Value::is_true);
            m.charge(
                text.len().saturating_add(text.matches('\n').count().saturating_add(1).saturating_mul(width)),
                BYTE,
            )?;
            Ok::<_, Error>(indent(&text, width, on(0), on(1)))
        }),
    );
    environment.add_filter(
        "wordcount",
        metered!(|m, text: String| { m.charge(text.len(), BYTE).map(|()| text.split_whitespace().count()) }),
    );
    environment.add_filter(
        "tojson",
        metered!(|m, a: Value, options: Kwargs| {
            m.see(&a, 0, false)?;
            let mut text = Metered { meter: &m, text: String::new(), cost: BYTE, error: None };
            match json::dumps(&a, &options, &mut text) {
                Ok(()) => Ok(text.text),
                Err(error) => Err(text.error.take().unwrap_or(error)),
            }
        }),
    );
    let own = meter.clone();
    environment.set_unknown_method_callback(move |state, value, name, args| own.method(state, value, name, args));
    let own = meter.clone();
    environment.set_formatter(move |out, _, value| {
        own.see(value, 0, false)?;
        let mut text = Metered { meter: &own, text: String::new(), cost: WRITTEN, error: None };
        text.push(&Text(value))?;
        out.write_str(&text.text).map_err(Error::from)
    });
}

/// Jinja's `indent`: spaces before each line, the first only if asked for, empty ones only if asked for.
fn indent(text: &str, width: usize, first: bool, blank: bool) -> String {
    let spaces = " ".repeat(width);
    let line = |(i, line): (usize, &str)| {
        let indented = if i == 0 { first } else { blank || !line.is_empty() };
        if indented { format!("{spaces}{line}") } else { line.to_owned() }
    };
    text.split('\n').enumerate().map(line).collect::<Vec<_>>().join("\n")
}
