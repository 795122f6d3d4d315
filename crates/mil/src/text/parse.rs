//! Parsing: the inverse of [`to_text`](super::to_text).
//!
//! The first error ends it, with its line. What parses is well-formed text, not a valid program: that is the validator's to say.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use half::{bf16, f16};

use crate::ir::{
    About, Arg, Dim, Dtype, Feature, Flexibility, Function, Interface, Literal, Op, Payload, Program, TensorType,
    Value, ValueId, ValueType,
};
use crate::ops::shape::{MAX_DIM, MAX_RANK};

/// How deep types and literals may nest.
const MAX_DEPTH: usize = 16;

/// Text that is no program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: usize,
    /// What was found and what was expected.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Reads a program. Comments run from `;` to the end of their line.
pub fn parse(text: &str) -> Result<Program> {
    let mut p = Parser { text, at: 0 };
    let program = p.program()?;
    p.space();
    match p.rest().is_empty() {
        true => Ok(program),
        false => Err(p.expected("the end of the text")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

/// A function's values while it is read.
#[derive(Default)]
struct Names {
    values: Vec<Value>,
    ids: HashMap<String, ValueId>,
}

impl Names {
    fn define(&mut self, value: Value) -> ValueId {
        // Texts are far shorter than 2^32 values.
        let id = ValueId(self.values.len() as u32);
        self.ids.insert(value.name.clone(), id);
        self.values.push(value);
        id
    }
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        let line = self.text[..self.at].bytes().filter(|&b| b == b'\n').count() + 1;
        Err(ParseError { line, message: message.into() })
    }

    fn expected(&self, what: &str) -> ParseError {
        let found: String = self.rest().chars().take_while(|c| *c != '\n').take(24).collect();
        let found = if found.is_empty() { "the end of the line".to_owned() } else { format!("{found:?}") };
        let line = self.text[..self.at].bytes().filter(|&b| b == b'\n').count() + 1;
        ParseError { line, message: format!("expected {what}, found {found}") }
    }

    fn space(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// Takes a punctuation mark or word if it comes next.
    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let Some(after) = self.rest().strip_prefix(token) else { return false };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if token.ends_with(word) && after.starts_with(word) {
            return false;
        }
        self.at += token.len();
        true
    }

    fn need(&mut self, token: &str) -> Result<()> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("`{token}`"))) }
    }

    fn word(&mut self) -> Option<&'a str> {
        self.space();
        let rest = self.rest();
        let n = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        self.at += n;
        (n > 0).then(|| &rest[..n])
    }

    /// A quoted string, with the escapes that printing makes.
    fn string(&mut self) -> Result<String> {
        self.need("\"")?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('r') => out.push('\r'),
                    Some('t') => out.push('\t'),
                    Some('0') => out.push('\0'),
                    Some(c @ ('"' | '\\' | '\'')) => out.push(c),
                    Some('u') => {
                        let digits: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                        match u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32) {
                            Some(c) => out.push(c),
                            None => return self.fail(format!("\\u{{{digits}}} is no character")),
                        }
                    }
                    other => return self.fail(format!("unknown escape {other:?}")),
                },
                c => out.push(c),
            }
        }
        self.fail("a string without end")
    }

    /// A name: bare or quoted.
    fn name(&mut self) -> Result<String> {
        self.space();
        if self.rest().starts_with('"') {
            return self.string();
        }
        self.word().map(str::to_owned).ok_or_else(|| self.expected("a name"))
    }

    fn number(&mut self) -> Result<usize> {
        self.space();
        let start = self.at;
        match self.word().and_then(|w| w.parse().ok()) {
            Some(n) => Ok(n),
            None => {
                self.at = start;
                Err(self.expected("a number"))
            }
        }
    }

    fn size(&mut self) -> Result<usize> {
        let n = self.number()?;
        if n > MAX_DIM { self.fail(format!("a dimension of {n}")) } else { Ok(n) }
    }

    fn program(&mut self) -> Result<Program> {
        self.need("program")?;
        let version = self.number()?;
        let Ok(spec_version) = i32::try_from(version) else {
            return self.fail(format!("a specification version of {version}, expected 6 to 10"));
        };
        self.need("default")?;
        let default_function = self.name()?;
        let multifunction = self.eat("multi");
        if !multifunction {
            self.need("single")?;
        }
        self.need("{")?;
        let mut program = Program {
            spec_version,
            functions: Vec::new(),
            default_function,
            multifunction,
            metadata: BTreeMap::new(),
            about: About::default(),
            attributes: BTreeMap::new(),
        };
        while !self.eat("}") {
            if self.eat("about") {
                let key = self.name()?;
                let text = self.string()?;
                match key.as_str() {
                    "description" => program.about.short_description = text,
                    "version" => program.about.version = text,
                    "author" => program.about.author = text,
                    "license" => program.about.license = text,
                    _ => return self.fail(format!("`about {key}`: expected description, version, author or license")),
                }
            } else if self.eat("metadata") {
                let key = self.string()?;
                let text = self.string()?;
                program.metadata.insert(key, text);
            } else if self.eat("attribute") {
                let key = self.name()?;
                self.need("=")?;
                let lit = self.literal(0)?;
                program.attributes.insert(key, lit);
            } else if self.eat("func") {
                let function = self.function()?;
                program.functions.push(function);
            } else {
                return Err(self.expected("`about`, `metadata`, `attribute`, `func` or `}`"));
            }
        }
        Ok(program)
    }

    fn function(&mut self) -> Result<Function> {
        let name = self.name()?;
        let opset = self.name()?;
        let mut names = Names::default();
        let (mut inputs, mut ops) = (Vec::new(), Vec::new());
        let mut interface = Interface::default();
        self.need("(")?;
        while !self.eat(")") {
            if !inputs.is_empty() {
                self.need(",")?;
            }
            let value = self.declaration()?;
            inputs.push(names.define(value));
        }
        self.need("{")?;
        loop {
            if self.eat("return") {
                break;
            } else if self.keyword("input") {
                interface.inputs.push(self.feature()?);
            } else if self.keyword("state") {
                interface.states.push(self.feature()?);
            } else if self.keyword("output") {
                interface.outputs.push(self.feature()?);
            } else {
                ops.push(self.op(&mut names)?);
            }
        }
        let mut outputs = Vec::new();
        while !self.eat("}") {
            if !outputs.is_empty() {
                self.need(",")?;
            }
            outputs.push(self.reference(&names)?);
        }
        Ok(Function { name, opset, values: names.values, inputs, ops, outputs, interface })
    }

    /// A keyword that starts a line and is not the name of an op, which a parenthesis would follow.
    fn keyword(&mut self, word: &str) -> bool {
        let start = self.at;
        if self.eat(word) && !self.rest().trim_start().starts_with('(') {
            return true;
        }
        self.at = start;
        false
    }

    fn declaration(&mut self) -> Result<Value> {
        self.need("%")?;
        let name = self.name()?;
        self.need(":")?;
        Ok(Value { name, ty: self.value_type(0)? })
    }

    fn reference(&mut self, names: &Names) -> Result<ValueId> {
        self.need("%")?;
        let name = self.name()?;
        match names.ids.get(&name) {
            Some(id) => Ok(*id),
            None => self.fail(format!("`%{name}` is not defined before its use")),
        }
    }

    fn op(&mut self, names: &mut Names) -> Result<Op> {
        let mut outputs = Vec::new();
        self.space();
        if self.rest().starts_with('%') {
            outputs.push(self.declaration()?);
            while self.eat(",") {
                outputs.push(self.declaration()?);
            }
            self.need("=")?;
        }
        let kind = self.name()?;
        let mut inputs = BTreeMap::new();
        self.need("(")?;
        while !self.eat(")") {
            if !inputs.is_empty() {
                self.need(",")?;
            }
            let param = self.name()?;
            self.need("=")?;
            let mut args = Vec::new();
            if self.eat("[") {
                while !self.eat("]") {
                    if !args.is_empty() {
                        self.need(",")?;
                    }
                    args.push(self.arg(names)?);
                }
            } else {
                args.push(self.arg(names)?);
            }
            inputs.insert(param, args);
        }
        let (mut name, mut attributes) = (String::new(), BTreeMap::new());
        self.need("{")?;
        let mut first = true;
        while !self.eat("}") {
            if !first {
                self.need(",")?;
            }
            first = false;
            let key = self.name()?;
            self.need("=")?;
            if key == "name" {
                name = self.string()?;
            } else {
                let lit = self.literal(0)?;
                attributes.insert(key, lit);
            }
        }
        let outputs = outputs.into_iter().map(|v| names.define(v)).collect();
        Ok(Op { kind, name, inputs, outputs, attributes })
    }

    fn arg(&mut self, names: &Names) -> Result<Arg> {
        self.space();
        match self.rest().starts_with('%') {
            true => self.reference(names).map(Arg::Value),
            false => self.literal(0).map(Arg::Literal),
        }
    }

    fn shape(&mut self) -> Result<Vec<usize>> {
        self.need("[")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            if !shape.is_empty() {
                self.need(",")?;
            }
            if shape.len() == MAX_RANK {
                return self.fail(format!("more than {MAX_RANK} dimensions"));
            }
            shape.push(self.size()?);
        }
        Ok(shape)
    }

    fn feature(&mut self) -> Result<Feature> {
        let name = self.name()?;
        self.need(":")?;
        let dtype = self.dtype()?;
        self.space();
        let shape = if self.rest().starts_with('[') { Some(self.shape()?) } else { None };
        let mut flexibility = Flexibility::Fixed;
        if self.eat("one") {
            self.need("of")?;
            let mut shapes = Vec::new();
            loop {
                self.space();
                if !self.rest().starts_with('[') {
                    break;
                }
                shapes.push(self.shape()?);
            }
            flexibility = Flexibility::Enumerated(shapes);
        } else if self.eat("range") {
            let mut bounds = Vec::new();
            loop {
                self.space();
                if !self.rest().starts_with(|c: char| c.is_ascii_digit()) {
                    break;
                }
                let low = self.size()?;
                self.need("..")?;
                let high = if self.eat("?") { None } else { Some(self.size()?) };
                bounds.push((low, high));
            }
            flexibility = Flexibility::Range(bounds);
        }
        let optional = self.eat("optional");
        let default = if self.eat("default") { Some(self.token()?.1) } else { None };
        let default = match default.map(|t| t.parse::<f64>()) {
            None => None,
            Some(Ok(v)) => Some(v),
            Some(Err(_)) => return Err(self.expected("a number")),
        };
        Ok(Feature { name, dtype, shape, flexibility, optional, default })
    }

    fn dtype(&mut self) -> Result<Dtype> {
        const ALL: [Dtype; 22] = [
            Dtype::Bool,
            Dtype::String,
            Dtype::F16,
            Dtype::F32,
            Dtype::F64,
            Dtype::BF16,
            Dtype::I4,
            Dtype::I8,
            Dtype::I16,
            Dtype::I32,
            Dtype::I64,
            Dtype::U1,
            Dtype::U2,
            Dtype::U3,
            Dtype::U4,
            Dtype::U6,
            Dtype::U8,
            Dtype::U16,
            Dtype::U32,
            Dtype::U64,
            Dtype::F8E4M3,
            Dtype::F8E5M2,
        ];
        self.space();
        let start = self.at;
        let word = self.word().unwrap_or_default();
        match ALL.into_iter().find(|d| d.name() == word) {
            Some(d) => Ok(d),
            None => {
                self.at = start;
                Err(self.expected("an element type"))
            }
        }
    }

    fn tensor_type(&mut self) -> Result<TensorType> {
        let dtype = self.dtype()?;
        self.need("[")?;
        let mut shape = Vec::new();
        while !self.eat("]") {
            if !shape.is_empty() {
                self.need(",")?;
            }
            if shape.len() == MAX_RANK {
                return self.fail(format!("more than {MAX_RANK} dimensions"));
            }
            shape.push(self.dim()?);
        }
        Ok(TensorType { dtype, shape })
    }

    fn dim(&mut self) -> Result<Dim> {
        if self.eat("?") { Ok(Dim::Unknown) } else { self.size().map(Dim::Fixed) }
    }

    fn value_type(&mut self, depth: usize) -> Result<ValueType> {
        if depth > MAX_DEPTH {
            return self.fail(format!("types nest deeper than {MAX_DEPTH}"));
        }
        if self.eat("state") {
            self.need("<")?;
            let ty = self.tensor_type()?;
            self.need(">")?;
            return Ok(ValueType::State(ty));
        }
        if self.eat("list") {
            self.need("<")?;
            let element = self.value_type(depth + 1)?;
            self.need(",")?;
            let n = self.dim()?;
            self.need(">")?;
            return Ok(ValueType::List(Box::new(element), n));
        }
        if self.eat("tuple") {
            self.need("<")?;
            let mut types = Vec::new();
            while !self.eat(">") {
                if !types.is_empty() {
                    self.need(",")?;
                }
                types.push(self.value_type(depth + 1)?);
            }
            return Ok(ValueType::Tuple(types));
        }
        if self.eat("dict") {
            self.need("<")?;
            let key = self.value_type(depth + 1)?;
            self.need(",")?;
            let value = self.value_type(depth + 1)?;
            self.need(">")?;
            return Ok(ValueType::Dictionary(Box::new(key), Box::new(value)));
        }
        self.tensor_type().map(ValueType::Tensor)
    }

    fn literal(&mut self, depth: usize) -> Result<Literal> {
        let ty = self.value_type(depth)?;
        let payload = match &ty {
            ValueType::Tensor(t) => self.elements(t)?,
            ValueType::State(_) => return self.fail("a state cannot be a literal"),
            other => {
                let pairs = matches!(other, ValueType::Dictionary(..));
                let mut items = Vec::new();
                self.need("(")?;
                while !self.eat(")") {
                    if !items.is_empty() {
                        self.need(",")?;
                    }
                    items.push(self.literal(depth + 1)?);
                    if pairs {
                        self.need(":")?;
                        items.push(self.literal(depth + 1)?);
                    }
                }
                Payload::Aggregate(items.into())
            }
        };
        Ok(Literal { ty, payload })
    }

    /// A number or `true` or `false`, and where it starts.
    fn token(&mut self) -> Result<(usize, &'a str)> {
        self.space();
        let (start, rest) = (self.at, self.rest());
        let n = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))).unwrap_or(rest.len());
        if n == 0 {
            return Err(self.expected("an element"));
        }
        self.at += n;
        Ok((start, &rest[..n]))
    }

    fn elements(&mut self, ty: &TensorType) -> Result<Payload> {
        let Some(count) = ty.elements() else { return self.fail(format!("a literal of type {ty}")) };
        if self.eat("hex") {
            let bytes = self.hex()?;
            if ty.bytes() != Some(bytes.len()) || ty.dtype == Dtype::String {
                return self.fail(format!("{} bytes for {ty}", bytes.len()));
            }
            return Ok(Payload::Bytes(Arc::from(bytes)));
        }
        if self.eat("<") {
            return self.fail("this text leaves weights out, for reading only");
        }
        self.need("(")?;
        let (mut strings, mut bytes, mut n) = (Vec::new(), Vec::new(), 0usize);
        while !self.eat(")") {
            if n > 0 {
                self.need(",")?;
            }
            if n == count {
                return self.fail(format!("more than the {count} elements of {ty}"));
            }
            if ty.dtype == Dtype::String {
                strings.push(self.string()?);
            } else {
                let (start, token) = self.token()?;
                if push_element(ty.dtype, token, n, &mut bytes).is_none() {
                    self.at = start;
                    return Err(self.expected(&format!("an element of {}", ty.dtype)));
                }
            }
            n += 1;
        }
        if n != count {
            return self.fail(format!("{n} elements for {ty}"));
        }
        Ok(if ty.dtype == Dtype::String { Payload::Strings(strings.into()) } else { Payload::Bytes(Arc::from(bytes)) })
    }

    fn hex(&mut self) -> Result<Vec<u8>> {
        self.need("\"")?;
        let rest = self.rest();
        let Some(end) = rest.find('"') else { return self.fail("bytes without end") };
        let (pairs, odd) = rest.as_bytes()[..end].as_chunks::<2>();
        let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
        let bytes: Option<Vec<u8>> = pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect();
        match bytes {
            Some(bytes) if odd.is_empty() => {
                self.at += end + 1;
                Ok(bytes)
            }
            _ => self.fail("expected pairs of hexadecimal digits"),
        }
    }
}

