//! The validator: what a program must be before anyone writes or executes it.
//!
//! Most of these rules no tool outside Apple's checks. The invariants of a [`Valid`] program:
//!
//! - **Program.** A specification version that is known, and new enough for states, several functions, fp16 ports and every
//!   op; functions in name order with one name each, among them the default one; one function called `main` unless the
//!   multifunction form is used; no attribute but `buildInfo`.
//! - **SSA.** Every value is defined once, by an input or by one op, before it is used. Names are unique in their function,
//!   and are identifiers that Core ML does not reserve.
//! - **Ops.** Every op is in the op table and in the function's opset; binds every required parameter and no unknown one;
//!   states where states belong; constants where constants belong; element types the op takes; and defines values of exactly
//!   the types that its type rule gives, where an unknown dimension agrees with anything.
//! - **Literals.** As many bytes as the type says; blobs inside of their file; as many non-zero values as mask bits.
//!   In-place literals only where `constexpr` ops have them, and blobs in place nowhere else.
//! - **States.** Shapes known, one type for each name in all functions; a state is read and written by `read_state` and `write_state` only.
//! - **Interface.** The description names exactly the function's inputs, states and outputs, with their element types, and
//!   with shapes that agree; flexible shapes exactly where dimensions are unknown, with the default among them.
//!
//! Two modes share the rules. [`validate`] refuses a program that breaks any: it guards what we write. [`validate_foreign`]
//! accepts what coremltools' loader accepts: rules which that loader does not have become warnings, and the program is
//! repaired where the repair is certain, so that a `Valid` program keeps its promises in either mode: the function's own
//! types replace a description that contradicts them, a `const`'s value settles its type, duplicates are renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use crate::build::derive_interface;
use crate::diag::{Diagnostic, Report, Severity};
use crate::ir::{
    Arg, Dim, Dtype, Feature, Flexibility, Function, Interface, Literal, Op, Payload, Program, TensorType, ValueId,
    ValueType,
};
use crate::names;
use crate::ops::{self, Call, OpSpec, Opset, Outputs, Place, Scope, shape};
use crate::text::op_line;

/// A program that the validator accepted, with what it resolved on the way.
#[derive(Clone)]
pub struct Valid {
    program: Program,
    facts: Vec<Facts>,
    strict: bool,
    warnings: Vec<Diagnostic>,
}

/// What is known of a function: for each value the op that defines it, for each op its row of the op table.
#[derive(Clone)]
struct Facts {
    opset: Opset,
    definitions: Vec<Option<u32>>,
    specs: Vec<&'static OpSpec>,
}

impl std::fmt::Debug for Valid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Valid").field("program", &self.program).field("strict", &self.strict).finish_non_exhaustive()
    }
}

impl Deref for Valid {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl Valid {
    /// The program, to be changed and validated again.
    pub fn into_program(self) -> Program {
        self.program
    }

    /// Whether it passed the strict rules, which is what may be written.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// What was accepted with a warning.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// The row of the op table for op `op` of function `function`.
    pub fn spec(&self, function: usize, op: usize) -> &'static OpSpec {
        self.facts[function].specs[op]
    }

    /// The values and ops of a function, as calls see them.
    pub fn scope(&self, function: usize) -> Scope<'_> {
        let f = &self.program.functions[function];
        Scope { values: &f.values, ops: &f.ops, definitions: &self.facts[function].definitions }
    }

    /// Op `op` of function `function`, with its arguments.
    pub fn call(&self, function: usize, op: usize) -> Call<'_> {
        let facts = &self.facts[function];
        let f = &self.program.functions[function];
        Call::new(facts.specs[op], &f.ops[op], self.scope(function), facts.opset)
    }

    /// The literal of a value that a `const` op defines.
    pub fn constant(&self, function: usize, id: ValueId) -> Option<&Literal> {
        self.scope(function).constant(id)
    }

    /// The index of the op that defines a value; `None` for function inputs.
    pub fn definition(&self, function: usize, id: ValueId) -> Option<usize> {
        self.facts[function].definitions.get(id.index()).copied().flatten().map(|op| op as usize)
    }
}

/// Accepts a program that breaks no rule: what our writer may write.
pub fn validate(program: Program) -> Result<Valid, Report> {
    let mut checker = Checker::new(false);
    let (program, facts) = checker.run(program);
    checker.finish(program, facts)
}

