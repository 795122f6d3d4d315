//! Printing.

use std::fmt::{self, Write};

use crate::ir::{Arg, Feature, Flexibility, Function, Literal, Op, Payload, Program, ValueId, ValueType};
use crate::names;

/// The most elements that are listed rather than written as bytes.
const LISTED: usize = 64;

/// What becomes of the bytes of large literals.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weights {
    Elided,
    Hex,
}

struct Printer<'a> {
    out: &'a mut dyn Write,
    weights: Weights,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer { out: f, weights: Weights::Elided }.program(self)
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer { out: f, weights: Weights::Elided }.literal(self)
    }
}

/// The whole program with every byte of its weights. Bytes still to be produced cannot be written and print as such.
pub fn to_text(program: &Program) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = Printer { out: &mut out, weights: Weights::Hex }.program(program);
    out
}

/// One op on one line, cut where it grows long: what diagnostics quote.
pub fn op_line(function: &Function, op: &Op) -> String {
    let mut line = Line { out: String::new(), left: 160 };
    match (Printer { out: &mut line, weights: Weights::Elided }.op(function, op)) {
        Ok(()) => line.out,
        Err(_) => line.out + "..",
    }
}

/// A line that takes so many characters and no more: an op may have a million arguments.
struct Line {
    out: String,
    left: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.out.push(c);
        }
        Ok(())
    }
}

fn name_of(function: &Function, id: ValueId) -> String {
    match function.values.get(id.index()) {
        Some(v) => format!("%{}", names::quoted(&v.name)),
        None => format!("%<no value {}>", id.0),
    }
}

