//! What is decided once for a function: the order of its kernels, and where in memory every value lives.
//!
//! Steps are ordered as the ops whose results they give. Projections of one input become one step, so that the input is
//! prepared once. Places are given for one token and scale with the tokens of a call: a plan without ops of its own kind
//! serves a call of any number of tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anemone_mil::ir::{Dtype, ValueId};

use super::MOST_TOKENS;
use super::attention::Attention;
use super::graph::Graph;
use super::island::{self, Island, Surroundings};
use super::linear::{Matrix, PADDING, Weights};
use super::rows::{RowSource, View};
use super::select::{Refusal, Selection};
use super::simd::LANES;
use crate::portable::Options;
use crate::tensor::{Data, Tensor};

/// One projection.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its weights.
    pub matrix: Matrix,
    /// `[rows]`.
    pub bias: Option<Vec<f32>>,
    /// Added to the result.
    pub residual: Option<View>,
    /// `[T, rows]`.
    pub out: View,
}

/// One step of a plan.
pub enum Step {
    /// Rows from rows.
    Rows {
        /// How.
        source: RowSource,
        /// Where to.
        out: View,
    },
    /// Projections of one input.
    Linear {
        /// The input.
        source: RowSource,
        /// The projections.
        parts: Vec<Part>,
    },
    /// Attention, the write of its cache included.
    Attention(Attention),
    /// Ops that run one by one.
    Island(Island),
}

/// Keys and values of a layer: two states of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// The state of the keys.
    pub keys: String,
    /// The state of the values.
    pub values: String,
    /// Kv heads.
    pub heads: usize,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
}

/// A value that crosses the border of the arena.
#[derive(Clone, Debug)]
pub struct Crossing {
    /// Where it is in the arena.
    pub view: View,
    /// The declared shape.
    pub shape: Vec<usize>,
    /// Which axis counts tokens; `None` where the order of elements is the same on both sides.
    pub axis: Option<usize>,
}

impl CacheSpec {
    /// Bytes of the cache; `None` for more than can be counted.
    pub fn bytes(&self) -> Option<usize> {
        let rows = self.rows.checked_next_multiple_of(LANES)?;
        [rows, self.head_dim, 2 * size_of::<f32>()].into_iter().try_fold(self.heads, usize::checked_mul)
    }
}

impl Crossing {
    /// Elements before the axis of tokens, and after it.
    fn around(&self) -> (usize, usize) {
        match self.axis {
            None => (1, self.shape.iter().product()),
            Some(axis) => (self.shape[..axis].iter().product(), self.shape[axis + 1..].iter().product()),
        }
    }

    /// From the program's order to token-first.
    pub fn enter(&self, from: &[f32], to: &mut [f32]) {
        let (outer, inner) = self.around();
        let tokens = from.len() / (outer * inner).max(1);
        if self.axis.is_none() || outer == 1 || tokens == 1 {
            return to[..from.len()].copy_from_slice(from);
        }
        exchange(from, to, outer, tokens, inner);
    }

    /// From token-first to the program's order.
    pub fn leave(&self, from: &[f32], to: &mut [f32]) {
        let (outer, inner) = self.around();
        let tokens = to.len() / (outer * inner).max(1);
        if self.axis.is_none() || outer == 1 || tokens == 1 {
            return to.copy_from_slice(&from[..to.len()]);
        }
        exchange(from, to, tokens, outer, inner);
    }
}

/// `[first, second, inner]` to `[second, first, inner]`.
fn exchange(from: &[f32], to: &mut [f32], first: usize, second: usize, inner: usize) {
    for s in 0..second {
        let to = &mut to[s * first * inner..][..first * inner];
        if inner == 1 {
            // A call for each element would cost more than the element.
            to.iter_mut().zip(from[s..].iter().step_by(second)).for_each(|(to, from)| *to = *from);
            continue;
        }
        for f in 0..first {
            to[f * inner..][..inner].copy_from_slice(&from[(f * second + s) * inner..][..inner]);
        }
    }
}

