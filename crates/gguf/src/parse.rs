//! From bytes to a directory of what is in them, trusting nothing.
//!
//! The layout (version 2 and 3, little-endian): magic, version, tensor count, key count; then the keys, each a string,
//! a type and a value; then one record per tensor: name, dimensions innermost first, type, offset; then padding to the
//! alignment, where the data section begins and the tensors' offsets count from.
//!
//! **Invariants.** Nothing is allocated for a count before the bytes that the count implies are known to be in the
//! file, so memory stays within a small multiple of the file's size. Every error names the field and the offset at
//! which it begins. A tensor that is returned lies inside the file, on its alignment, and overlaps no other.

use std::collections::HashSet;
use std::fmt;

use crate::{Array, BlockType, Error, Metadata, TensorInfo, Value};

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Arrays within arrays: converters write one level, and recursion needs a floor.
const MAX_NESTING: usize = 4;
/// Where `general.alignment` is absent.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest page that anything maps. A short file may claim more, and a copy of it would be as large as it claims.
const MAX_ALIGNMENT: u64 = 2 << 20;

/// The directory of one file.
pub(crate) struct Directory {
    pub version: u32,
    pub alignment: u64,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Directory, Error> {
    let mut cursor = Cursor { bytes, at: 0 };
    let version = header(&mut cursor)?;

    let tensor_count_at = cursor.at;
    let tensor_count = cursor.u64(format_args!("tensor count"))?;
    let key_count_at = cursor.at;
    let key_count = cursor.u64(format_args!("key count"))?;
    // A key takes a length, a type and at least one byte; a tensor record a length, a count, a type and an offset.
    cursor.promise(key_count, 13, key_count_at, format_args!("key count {key_count}"))?;
    cursor.promise(tensor_count, 24, tensor_count_at, format_args!("tensor count {tensor_count}"))?;

    let mut metadata = Metadata::default();
    for n in 0..key_count {
        let at = cursor.at;
        let key = cursor.string(format_args!("name of key {n}"))?.to_owned();
        let value = value(&mut cursor, &key)?;
        if metadata.contains(&key) {
            return Err(malformed(at, format_args!("key `{key}`"), "appears twice"));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;

    let mut records = Vec::new();
    let mut names = HashSet::new();
    for n in 0..tensor_count {
        let record = record(&mut cursor, n)?;
        if !names.insert(record.name) {
            return Err(malformed(record.at, format_args!("tensor `{}`", record.name), "appears twice"));
        }
        records.push(record);
    }

    let data = (cursor.at as u64).checked_next_multiple_of(alignment);
    let tensors = records.iter().map(|r| place(r, data, alignment, bytes.len())).collect::<Result<Vec<_>, _>>()?;
    check_overlaps(&tensors, &records)?;
    Ok(Directory { version, alignment, metadata, tensors })
}

/// Magic and version, and a plain word for the files that are almost a GGUF.
fn header(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    if cursor.bytes.is_empty() {
        return Err(Error::Empty);
    }
    let magic = &cursor.bytes[..cursor.bytes.len().min(4)];
    match magic {
        b"GGUF" => cursor.at = 4,
        b"FUGG" => return Err(Error::BigEndian),
        _ => return Err(Error::Magic { found: magic.to_vec() }),
    }
    let version = cursor.u32(format_args!("version"))?;
    match version {
        2 | 3 => Ok(version),
        // A small number stored the other way round.
        _ if version & 0xffff == 0 && version != 0 => Err(Error::BigEndian),
        _ => Err(Error::Version { version }),
    }
}

/// The alignment of tensor data in bytes, by its key.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u64, Error> {
    let key = "general.alignment";
    let alignment = crate::optional(metadata.u64(key))?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
        Ok(alignment)
    } else {
        let expected = "a power of two of at most 2 MiB";
        Err(Error::KeyType { key: key.to_owned(), expected, found: alignment.to_string() })
    }
}

/// A value of the type whose id comes next.
fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Error> {
    let at = cursor.at;
    let id = cursor.u32(format_args!("type of key `{key}`"))?;
    let field = format_args!("value of key `{key}`");
    Ok(match id {
        0 => Value::U8(u8::from_le_bytes(cursor.array(field)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(field)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(field)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(field)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(field)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(field)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(field)?)),
        7 => Value::Bool(cursor.bool(field)?),
        8 => Value::String(cursor.string(field)?.to_owned()),
        9 => Value::Array(array(cursor, key, MAX_NESTING)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(field)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(field)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(field)?)),
        _ => return Err(unknown_value_type(at, key, id)),
    })
}

