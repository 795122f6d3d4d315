//! The protobuf wire format, read in place and written in order.
//!
//! A message is a slice; its fields are found by walking it, and nothing is built that the caller does not keep. So a file
//! cannot make the reader allocate more than what its content turns into, and nesting costs no stack but the caller's own.
//! The writer emits fields in the order it is told to, which is what makes equal programs equal bytes.

use super::ReadError;

/// A message: its bytes, and where they start in the file.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    offset: usize,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Its number.
    pub number: u32,
    value: Wire<'a>,
    offset: usize,
}

#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Message<'a> {
    /// A whole file as a message.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Its fields, in order. Groups, which proto3 does not have, are an error.
    pub fn fields(self) -> Fields<'a> {
        Fields { message: self, at: 0 }
    }

    /// An error about this message.
    pub fn error(&self, message: impl Into<String>) -> ReadError {
        ReadError::Model { offset: self.offset, message: message.into() }
    }
}

/// The fields of a message, in order.
pub struct Fields<'a> {
    message: Message<'a>,
    at: usize,
}

impl<'a> Fields<'a> {
    fn error(&self, message: &str) -> ReadError {
        ReadError::Model { offset: self.message.offset + self.at, message: message.to_owned() }
    }

    fn varint(&mut self) -> Result<u64, ReadError> {
        let (value, len) = varint(&self.message.bytes[self.at..])
            .ok_or_else(|| self.error("a number is cut off or longer than 64 bits"))?;
        self.at += len;
        Ok(value)
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], ReadError> {
        let bytes = self.message.bytes;
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)).filter(|&end| end <= bytes.len());
        let Some(end) = end else {
            return Err(self.error(&format!("a field of {n} bytes, {} are left", bytes.len() - self.at)));
        };
        let taken = &bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn field(&mut self) -> Result<Field<'a>, ReadError> {
        let tag = self.varint()?;
        let number =
            u32::try_from(tag >> 3).ok().filter(|&n| n > 0).ok_or_else(|| self.error("field number out of range"))?;
        let mut offset = self.message.offset + self.at;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.take(8)?.try_into().unwrap_or_default()),
            2 => {
                let n = self.varint()?;
                offset = self.message.offset + self.at;
                Wire::Bytes(self.take(n)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().unwrap_or_default()),
            other => return Err(self.error(&format!("wire type {other} does not exist"))),
        };
        Ok(Field { number, value, offset })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.bytes.len();
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    fn mismatch(&self, expected: &str) -> ReadError {
        ReadError::Model { offset: self.offset, message: format!("field {} should be {expected}", self.number) }
    }

    /// The field as a message.
    pub fn message(&self) -> Result<Message<'a>, ReadError> {
        Ok(Message { bytes: self.bytes()?, offset: self.offset })
    }

    /// The field as bytes.
    pub fn bytes(&self) -> Result<&'a [u8], ReadError> {
        match self.value {
            Wire::Bytes(b) => Ok(b),
            _ => Err(self.mismatch("length-delimited")),
        }
    }

    /// The field as a string.
    pub fn string(&self) -> Result<&'a str, ReadError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.mismatch("UTF-8"))
    }

    /// The field as an unsigned integer.
    pub fn u64(&self) -> Result<u64, ReadError> {
        match self.value {
            Wire::Varint(v) => Ok(v),
            _ => Err(self.mismatch("a number")),
        }
    }

    /// The field as a signed integer.
    pub fn i64(&self) -> Result<i64, ReadError> {
        Ok(self.u64()? as i64)
    }

    /// The field as a bool.
    pub fn bool(&self) -> Result<bool, ReadError> {
        Ok(self.u64()? != 0)
    }

    /// The field as a 32-bit float.
    pub fn f32(&self) -> Result<f32, ReadError> {
        match self.value {
            Wire::Fixed32(b) => Ok(f32::from_le_bytes(b)),
            _ => Err(self.mismatch("a 32-bit float")),
        }
    }

    /// The field as a 64-bit float.
    pub fn f64(&self) -> Result<f64, ReadError> {
        match self.value {
            Wire::Fixed64(b) => Ok(f64::from_le_bytes(b)),
            _ => Err(self.mismatch("a 64-bit float")),
        }
    }

    /// Calls `each` for every number of a repeated field: packed, or one at a time.
    pub fn numbers(&self, mut each: impl FnMut(u64) -> Result<(), ReadError>) -> Result<(), ReadError> {
        match self.value {
            Wire::Varint(v) => each(v),
            Wire::Bytes(mut rest) => {
                while !rest.is_empty() {
                    let (v, n) = varint(rest).ok_or_else(|| self.mismatch("packed numbers"))?;
                    each(v)?;
                    rest = &rest[n..];
                }
                Ok(())
            }
            _ => Err(self.mismatch("numbers")),
        }
    }

    /// The bytes of a repeated field of fixed-width numbers: packed, or one at a time.
    pub fn fixed(&self, width: usize) -> Result<&[u8], ReadError> {
        match &self.value {
            Wire::Fixed32(b) if width == 4 => Ok(b),
            Wire::Fixed64(b) if width == 8 => Ok(b),
            Wire::Bytes(b) if b.len() % width == 0 => Ok(b),
            _ => Err(self.mismatch("packed floats")),
        }
    }
}

