//! What is known before a program runs: `const` ops, inline literals, and weights once decompressed.
//!
//! A constant is converted at its first use and then shared: by every op that uses it, and by every function of the package that
//! refers to the same bytes. Kernels that read weights a row at a time take fp16 constants as they are stored; for the
//! others they are widened.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use anemone_mil::ir::{Dtype, Literal, Payload};

use super::Fault;
use super::value::{Elements, Halves, Value, elements};

/// Smaller fp16 constants are widened even for kernels that would take them as stored.
const WORTH_KEEPING: usize = 1 << 12;

/// A constant and its converted form.
#[derive(Clone)]
pub struct Constant(Arc<Inner>);

struct Inner {
    literal: Literal,
    dense: OnceLock<Value>,
}

impl Constant {
    /// A constant of a literal; its elements are not looked at yet.
    pub fn new(literal: Literal) -> Self {
        Self(Arc::new(Inner { literal, dense: OnceLock::new() }))
    }

    /// The value in working form.
    pub fn dense(&self) -> Result<Value, Fault> {
        if let Some(value) = self.0.dense.get() {
            return Ok(value.clone());
        }
        let value = widened(&self.0.literal)?;
        Ok(self.0.dense.get_or_init(|| value).clone())
    }

    /// The value as it is stored, if it is fp16 and large, otherwise in working form.
    pub fn stored(&self) -> Result<Value, Fault> {
        let literal = &self.0.literal;
        match literal.tensor_type() {
            Some(ty) if ty.dtype == Dtype::F16 && self.0.dense.get().is_none() => {
                let shape = shape_of(literal)?;
                let n = elements(&shape)?;
                if n < WORTH_KEEPING || literal.bytes().map(<[u8]>::len) != Some(n * 2) {
                    return self.dense();
                }
                Ok(Value { dtype: Dtype::F16, shape, data: Elements::Halves(Halves::new(literal.clone())) })
            }
            _ => self.dense(),
        }
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&str> {
        self.0.literal.to_str()
    }

    /// The literal.
    pub fn literal(&self) -> &Literal {
        &self.0.literal
    }
}

fn shape_of(literal: &Literal) -> Result<Vec<usize>, Fault> {
    literal
        .tensor_type()
        .and_then(|t| t.fixed_shape())
        .ok_or_else(|| Fault::new(format!("a constant of type {} is not supported", literal.ty)))
}

fn widened(literal: &Literal) -> Result<Value, Fault> {
    let shape = shape_of(literal)?;
    let unsupported = || Fault::new(format!("a constant of type {} is not supported", literal.ty));
    let dtype = literal.tensor_type().map(|t| t.dtype).ok_or_else(unsupported)?;
    let value = match dtype {
        Dtype::F16 | Dtype::F32 => Value::floats(dtype, &shape, literal.to_floats().ok_or_else(unsupported)?),
        Dtype::Bool => {
            let v = literal.to_bools().ok_or_else(unsupported)?;
            Value::ints(dtype, &shape, v.into_iter().map(i32::from).collect::<Vec<_>>())
        }
        Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::U16 | Dtype::I32 => {
            let v = literal.to_ints().ok_or_else(unsupported)?;
            Value::ints(dtype, &shape, v.into_iter().map(|v| v as i32).collect::<Vec<_>>())
        }
        _ => return Err(unsupported()),
    };
    let stored = match &value.data {
        Elements::Floats(b) => b.len(),
        Elements::Ints(b) => b.len(),
        Elements::Halves(_) => 0,
    };
    if stored == elements(&shape)? { Ok(value) } else { Err(unsupported()) }
}

/// What makes two literals one: the bytes they share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A blob of a mapped file: the file's address and the record.
    Blob(usize, u64),
    /// Bytes in memory, by address.
    Bytes(usize),
}

impl Identity {
    /// The identity of a literal's bytes, with the type they are read as.
    pub fn of(literal: &Literal) -> Option<(Self, String)> {
        let identity = match &literal.payload {
            Payload::Blob(b) => Identity::Blob(Arc::as_ptr(&b.file) as usize, b.record),
            Payload::Bytes(b) => Identity::Bytes(Arc::as_ptr(b) as *const u8 as usize),
            _ => return None,
        };
        Some((identity, literal.ty.to_string()))
    }
}

/// Constants of a package by what they are made of, so that functions which share weights share what is made of them.
#[derive(Default)]
pub struct Shared(BTreeMap<Vec<(String, Identity, String)>, Vec<Constant>>);

impl Shared {
    /// The constants made of `parts` (role, bytes, type), made by `make` if this is the first time.
    pub fn get_or_make(
        &mut self,
        parts: Option<Vec<(String, Identity, String)>>,
        make: impl FnOnce() -> Result<Vec<Constant>, Fault>,
    ) -> Result<Vec<Constant>, Fault> {
        let Some(parts) = parts else { return make() };
        if let Some(known) = self.0.get(&parts) {
            return Ok(known.clone());
        }
        let made = make()?;
        self.0.insert(parts, made.clone());
        Ok(made)
    }
}
