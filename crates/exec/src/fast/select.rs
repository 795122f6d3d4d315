//! From ops to kernels: which groups of ops one kernel computes.
//!
//! Selection starts at what a function gives back and asks for each value how it can be made: by a rule that recognises a group of
//! ops, or by its op alone. What a rule needs is asked for next. What nobody asks for is never computed, so a rule names only
//! where its group begins and ends, and groups may overlap.
//!
//! | label | what it recognises |
//! |---|---|
//! | `linear` | a 1x1 convolution or `linear` with constant weights, decompressed as it streams; those of one input go together |
//! | `norm` | `x * rsqrt(mean(x^2) + eps) * gamma`, also where x is divided by its own magnitude first |
//! | `gate` | `silu(gate) * up` |
//! | `residual` | an addition, into the projection before it where it can |
//! | `rotary` | pairs of each head turned by a table's angles, and a constant factor |
//! | `attention` | the masked write of a cache as row writes, and attention over the rows present |
//!
//! Reshapes, transposes and slices that only rename what is there become [`View`]s. Each label can be switched off: its ops
//! then run one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anemone_mil::ir::{Arg, Dtype, Literal, ValueId};
use anemone_mil::ops::Call;

use super::attention::{Attention, MOST_HEAD_DIM};
use super::graph::Graph;
use super::linear::{Bytes, Matrix, Weights};
use super::plan::{CacheSpec, Part, Step};
use super::rows::{Rotation, RowSource, Turned, View};
use crate::portable::constants::Shared;
use crate::portable::value::{Elements, Stored};

/// Every label.
pub const LABELS: [&str; 6] = ["linear", "norm", "gate", "residual", "rotary", "attention"];

/// How many reshapes, transposes and slices on end are seen through.
const MOST_NAMES: usize = 32;
/// Steps and ops beyond which a function is left to the portable runtime: places are searched for pair by pair.
const MOST_STEPS: usize = 1 << 14;

/// What was chosen for one function. Places of views are numbers of values.
pub struct Selection {
    /// Tokens of a call, as declared.
    pub tokens: usize,
    /// Kernels, each with the number of the op whose result it gives.
    pub steps: Vec<(usize, Step)>,
    /// Ops that run one by one.
    pub plain: BTreeSet<usize>,
    /// Every value that is kept, and which of its axes counts tokens; `None` where one token is all there is, or where only
    /// plain ops and callers see it.
    pub axes: BTreeMap<ValueId, Option<usize>>,
    /// Pairs of masks, attention and write: function inputs.
    pub masks: Vec<(ValueId, ValueId)>,
}

/// Chooses for one function at a time; constants and caches are the package's.
pub struct Selector<'a, 'g> {
    graph: &'g Graph<'a>,
    off: &'g BTreeSet<String>,
    constants: &'g mut Shared,
    limit: usize,
    caches: &'g mut Vec<CacheSpec>,
    tokens: usize,
    wanted: Vec<ValueId>,
    /// Ops on states that some attention stands for.
    covered: BTreeSet<usize>,
    found: Selection,
}

/// Why a function is not worth a plan of its own.
pub type Refusal = String;

impl<'a, 'g> Selector<'a, 'g> {
    /// Chooses for the function behind `graph`.
    pub fn select(
        graph: &'g Graph<'a>,
        off: &'g BTreeSet<String>,
        constants: &'g mut Shared,
        limit: usize,
        caches: &'g mut Vec<CacheSpec>,
    ) -> Result<Selection, Refusal> {
        let tokens = tokens(graph).ok_or("no projection says how many tokens a call has")?;
        let found = Selection { tokens, steps: vec![], plain: BTreeSet::new(), axes: BTreeMap::new(), masks: vec![] };
        let mut selector =
            Self { graph, off, constants, limit, caches, tokens, wanted: vec![], covered: BTreeSet::new(), found };
        for &id in &selector.graph.function().outputs {
            selector.want(id, None)?;
        }
        while let Some(id) = selector.wanted.pop() {
            selector.make(id)?;
            if selector.found.axes.len() > MOST_STEPS {
                return Err(format!("more than {MOST_STEPS} values"));
            }
        }
        selector.check_states()?;
        Ok(selector.found)
    }

