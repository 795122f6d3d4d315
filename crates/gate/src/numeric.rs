//! The numeric gate: how close every value comes to the magnitude at which the Neural Engine loses it.
//!
//! The engine computes in fp16 and says nothing when a value leaves it: an infinity travels on and comes out as NaN, or as a
//! wrong word. The shards run in f32, where nothing is lost, and each value's largest magnitude is set against the cliff of the
//! op that made it. What is beyond a cliff is named: the first in the order of computation, with its layer and position.
//!
//! Cliffs differ between chips; [`CLIFFS`] is the table. The mask and the scores that it hides do not count: what
//! is added there is the host's -1e4, and beyond a cliff it would still be nothing after the softmax.

use std::collections::BTreeMap;

use anemone_exec::Tensor;
use anemone_exec::portable::headroom::{F16_MAX, MATMUL, SLICE};
use anemone_mil::Valid;
use serde::Serialize;
use serde_json::json;

use crate::cliffs::begins_inside;
use crate::own::{self, Own};
use crate::prompts::Prompt;
use crate::residency::Chip;
use crate::run::{Error, Run};
use crate::shard_weights::layer_part;
use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "numeric";

/// Which ops a cliff is in the way of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any op.
    Any,
    /// Matrix products.
    Matmul,
    /// Slices of the last axis that do not begin at 0.
    InnerSlice,
}

/// A magnitude beyond which results are lost.
#[derive(Clone, Copy, Debug)]
pub struct Cliff {
    /// Which ops.
    pub kind: Kind,
    /// The largest magnitude that survives.
    pub limit: f32,
    /// The first and the last chip it was seen on or decompiled for.
    pub chips: (Chip, Chip),
    /// Who says so.
    pub source: &'static str,
}

/// What is known of numeric cliffs.
pub const CLIFFS: [Cliff; 3] = [
    Cliff { kind: Kind::Any, limit: F16_MAX, chips: (Chip::M1, Chip::M5), source: "fp16's largest number" },
    Cliff { kind: Kind::Matmul, limit: MATMUL, chips: (Chip::M1, Chip::M5), source: "ANEForge, numeric cliffs" },
    Cliff {
        kind: Kind::InnerSlice,
        limit: SLICE,
        chips: (Chip::M1, Chip::M3),
        source: "ane-guide 3: times 16 inside, before M4",
    },
];

/// The magnitude that an op's results may reach on a chip, and who says so.
pub fn cliff(kind: Kind, chip: Chip) -> (f32, &'static str) {
    let mine = CLIFFS
        .iter()
        .filter(|c| c.kind == Kind::Any || c.kind == kind)
        .filter(|c| (c.chips.0..=c.chips.1).contains(&chip));
    let lowest = mine.min_by(|a, b| a.limit.total_cmp(&b.limit));
    lowest.map_or((f32::INFINITY, "nobody"), |c| (c.limit, c.source))
}

/// The largest magnitude of one value.
#[derive(Clone, Debug, Serialize)]
struct Seen {
    order: usize,
    value: String,
    op: String,
    layer: Option<usize>,
    largest: f32,
    position: usize,
    #[serde(skip)]
    kind: Kind,
}

impl Seen {
    fn factor(&self, chip: Chip) -> f32 {
        cliff(self.kind, chip).0 / self.largest
    }

    /// The factor on the oldest chip, which has every cliff that a newer one has.
    fn least_factor(&self) -> f32 {
        self.factor(Chip::ALL[0])
    }

    /// The chips on which this value is lost.
    fn lost_on(&self) -> Vec<Chip> {
        Chip::ALL.into_iter().filter(|&chip| self.factor(chip) < 1.0).collect()
    }
}

/// An op as the names of its values find it.
#[derive(Clone)]
struct Op {
    name: String,
    kind: Kind,
    /// Whether it takes the host's mask.
    masks: bool,
}

/// The input that hides positions.
const MASK: &str = "attn_mask";

