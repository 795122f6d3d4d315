//! Writes GGUF version 3, for fixtures, tests and edited copies of a model.
//!
//! Tensor data is streamed, so a file larger than memory can be written; everything else is small. The same keys and
//! tensors in the same order give the same bytes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::parse::alignment;
use crate::{Array, BlockType, Error, Gguf, Metadata, Value};

/// Writes one tensor's blocks to the stream it is given.
type Data<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + 'a>;

struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    ty: BlockType,
    data: Data<'a>,
}

/// A file to be: keys and tensors in order.
#[derive(Default)]
pub struct Writer<'a> {
    metadata: Metadata,
    tensors: Vec<Entry<'a>>,
}

impl<'a> Writer<'a> {
    /// An empty file with `general.architecture`, the key that every model begins with.
    pub fn new(architecture: &str) -> Self {
        let mut writer = Writer::default();
        writer.key("general.architecture", architecture);
        writer
    }

    /// A copy of `model`, keys and tensors, to be changed before it is written. A split model becomes one file.
    pub fn copy_of(model: &'a Gguf) -> Self {
        let mut writer = Writer::default();
        for (key, value) in model.metadata().iter().filter(|(key, _)| !key.starts_with("split.")) {
            writer.key(key, value.clone());
        }
        for info in model.tensors() {
            let tensor = model.find(&info.name).expect("its own tensor");
            writer.tensor(&info.name, &info.shape, info.ty, tensor.bytes());
        }
        writer
    }

    /// Sets a key; one that is already there keeps its place. `general.alignment` takes effect.
    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(name.to_owned(), value.into());
        self
    }

    /// Removes a key.
    pub fn remove_key(&mut self, name: &str) -> &mut Self {
        let kept = self.metadata.iter().filter(|(key, _)| *key != name);
        let kept: Vec<(String, Value)> = kept.map(|(key, value)| (key.to_owned(), value.clone())).collect();
        self.metadata = Metadata::default();
        for (key, value) in kept {
            self.metadata.insert(key, value);
        }
        self
    }

    /// Adds a tensor from its blocks. `shape` is outermost first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], ty: BlockType, bytes: impl Into<Cow<'a, [u8]>>) -> &mut Self {
        let bytes = bytes.into();
        self.tensor_with(name, shape, ty, move |out| out.write_all(&bytes))
    }

    /// Adds an `F32` tensor from its values.
    pub fn tensor_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensor(name, shape, BlockType::F32, bytes)
    }

    /// Adds a tensor whose blocks `data` writes when the file is written.
    pub fn tensor_with(
        &mut self,
        name: &str,
        shape: &[usize],
        ty: BlockType,
        data: impl Fn(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> &mut Self {
        self.tensors.push(Entry { name: name.to_owned(), shape: shape.to_vec(), ty, data: Box::new(data) });
        self
    }

    /// Removes the tensors for which `keep` says false.
    pub fn retain_tensors(&mut self, keep: impl Fn(&str) -> bool) -> &mut Self {
        self.tensors.retain(|tensor| keep(&tensor.name));
        self
    }

    /// Writes the file at `path`, replacing one that is there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Write`], and [`Error::Unwritable`] for what a reader would refuse: a duplicate name,
    /// more than four dimensions, a size of zero, broken blocks, data of another length than the shape implies.
    pub fn write_to(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let mut out = BufWriter::new(file);
        self.write(&mut out)?;
        Ok(out.flush()?)
    }

    /// The file in memory.
    ///
    /// # Errors
    /// As [`write_to`](Self::write_to).
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        self.write(&mut out)?;
        Ok(out)
    }

    /// Writes the file to a stream.
    ///
    /// # Errors
    /// As [`write_to`](Self::write_to).
    pub fn write(&self, out: &mut dyn Write) -> Result<(), Error> {
        let alignment = alignment(&self.metadata).map_err(|e| unwritable("its keys", e.to_string()))?;
        let sizes = self.tensors.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let names: BTreeSet<_> = self.tensors.iter().map(|tensor| &tensor.name).collect();
        if names.len() != self.tensors.len() {
            return Err(unwritable("the tensors", "two have the same name".into()));
        }

        let mut out = Counted { inner: out, written: 0 };
        out.write_all(b"GGUF")?;
        out.write_all(&3u32.to_le_bytes())?;
        out.write_all(&(self.tensors.len() as u64).to_le_bytes())?;
        out.write_all(&(self.metadata.len() as u64).to_le_bytes())?;
        for (key, value) in self.metadata.iter() {
            string(&mut out, key)?;
            put(&mut out, value)?;
        }
        let mut offset = 0u64;
        for (tensor, &size) in self.tensors.iter().zip(&sizes) {
            string(&mut out, &tensor.name)?;
            out.write_all(&(tensor.shape.len() as u32).to_le_bytes())?;
            for &dim in tensor.shape.iter().rev() {
                out.write_all(&(dim as u64).to_le_bytes())?;
            }
            out.write_all(&tensor.ty.id().to_le_bytes())?;
            out.write_all(&offset.to_le_bytes())?;
            let end = offset.checked_add(size).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or_else(|| unwritable(&tensor.name, "the file would exceed 64 bits".into()))?;
        }
        for (tensor, &size) in self.tensors.iter().zip(&sizes) {
            out.pad(alignment)?;
            let start = out.written;
            (tensor.data)(&mut out)?;
            let written = out.written - start;
            if written != size {
                let problem = format!("its data is {written} bytes, its shape and type ask for {size}");
                return Err(unwritable(&format!("tensor `{}`", tensor.name), problem));
            }
        }
        // Readers that map whole alignment units find the last one complete.
        out.pad(alignment)?;
        Ok(())
    }
}

