//! A layer of a shard as a program of its own: the very ops and weights of the package, from the layer's input to its output.
//!
//! Layers hand each other one value, the hidden rows, so a layer is what its output is computed from, back to the output of the
//! layer before it; with a read of a state come all reads and writes of that state. What a layer takes from an earlier one besides
//! the hidden rows is refused: by itself it would compute something else.

use std::collections::BTreeSet;
use std::ops::Range;

use anemone_mil::build::part;
use anemone_mil::ir::{Function, ValueId, ValueType};
use anemone_mil::{Valid, program, validate_foreign};

/// Layer `layer` of the shard `program` of layers `range`: every function of it, with the shard's inputs and one output.
pub fn layer(shard: &Valid, range: &Range<usize>, layer: usize) -> Result<Valid, String> {
    let functions = (0..shard.functions.len()).map(|f| function(shard, f, range, layer)).collect::<Result<_, _>>()?;
    let (valid, _) = validate_foreign(program(functions, shard.metadata.clone()))
        .map_err(|report| format!("layer {layer} by itself is no program: {report}"))?;
    Ok(valid)
}

fn function(shard: &Valid, index: usize, range: &Range<usize>, layer: usize) -> Result<Function, String> {
    let mut function = shard.functions[index].clone();
    let named = |name: &str| {
        let at = function.values.iter().position(|v| v.name == name && v.ty.tensor().is_some());
        at.map(|at| ValueId(at as u32)).ok_or_else(|| format!("function `{}` has no `{name}`", function.name))
    };
    let from = if layer == range.start { named("x")? } else { named(&format!("blk_{}_hidden", layer - 1))? };
    let to = if layer + 1 == range.end { named("hidden")? } else { named(&format!("blk_{layer}_hidden"))? };
    let mut ops = BTreeSet::new();
    let mut given = BTreeSet::new();
    let mut open = vec![to];
    while let Some(id) = open.pop() {
        if id == from {
            continue;
        }
        match shard.definition(index, id) {
            Some(op) if ops.insert(op) => open.extend(function.ops[op].arguments()),
            None if given.insert(id) && matches!(function.value(id).ty, ValueType::State(_)) => {
                let users = function.ops.iter().enumerate().filter(|(_, op)| op.arguments().any(|arg| arg == id));
                for (user, op) in users {
                    if ops.insert(user) {
                        open.extend(op.arguments());
                    }
                }
            }
            _ => {}
        }
    }
    if given.iter().any(|id| function.value(*id).name == "x") {
        return Err(format!("layer {layer} takes more of the layers before it than their output: it reads `x`"));
    }
    if ops.is_empty() {
        return Err(format!("layer {layer} computes nothing in function `{}`", function.name));
    }
    let entering: Vec<ValueId> =
        std::iter::once(from).chain(function.inputs.iter().copied().filter(|id| given.contains(id))).collect();
    // The names that a shard has for them; whoever had them is not in the part.
    for (id, name) in [(from, "x"), (to, "hidden")] {
        function.values[id.index()].name = name.to_owned();
    }
    Ok(part(&function, &function.name, &ops, &entering, &[to]))
}
