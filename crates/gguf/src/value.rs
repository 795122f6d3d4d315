//! Metadata: typed values under names, in the order of the file.
//!
//! Strings are UTF-8, as the format says and as every converter writes them; a file with other bytes in a string is
//! refused when it is opened. (SentencePiece byte tokens are spelled `<0xE2>` in a GGUF, and byte-level BPE maps each
//! byte to a printable character, so no vocabulary needs raw bytes.)

use std::borrow::Cow;
use std::collections::HashMap;

use crate::Error;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array value. The elements of one array share a type; the arrays in an array of arrays need not.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of its type, as [`Value::type_name`].
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "an array of u8",
            Array::I8(_) => "an array of i8",
            Array::U16(_) => "an array of u16",
            Array::I16(_) => "an array of i16",
            Array::U32(_) => "an array of u32",
            Array::I32(_) => "an array of i32",
            Array::F32(_) => "an array of f32",
            Array::Bool(_) => "an array of bool",
            Array::String(_) => "an array of strings",
            Array::Array(_) => "an array of arrays",
            Array::U64(_) => "an array of u64",
            Array::I64(_) => "an array of i64",
            Array::F64(_) => "an array of f64",
        }
    }
}

impl Value {
    /// The name of its type, with an article, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "a u8",
            Value::I8(_) => "an i8",
            Value::U16(_) => "a u16",
            Value::I16(_) => "an i16",
            Value::U32(_) => "a u32",
            Value::I32(_) => "an i32",
            Value::F32(_) => "an f32",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::Array(array) => array.type_name(),
            Value::U64(_) => "a u64",
            Value::I64(_) => "an i64",
            Value::F64(_) => "an f64",
        }
    }

    /// The value of any integer type; `None` for what is not an integer.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

macro_rules! value_from {
    ($($ty:ty => $variant:ident),*) => {$(
        impl From<$ty> for Value { fn from(v: $ty) -> Self { Value::$variant(v) } }
        impl From<Vec<$ty>> for Value { fn from(v: Vec<$ty>) -> Self { Value::Array(Array::$variant(v)) } }
    )*};
}
value_from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    String => String, Array => Array, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.to_owned())
    }
}