/// Accepts what coremltools' loader accepts, repaired where that is certain, with a warning for every rule of ours it broke.
pub fn validate_foreign(program: Program) -> Result<(Valid, Vec<Diagnostic>), Report> {
    let mut checker = Checker::new(true);
    let (program, facts) = checker.run(program);
    let valid = checker.finish(program, facts)?;
    let warnings = valid.warnings.clone();
    Ok((valid, warnings))
}

/// How many errors, and how many warnings, are kept: a file of nothing but mistakes would make millions.
const MAX_FINDINGS: usize = 500;

/// Where a finding is.
#[derive(Clone, Copy)]
enum At<'a> {
    Program,
    Function(&'a Function),
    Op(&'a Function, usize),
}

struct Checker {
    lenient: bool,
    found: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Checker {
    fn new(lenient: bool) -> Self {
        Self { lenient, found: Vec::new(), errors: 0, warnings: 0 }
    }

    fn finish(self, program: Program, facts: Vec<Facts>) -> Result<Valid, Report> {
        if self.errors > 0 {
            return Err(Report { diagnostics: self.found });
        }
        Ok(Valid { program, facts, strict: !self.lenient, warnings: self.found })
    }

    fn push(&mut self, severity: Severity, at: At<'_>, rule: &'static str, message: String) {
        let count = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count > MAX_FINDINGS {
            return;
        }
        let (function, op) = match at {
            At::Program => (None, None),
            At::Function(f) => (Some(f.name.clone()), None),
            At::Op(f, i) => (Some(f.name.clone()), f.ops.get(i).map(|op| (i, op_line(f, op)))),
        };
        self.found.push(Diagnostic { rule, severity, function, op, message });
    }

    /// A rule of the format: broken, the program means nothing.
    fn error(&mut self, at: At<'_>, rule: &'static str, message: impl Into<String>) {
        self.push(Severity::Error, at, rule, message.into());
    }

    /// A rule that coremltools' loader does not have.
    fn ours(&mut self, at: At<'_>, rule: &'static str, message: impl Into<String>) {
        let severity = if self.lenient { Severity::Warning } else { Severity::Error };
        self.push(severity, at, rule, message.into());
    }

    /// A matter of taste.
    fn warn(&mut self, at: At<'_>, rule: &'static str, message: impl Into<String>) {
        self.push(Severity::Warning, at, rule, message.into());
    }

    fn run(&mut self, mut program: Program) -> (Program, Vec<Facts>) {
        let newest = self.program(&program);
        let mut facts = Vec::with_capacity(program.functions.len());
        for f in &mut program.functions {
            // An index that points nowhere would make everything after it meaningless.
            let Some(definitions) = self.ids(f) else { continue };
            if self.lenient {
                self.repair(f, &definitions);
            }
            self.names(f);
            let opset = self.opset(f, newest);
            let specs = self.ops(f, &definitions, opset, newest);
            self.ports(f, program.spec_version);
            if self.lenient {
                self.repair_interface(f);
            } else {
                self.interface(f);
            }
            facts.push(Facts { opset, definitions, specs });
        }
        (program, facts)
    }

    fn program(&mut self, p: &Program) -> Opset {
        let at = At::Program;
        let newest = Opset::from_spec_version(p.spec_version).unwrap_or_else(|| {
            self.error(at, "spec-version", format!("specification version {}, expected 6 to 10", p.spec_version));
            Opset::CoreMl9
        });
        if p.functions.is_empty() {
            self.error(at, "no-functions", "the program has no functions");
        }
        for pair in p.functions.windows(2) {
            if pair[0].name == pair[1].name {
                self.error(at, "duplicate-function", format!("two functions are called `{}`", pair[0].name));
            } else if pair[0].name > pair[1].name {
                self.error(at, "function-order", format!("`{}` should come before `{}`", pair[1].name, pair[0].name));
            }
        }
        if p.function(&p.default_function).is_none() {
            self.error(at, "default-function", format!("there is no function `{}`", p.default_function));
        }
        if p.multifunction && newest < Opset::CoreMl8 {
            self.error(at, "multifunction", format!("several functions need version 9, this is {}", p.spec_version));
        }
        if !p.multifunction && p.functions.len() > 1 {
            self.error(at, "multifunction", format!("{} functions in the single-function form", p.functions.len()));
        }
        if !p.multifunction && p.functions.iter().any(|f| f.name != "main") {
            self.ours(at, "function-name", "the only function should be called `main`");
        }
        for f in &p.functions {
            if !names::is_identifier(&f.name) {
                self.ours(at, "identifier", format!("function name {:?} is no identifier", f.name));
            }
        }
        self.shared_states(p);
        for (key, lit) in &p.attributes {
            if key != "buildInfo" {
                self.error(at, "program-attribute", format!("attribute `{key}`: programs have none but `buildInfo`"));
            }
            if let Err(message) = literal_shape(lit) {
                self.error(at, "literal", format!("attribute `{key}`: {message}"));
            }
        }
        newest
    }

    /// Functions share a state by its name, so it is one state.
    fn shared_states(&mut self, p: &Program) {
        let mut states: BTreeMap<&str, (&str, &TensorType)> = BTreeMap::new();
        for f in &p.functions {
            for value in f.inputs.iter().filter_map(|id| f.values.get(id.index())) {
                let ValueType::State(ty) = &value.ty else { continue };
                let (first, other) = states.entry(&value.name).or_insert((&f.name, ty));
                if *other != ty {
                    let message = format!("state `{}` is {other} in `{first}`, {ty} in `{}`", value.name, f.name);
                    self.ours(At::Program, "shared-state", message);
                }
            }
        }
    }

    /// Checks every index, and that every value is defined once and before its uses; the op that defines each value.
    fn ids(&mut self, f: &Function) -> Option<Vec<Option<u32>>> {
        let before = self.errors;
        let mut definitions: Vec<Option<Option<u32>>> = vec![None; f.values.len()];
        let mut define =
            |checker: &mut Self, at: At<'_>, id: ValueId, by: Option<u32>| match definitions.get_mut(id.index()) {
                None => checker.error(at, "undefined-value", format!("there is no value {}", id.0)),
                Some(slot @ None) => *slot = Some(by),
                Some(Some(_)) => {
                    checker.error(at, "redefinition", format!("`{}` is defined twice", f.values[id.index()].name));
                }
            };
        for &id in &f.inputs {
            define(self, At::Function(f), id, None);
        }
        for (i, op) in f.ops.iter().enumerate() {
            for &id in &op.outputs {
                define(self, At::Op(f, i), id, Some(i as u32));
            }
        }
        for (i, op) in f.ops.iter().enumerate() {
            for (param, args) in &op.inputs {
                for arg in args {
                    let Arg::Value(id) = arg else { continue };
                    let message = match definitions.get(id.index()) {
                        None => format!("`{param}` is bound to value {}, which does not exist", id.0),
                        Some(None) => format!("`{param}` is bound to `{}`, which nothing defines", f.value(*id).name),
                        Some(Some(Some(by))) if *by as usize >= i => {
                            format!("`{param}` is bound to `{}`, which op {by} defines later", f.value(*id).name)
                        }
                        Some(Some(_)) => continue,
                    };
                    self.error(At::Op(f, i), "undefined-value", message);
                }
            }
        }
        for id in &f.outputs {
            if definitions.get(id.index()).copied().flatten().is_none() {
                self.error(At::Function(f), "undefined-value", format!("output value {} is not defined", id.0));
            }
        }
        for (value, by) in f.values.iter().zip(&definitions) {
            if by.is_none() {
                self.error(
                    At::Function(f),
                    "undefined-value",
                    format!("value `{}` is not defined by anything", value.name),
                );
            }
        }
        (self.errors == before).then(|| definitions.into_iter().map(Option::flatten).collect())
    }

    /// Settles what the loader leaves open and only one reading is possible for.
    fn repair(&mut self, f: &mut Function, definitions: &[Option<u32>]) {
        // Loaders bind a name to its latest definition, which the ids have kept: a new name changes nothing.
        let mut ports: Vec<bool> = vec![false; f.values.len()];
        for id in f.inputs.iter().chain(&f.outputs) {
            ports[id.index()] = true;
        }
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for (value, _) in f.values.iter().zip(&ports).filter(|(_, port)| **port) {
            taken.insert(value.name.clone());
        }
        let mut counters: BTreeMap<String, u32> = BTreeMap::new();
        for i in 0..f.values.len() {
            if ports[i] || taken.insert(f.values[i].name.clone()) {
                continue;
            }
            let old = f.values[i].name.clone();
            let n = counters.entry(old.clone()).or_insert(0);
            let new = loop {
                *n += 1;
                let candidate = format!("{old}_{n}");
                if taken.insert(candidate.clone()) {
                    break candidate;
                }
            };
            let at = definitions[i].map_or(At::Function(f), |op| At::Op(f, op as usize));
            self.warn(at, "duplicate-name", format!("`{old}` is defined more than once; this one is now `{new}`"));
            f.values[i].name = new;
        }
        for i in 0..f.ops.len() {
            if f.ops[i].name.is_empty() {
                self.warn(At::Op(f, i), "op-name", "the op has no `name`");
                let name = f.ops[i].outputs.first().map_or(f.ops[i].kind.clone(), |id| f.value(*id).name.clone());
                f.ops[i].name = name;
            }
            let value_type = f.ops[i].attributes.get("val").map(|lit| lit.ty.clone());
            if let ("const", Some(ty), [id]) = (f.ops[i].kind.as_str(), value_type, f.ops[i].outputs.as_slice()) {
                let id = *id;
                if f.value(id).ty != ty {
                    let message = format!("declared as {}, the value is {ty}", f.value(id).ty);
                    self.warn(At::Op(f, i), "const-type", message);
                    f.values[id.index()].ty = ty;
                }
            }
        }
    }

    fn names(&mut self, f: &Function) {
        let mut seen = BTreeSet::new();
        for value in &f.values {
            if !names::is_identifier(&value.name) {
                self.ours(At::Function(f), "identifier", format!("value name {:?} is no identifier", value.name));
            } else if names::is_reserved(&value.name) {
                self.ours(At::Function(f), "identifier", format!("value name `{}` is reserved", value.name));
            }
            if !seen.insert(value.name.as_str()) {
                self.error(At::Function(f), "duplicate-name", format!("`{}` is defined more than once", value.name));
            }
        }
    }

    fn opset(&mut self, f: &Function, newest: Opset) -> Opset {
        match Opset::from_name(&f.opset) {
            Some(opset) => {
                if opset > newest {
                    let message =
                        format!("{opset} needs version {}, this is {}", opset.spec_version(), newest.spec_version());
                    self.ours(At::Function(f), "opset", message);
                }
                // Loaders go by the version.
                opset.min(newest)
            }
            None => {
                self.error(At::Function(f), "opset", format!("opset {:?} is not known", f.opset));
                newest
            }
        }
    }

    fn ops(&mut self, f: &Function, definitions: &[Option<u32>], opset: Opset, newest: Opset) -> Vec<&'static OpSpec> {
        let scope = Scope { values: &f.values, ops: &f.ops, definitions };
        for value in &f.values {
            if let Err(message) = value_type(&value.ty) {
                self.error(At::Function(f), "type", format!("`{}`: {message}", value.name));
            }
        }
        let mut specs = Vec::with_capacity(f.ops.len());
        for (i, op) in f.ops.iter().enumerate() {
            if let Some(spec) = self.op(f, i, op, scope, opset, newest) {
                specs.push(spec);
            }
        }
        specs
    }

    fn op(
        &mut self,
        f: &Function,
        i: usize,
        op: &Op,
        scope: Scope<'_>,
        opset: Opset,
        newest: Opset,
    ) -> Option<&'static OpSpec> {
        let at = At::Op(f, i);
        if op.name.is_empty() {
            self.ours(at, "op-name", "the op has no `name`");
        }
        let Some(any) = ops::spec(&op.kind) else {
            self.error(at, "unknown-op", format!("there is no op `{}`", op.kind));
            return None;
        };
        let opset = opset.min(newest);
        let (spec, opset) = match (ops::spec_in(&op.kind, opset), ops::spec_in(&op.kind, newest)) {
            (Some(spec), _) => (spec, opset),
            (None, Some(spec)) => {
                self.ours(
                    at,
                    "op-newer-than-opset",
                    format!("`{}` is in {}, the function in {opset}", op.kind, spec.opset),
                );
                (spec, newest)
            }
            (None, None) => {
                let message = format!("`{}` is in {}, the package in {newest}", op.kind, any.opset);
                self.error(at, "op-newer-than-package", message);
                return None;
            }
        };
        let before = self.errors;
        self.bindings(at, op, spec, opset);
        let literals = op.inputs.values().flatten().filter_map(|arg| match arg {
            Arg::Literal(lit) => Some(lit),
            Arg::Value(_) => None,
        });
        for lit in literals.chain(op.attributes.values()) {
            if let Err(message) = literal_shape(lit) {
                self.error(at, "literal", message);
            }
        }
        if self.errors > before {
            return Some(spec);
        }
        let call = Call::new(spec, op, scope, opset);
        match ops::check_arguments(&call).and_then(|()| (spec.infer)(&call)) {
            Ok(types) => self.results(f, i, op, spec, &types),
            Err(e) => self.error(at, e.rule, e.message),
        }
        if let Err((mask, data)) = popcount(&call) {
            self.error(at, "sparse-count", format!("the mask has {mask} ones, there are {data} non-zero values"));
        }
        Some(spec)
    }

    /// Which parameters are bound, and how.
    fn bindings(&mut self, at: At<'_>, op: &Op, spec: &'static OpSpec, opset: Opset) {
        let known = |name: &str| spec.param(name).filter(|p| p.since <= opset);
        for (name, args) in &op.inputs {
            if known(name).is_none() {
                self.error(at, "unknown-input", format!("`{}` has no parameter `{name}` in {opset}", op.kind));
            }
            if spec.place == Place::Attributes {
                match spec.name {
                    "const" => self.error(at, "const-input", format!("`{name}`: a `const` has no inputs")),
                    _ => self.ours(at, "constexpr-place", format!("`{name}` should be an attribute in {opset}")),
                }
            }
            for arg in args {
                match arg {
                    Arg::Literal(lit) if !spec.is_constant() => {
                        if matches!(lit.payload, Payload::Blob(_)) {
                            let message = format!("`{name}` is a weight in place, which only `constexpr` ops may have");
                            self.error(at, "inline-blob", message);
                        } else {
                            self.ours(
                                at,
                                "inline-literal",
                                format!("`{name}` is a literal in place, not a `const` op"),
                            );
                        }
                    }
                    _ => {}
                }
            }
        }
        for name in op.attributes.keys() {
            let expected = spec.is_constant() && known(name).is_some();
            if !expected {
                self.error(at, "op-attribute", format!("attribute `{name}`: `{}` has no such", op.kind));
            } else if spec.place == Place::Inputs {
                self.ours(at, "constexpr-place", format!("`{name}` should be an input in {opset}"));
            }
        }
        for param in spec.params.iter().filter(|p| p.since <= opset) {
            if op.inputs.contains_key(param.name) || op.attributes.contains_key(param.name) {
                continue;
            }
            if param.required {
                self.error(at, "missing-input", format!("`{}` is missing", param.name));
            } else if param.default.is_some_and(ops::Default::written) && !optional_absence(op, param.name) {
                self.warn(at, "missing-default", format!("`{}` is left to its default", param.name));
            }
        }
    }

    /// The declared results against the inferred ones.
    fn results(&mut self, f: &Function, i: usize, op: &Op, spec: &OpSpec, types: &[TensorType]) {
        let at = At::Op(f, i);
        let count = match spec.outputs {
            Outputs::Fixed(n) => n,
            Outputs::Varying => types.len(),
        };
        if op.outputs.len() != count {
            self.error(
                at,
                "output-count",
                format!("{} values are defined, `{}` gives {count}", op.outputs.len(), op.kind),
            );
            return;
        }
        // What a constant is, is known: a dimension left open would be another type than the value's.
        let (rule, agree): (_, fn(&TensorType, &TensorType) -> bool) = match op.kind.as_str() {
            "const" => ("const-type", TensorType::eq),
            _ => ("output-type", shape::types_agree),
        };
        for (&id, ty) in op.outputs.iter().zip(types) {
            let value = f.value(id);
            match &value.ty {
                ValueType::Tensor(declared) if agree(declared, ty) => {}
                declared => {
                    self.error(at, rule, format!("`{}` is declared as {declared}, the op gives {ty}", value.name));
                }
            }
        }
    }

    /// Inputs, states and outputs, by the function's own account.
    fn ports(&mut self, f: &Function, version: i32) {
        let at = At::Function(f);
        for &id in &f.inputs {
            let value = f.value(id);
            match &value.ty {
                ValueType::Tensor(ty) => {
                    if ty.rank() == 0 {
                        self.ours(at, "input-rank", format!("input `{}` is a scalar; inputs have a shape", value.name));
                    }
                    self.port(f, "input", &value.name, ty, version);
                }
                ValueType::State(ty) => {
                    if version < 9 {
                        self.error(at, "state", format!("state `{}` needs version 9, this is {version}", value.name));
                    }
                    if ty.fixed_shape().is_none_or(|s| s.contains(&0)) {
                        self.error(at, "state", format!("state `{}` is {ty}: its shape must be known", value.name));
                    }
                    if !matches!(ty.dtype, Dtype::F16) {
                        self.ours(at, "state", format!("state `{}` is {ty}: states are fp16", value.name));
                    }
                }
                other => self.error(at, "input-type", format!("input `{}` is {other}", value.name)),
            }
        }
        if f.outputs.is_empty() {
            self.ours(at, "no-outputs", "the function has no outputs");
        }
        let mut seen = BTreeSet::new();
        for &id in &f.outputs {
            let value = f.value(id);
            if !seen.insert(id) {
                self.ours(at, "duplicate-output", format!("`{}` is an output twice", value.name));
            }
            match &value.ty {
                ValueType::Tensor(ty) => self.port(f, "output", &value.name, ty, version),
                other => self.error(at, "output-type", format!("output `{}` is {other}", value.name)),
            }
        }
    }

    fn port(&mut self, f: &Function, kind: &str, name: &str, ty: &TensorType, version: i32) {
        let since = match ty.dtype {
            Dtype::F32 | Dtype::I32 | Dtype::F64 => 6,
            Dtype::F16 => 7,
            Dtype::I8 => 10,
            other => {
                return self.ours(
                    At::Function(f),
                    "port-dtype",
                    format!("{kind} `{name}` is {other}, which no array of the description can be"),
                );
            }
        };
        if version < since {
            self.ours(At::Function(f), "port-dtype", format!("{kind} `{name}` is {ty}, which needs version {since}"));
        }
    }

    /// The description against the function.
    fn interface(&mut self, f: &Function) {
        for problem in interface_problems(f) {
            self.error(At::Function(f), problem.rule, problem.message);
        }
    }

    /// The function's own account wins over a description that contradicts it.
    fn repair_interface(&mut self, f: &mut Function) {
        let problems = interface_problems(f);
        if problems.is_empty() {
            return;
        }
        let derived = derive_interface(f);
        for problem in problems {
            self.warn(At::Function(f), problem.rule, format!("{}; the function's own types count", problem.message));
        }
        let keep = |kind: Kind, old: &[Feature], new: Vec<Feature>| -> Vec<Feature> {
            new.into_iter()
                .map(|n| match old.iter().find(|o| o.name == n.name) {
                    Some(o) if feature_problem(kind, o, &tensor_of(&n, f)).is_none() => o.clone(),
                    _ => n,
                })
                .collect()
        };
        f.interface = Interface {
            inputs: keep(Kind::Input, &f.interface.inputs, derived.inputs),
            outputs: keep(Kind::Output, &f.interface.outputs, derived.outputs),
            states: keep(Kind::State, &f.interface.states, derived.states),
        };
    }
}

