//! The range golden: each shard alone, against the reference over the same layers.
//!
//! Every shard is given the hidden rows that the reference computed for it, so that one shard's error is not another's. It
//! is compared twice. Against the reference on *the shard's own dequantised weights* what remains is the program, and the
//! bounds are tight: whatever is wrong with it shows, and no quantisation noise hides it. Against the reference on *the
//! source's weights* the difference is what quantisation costs.
//!
//! The rows fill the cache to its last position. The first position, the middle of the context and the last are computed
//! by `main` (T = 1), everything between by the widest function (T = N), so both meet a filled cache.

use std::ops::Range;
use std::sync::Arc;

use anemone_bundle::contract::WeightMode;
use anemone_chat::Engine;
use anemone_chat::engine;
use anemone_mil::package;
use anemone_reference::{self as reference, Form};
use serde_json::json;

use crate::figures::{Bounds, Figures};
use crate::shard_weights::ShardWeights;
use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "range-golden";

/// What the gate keeps to: the program in the numerics it ran in, and what each weight mode may cost.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Against the reference on the shard's own weights.
    pub tight: Bounds,
    /// Against the reference on the source's weights.
    pub cost: Bounds,
}

impl Thresholds {
    /// Derived from measurement on the fixtures (`docs/gates.md` has the figures), never loosened to pass.
    pub fn of(mode: WeightMode, exact: bool) -> Self {
        let tight = match exact {
            true => Bounds { cosine: 0.999_999, relative_rmse: 1.5e-3 },
            false => Bounds { cosine: 0.999_9, relative_rmse: 1.5e-2 },
        };
        let cost = match mode {
            WeightMode::Fp16 => tight,
            WeightMode::Int8Channel => Bounds { cosine: 0.999, relative_rmse: 0.05 },
            WeightMode::Int8 => Bounds { cosine: 0.98, relative_rmse: 0.2 },
        };
        Self { tight, cost }
    }
}

/// Why the gate could not judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle cannot be run.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The source cannot be run.
    #[error(transparent)]
    Reference(#[from] reference::Error),
}

/// A deterministic walk over the vocabulary, spread so that rows differ: text is not needed to compare two programs.
fn token_ids(count: usize, vocab: usize) -> Vec<u32> {
    // The multiplier of Knuth's MMIX generator; the high bits are the good ones.
    let next = |s: &mut u64| {
        *s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((*s >> 33) % vocab as u64) as u32
    };
    let mut state = 1;
    (0..count).map(|_| next(&mut state)).collect()
}

/// Judges every layer shard and head slice. `measured_on` describes the runtime that `engine` was opened on, `exact`
/// whether it computes in f32 throughout; `step` is called after each.
pub fn judge(
    subject: &Subject,
    engine: &Engine,
    measured_on: &str,
    exact: bool,
    mut step: impl FnMut(&str),
) -> Result<Vec<Finding>, Error> {
    let c = &subject.manifest.contract;
    let source = reference::Model::open(subject.source.clone(), reference::Options::new(c.context))?;
    let thresholds = Thresholds::of(c.weights, exact);
    let mut hidden = source.embed(&token_ids(c.context, c.vocab))?;
    let mut cache = source.cache();
    let mut findings = Vec::new();
    for (i, shard) in subject.manifest.layers.iter().enumerate() {
        let input = hidden.clone();
        source.layer_range(shard.range(), &mut hidden, &mut cache, 0)?;
        let own = match own_weights(subject, &source, &shard.path, 0) {
            Ok(own) => own,
            Err(fault) => {
                findings.push(subject.finding(NAME, &shard.path, Verdict::Failed, measured_on, fault));
                continue;
            }
        };
        let mut tight = input.clone();
        own.layer_range(shard.range(), &mut tight, &mut own.cache(), 0)?;
        let found = run_layers(engine, i, &input, c.width)?;
        let comparison = Comparison { found, tight, cost: hidden.clone(), width: c.width };
        findings.push(comparison.finding(subject, &shard.path, thresholds, measured_on));
        step(&shard.path);
    }
    findings.extend(judge_head(subject, engine, &source, &hidden, thresholds, measured_on)?);
    Ok(findings)
}

/// The reference on the weights of one package; a head slice's rows start at `first_row` of the vocabulary.
fn own_weights(
    subject: &Subject,
    source: &reference::Model,
    path: &str,
    first_row: usize,
) -> Result<reference::Model, String> {
    let (program, _) = package::open(&subject.folder.join(path)).map_err(|e| e.to_string())?;
    let main = program.functions.iter().position(|f| f.name == "main").ok_or("has no function `main`")?;
    let weights = ShardWeights::read(&program, main, &subject.manifest.contract, first_row)?;
    Ok(source.with_weights(Arc::new(weights), Form::Shard))
}

