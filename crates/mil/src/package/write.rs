//! Writing a package.
//!
//! The weight file is laid out first: sizes follow from types, so every offset is known before a byte exists. Then producers
//! and copies run in parallel, each writing at its own offsets, and the model last, since small weights are part of it. Every
//! file is hashed on the way (see `blocks`). All of it happens in a directory beside the target that is renamed into place when it is whole
//! and on disk; after any error nothing is left.
//!
//! One payload is stored once: literals that share bytes, a producer's slot or a mapped blob share a record, and so do
//! larger literals with equal type and content. That is how functions come to share weights.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::blob::{self, ALIGN};
use super::blocks::{Blocks, write_blocks};
use super::encode::{self, Content, Placement};
use super::{MAX_MODEL_BYTES, manifest};
use crate::diag::Report;
use crate::ir::{Arg, Deferred, Dtype, Literal, Payload, Producer, Program, Sink, TensorType};
use crate::validate::{Valid, validate};

/// Literals of fewer elements are never compared by content.
const MIN_COMPARED: usize = 100;

/// Literals of fewer elements are written in the model rather than in the weight file, as Core ML's own tools do.
const MIN_BLOB: usize = 10;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Every file of the package.
    pub files: Vec<WrittenFile>,
    /// How many blobs the weight file holds.
    pub blobs: usize,
}

/// One file of a package as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFile {
    /// Inside the package, with `/` between folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The hash of its bytes.
    pub blake3: blake3::Hash,
}

/// Why a package could not be written. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is something at the target already.
    #[error("{}: already exists; remove it or choose another name", .0.display())]
    Exists(PathBuf),
    /// The program was read from someone else's package and breaks rules of ours.
    #[error("the program may be executed but not written:\n{0}")]
    NotStrict(Report),
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A producer failed, or did not write exactly the bytes its literals' types say.
    #[error("a weight could not be made: {0}")]
    Produce(String),
    /// The model would be larger than the reader accepts.
    #[error("the model has {0} bytes, at most {MAX_MODEL_BYTES} are supported")]
    TooLarge(usize),
}

/// Writes a package at `path`, which must not exist. The same program gives the same bytes.
pub fn write(valid: &Valid, path: &Path) -> Result<Written, WriteError> {
    write_watched(valid, path, &|_| {})
}

/// [`write`], with `made` told of the bytes of weights as they are made.
pub fn write_watched(valid: &Valid, path: &Path, made: &(dyn Fn(u64) + Sync)) -> Result<Written, WriteError> {
    if !valid.is_strict() {
        validate(Program::clone(valid)).map_err(WriteError::NotStrict)?;
    }
    if path.symlink_metadata().is_ok() {
        return Err(WriteError::Exists(path.to_owned()));
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| WriteError::Io { path, source }
    };
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    };
    // The temporary directory is private; the package in it has ordinary permissions.
    let temp = tempfile::Builder::new().prefix(".mlpackage-").tempdir_in(&parent).map_err(io(&parent))?;
    let package = temp.path().join("package");
    let data = package.join("Data").join("com.apple.CoreML");
    let weights = data.join("weights");
    fs::create_dir_all(&weights).map_err(io(&weights))?;

    let layout = Layout::new(valid);
    let weight_path = weights.join("weight.bin");
    let mut inline = HashMap::new();
    let weight_hash = write_blocks(&weight_path, layout.size, |file| {
        inline = layout.fill(file, made)?;
        Ok(())
    });
    let weight_hash = weight_hash.map_err(|e: FillError| e.at(&weight_path))?;
    let mut files = vec![WrittenFile { name: inside(&package, &weight_path), bytes: layout.size, blake3: weight_hash }];

    let model = encode::model(valid, &Placed { layout: &layout, inline: &inline });
    if model.len() as u64 > MAX_MODEL_BYTES {
        return Err(WriteError::TooLarge(model.len()));
    }
    for (path, bytes) in
        [(data.join("model.mlmodel"), &model[..]), (package.join(manifest::NAME), manifest::text(&model).as_bytes())]
    {
        let mut file = File::create(&path).map_err(io(&path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(&path))?;
        let (name, blake3) = (inside(&package, &path), blake3::hash(bytes));
        files.push(WrittenFile { name, bytes: bytes.len() as u64, blake3 });
    }
    for dir in [&weights, &data, &package.join("Data"), &package] {
        File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))?;
    }
    if path.symlink_metadata().is_ok() {
        return Err(WriteError::Exists(path.to_owned()));
    }
    fs::rename(&package, path).map_err(io(path))?;
    File::open(&parent).and_then(|d| d.sync_all()).map_err(io(&parent))?;
    Ok(Written { files, blobs: layout.blobs.len() })
}