    /// Asks for a value. `axis` is that of its tokens, where the one who asks depends on it.
    fn want(&mut self, id: ValueId, axis: Option<usize>) -> Result<(), Refusal> {
        match self.found.axes.get_mut(&id) {
            None => {
                self.found.axes.insert(id, axis);
                self.wanted.push(id);
            }
            Some(known @ None) => *known = axis,
            Some(Some(known)) => {
                if axis.is_some_and(|axis| axis != *known) {
                    return Err(format!("`{}` has tokens along two axes", self.graph.function().value(id).name));
                }
            }
        }
        Ok(())
    }

    /// Asks for what a view looks at.
    fn want_view(&mut self, (view, axis): Seen) -> Result<View, Refusal> {
        self.want(ValueId(view.place as u32), axis)?;
        Ok(view)
    }

    /// Finds how a value is made.
    fn make(&mut self, id: ValueId) -> Result<(), Refusal> {
        let Some(op) = self.graph.definition(id) else {
            return Ok(());
        };
        if self.graph.call(op).spec().is_constant() {
            return Err(format!("`{}` is a constant", self.graph.function().value(id).name));
        }
        if let Some(step) = self.by_rule(id)? {
            // What a kernel gives has its tokens where the kernel says.
            self.found.steps.push((op, step));
            return Ok(());
        }
        self.found.plain.insert(op);
        let call = self.graph.call(op);
        for arg in call.op().inputs.values().flatten() {
            if let Arg::Value(id) = arg {
                let constant = self.graph.definition(*id).is_some_and(|op| self.graph.call(op).spec().is_constant());
                if !constant {
                    self.want(*id, None)?;
                }
            }
        }
        for &other in &call.op().outputs {
            self.found.axes.entry(other).or_insert(None);
        }
        Ok(())
    }

    fn by_rule(&mut self, id: ValueId) -> Result<Option<Step>, Refusal> {
        if !self.graph.is_float(id) {
            return Ok(None);
        }
        if let Some(attention) = self.on("attention").then(|| self.attention(id)).flatten() {
            return self.ask_attention(id, attention).map(Some);
        }
        if let Some(projection) = self.projection(id) {
            return self.ask_projection(id, projection).map(Some);
        }
        let axis = self.token_axis(id);
        if let Some(axis) = axis
            && let Some(source) = self.row_source(id, axis)
        {
            let source = self.ask(source)?;
            let out = self.own(id, axis)?;
            return Ok(Some(Step::Rows { source, out }));
        }
        Ok(None)
    }

    fn on(&self, label: &str) -> bool {
        !self.off.contains(label)
    }

    /// A value's own place.
    fn own(&mut self, id: ValueId, axis: Option<usize>) -> Result<View, Refusal> {
        let width = self.width(id).ok_or("a value of unknown shape")?;
        self.want(id, axis)?;
        Ok(View { place: id.index(), stride: width, offset: 0, width })
    }

    /// Elements of a value for each token.
    fn width(&self, id: ValueId) -> Option<usize> {
        let elements = self.graph.shape(id)?.iter().product::<usize>();
        elements.is_multiple_of(self.tokens).then(|| elements / self.tokens)
    }

    /// The axis of a value's tokens where nothing else tells: the only one of as many, the channels (axis 1) apart.
    fn token_axis(&self, id: ValueId) -> Option<Option<usize>> {
        if self.tokens == 1 {
            return Some(None);
        }
        if let Some(Some(known)) = self.found.axes.get(&id) {
            return Some(Some(*known));
        }
        let shape = self.graph.shape(id)?;
        let mut candidates = (0..shape.len()).filter(|&a| shape[a] == self.tokens && a != 1);
        match (candidates.next(), candidates.next()) {
            (Some(axis), None) => Some(Some(axis)),
            _ => None,
        }
    }

    /// Follows names back to what they name: reshapes and transposes that keep each token's elements in order, and slices of
    /// them.
    fn view(&self, id: ValueId, axis: Option<usize>) -> Option<Seen> {
        self.view_through(id, axis, MOST_NAMES)
    }

