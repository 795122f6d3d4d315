//! A bundle from a model: every shard, the head, the embedding, what a host needs to talk, and the manifest over it all.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anemone_bundle::contract::WeightMode;
use anemone_bundle::manifest::{self, FileEntry, Shard, Source};
use anemone_bundle::{Manifest, layout};
use anemone_mil::Valid;
use anemone_mil::ir::Sink;
use anemone_mil::package::{self, Blocks, write_blocks};

use crate::error::Error;
use crate::ledger::{Entries, Ledger};
use crate::model::Model;
use crate::reuse::Baseline;
use crate::shard;
use crate::staging::{Access, Staging, failed};
use crate::topology::{LayerCut, Topology};
use crate::weights::{Rows, plain};

/// What the manifest and the ledger call this program.
const TOOL: &str = concat!("anemone ", env!("CARGO_PKG_VERSION"));

/// How a bundle is cut and what goes beside its shards.
#[derive(Clone, Debug)]
pub struct Options {
    /// How layers become shards.
    pub layers: LayerCut,
    /// Slices of the head; `None` for as many as placement asks for.
    pub head_slices: Option<usize>,
    /// Tokens of each function: `[1]` or `[1, N]`.
    pub tokens: Vec<usize>,
    /// A bundle to take head slices and embedding from.
    pub reuse: Option<Baseline>,
    /// Files that hosts read and the lowering does not: tokenizer and chat template, by their name in the bundle.
    pub host_files: BTreeMap<String, Vec<u8>>,
}

/// What a piece of a bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The package of a range of layers.
    Layers,
    /// The package of a range of the head's rows.
    Head,
    /// The embedding table.
    Embedding,
}

/// One part of a bundle that can be made by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the bundle.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Layers, or rows of the vocabulary.
    pub range: Range<usize>,
    /// Bytes of its weights: all of it but some kilobytes.
    pub weight_bytes: u64,
}

/// What a build would write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layer shards, head slices, the embedding: the jobs of a build, by number.
    pub pieces: Vec<Piece>,
    /// The cut.
    pub topology: Topology,
}

impl Plan {
    /// Cuts the model; fails where options and model do not fit.
    pub fn new(model: &Model, options: &Options) -> Result<Self, Error> {
        let c = &model.contract;
        check_tokens(&options.tokens, c.context)?;
        let (width, q, kv) = (c.width as u64, (c.heads * c.head_dim) as u64, (c.kv_heads * c.head_dim) as u64);
        let bytes = |rows: u64, columns: u64| match c.weights {
            WeightMode::Fp16 => 2 * rows * columns,
            WeightMode::Int8 => rows * columns,
            WeightMode::Int8Channel => rows * columns + 2 * rows,
        };
        let ffn = c.ffn as u64;
        let norms = 2 * 2 * width;
        let layer = bytes(q + 2 * kv, width) + bytes(width, q) + bytes(2 * ffn, width) + bytes(width, ffn) + norms;
        let topology = Topology::new(&options.layers, options.head_slices, c.layers, layer, c.vocab)?;
        let shard = |range: &Range<usize>| Piece {
            path: layout::layers(range),
            kind: Kind::Layers,
            range: range.clone(),
            weight_bytes: layer * range.len() as u64,
        };
        let slice = |(i, rows): (usize, &Range<usize>)| Piece {
            path: layout::head(i),
            kind: Kind::Head,
            range: rows.clone(),
            weight_bytes: bytes(rows.len() as u64, width) + 2 * width,
        };
        let embedding = Piece {
            path: layout::EMBEDDING.to_owned(),
            kind: Kind::Embedding,
            range: 0..c.vocab,
            weight_bytes: 2 * c.vocab as u64 * width,
        };
        let packages = topology.layers.iter().map(shard).chain(topology.head.iter().enumerate().map(slice));
        Ok(Self { pieces: packages.chain([embedding]).collect(), topology })
    }

    /// Bytes of everything with a size worth speaking of.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|p| p.weight_bytes).sum()
    }
}

