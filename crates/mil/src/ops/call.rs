//! One use of an op, as its type rule and its kernel see it: argument types, and values where they are known.

use crate::ir::{Arg, Dim, Dtype, Literal, Op, TensorType, Value, ValueId, ValueType};

use super::{Default, OpSpec, Opset, Param, shape};

/// What an op cannot be applied to, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    /// The rule that was broken: a stable name.
    pub rule: &'static str,
    /// What was found and what was expected.
    pub message: String,
}

impl TypeError {
    /// An error under a rule.
    pub fn new(rule: &'static str, message: impl Into<String>) -> Self {
        Self { rule, message: message.into() }
    }
}

/// The values that an op can refer to: those of its function, with the ops that defined them.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The function's values.
    pub values: &'a [Value],
    /// The function's ops.
    pub ops: &'a [Op],
    /// For each value, the op that defines it; `None` for function inputs.
    pub definitions: &'a [Option<u32>],
}

impl<'a> Scope<'a> {
    /// The op that defines a value.
    pub fn definition(&self, id: ValueId) -> Option<&'a Op> {
        self.ops.get((*self.definitions.get(id.index())?)? as usize)
    }

    /// The literal of a value that a `const` op defines.
    pub fn constant(&self, id: ValueId) -> Option<&'a Literal> {
        self.definition(id).filter(|op| op.kind == "const")?.attributes.get("val")
    }
}

/// One use of an op.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    spec: &'static OpSpec,
    op: &'a Op,
    scope: Scope<'a>,
    opset: Opset,
}

impl<'a> Call<'a> {
    /// Views `op` as a use of `spec`, with its arguments taken from `scope`.
    pub fn new(spec: &'static OpSpec, op: &'a Op, scope: Scope<'a>, opset: Opset) -> Self {
        Self { spec, op, scope, opset }
    }

