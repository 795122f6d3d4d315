//! A right bundle, its copy, and ways to spoil the copy through public data.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anemone_bundle::contract::WeightMode;
use anemone_bundle::layout::metadata;
use anemone_bundle::manifest::{self, FileEntry};
use anemone_bundle::{Contract, Manifest, layout};
use anemone_exec::{Numerics, Options, Portable, Runtime};
use anemone_gate::prompts::Prompt;
use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use anemone_lower::{Access, LayerCut, Model, Progress, build};
use anemone_mil::ir::{Arg, Function, Literal, Op, Program, Value, ValueId};
use anemone_mil::{package, validate};

/// The models that defects are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The miniature in fp16, two shards of two layers, two head slices.
    Miniature,
    /// The same in int8 per channel.
    MiniatureInt8,
    /// The longrope fixture: an attention factor and two sets of factors.
    Longrope,
    /// A random llama with two kv heads, biases, split projections, interleaved pairs and a head of its own.
    Grouped,
}

impl Base {
    pub const ALL: [Base; 4] = [Base::Miniature, Base::MiniatureInt8, Base::Longrope, Base::Grouped];

    pub fn name(self) -> &'static str {
        match self {
            Base::Miniature => "miniature",
            Base::MiniatureInt8 => "miniature, int8-channel",
            Base::Longrope => "longrope",
            Base::Grouped => "grouped llama",
        }
    }

    fn source(self) -> Arc<Gguf> {
        let fixture = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path);
        Arc::new(match self {
            Base::Miniature | Base::MiniatureInt8 => Gguf::open(fixture("miniature/miniature-f16.gguf")).unwrap(),
            Base::Longrope => Gguf::open(fixture("longrope/longrope-f16.gguf")).unwrap(),
            Base::Grouped => Gguf::from_bytes(grouped().to_bytes().unwrap()).unwrap(),
        })
    }

    fn weights(self) -> WeightMode {
        if self == Base::MiniatureInt8 { WeightMode::Int8Channel } else { WeightMode::Fp16 }
    }

    fn topology(self) -> &'static str {
        match self {
            Base::Miniature | Base::MiniatureInt8 => "0-2,2-4",
            Base::Longrope | Base::Grouped => "0-2",
        }
    }

    /// The right bundle, built once.
    fn bundle(self) -> &'static Path {
        static BUNDLES: [OnceLock<tempfile::TempDir>; 4] = [const { OnceLock::new() }; 4];
        let folder = BUNDLES[self as usize].get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            self.build(&self.source(), &folder.path().join("bundle"), self.topology(), |_| {}).unwrap();
            folder
        });
        static PATHS: [OnceLock<PathBuf>; 4] = [const { OnceLock::new() }; 4];
        PATHS[self as usize].get_or_init(|| folder.path().join("bundle"))
    }

    /// Builds `source` as this model is built, its contract changed before it is lowered.
    fn build(
        self,
        source: &Arc<Gguf>,
        target: &Path,
        topology: &str,
        change: impl Fn(&mut Contract),
    ) -> Result<(), anemone_lower::Error> {
        struct Silent;
        impl Progress for Silent {
            fn part(&self, _: &str) {}
            fn wrote(&self, _: u64) {}
        }
        let stop = match self {
            Base::Miniature | Base::MiniatureInt8 => BTreeSet::from([1008]),
            Base::Longrope | Base::Grouped => BTreeSet::new(),
        };
        let options = anemone_lower::contract::Options { context: Some(64), weights: self.weights(), stop };
        let mut model = Model::new(Arc::clone(source), "model.gguf", &options)?;
        change(&mut model.contract);
        let options = anemone_lower::Options {
            layers: LayerCut::Ranges(topology.to_owned()),
            head_slices: Some(2),
            tokens: vec![1, 16],
            reuse: None,
            host_files: Default::default(),
        };
        build(&model, &options, target, Access::Alone, &Silent).map(drop)
    }

    fn prompts(self) -> Vec<Prompt> {
        let prompt = |ids: &[u32], expected: Option<&[u32]>| Prompt {
            name: "0".into(),
            ids: ids.to_vec(),
            expected: expected.map(<[u32]>::to_vec),
        };
        match self {
            // "write hello world in Python", and what transformers answers.
            Base::Miniature | Base::MiniatureInt8 => vec![prompt(
                &[1009, 876, 885, 976, 376, 810, 1008, 1007],
                Some(&[427, 79, 620, 198, 998, 556, 575, 11, 574, 644, 198, 427, 1008]),
            )],
            _ => vec![prompt(&[5, 17, 3, 40, 8, 21, 33, 9, 14, 2, 60, 11, 7, 50, 28, 19, 44, 31], None)],
        }
    }
}