/// The ops by the name of their values.
fn ops(program: &Valid) -> BTreeMap<String, Op> {
    let mut all = BTreeMap::new();
    for (f, function) in program.functions.iter().enumerate() {
        for (index, op) in function.ops.iter().enumerate() {
            let kind = match op.kind.as_str() {
                "matmul" => Kind::Matmul,
                _ if begins_inside(program, f, index).is_some() => Kind::InnerSlice,
                _ => Kind::Any,
            };
            let masks = op
                .inputs
                .values()
                .flatten()
                .any(|arg| matches!(arg, anemone_mil::ir::Arg::Value(id) if function.value(*id).name == MASK));
            for id in &op.outputs {
                all.insert(function.value(*id).name.clone(), Op { name: op.kind.clone(), kind, masks });
            }
        }
    }
    all
}

/// Judges every layer shard over the tokens of `prompts`; `run` computes in f32. `step` is called after each shard.
pub fn judge(
    subject: &Subject,
    run: &Run<'_>,
    prompts: &[Prompt],
    mut step: impl FnMut(&str),
) -> Result<Vec<Finding>, Error> {
    let c = &subject.manifest.contract;
    let source = &own::source(subject)?;
    let mut ids: Vec<u32> =
        prompts.iter().flat_map(|p| p.ids.iter().chain(p.expected.iter().flatten())).copied().collect();
    ids.truncate(c.context);
    if ids.is_empty() {
        return Ok(vec![subject.finding(
            NAME,
            "bundle",
            Verdict::Skipped,
            &run.measured_on,
            "no prompt has a token".into(),
        )]);
    }
    let mut hidden = source.embed(&ids)?;
    let mut cache = source.cache();
    let mut findings = Vec::new();
    for (i, shard) in subject.manifest.layers.iter().enumerate() {
        let own = Own::open(subject, source, &shard.path, 0)?;
        let seen = watch(run, &own.program, i, &hidden)?;
        findings.push(finding(subject, run, &shard.path, seen));
        source.layer_range(shard.range(), &mut hidden, &mut cache, 0)?;
        step(&shard.path);
    }
    Ok(findings)
}

/// Runs a shard and keeps the largest magnitude of each value.
fn watch(run: &Run<'_>, program: &Valid, shard: usize, rows: &[f32]) -> Result<Vec<Seen>, Error> {
    let width = run.engine.contract().width;
    let ops = ops(program);
    let shard = run.engine.shard(shard);
    let mut state = shard.new_state()?;
    let mut all: BTreeMap<String, Seen> = BTreeMap::new();
    for (block, function) in run.blocks(rows.len() / width, false) {
        let tokens = run.engine.manifest().tokens[function];
        let mut mask = Vec::new();
        let mut watch = |name: &str, value: &Tensor| {
            let mut values = value.to_f32();
            if name == MASK {
                mask = values;
                return;
            }
            let op = ops.get(name).cloned().unwrap_or(Op { name: "input".into(), kind: Kind::Any, masks: false });
            if op.masks {
                hide(&mut values, &mask);
            }
            let (index, largest) = peak(&values);
            let position = block.start + token_of(index, value.shape(), tokens).min(block.len() - 1);
            let order = all.len();
            let seen = all.entry(name.to_owned()).or_insert_with(|| {
                let layer = layer_part(name).map(|(layer, _)| layer);
                Seen { order, value: name.to_owned(), op: op.name, layer, largest: 0.0, position, kind: op.kind }
            });
            if largest > seen.largest {
                (seen.largest, seen.position) = (largest, position);
            }
        };
        let rows = &rows[block.start * width..block.end * width];
        run.engine.run(shard, function, rows, block.start, &mut state, Some(&mut watch))?;
    }
    let mut seen: Vec<Seen> = all.into_values().collect();
    seen.sort_by_key(|s| s.order);
    Ok(seen)
}

/// Zeros where `mask`, whose shape is that of the last two dimensions, hides a position.
fn hide(values: &mut [f32], mask: &[f32]) {
    for block in values.chunks_mut(mask.len().max(1)) {
        block.iter_mut().zip(mask).filter(|(_, m)| **m != 0.0).for_each(|(v, _)| *v = 0.0);
    }
}

/// The largest magnitude and where it is; what is not a number is beyond every cliff.
fn peak(values: &[f32]) -> (usize, f32) {
    values.iter().enumerate().fold((0, 0.0), |best, (i, v)| {
        let magnitude = if v.is_nan() { f32::INFINITY } else { v.abs() };
        if magnitude > best.1 { (i, magnitude) } else { best }
    })
}