fn check_tokens(tokens: &[usize], context: usize) -> Result<(), Error> {
    let fault = |reason: String| Err(Error::Option { option: "--tokens", reason });
    match *tokens {
        [1] => Ok(()),
        [1, n] if n > 1 && n <= context => Ok(()),
        [1, n] => fault(format!("{n} is not within 2 and the context of {context}")),
        _ => fault("expected 1, or 1,N: one token for decoding and N for prefill".into()),
    }
}

/// Told about a build as it goes.
pub trait Progress: Sync {
    /// A part is begun: `layers/00-02.mlpackage`.
    fn part(&self, path: &str);
    /// That many more bytes of [`Plan::bytes`] are written.
    fn wrote(&self, bytes: u64);
}

/// The progress of one piece: as many bytes as the plan says, whatever headers and padding add.
struct PieceProgress<'a> {
    all: &'a dyn Progress,
    left: AtomicU64,
}

impl<'a> PieceProgress<'a> {
    fn begin(all: &'a dyn Progress, piece: &Piece) -> Self {
        all.part(&piece.path);
        Self { all, left: AtomicU64::new(piece.weight_bytes) }
    }

    fn wrote(&self, bytes: u64) {
        let before =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        self.all.wrote(before.unwrap_or_default().min(bytes));
    }

    fn end(self) {
        self.all.wrote(self.left.into_inner());
    }
}

/// Builds the bundle at `target`, which must not exist. A piece that an earlier build of the same request finished there is
/// taken over if `access` is not [`Access::Alone`]. On an error the target is as absent as before.
pub fn build(
    model: &Model,
    options: &Options,
    target: &Path,
    access: Access,
    progress: &dyn Progress,
) -> Result<Manifest, Error> {
    let plan = Plan::new(model, options)?;
    let staging = Staging::open(target, access)?;
    let anew = access == Access::Alone || !Ledger::is_named(staging.folder());
    if anew && options.reuse.is_none() {
        return build_anew(model, options, &plan, staging, progress);
    }
    let source = source(model);
    let ledger = ledger(&staging, model, options, &plan, &source, access)?;
    let done: Vec<_> = plan.pieces.iter().map(|piece| ledger.finished(&piece.path)).collect();
    let finished: Vec<Entries> = done.iter().flatten().cloned().collect();
    ledger.clear_unfinished(&finished).map_err(failed(staging.folder()))?;
    let mut files = Entries::new();
    for (piece, done) in plan.pieces.iter().zip(done) {
        let progress = PieceProgress::begin(progress, piece);
        files.extend(match done {
            Some(entries) => entries,
            None => make(model, piece, options, &staging, &ledger, &progress)?,
        });
        progress.end();
    }
    assemble(model, options, &plan, source, files, staging, ledger)
}