/// A copy of a right bundle, to be spoiled, and what it is judged with.
pub struct Case {
    pub base: Base,
    _place: tempfile::TempDir,
    pub folder: PathBuf,
    pub source: Arc<Gguf>,
    pub runtime: Box<dyn Runtime>,
    pub prompts: Vec<Prompt>,
    /// Why no bundle came to be, where the defect is refused at build.
    pub refused: Option<String>,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn portable() -> Portable {
    Portable::new(Numerics::Exact, Options::default())
}

impl Case {
    pub fn new(base: Base) -> Self {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("bundle");
        copy(base.bundle(), &folder);
        let (source, prompts) = (base.source(), base.prompts());
        Self { base, _place: place, folder, source, runtime: Box::new(portable()), prompts, refused: None }
    }

    /// The right bundle, cut otherwise.
    pub fn cut(base: Base, topology: &str) -> Self {
        let case = Self::new(base);
        fs::remove_dir_all(&case.folder).unwrap();
        base.build(&case.source, &case.folder, topology, |_| {}).unwrap();
        case
    }

    /// Changes the manifest as text, so that it may become one that no writer would write.
    pub fn manifest(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.folder.join(layout::MANIFEST);
        let mut value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
    }

    /// Makes the manifest agree with the files, as a build that made them would have.
    pub fn rehash(&self) {
        let mut manifest = self.read_manifest();
        for (name, entry) in &mut manifest.files {
            let path = self.folder.join(name);
            *entry =
                FileEntry { bytes: fs::metadata(&path).unwrap().len(), blake3: manifest::hash_file(&path).unwrap() };
        }
        fs::write(self.folder.join(layout::MANIFEST), manifest.to_json()).unwrap();
    }

    fn read_manifest(&self) -> Manifest {
        serde_json::from_str(&fs::read_to_string(self.folder.join(layout::MANIFEST)).unwrap()).unwrap()
    }

    /// Changes a package's program; the manifest agrees with it afterwards.
    pub fn program(&self, path: &str, change: impl FnOnce(&mut Program)) {
        let path = self.folder.join(path);
        let mut program = package::read(&path).unwrap();
        change(&mut program);
        let valid = validate(program).unwrap();
        let fresh = path.with_extension("new.mlpackage");
        package::write(&valid, &fresh).unwrap();
        fs::remove_dir_all(&path).unwrap();
        fs::rename(fresh, &path).unwrap();
        self.rehash();
    }