    fn view_through(&self, id: ValueId, axis: Option<usize>, names: usize) -> Option<Seen> {
        let shape = self.graph.shape(id)?;
        let width = self.width(id)?;
        let seen = names.checked_sub(1).and_then(|names| self.behind(id, &shape, axis, width, names));
        seen.or_else(|| {
            let constant = self.graph.definition(id).is_some_and(|op| self.graph.call(op).spec().is_constant());
            let float = self.graph.is_float(id) && !constant;
            float.then_some((View { place: id.index(), stride: width, offset: 0, width }, axis))
        })
    }

    fn behind(&self, id: ValueId, shape: &[usize], axis: Option<usize>, width: usize, names: usize) -> Option<Seen> {
        let op = self.graph.definition(id)?;
        let call = self.graph.call(op);
        match call.op().kind.as_str() {
            "reshape" | "squeeze" | "expand_dims" => {
                let x = call.value("x")?;
                let from = self.graph.shape(x)?;
                let axis = match axis {
                    None => None,
                    Some(axis) => {
                        let behind = |shape: &[usize], a: usize| shape[a + 1..].iter().product::<usize>();
                        let same = |&a: &usize| from[a] == self.tokens && behind(&from, a) == behind(shape, axis);
                        Some((0..from.len()).find(same)?)
                    }
                };
                self.view_through(x, axis, names)
            }
            "transpose" => {
                let x = call.value("x")?;
                let from = self.graph.shape(x)?;
                let perm: Option<Vec<usize>> =
                    self.graph.ints(&call, "perm")?.into_iter().map(|p| usize::try_from(p).ok()).collect();
                let perm = perm.filter(|p| p.len() == from.len())?;
                let moved: Vec<usize> =
                    (0..perm.len()).filter(|&a| Some(a) != axis && shape[a] != 1).map(|a| perm[a]).collect();
                moved.is_sorted().then(|| self.view_through(x, axis.map(|a| perm[a]), names))?
            }
            "slice_by_index" => {
                let (x, sliced, begin, _) = self.graph.slice(id)?;
                let from = self.graph.shape(x)?;
                if Some(sliced) == axis || (0..sliced).any(|a| Some(a) != axis && from[a] != 1) {
                    return None;
                }
                let inner: usize = (sliced + 1..from.len()).filter(|&a| Some(a) != axis).map(|a| from[a]).product();
                let (view, axis) = self.view_through(x, axis, names)?;
                Some((View { offset: view.offset + begin * inner, width, ..view }, axis))
            }
            _ => None,
        }
    }

    /// What a projection reads: computed as it goes where a rule knows how, a view otherwise.
    fn source_of(&self, id: ValueId, axis: Option<usize>) -> Option<Source> {
        self.row_source(id, axis).or_else(|| Some(Source::Plain(self.view(id, axis)?)))
    }

    /// The rule by which a row of `id` comes from other rows.
    fn row_source(&self, id: ValueId, axis: Option<usize>) -> Option<Source> {
        let norm = || self.on("norm").then(|| self.norm(id, axis)).flatten();
        let gate = || self.on("gate").then(|| self.gate(id, axis)).flatten();
        let sum = || self.on("residual").then(|| self.sum(id, axis)).flatten();
        let turned = || self.on("rotary").then(|| self.turned(id, axis).map(Source::Turned)).flatten();
        norm().or_else(gate).or_else(sum).or_else(|| turned().filter(|t| t.is_rotated()))
    }

    /// Asks for what a source looks at.
    fn ask(&mut self, source: Source) -> Result<RowSource, Refusal> {
        Ok(match source {
            Source::Plain(x) => RowSource::Plain(self.want_view(x)?),
            Source::Norm(x, gamma, eps) => RowSource::Norm { x: self.want_view(x)?, gamma, eps },
            Source::Gate(gate, up) => RowSource::Gate { gate: self.want_view(gate)?, up: self.want_view(up)? },
            Source::Sum(x, y) => RowSource::Sum(self.want_view(x)?, self.want_view(y)?),
            Source::Turned(turned) => RowSource::Turned(self.ask_turned(turned)?),
        })
    }

    fn ask_turned(&mut self, turned: TurnedSource) -> Result<Turned, Refusal> {
        let rotation = match turned.rotation {
            Some((cos, sin)) => Some(Rotation { cos: self.want_view(cos)?, sin: self.want_view(sin)? }),
            None => None,
        };
        Ok(Turned { x: self.want_view(turned.x)?, heads: turned.heads, rotation, scale: turned.scale })
    }

