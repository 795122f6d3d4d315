//! What rules look at: named values of an op and of the program around it.
//!
//! A published observation rarely says everything ("24 layers, int4 per block, not stateful"), so features are an open set:
//! a condition on one that is not there does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anemone_mil::Valid;
use anemone_mil::ir::{Arg, Dim, Flexibility, Function, Literal, Op, Payload, TensorType};
use anemone_mil::ops::Call;
use serde::{Deserialize, Serialize};

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Feature {
    /// A size or a count.
    Number(f64),
    /// One word.
    Word(String),
    /// Several: element types of an op, encodings of a program.
    Words(BTreeSet<String>),
}

/// Features by name:
///
/// | name | of | value |
/// |---|---|---|
/// | `weight_bytes` | program | bytes of constants as stored, each once |
/// | `ops` | program | ops that compute, in the largest function |
/// | `convs` | program | convolutions among them |
/// | `states` | program | states of a function |
/// | `state_width` | program | the last dimension of a state, where it is least divisible by 32 |
/// | `state_width_by_32` | program | `yes` where that is a multiple of 32, `no` otherwise |
/// | `functions` | program | functions |
/// | `shapes` | program | `fixed`, `range`, `enumerated` |
/// | `encodings` | program | how weights are stored, every way that occurs |
/// | `op` | op | its kind |
/// | `dtype` | op | element types of what it reads and writes at run time |
/// | `rank` | op | the largest rank among them |
/// | `width`, `channels` | op | the largest last or last but one dimension; the largest dimension 1 of rank 3 and above |
/// | `weight` | op | how its weight is stored: `fp16`, `int8-tensor`, `int8-channel`, `int4-block`, `lut`, ... |
/// | `kernel_width`, `depthwise` | conv | last dimension of the weight; `yes` where each channel is a group |
/// | `reduced` | reductions to an index | how many elements compete |
/// | `indices` | gathers | `constant` or `runtime` |
pub type Features = BTreeMap<String, Feature>;

fn number(all: &mut Features, name: &str, value: usize) {
    all.insert(name.to_owned(), Feature::Number(value as f64));
}

fn word(all: &mut Features, name: &str, value: &str) {
    all.insert(name.to_owned(), Feature::Word(value.to_owned()));
}

/// Features of a program as a whole.
pub fn program(program: &Valid) -> Features {
    let mut all = Features::new();
    number(&mut all, "weight_bytes", weight_bytes(program));
    let computing = |f: usize| {
        let ops = &program.functions[f].ops;
        (0..ops.len()).filter(move |&op| !program.spec(f, op).is_constant()).map(move |op| &ops[op])
    };
    let functions = 0..program.functions.len();
    number(&mut all, "ops", functions.clone().map(|f| computing(f).count()).max().unwrap_or(0));
    let convs = |f: usize| computing(f).filter(|op| op.kind == "conv").count();
    number(&mut all, "convs", functions.clone().map(convs).max().unwrap_or(0));
    let states = program.functions.iter().map(|f| f.interface.states.len()).max().unwrap_or(0);
    number(&mut all, "states", states);
    let widths =
        program.functions.iter().flat_map(|f| &f.interface.states).filter_map(|s| s.shape.as_ref()?.last().copied());
    if let Some(width) = widths.min_by_key(|w| (w.trailing_zeros().min(5), *w)) {
        number(&mut all, "state_width", width);
        word(&mut all, "state_width_by_32", if width % 32 == 0 { "yes" } else { "no" });
    }
    number(&mut all, "functions", program.functions.len());
    word(&mut all, "shapes", shapes(&program.functions));
    let weights =
        functions.flat_map(|f| (0..program.functions[f].ops.len()).filter_map(move |op| weight(program, f, op)));
    all.insert("encodings".into(), Feature::Words(weights.map(|(encoding, _)| encoding).collect()));
    all
}

fn shapes(functions: &[Function]) -> &'static str {
    let flexible = functions.iter().flat_map(|f| &f.interface.inputs).map(|input| match input.flexibility {
        Flexibility::Fixed => 0,
        Flexibility::Range(_) => 1,
        Flexibility::Enumerated(_) => 2,
    });
    ["fixed", "range", "enumerated"][flexible.max().unwrap_or(0)]
}

