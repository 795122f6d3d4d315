//! A function as the rules of [`select`](super::select) look at it: from a value to what makes it.

use std::collections::BTreeMap;

use anemone_mil::Valid;
use anemone_mil::ir::{Arg, Dtype, Function, Literal, Op, ValueId};
use anemone_mil::ops::Call;

/// Values of more elements than this are not looked into: sums of sizes then never overflow.
const MOST_ELEMENTS: usize = 1 << 40;

/// One function of a valid program.
pub struct Graph<'a> {
    program: &'a Valid,
    index: usize,
    users: Vec<usize>,
    /// The ops that read or write each state, in order.
    accesses: BTreeMap<ValueId, Vec<usize>>,
}

impl<'a> Graph<'a> {
    /// Function `index` of `program`.
    pub fn new(program: &'a Valid, index: usize) -> Self {
        let function = &program.functions[index];
        let mut users = vec![0; function.values.len()];
        let ids = function.ops.iter().flat_map(Op::arguments);
        ids.chain(function.outputs.iter().copied()).for_each(|id| users[id.index()] += 1);
        let mut accesses: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (i, op) in function.ops.iter().enumerate() {
            if matches!(op.kind.as_str(), "read_state" | "write_state")
                && let Some(state) = program.call(index, i).value("input")
            {
                accesses.entry(state).or_default().push(i);
            }
        }
        Self { program, index, users, accesses }
    }

    /// The function.
    pub fn function(&self) -> &'a Function {
        &self.program.functions[self.index]
    }

    /// Op number `op`.
    pub fn call(&self, op: usize) -> Call<'a> {
        self.program.call(self.index, op)
    }

    /// The number of the op that makes a value.
    pub fn definition(&self, id: ValueId) -> Option<usize> {
        self.program.definition(self.index, id)
    }

    /// The op that makes a value, if it is of that kind and the value its only result.
    pub fn made_by(&self, id: ValueId, kind: &str) -> Option<Call<'a>> {
        let call = self.call(self.definition(id)?);
        (call.op().kind == kind && call.op().outputs.len() == 1).then_some(call)
    }

    /// How often a value is used.
    pub fn users(&self, id: ValueId) -> usize {
        self.users[id.index()]
    }

    /// The ops that read or write a state, in order.
    pub fn accesses(&self, state: ValueId) -> &[usize] {
        self.accesses.get(&state).map(Vec::as_slice).unwrap_or_default()
    }

    /// The shape of a tensor whose dimensions are all known, and none of them 0.
    pub fn shape(&self, id: ValueId) -> Option<Vec<usize>> {
        let ty = self.function().value(id).ty.tensor()?;
        ty.elements().filter(|n| (1..=MOST_ELEMENTS).contains(n))?;
        ty.fixed_shape()
    }

    /// Whether a value is a float tensor.
    pub fn is_float(&self, id: ValueId) -> bool {
        self.function().value(id).ty.tensor().is_some_and(|ty| matches!(ty.dtype, Dtype::F16 | Dtype::F32))
    }

    /// The constant behind an argument.
    pub fn constant(&self, arg: &'a Arg) -> Option<&'a Literal> {
        match arg {
            Arg::Literal(literal) => Some(literal),
            Arg::Value(id) => self.program.constant(self.index, *id),
        }
    }

    /// Constant floats of a parameter.
    pub fn floats(&self, call: &Call<'a>, param: &str) -> Option<Vec<f32>> {
        self.constant(call.arg(param)?)?.to_floats()
    }

    /// Constant integers or bools of a parameter.
    pub fn ints(&self, call: &Call<'a>, param: &str) -> Option<Vec<i64>> {
        let literal = self.constant(call.arg(param)?)?;
        match literal.to_bools() {
            Some(bools) => Some(bools.into_iter().map(i64::from).collect()),
            None => literal.to_ints(),
        }
    }

    /// The operands `x` and `y` of a binary op of that kind that makes `id`, where both are computed.
    pub fn binary(&self, id: ValueId, kind: &str) -> Option<(ValueId, ValueId)> {
        let call = self.made_by(id, kind)?;
        let (x, y) = (call.value("x")?, call.value("y")?);
        let computed = |id| self.definition(id).is_none_or(|op| !self.call(op).spec().is_constant());
        (computed(x) && computed(y)).then_some((x, y))
    }

    /// What an op of that kind makes `id` from, by its parameter `x`.
    pub fn unary(&self, id: ValueId, kind: &str) -> Option<ValueId> {
        self.made_by(id, kind)?.value("x")
    }

    /// A computed operand and a constant one of a commutative op of that kind that makes `id`.
    pub fn with_constant(&self, id: ValueId, kind: &str) -> Option<(ValueId, Vec<f32>)> {
        let call = self.made_by(id, kind)?;
        [("x", "y"), ("y", "x")].into_iter().find_map(|(value, constant)| {
            let floats = self.floats(&call, constant)?;
            let id = call.value(value).filter(|id| self.program.constant(self.index, *id).is_none())?;
            Some((id, floats))
        })
    }

    /// As [`with_constant`](Self::with_constant), for a constant of one element.
    pub fn with_scalar(&self, id: ValueId, kind: &str) -> Option<(ValueId, f32)> {
        match self.with_constant(id, kind)? {
            (x, v) if v.len() == 1 => Some((x, v[0])),
            _ => None,
        }
    }

    /// A reduction over one axis that keeps it: what is reduced.
    pub fn reduction(&self, id: ValueId, kind: &str, axis: usize) -> Option<ValueId> {
        let call = self.made_by(id, kind)?;
        let x = call.value("x")?;
        let rank = self.shape(x)?.len();
        let axes = call.axes("axes", rank).ok()?;
        (axes == [axis] && call.const_bool("keep_dims").ok()?).then_some(x)
    }

    /// A slice of one axis, without strides: what is sliced, the axis, where it begins and ends.
    pub fn slice(&self, id: ValueId) -> Option<(ValueId, usize, usize, usize)> {
        let call = self.made_by(id, "slice_by_index")?;
        let x = call.value("x")?;
        let (from, to) = (self.shape(x)?, self.shape(id)?);
        if from.len() != to.len() || call.has("stride") || call.has("squeeze_mask") {
            return None;
        }
        let begin = self.ints(&call, "begin")?;
        let free = if call.has("begin_mask") { self.ints(&call, "begin_mask")? } else { vec![0; from.len()] };
        let mut sliced = (0..from.len()).filter(|&a| from[a] != to[a]);
        let (axis, None) = (sliced.next().unwrap_or(0), sliced.next()) else { return None };
        let first = if free[axis] != 0 { 0 } else { begin[axis] };
        let first = if first < 0 { first + from[axis] as i64 } else { first };
        let first = usize::try_from(first).ok().filter(|f| f + to[axis] <= from[axis])?;
        Some((x, axis, first, first + to[axis]))
    }
}
