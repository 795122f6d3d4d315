//! Weight files: blob storage version 2, little endian.
//!
//! A header of 64 bytes (count, version, zeros), then for each blob a metadata record of 64 bytes on a 64-byte boundary and its
//! payload. A program refers to a blob by the offset of its *record*. Padding between blobs is zero; the last has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::ReadError;
use crate::diag::Diagnostic;
use crate::ir::{Blob, Dtype, TensorType};

/// Alignment of records and payloads, and the size of a record and of the header.
pub const ALIGN: usize = 64;
const SENTINEL: u32 = 0xdead_beef;
const VERSION: u32 = 2;

/// The element types that a weight file holds, with its own numbers for them.
const CODES: [(Dtype, u32); 17] = [
    (Dtype::F16, 1),
    (Dtype::F32, 2),
    (Dtype::U8, 3),
    (Dtype::I8, 4),
    (Dtype::BF16, 5),
    (Dtype::I16, 6),
    (Dtype::U16, 7),
    (Dtype::I4, 8),
    (Dtype::U1, 9),
    (Dtype::U2, 10),
    (Dtype::U4, 11),
    (Dtype::U3, 12),
    (Dtype::U6, 13),
    (Dtype::I32, 14),
    (Dtype::U32, 15),
    (Dtype::F8E4M3, 16),
    (Dtype::F8E5M2, 17),
];

/// The number of an element type in a weight file; it has none for bool, string and 64-bit types.
pub fn code(dtype: Dtype) -> Option<u32> {
    CODES.iter().find(|(d, _)| *d == dtype).map(|(_, c)| *c)
}

