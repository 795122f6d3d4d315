//! What is decided once, when a function is loaded: its kernels, its constants, who owns which value until when.
//!
//! A plan is a list of steps over numbered slots. Constants are folded into the steps that use them. A slot is taken by its
//! last user, so that kernels see values nobody else owns and work in place, and it is then used for another value.
//!
//! States are read and written at their place in the order. **A read whose next access to the same state is a write takes the
//! buffer instead of sharing it**: nobody can see the state in between, so the update of a cache happens in the cache's own
//! memory. A call that fails in between leaves the state unusable, as the trait allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anemone_mil::Valid;
use anemone_mil::ir::{Arg, Dtype, Function, Op, TensorType, ValueId, ValueType};
use anemone_mil::text::op_line;

use super::Fault;
use super::constants::{Constant, Shared};
use super::headroom;
use super::kernel::{Kernel, Operand, Site};
use super::kernels;
use super::value::Value;
use crate::runtime::Error;

/// Where a step takes a value from.
pub enum Source {
    /// A slot that is used again.
    Share(usize),
    /// A slot at its last use.
    Take(usize),
    /// A constant.
    Constant(Value),
}

/// One step of a plan.
pub struct Step {
    /// What it does.
    pub action: Action,
    /// The op's type.
    pub kind: String,
    /// The op, as printed.
    pub printed: String,
    /// The names of its results.
    pub values: Vec<String>,
    /// The magnitude beyond which its fp16 results overflow.
    pub limit: f32,
}

impl Step {
    /// The name of its first result; that of the op where it has none.
    pub fn value(&self) -> &str {
        self.values.first().map_or(&self.printed, |name| name)
    }

    /// Whether it yields results that headroom is kept for.
    pub fn records(&self) -> bool {
        match &self.action {
            Action::Compute { results, .. } => results.iter().any(|(_, ty)| ty.dtype == Dtype::F16),
            _ => false,
        }
    }
}

/// What a step does.
pub enum Action {
    /// Reads a state into a slot.
    Read {
        /// The state's index.
        state: usize,
        /// Whether to take the buffer rather than to share it.
        take: bool,
        /// The slot; `None` where nobody wants it.
        to: Option<usize>,
    },
    /// Replaces a state.
    Write {
        /// The state's index.
        state: usize,
        /// The new content.
        from: Source,
    },
    /// Runs a kernel.
    Compute {
        /// The kernel.
        kernel: Kernel,
        /// Its operands.
        args: Vec<Source>,
        /// Its results: their slots (`None` where nobody wants them) and declared types.
        results: Vec<(Option<usize>, TensorType)>,
    },
}

/// A function, ready to run.
pub struct Plan {
    /// The function's name.
    pub name: String,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// How many slots they use.
    pub slots: usize,
    /// The slot of each input, in the signature's order; `None` where nobody wants it.
    pub inputs: Vec<Option<usize>>,
    /// The outputs, in the signature's order.
    pub outputs: Vec<Source>,
    /// The most bytes that values of known shape occupy at one time.
    pub peak: usize,
}

/// A state of a package.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    /// Its name, by which functions share it.
    pub name: String,
    /// What it holds.
    pub ty: TensorType,
}

/// Builds plans for the functions of one package.
#[derive(Default)]
pub struct Planner {
    /// Constants, shared between functions.
    pub constants: Shared,
    /// The package's states, in the order of their first appearance.
    pub states: Vec<StateSpec>,
}

/// An error about an op that cannot be executed.
fn unsupported(function: &Function, op: &Op, fault: Fault) -> Error {
    Error::Unsupported { function: function.name.clone(), op: op_line(function, op), reason: fault.to_string() }
}

