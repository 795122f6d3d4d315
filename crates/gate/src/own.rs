//! The reference forward on a bundle's own weights: the judge of programs, which no quantisation noise can hide from.

use std::path::Path;
use std::sync::Arc;

use anemone_bundle::Contract;
use anemone_mil::{Valid, package};
use anemone_reference::{self as reference, Form};

use crate::run::Error;
use crate::shard_weights::ShardWeights;
use crate::subject::Subject;

/// A package and the reference on its weights.
pub struct Own {
    /// The package's program.
    pub program: Arc<Valid>,
    /// What it stores.
    pub weights: Arc<ShardWeights>,
    /// The reference on that.
    pub model: reference::Model,
}

impl Own {
    /// Reads the package at `path` in the bundle; a head slice's rows start at `first_row` of the vocabulary. `source` is the
    /// reference on the source's weights.
    pub fn open(subject: &Subject, source: &reference::Model, path: &str, first_row: usize) -> Result<Self, Error> {
        let read = |folder: &Path, contract: &Contract| {
            let (program, _) = package::open(&folder.join(path)).map_err(|e| e.to_string())?;
            let main = program.functions.iter().position(|f| f.name == "main").ok_or("has no function `main`")?;
            let program = Arc::new(program);
            let weights = ShardWeights::read(Arc::clone(&program), main, contract, first_row)?;
            Ok::<_, String>((program, Arc::new(weights)))
        };
        let (program, weights) = read(&subject.folder, &subject.manifest.contract)
            .map_err(|reason| Error::Package { package: path.to_owned(), reason })?;
        let model = source.with_weights(weights.clone(), Form::Shard);
        Ok(Self { program, weights, model })
    }

    /// The type of the op that defines a value of that name: `matmul`.
    pub fn kind(&self, value: &str) -> &str {
        let ops = self.program.functions.iter().flat_map(|f| f.ops.iter().map(move |op| (f, op)));
        let mut named = ops.filter(|(f, op)| op.outputs.iter().any(|id| f.value(*id).name == value));
        named.next().map_or("input", |(_, op)| op.kind.as_str())
    }
}

/// Bytes of f32 weights that the reference may keep; beyond it dequantises what it uses, again and again.
const KEEP: u64 = 4 << 30;

/// The reference on the source, for the bundle's context. It stays with the subject for the gates that follow, and so do the weights
/// that it keeps.
pub fn source(subject: &Subject) -> Result<Arc<reference::Model>, reference::Error> {
    if let Some(model) = subject.reference.get() {
        return Ok(Arc::clone(model));
    }
    let context = subject.manifest.contract.context;
    let elements: u64 =
        subject.source.tensors().iter().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum();
    let keep_weights = elements.saturating_mul(4) <= KEEP;
    let options = reference::Options { keep_weights, ..reference::Options::new(context) };
    let model = Arc::new(reference::Model::open(subject.source.clone(), options)?);
    Ok(Arc::clone(subject.reference.get_or_init(|| model)))
}
