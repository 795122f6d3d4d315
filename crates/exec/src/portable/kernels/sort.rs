//! Ops that order: `topk`, `argsort`, `reduce_argmax`, `reduce_argmin`. Of equal elements the first comes first.

use std::cmp::Ordering;

use anemone_mil::ir::Dtype;

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::value::{Elements, Value, axis_of};

use super::elementwise::dtype_named;
use super::reduce::arg_reduce;

/// The kernel of an ordering op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "reduce_argmax" => |s| arg_reduce(s, |a, b| a > b),
        "reduce_argmin" => |s| arg_reduce(s, |a, b| a < b),
        "topk" => topk,
        "argsort" => argsort,
        _ => return None,
    })
}

/// The first `k` elements along `axis` in the order of `compare`, and their indices.
fn ordered<T: Element>(
    context: &mut Context<'_>,
    x: &Value,
    (axis, k): (usize, usize),
    compare: impl Fn(&T, &T) -> Ordering,
) -> Result<(Value, Vec<i32>), Fault> {
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let mut shape = x.shape.clone();
    shape[axis] = k;
    let from = T::of(x)?;
    let mut values = context.take_shape::<T>(&shape)?;
    let mut indices = context.take::<i32>(values.len())?;
    let mut order: Vec<usize> = Vec::with_capacity(n);
    for o in 0..x.shape[..axis].iter().product() {
        for i in 0..inner {
            let at = |c: usize| (o * n + c) * inner + i;
            order.clear();
            order.extend(0..n);
            order.sort_by(|&a, &b| compare(&from[at(a)], &from[at(b)]));
            for (j, &c) in order[..k].iter().enumerate() {
                let to = (o * k + j) * inner + i;
                values[to] = from[at(c)];
                indices[to] = c as i32;
            }
        }
    }
    Ok((Value { dtype: x.dtype, shape, data: T::wrap(values) }, indices))
}

fn along(
    context: &mut Context<'_>,
    x: &Value,
    axis: usize,
    k: usize,
    ascending: bool,
) -> Result<(Value, Vec<i32>), Fault> {
    match x.data {
        Elements::Ints(_) if ascending => ordered(context, x, (axis, k), i32::cmp),
        Elements::Ints(_) => ordered(context, x, (axis, k), |a: &i32, b: &i32| b.cmp(a)),
        _ if ascending => ordered(context, x, (axis, k), f32::total_cmp),
        _ => ordered(context, x, (axis, k), |a: &f32, b: &f32| b.total_cmp(a)),
    }
}

fn topk(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let (k, axis) = (site.operand("k")?, site.int("axis")?);
    let ascending = site.flag("ascending")?;
    // Unsorted results may come in any order, so the sorted one serves.
    site.flag("sort")?;
    let indices = site.flag("return_indices")?;
    let dtype = dtype_named(&site.text("output_indices_dtype")?)?;
    Kernel::moves(move |args, context| {
        let (x, k) = (args.get(x), args.get(k).i32s()?);
        let axis = axis_of(axis, x.shape.len())?;
        let n = x.shape[axis];
        let k = match k[..] {
            [-1] => n,
            [k] if usize::try_from(k).is_ok_and(|k| k <= n) => k as usize,
            _ => return Err(Fault::new(format!("cannot take {k:?} of {n} elements"))),
        };
        let (values, at) = along(context, x, axis, k, ascending)?;
        let at = Value::ints(dtype, &values.shape, at);
        Ok(if indices { vec![values, at] } else { vec![values] })
    })
}

fn argsort(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axis = site.int("axis")?;
    let ascending = site.flag("ascending")?;
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let axis = axis_of(axis, x.shape.len())?;
        let (_, at) = along(context, x, axis, x.shape[axis], ascending)?;
        Ok(vec![Value::ints(Dtype::I32, &x.shape, at)])
    })
}
