//! An opened model: its bytes, mapped and never copied, and what the directory says is where.
//!
//! A model is usually one file. Large ones are split into files named `NAME-00001-of-00003.gguf`; opening the first
//! opens all, and the tensors of all of them appear under one roof.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::parse::{Directory, parse};
use crate::{BlockType, Error, Metadata, dequantize, optional};

/// A GGUF model, open for reading. Share it through an `Arc`.
#[derive(Debug)]
pub struct Gguf {
    parts: Vec<Storage>,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
enum Storage {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }
}

/// Where a tensor is and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in the model.
    pub name: String,
    /// Sizes, outermost first: row-major, the reverse of ggml's `ne`. Empty for a scalar.
    pub shape: Vec<usize>,
    /// The element type.
    pub ty: BlockType,
    /// Which file of a split model holds it, from 0.
    pub part: usize,
    /// Where its data begins, in bytes from the start of that file.
    pub offset: u64,
    /// The bytes of its data.
    pub len: u64,
}

impl TensorInfo {
    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements of one row: the innermost size, 1 for a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The number of rows: the product of all sizes but the innermost.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

impl Gguf {
    /// Maps the file at `path`, and the other files of a split model beside it.
    ///
    /// The mapping is read when a tensor is. As with every mapped file, truncating it meanwhile stops the process
    /// with a bus error, and rewriting it changes what is read.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened, and every other variant but those of keys, tensors and writing
    /// where its contents are not a well-formed GGUF.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        let path = path.as_ref();
        let first = map(path)?;
        let directory = parse(first.bytes())?;
        let split = Split::of(&directory.metadata)?;
        let mut gguf = Gguf::new(first, directory);
        if let Some(split) = split {
            split.require_first()?;
            for (no, path) in split.siblings(path)?.into_iter().enumerate().skip(1) {
                let within = |source| Error::Part { path: path.clone(), source: Box::new(source) };
                let storage = map(&path)?;
                let directory = parse(storage.bytes()).map_err(within)?;
                split.check_member(no, &directory.metadata).map_err(within)?;
                gguf.append(storage, directory).map_err(within)?;
            }
            split.check_total(gguf.tensors.len())?;
        }
        Ok(gguf)
    }

    /// Reads a model from memory.
    ///
    /// # Errors
    /// As [`open`](Self::open); also [`Error::Split`] for one file of a split model, whose siblings have no path here.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, Error> {
        let directory = parse(&bytes)?;
        if let Some(split) = Split::of(&directory.metadata)? {
            return Err(Error::Split(format!("this is file {} of {}; open it by its path", split.no + 1, split.count)));
        }
        Ok(Gguf::new(Storage::Owned(bytes), directory))
    }

    fn new(storage: Storage, directory: Directory) -> Gguf {
        let Directory { version, alignment, metadata, tensors } = directory;
        let index = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Gguf { parts: vec![storage], version, alignment, metadata, tensors, index }
    }

    fn append(&mut self, storage: Storage, directory: Directory) -> Result<(), Error> {
        for mut tensor in directory.tensors {
            tensor.part = self.parts.len();
            if self.index.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(Error::Split(format!("tensor `{}` is in an earlier file too", tensor.name)));
            }
            self.tensors.push(tensor);
        }
        self.parts.push(storage);
        Ok(())
    }

    /// The format version, 2 or 3 (of a split model: its first file's).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data in bytes, a power of two (of a split model: its first file's).
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The bytes of all files together; never zero.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.parts().map(|part| part.len() as u64).sum()
    }

    /// The bytes of the file; of a split model, of its first file ([`parts`](Self::parts) has all of them).
    pub fn bytes(&self) -> &[u8] {
        self.parts[0].bytes()
    }

    /// The bytes of each file in order: one, unless the model is split.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.parts.iter().map(Storage::bytes)
    }

    /// The keys (of a split model: its first file's, where converters put all of them).
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name, if there is one.
    pub fn find(&self, name: &str) -> Option<Tensor<'_>> {
        self.index.get(name).map(|&i| {
            let info = &self.tensors[i];
            // The parser has checked that the range lies in the file.
            let start = info.offset as usize;
            Tensor { info, bytes: &self.parts[info.part].bytes()[start..start + info.len as usize] }
        })
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.find(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
    }
}