    /// Changes each function of the first layer shard.
    pub fn functions(&self, change: impl Fn(&mut Editor<'_>)) {
        self.function(None, change);
    }

    /// Changes one function of the first layer shard, or all.
    pub fn function(&self, name: Option<&str>, change: impl Fn(&mut Editor<'_>)) {
        self.program("layers/00-02.mlpackage", |program| {
            for f in program.functions.iter_mut().filter(|f| name.is_none_or(|n| n == f.name)) {
                change(&mut Editor { f });
            }
        });
    }

    /// Changes the contract everywhere at once: manifest and packages agree on something wrong.
    pub fn contract(&self, change: impl Fn(&mut Contract)) {
        let mut manifest = self.read_manifest();
        change(&mut manifest.contract);
        manifest.contract_hash = manifest.contract.hash();
        fs::write(self.folder.join(layout::MANIFEST), manifest.to_json()).unwrap();
        for shard in manifest.layers.iter().chain(&manifest.head) {
            self.program(&shard.path, |program| {
                program.metadata.insert(metadata::CONTRACT.into(), manifest.contract.to_json());
                program.metadata.insert(metadata::CONTRACT_HASH.into(), manifest.contract_hash.clone());
            });
        }
    }

    /// The bundle that a lowering with another idea of the model writes, with the contract it wrote.
    pub fn lowered(&mut self, change: impl Fn(&mut Contract)) {
        fs::remove_dir_all(&self.folder).unwrap();
        self.refused =
            self.base.build(&self.source, &self.folder, self.base.topology(), change).err().map(|e| e.to_string());
    }

    /// The bundle that a lowering with other weights writes, under the right source's name and contract.
    pub fn weights(&self, change: impl Fn(&mut Writer<'_>, &Gguf)) {
        let right = self.read_manifest();
        let mut writer = Writer::copy_of(&self.source);
        change(&mut writer, &self.source);
        let spoiled = Arc::new(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap());
        fs::remove_dir_all(&self.folder).unwrap();
        self.base.build(&spoiled, &self.folder, self.base.topology(), |_| {}).unwrap();
        self.as_if(&right);
    }

    /// Gives what is there the contract and source of `right`.
    pub fn as_if(&self, right: &Manifest) {
        let mut manifest = self.read_manifest();
        manifest.source = right.source.clone();
        fs::write(self.folder.join(layout::MANIFEST), manifest.to_json()).unwrap();
        self.contract(|c| *c = right.contract.clone());
    }

    /// Another source: what the bundle is built from and judged by.
    pub fn other_source(&mut self, change: impl Fn(&mut Writer<'_>, &Gguf)) {
        let right = Arc::clone(&self.source);
        let mut writer = Writer::copy_of(&right);
        change(&mut writer, &right);
        self.source = Arc::new(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap());
        self.lowered(|_| {});
    }

    pub fn right_manifest(&self) -> Manifest {
        Manifest::open(self.base.bundle()).unwrap()
    }

    /// Changes the bytes of a file; the manifest agrees with it afterwards if `rehash`.
    pub fn bytes(&self, path: &str, rehash: bool, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.folder.join(path);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        if rehash {
            self.rehash();
        }
    }
}

/// Replaces a tensor by another of the same shape, in f32.
pub fn tensor(writer: &mut Writer<'_>, gguf: &Gguf, name: &str, change: impl FnOnce(&mut Vec<f32>, &[usize])) {
    let tensor = gguf.tensor(name).unwrap();
    let (mut values, shape) = (tensor.dequantize(), tensor.shape().to_vec());
    change(&mut values, &shape);
    writer.retain_tensors(|n| n != name);
    writer.tensor_f32(name, &shape, &values);
}

/// One function under change.
pub struct Editor<'a> {
    pub f: &'a mut Function,
}

impl Editor<'_> {
    fn index(&self, op: &str) -> usize {
        self.f.ops.iter().position(|o| o.name == op).unwrap_or_else(|| panic!("no op `{op}` in `{}`", self.f.name))
    }

    fn op(&mut self, op: &str) -> &mut Op {
        let index = self.index(op);
        &mut self.f.ops[index]
    }

    pub fn value(&self, name: &str) -> ValueId {
        let found = self.f.values.iter().position(|v| v.name == name);
        ValueId(found.unwrap_or_else(|| panic!("no value `{name}`")) as u32)
    }

    /// Makes an op another.
    pub fn kind(&mut self, op: &str, kind: &str) {
        self.op(op).kind = kind.to_owned();
    }

    /// Binds a parameter to another value.
    pub fn bind(&mut self, op: &str, param: &str, value: &str) {
        let id = self.value(value);
        self.op(op).inputs.insert(param.to_owned(), vec![Arg::Value(id)]);
    }

    /// Binds a parameter to what another op's is bound to.
    pub fn swap(&mut self, (a, b): (&str, &str), params: &[&str]) {
        for param in params {
            let (ia, ib) = (self.index(a), self.index(b));
            let (x, y) = (self.f.ops[ia].inputs[*param].clone(), self.f.ops[ib].inputs[*param].clone());
            self.f.ops[ia].inputs.insert((*param).to_owned(), y);
            self.f.ops[ib].inputs.insert((*param).to_owned(), x);
        }
        self.order();
    }

    /// Moves constants before everything: an op may then use any of them.
    fn order(&mut self) {
        self.f.ops.sort_by_key(|op| op.kind != "const");
    }

    /// Binds a parameter to a constant.
    pub fn constant(&mut self, op: &str, param: &str, literal: Literal) {
        let name = format!("other_{op}_{param}");
        let id = ValueId(self.f.values.len() as u32);
        self.f.values.push(Value { name: name.clone(), ty: literal.ty.clone() });
        let constant = Op {
            kind: "const".into(),
            name,
            inputs: Default::default(),
            outputs: vec![id],
            attributes: [("val".to_owned(), literal)].into(),
        };
        self.f.ops.insert(0, constant);
        self.op(op).inputs.insert(param.to_owned(), vec![Arg::Value(id)]);
    }

    /// The literal that a parameter is bound to.
    pub fn literal(&self, op: &str, param: &str) -> Literal {
        let Arg::Value(id) = self.f.ops[self.index(op)].inputs[param][0] else {
            panic!("`{op}`: `{param}` is no value")
        };
        let source = self.f.ops.iter().find(|o| o.outputs.contains(&id)).unwrap();
        source.attributes["val"].clone()
    }

    /// Makes a slice start and end elsewhere along `axis`.
    pub fn slice(&mut self, op: &str, axis: usize, begin: i32, end: i32) {
        for (param, at) in [("begin", begin), ("end", end)] {
            let old = self.literal(op, param).to_ints().unwrap();
            let mut new: Vec<i32> = old.iter().map(|&v| v as i32).collect();
            new[axis] = at;
            self.constant(op, param, Literal::i32s(&new));
        }
    }
}

/// See [`Base::Grouped`].
fn grouped() -> Writer<'static> {
    let mut writer = Writer::new("llama");
    for (key, value) in [
        ("llama.block_count", 2u32),
        ("llama.context_length", 64),
        ("llama.embedding_length", 64),
        ("llama.feed_forward_length", 96),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", 32),
        ("llama.attention.key_length", 32),
        ("llama.attention.value_length", 32),
        ("tokenizer.ggml.eos_token_id", 1),
        ("tokenizer.ggml.bos_token_id", 0),
    ] {
        writer.key(key, value);
    }
    writer.key("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    writer.key("llama.rope.freq_base", 10000.0f32);
    let tokens: Vec<String> = (0..64).map(|i| format!("t{i}")).collect();
    writer.key("tokenizer.ggml.tokens", tokens);
    let mut seed = 7u64;
    let mut tensor = |name: &str, shape: &[usize], scale: f32, offset: f32| {
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale + offset
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        writer.tensor_f32(name, shape, &values);
    };
    tensor("token_embd.weight", &[64, 64], 1.0, 0.0);
    tensor("output.weight", &[64, 64], 0.5, 0.0);
    tensor("output_norm.weight", &[64], 0.3, 1.0);
    for n in 0..2 {
        let mut matrix = |name: &str, rows: usize, columns: usize| {
            tensor(&format!("blk.{n}.{name}.weight"), &[rows, columns], 2.0 / (columns as f32).sqrt(), 0.0);
        };
        matrix("attn_q", 128, 64);
        matrix("attn_k", 64, 64);
        matrix("attn_v", 64, 64);
        matrix("attn_output", 64, 128);
        matrix("ffn_gate", 96, 64);
        matrix("ffn_up", 96, 64);
        matrix("ffn_down", 64, 96);
        for (name, len) in [("attn_q", 128), ("attn_k", 64), ("attn_v", 64)] {
            tensor(&format!("blk.{n}.{name}.bias"), &[len], 0.3, 0.0);
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensor(&format!("blk.{n}.{name}.weight"), &[64], 0.3, 1.0);
        }
    }
    writer
}
