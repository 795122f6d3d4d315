//! Reductions over any set of axes, and running sums.
//!
//! The axes that are kept come first and those that are reduced last, or the other way round where that is how the
//! elements already lie. Either way each result adds its elements in row-major order, one after another: the order does not
//! depend on how many results there are.

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::value::{Elements, Value, axis_of};

use super::elementwise::dtype_named;
use super::shape::transposed;

/// The kernel of a reduction.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "reduce_sum" => {
            |s| reduce(s, Fold::new(0.0, |a, x| a + x), Some(IntFold { start: 0, step: i32::wrapping_add }))
        }
        "reduce_mean" => |s| reduce(s, Fold { last: |a, n| a / n, ..Fold::new(0.0, |a, x| a + x) }, None),
        "reduce_max" => |s| {
            let larger = |a: f32, x: f32| if x > a || x.is_nan() { x } else { a };
            reduce(s, Fold::new(f32::NEG_INFINITY, larger), Some(IntFold { start: i32::MIN, step: i32::max }))
        },
        "reduce_min" => |s| {
            let smaller = |a: f32, x: f32| if x < a || x.is_nan() { x } else { a };
            reduce(s, Fold::new(f32::INFINITY, smaller), Some(IntFold { start: i32::MAX, step: i32::min }))
        },
        "reduce_prod" => {
            |s| reduce(s, Fold::new(1.0, |a, x| a * x), Some(IntFold { start: 1, step: i32::wrapping_mul }))
        }
        "reduce_sum_square" => |s| {
            let step = |a: i32, x: i32| a.wrapping_add(x.wrapping_mul(x));
            reduce(s, Fold::new(0.0, |a, x| a + x * x), Some(IntFold { start: 0, step }))
        },
        "reduce_l1_norm" => |s| {
            let step = |a: i32, x: i32| a.wrapping_add(x.wrapping_abs());
            reduce(s, Fold::new(0.0, |a, x| a + x.abs()), Some(IntFold { start: 0, step }))
        },
        "reduce_l2_norm" => |s| reduce(s, Fold { last: |a, _| a.sqrt(), ..Fold::new(0.0, |a, x| a + x * x) }, None),
        "reduce_log_sum" => |s| reduce(s, Fold { last: |a, _| a.ln(), ..Fold::new(0.0, |a, x| a + x) }, None),
        "reduce_log_sum_exp" => log_sum_exp,
        "cumsum" => cumsum,
        _ => return None,
    })
}

/// A reduction of floats: where it starts, what each element does, and what becomes of the result of n elements.
#[derive(Clone, Copy)]
struct Fold {
    start: f32,
    step: fn(f32, f32) -> f32,
    last: fn(f32, f32) -> f32,
}

impl Fold {
    fn new(start: f32, step: fn(f32, f32) -> f32) -> Self {
        Self { start, step, last: |a, _| a }
    }
}

/// A reduction of integers.
#[derive(Clone, Copy)]
struct IntFold {
    start: i32,
    step: fn(i32, i32) -> i32,
}

/// The elements of a value as `outer` blocks of `count` rows of `inner`: the rows of a block are what is reduced.
pub struct Blocks {
    /// How many blocks.
    pub outer: usize,
    /// How many elements go into one result.
    pub count: usize,
    /// How many results a block has.
    pub inner: usize,
}

/// Axes counted from the front, sorted.
pub fn axes_of(axes: Option<&[i32]>, rank: usize) -> Result<Vec<usize>, Fault> {
    let mut axes: Vec<usize> = match axes {
        None => (0..rank).collect(),
        Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
    };
    axes.sort_unstable();
    axes.dedup();
    Ok(axes)
}

/// The value with the reduced axes next to each other, and how it is cut. They already are in nearly every program.
pub fn blocks<T: Element>(context: &mut Context<'_>, x: &Value, axes: &[usize]) -> Result<(Value, Blocks), Fault> {
    let shape = &x.shape;
    let kept: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
    let size = |axes: &[usize]| axes.iter().map(|&a| shape[a]).product::<usize>();
    let (Some(&first), Some(&last)) = (axes.first(), axes.last()) else {
        return Ok((x.clone(), Blocks { outer: x.len(), count: 1, inner: 1 }));
    };
    if (first..last).all(|a| shape[a] == 1 || axes.contains(&a)) {
        let outer = shape[..first].iter().product();
        return Ok((x.clone(), Blocks { outer, count: size(axes), inner: shape[last + 1..].iter().product() }));
    }
    let perm: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let moved = transposed::<T>(context, x, &perm)?;
    Ok((moved, Blocks { outer: size(&kept), count: size(axes), inner: 1 }))
}

/// A shape without the reduced axes, or with ones in their place.
pub fn reduced_shape(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let dims = (0..shape.len()).filter(|a| keep || !axes.contains(a));
    dims.map(|a| if axes.contains(&a) { 1 } else { shape[a] }).collect()
}

/// Folds the rows of every block into one.
pub fn fold<T: Element>(b: &Blocks, x: &[T], out: &mut [T], start: T, step: impl Fn(T, T) -> T) {
    out.fill(start);
    for o in 0..b.outer {
        let out = &mut out[o * b.inner..(o + 1) * b.inner];
        for c in 0..b.count {
            let row = &x[(o * b.count + c) * b.inner..][..b.inner];
            for (a, &x) in out.iter_mut().zip(row) {
                *a = step(*a, x);
            }
        }
    }
}