    /// `[1, C, T, 1]` or `[1, C, 1, T]`: where the tokens are.
    fn column_axis(&self, shape: &[usize]) -> Option<Option<usize>> {
        match (shape, self.tokens) {
            (&[1, _, 1, 1], 1) => Some(None),
            (&[1, _, t, 1], tokens) if t == tokens => Some(Some(2)),
            (&[1, _, 1, t], tokens) if t == tokens => Some(Some(3)),
            _ => None,
        }
    }

    /// A projection, alone or with what is added to it.
    fn projection(&mut self, id: ValueId) -> Option<ProjectionSource> {
        if !self.on("linear") {
            return None;
        }
        self.linear(id).or_else(|| self.linear_residual(id))
    }

    fn linear(&mut self, id: ValueId) -> Option<ProjectionSource> {
        let call = self.graph.call(self.graph.definition(id)?);
        let x = call.value("x")?;
        let (from, to) = (self.graph.shape(x)?, self.graph.shape(id)?);
        let axis = match call.op().kind.as_str() {
            "conv" => {
                let ones =
                    |param: &str| call.find_ints(param).ok().map(|v| v.is_none_or(|v| v.iter().all(|&v| v == 1)));
                let padding = match call.find_str("pad_type").ok()?.as_deref() {
                    None | Some("valid" | "same" | "same_lower") => true,
                    Some(_) => call.find_ints("pad").ok()?.is_none_or(|p| p.iter().all(|&p| p == 0)),
                };
                let plain = ones("strides")? && ones("groups")? && padding;
                self.column_axis(&from).filter(|_| plain && self.column_axis(&to).is_some())?
            }
            "linear" => {
                let tokens: Vec<usize> = (0..from.len() - 1).filter(|&a| from[a] != 1).collect();
                match tokens[..] {
                    [] if self.tokens == 1 => None,
                    [axis] if from[axis] == self.tokens => Some(axis),
                    _ => return None,
                }
            }
            _ => return None,
        };
        let matrix = self.matrix(&call)?;
        if (matrix.rows, matrix.columns) != (self.width(id)?, self.width(x)?) {
            return None;
        }
        let bias = if call.has("bias") { Some(self.graph.floats(&call, "bias")?) } else { None };
        if bias.as_ref().is_some_and(|b| b.len() != matrix.rows) {
            return None;
        }
        Some(ProjectionSource { axis, x, matrix, bias, residual: None })
    }

    /// An addition to a projection that nobody else uses.
    fn linear_residual(&mut self, id: ValueId) -> Option<ProjectionSource> {
        if !self.on("residual") {
            return None;
        }
        let (a, b) = self.graph.binary(id, "add")?;
        [(b, a), (a, b)].into_iter().find_map(|(projection, other)| {
            if self.graph.users(projection) != 1 || self.graph.shape(projection) != self.graph.shape(other) {
                return None;
            }
            let source = self.linear(projection)?;
            let residual = Some(self.view(other, source.axis)?);
            Some(ProjectionSource { residual, ..source })
        })
    }

    /// The constant weight of a projection.
    fn matrix(&mut self, call: &Call<'a>) -> Option<Matrix> {
        let id = call.value("weight")?;
        let shape = self.graph.shape(id)?;
        let (&rows, rest) = shape.split_first()?;
        let columns = *rest.first()?;
        if rest[1..].iter().any(|&d| d != 1) {
            return None;
        }
        let op = self.graph.definition(id)?;
        let definition = self.graph.call(op);
        if !definition.spec().is_constant() {
            return None;
        }
        let which = definition.op().outputs.iter().position(|&o| o == id)?;
        let constants = self.constants.of(&definition, self.limit).ok()?;
        let mut value = constants.get(which)?.stored().ok()?;
        // Rows that begin within a byte are not worth a kernel.
        if matches!(value.data, Elements::Stored(Stored::Palette { .. })) && !columns.is_multiple_of(2) {
            value = constants.get(which)?.dense().ok()?;
        }
        if value.dtype != Dtype::F16 {
            return None;
        }
        let (elements, data) = match value.data {
            Elements::Stored(Stored::Bytes { data, scales }) => (Weights::Int8(scales), data),
            Elements::Stored(Stored::Halves(literal)) => (Weights::Half, literal),
            Elements::Stored(Stored::Palette { indices, tables }) => (Weights::Palette(tables), indices),
            Elements::Floats(v) => (Weights::Half, Literal::f16s(&shape, &v)),
            Elements::Ints(_) => return None,
        };
        Some(Matrix { rows, columns, elements, data: Bytes::stored(data) }).filter(Matrix::is_whole)
    }