/// The header of a file of `count` blobs.
pub fn header(count: u32) -> [u8; ALIGN] {
    let mut bytes = [0; ALIGN];
    bytes[..4].copy_from_slice(&count.to_le_bytes());
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// The record of a blob of `size` bytes whose payload starts at `data` and ends in `padding` unused bits.
pub fn record(code: u32, size: u64, data: u64, padding: u64) -> [u8; ALIGN] {
    let mut bytes = [0; ALIGN];
    bytes[..4].copy_from_slice(&SENTINEL.to_le_bytes());
    bytes[4..8].copy_from_slice(&code.to_le_bytes());
    bytes[8..16].copy_from_slice(&size.to_le_bytes());
    bytes[16..24].copy_from_slice(&data.to_le_bytes());
    bytes[24..32].copy_from_slice(&padding.to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// The weight files of a package, mapped when they are first needed.
pub struct Weights {
    dir: PathBuf,
    files: BTreeMap<String, Mapped>,
    warned: BTreeSet<String>,
}

struct Mapped {
    map: Arc<Mmap>,
    count: u32,
    records: BTreeSet<u64>,
}

impl Weights {
    /// The files of a directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, files: BTreeMap::new(), warned: BTreeSet::new() }
    }

    /// The blob that a program means by a file name and the offset of a record, for a literal of type `ty`.
    pub fn blob(
        &mut self,
        file: &str,
        offset: u64,
        ty: &TensorType,
        notes: &mut Vec<Diagnostic>,
    ) -> Result<Blob, ReadError> {
        let base = self.base_name(file, notes)?;
        if !self.files.contains_key(&base) {
            let mapped = open(&self.dir.join(&base), &base)?;
            self.files.insert(base.clone(), mapped);
        }
        let fail = |message: String| ReadError::Weights { file: base.clone(), offset, message };
        let mapped = self.files.get_mut(&base).ok_or_else(|| fail("not open".to_owned()))?;
        let bytes: &[u8] = &mapped.map;
        let at = usize::try_from(offset)
            .ok()
            .filter(|&at| at >= ALIGN && at.checked_add(ALIGN).is_some_and(|e| e <= bytes.len()));
        let at = at.ok_or_else(|| fail(format!("a record here lies outside of the file of {} bytes", bytes.len())))?;
        let record = &bytes[at..at + ALIGN];
        if u32_at(record, 0) != SENTINEL {
            return Err(fail(format!(
                "no record here: it should start with {SENTINEL:#x}, not {:#x}",
                u32_at(record, 0)
            )));
        }
        if code(ty.dtype) != Some(u32_at(record, 4)) {
            return Err(fail(format!("the record holds element type {}, the program says {ty}", u32_at(record, 4))));
        }
        let (size, data, padding) = (u64_at(record, 8), u64_at(record, 16), u64_at(record, 24));
        let range = usize::try_from(data).ok().zip(usize::try_from(size).ok()).and_then(|(start, size)| {
            let end = start.checked_add(size)?;
            (start >= ALIGN && end <= bytes.len()).then_some(start..end)
        });
        let Some(range) = range else {
            return Err(fail(format!("{size} bytes at {data} lie outside of the file of {} bytes", bytes.len())));
        };
        if ty.bytes() != Some(range.len()) {
            let expected = ty.bytes().map_or("another number of".to_owned(), |n| n.to_string());
            return Err(fail(format!("the record holds {size} bytes, {ty} needs {expected}")));
        }
        let unused = ty.elements().and_then(|n| n.checked_mul(ty.dtype.bits())).map_or(0, |bits| (8 - bits % 8) % 8);
        if ty.dtype.bits() < 8 && padding != unused as u64 {
            return Err(fail(format!("the record says {padding} unused bits, {ty} leaves {unused}")));
        }
        if !data.is_multiple_of(ALIGN as u64) || !offset.is_multiple_of(ALIGN as u64) {
            notes.push(Diagnostic::warning(
                "blob-alignment",
                format!("{base}: record at {offset}, data at {data}: expected multiples of {ALIGN}"),
            ));
        }
        mapped.records.insert(offset);
        Ok(Blob { file: mapped.map.clone(), record: offset, range })
    }

    /// The file's name within the directory: loaders look nowhere else.
    fn base_name(&mut self, file: &str, notes: &mut Vec<Diagnostic>) -> Result<String, ReadError> {
        let refuse =
            |message: &str| Err(ReadError::Weights { file: file.to_owned(), offset: 0, message: message.to_owned() });
        let (dir, base) = file.rsplit_once('/').unwrap_or(("", file));
        if file.split(['/', '\\']).any(|part| part == "..") {
            return refuse("a weight file's name may not lead out of its package");
        }
        if base.is_empty() || base == "." || base.contains('\0') {
            return refuse("no file name");
        }
        if dir != "@model_path/weights" && self.warned.insert(file.to_owned()) {
            notes.push(Diagnostic::warning(
                "blob-path",
                format!("weights are in {file:?}, expected \"@model_path/weights/{base}\"; only the last part counts"),
            ));
        }
        Ok(base.to_owned())
    }

    /// Says where a header counts fewer blobs than the program uses.
    pub fn check_counts(&self, notes: &mut Vec<Diagnostic>) {
        for (name, file) in &self.files {
            if (file.count as usize) < file.records.len() {
                notes.push(Diagnostic::warning(
                    "blob-count",
                    format!("{name}: the header counts {} blobs, the program uses {}", file.count, file.records.len()),
                ));
            }
        }
    }
}

fn open(path: &Path, name: &str) -> Result<Mapped, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let fail = |message: String| ReadError::Weights { file: name.to_owned(), offset: 0, message };
    // Looked at before it is opened: opening a pipe would wait for ever.
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() {
        return Err(fail("not a regular file".to_owned()));
    }
    if meta.len() < ALIGN as u64 {
        return Err(fail(format!("{} bytes, the header alone has {ALIGN}", meta.len())));
    }
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is only ever read. That nobody truncates or rewrites a package while it is in use is a condition of
    // using it, as for every program that maps its weights; this crate itself never changes a package in place.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    if map.len() < ALIGN {
        return Err(fail("the file shrank".to_owned()));
    }
    let (count, version) = (u32_at(&map, 0), u32_at(&map, 4));
    if version != VERSION {
        return Err(fail(format!("storage version {version}, expected {VERSION}")));
    }
    Ok(Mapped { map: Arc::new(map), count, records: BTreeSet::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    // A record from a file that Core ML's own tools wrote: five int4 in three bytes.
    #[test]
    fn records_have_the_published_layout() {
        let bytes = record(code(Dtype::I4).unwrap(), 3, 128, 4);
        assert_eq!(
            bytes[..32],
            [
                0xef, 0xbe, 0xad, 0xde, 8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0,
                0, 0
            ]
        );
        assert_eq!(header(3)[..8], [3, 0, 0, 0, 2, 0, 0, 0]);
    }
}
