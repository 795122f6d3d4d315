//! Building functions: ops by name, operands by value or literal, types from the op table.
//!
//! The builder spells a program as Core ML's own tools do: every literal operand becomes a `const` op of its own, named
//! after the op and the parameter, except for the `constexpr` ops of iOS 18, which carry theirs in place; every default that
//! those tools write is written.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{
    About, Arg, Feature, Flexibility, Function, Interface, Literal, Op, Program, TensorType, Value, ValueId, ValueType,
};
use crate::names;
use crate::ops::{self, Call, OpSpec, Opset, Outputs, Place, Scope, TypeError};

/// Why an op or a function could not be built: a mistake of the caller.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No opset of that name.
    #[error("there is no opset `{0}`")]
    Opset(String),
    /// The op table has no such op in this opset.
    #[error("there is no op `{kind}` in {opset}")]
    UnknownOp {
        /// The op's kind.
        kind: String,
        /// The function's opset.
        opset: Opset,
    },
    /// The op has no such parameter.
    #[error("op `{op}`: `{kind}` has no parameter `{param}`")]
    UnknownParam {
        /// The op's name.
        op: String,
        /// The op's kind.
        kind: &'static str,
        /// The parameter.
        param: String,
    },
    /// A required parameter is not bound.
    #[error("op `{op}`: `{kind}` needs `{param}`")]
    MissingParam {
        /// The op's name.
        op: String,
        /// The op's kind.
        kind: &'static str,
        /// The parameter.
        param: &'static str,
    },
    /// The arguments do not fit the op.
    #[error("op `{op}`: {source}")]
    Type {
        /// The op's name.
        op: String,
        /// What does not fit.
        source: TypeError,
    },
    /// The op defines another number of values than was asked for.
    #[error("op `{op}` defines {found} values, not {expected}")]
    OutputCount {
        /// The op's name.
        op: String,
        /// How many it defines.
        found: usize,
        /// How many were expected.
        expected: usize,
    },
    /// The name of an input or output is not one that Core ML accepts, or it is taken.
    #[error("`{0}` cannot name an input or output: it is taken, reserved, or no identifier")]
    PortName(String),
    /// A function without outputs.
    #[error("function `{0}` has no outputs")]
    NoOutputs(String),
}

/// What a parameter is bound to.
#[derive(Clone, Debug)]
pub enum Operand {
    /// A value of the function.
    Value(ValueId),
    /// A literal: a `const` op is made for it where the op does not carry its literals in place.
    Literal(Literal),
    /// Several values, for a variadic parameter.
    Many(Vec<ValueId>),
}

impl From<ValueId> for Operand {
    fn from(id: ValueId) -> Self {
        Operand::Value(id)
    }
}

impl From<Literal> for Operand {
    fn from(lit: Literal) -> Self {
        Operand::Literal(lit)
    }
}

impl From<Vec<ValueId>> for Operand {
    fn from(ids: Vec<ValueId>) -> Self {
        Operand::Many(ids)
    }
}

/// A function under construction.
pub struct FunctionBuilder {
    name: String,
    opset: Opset,
    values: Vec<Value>,
    definitions: Vec<Option<u32>>,
    inputs: Vec<ValueId>,
    ops: Vec<Op>,
    names: BTreeSet<String>,
    flexible: BTreeMap<ValueId, (Vec<usize>, Flexibility)>,
}

impl FunctionBuilder {
    /// An empty function in an opset such as `CoreML8`.
    pub fn new(name: &str, opset: &str) -> Result<Self, BuildError> {
        let opset = Opset::from_name(opset).ok_or_else(|| BuildError::Opset(opset.to_owned()))?;
        Ok(Self {
            name: name.to_owned(),
            opset,
            values: Vec::new(),
            definitions: Vec::new(),
            inputs: Vec::new(),
            ops: Vec::new(),
            names: BTreeSet::new(),
            flexible: BTreeMap::new(),
        })
    }