    fn norm(&self, id: ValueId, axis: Option<usize>) -> Option<Source> {
        let g = self.graph;
        let (normal, gamma) = g.with_constant(id, "mul")?;
        let channels = self.channels(id, axis)?;
        let (a, b) = g.binary(normal, "mul")?;
        let (unit, inverse) = if g.made_by(b, "rsqrt").is_some() { (a, b) } else { (b, a) };
        let call = g.made_by(inverse, "rsqrt")?;
        let own_eps = g.floats(&call, "epsilon").map_or(Some(1e-12), |v| v.first().copied())?;
        let argument = call.value("x")?;
        let mean_square = |mean: ValueId| {
            let square = g.reduction(mean, "reduce_mean", channels)?;
            let squared = g.unary(square, "square").or_else(|| {
                let (x, y) = g.binary(square, "mul")?;
                (x == y).then_some(x)
            })?;
            (squared == unit).then_some(())
        };
        let gamma: Arc<[f32]> = gamma.into();
        if gamma.len() != self.width(id)? {
            return None;
        }
        // mean((x/m)^2) + (c/m)^2 where m = max(max|x|, c'): m cancels.
        if let Some((x, m)) = g.binary(unit, "real_div") {
            let (peak, _) = g.with_scalar(m, "maximum")?;
            let magnitude = g.reduction(peak, "reduce_max", channels)?;
            (g.unary(magnitude, "abs")? == x && own_eps == 0.0).then_some(())?;
            let (mean, eps) = g.binary(argument, "add")?;
            mean_square(mean)?;
            let (root, again) = g.binary(eps, "mul")?;
            let call = g.made_by(root, "real_div").filter(|_| root == again)?;
            let c = g.floats(&call, "x").filter(|c| c.len() == 1)?[0];
            (call.value("y")? == m).then_some(())?;
            return Some(Source::Norm(self.view(x, axis)?, gamma, c * c));
        }
        let (mean, eps) = match g.with_scalar(argument, "add") {
            Some((mean, eps)) => (mean, eps + own_eps),
            None => (argument, own_eps),
        };
        mean_square(mean)?;
        Some(Source::Norm(self.view(unit, axis)?, gamma, eps))
    }

    /// The only axis besides that of the tokens which has more than one element, or the first of several ones.
    fn channels(&self, id: ValueId, axis: Option<usize>) -> Option<usize> {
        let shape = self.graph.shape(id)?;
        let mut wide = (0..shape.len()).filter(|&a| Some(a) != axis && shape[a] != 1);
        match (wide.next(), wide.next()) {
            (Some(channels), None) => Some(channels),
            _ => None,
        }
    }

    fn gate(&self, id: ValueId, axis: Option<usize>) -> Option<Source> {
        let (a, b) = self.graph.binary(id, "mul")?;
        [(a, b), (b, a)].into_iter().find_map(|(active, up)| {
            let gate = self.graph.unary(active, "silu")?;
            (self.graph.shape(gate) == self.graph.shape(up)).then_some(())?;
            Some(Source::Gate(self.view(gate, axis)?, self.view(up, axis)?))
        })
    }

    fn sum(&self, id: ValueId, axis: Option<usize>) -> Option<Source> {
        let (x, y) = self.graph.binary(id, "add")?;
        (self.graph.shape(x) == self.graph.shape(y)).then_some(())?;
        Some(Source::Sum(self.view(x, axis)?, self.view(y, axis)?))
    }

