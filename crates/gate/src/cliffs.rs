//! Numeric cliffs that show in a program without running it.
//!
//! On the Neural Engine each of these is silent: no error, another result. What depends on the values that flow (sums beyond
//! 65504, products near 32752) is for a run in `ane` numerics to find; here are the cliffs that op and parameters alone tell.

use anemone_exec::portable::headroom::SLICE;
use anemone_mil::Valid;
use anemone_mil::ir::{Dtype, Literal, TensorType};
use serde::Serialize;

use crate::residency::Chip;

/// One cliff at one op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cliff {
    /// Stable, kebab-case.
    pub rule: &'static str,
    /// The function.
    pub function: String,
    /// The op's index in it.
    pub op: usize,
    /// Its kind and name.
    pub what: String,
    /// What happens there, and what to do.
    pub message: String,
    /// Who reports it.
    pub sources: &'static str,
}

/// fp16's smallest subnormal: anything below half of it is 0.
const F16_TINY: f32 = 5.960_464_5e-8;

/// Every cliff in a program for a chip.
pub fn find(program: &Valid, chip: Chip) -> Vec<Cliff> {
    let mut all = Vec::new();
    for (f, function) in program.functions.iter().enumerate() {
        for (index, op) in function.ops.iter().enumerate() {
            if program.spec(f, index).is_constant() {
                continue;
            }
            let name = if op.name.is_empty() { op.kind.clone() } else { format!("{} `{}`", op.kind, op.name) };
            let mut report = |rule, sources, message: String| {
                all.push(Cliff {
                    rule,
                    function: function.name.clone(),
                    op: index,
                    what: name.clone(),
                    message,
                    sources,
                });
            };
            let call = program.call(f, index);
            if let Some(begin) = begins_inside(program, f, index).filter(|_| chip < Chip::M4) {
                report(
                    "slice-begin-last-axis",
                    "AG, AF",
                    format!(
                        "takes elements from {begin} of the last axis: before the M4 such a slice multiplies by 16 inside, and values above \
                         {SLICE} become inf; slice another axis"
                    ),
                );
            }
            if matches!(op.kind.as_str(), "rsqrt" | "log" | "inverse") {
                let half = call.find_ty("x").is_some_and(|x| x.dtype == Dtype::F16);
                let epsilon = match call.has("epsilon") {
                    true => call.literal("epsilon").and_then(scalar),
                    // The default of the format.
                    false => Some(1e-12),
                };
                if let Some(epsilon) = epsilon.filter(|e| half && *e < F16_TINY) {
                    let stated = if call.has("epsilon") { "is" } else { "is left at its default of" };
                    if !argued(program, f, index) {
                        report(
                            "vanishing-epsilon",
                            "CT, LM",
                            format!(
                                "its epsilon {stated} {epsilon:e}, which is 0 in fp16: an argument of 0 gives inf; set at least 6e-8, or keep the argument away from 0"
                            ),
                        );
                    }
                }
            }
            let wide = |t: &TensorType| matches!(t.dtype, Dtype::F32 | Dtype::F64);
            if op.kind != "cast" && call.outputs().any(wide) {
                report(
                    "fp32-island",
                    "AG, AB",
                    "computes in fp32, which the Neural Engine does not: it is placed elsewhere, or collapsed to fp16"
                        .into(),
                );
            }
        }
    }
    all
}

fn scalar(literal: &Literal) -> Option<f32> {
    literal.to_floats()?.first().copied()
}

/// Where on the last axis a slice begins, if not at 0, as far as that is known before the program runs.
pub fn begins_inside(program: &Valid, function: usize, op: usize) -> Option<i64> {
    let call = program.call(function, op);
    if !matches!(call.op().kind.as_str(), "slice_by_index" | "slice_by_size") {
        return None;
    }
    let x = call.find_ty("x")?;
    let last = x.rank().checked_sub(1)?;
    let masked = call.literal("begin_mask").and_then(Literal::to_bools).is_some_and(|m| m.get(last) == Some(&true));
    if masked {
        return None;
    }
    let begin = *call.literal("begin")?.to_ints()?.get(last)?;
    // Counted from the end, which only a known size tells.
    let size = x.shape.get(last)?.fixed().and_then(|n| i64::try_from(n).ok());
    let begin = if begin < 0 { begin.checked_add(size?)? } else { begin };
    (begin > 0).then_some(begin)
}

/// Whether the argument of an op is kept away from 0 by the program itself: a sum with a positive constant that fp16 can tell from 0,
/// or with what is divided by an upper bound of the rest. The second is recognised by its form alone: the sum of a mean of
/// squares and a square.
fn argued(program: &Valid, function: usize, op: usize) -> bool {
    let call = program.call(function, op);
    let sum = call.value("x").and_then(|x| program.definition(function, x));
    let Some(sum) = sum.filter(|&s| program.functions[function].ops[s].kind == "add") else { return false };
    let sum = program.call(function, sum);
    let constant = |param: &str| sum.literal(param).and_then(scalar).is_some_and(|v| v >= F16_TINY);
    let square = |param: &str| {
        let source = sum.value(param).and_then(|id| program.definition(function, id));
        source.is_some_and(|s| {
            let call = program.call(function, s);
            program.functions[function].ops[s].kind == "mul"
                && call.value("x").is_some()
                && call.value("x") == call.value("y")
        })
    };
    ["x", "y"].iter().any(|p| constant(p) || square(p))
}