    /// An input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<ValueId, BuildError> {
        self.port(name, ValueType::Tensor(ty))
    }

    /// An input that accepts several shapes, the default among them: dimensions that vary are unknown in `ty`.
    pub fn flexible_input(
        &mut self,
        name: &str,
        ty: TensorType,
        default: &[usize],
        flexibility: Flexibility,
    ) -> Result<ValueId, BuildError> {
        let id = self.input(name, ty)?;
        self.flexible.insert(id, (default.to_vec(), flexibility));
        Ok(id)
    }

    /// A state.
    pub fn state(&mut self, name: &str, ty: TensorType) -> Result<ValueId, BuildError> {
        self.port(name, ValueType::State(ty))
    }

    fn port(&mut self, name: &str, ty: ValueType) -> Result<ValueId, BuildError> {
        if !names::is_identifier(name) || names::is_reserved(name) || !self.names.insert(name.to_owned()) {
            return Err(BuildError::PortName(name.to_owned()));
        }
        let id = self.value(name.to_owned(), ty, None);
        self.inputs.push(id);
        Ok(id)
    }

    /// A `const` op.
    pub fn constant(&mut self, name: &str, lit: Literal) -> ValueId {
        let name = self.fresh(name);
        let op = self.ops.len() as u32;
        let id = self.value(name.clone(), lit.ty.clone(), Some(op));
        self.ops.push(Op {
            kind: "const".to_owned(),
            name,
            inputs: BTreeMap::new(),
            outputs: vec![id],
            attributes: BTreeMap::from([("val".to_owned(), lit)]),
        });
        id
    }

    /// An op that defines one value, named as the op.
    pub fn op(&mut self, kind: &str, name: &str, operands: &[(&str, Operand)]) -> Result<ValueId, BuildError> {
        match self.ops_multi(kind, name, operands)?.as_slice() {
            [id] => Ok(*id),
            ids => Err(BuildError::OutputCount { op: name.to_owned(), found: ids.len(), expected: 1 }),
        }
    }

    /// An op that defines any number of values: `<name>` where it is one, otherwise `<name>_0`, `<name>_1`, ...
    pub fn ops_multi(
        &mut self,
        kind: &str,
        name: &str,
        operands: &[(&str, Operand)],
    ) -> Result<Vec<ValueId>, BuildError> {
        let spec = ops::spec_in(kind, self.opset)
            .ok_or_else(|| BuildError::UnknownOp { kind: kind.to_owned(), opset: self.opset })?;
        let name = self.fresh(name);
        let mut op = Op {
            kind: kind.to_owned(),
            name: name.clone(),
            inputs: BTreeMap::new(),
            outputs: Vec::new(),
            attributes: BTreeMap::new(),
        };
        for (param, operand) in operands {
            let known = spec.param(param).filter(|p| p.since <= self.opset).ok_or_else(|| {
                BuildError::UnknownParam { op: name.clone(), kind: spec.name, param: (*param).to_owned() }
            })?;
            self.bind(spec, &mut op, known.name, operand.clone());
        }
        let opset = self.opset;
        for param in spec.params.iter().filter(|p| p.since <= opset) {
            if op.inputs.contains_key(param.name) || op.attributes.contains_key(param.name) {
                continue;
            }
            if param.required {
                return Err(BuildError::MissingParam { op: name.clone(), kind: spec.name, param: param.name });
            }
            let written = param.default.is_some_and(ops::Default::written) && self.call(spec, &op).applies(param.name);
            if let Some(lit) = self.call(spec, &op).default_literal(param).filter(|_| written) {
                self.bind(spec, &mut op, param.name, Operand::Literal(lit));
            }
        }
        let types = ops::check_arguments(&self.call(spec, &op))
            .and_then(|()| (spec.infer)(&self.call(spec, &op)))
            .map_err(|source| BuildError::Type { op: name.clone(), source })?;
        if let Outputs::Fixed(n) = spec.outputs
            && n != types.len()
        {
            return Err(BuildError::OutputCount { op: name, found: types.len(), expected: n });
        }
        let index = self.ops.len() as u32;
        let many = types.len() > 1;
        let mut ids = Vec::with_capacity(types.len());
        for (i, ty) in types.into_iter().enumerate() {
            let value = if many { self.fresh(&format!("{name}_{i}")) } else { name.clone() };
            ids.push(self.value(value, ValueType::Tensor(ty), Some(index)));
        }
        op.outputs.clone_from(&ids);
        self.ops.push(op);
        Ok(ids)
    }

    /// Replaces a state.
    pub fn write_state(&mut self, name: &str, state: ValueId, data: ValueId) -> Result<(), BuildError> {
        self.ops_multi("write_state", name, &[("input", state.into()), ("data", data.into())]).map(drop)
    }

    /// The type of a value; of a state, the type it wraps.
    ///
    /// # Panics
    /// If the id is not one of this builder's.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        match &self.values[id.index()].ty {
            ValueType::Tensor(ty) | ValueType::State(ty) => ty,
            other => unreachable!("values are tensors or states, not {other}"),
        }
    }

    /// The finished function, with these outputs under these names.
    pub fn finish(mut self, outputs: &[(&str, ValueId)]) -> Result<Function, BuildError> {
        if outputs.is_empty() {
            return Err(BuildError::NoOutputs(self.name));
        }
        let mut ids: Vec<ValueId> = Vec::with_capacity(outputs.len());
        for &(name, id) in outputs {
            let taken = outputs.iter().filter(|(other, _)| *other == name).count() > 1
                || self.inputs.iter().any(|i| self.values[i.index()].name == name);
            if !names::is_identifier(name) || names::is_reserved(name) || taken {
                return Err(BuildError::PortName(name.to_owned()));
            }
            // An input handed through, or one value under two names, needs a value of its own.
            let id = match self.inputs.contains(&id) || ids.contains(&id) {
                true => self.op("identity", name, &[("x", id.into())])?,
                false => id,
            };
            self.rename(id, name);
            ids.push(id);
        }
        let flexible = std::mem::take(&mut self.flexible);
        let mut function = Function {
            name: self.name,
            opset: self.opset.name().to_owned(),
            values: self.values,
            inputs: self.inputs,
            ops: self.ops,
            outputs: ids,
            interface: Interface::default(),
        };
        function.interface = derive_interface(&function);
        for (id, (shape, flexibility)) in flexible {
            let name = &function.values[id.index()].name;
            if let Some(feature) = function.interface.inputs.iter_mut().find(|f| f.name == *name) {
                feature.shape = Some(shape);
                feature.flexibility = flexibility;
            }
        }
        Ok(function)
    }

    /// Gives `id` a name, moving whatever internal value has it out of the way.
    fn rename(&mut self, id: ValueId, name: &str) {
        if self.values[id.index()].name == name {
            return;
        }
        if self.names.contains(name) {
            let other = self.fresh(name);
            for value in self.values.iter_mut().filter(|v| v.name == name) {
                value.name.clone_from(&other);
            }
        }
        self.names.insert(name.to_owned());
        self.values[id.index()].name = name.to_owned();
    }

    fn call<'a>(&'a self, spec: &'static OpSpec, op: &'a Op) -> Call<'a> {
        let scope = Scope { values: &self.values, ops: &self.ops, definitions: &self.definitions };
        Call::new(spec, op, scope, self.opset)
    }

    fn bind(&mut self, spec: &OpSpec, op: &mut Op, param: &str, operand: Operand) {
        let args = match operand {
            Operand::Literal(lit) if spec.place == Place::Attributes => {
                op.attributes.insert(param.to_owned(), lit);
                return;
            }
            Operand::Literal(lit) if spec.is_constant() => vec![Arg::Literal(lit)],
            Operand::Literal(lit) => vec![Arg::Value(self.constant(&format!("{}_{param}", op.name), lit))],
            Operand::Value(id) => vec![Arg::Value(id)],
            Operand::Many(ids) => ids.into_iter().map(Arg::Value).collect(),
        };
        op.inputs.insert(param.to_owned(), args);
    }

    fn value(&mut self, name: String, ty: ValueType, definition: Option<u32>) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { name, ty });
        self.definitions.push(definition);
        id
    }

    /// An acceptable name that no other value has.
    fn fresh(&mut self, name: &str) -> String {
        let base = names::sanitised(name, "op_");
        let mut name = base.clone();
        let mut n = 0u32;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{base}_{n}");
        }
        name
    }
}