    /// Heads `[1, heads, T, head_dim]` or `[1, heads, head_dim, T]`, with what turns and scales them.
    fn turned(&self, id: ValueId, axis: Option<usize>) -> Option<TurnedSource> {
        let shape = self.graph.shape(id)?;
        let &[1, heads, _, _] = &shape[..] else { return None };
        let (mut id, mut axis, mut scale) = (id, axis, 1.0);
        // A factor and an exchange of the last two axes, in any order.
        loop {
            if let Some((x, factor)) = self.graph.with_scalar(id, "mul") {
                (id, scale) = (x, scale * factor);
                continue;
            }
            let Some(op) = self.graph.definition(id) else { break };
            let call = self.graph.call(op);
            let x = match call.op().kind.as_str() {
                "reshape" | "transpose" => call.value("x"),
                _ => None,
            };
            let Some(x) = x.filter(|&x| self.graph.shape(x).is_some_and(|s| s.len() == 4 && s[..2] == shape[..2]))
            else {
                break;
            };
            let swapped = axis.map(|a| 5 - a);
            if call.op().kind == "transpose" {
                if self.graph.ints(&call, "perm")? != [0, 1, 3, 2] {
                    break;
                }
            } else if self.tokens != 1 {
                break;
            }
            (id, axis) = (x, swapped);
        }
        let rotated = self.rotated(id, axis, heads, scale);
        rotated.or_else(|| Some(TurnedSource { x: self.view(id, axis)?, heads, rotation: None, scale }))
    }

    /// `concat(low cos - high sin, low sin + high cos, rest)` of heads `[1, heads, head_dim, T]`.
    fn rotated(&self, id: ValueId, axis: Option<usize>, heads: usize, scale: f32) -> Option<TurnedSource> {
        let g = self.graph;
        let call = g.made_by(id, "concat").filter(|c| c.const_int("axis").is_ok_and(|a| a == 2 || a == -2))?;
        if axis.is_some_and(|a| a != 3) || call.const_bool("interleave").unwrap_or(false) {
            return None;
        }
        let parts = joined(&call)?;
        let (&[low_turned, high_turned], rest) = parts.split_first_chunk::<2>()?;
        let (low_cos, high_sin) = g.binary(low_turned, "sub")?;
        let (low, cos) = g.binary(low_cos, "mul")?;
        let (high, sin) = g.binary(high_sin, "mul")?;
        let (first, second) = g.binary(high_turned, "add")?;
        let same =
            |id: ValueId, x: ValueId, y: ValueId| g.binary(id, "mul").is_some_and(|p| p == (x, y) || p == (y, x));
        if !(same(first, low, sin) && same(second, high, cos) || same(first, high, cos) && same(second, low, sin)) {
            return None;
        }
        let (x, 2, 0, half) = g.slice(low)? else { return None };
        if g.slice(high)? != (x, 2, half, 2 * half) {
            return None;
        }
        let head_dim = g.shape(x)?[2];
        match rest {
            [] if head_dim == 2 * half => {}
            [pass] if g.slice(*pass)? == (x, 2, 2 * half, head_dim) => {}
            _ => return None,
        }
        let table = |id: ValueId| {
            let seen = self.view(id, axis)?;
            (g.shape(id)? == [1, 1, half, self.tokens] && seen.0.width == half).then_some(seen)
        };
        Some(TurnedSource { x: self.view(x, axis)?, heads, rotation: Some((table(cos)?, table(sin)?)), scale })
    }