fn unwritable(what: &str, problem: String) -> Error {
    Error::Unwritable { what: what.to_owned(), problem }
}

/// The bytes a tensor's data must have.
fn size(tensor: &Entry<'_>) -> Result<u64, Error> {
    let Entry { name, shape, ty, .. } = tensor;
    let refuse = |problem: String| unwritable(&format!("tensor `{name}`"), problem);
    if shape.len() > 4 {
        return Err(refuse(format!("{} dimensions, at most 4 are possible", shape.len())));
    }
    if shape.contains(&0) {
        return Err(refuse(format!("shape {shape:?} has a size of zero")));
    }
    let row = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().rev().skip(1).try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let row_bytes = ty.bytes_of(row).ok_or_else(|| refuse(format!("rows of {row} are not whole {ty} blocks")))?;
    rows.and_then(|rows| rows.checked_mul(row_bytes))
        .map(|bytes| bytes as u64)
        .ok_or_else(|| refuse(format!("shape {shape:?} overflows")))
}

/// A stream that knows how far it is.
struct Counted<'a> {
    inner: &'a mut dyn Write,
    written: u64,
}

impl Counted<'_> {
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let padding = self.written.next_multiple_of(alignment) - self.written;
        io::copy(&mut io::Read::take(io::repeat(0), padding), self)?;
        Ok(())
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn string(out: &mut dyn Write, s: &str) -> io::Result<()> {
    out.write_all(&(s.len() as u64).to_le_bytes())?;
    out.write_all(s.as_bytes())
}

/// A value: its type's id, then itself.
fn put(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    macro_rules! number {
        ($id:literal, $v:expr) => {{
            out.write_all(&u32::to_le_bytes($id))?;
            out.write_all(&$v.to_le_bytes())
        }};
    }
    match value {
        Value::U8(v) => number!(0, v),
        Value::I8(v) => number!(1, v),
        Value::U16(v) => number!(2, v),
        Value::I16(v) => number!(3, v),
        Value::U32(v) => number!(4, v),
        Value::I32(v) => number!(5, v),
        Value::F32(v) => number!(6, v),
        Value::Bool(v) => number!(7, u8::from(*v)),
        Value::String(v) => {
            out.write_all(&8u32.to_le_bytes())?;
            string(out, v)
        }
        Value::Array(v) => {
            out.write_all(&9u32.to_le_bytes())?;
            put_array(out, v)
        }
        Value::U64(v) => number!(10, v),
        Value::I64(v) => number!(11, v),
        Value::F64(v) => number!(12, v),
    }
}

/// An array: element type, count, elements without their types.
fn put_array(out: &mut dyn Write, array: &Array) -> io::Result<()> {
    let mut head = |id: u32| {
        out.write_all(&id.to_le_bytes())?;
        out.write_all(&(array.len() as u64).to_le_bytes())
    };
    macro_rules! numbers {
        ($id:literal, $v:expr) => {{
            head($id)?;
            $v.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
        }};
    }
    match array {
        Array::U8(v) => numbers!(0, v),
        Array::I8(v) => numbers!(1, v),
        Array::U16(v) => numbers!(2, v),
        Array::I16(v) => numbers!(3, v),
        Array::U32(v) => numbers!(4, v),
        Array::I32(v) => numbers!(5, v),
        Array::F32(v) => numbers!(6, v),
        Array::Bool(v) => {
            head(7)?;
            v.iter().try_for_each(|&v| out.write_all(&[u8::from(v)]))
        }
        Array::String(v) => {
            head(8)?;
            v.iter().try_for_each(|v| string(out, v))
        }
        Array::Array(v) => {
            head(9)?;
            v.iter().try_for_each(|v| put_array(out, v))
        }
        Array::U64(v) => numbers!(10, v),
        Array::I64(v) => numbers!(11, v),
        Array::F64(v) => numbers!(12, v),
    }
}