/// Defaults whose absence is forced by another parameter.
fn optional_absence(op: &Op, param: &str) -> bool {
    match (op.kind.as_str(), param) {
        // The type of indices that are not returned.
        ("topk", "output_indices_dtype") => op.inputs.contains_key("return_indices"),
        _ => false,
    }
}

/// The tensor type behind a feature that was derived from the function.
fn tensor_of(feature: &Feature, f: &Function) -> TensorType {
    let named = |id: &&ValueId| f.value(**id).name == feature.name;
    match f.inputs.iter().chain(&f.outputs).find(named).map(|id| &f.value(*id).ty) {
        Some(ValueType::Tensor(ty) | ValueType::State(ty)) => ty.clone(),
        _ => TensorType::new(feature.dtype, feature.shape.as_deref().unwrap_or_default()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Output,
    State,
}

struct Problem {
    rule: &'static str,
    message: String,
}

fn interface_problems(f: &Function) -> Vec<Problem> {
    let mut problems = Vec::new();
    let of = |ids: &[ValueId], state: bool| -> Vec<(String, TensorType)> {
        let named = ids.iter().map(|&id| f.value(id));
        named
            .filter_map(|v| match (&v.ty, state) {
                (ValueType::Tensor(t), false) | (ValueType::State(t), true) => Some((v.name.clone(), t.clone())),
                _ => None,
            })
            .collect()
    };
    for (kind, what, features, own) in [
        (Kind::Input, "input", &f.interface.inputs, of(&f.inputs, false)),
        (Kind::State, "state", &f.interface.states, of(&f.inputs, true)),
        (Kind::Output, "output", &f.interface.outputs, of(&f.outputs, false)),
    ] {
        for (name, ty) in &own {
            match features.iter().filter(|d| d.name == *name).collect::<Vec<_>>().as_slice() {
                [] => problems.push(Problem {
                    rule: "description-name",
                    message: format!("{what} `{name}` is missing in the description"),
                }),
                [feature] => {
                    if let Some(message) = feature_problem(kind, feature, ty) {
                        let rule = if feature.dtype == ty.dtype { "description-shape" } else { "description-dtype" };
                        problems.push(Problem { rule, message: format!("{what} `{name}` {message}") });
                    }
                }
                _ => problems.push(Problem {
                    rule: "description-name",
                    message: format!("{what} `{name}` is in the description more than once"),
                }),
            }
        }
        for feature in features.iter().filter(|d| own.iter().all(|(name, _)| *name != d.name)) {
            problems.push(Problem {
                rule: "description-name",
                message: format!("{what} `{}` of the description is none of the function's", feature.name),
            });
        }
    }
    problems
}

/// What is wrong with a feature for a value of type `ty`.
fn feature_problem(kind: Kind, feature: &Feature, ty: &TensorType) -> Option<String> {
    if feature.dtype != ty.dtype {
        return Some(format!("is {} in the description, {ty} in the function", feature.dtype));
    }
    let fits = |shape: &[usize]| {
        shape.len() == ty.rank() && shape.iter().zip(&ty.shape).all(|(&n, d)| d.fixed().is_none_or(|d| d == n))
    };
    if let Some(shape) = &feature.shape {
        if !fits(shape) {
            return Some(format!("is {shape:?} in the description, {ty} in the function"));
        }
        if shape.is_empty() {
            return Some("has an empty shape in the description, where a scalar has none".to_owned());
        }
        if shape.contains(&0) {
            return Some(format!("has shape {shape:?} in the description: an empty dimension"));
        }
    }
    let open = ty.shape.contains(&Dim::Unknown);
    match (kind, &feature.flexibility) {
        (Kind::Output, Flexibility::Fixed) => {}
        (_, Flexibility::Fixed) if feature.shape.is_none() => {
            return Some("has no shape in the description".to_owned());
        }
        (_, Flexibility::Fixed) if open => {
            return Some(format!("is {ty} in the function, and no flexible shape in the description"));
        }
        (_, Flexibility::Fixed) => {}
        (Kind::State, _) => return Some("is a state with a flexible shape".to_owned()),
        (_, Flexibility::Enumerated(shapes)) => {
            if let Some(bad) = shapes.iter().find(|s| !fits(s)) {
                return Some(format!("may be {bad:?} by the description, is {ty} in the function"));
            }
            if feature.shape.as_ref().is_some_and(|d| !shapes.contains(d)) {
                return Some("has a default shape that is not among the enumerated".to_owned());
            }
        }
        (_, Flexibility::Range(bounds)) => {
            if bounds.len() != ty.rank() {
                return Some(format!("has {} ranges in the description, is {ty} in the function", bounds.len()));
            }
            for (i, (&(low, high), d)) in bounds.iter().zip(&ty.shape).enumerate() {
                if high.is_some_and(|h| h < low) || d.fixed().is_some_and(|n| low != n || high != Some(n)) {
                    return Some(format!("has a range along axis {i} that does not fit {ty}"));
                }
                let default = feature.shape.as_ref().map(|s| s[i]);
                if default.is_some_and(|n| n < low || high.is_some_and(|h| n > h)) {
                    return Some(format!("has a default shape outside of its range along axis {i}"));
                }
            }
        }
    }
    if kind == Kind::State && feature.optional {
        return Some("is an optional state".to_owned());
    }
    None
}

fn tensor_type(ty: &TensorType) -> Result<(), String> {
    if ty.rank() > shape::MAX_RANK {
        return Err(format!("rank {}, at most {} is supported", ty.rank(), shape::MAX_RANK));
    }
    if let Some(n) = ty.shape.iter().filter_map(|d| d.fixed()).find(|&n| n > shape::MAX_DIM) {
        return Err(format!("a dimension of {n}, at most {} is supported", shape::MAX_DIM));
    }
    if ty.fixed_shape().is_some() && ty.bytes().is_none_or(|n| i64::try_from(n).is_err()) {
        return Err(format!("{ty} has too many elements"));
    }
    Ok(())
}

fn value_type(ty: &ValueType) -> Result<(), String> {
    match ty {
        ValueType::Tensor(t) | ValueType::State(t) => tensor_type(t),
        other => Err(format!("{other} is not supported as the type of a value")),
    }
}

/// Whether a literal's payload is what its type says.
fn literal_shape(lit: &Literal) -> Result<(), String> {
    match (&lit.ty, &lit.payload) {
        (ValueType::Tensor(ty), payload) => {
            tensor_type(ty)?;
            let n = ty.elements().ok_or_else(|| format!("a literal of type {ty}: every dimension must be known"))?;
            match payload {
                Payload::Strings(s) if ty.dtype == Dtype::String && s.len() == n => Ok(()),
                Payload::Strings(s) => Err(format!("{} strings for {ty}", s.len())),
                _ if ty.dtype == Dtype::String => Err(format!("{ty} must hold strings")),
                Payload::Aggregate(_) => Err(format!("{ty} cannot hold other literals")),
                Payload::Deferred(_) => Ok(()),
                Payload::Bytes(_) | Payload::Blob(_) => match lit.bytes().map(<[u8]>::len) {
                    Some(len) if ty.bytes() == Some(len) => Ok(()),
                    Some(len) => Err(format!("{len} bytes for {ty}")),
                    None => Err(format!("the weight of {ty} lies outside of its file")),
                },
            }
        }
        (ValueType::State(_), _) => Err("a state cannot be a literal".to_owned()),
        (ty, Payload::Aggregate(items)) => {
            let expected = match ty {
                ValueType::List(_, n) => n.fixed(),
                ValueType::Tuple(types) => Some(types.len()),
                _ => None,
            };
            if expected.is_some_and(|n| n != items.len()) {
                return Err(format!("{} elements for {ty}", items.len()));
            }
            if matches!(ty, ValueType::Dictionary(..)) && items.len() % 2 != 0 {
                return Err(format!("a key without a value in {ty}"));
            }
            for (i, item) in items.iter().enumerate() {
                let item_type = match ty {
                    ValueType::List(t, _) => &**t,
                    ValueType::Tuple(types) => &types[i],
                    ValueType::Dictionary(k, v) => {
                        if i % 2 == 0 {
                            k
                        } else {
                            v
                        }
                    }
                    _ => continue,
                };
                if item.ty != *item_type {
                    return Err(format!("{} in {ty}", item.ty));
                }
                literal_shape(item)?;
            }
            Ok(())
        }
        (ty, _) => Err(format!("{ty} must hold other literals")),
    }
}

/// Counts the ones of a sparse op's mask against its values, where both are in memory: `(ones, values)` where they differ.
fn popcount(call: &Call<'_>) -> Result<(), (usize, usize)> {
    let names = match call.spec().name {
        "constexpr_sparse_to_dense" => ("mask", "nonzero_data"),
        "constexpr_lut_to_sparse" => ("indices_mask", "indices_nonzero_data"),
        "constexpr_sparse_blockwise_shift_scale" => ("data_mask", "nonzero_data"),
        _ => return Ok(()),
    };
    let Some(mask) = call.literal(names.0).and_then(Literal::bytes) else { return Ok(()) };
    let Some(data) = call.find_ty(names.1).and_then(TensorType::elements) else { return Ok(()) };
    let ones: usize = mask.iter().map(|b| b.count_ones() as usize).sum();
    if ones == data { Ok(()) } else { Err((ones, data)) }
}