/// An element type, a count, the elements. `depth` is how many levels of arrays may still open.
fn array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Error> {
    let at = cursor.at;
    if depth == 0 {
        let problem = format!("arrays nest deeper than {MAX_NESTING}");
        return Err(malformed(at, format_args!("value of key `{key}`"), problem));
    }
    let id = cursor.u32(format_args!("element type of key `{key}`"))?;
    let count_at = cursor.at;
    let count = cursor.u64(format_args!("element count of key `{key}`"))?;
    let least = match id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => return Err(unknown_value_type(at, key, id)),
    };
    let count = cursor.promise(count, least, count_at, format_args!("element count {count} of key `{key}`"))?;

    macro_rules! numbers {
        ($variant:ident, $ty:ty) => {{
            let raw = cursor.take((count * size_of::<$ty>()) as u64, format_args!("elements of key `{key}`"))?;
            let (chunks, _) = raw.as_chunks();
            Array::$variant(chunks.iter().map(|&chunk| <$ty>::from_le_bytes(chunk)).collect())
        }};
    }
    Ok(match id {
        0 => numbers!(U8, u8),
        1 => numbers!(I8, i8),
        2 => numbers!(U16, u16),
        3 => numbers!(I16, i16),
        4 => numbers!(U32, u32),
        5 => numbers!(I32, i32),
        6 => numbers!(F32, f32),
        10 => numbers!(U64, u64),
        11 => numbers!(I64, i64),
        12 => numbers!(F64, f64),
        7 => {
            let element = |i| cursor.bool(format_args!("element {i} of key `{key}`"));
            Array::Bool((0..count).map(element).collect::<Result<_, _>>()?)
        }
        8 => {
            let element = |i| Ok(cursor.string(format_args!("element {i} of key `{key}`"))?.to_owned());
            Array::String((0..count).map(element).collect::<Result<_, Error>>()?)
        }
        _ => Array::Array((0..count).map(|_| array(cursor, key, depth - 1)).collect::<Result<_, _>>()?),
    })
}

fn unknown_value_type(at: usize, key: &str, id: u32) -> Error {
    malformed(at, format_args!("type of key `{key}`"), format!("unknown value type {id}, expected 0 to 12"))
}

/// A tensor's record as the file has it.
struct Record<'a> {
    at: usize,
    name: &'a str,
    shape: Vec<usize>,
    ty: BlockType,
    /// From the start of the data section.
    offset: u64,
    offset_at: usize,
    /// Bytes of data.
    len: u64,
}

fn record<'a>(cursor: &mut Cursor<'a>, n: u64) -> Result<Record<'a>, Error> {
    let at = cursor.at;
    let name = cursor.string(format_args!("name of tensor {n}"))?;

    let dims_at = cursor.at;
    let dims = cursor.u32(format_args!("dimension count of tensor `{name}`"))?;
    if dims > MAX_DIMS {
        let problem = format!("{dims} dimensions, expected at most {MAX_DIMS}");
        return Err(malformed(dims_at, format_args!("dimension count of tensor `{name}`"), problem));
    }
    let shape_at = cursor.at;
    let shape_error = |problem: String| malformed(shape_at, format_args!("dimensions of tensor `{name}`"), problem);
    let mut shape = Vec::new();
    let mut elements = 1u64;
    for d in 0..dims {
        let size = cursor.u64(format_args!("dimension {d} of tensor `{name}`"))?;
        if size == 0 {
            return Err(shape_error(format!("dimension {d} is zero")));
        }
        let product = elements.checked_mul(size);
        elements = product.ok_or_else(|| shape_error("the element count overflows 64 bits".into()))?;
        shape.push(usize::try_from(size).map_err(|_| shape_error(format!("dimension {d} is {size}")))?);
    }

    let type_at = cursor.at;
    let id = cursor.u32(format_args!("type of tensor `{name}`"))?;
    let ty = BlockType::from_id(id).ok_or_else(|| {
        malformed(type_at, format_args!("type of tensor `{name}`"), format!("unknown ggml type {id}"))
    })?;
    let innermost = shape.first().copied().unwrap_or(1);
    if !innermost.is_multiple_of(ty.block_len()) {
        let whole = ty.block_len();
        return Err(shape_error(format!("rows of {innermost} elements are not whole {ty} blocks of {whole}")));
    }
    let len = (elements / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64);
    let len = len.ok_or_else(|| shape_error("the byte count overflows 64 bits".into()))?;

    let offset_at = cursor.at;
    let offset = cursor.u64(format_args!("offset of tensor `{name}`"))?;
    shape.reverse();
    Ok(Record { at, name, shape, ty, offset, offset_at, len })
}