/// Appends element `i` of a packed literal; `None` where the text is no such element.
fn push_element(dtype: Dtype, token: &str, i: usize, bytes: &mut Vec<u8>) -> Option<()> {
    let bits = dtype.bits();
    match dtype {
        Dtype::Bool => bytes.push(u8::from(token.parse::<bool>().ok()?)),
        Dtype::F16 => bytes.extend(f16::from_f32(token.parse().ok()?).to_le_bytes()),
        Dtype::BF16 => bytes.extend(bf16::from_f32(token.parse().ok()?).to_le_bytes()),
        Dtype::F32 => bytes.extend(token.parse::<f32>().ok()?.to_le_bytes()),
        Dtype::F64 => bytes.extend(token.parse::<f64>().ok()?.to_le_bytes()),
        Dtype::U64 => bytes.extend(token.parse::<u64>().ok()?.to_le_bytes()),
        Dtype::String | Dtype::F8E4M3 | Dtype::F8E5M2 => return None,
        _ => {
            let v: i64 = token.parse().ok()?;
            let signed = matches!(dtype, Dtype::I4 | Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
            if bits < 64 {
                let (low, high) =
                    if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
                if !(low..=high).contains(&v) {
                    return None;
                }
            }
            if bits >= 8 {
                bytes.extend_from_slice(&v.to_le_bytes()[..bits / 8]);
            } else {
                for bit in 0..bits {
                    let at = i * bits + bit;
                    if at / 8 == bytes.len() {
                        bytes.push(0);
                    }
                    bytes[at / 8] |= u8::from(v >> bit & 1 != 0) << (at % 8);
                }
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::text::parse;

    /// A version that did not fit used to wrap, to a negative one that was printed and could not be read again.
    #[test]
    fn a_version_is_no_more_than_a_package_can_hold() {
        let text = |version: &str| format!("program {version} default main single {{\n}}\n");
        assert_eq!(parse(&text("2147483647")).unwrap().spec_version, i32::MAX);
        let refused = parse(&text("2147483648")).unwrap_err().to_string();
        assert!(refused.contains("version of 2147483648"), "{refused}");
    }
}