impl Printer<'_> {
    fn program(&mut self, p: &Program) -> fmt::Result {
        let form = if p.multifunction { "multi" } else { "single" };
        writeln!(self.out, "program {} default {} {form} {{", p.spec_version, names::quoted(&p.default_function))?;
        for (key, text) in [
            ("description", &p.about.short_description),
            ("version", &p.about.version),
            ("author", &p.about.author),
            ("license", &p.about.license),
        ] {
            if !text.is_empty() {
                writeln!(self.out, "  about {key} {text:?}")?;
            }
        }
        for (key, text) in &p.metadata {
            writeln!(self.out, "  metadata {key:?} {text:?}")?;
        }
        for (key, lit) in &p.attributes {
            write!(self.out, "  attribute {} = ", names::quoted(key))?;
            self.literal(lit)?;
            writeln!(self.out)?;
        }
        for f in &p.functions {
            self.function(f)?;
        }
        writeln!(self.out, "}}")
    }

    fn function(&mut self, f: &Function) -> fmt::Result {
        write!(self.out, "  func {} {} (", names::quoted(&f.name), names::quoted(&f.opset))?;
        for (i, &id) in f.inputs.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            self.declaration(f, id)?;
        }
        writeln!(self.out, ") {{")?;
        for (kind, features) in
            [("input", &f.interface.inputs), ("state", &f.interface.states), ("output", &f.interface.outputs)]
        {
            for feature in features {
                self.feature(kind, feature)?;
            }
        }
        for op in &f.ops {
            self.out.write_str("    ")?;
            self.op(f, op)?;
            writeln!(self.out)?;
        }
        let outputs: Vec<String> = f.outputs.iter().map(|&id| name_of(f, id)).collect();
        writeln!(self.out, "    return {}", outputs.join(", "))?;
        writeln!(self.out, "  }}")
    }

    fn declaration(&mut self, f: &Function, id: ValueId) -> fmt::Result {
        write!(self.out, "{}", name_of(f, id))?;
        match f.values.get(id.index()) {
            Some(v) => write!(self.out, ": {}", v.ty),
            None => Ok(()),
        }
    }

    fn feature(&mut self, kind: &str, feature: &Feature) -> fmt::Result {
        write!(self.out, "    {kind} {}: {}", names::quoted(&feature.name), feature.dtype)?;
        if let Some(shape) = &feature.shape {
            write!(self.out, " {shape:?}")?;
        }
        match &feature.flexibility {
            Flexibility::Fixed => {}
            Flexibility::Enumerated(shapes) => {
                self.out.write_str(" one of")?;
                for shape in shapes {
                    write!(self.out, " {shape:?}")?;
                }
            }
            Flexibility::Range(bounds) => {
                self.out.write_str(" range")?;
                for (low, high) in bounds {
                    match high {
                        Some(high) => write!(self.out, " {low}..{high}")?,
                        None => write!(self.out, " {low}..?")?,
                    }
                }
            }
        }
        if feature.optional {
            self.out.write_str(" optional")?;
        }
        if let Some(default) = feature.default {
            write!(self.out, " default {default:?}")?;
        }
        writeln!(self.out)
    }

    fn op(&mut self, f: &Function, op: &Op) -> fmt::Result {
        for (i, &id) in op.outputs.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            self.declaration(f, id)?;
        }
        if !op.outputs.is_empty() {
            self.out.write_str(" = ")?;
        }
        write!(self.out, "{}(", names::quoted(&op.kind))?;
        for (i, (param, args)) in op.inputs.iter().enumerate() {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            write!(self.out, "{}=", names::quoted(param))?;
            match args.as_slice() {
                [arg] => self.arg(f, arg)?,
                args => {
                    self.out.write_str("[")?;
                    for (k, arg) in args.iter().enumerate() {
                        if k > 0 {
                            self.out.write_str(", ")?;
                        }
                        self.arg(f, arg)?;
                    }
                    self.out.write_str("]")?;
                }
            }
        }
        self.out.write_str(")")?;
        write!(self.out, " {{name={:?}", op.name)?;
        for (key, lit) in &op.attributes {
            write!(self.out, ", {}=", names::quoted(key))?;
            self.literal(lit)?;
        }
        self.out.write_str("}")
    }

    fn arg(&mut self, f: &Function, arg: &Arg) -> fmt::Result {
        match arg {
            Arg::Value(id) => write!(self.out, "{}", name_of(f, *id)),
            Arg::Literal(lit) => self.literal(lit),
        }
    }

    fn literal(&mut self, lit: &Literal) -> fmt::Result {
        write!(self.out, "{}", lit.ty)?;
        match &lit.payload {
            Payload::Strings(strings) => self.list(strings.len(), |p, i| write!(p.out, "{:?}", strings[i])),
            Payload::Aggregate(items) if matches!(lit.ty, ValueType::Dictionary(..)) => {
                self.list(items.len().div_ceil(2), |p, i| {
                    p.literal(&items[2 * i])?;
                    p.out.write_str(": ")?;
                    match items.get(2 * i + 1) {
                        Some(value) => p.literal(value),
                        None => Ok(()),
                    }
                })
            }
            Payload::Aggregate(items) => self.list(items.len(), |p, i| p.literal(&items[i])),
            Payload::Deferred(d) => write!(self.out, " <to be produced, slot {}>", d.slot),
            Payload::Blob(blob) if self.weights == Weights::Elided => write!(self.out, " <blob at {}>", blob.record),
            Payload::Bytes(_) | Payload::Blob(_) => self.elements(lit),
        }
    }

    fn list(&mut self, n: usize, mut item: impl FnMut(&mut Self, usize) -> fmt::Result) -> fmt::Result {
        self.out.write_str("(")?;
        for i in 0..n {
            if i > 0 {
                self.out.write_str(", ")?;
            }
            item(self, i)?;
        }
        self.out.write_str(")")
    }

    fn elements(&mut self, lit: &Literal) -> fmt::Result {
        let Some(bytes) = lit.bytes() else { return self.out.write_str(" <bytes outside of their file>") };
        if lit.elements().is_some_and(|n| n <= LISTED) {
            if let Some(v) = lit.to_ints() {
                return self.list(v.len(), |p, i| write!(p.out, "{}", v[i]));
            }
            if let Some(v) = lit.to_bools().filter(|_| bytes.iter().all(|&b| b < 2)) {
                return self.list(v.len(), |p, i| write!(p.out, "{}", v[i]));
            }
            // fp64 does not fit the f32 that floats are read as, and a NaN's payload has no digits.
            let exact = lit.tensor_type().is_some_and(|t| t.dtype.bits() <= 32);
            if let Some(v) = lit.to_floats().filter(|v| exact && v.iter().all(|x| !x.is_nan())) {
                return self.list(v.len(), |p, i| write!(p.out, "{:?}", v[i]));
            }
        }
        if self.weights == Weights::Elided {
            return write!(self.out, " <{} bytes>", bytes.len());
        }
        self.out.write_str("hex\"")?;
        for b in bytes {
            write!(self.out, "{b:02x}")?;
        }
        self.out.write_str("\"")
    }
}
