//! A bundle from a model: every shard, the head, the embedding, what a host needs to talk, and the manifest over it all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anemone_bundle::contract::WeightMode;
use anemone_bundle::manifest::{self, FileEntry, Shard, Source};
use anemone_bundle::{Manifest, layout};
use anemone_mil::Valid;
use anemone_mil::ir::Sink;
use anemone_mil::package;

use crate::error::Error;
use crate::model::Model;
use crate::shard;
use crate::staging::Staging;
use crate::topology::{LayerCut, Topology};
use crate::weights::{Rows, plain};

/// How a bundle is cut and what goes beside its shards.
#[derive(Clone, Debug)]
pub struct Options {
    /// How layers become shards.
    pub layers: LayerCut,
    /// Slices of the head; `None` for as many as placement asks for.
    pub head_slices: Option<usize>,
    /// Tokens of each function: `[1]` or `[1, N]`.
    pub tokens: Vec<usize>,
    /// Files that hosts read and the lowering does not: tokenizer and chat template, by their name in the bundle.
    pub host_files: BTreeMap<String, Vec<u8>>,
}

/// One package to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the bundle.
    pub path: String,
    /// Layers, or rows of the head.
    pub range: Range<usize>,
    /// Whether it is a head slice.
    pub head: bool,
    /// Bytes of its weights: all but some kilobytes of the package.
    pub weight_bytes: u64,
}

/// What a build would write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Layer shards, then head slices.
    pub pieces: Vec<Piece>,
    /// Bytes of the embedding table.
    pub embedding_bytes: u64,
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
            range: range.clone(),
            head: false,
            weight_bytes: layer * range.len() as u64,
        };
        let slice = |(i, rows): (usize, &Range<usize>)| Piece {
            path: layout::head(i),
            range: rows.clone(),
            head: true,
            weight_bytes: bytes(rows.len() as u64, width) + 2 * width,
        };
        let pieces = topology.layers.iter().map(shard).chain(topology.head.iter().enumerate().map(slice)).collect();
        Ok(Self { pieces, embedding_bytes: 2 * c.vocab as u64 * width, topology })
    }

    /// Bytes of everything with a size worth speaking of.
    pub fn bytes(&self) -> u64 {
        self.embedding_bytes + self.pieces.iter().map(|p| p.weight_bytes).sum::<u64>()
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
    /// That many bytes of [`Plan::bytes`] are on disk.
    fn wrote(&self, bytes: u64);
}

/// Builds the bundle at `target`, which must not exist. On any error nothing is left there.
pub fn build(model: &Model, options: &Options, target: &Path, progress: &dyn Progress) -> Result<Manifest, Error> {
    let plan = Plan::new(model, options)?;
    let staging = Staging::open(target)?;
    let folder = staging.folder();
    for piece in &plan.pieces {
        progress.part(&piece.path);
        let path = folder.join(&piece.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        package::write(&program(model, piece, &options.tokens)?, &path)?;
        progress.wrote(piece.weight_bytes);
    }
    progress.part(layout::EMBEDDING);
    write_embedding(model, &folder.join(layout::EMBEDDING))?;
    progress.wrote(plan.embedding_bytes);
    for (name, bytes) in &options.host_files {
        write_file(&folder.join(name), bytes)?;
    }
    let manifest = Manifest {
        format: manifest::FORMAT,
        tool: concat!("anemone ", env!("CARGO_PKG_VERSION")).to_owned(),
        name: model.name().to_owned(),
        source: source(model),
        contract: model.contract.clone(),
        contract_hash: model.contract.hash(),
        tokens: options.tokens.clone(),
        layers: shards(&plan, false),
        head: shards(&plan, true),
        files: entries(folder)?,
    };
    manifest.check().map_err(|reason| Error::Invalid { shard: layout::MANIFEST.into(), report: reason })?;
    write_file(&folder.join(layout::MANIFEST), manifest.to_json().as_bytes())?;
    staging.commit()?;
    Ok(manifest)
}

/// The program of one piece.
pub fn program(model: &Model, piece: &Piece, tokens: &[usize]) -> Result<Valid, Error> {
    if piece.head { shard::head(model, &piece.range, tokens) } else { shard::layers(model, &piece.range, tokens) }
}

fn shards(plan: &Plan, head: bool) -> Vec<Shard> {
    let shard = |p: &Piece| Shard { start: p.range.start, end: p.range.end, path: p.path.clone() };
    plan.pieces.iter().filter(|p| p.head == head).map(shard).collect()
}

fn source(model: &Model) -> Source {
    let mut hasher = blake3::Hasher::new();
    for part in model.source.parts() {
        hasher.update_rayon(part);
    }
    Source {
        file: model.file_name.clone(),
        bytes: model.source.parts().map(|p| p.len() as u64).sum(),
        blake3: hasher.finalize().to_hex().to_string(),
    }
}

/// Writes the embedding table as fp16 rows.
fn write_embedding(model: &Model, path: &Path) -> Result<(), Error> {
    struct Table(File);
    impl Sink for Table {
        fn write(&self, _slot: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
            self.0.write_all_at(bytes, offset as u64)
        }
    }
    let rows = Rows::new(&model.source, "token_embd.weight", plain(0..model.contract.vocab))?;
    let table = Table(File::create_new(path).map_err(failed(path))?);
    rows.write_fp16(&table).and_then(|()| table.0.sync_all()).map_err(failed(path))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let run = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    run().map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path: PathBuf = path.to_owned();
    move |source| Error::Write { path, source }
}

/// Size and hash of every file below `folder`, by its path with `/` between parts. Hidden files are ours and temporary.
fn entries(folder: &Path) -> Result<BTreeMap<String, FileEntry>, Error> {
    let mut all = BTreeMap::new();
    let mut pending = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else { continue };
            if prefix.is_empty() && name.starts_with('.') {
                continue;
            }
            let inside = format!("{prefix}{name}");
            if path.is_dir() {
                pending.push((path, format!("{inside}/")));
                continue;
            }
            let bytes = entry.metadata().map_err(failed(&path))?.len();
            let blake3 = manifest::hash_file(&path).map_err(failed(&path))?;
            all.insert(inside, FileEntry { bytes, blake3 });
        }
    }
    Ok(all)
}