/// A build that takes nothing over, and so need not know the source's hash before it has a piece to enter: the source is hashed while
/// it is read for its weights, and comes from the disk once.
fn build_anew(
    model: &Model,
    options: &Options,
    plan: &Plan,
    staging: Staging,
    progress: &dyn Progress,
) -> Result<Manifest, Error> {
    let ledger = Ledger::begin(staging.folder()).map_err(failed(staging.folder()))?;
    let (files, source) = thread::scope(|scope| {
        // On a thread of its own, since those that share out the weights have no idle moment for it.
        let hashing = scope.spawn(|| {
            source_hashed(model, |hasher, part| {
                hasher.update(part);
            })
        });
        let source = LazyCell::new(|| hashing.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let mut files = Entries::new();
        for piece in &plan.pieces {
            let progress = PieceProgress::begin(progress, piece);
            let entries = write_piece(model, piece, options, &staging, &progress)?;
            if files.is_empty() {
                let request = request(model, options, plan, &source);
                ledger.name(&request).map_err(failed(staging.folder()))?;
            }
            ledger.enter(&piece.path, &entries).map_err(failed(staging.folder()))?;
            files.extend(entries);
            progress.end();
        }
        Ok::<_, Error>((files, source.clone()))
    })?;
    assemble(model, options, plan, source, files, staging, ledger)
}

/// Makes one piece of a build, to be joined later: job `number` of [`Plan::pieces`]. Other jobs may run at the same time, in
/// other processes, on the same target. A piece that is finished already is left as it is.
pub fn build_piece(
    model: &Model,
    options: &Options,
    target: &Path,
    number: usize,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let plan = Plan::new(model, options)?;
    let piece = plan.pieces.get(number).ok_or_else(|| Error::Option {
        option: "--job",
        reason: format!("there is no job {number}: the plan has jobs 0 to {}", plan.pieces.len() - 1),
    })?;
    let staging = Staging::open(target, Access::Shared)?;
    let ledger = ledger(&staging, model, options, &plan, &source(model), Access::Shared)?;
    match ledger.finished(&piece.path) {
        Some(_) => Ok(()),
        None => make(model, piece, options, &staging, &ledger, &PieceProgress::begin(progress, piece)).map(drop),
    }
}

/// Joins the pieces that jobs have made into the bundle at `target`. Fails, and changes nothing, where one is missing.
pub fn join(model: &Model, options: &Options, target: &Path) -> Result<Manifest, Error> {
    let plan = Plan::new(model, options)?;
    let staging = Staging::open(target, Access::Resumable)?;
    let source = source(model);
    let ledger = ledger(&staging, model, options, &plan, &source, Access::Resumable)?;
    let mut files = Entries::new();
    for (number, piece) in plan.pieces.iter().enumerate() {
        files.extend(ledger.finished(&piece.path).ok_or_else(|| Error::Option {
            option: "--join",
            reason: format!("job {number} ({}) is not finished; run it and join again", piece.path),
        })?);
    }
    let owned = [files.clone()];
    ledger.clear_unfinished(&owned).map_err(failed(staging.folder()))?;
    assemble(model, options, &plan, source, files, staging, ledger)
}

/// The ledger of a request.
fn ledger(
    staging: &Staging,
    model: &Model,
    options: &Options,
    plan: &Plan,
    source: &Source,
    access: Access,
) -> Result<Ledger, Error> {
    if let Some(baseline) = &options.reuse {
        baseline.fits(&model.contract, source, &options.tokens, plan)?;
    }
    let request = request(model, options, plan, source);
    Ledger::open(staging.folder(), &request, access).map_err(failed(staging.folder()))
}

/// The hash of everything that decides the bytes of a bundle.
fn request(model: &Model, options: &Options, plan: &Plan, source: &Source) -> String {
    let pieces: Vec<_> = plan.pieces.iter().map(|p| (&p.path, &p.range)).collect();
    let request = format!("{TOOL} {} {} {pieces:?} {:?}", source.blake3, model.contract.hash(), options.tokens);
    blake3::hash(request.as_bytes()).to_hex().to_string()
}

/// Makes a piece and enters it into the ledger once it is on disk.
fn make(
    model: &Model,
    piece: &Piece,
    options: &Options,
    staging: &Staging,
    ledger: &Ledger,
    progress: &PieceProgress<'_>,
) -> Result<Entries, Error> {
    let entries = write_piece(model, piece, options, staging, progress)?;
    ledger.enter(&piece.path, &entries).map_err(failed(staging.folder()))?;
    Ok(entries)
}

/// Makes the files of a piece and puts them on disk.
fn write_piece(
    model: &Model,
    piece: &Piece,
    options: &Options,
    staging: &Staging,
    progress: &PieceProgress<'_>,
) -> Result<Entries, Error> {
    let path = staging.folder().join(&piece.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    if path.symlink_metadata().is_ok() {
        // Left by a stop between writing and entering.
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed(&path))?;
    }
    Ok(match &options.reuse {
        Some(baseline) if baseline.has(piece.kind) => baseline.take(&piece.path, staging.folder())?,
        _ => match program(model, piece, &options.tokens)? {
            Some(program) => {
                let written = package::write_watched(&program, &path, &|bytes| progress.wrote(bytes))?;
                let entry = |f: package::WrittenFile| (format!("{}/{}", piece.path, f.name), entry(f.bytes, f.blake3));
                written.files.into_iter().map(entry).collect()
            }
            None => Entries::from([(piece.path.clone(), write_embedding(model, &path, progress)?)]),
        },
    })
}

/// Adds what is not a piece, writes the manifest, and makes the staging folder the target.
fn assemble(
    model: &Model,
    options: &Options,
    plan: &Plan,
    source: Source,
    mut files: Entries,
    staging: Staging,
    ledger: Ledger,
) -> Result<Manifest, Error> {
    let folder = staging.folder();
    for (name, bytes) in &options.host_files {
        let path = folder.join(name);
        write_file(&path, bytes)?;
        files.insert(name.clone(), entry(bytes.len() as u64, blake3::hash(bytes)));
    }
    let manifest = Manifest {
        format: manifest::FORMAT,
        tool: TOOL.to_owned(),
        name: model.name().to_owned(),
        source,
        contract: model.contract.clone(),
        contract_hash: model.contract.hash(),
        tokens: options.tokens.clone(),
        layers: shards(plan, Kind::Layers),
        head: shards(plan, Kind::Head),
        files,
    };
    manifest.check().map_err(|reason| Error::Invalid { shard: layout::MANIFEST.into(), report: reason })?;
    write_file(&folder.join(layout::MANIFEST), manifest.to_json().as_bytes())?;
    ledger.close().map_err(failed(folder))?;
    staging.commit()?;
    Ok(manifest)
}

/// The program of a piece; the embedding has none.
pub fn program(model: &Model, piece: &Piece, tokens: &[usize]) -> Result<Option<Valid>, Error> {
    match piece.kind {
        Kind::Layers => shard::layers(model, &piece.range, tokens).map(Some),
        Kind::Head => shard::head(model, &piece.range, tokens).map(Some),
        Kind::Embedding => Ok(None),
    }
}

fn shards(plan: &Plan, kind: Kind) -> Vec<Shard> {
    let shard = |p: &Piece| Shard { start: p.range.start, end: p.range.end, path: p.path.clone() };
    plan.pieces.iter().filter(|p| p.kind == kind).map(shard).collect()
}

/// The source as a manifest names it: a read of the whole file, by all cores.
pub fn source(model: &Model) -> Source {
    source_hashed(model, |hasher, part| {
        hasher.update_rayon(part);
    })
}

fn source_hashed(model: &Model, update: impl Fn(&mut blake3::Hasher, &[u8])) -> Source {
    let mut hasher = blake3::Hasher::new();
    for part in model.source.parts() {
        update(&mut hasher, part);
    }
    Source {
        file: model.file_name.clone(),
        bytes: model.source.parts().map(|p| p.len() as u64).sum(),
        blake3: hasher.finalize().to_hex().to_string(),
    }
}

/// Writes the embedding table as fp16 rows.
fn write_embedding(model: &Model, path: &Path, progress: &PieceProgress<'_>) -> Result<FileEntry, Error> {
    struct Table<'a>(&'a Blocks, &'a PieceProgress<'a>);
    impl Sink for Table<'_> {
        fn write(&self, _slot: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
            self.1.wrote(bytes.len() as u64);
            self.0.write_at(bytes, offset as u64)
        }
    }
    let rows = Rows::new(&model.source, "token_embd.weight", plain(0..model.contract.vocab))?;
    let (height, width) = rows.shape();
    let size = 2 * height as u64 * width as u64;
    let hash = write_blocks(path, size, |blocks| rows.write_fp16(&Table(blocks, progress))).map_err(failed(path))?;
    Ok(entry(size, hash))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let run = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    run().map_err(failed(path))
}

fn entry(bytes: u64, blake3: blake3::Hash) -> FileEntry {
    FileEntry { bytes, blake3: blake3.to_hex().to_string() }
}