/// What the model description must say about a function: its inputs, states and outputs, with their types.
pub(crate) fn derive_interface(function: &Function) -> Interface {
    let mut interface = Interface::default();
    for &id in &function.inputs {
        let value = function.value(id);
        match &value.ty {
            ValueType::Tensor(ty) => interface.inputs.push(feature(&value.name, ty)),
            ValueType::State(ty) => interface.states.push(feature(&value.name, ty)),
            _ => {}
        }
    }
    for &id in &function.outputs {
        let value = function.value(id);
        if let ValueType::Tensor(ty) = &value.ty {
            interface.outputs.push(feature(&value.name, ty));
        }
    }
    interface
}

fn feature(name: &str, ty: &TensorType) -> Feature {
    Feature {
        name: name.to_owned(),
        dtype: ty.dtype,
        // A scalar has no shape to speak of, and the format cannot tell it from an unknown one.
        shape: ty.fixed_shape().filter(|s| !s.is_empty()),
        flexibility: Flexibility::Fixed,
        optional: false,
        default: None,
    }
}

/// Ops of a function as a function of their own: `entering` are the values and states that they take from outside, `leaving` the
/// values that others take of them.
///
/// # Panics
/// If the ops take a value that neither enters nor is theirs: that is a bug of the caller, never of an input.
pub fn part(
    function: &Function,
    name: &str,
    ops: &BTreeSet<usize>,
    entering: &[ValueId],
    leaving: &[ValueId],
) -> Function {
    let mut values: Vec<Value> = Vec::new();
    let mut number: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let made = ops.iter().flat_map(|&op| function.ops[op].outputs.iter().copied());
    for id in entering.iter().copied().chain(made) {
        number.insert(id, ValueId(values.len() as u32));
        values.push(function.value(id).clone());
    }
    let body = ops.iter().map(|&op| {
        let mut op = function.ops[op].clone();
        op.outputs.iter_mut().for_each(|id| *id = number[id]);
        for arg in op.inputs.values_mut().flatten() {
            if let Arg::Value(id) = arg {
                *id = number[id];
            }
        }
        op
    });
    let mut part = Function {
        name: name.to_owned(),
        opset: function.opset.clone(),
        ops: body.collect(),
        inputs: entering.iter().map(|id| number[id]).collect(),
        outputs: leaving.iter().map(|id| number[id]).collect(),
        values,
        interface: Interface::default(),
    };
    part.interface = derive_interface(&part);
    part
}

/// A program of these functions: a single `main`, or the multifunction form. The first function is the default one.
pub fn program(mut functions: Vec<Function>, metadata: BTreeMap<String, String>) -> Program {
    let default_function = functions.first().map(|f| f.name.clone()).unwrap_or_default();
    let multifunction = functions.len() != 1 || default_function != "main";
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    let newest = functions.iter().filter_map(|f| Opset::from_name(&f.opset)).max().unwrap_or(Opset::CoreMl8);
    Program {
        spec_version: newest.spec_version(),
        functions,
        default_function,
        multifunction,
        metadata,
        about: About::default(),
        attributes: BTreeMap::new(),
    }
}