impl Planner {
    /// Plans one function of a program. Constants that would take more than `limit` bytes are refused.
    pub fn plan(&mut self, program: &Valid, index: usize, limit: usize) -> Result<Plan, Error> {
        let function = &program.functions[index];
        let states = self.bind_states(function)?;

        let used = used_at_run_time(program, index);
        let mut constants: HashMap<ValueId, Constant> = HashMap::new();
        let mut drafts = Vec::new();
        for (i, op) in function.ops.iter().enumerate() {
            let fail = |fault| unsupported(function, op, fault);
            let call = program.call(index, i);
            if call.spec().is_constant() {
                // What only feeds other encodings is decompressed with them.
                if op.outputs.iter().any(|id| used.contains(id)) {
                    let values = self.constants.of(&call, limit).map_err(fail)?;
                    constants.extend(op.outputs.iter().copied().zip(values));
                }
                continue;
            }
            drafts.push(match op.kind.as_str() {
                "read_state" => Draft { op, what: What::Read(state_of(op, &states).map_err(fail)?), operands: vec![] },
                "write_state" => {
                    let operands = match op.inputs.get("data").map(Vec::as_slice) {
                        Some([Arg::Value(id)]) => vec![match constants.get(id) {
                            Some(c) => Operand::Constant(c.dense().map_err(fail)?),
                            None => Operand::Value(*id),
                        }],
                        _ => return Err(fail(Fault::new("parameter `data` must be one value"))),
                    };
                    Draft { op, what: What::Write(state_of(op, &states).map_err(fail)?), operands }
                }
                kind => {
                    let prepare = kernels::lookup(kind)
                        .ok_or_else(|| fail(Fault::new(format!("`{kind}` is not supported by this runtime"))))?;
                    let mut site = Site::new(call, &constants);
                    let kernel = prepare(&mut site).map_err(fail)?;
                    let operands = site.finish().map_err(fail)?;
                    let begins_inside = begins_inside_last_axis(op, &constants);
                    Draft { op, what: What::Compute(kernel, headroom::limit(kind, begins_inside)), operands }
                }
            });
        }
        let outputs = function
            .outputs
            .iter()
            .map(|id| match constants.get(id) {
                Some(c) => c.dense().map(Operand::Constant),
                None => Ok(Operand::Value(*id)),
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|fault| Error::Unsupported {
                function: function.name.clone(),
                op: "return".to_owned(),
                reason: fault.to_string(),
            })?;
        Ok(assign(function, drafts, outputs))
    }

    /// The function's states as indices into the package's.
    fn bind_states(&mut self, function: &Function) -> Result<BTreeMap<ValueId, usize>, Error> {
        let mut bound = BTreeMap::new();
        for &id in &function.inputs {
            let value = function.value(id);
            let ValueType::State(ty) = &value.ty else { continue };
            let refuse = |reason: String| Error::Unsupported {
                function: function.name.clone(),
                op: format!("state `{}`", value.name),
                reason,
            };
            if ty.fixed_shape().is_none() {
                return Err(refuse(format!("{ty} has unknown dimensions")));
            }
            let index = match self.states.iter().position(|s| s.name == value.name) {
                Some(i) if self.states[i].ty == *ty => i,
                Some(i) => {
                    return Err(refuse(format!("it is {ty} here, and {} in another function", self.states[i].ty)));
                }
                None => {
                    self.states.push(StateSpec { name: value.name.clone(), ty: ty.clone() });
                    self.states.len() - 1
                }
            };
            bound.insert(id, index);
        }
        Ok(bound)
    }
}

/// The values that ops which run, and the function's callers, see.
fn used_at_run_time(program: &Valid, index: usize) -> BTreeSet<ValueId> {
    let function = &program.functions[index];
    let running = (0..function.ops.len()).filter(|&i| !program.spec(index, i).is_constant());
    let values = running.flat_map(|i| function.ops[i].arguments());
    values.chain(function.outputs.iter().copied()).collect()
}

/// Whether a slice begins inside the last axis, as far as that is known.
fn begins_inside_last_axis(op: &Op, constants: &HashMap<ValueId, Constant>) -> bool {
    let last = |param: &str| {
        let [Arg::Value(id)] = op.inputs.get(param)?.as_slice() else { return None };
        constants.get(id)?.dense().ok()?.i32s().ok()?.last().copied()
    };
    last("begin").is_some_and(|b| b != 0) && last("begin_mask").is_none_or(|m| m == 0)
}

/// The index of the state an op names.
fn state_of(op: &Op, states: &BTreeMap<ValueId, usize>) -> Result<usize, Fault> {
    match op.inputs.get("input").map(Vec::as_slice) {
        Some([Arg::Value(id)]) => states.get(id).copied(),
        _ => None,
    }
    .ok_or_else(|| Fault::new("parameter `input` must be a state"))
}

/// A step before slots are assigned.
struct Draft<'a> {
    op: &'a Op,
    what: What,
    operands: Vec<Operand>,
}

enum What {
    Read(usize),
    Write(usize),
    Compute(Kernel, f32),
}