fn reduce(site: &mut Site<'_>, floats: Fold, ints: Option<IntFold>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?;
    let keep = site.flag("keep_dims")?;
    let kind = site.kind();
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        let axes = axes_of(axes.as_deref(), x.shape.len())?;
        let shape = reduced_shape(&x.shape, &axes, keep);
        if let Elements::Ints(_) = x.data {
            let (moved, cut) = blocks::<i32>(context, x, &axes)?;
            let mut out = context.take_shape::<i32>(&shape)?;
            match (ints, kind) {
                (Some(ints), _) => fold(&cut, moved.i32s()?, &mut out, ints.start, ints.step),
                (None, "reduce_mean") => {
                    fold(&cut, moved.i32s()?, &mut out, 0, i32::wrapping_add);
                    out.iter_mut().for_each(|v| *v = v.checked_div(cut.count as i32).unwrap_or(0));
                }
                (None, _) => return Err(Fault::new(format!("not defined for {}", x.dtype))),
            }
            return Ok(vec![Value::ints(x.dtype, &shape, out)]);
        }
        let (moved, cut) = blocks::<f32>(context, x, &axes)?;
        let mut out = context.take_shape::<f32>(&shape)?;
        fold(&cut, moved.f32s()?, &mut out, floats.start, floats.step);
        out.iter_mut().for_each(|v| *v = (floats.last)(*v, cut.count as f32));
        Ok(vec![Value::floats(x.dtype, &shape, out)])
    })
}

/// The logarithm of a sum of exponentials, taken around the largest so that nothing overflows.
fn log_sum_exp(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?;
    let keep = site.flag("keep_dims")?;
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        let axes = axes_of(axes.as_deref(), x.shape.len())?;
        let shape = reduced_shape(&x.shape, &axes, keep);
        let (moved, cut) = blocks::<f32>(context, x, &axes)?;
        let mut largest = context.take_shape::<f32>(&shape)?;
        fold(&cut, moved.f32s()?, &mut largest, f32::NEG_INFINITY, f32::max);
        let mut out = context.take_shape::<f32>(&shape)?;
        out.fill(0.0);
        let from = moved.f32s()?;
        for o in 0..cut.outer {
            for c in 0..cut.count {
                for i in 0..cut.inner {
                    let r = o * cut.inner + i;
                    let around = if largest[r].is_finite() { largest[r] } else { 0.0 };
                    out[r] += (from[(o * cut.count + c) * cut.inner + i] - around).exp();
                }
            }
        }
        for (v, &m) in out.iter_mut().zip(&largest) {
            *v = v.ln() + if m.is_finite() { m } else { 0.0 };
        }
        context.give(largest);
        Ok(vec![Value::floats(x.dtype, &shape, out)])
    })
}

fn cumsum(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axis = site.int("axis")?;
    let (exclusive, reverse) = (site.flag("exclusive")?, site.flag("reverse")?);
    fn running<T: Element>(
        context: &mut Context<'_>,
        x: &Value,
        axis: usize,
        (exclusive, reverse): (bool, bool),
        add: impl Fn(T, T) -> T,
    ) -> Result<Value, Fault> {
        let from = T::of(x)?;
        let mut out = context.take::<T>(from.len())?;
        let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
        for o in 0..x.shape[..axis].iter().product() {
            for i in 0..inner {
                let mut sum = T::default();
                for c in 0..n {
                    let at = (o * n + if reverse { n - 1 - c } else { c }) * inner + i;
                    let next = add(sum, from[at]);
                    out[at] = if exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
        Ok(Value { dtype: x.dtype, shape: x.shape.clone(), data: T::wrap(out) })
    }
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        let axis = axis_of(axis, x.shape.len())?;
        Ok(vec![match x.data {
            Elements::Ints(_) => running(context, x, axis, (exclusive, reverse), i32::wrapping_add)?,
            _ => running(context, x, axis, (exclusive, reverse), |a: f32, b| a + b)?,
        }])
    })
}

/// A `reduce_argmax` or `reduce_argmin`: the index of the first element that no other beats.
pub fn arg_reduce(site: &mut Site<'_>, beats: fn(f32, f32) -> bool) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axis = site.int("axis")?;
    let keep = site.flag("keep_dims")?;
    let dtype = dtype_named(&site.text("output_dtype")?)?;
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let axis = axis_of(axis, x.shape.len())?;
        let shape = reduced_shape(&x.shape, &[axis], keep);
        let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
        let mut out = context.take_shape::<i32>(&shape)?;
        if n == 0 && !out.is_empty() {
            return Err(Fault::new("no index into an empty axis"));
        }
        for (r, out) in out.iter_mut().enumerate() {
            let at = |c: usize| (r / inner * n + c) * inner + r % inner;
            let best = |wins: &dyn Fn(usize, usize) -> bool| (1..n).fold(0, |b, c| if wins(c, b) { c } else { b });
            *out = match &x.data {
                Elements::Ints(v) => {
                    // Exact beyond the 24 bits of f32: the difference decides.
                    best(&|c, b| beats((i64::from(v[at(c)]) - i64::from(v[at(b)])) as f32, 0.0))
                }
                _ => {
                    let v = x.f32s()?;
                    best(&|c, b| beats(v[at(c)], v[at(b)]))
                }
            } as i32;
        }
        Ok(vec![Value::ints(dtype, &shape, out)])
    })
}