/// Runs layer shard `shard` over `rows[n, width]` from position 0, with T = 1 at the first, middle and last position.
fn run_layers(engine: &Engine, shard: usize, rows: &[f32], width: usize) -> Result<Vec<f32>, Error> {
    let n = rows.len() / width;
    let mut state = engine.shard_state(shard)?;
    let mut out = Vec::with_capacity(rows.len());
    for (block, function) in schedule(n, engine.manifest().tokens.as_slice()) {
        let rows = &rows[block.start * width..block.end * width];
        out.extend(engine.run_shard(shard, function, rows, block.start, &mut state)?);
    }
    Ok(out)
}

/// Blocks over `0..n` with the function each goes through.
fn schedule(n: usize, tokens: &[usize]) -> Vec<(Range<usize>, usize)> {
    let single = [0, n / 2, n - 1];
    let wide = tokens.len() - 1;
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < n {
        let next_single = single.iter().copied().find(|&s| s >= at).unwrap_or(n);
        let (end, function) = if next_single == at { (at + 1, 0) } else { (next_single.min(at + tokens[wide]), wide) };
        blocks.push((at..end, function));
        at = end;
    }
    blocks
}

/// Rows found, and what two references say.
struct Comparison {
    found: Vec<f32>,
    tight: Vec<f32>,
    cost: Vec<f32>,
    width: usize,
}

impl Comparison {
    /// Figures of each token's row.
    fn tokens(&self, expected: &[f32]) -> Vec<Figures> {
        let pairs = self.found.chunks_exact(self.width).zip(expected.chunks_exact(self.width));
        pairs.map(|(f, e)| Figures::of(f, e)).collect()
    }

    fn finding(&self, subject: &Subject, path: &str, thresholds: Thresholds, measured_on: &str) -> Finding {
        let (tight, cost) = (self.tokens(&self.tight), self.tokens(&self.cost));
        let worst = |all: &[Figures]| all.iter().copied().fold(Figures::EQUAL, Figures::worst);
        let first_out = |all: &[Figures], bounds: &Bounds| all.iter().position(|f| !f.within(bounds));
        let (tight_worst, cost_worst) = (worst(&tight), worst(&cost));
        let program = first_out(&tight, &thresholds.tight);
        let weights = first_out(&cost, &thresholds.cost);
        let summary = format!(
            "program: cosine {:.7}, relative rmse {:.1e}; with quantisation: cosine {:.6}, relative rmse {:.1e}",
            tight_worst.cosine, tight_worst.relative_rmse, cost_worst.cosine, cost_worst.relative_rmse
        );
        let (verdict, message) = match (program, weights) {
            (None, None) => (Verdict::Passed, summary),
            (Some(at), _) => (Verdict::Failed, format!("the program is wrong from position {at} on: {summary}")),
            (None, Some(at)) => {
                (Verdict::Failed, format!("the program is right, and its weights cost too much at position {at}: {summary}"))
            }
        };
        let mut finding = subject.finding(NAME, path, verdict, measured_on, message);
        let n = tight.len();
        let places = [("first", 0), ("middle", n / 2), ("last", n - 1)];
        let at = |all: &[Figures]| places.map(|(name, i)| json!({"place": name, "position": i, "figures": all[i]}));
        finding.figures = json!({
            "tokens": n,
            "tight": {"bounds": thresholds.tight, "worst": tight_worst, "places": at(&tight)},
            "cost": {"bounds": thresholds.cost, "worst": cost_worst, "places": at(&cost)},
        });
        finding
    }
}

/// The head slices, each on its own rows of the vocabulary, over the reference's last hidden rows.
fn judge_head(
    subject: &Subject,
    engine: &Engine,
    source: &reference::Model,
    hidden: &[f32],
    thresholds: Thresholds,
    measured_on: &str,
) -> Result<Vec<Finding>, Error> {
    let c = &subject.manifest.contract;
    // The head sees no position: a few rows are as good as all.
    let rows = &hidden[..hidden.len().min(8 * c.width)];
    let (found, cost) = (engine.logits(rows)?, source.head(rows)?);
    let part = |all: &[f32], range: Range<usize>| -> Vec<f32> {
        all.chunks_exact(c.vocab).flat_map(|row| row[range.clone()].iter().copied()).collect()
    };
    let mut findings = Vec::new();
    for slice in &subject.manifest.head {
        let tight = match own_head(subject, source, &slice.path, slice.range(), rows) {
            Ok(tight) => tight,
            Err(fault) => {
                findings.push(subject.finding(NAME, &slice.path, Verdict::Failed, measured_on, fault));
                continue;
            }
        };
        let width = slice.range().len();
        let comparison =
            Comparison { found: part(&found, slice.range()), tight, cost: part(&cost, slice.range()), width };
        findings.push(comparison.finding(subject, &slice.path, thresholds, measured_on));
    }
    Ok(findings)
}

/// The slice's own logits, `[rows, slice]`: the reference's head on the slice's weights.
fn own_head(
    subject: &Subject,
    source: &reference::Model,
    path: &str,
    range: Range<usize>,
    rows: &[f32],
) -> Result<Vec<f32>, String> {
    let own = own_weights(subject, source, path, range.start)?;
    own.head_rows(rows, range).map_err(|e| e.to_string())
}