/// A file's name inside the package; all of them are ASCII of ours.
fn inside(package: &Path, file: &Path) -> String {
    file.strip_prefix(package).unwrap_or(file).to_string_lossy().into_owned()
}

/// What makes two literals the same without looking at their bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    source: (usize, u64),
    ty: TensorType,
}

impl Identity {
    fn of(lit: &Literal) -> Option<Self> {
        let address = |p: *const u8| p as usize;
        let source = match &lit.payload {
            Payload::Bytes(b) => (address(b.as_ptr()), 0),
            Payload::Blob(b) => (address(b.file.as_ptr()), b.record),
            Payload::Deferred(d) => (address(Arc::as_ptr(&d.producer).cast()), d.slot as u64),
            Payload::Strings(_) | Payload::Aggregate(_) => return None,
        };
        Some(Self { source, ty: lit.tensor_type()?.clone() })
    }
}

/// One blob of the file to be.
struct Planned<'a> {
    literal: &'a Literal,
    record: u64,
    size: u64,
    code: u32,
    padding: u64,
}

/// Where every literal goes.
struct Layout<'a> {
    blobs: Vec<Planned<'a>>,
    records: HashMap<Identity, u64>,
    /// Literals to be produced that belong in the model.
    inline: Vec<&'a Literal>,
    size: u64,
}

impl<'a> Layout<'a> {
    fn new(program: &'a Program) -> Self {
        let mut layout = Self { blobs: Vec::new(), records: HashMap::new(), inline: Vec::new(), size: ALIGN as u64 };
        let mut contents = HashMap::new();
        for f in &program.functions {
            for op in &f.ops {
                let literals = op.inputs.values().flatten().filter_map(|arg| match arg {
                    Arg::Literal(lit) => Some(lit),
                    Arg::Value(_) => None,
                });
                let blob = encode::may_be_blob(op);
                for lit in literals.chain(op.attributes.values()) {
                    layout.place(lit, blob && in_file(lit, program.spec_version), &mut contents);
                }
            }
        }
        layout
    }

    fn place(&mut self, lit: &'a Literal, blob: bool, contents: &mut HashMap<(TensorType, blake3::Hash), u64>) {
        let Some(identity) = Identity::of(lit) else { return };
        if !blob {
            if matches!(lit.payload, Payload::Deferred(_)) {
                self.inline.push(lit);
            }
            return;
        }
        if self.records.contains_key(&identity) {
            return;
        }
        let ty = identity.ty.clone();
        // The validator has made sure of both.
        let (Some(code), Some(size)) = (blob::code(ty.dtype), ty.bytes()) else { return };
        let content = (ty.elements() >= Some(MIN_COMPARED)).then(|| lit.bytes()).flatten().map(|bytes| {
            let mut hasher = blake3::Hasher::new();
            (ty.clone(), hasher.update(bytes).finalize())
        });
        if let Some(&record) = content.as_ref().and_then(|key| contents.get(key)) {
            self.records.insert(identity, record);
            return;
        }
        let record = self.size.next_multiple_of(ALIGN as u64);
        let size = size as u64;
        let bits = ty.elements().unwrap_or(0) as u64 * ty.dtype.bits() as u64;
        self.blobs.push(Planned { literal: lit, record, size, code, padding: size * 8 - bits });
        self.size = record + ALIGN as u64 + size;
        self.records.insert(identity, record);
        if let Some(key) = content {
            contents.insert(key, record);
        }
    }