/// A function, ready to run.
pub struct Plan {
    /// Tokens of a call, as declared.
    pub tokens: usize,
    /// Whether a call may have another number of tokens.
    pub elastic: bool,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Floats of the arena for each token.
    pub width: usize,
    /// For each input of the signature, where it goes, if it is kept.
    pub inputs: Vec<Option<Crossing>>,
    /// For each input, the axis of its tokens, if it has one.
    pub input_axes: Vec<Option<usize>>,
    /// Where each output is.
    pub outputs: Vec<Crossing>,
    /// Pairs of masks: attention and write, as inputs of the signature.
    pub masks: Vec<(usize, usize)>,
    /// The longest padded row of a projection's input.
    pub longest: usize,
    /// Floats that the scores of one thread take.
    pub scores: usize,
}

impl Plan {
    /// Takes the results out of the arena.
    pub fn leave(&self, arena: &[f32], tokens: usize, outputs: &mut [Tensor]) {
        for (crossing, output) in self.outputs.iter().zip(outputs) {
            let Data::F32(to) = output.data_mut() else { continue };
            crossing.leave(&arena[crossing.view.place * tokens..], to);
        }
    }

    /// Orders and places what was selected. The `options` are those of ops that run one by one.
    pub fn new(graph: &Graph<'_>, selection: Selection, options: &Options) -> Result<Self, Refusal> {
        let function = graph.function();
        let inputs: Vec<ValueId> =
            function.inputs.iter().copied().filter(|id| function.value(*id).ty.tensor().is_some()).collect();
        let Selection { tokens, steps, plain, axes, masks } = selection;
        if steps.is_empty() {
            return Err("no rule matched".into());
        }
        let mut steps = {
            let around = Surroundings { plain: &plain, inputs: &inputs, axes: &axes, tokens, options };
            ordered(steps, graph, &around)?
        };
        let islands = steps.iter().any(|s| matches!(s, Step::Island(_)));

        let mut life = Lives::default();
        for (i, step) in steps.iter_mut().enumerate() {
            step.visit(&mut |view, _| life.touch(view.place, i));
        }
        for id in &function.outputs {
            if !graph.is_float(*id) {
                return Err(format!("output `{}` is not a float", function.value(*id).name));
            }
            life.touch(id.index(), steps.len());
        }
        for id in &inputs {
            life.begin(id.index());
        }
        let width_of = |value: usize| -> Result<usize, Refusal> {
            let shape = graph.shape(ValueId(value as u32)).ok_or("a value of unknown shape")?;
            Ok(shape.iter().product::<usize>().div_ceil(tokens))
        };
        let (places, width) = life.place(width_of)?;
        for step in &mut steps {
            step.visit(&mut |view, _| view.place = places[&view.place]);
        }
        let crossing = |id: ValueId| -> Result<Crossing, Refusal> {
            let shape = graph.shape(id).ok_or("a value of unknown shape")?;
            let width = width_of(id.index())?;
            let view = View { place: places[&id.index()], stride: width, offset: 0, width };
            Ok(Crossing { view, shape, axis: axes.get(&id).copied().flatten() })
        };
        let number = |id: ValueId| inputs.iter().position(|&i| i == id).ok_or("a mask that is no input");
        let masks: Vec<(usize, usize)> = masks
            .into_iter()
            .map(|(attention, write)| Ok::<_, Refusal>((number(attention)?, number(write)?)))
            .collect::<Result<_, _>>()?;
        let mut kept = Vec::new();
        let mut input_axes = Vec::new();
        for (i, &id) in inputs.iter().enumerate() {
            let placed = places.contains_key(&id.index());
            kept.push(if placed { Some(crossing(id)?) } else { None });
            let mask = masks.iter().find_map(|&(attention, write)| match i {
                _ if i == attention => Some(2),
                _ if i == write => Some(3),
                _ => None,
            });
            input_axes.push(mask.or(axes.get(&id).copied().flatten()));
        }
        let outputs: Vec<Crossing> = function.outputs.iter().map(|&id| crossing(id)).collect::<Result<_, _>>()?;
        let elastic = !islands
            && tokens > 1
            && input_axes.iter().all(Option::is_some)
            && outputs.iter().all(|crossing| crossing.axis.is_some());
        let longest = steps.iter().map(Step::padded).max().unwrap_or(0);
        let scores = steps.iter().map(Step::scores).max().unwrap_or(0);
        Ok(Self { tokens, elastic, steps, width, inputs: kept, input_axes, outputs, masks, longest, scores })
    }