/// Bytes of constants as a package stores them: one that several functions share counts once.
fn weight_bytes(program: &Valid) -> usize {
    let mut seen = BTreeSet::new();
    let mut total = 0usize;
    let ops = program.functions.iter().flat_map(|f| &f.ops);
    let literals = ops.flat_map(|op| {
        let inputs = op.inputs.values().flatten().filter_map(|arg| match arg {
            Arg::Literal(literal) => Some(literal),
            Arg::Value(_) => None,
        });
        inputs.chain(op.attributes.values())
    });
    for literal in literals {
        let Some(bytes) = literal.tensor_type().and_then(TensorType::bytes) else { continue };
        if seen.insert(identity(literal)) {
            total = total.saturating_add(bytes);
        }
    }
    total
}

/// What makes two literals the same stored bytes: a place in a file, a producer's slot, or shared memory.
fn identity(literal: &Literal) -> (usize, u64) {
    match &literal.payload {
        Payload::Blob(blob) => (Arc::as_ptr(&blob.file) as usize, blob.record),
        Payload::Deferred(deferred) => (Arc::as_ptr(&deferred.producer).cast::<u8>() as usize, deferred.slot as u64),
        Payload::Bytes(bytes) => (bytes.as_ptr() as usize, u64::MAX),
        Payload::Strings(strings) => (strings.as_ptr() as usize, u64::MAX),
        Payload::Aggregate(parts) => (parts.as_ptr() as usize, u64::MAX),
    }
}

/// Features of one op, with those of its program.
pub fn op(program: &Valid, function: usize, index: usize, whole: &Features) -> Features {
    let mut all = whole.clone();
    let op = &program.functions[function].ops[index];
    let call = program.call(function, index);
    word(&mut all, "op", &op.kind);
    let tensors = runtime_tensors(&call, op);
    let dtypes = tensors.iter().map(|t| t.dtype.name().to_owned()).collect();
    all.insert("dtype".into(), Feature::Words(dtypes));
    number(&mut all, "rank", tensors.iter().map(|t| t.rank()).max().unwrap_or(0));
    let fixed = |d: Option<&Dim>| d.and_then(|d| d.fixed()).unwrap_or(0);
    let spatial = |t: &&TensorType| {
        t.shape.iter().rev().take(2).take(t.rank().saturating_sub(2).max(1)).map(|d| fixed(Some(d))).max()
    };
    number(&mut all, "width", tensors.iter().filter_map(spatial).max().unwrap_or(0));
    let channels = tensors.iter().filter(|t| t.rank() >= 3).map(|t| fixed(t.shape.get(1))).max();
    number(&mut all, "channels", channels.unwrap_or(0));
    if let Some((encoding, ty)) = weight(program, function, index) {
        word(&mut all, "weight", &encoding);
        if op.kind == "conv" {
            number(&mut all, "kernel_width", fixed(ty.shape.last()));
            // One input channel a group, and more than one of them.
            let inputs = call.find_ty("x").map_or(0, |x| fixed(x.shape.get(1)));
            let depthwise = inputs > 1 && fixed(ty.shape.get(1)) == 1;
            word(&mut all, "depthwise", if depthwise { "yes" } else { "no" });
        }
    }
    if op.kind.starts_with("reduce_arg") || op.kind == "topk" {
        let x = call.find_ty("x");
        let axis = call.literal("axis").and_then(|axis| axis.to_ints()?.first().copied()).unwrap_or(-1);
        let competing = x.and_then(|x| {
            let axis = if axis < 0 { axis.checked_add(i64::try_from(x.rank()).ok()?)? } else { axis };
            x.shape.get(usize::try_from(axis).ok()?)?.fixed()
        });
        number(&mut all, "reduced", competing.unwrap_or(0));
    }
    if op.kind.starts_with("gather") {
        word(&mut all, "indices", if call.is_runtime("indices") { "runtime" } else { "constant" });
    }
    all
}

/// The types of everything the op reads at run time and of everything it writes.
fn runtime_tensors<'a>(call: &Call<'a>, op: &'a Op) -> Vec<&'a TensorType> {
    let known = |name: &str| !call.is_runtime(name);
    let read = op
        .inputs
        .iter()
        .filter(|(name, _)| !known(name))
        .flat_map(|(_, args)| args.iter().filter_map(|a| call.arg_type(a)));
    read.chain(call.outputs()).collect()
}