    /// From the mixture `[1, heads, T, head_dim]` back to queries, keys, values, masks and states.
    fn attention(&self, mixed: ValueId) -> Option<AttentionSource> {
        let g = self.graph;
        let t = self.tokens;
        let axis = |a: usize| if t == 1 { None } else { Some(a) };
        let &[1, heads, rows, head_dim] = &g.shape(mixed)?[..] else { return None };
        if rows != t || head_dim % super::simd::LANES != 0 || head_dim > MOST_HEAD_DIM {
            return None;
        }
        let parts = match g.made_by(mixed, "concat") {
            Some(call) => {
                if call.const_int("axis").ok()? != 1 || call.const_bool("interleave").unwrap_or(false) {
                    return None;
                }
                joined(&call)?
            }
            None => vec![mixed],
        };
        let kv = parts.len();
        if heads % kv != 0 {
            return None;
        }
        let group = heads / kv;
        // The kv head `head` of a value that has them all.
        let one = |id: ValueId, head: usize, each: usize| match g.slice(id) {
            Some((x, 1, begin, end)) if kv > 1 => (begin == head * each && end == begin + each).then_some(x),
            _ => (kv == 1).then_some(id),
        };
        let mut whole = None;
        for (head, &part) in parts.iter().enumerate() {
            let (weights, v) = self.product(part, false)?;
            let softmax = g.made_by(weights, "softmax")?;
            if !matches!(softmax.const_int("axis").ok()?, -1 | 3) {
                return None;
            }
            let (a, b) = g.binary(softmax.value("x")?, "add")?;
            let (scores, mask) = if self.product(a, true).is_some() { (a, b) } else { (b, a) };
            let (q, k) = self.product(scores, true)?;
            let found = (one(q, head, group)?, one(k, head, 1)?, one(v, head, 1)?, mask);
            if *whole.get_or_insert(found) != found {
                return None;
            }
        }
        let (q, k_now, v_now, mask) = whole?;
        let (keys, values) = (self.cached(k_now)?, self.cached(v_now)?);
        let context = keys.shape[2];
        if keys.write != values.write
            || keys.shape != values.shape
            || keys.shape != [1, kv, context, head_dim]
            || g.shape(mask)? != [1, 1, t, context]
            || !g.function().inputs.contains(&mask)
            || !g.function().inputs.contains(&keys.write)
        {
            return None;
        }
        let q = self.turned(q, axis(2))?;
        let k = self.turned(keys.new, axis(2))?;
        let (v, v_axis) = self.view(values.new, axis(2))?;
        let rotary = self.on("rotary");
        if !rotary && (q.rotation.is_some() || k.rotation.is_some()) {
            return None;
        }
        (q.heads == heads && k.heads == kv && v.width == kv * head_dim).then_some(())?;
        Some(AttentionSource { q, k, v: (v, v_axis), mask, keys, values })
    }

    /// The operands of a matrix product, `y` transposed or not.
    fn product(&self, id: ValueId, transposed: bool) -> Option<(ValueId, ValueId)> {
        let call = self.graph.made_by(id, "matmul")?;
        let flag = |param: &str| call.const_bool(param).unwrap_or(false);
        (!flag("transpose_x") && flag("transpose_y") == transposed)
            .then(|| Some((call.value("x")?, call.value("y")?)))?
    }

    /// The masked write behind a read of a state.
    fn cached(&self, now: ValueId) -> Option<CachedSource> {
        let g = self.graph;
        let read = g.made_by(now, "read_state")?;
        let state = read.value("input")?;
        // Read, write, read again, and nobody else.
        let accesses = g.accesses(state);
        let &[old, write, again] = accesses else { return None };
        let (old, write) = (g.call(old), g.call(write));
        if old.op().kind != "read_state" || write.op().kind != "write_state" || g.definition(now) != Some(again) {
            return None;
        }
        let (kept, placed) = g.binary(write.value("data")?, "add")?;
        let (a, b) = g.binary(kept, "mul")?;
        let old = *old.op().outputs.first()?;
        let keep = if a == old {
            b
        } else if b == old {
            a
        } else {
            return None;
        };
        let call = g.made_by(keep, "sub")?;
        if g.floats(&call, "x")? != [1.0] {
            return None;
        }
        let written = call.value("y")?;
        let mask = if self.tokens == 1 { written } else { g.reduction(written, "reduce_sum", 3)? };
        let new = if self.tokens == 1 {
            let (x, y) = g.binary(placed, "mul")?;
            if y == mask {
                x
            } else if x == mask {
                y
            } else {
                return None;
            }
        } else {
            let (x, y) = self.product(placed, false)?;
            (x == mask).then_some(y)?
        };
        let shape = g.shape(now)?;
        let (context, t) = (*shape.get(2)?, self.tokens);
        (shape.len() == 4 && g.shape(mask)? == [1, 1, context, t]).then_some(())?;
        (g.shape(new)? == [1, shape[1], t, shape[3]]).then_some(())?;
        let name = g.function().value(state).name.clone();
        Some(CachedSource { state: name, ops: accesses.to_vec(), shape, write: mask, new })
    }

    fn ask_projection(&mut self, id: ValueId, projection: ProjectionSource) -> Result<Step, Refusal> {
        let ProjectionSource { axis, x, matrix, bias, residual } = projection;
        let source = self.source_of(x, axis).ok_or("a projection of a constant")?;
        let source = self.ask(source)?;
        let out = self.own(id, axis)?;
        let residual = residual.map(|seen| self.want_view(seen)).transpose()?;
        Ok(Step::Linear { source, parts: vec![Part { matrix, bias, residual, out }] })
    }