/// Turns a record into a tensor that lies inside the file. `data` is where the data section begins, `None` if the
/// alignment pushes it past what 64 bits can say.
fn place(record: &Record<'_>, data: Option<u64>, alignment: u64, file: usize) -> Result<TensorInfo, Error> {
    let Record { name, offset, len, .. } = *record;
    let field = format_args!("offset of tensor `{name}`");
    if offset % alignment != 0 {
        let problem = format!("{offset} is not a multiple of the alignment {alignment}");
        return Err(malformed(record.offset_at, field, problem));
    }
    let start = data.and_then(|data| data.checked_add(offset));
    let start = start.ok_or_else(|| malformed(record.offset_at, field, format!("{offset} overflows 64 bits")))?;
    if start.checked_add(len).is_none_or(|end| end > file as u64) {
        return Err(Error::Truncated {
            field: format!("data of tensor `{name}`"),
            offset: start,
            needed: len,
            available: (file as u64).saturating_sub(start),
        });
    }
    Ok(TensorInfo { name: name.to_owned(), shape: record.shape.clone(), ty: record.ty, part: 0, offset: start, len })
}

fn check_overlaps(tensors: &[TensorInfo], records: &[Record<'_>]) -> Result<(), Error> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].offset, i));
    for pair in order.windows(2) {
        let (first, second) = (&tensors[pair[0]], &tensors[pair[1]]);
        if first.offset + first.len > second.offset {
            return Err(malformed(
                records[pair[1]].offset_at,
                format_args!("offset of tensor `{}`", second.name),
                format!("its data overlaps that of tensor `{}`", first.name),
            ));
        }
    }
    Ok(())
}

fn malformed(at: usize, field: fmt::Arguments<'_>, problem: impl Into<String>) -> Error {
    Error::Malformed { field: field.to_string(), offset: at as u64, problem: problem.into() }
}

/// A position in the file. A field's name is formatted only when something is wrong with it.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64, field: fmt::Arguments<'_>) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or_else(|| Error::Truncated {
            field: field.to_string(),
            offset: self.at as u64,
            needed: len,
            available: rest.len() as u64,
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: fmt::Arguments<'_>) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, field)?);
        Ok(out)
    }

    fn u32(&mut self, field: fmt::Arguments<'_>) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: fmt::Arguments<'_>) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    fn bool(&mut self, field: fmt::Arguments<'_>) -> Result<bool, Error> {
        let at = self.at;
        match self.array(field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(malformed(at, field, format!("{other} is not a bool, expected 0 or 1"))),
        }
    }

    /// A length, then that many bytes of UTF-8.
    fn string(&mut self, field: fmt::Arguments<'_>) -> Result<&'a str, Error> {
        let at = self.at;
        let len = self.u64(field)?;
        let bytes = self.take(len, field)?;
        std::str::from_utf8(bytes)
            .map_err(|e| malformed(at, field, format!("not utf-8 after {} of its {len} bytes", e.valid_up_to())))
    }

    /// Checks that `count` items of at least `least` bytes each can still be in the file, before anything is
    /// allocated for them.
    fn promise(&self, count: u64, least: u64, at: usize, field: fmt::Arguments<'_>) -> Result<usize, Error> {
        let available = (self.bytes.len() - self.at) as u64;
        let needed = count.saturating_mul(least);
        if needed > available {
            return Err(Error::Truncated { field: field.to_string(), offset: at as u64, needed, available });
        }
        // It is at most the number of bytes in memory.
        Ok(count as usize)
    }
}