    /// The row of the op table.
    pub fn spec(&self) -> &'static OpSpec {
        self.spec
    }

    /// The op.
    pub fn op(&self) -> &'a Op {
        self.op
    }

    /// The opset whose definitions hold.
    pub fn opset(&self) -> Opset {
        self.opset
    }

    /// The values the arguments come from.
    pub fn scope(&self) -> Scope<'a> {
        self.scope
    }

    /// The declared types of the values it defines, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &'a TensorType> {
        let values = self.scope.values;
        self.op.outputs.iter().filter_map(move |id| values.get(id.index())?.ty.tensor())
    }

    /// The only argument of a parameter, where it is bound as an input.
    pub fn arg(&self, param: &str) -> Option<&'a Arg> {
        match self.op.inputs.get(param)?.as_slice() {
            [arg] => Some(arg),
            _ => None,
        }
    }

    /// The value a parameter is bound to, where it is bound to one.
    pub fn value(&self, param: &str) -> Option<ValueId> {
        match self.arg(param)? {
            Arg::Value(id) => Some(*id),
            Arg::Literal(_) => None,
        }
    }

    /// Whether a parameter is bound at all.
    pub fn has(&self, param: &str) -> bool {
        self.op.inputs.contains_key(param) || self.op.attributes.contains_key(param)
    }

    /// Whether a parameter means anything beside the arguments that are bound: the type of indices that are not returned does
    /// not, and may not be given.
    pub fn applies(&self, param: &str) -> bool {
        match (self.spec.name, param) {
            ("topk", "output_indices_dtype") => self.const_bool("return_indices") != Ok(false),
            _ => true,
        }
    }

    /// The type of an argument; for a state, the type it wraps.
    pub fn arg_type(&self, arg: &'a Arg) -> Option<&'a TensorType> {
        let ty = match arg {
            Arg::Value(id) => &self.scope.values.get(id.index())?.ty,
            Arg::Literal(lit) => &lit.ty,
        };
        match ty {
            ValueType::Tensor(t) | ValueType::State(t) => Some(t),
            _ => None,
        }
    }

    /// The type of a parameter's argument, where it is bound.
    pub fn find_ty(&self, param: &str) -> Option<&'a TensorType> {
        match self.arg(param) {
            Some(arg) => self.arg_type(arg),
            None => self.op.attributes.get(param)?.tensor_type(),
        }
    }

    /// The type of a parameter's argument; an error where it is not bound.
    pub fn ty(&self, param: &str) -> Result<&'a TensorType, TypeError> {
        self.find_ty(param).ok_or_else(|| TypeError::new("missing-input", format!("`{param}` is missing")))
    }

    /// The types of a variadic parameter's arguments; an error where there are none.
    pub fn variadic(&self, param: &str) -> Result<Vec<&'a TensorType>, TypeError> {
        let args = self.op.inputs.get(param).map(Vec::as_slice).unwrap_or_default();
        let types: Option<Vec<_>> = args.iter().map(|a| self.arg_type(a)).collect();
        match types {
            Some(types) if !types.is_empty() => Ok(types),
            _ => Err(TypeError::new("missing-input", format!("`{param}` is missing"))),
        }
    }

    /// The literal a parameter is explicitly bound to: a `const` op's, an inline one, or an attribute.
    pub fn literal(&self, param: &str) -> Option<&'a Literal> {
        match self.arg(param) {
            Some(Arg::Literal(lit)) => Some(lit),
            Some(Arg::Value(id)) => self.scope.constant(*id),
            None => self.op.attributes.get(param),
        }
    }

    /// Whether a parameter is bound to something only known at run time.
    pub fn is_runtime(&self, param: &str) -> bool {
        let args = self.op.inputs.get(param).map(Vec::as_slice).unwrap_or_default();
        args.iter().any(|arg| match arg {
            Arg::Literal(_) => false,
            Arg::Value(id) => {
                !self.scope.definition(*id).is_some_and(|op| super::spec(&op.kind).is_some_and(OpSpec::is_constant))
            }
        })
    }

    /// The literal that an unbound parameter stands for.
    pub fn default_literal(&self, param: &Param) -> Option<Literal> {
        let spatial = || self.find_ty("x").map(|x| x.rank().saturating_sub(2));
        Some(match param.default? {
            Default::Bool(b) => Literal::bool(b),
            Default::Int(i) => Literal::i32(i),
            Default::Str(s) => Literal::string(s),
            Default::Float(v) => {
                let first = self.spec.params.first()?;
                match self.find_ty(first.name).map(|t| t.dtype) {
                    Some(Dtype::F16) => Literal::f16(v),
                    Some(Dtype::I32) => Literal::i32(v as i32),
                    Some(Dtype::Bool) => Literal::bool(v != 0.0),
                    _ => Literal::f32s(&[], &[v]),
                }
            }
            Default::F32(v) => Literal::f32s(&[], &[v]),
            Default::SpatialOnes => Literal::i32s(&vec![1; spatial()?]),
            Default::SpatialZeros => Literal::i32s(&vec![0; 2 * spatial()?]),
            Default::RankOnes => Literal::i32s(&vec![1; self.find_ty("x")?.rank()]),
            Default::RankFalse => Literal::bools(&vec![false; self.find_ty("x")?.rank()]),
            Default::ZeroBias => {
                let weight = self.find_ty("weight")?;
                let ty = TensorType { dtype: weight.dtype, shape: vec![*weight.shape.first()?] };
                let bytes = ty.bytes().filter(|&n| n <= shape::MAX_DEFAULT_BYTES)?;
                Literal::from_bytes(ty, vec![0; bytes])
            }
        })
    }

    /// The value of a parameter, its default where it is unbound; `None` where it is neither known nor defaulted.
    fn known(&self, param: &str) -> Option<Literal> {
        if self.has(param) {
            return self.literal(param).cloned();
        }
        self.default_literal(self.spec.param(param)?)
    }

    fn find<T>(
        &self,
        param: &str,
        what: &str,
        read: impl FnOnce(&Literal) -> Option<T>,
    ) -> Result<Option<T>, TypeError> {
        let Some(lit) = self.known(param) else { return Ok(None) };
        read(&lit)
            .map(Some)
            .ok_or_else(|| TypeError::new("argument-value", format!("`{param}` should be {what}, found {}", lit.ty)))
    }

    fn need<T>(&self, param: &str, found: Option<T>) -> Result<T, TypeError> {
        found.ok_or_else(|| {
            let why = if self.has(param) { "is only known at run time" } else { "is missing" };
            TypeError::new("not-constant", format!("`{param}` {why}"))
        })
    }

    /// A vector of integers, or its default; `None` where it is unbound without default, or only known at run time.
    /// A scalar counts as a vector of one.
    pub fn find_ints(&self, param: &str) -> Result<Option<Vec<i64>>, TypeError> {
        self.find(param, "integers", Literal::to_ints)
    }

    /// An integer, or its default; `None` as for [`find_ints`](Self::find_ints).
    pub fn find_int(&self, param: &str) -> Result<Option<i64>, TypeError> {
        self.find(param, "one integer", |lit| match lit.to_ints()?.as_slice() {
            [v] => Some(*v),
            _ => None,
        })
    }

    /// A vector of bools, or its default; `None` as for [`find_ints`](Self::find_ints).
    pub fn find_bools(&self, param: &str) -> Result<Option<Vec<bool>>, TypeError> {
        self.find(param, "bools", Literal::to_bools)
    }

    /// A number, or its default; `None` as for [`find_ints`](Self::find_ints).
    pub fn find_float(&self, param: &str) -> Result<Option<f32>, TypeError> {
        self.find(param, "one number", |lit| {
            let floats = lit.to_floats().or_else(|| Some(lit.to_ints()?.iter().map(|&v| v as f32).collect()))?;
            match floats.as_slice() {
                [v] => Some(*v),
                _ => None,
            }
        })
    }

    /// A string, or its default; `None` as for [`find_ints`](Self::find_ints).
    pub fn find_str(&self, param: &str) -> Result<Option<String>, TypeError> {
        self.find(param, "a string", |lit| lit.to_str().map(str::to_owned))
    }

    /// A vector of integers that must be known.
    pub fn const_ints(&self, param: &str) -> Result<Vec<i64>, TypeError> {
        let found = self.find_ints(param)?;
        self.need(param, found)
    }

    /// An integer that must be known.
    pub fn const_int(&self, param: &str) -> Result<i64, TypeError> {
        let found = self.find_int(param)?;
        self.need(param, found)
    }

    /// A bool that must be known.
    pub fn const_bool(&self, param: &str) -> Result<bool, TypeError> {
        let found = self.find(param, "one bool", |lit| match lit.to_bools()?.as_slice() {
            [v] => Some(*v),
            _ => None,
        })?;
        self.need(param, found)
    }

    /// A number that must be known.
    pub fn const_float(&self, param: &str) -> Result<f32, TypeError> {
        let found = self.find_float(param)?;
        self.need(param, found)
    }

    /// A string that must be known.
    pub fn const_str(&self, param: &str) -> Result<String, TypeError> {
        let found = self.find_str(param)?;
        self.need(param, found)
    }

    /// A known axis of `x`'s rank, counted from the front.
    pub fn const_axis(&self, param: &str, rank: usize) -> Result<usize, TypeError> {
        shape::axis(param, self.const_int(param)?, rank)
    }

    /// The axes a reduction-like parameter names, counted from the front and in increasing order; all where it is unbound.
    pub fn axes(&self, param: &str, rank: usize) -> Result<Vec<usize>, TypeError> {
        if !self.has(param) {
            return Ok((0..rank).collect());
        }
        let mut axes = Vec::new();
        for a in self.const_ints(param)? {
            axes.push(shape::axis(param, a, rank)?);
        }
        axes.sort_unstable();
        if axes.windows(2).any(|w| w[0] == w[1]) {
            return Err(TypeError::new("axis", format!("`{param}` names an axis twice")));
        }
        Ok(axes)
    }

    /// The dimension along an axis of a parameter's argument.
    pub fn dim(&self, param: &str, axis: usize) -> Result<Dim, TypeError> {
        let ty = self.ty(param)?;
        ty.shape
            .get(axis)
            .copied()
            .ok_or_else(|| TypeError::new("rank", format!("`{param}` is {ty}, too few dimensions")))
    }
}