/// How the weight of an op is stored, and its type; `None` for ops without one.
fn weight(program: &Valid, function: usize, index: usize) -> Option<(String, TensorType)> {
    let call = program.call(function, index);
    let kind = program.functions[function].ops[index].kind.as_str();
    let param = match kind {
        "conv" | "conv_transpose" | "linear" => "weight",
        // A product with a constant is a projection by another name.
        "matmul" if !call.is_runtime("y") => "y",
        "gather" if !call.is_runtime("x") => "x",
        _ => return None,
    };
    let ty = call.find_ty(param)?.clone();
    let Some(id) = call.value(param) else { return Some((ty.dtype.name().to_owned(), ty)) };
    let Some(source) = program.definition(function, id) else { return Some(("runtime".to_owned(), ty)) };
    // `matmul` contracts the last axis but one of `y` unless it is transposed; output channels lie along the other.
    let channel_axis = match kind {
        "conv_transpose" => 1,
        "matmul" if call.literal("transpose_y").and_then(Literal::bytes) != Some(&[1]) => ty.rank().saturating_sub(1),
        "matmul" => ty.rank().saturating_sub(2),
        _ => 0,
    };
    Some((encoding(&program.call(function, source), &program.functions[function].ops[source].kind, channel_axis), ty))
}

/// The encoding that a `const` or `constexpr` op stands for.
fn encoding(call: &Call<'_>, kind: &str, channel_axis: usize) -> String {
    let shape = |name: &str| call.find_ty(name).and_then(TensorType::fixed_shape).unwrap_or_default();
    let bits = |name: &str| call.find_ty(name).map_or(8, |t| t.dtype.bits());
    match kind {
        "const" => call.outputs().next().map_or("unknown", |t| t.dtype.name()).to_owned(),
        "constexpr_affine_dequantize" => {
            let granularity = if shape("scale").iter().product::<usize>() <= 1 { "tensor" } else { "channel" };
            format!("int{}-{granularity}", bits("quantized_data"))
        }
        "constexpr_blockwise_shift_scale" if call.is_runtime("data") || call.literal("data").is_none() => {
            "joint".to_owned()
        }
        "constexpr_blockwise_shift_scale" => {
            format!("int{}-{}", bits("data"), granularity(&shape("data"), &shape("scale"), channel_axis))
        }
        "constexpr_lut_to_dense" => {
            // `[groups per dimension.., 2^bits, vector]`; the form of iOS 16 has one table.
            let lut = shape("lut");
            let groups = &lut[..lut.len().saturating_sub(2)];
            let across = groups.iter().enumerate().any(|(axis, &n)| n > 1 && axis != channel_axis);
            let joint = call.arg("lut").is_some() && call.literal("lut").is_none();
            match (joint, across) {
                (true, _) => "joint".to_owned(),
                (_, true) => "lut-input-channel".to_owned(),
                _ => "lut".to_owned(),
            }
        }
        "constexpr_sparse_to_dense" | "constexpr_lut_to_sparse" | "constexpr_sparse_blockwise_shift_scale" => {
            "sparse".to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

/// One scale, one for each output channel, or blocks along what is contracted.
fn granularity(data: &[usize], scale: &[usize], channel_axis: usize) -> &'static str {
    let finer = |axis: usize| scale.get(axis).is_some_and(|&n| n > 1);
    let elsewhere = (0..data.len()).any(|axis| axis != channel_axis && finer(axis));
    match (elsewhere, finer(channel_axis)) {
        (true, _) => "block",
        (false, true) if scale.get(channel_axis) == data.get(channel_axis) => "channel",
        (false, true) => "block",
        (false, false) => "tensor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granularity_follows_the_axes_of_the_scale() {
        assert_eq!(granularity(&[64, 32, 1, 1], &[1, 1, 1, 1], 0), "tensor");
        assert_eq!(granularity(&[64, 32, 1, 1], &[64, 1, 1, 1], 0), "channel");
        assert_eq!(granularity(&[64, 32, 1, 1], &[64, 2, 1, 1], 0), "block");
        assert_eq!(granularity(&[64, 32, 1, 1], &[1, 32, 1, 1], 0), "block");
        assert_eq!(granularity(&[64, 32], &[1, 32], 1), "channel");
    }
}
