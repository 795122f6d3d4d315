//! Where a shard leaves the reference: the first op whose value is out of tolerance, with its numbers.
//!
//! The shard runs over the reference's own input rows while its values are watched; each value that the reference computes too
//! is compared in the program's order. What a host gives the shard is compared first, since a wrong rotary table looks like a
//! wrong rotation from inside.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::slice;

use anemone_chat::engine::Shard;
use anemone_exec::Tensor;
use anemone_reference::{Rope, Stage};
use serde::Serialize;

use crate::figures::{Bounds, Figures};
use crate::own::Own;
use crate::run::{Error, Run};
use crate::stages::Counterpart;

/// The first value out of tolerance.
#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// The layer in the model; `None` for an input.
    pub layer: Option<usize>,
    /// The op's type, or `input`.
    pub op: String,
    /// The value's name.
    pub value: String,
    /// The first position that is out.
    pub position: usize,
    /// Tokens of the function that computed it.
    pub tokens: usize,
    /// How far out.
    pub figures: Figures,
    /// The last value before it that was compared and within tolerance.
    pub after: Option<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layer {layer}, op `{}` ({})", self.value, self.op)?,
            None => write!(f, "input `{}`", self.value)?,
        }
        let Figures { cosine, relative_rmse, not_finite, .. } = self.figures;
        write!(f, " is the first to differ, at position {} with T = {}: ", self.position, self.tokens)?;
        write!(f, "cosine {cosine:.6}, relative rmse {relative_rmse:.1e}")?;
        if not_finite > 0 {
            write!(f, ", {not_finite} values not finite")?;
        }
        match &self.after {
            Some(after) => write!(f, "; `{after}` before it is right"),
            None => Ok(()),
        }
    }
}

/// Runs a layer shard, layers `range`, over `rows[n, width]`, those of the blocks of positions one after another (between which the
/// cache holds zeros where they leave positions out), and finds the first value that leaves `bounds`: in the program's order, of
/// the first block that holds one. `None` where all keep to them, or the runtime tells nothing.
pub fn locate(
    run: &Run<'_>,
    own: &Own,
    shard: &Shard,
    range: Range<usize>,
    rows: &[f32],
    blocks: &[(Range<usize>, usize)],
    bounds: &Bounds,
) -> Result<Option<Divergence>, Error> {
    let c = run.engine.contract();
    let from = blocks.first().map_or(0, |(block, _)| block.start);
    let joined = |end, block: &Range<usize>| if block.start == end { block.end } else { end };
    let first = from..blocks.iter().fold(from, |end, (block, _)| joined(end, block));
    let mut state = run.used_state(shard, rows, &first)?;
    let mut cache = own.model.cache();
    let mut rest = rows;
    for (block, function) in blocks {
        let (input, later) = rest.split_at(block.len() * c.width);
        rest = later;
        let mut stages = BTreeMap::new();
        let mut tap = |layer: usize, stage: Stage, rows: &[f32]| {
            stages.insert((layer, stage), rows.to_vec());
        };
        let mut hidden = input.to_vec();
        own.model.layer_windows(range.clone(), &mut hidden, &mut cache, slice::from_ref(block), Some(&mut tap))?;
        let (position, n, tokens) = (block.start, block.len(), run.engine.manifest().tokens[*function]);
        let mut first = None;
        let mut after = None;
        let mut watch = |name: &str, value: &Tensor| {
            if first.is_some() {
                return;
            }
            let found = value.to_f32();
            let (layer, compared) = match host_rows(name, value, own.model.rope(), position, n) {
                Some(rows) => (None, Some(rows)),
                None => {
                    let channels = value.shape().get(1).copied().unwrap_or_default();
                    let Some(part) = Counterpart::of(name, channels, range.end, c) else { return };
                    let Some(stage) = stages.get(&(part.layer, part.stage)) else { return };
                    let rows = part.rows(&found, value.shape(), stage, position, n, c);
                    (Some(part.layer), rows.map(|r| placed(r, |i| part.position(i, position))))
                }
            };
            let Some(compared) = compared else { return };
            let figures = compared.iter().map(|(at, f, e)| (*at, Figures::of(f, e)));
            match figures.into_iter().find(|(_, figures)| !figures.within(bounds)) {
                None => after = layer.map(|_| name.to_owned()).or(after.take()),
                Some((position, figures)) => {
                    let (op, value) = (own.kind(name).to_owned(), name.to_owned());
                    first = Some(Divergence { layer, op, value, position, tokens, figures, after: after.clone() });
                }
            }
        };
        run.engine.run(shard, *function, input, position, &mut state, Some(&mut watch))?;
        if first.is_some() {
            return Ok(first);
        }
    }
    Ok(None)
}

/// A position, what was found there, what was expected.
type Placed = (usize, Vec<f32>, Vec<f32>);

fn placed(rows: Vec<(Vec<f32>, Vec<f32>)>, position: impl Fn(usize) -> usize) -> Vec<Placed> {
    rows.into_iter().enumerate().map(|(i, (found, expected))| (position(i), found, expected)).collect()
}

/// The rows of a host input as they have to be: rotary tables by the reference's own frequencies, masks by their meaning.
/// `None` for what is no host input.
fn host_rows(name: &str, value: &Tensor, rope: &Rope, position: usize, n: usize) -> Option<Vec<Placed>> {
    let found = value.to_f32();
    let table = |sine: bool| {
        let width = rope.frequencies.len();
        let rows = found.chunks_exact(width.max(1)).take(n).enumerate();
        Some(
            rows.map(|(t, row)| {
                (position + t, row.to_vec(), if sine { rope.row(position + t).1 } else { rope.row(position + t).0 })
            })
            .collect(),
        )
    };
    match (name, value.shape()) {
        ("rope_cos", _) => table(false),
        ("rope_sin", _) => table(true),
        // A mask is compared as what it means: 1 where a token looks, or writes.
        ("attn_mask", &[.., s]) => {
            let rows = found.chunks_exact(s).take(n).enumerate();
            let looks = |row: &[f32]| row.iter().map(|&m| f32::from(u8::from(m == 0.0))).collect();
            let may = |t: usize| (0..s).map(|p| f32::from(u8::from(p <= position + t))).collect();
            Some(rows.map(|(t, row)| (position + t, looks(row), may(t))).collect())
        }
        ("kv_write_mask", &[.., s, tokens]) => {
            let column = |t: usize| (0..s).map(|p| found[p * tokens + t]).collect();
            let own = |t: usize| (0..s).map(|p| f32::from(u8::from(p == position + t))).collect();
            Some((0..n).map(|t| (position + t, column(t), own(t))).collect())
        }
        _ => None,
    }
}