/// The keys and values of a file, in its order, each key once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Whether `key` is present, whatever its type.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Appends a key, or replaces the value of one that is there (its place stays) and returns the old value.
    pub fn insert(&mut self, key: String, value: Value) -> Option<Value> {
        match self.index.get(&key) {
            Some(&at) => Some(std::mem::replace(&mut self.entries[at].1, value)),
            None => {
                self.index.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
                None
            }
        }
    }

    fn require(&self, key: &str) -> Result<&Value, Error> {
        self.get(key).ok_or_else(|| Error::MissingKey { key: key.to_owned() })
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<T, Error> {
        let value = self.require(key)?;
        let Some(wide) = value.integer() else { return Err(mismatch(key, expected, value)) };
        T::try_from(wide).map_err(|_| Error::KeyType {
            key: key.to_owned(),
            expected,
            found: format!("{} of value {wide}", value.type_name()),
        })
    }

    /// An integer of any stored type that fits a `u32`.
    ///
    /// # Errors
    /// [`Error::MissingKey`], or [`Error::KeyType`] for another type or a value that does not fit.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        self.integer(key, "an integer that fits 32 unsigned bits")
    }

    /// An integer of any stored type that fits a `u64`.
    ///
    /// # Errors
    /// As [`u32`](Self::u32).
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        self.integer(key, "an integer that fits 64 unsigned bits")
    }

    /// An integer of any stored type that fits a `usize`.
    ///
    /// # Errors
    /// As [`u32`](Self::u32).
    pub fn usize(&self, key: &str) -> Result<usize, Error> {
        self.integer(key, "a non-negative integer that fits this machine's sizes")
    }

    /// A float of either width, as `f32`.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::KeyType`].
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        match *self.require(key)? {
            Value::F32(v) => Ok(v),
            Value::F64(v) => Ok(v as f32),
            ref other => Err(mismatch(key, "a float", other)),
        }
    }

    /// A bool.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::KeyType`].
    pub fn bool(&self, key: &str) -> Result<bool, Error> {
        match self.require(key)? {
            Value::Bool(v) => Ok(*v),
            other => Err(mismatch(key, "a bool", other)),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::KeyType`].
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        match self.require(key)? {
            Value::String(v) => Ok(v),
            other => Err(mismatch(key, "a string", other)),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::KeyType`].
    pub fn strings(&self, key: &str) -> Result<&[String], Error> {
        match self.require(key)? {
            Value::Array(Array::String(v)) => Ok(v),
            other => Err(mismatch(key, "an array of strings", other)),
        }
    }

    /// An array of floats of either width, borrowed where the file has `f32`.
    ///
    /// # Errors
    /// [`Error::MissingKey`] or [`Error::KeyType`].
    pub fn f32s(&self, key: &str) -> Result<Cow<'_, [f32]>, Error> {
        match self.require(key)? {
            Value::Array(Array::F32(v)) => Ok(Cow::Borrowed(v)),
            Value::Array(Array::F64(v)) => Ok(v.iter().map(|&x| x as f32).collect()),
            other => Err(mismatch(key, "an array of floats", other)),
        }
    }

    /// An array of integers of any stored type that all fit an `i32`, borrowed where the file has `i32`.
    ///
    /// # Errors
    /// [`Error::MissingKey`], or [`Error::KeyType`] for another type or a value that does not fit.
    pub fn i32s(&self, key: &str) -> Result<Cow<'_, [i32]>, Error> {
        fn narrow<T: Copy + TryInto<i32>>(v: &[T]) -> Option<Cow<'static, [i32]>> {
            v.iter().map(|&x| x.try_into().ok()).collect()
        }
        let value = self.require(key)?;
        let expected = "an array of integers that fit 32 signed bits";
        match value {
            Value::Array(Array::I32(v)) => Some(Cow::Borrowed(v.as_slice())),
            Value::Array(Array::U8(v)) => narrow(v),
            Value::Array(Array::I8(v)) => narrow(v),
            Value::Array(Array::U16(v)) => narrow(v),
            Value::Array(Array::I16(v)) => narrow(v),
            Value::Array(Array::U32(v)) => narrow(v),
            Value::Array(Array::U64(v)) => narrow(v),
            Value::Array(Array::I64(v)) => narrow(v),
            _ => None,
        }
        .ok_or_else(|| mismatch(key, expected, value))
    }
}

fn mismatch(key: &str, expected: &'static str, found: &Value) -> Error {
    Error::KeyType { key: key.to_owned(), expected, found: found.type_name().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let mut m = Metadata::default();
        m.insert("z".into(), 7u64.into());
        m.insert("a".into(), (-1i8).into());
        m.insert("f".into(), 0.5f64.into());
        m.insert("ids".into(), vec![1u32, 2].into());
        m
    }

    #[test]
    fn integers_of_any_type_that_fit_are_accepted() {
        let m = metadata();
        assert_eq!(m.u32("z").unwrap(), 7);
        assert_eq!(m.u64("z").unwrap(), 7);
        assert_eq!(m.i32s("ids").unwrap(), [1, 2].as_slice());
        let error = m.u32("a").unwrap_err().to_string();
        assert_eq!(error, "key `a` is an i8 of value -1, expected an integer that fits 32 unsigned bits");
    }

    #[test]
    fn errors_name_the_key_and_both_types() {
        let m = metadata();
        assert_eq!(m.str("f").unwrap_err().to_string(), "key `f` is an f64, expected a string");
        assert_eq!(m.u32("nope").unwrap_err().to_string(), "the gguf has no key `nope`");
        assert!(crate::optional(m.u32("nope")).unwrap().is_none());
        assert!(crate::optional(m.u32("f")).is_err());
    }

    #[test]
    fn the_order_is_the_order_of_insertion_and_a_replaced_key_keeps_its_place() {
        let mut m = metadata();
        assert_eq!(m.insert("z".into(), true.into()), Some(Value::U64(7)));
        assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["z", "a", "f", "ids"]);
        assert!(m.bool("z").unwrap());
    }
}