    /// The shape of what crosses the border in a call of that many tokens.
    pub fn shape(&self, crossing: &Crossing, tokens: usize) -> impl Iterator<Item = usize> {
        let axis = crossing.axis.filter(|_| self.elastic);
        crossing.shape.iter().enumerate().map(move |(a, &d)| if Some(a) == axis { tokens } else { d })
    }

    /// Bytes that a call of as many tokens as there may be needs for its values and rows; `None` for more than can be counted.
    pub fn bytes(&self) -> Option<usize> {
        let tokens = if self.elastic { self.tokens.max(MOST_TOKENS) } else { self.tokens };
        let rows = self.longest.checked_mul(size_of::<f32>() + size_of::<i16>())?;
        self.width.checked_mul(size_of::<f32>())?.checked_add(rows)?.checked_mul(tokens)
    }

    /// Every constant matrix, in the order in which a call reads them.
    pub fn matrices(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let parts = self.steps.iter_mut().filter_map(|step| match step {
            Step::Linear { parts, .. } => Some(parts),
            _ => None,
        });
        parts.flatten().map(|part| &mut part.matrix)
    }

    /// One line for each step: what it is, and of what size.
    pub fn listing(&self) -> Vec<String> {
        self.steps.iter().map(Step::describe).collect()
    }
}

/// How a step uses a view.
#[derive(Clone, Copy, PartialEq)]
pub enum Access {
    /// It is read.
    Read,
    /// It is written.
    Write,
}

impl RowSource {
    fn visit(&mut self, f: &mut dyn FnMut(&mut View, Access)) {
        match self {
            RowSource::Plain(x) | RowSource::Norm { x, .. } => f(x, Access::Read),
            RowSource::Gate { gate: x, up: y } | RowSource::Sum(x, y) => {
                f(x, Access::Read);
                f(y, Access::Read);
            }
            RowSource::Turned(turned) => turned.visit(f),
        }
    }
}

impl super::rows::Turned {
    fn visit(&mut self, f: &mut dyn FnMut(&mut View, Access)) {
        f(&mut self.x, Access::Read);
        if let Some(rotation) = &mut self.rotation {
            f(&mut rotation.cos, Access::Read);
            f(&mut rotation.sin, Access::Read);
        }
    }
}

impl Step {
    /// Shows every view.
    fn visit(&mut self, f: &mut dyn FnMut(&mut View, Access)) {
        match self {
            Step::Rows { source, out } => {
                source.visit(f);
                f(out, Access::Write);
            }
            Step::Linear { source, parts } => {
                source.visit(f);
                for part in parts {
                    if let Some(residual) = &mut part.residual {
                        f(residual, Access::Read);
                    }
                    f(&mut part.out, Access::Write);
                }
            }
            Step::Attention(a) => {
                a.q.visit(f);
                a.k.visit(f);
                f(&mut a.v, Access::Read);
                f(&mut a.out, Access::Write);
            }
            Step::Island(island) => island.visit(f),
        }
    }

    /// The padded length of what its projections read.
    fn padded(&self) -> usize {
        match self {
            Step::Linear { source, .. } => source.width().next_multiple_of(PADDING),
            _ => 0,
        }
    }

    /// Floats that its scores take.
    fn scores(&self) -> usize {
        match self {
            Step::Attention(attention) => attention.scratch(),
            _ => 0,
        }
    }

    fn describe(&self) -> String {
        let mut line = String::new();
        match self {
            Step::Rows { source, .. } => line = format!("{} [{}]", source.label(), source.width()),
            Step::Linear { source, parts } => {
                if !matches!(source, RowSource::Plain(_)) {
                    let _ = write!(line, "{} + ", source.label());
                }
                let _ = write!(line, "linear [{}] ->", source.width());
                for part in parts {
                    let kind = match part.matrix.elements {
                        Weights::Int8(_) => "int8",
                        Weights::Half => "fp16",
                        Weights::Palette(_) => "4-bit palette",
                    };
                    let _ = write!(line, " {}x{kind}", part.matrix.rows);
                    line.push_str(if part.bias.is_some() { " + bias" } else { "" });
                    line.push_str(if part.residual.is_some() { " + residual" } else { "" });
                }
            }
            Step::Attention(a) => {
                let rotary = if a.q.rotation.is_some() { "rotary + " } else { "" };
                let (heads, kv, hd) = (a.q.heads, a.k.heads, a.q.head_dim());
                line = format!("{rotary}attention {heads}/{kv} heads of {hd}, cache {}", a.cache);
            }
            Step::Island(island) => {
                line = format!("one by one: {}", island.ops.join(", "));
            }
        }
        line
    }
}