#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Storage, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // An empty map is an error on some systems and an empty slice on others.
    if file.metadata().map_err(io)?.len() == 0 {
        return Err(Error::Empty);
    }
    // SAFETY: the map is read-only and private to this process. Another process that rewrites or truncates the file
    // can change the bytes or end this process; `open` documents it, and no invariant of ours rests on their value.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Storage::Mapped(map))
}

/// The keys that `llama-gguf-split` writes.
struct Split {
    no: usize,
    count: usize,
    tensors: usize,
}

impl Split {
    /// `None` for a model in one file.
    fn of(metadata: &Metadata) -> Result<Option<Split>, Error> {
        let count = optional(metadata.usize("split.count"))?.unwrap_or(1);
        if count <= 1 {
            return Ok(None);
        }
        let no = metadata.usize("split.no")?;
        if no >= count || count > 99_999 {
            return Err(Error::Split(format!("split.no is {no} and split.count {count}")));
        }
        Ok(Some(Split { no, count, tensors: metadata.usize("split.tensors.count")? }))
    }

    fn suffix(no: usize, count: usize) -> String {
        format!("-{:05}-of-{count:05}.gguf", no + 1)
    }

    fn require_first(&self) -> Result<(), Error> {
        if self.no == 0 {
            return Ok(());
        }
        let (no, first) = (self.no + 1, Split::suffix(0, self.count));
        Err(Error::Split(format!("this is file {no} of {}; open the first, whose name ends in `{first}`", self.count)))
    }

    /// The paths of all files, from that of the first.
    fn siblings(&self, first: &Path) -> Result<Vec<PathBuf>, Error> {
        let suffix = Split::suffix(0, self.count);
        let name = first.file_name().and_then(|name| name.to_str());
        let stem = name.and_then(|name| name.strip_suffix(&suffix)).ok_or_else(|| {
            let (name, count) = (first.display(), self.count);
            Error::Split(format!("{name} is the first of {count} files, so its name has to end in `{suffix}`"))
        })?;
        Ok((0..self.count).map(|no| first.with_file_name(format!("{stem}{}", Split::suffix(no, self.count)))).collect())
    }

    fn check_member(&self, no: usize, metadata: &Metadata) -> Result<(), Error> {
        let (found, count) = (metadata.usize("split.no")?, metadata.usize("split.count")?);
        if (found, count) == (no, self.count) {
            return Ok(());
        }
        Err(Error::Split(format!("split.no {found} of {count}, expected {no} of {}", self.count)))
    }

    fn check_total(&self, found: usize) -> Result<(), Error> {
        if found == self.tensors {
            return Ok(());
        }
        Err(Error::Split(format!("the files hold {found} tensors, split.tensors.count says {}", self.tensors)))
    }
}

/// A tensor's data, borrowed from the file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    info: &'a TensorInfo,
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Name, shape, type and place.
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// The name.
    pub fn name(&self) -> &'a str {
        &self.info.name
    }

    /// The sizes, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        &self.info.shape
    }

    /// The element type.
    pub fn ty(&self) -> BlockType {
        self.info.ty
    }

    /// The stored blocks, row after row.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The product of all sizes but the innermost.
    pub fn rows(&self) -> usize {
        self.info.rows()
    }

    /// The innermost size.
    pub fn row_len(&self) -> usize {
        self.info.row_len()
    }

    /// The blocks of row `row`.
    ///
    /// # Errors
    /// [`Error::Row`] past the last.
    pub fn row_bytes(&self, row: usize) -> Result<&'a [u8], Error> {
        let rows = self.rows();
        if row >= rows {
            return Err(Error::Row { name: self.info.name.clone(), row, rows });
        }
        // Rows are whole blocks, checked when the file was opened, so the division is exact.
        let len = self.bytes.len() / rows;
        Ok(&self.bytes[row * len..][..len])
    }

    /// Dequantises row `row` into `out`, of [`row_len`](Self::row_len) elements.
    ///
    /// # Errors
    /// [`Error::Row`] past the last, [`Error::BlockSize`] where `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        dequantize(self.info.ty, self.row_bytes(row)?, out)
    }

    /// Dequantises all of it, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.info.elements()];
        dequantize(self.info.ty, self.bytes, &mut out).expect("sizes are checked when the file is opened");
        out
    }
}