/// A base-128 number at the head of `bytes`, and how long it is.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, &b) in bytes.iter().take(10).enumerate() {
        // The tenth byte holds the one bit that is left.
        if i == 9 && b > 1 {
            return None;
        }
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            return Some((value, i + 1));
        }
    }
    None
}

/// A message being written.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A bare number, as packed fields hold them.
    pub fn raw(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.0.push(v as u8 | 0x80);
            v >>= 7;
        }
        self.0.push(v as u8);
    }

    /// A number; zero is written too.
    pub fn number(&mut self, field: u32, v: u64) {
        self.raw(u64::from(field) << 3);
        self.raw(v);
    }

    /// A number, unless it is zero: proto3's default.
    pub fn number_or_default(&mut self, field: u32, v: u64) {
        if v != 0 {
            self.number(field, v);
        }
    }

    /// Bytes.
    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.raw(u64::from(field) << 3 | 2);
        self.raw(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A string.
    pub fn string(&mut self, field: u32, s: &str) {
        self.bytes(field, s.as_bytes());
    }

    /// A string, unless it is empty.
    pub fn string_or_default(&mut self, field: u32, s: &str) {
        if !s.is_empty() {
            self.string(field, s);
        }
    }

    /// A 64-bit float.
    pub fn f64(&mut self, field: u32, v: f64) {
        self.raw(u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    /// A 32-bit float.
    pub fn f32(&mut self, field: u32, v: f32) {
        self.raw(u64::from(field) << 3 | 5);
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    /// A nested message.
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// An entry of a map from strings to messages.
    pub fn entry(&mut self, field: u32, key: &str, write: impl FnOnce(&mut Writer)) {
        self.message(field, |entry| {
            entry.string(1, key);
            entry.message(2, write);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_stop_at_64_bits() {
        for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut w = Writer::default();
            w.raw(v);
            assert_eq!(varint(&w.0), Some((v, w.0.len())));
        }
        assert_eq!(varint(&[0xff; 10]), None);
        assert_eq!(varint(&[0x80, 0x80]), None);
        assert_eq!(varint(&[]), None);
    }

    #[test]
    fn a_field_longer_than_its_message_is_refused_with_its_offset() {
        let mut fields = Message::new(&[0x08, 0x01, 0x12, 0x05, b'x']).fields();
        assert_eq!(fields.next().unwrap().unwrap().u64().unwrap(), 1);
        let e = fields.next().unwrap().unwrap_err().to_string();
        assert!(e.contains("byte 4") && e.contains("5 bytes"), "{e}");
        assert!(fields.next().is_none());
    }
}