    fn ask_attention(&mut self, id: ValueId, source: AttentionSource) -> Result<Step, Refusal> {
        let AttentionSource { q, k, v, mask, keys, values } = source;
        let rows = keys.shape[2];
        self.covered.extend(keys.ops.iter().chain(&values.ops));
        let spec =
            CacheSpec { keys: keys.state, values: values.state, heads: keys.shape[1], rows, head_dim: keys.shape[3] };
        let cache = match self.caches.iter().position(|c| *c == spec) {
            Some(known) => known,
            None => {
                self.caches.push(spec);
                self.caches.len() - 1
            }
        };
        let pair = (mask, keys.write);
        let masks = match self.found.masks.iter().position(|&p| p == pair) {
            Some(known) => known,
            None => {
                self.found.masks.push(pair);
                self.found.masks.len() - 1
            }
        };
        let out = self.own(id, if self.tokens == 1 { None } else { Some(2) })?;
        let (q, k, v) = (self.ask_turned(q)?, self.ask_turned(k)?, self.want_view(v)?);
        Ok(Step::Attention(Attention { q, k, v, out, cache, rows, masks }))
    }

    /// Every access to a state must be part of some attention: one that is not needs the state as the program has it.
    fn check_states(&self) -> Result<(), Refusal> {
        let g = self.graph;
        for (i, op) in g.function().ops.iter().enumerate() {
            let state = match op.kind.as_str() {
                "read_state" | "write_state" => g.call(i).value("input"),
                _ => None,
            };
            let Some(state) = state else { continue };
            if !self.covered.contains(&i) || self.found.plain.contains(&i) {
                let name = &g.function().value(state).name;
                return Err(format!("state `{name}` is used in a way that no rule knows"));
            }
        }
        Ok(())
    }
}

/// A view and the axis of the tokens of what it looks at.
type Seen = (View, Option<usize>);

/// A [`RowSource`] whose views have not been asked for.
enum Source {
    Plain(Seen),
    Norm(Seen, Arc<[f32]>, f32),
    Gate(Seen, Seen),
    Sum(Seen, Seen),
    Turned(TurnedSource),
}

impl Source {
    fn is_rotated(&self) -> bool {
        matches!(self, Source::Turned(TurnedSource { rotation: Some(_), .. }))
    }
}

struct TurnedSource {
    x: Seen,
    heads: usize,
    rotation: Option<(Seen, Seen)>,
    scale: f32,
}

struct ProjectionSource {
    /// The axis of the tokens.
    axis: Option<usize>,
    x: ValueId,
    matrix: Matrix,
    bias: Option<Vec<f32>>,
    /// What is added.
    residual: Option<Seen>,
}

struct CachedSource {
    state: String,
    ops: Vec<usize>,
    shape: Vec<usize>,
    write: ValueId,
    new: ValueId,
}

struct AttentionSource {
    q: TurnedSource,
    k: TurnedSource,
    v: Seen,
    mask: ValueId,
    keys: CachedSource,
    values: CachedSource,
}

/// What a `concat` joins.
fn joined(call: &Call<'_>) -> Option<Vec<ValueId>> {
    let values = call.op().inputs.get("values")?.iter().map(|arg| match arg {
        Arg::Value(id) => Some(*id),
        Arg::Literal(_) => None,
    });
    values.collect()
}

/// How many tokens a call has: what the first projection of an image one wide says.
fn tokens(graph: &Graph<'_>) -> Option<usize> {
    let function = graph.function();
    (0..function.ops.len())
        .find_map(|i| {
            let call = graph.call(i);
            let x = graph.shape(call.value("x")?)?;
            match (call.op().kind.as_str(), &x[..]) {
                ("conv", &[1, _, t, 1] | &[1, _, 1, t]) => Some(t),
                ("linear", x) => {
                    let mut wide = x[..x.len().saturating_sub(1)].iter().filter(|&&d| d != 1);
                    match (wide.next(), wide.next()) {
                        (None, _) => Some(1),
                        (Some(&t), None) => Some(t),
                        _ => None,
                    }
                }
                _ => None,
            }
        })
        .filter(|&t| t > 0)
}