/// Steps and islands in order.
fn ordered(mut steps: Vec<(usize, Step)>, graph: &Graph<'_>, around: &Surroundings<'_>) -> Result<Vec<Step>, Refusal> {
    steps.sort_by_key(|(at, _)| *at);
    let mut used: BTreeSet<usize> = graph.function().outputs.iter().map(|id| id.index()).collect();
    for (_, step) in &mut steps {
        step.visit(&mut |view, access| {
            if access == Access::Read {
                used.insert(view.place);
            }
        });
    }
    let mut ordered: Vec<Step> = Vec::new();
    let mut plain = around.plain.iter().copied().peekable();
    let mut island = |until: usize, ordered: &mut Vec<Step>| -> Result<(), Refusal> {
        let mut ops = Vec::new();
        while let Some(op) = plain.next_if(|&op| op < until) {
            ops.push(op);
        }
        if !ops.is_empty() {
            ordered.push(Step::Island(island::cut(graph, &ops, &used, around)?));
        }
        Ok(())
    };
    for (at, step) in steps {
        island(at, &mut ordered)?;
        // Projections of one input go together, where the first of them is.
        if let Step::Linear { source, parts } = &step
            && parts.iter().all(|p| p.residual.is_none())
            && let Some(Step::Linear { parts: known, .. }) = ordered.iter_mut().find(|s| match s {
                Step::Linear { source: other, parts } => other == source && parts.iter().all(|p| p.residual.is_none()),
                _ => false,
            })
        {
            known.extend(parts.iter().cloned());
            continue;
        }
        ordered.push(step);
    }
    island(usize::MAX, &mut ordered)?;
    Ok(ordered)
}

/// From which step to which each value is needed.
#[derive(Default)]
struct Lives(BTreeMap<usize, (usize, usize)>);

impl Lives {
    fn touch(&mut self, value: usize, step: usize) {
        let life = self.0.entry(value).or_insert((step, step));
        *life = (life.0.min(step), life.1.max(step));
    }

    /// A value that is there before the first step, if anybody needs it.
    fn begin(&mut self, value: usize) {
        if let Some(life) = self.0.get_mut(&value) {
            life.0 = 0;
        }
    }

    /// A place for each value, and the width of the whole: the first gap that is free as long as the value lives.
    fn place(
        self,
        width: impl Fn(usize) -> Result<usize, Refusal>,
    ) -> Result<(BTreeMap<usize, usize>, usize), Refusal> {
        let mut values: Vec<(usize, (usize, usize))> = self.0.into_iter().collect();
        values.sort_by_key(|&(value, (from, _))| (from, value));
        let mut placed: Vec<(usize, usize, (usize, usize))> = Vec::new();
        let (mut places, mut end) = (BTreeMap::new(), 0);
        for (value, life) in values {
            let width = width(value)?.next_multiple_of(LANES);
            let mut neighbours: Vec<(usize, usize)> = placed
                .iter()
                .filter(|(_, _, other)| other.0 <= life.1 && life.0 <= other.1)
                .map(|&(at, width, _)| (at, width))
                .collect();
            neighbours.sort_unstable();
            let mut at = 0;
            for (other, other_width) in neighbours {
                if other >= at + width {
                    break;
                }
                at = at.max(other + other_width);
            }
            placed.push((at, width, life));
            places.insert(value, at);
            end = end.max(at + width);
        }
        Ok((places, end))
    }
}

/// Whether a value may cross into or out of the arena.
pub fn crosses(graph: &Graph<'_>, id: ValueId) -> bool {
    let float = |dtype| matches!(dtype, Dtype::F16 | Dtype::F32);
    graph.function().value(id).ty.tensor().is_some_and(|ty| float(ty.dtype) && ty.fixed_shape().is_some())
}