/// Numbers the values and finds their last uses.
fn assign(function: &Function, drafts: Vec<Draft<'_>>, outputs: Vec<Operand>) -> Plan {
    // The step of each value's last use; outputs are used after the last step.
    let mut last: HashMap<ValueId, usize> = HashMap::new();
    for (i, draft) in drafts.iter().enumerate() {
        for operand in &draft.operands {
            if let Operand::Value(id) = operand {
                last.insert(*id, i);
            }
        }
    }
    for operand in &outputs {
        if let Operand::Value(id) = operand {
            last.insert(*id, drafts.len());
        }
    }
    // Whether the access to a state that follows each read is a write.
    let mut next_is_write: HashMap<usize, bool> = HashMap::new();
    let mut takes = vec![false; drafts.len()];
    for (i, draft) in drafts.iter().enumerate().rev() {
        match draft.what {
            What::Read(s) => takes[i] = next_is_write.insert(s, false).unwrap_or(false),
            What::Write(s) => drop(next_is_write.insert(s, true)),
            What::Compute(..) => {}
        }
    }

    let mut slots = Slots::default();
    let tensors = |ids: &[ValueId]| -> Vec<(ValueId, TensorType)> {
        ids.iter().filter_map(|&id| Some((id, function.value(id).ty.tensor()?.clone()))).collect()
    };
    let inputs = tensors(&function.inputs)
        .into_iter()
        .map(|(id, ty)| last.contains_key(&id).then(|| slots.assign(id, &ty)))
        .collect();
    let mut steps = Vec::with_capacity(drafts.len());
    for (i, draft) in drafts.into_iter().enumerate() {
        let mut args = slots.sources(draft.operands, |id| last.get(&id) == Some(&i));
        // Results get slots of their own while the operands still hold theirs.
        let results: Vec<(Option<usize>, TensorType)> = tensors(&draft.op.outputs)
            .into_iter()
            .map(|(id, ty)| (last.contains_key(&id).then(|| slots.assign(id, &ty)), ty))
            .collect();
        slots.release(&args);
        let mut limit = headroom::F16_MAX;
        let action = match draft.what {
            What::Read(state) => Action::Read { state, take: takes[i], to: results.first().and_then(|r| r.0) },
            What::Write(state) => match args.pop() {
                Some(from) => Action::Write { state, from },
                None => continue,
            },
            What::Compute(kernel, fails_beyond) => {
                limit = fails_beyond;
                Action::Compute { kernel, args, results }
            }
        };
        steps.push(Step {
            action,
            kind: draft.op.kind.clone(),
            printed: op_line(function, draft.op),
            values: draft.op.outputs.iter().map(|id| function.value(*id).name.clone()).collect(),
            limit,
        });
    }
    let outputs = slots.sources(outputs, |_| true);
    Plan { name: function.name.clone(), steps, slots: slots.bytes.len(), inputs, outputs, peak: slots.peak }
}

/// Slots in use and free, and what they hold.
#[derive(Default)]
struct Slots {
    of: HashMap<ValueId, usize>,
    bytes: Vec<usize>,
    free: Vec<usize>,
    live: usize,
    peak: usize,
}

impl Slots {
    /// A slot for a value. Values of unknown shape count nothing: they are limited while the program runs.
    fn assign(&mut self, id: ValueId, ty: &TensorType) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.bytes.push(0);
            self.bytes.len() - 1
        });
        self.bytes[slot] = ty.elements().unwrap_or(0).saturating_mul(4);
        self.live = self.live.saturating_add(self.bytes[slot]);
        self.peak = self.peak.max(self.live);
        self.of.insert(id, slot);
        slot
    }

    /// Where operands come from; those for which `ends` holds are taken by their last mention.
    fn sources(&self, operands: Vec<Operand>, ends: impl Fn(ValueId) -> bool) -> Vec<Source> {
        let mut seen = BTreeSet::new();
        let mut sources: Vec<Source> = operands
            .into_iter()
            .rev()
            .map(|operand| match operand {
                Operand::Constant(value) => Source::Constant(value),
                Operand::Value(id) if ends(id) && seen.insert(id) => Source::Take(self.of[&id]),
                Operand::Value(id) => Source::Share(self.of[&id]),
            })
            .collect();
        sources.reverse();
        sources
    }

    /// Frees the slots that were taken.
    fn release(&mut self, sources: &[Source]) {
        for source in sources {
            if let Source::Take(slot) = source {
                self.live = self.live.saturating_sub(self.bytes[*slot]);
                self.free.push(*slot);
            }
        }
    }
}