    /// Writes the whole weight file; what producers made for the model comes back.
    fn fill(&self, file: &Blocks, made: &(dyn Fn(u64) + Sync)) -> Result<HashMap<Identity, Vec<u8>>, FillError> {
        file.write_at(&blob::header(self.blobs.len() as u32), 0)?;
        let mut producers: BTreeMap<usize, (&Arc<dyn Producer>, Slots<'_>)> = BTreeMap::new();
        let mut order = HashMap::new();
        let mut add = |d: &'a Deferred, target: Target<'a>| {
            let key = Arc::as_ptr(&d.producer).cast::<u8>() as usize;
            let next = order.len();
            let position = *order.entry(key).or_insert(next);
            let (_, slots) = producers
                .entry(position)
                .or_insert_with(|| (&d.producer, Slots { file, made, targets: BTreeMap::new() }));
            slots.targets.entry(d.slot).or_default().push(target);
        };
        let mut end = ALIGN as u64;
        for blob in &self.blobs {
            let data = blob.record + ALIGN as u64;
            // Zeros up to the boundary that the record starts on.
            file.write_at(&[0; ALIGN][..(blob.record - end) as usize], end)?;
            file.write_at(&blob::record(blob.code, blob.size, data, blob.padding), blob.record)?;
            end = data + blob.size;
            if let Payload::Deferred(d) = &blob.literal.payload {
                add(d, Target::new(blob.literal, blob.size, To::File(data)));
            }
        }
        for lit in &self.inline {
            if let (Payload::Deferred(d), Some(size)) = (&lit.payload, lit.tensor_type().and_then(TensorType::bytes)) {
                add(d, Target::new(lit, size as u64, To::Memory(Mutex::new(vec![0; size]))));
            }
        }
        let copies: Vec<&Planned<'_>> =
            self.blobs.iter().filter(|b| !matches!(b.literal.payload, Payload::Deferred(_))).collect();
        copies.par_iter().try_for_each(|b| {
            let bytes = b.literal.bytes().unwrap_or_default();
            file.write_at(bytes, b.record + ALIGN as u64)
        })?;
        let producers: Vec<_> = producers.into_values().collect();
        producers.par_iter().try_for_each(|(producer, slots)| {
            producer.produce(slots)?;
            slots.check()
        })?;
        let mut inline = HashMap::new();
        for (_, slots) in producers {
            for target in slots.targets.into_values().flatten() {
                if let (To::Memory(bytes), Some(identity)) = (target.to, Identity::of(target.literal)) {
                    inline.insert(identity, bytes.into_inner().unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
        Ok(inline)
    }
}

/// Whether a literal is one that Core ML's own tools would put into the weight file.
fn in_file(lit: &Literal, spec_version: i32) -> bool {
    let Some(ty) = lit.tensor_type() else { return false };
    let kind = match ty.dtype {
        Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::U32 => spec_version >= 9,
        Dtype::Bool | Dtype::String | Dtype::F64 | Dtype::I64 | Dtype::U64 => false,
        dtype => blob::code(dtype).is_some(),
    };
    kind && ty.elements() >= Some(MIN_BLOB)
}

enum FillError {
    Io(io::Error),
    Produce(String),
}

impl From<io::Error> for FillError {
    fn from(e: io::Error) -> Self {
        FillError::Io(e)
    }
}

impl FillError {
    fn at(self, path: &Path) -> WriteError {
        match self {
            FillError::Io(source) => WriteError::Io { path: path.to_owned(), source },
            FillError::Produce(message) => WriteError::Produce(message),
        }
    }
}

enum To {
    File(u64),
    Memory(Mutex<Vec<u8>>),
}

struct Target<'a> {
    literal: &'a Literal,
    size: u64,
    written: AtomicU64,
    to: To,
}

impl<'a> Target<'a> {
    fn new(literal: &'a Literal, size: u64, to: To) -> Self {
        Self { literal, size, written: AtomicU64::new(0), to }
    }
}

/// Where the slots of one producer go. A slot that no literal uses goes nowhere.
struct Slots<'a> {
    file: &'a Blocks,
    made: &'a (dyn Fn(u64) + Sync),
    targets: BTreeMap<usize, Vec<Target<'a>>>,
}

impl Sink for Slots<'_> {
    fn write(&self, slot: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
        for target in self.targets.get(&slot).into_iter().flatten() {
            let end = (offset as u64).checked_add(bytes.len() as u64).filter(|&end| end <= target.size);
            if end.is_none() {
                let message = format!("{} bytes at {offset} of slot {slot}, which has {}", bytes.len(), target.size);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
            match &target.to {
                To::File(at) => self.file.write_at(bytes, at + offset as u64)?,
                To::Memory(memory) => {
                    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                    memory[offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
            target.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            (self.made)(bytes.len() as u64);
        }
        Ok(())
    }
}

impl Slots<'_> {
    /// Every byte once: as many as there are.
    fn check(&self) -> Result<(), FillError> {
        for (slot, targets) in &self.targets {
            for target in targets {
                let written = target.written.load(Ordering::Relaxed);
                if written != target.size {
                    let message = format!(
                        "{written} bytes of slot {slot} were written, {} has {}",
                        target.literal.ty, target.size
                    );
                    return Err(FillError::Produce(message));
                }
            }
        }
        Ok(())
    }
}

struct Placed<'a> {
    layout: &'a Layout<'a>,
    inline: &'a HashMap<Identity, Vec<u8>>,
}

impl Placement for Placed<'_> {
    fn content<'a>(&'a self, lit: &'a Literal, may_be_blob: bool) -> Content<'a> {
        let identity = Identity::of(lit);
        let record = identity.as_ref().and_then(|i| self.layout.records.get(i)).filter(|_| may_be_blob);
        if let Some(&record) = record {
            return Content::Record(record);
        }
        let produced = identity.as_ref().and_then(|i| self.inline.get(i));
        Content::Inline(produced.map(Vec::as_slice).or_else(|| lit.bytes()).unwrap_or_default())
    }
}
