//! Ops that no rule recognised, run one by one by the portable runtime between the kernels.
//!
//! Neighbouring ops become a program of their own: what they need from outside becomes its inputs, what others need of
//! them its outputs.

use std::collections::{BTreeMap, BTreeSet};

use anemone_mil::build::part;
use anemone_mil::ir::ValueId;
use anemone_mil::{program, validate_foreign};

use super::graph::Graph;
use super::plan::{Access, Crossing, crosses};
use super::rows::{Arena, View};
use super::select::Refusal;
use crate::portable::{Numerics, Options, Portable, PortableModel};
use crate::runtime::{Error, Model, State};
use crate::tensor::{Data, Tensor};

/// Ops that run one by one.
pub struct Island {
    /// Their kinds, in order.
    pub ops: Vec<String>,
    model: PortableModel,
    inputs: Vec<Given>,
    outputs: Vec<Crossing>,
}

/// Where an island's input comes from.
enum Given {
    /// An input of the function.
    Input(usize),
    /// A value in the arena.
    Kept(Crossing),
}

/// What surrounds an island.
pub struct Surroundings<'a> {
    /// Every op that runs one by one.
    pub plain: &'a BTreeSet<usize>,
    /// The function's inputs that are tensors.
    pub inputs: &'a [ValueId],
    /// The axis of each value's tokens.
    pub axes: &'a BTreeMap<ValueId, Option<usize>>,
    /// Tokens of a call.
    pub tokens: usize,
    /// Of the runtime that runs its ops.
    pub options: &'a Options,
}

/// Makes an island of those ops. `used` are the values that kernels and callers read.
pub fn cut(
    graph: &Graph<'_>,
    ops: &[usize],
    used: &BTreeSet<usize>,
    around: &Surroundings<'_>,
) -> Result<Island, Refusal> {
    let function = graph.function();
    let inside: BTreeSet<usize> = ops.iter().copied().collect();
    let constant = |id: ValueId| graph.definition(id).filter(|&op| graph.call(op).spec().is_constant());
    // Constants that the ops read, and what these are made of.
    let mut all = inside.clone();
    let mut open: Vec<usize> = ops.to_vec();
    while let Some(op) = open.pop() {
        for made in function.ops[op].arguments().filter_map(constant) {
            if all.insert(made) {
                open.push(made);
            }
        }
    }
    let mut entering: Vec<ValueId> = Vec::new();
    for id in ops.iter().flat_map(|&op| function.ops[op].arguments()) {
        let local = graph.definition(id).is_some_and(|op| all.contains(&op));
        if !local && !entering.contains(&id) {
            entering.push(id);
        }
    }
    let elsewhere: BTreeSet<ValueId> =
        around.plain.difference(&inside).flat_map(|&op| function.ops[op].arguments()).collect();
    let made = ops.iter().flat_map(|&op| function.ops[op].outputs.iter().copied());
    let leaving: Vec<ValueId> = made.filter(|id| used.contains(&id.index()) || elsewhere.contains(id)).collect();

    let crossing = |id: ValueId| -> Result<Crossing, Refusal> {
        let name = &function.value(id).name;
        let shape = graph.shape(id).filter(|_| crosses(graph, id));
        let shape = shape.ok_or_else(|| format!("`{name}` is no float tensor of known shape"))?;
        let width = shape.iter().product::<usize>().div_ceil(around.tokens);
        let view = View { place: id.index(), stride: width, offset: 0, width };
        Ok(Crossing { view, shape, axis: around.axes.get(&id).copied().flatten() })
    };
    let given = |id: &ValueId| match around.inputs.iter().position(|i| i == id) {
        Some(input) => Ok(Given::Input(input)),
        None => Ok::<_, Refusal>(Given::Kept(crossing(*id)?)),
    };
    let inputs = entering.iter().map(given).collect::<Result<_, _>>()?;
    let outputs = leaving.iter().map(|&id| crossing(id)).collect::<Result<_, _>>()?;
    let body = part(function, "main", &all, &entering, &leaving);
    let (valid, _) = validate_foreign(program(vec![body], BTreeMap::new()))
        .map_err(|report| format!("ops that run one by one make no program: {report}"))?;
    let model = Portable::new(Numerics::Exact, around.options.clone()).prepare(&valid).map_err(|e| e.to_string())?;
    let kinds = ops.iter().map(|&op| function.ops[op].kind.clone()).collect();
    Ok(Island { ops: kinds, model, inputs, outputs })
}

impl Island {
    /// Memory for its values.
    pub fn new_state(&self) -> Result<State, Error> {
        self.model.new_state()
    }

    /// Shows every view.
    pub fn visit(&mut self, f: &mut dyn FnMut(&mut View, Access)) {
        for input in &mut self.inputs {
            if let Given::Kept(crossing) = input {
                f(&mut crossing.view, Access::Read);
            }
        }
        self.outputs.iter_mut().for_each(|crossing| f(&mut crossing.view, Access::Write));
    }

    /// Runs the ops. `given` are the function's inputs.
    ///
    /// # Safety
    /// Views are within the arena, and no other thread uses it meanwhile.
    pub unsafe fn run(&self, arena: Arena, tokens: usize, given: &[&Tensor], state: &mut State) -> Result<(), Error> {
        let whole = |view: &View| View { stride: view.width * tokens, width: view.width * tokens, ..*view };
        let mut own: Vec<Tensor> = Vec::new();
        for input in &self.inputs {
            if let Given::Kept(crossing) = input {
                let mut values = vec![0.0; crossing.shape.iter().product()];
                // SAFETY: as the caller promises.
                crossing.leave(unsafe { arena.row(&whole(&crossing.view), 0) }, &mut values);
                own.push(Tensor::new(&crossing.shape, Data::F32(values)));
            }
        }
        let mut kept = own.iter();
        let inputs: Vec<&Tensor> = self
            .inputs
            .iter()
            .filter_map(|input| match input {
                Given::Input(i) => given.get(*i).copied(),
                Given::Kept(_) => kept.next(),
            })
            .collect();
        let outputs = self.model.run(0, &inputs, state)?;
        for (crossing, output) in self.outputs.iter().zip(&outputs) {
            if let Data::F32(values) = output.data() {
                // SAFETY: as the caller promises.
                crossing.enter(values, unsafe { arena.row_mut(&whole(&crossing.view), 0) });
            }
        }
        Ok(())
    }
}