/// Which of `tokens` an element belongs to: the axis of as many elements says, the third before the fourth.
fn token_of(index: usize, shape: &[usize], tokens: usize) -> usize {
    match *shape {
        [_, _, t, d] if t == tokens => index / d % t,
        [.., t] if t == tokens => index % t,
        _ => 0,
    }
}

fn finding(subject: &Subject, run: &Run<'_>, path: &str, seen: Vec<Seen>) -> Finding {
    let closest = seen.iter().min_by(|a, b| a.least_factor().total_cmp(&b.least_factor()));
    let lost = seen.iter().find_map(|s| {
        let chips = s.lost_on();
        chips.first().map(|&first| (s, cliff(s.kind, first), chips.iter().map(Chip::to_string).collect::<Vec<_>>()))
    });
    let [oldest, .., newest] = Chip::ALL;
    let (verdict, message) = match (lost, closest) {
        (Some((s, (limit, source), chips)), _) => {
            let layer = s.layer.map_or(String::new(), |layer| format!("layer {layer}, "));
            let chips = chips.join(", ");
            (
                Verdict::Failed,
                format!(
                    "{layer}op `{}` ({}) overflows first: {:.3e} at position {}, beyond {limit} on {chips} ({source})",
                    s.value, s.op, s.largest, s.position
                ),
            )
        }
        (None, Some(s)) => (
            Verdict::Passed,
            format!(
                "every value keeps within fp16's cliffs on {oldest} to {newest}; the closest, `{}`, reaches {:.3e} and could be {:.1} times larger",
                s.value,
                s.largest,
                s.least_factor()
            ),
        ),
        (None, None) => (Verdict::Skipped, "this runtime tells nothing of the values inside".into()),
    };
    let mut layers: BTreeMap<usize, (&str, f32)> = BTreeMap::new();
    for s in &seen {
        let Some(layer) = s.layer else { continue };
        let entry = layers.entry(layer).or_insert((&s.value, f32::INFINITY));
        if s.least_factor() < entry.1 {
            *entry = (&s.value, s.least_factor());
        }
    }
    let layers: Vec<_> = layers
        .iter()
        .map(|(layer, (value, factor))| json!({"layer": layer, "value": value, "headroom": factor}))
        .collect();
    let limits = |s: &Seen| Chip::ALL.map(|chip| cliff(s.kind, chip).0);
    let values: Vec<_> = seen.iter().map(|s| json!({"seen": s, "limits": limits(s)})).collect();
    let mut finding = subject.finding(NAME, path, verdict, &run.measured_on, message);
    finding.figures = json!({"chips": Chip::ALL, "layers": layers, "values": values});
    finding
}

#[cfg(test)]
mod tests {
    use anemone_mil::text::parse;
    use anemone_mil::validate_foreign;

    use super::*;

    /// A masked begin is none, whatever number stands beside it.
    #[test]
    fn a_slice_has_a_cliff_where_it_begins_inside_the_last_axis() {
        let kind = |begin: &str, masked: bool| {
            let rows = if begin == "1, 0" { 1 } else { 2 };
            let size = if masked || begin == "1, 0" { 8 } else { 4 };
            let text = format!(
                "program 9 default main single {{ func main CoreML8 (%x: fp16[2, 8]) {{
                    %b: int32[2] = const() {{name=\"b\", val=int32[2]({begin})}}
                    %e: int32[2] = const() {{name=\"e\", val=int32[2](2, 8)}}
                    %m: bool[2] = const() {{name=\"m\", val=bool[2](false, {masked})}}
                    %y: fp16[{rows}, {size}] = slice_by_index(x=%x, begin=%b, end=%e, begin_mask=%m) {{name=\"y\"}}
                    return %y }} }}"
            );
            let (valid, _) = validate_foreign(parse(&text).unwrap()).unwrap();
            ops(&valid)["y"].kind
        };
        assert_eq!(kind("0, 4", false), Kind::InnerSlice);
        assert_eq!(kind("0, -4", false), Kind::InnerSlice);
        assert_eq!(kind("0, 4", true), Kind::Any);
        assert_eq!(kind("1, 0", false), Kind::Any);
    }
}
