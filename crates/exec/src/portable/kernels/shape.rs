//! Ops that rearrange: new shapes over the same elements, transposition, joining and repeating.

use anemone_mil::ir::Dtype;

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::strided::{copy, dense};
use crate::portable::value::{Elements, Value, axis_of, elements};

/// The kernel of a rearranging op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "reshape" => reshape,
        "transpose" => transpose,
        "expand_dims" => expand_dims,
        "squeeze" => squeeze,
        "concat" => concat,
        "stack" => stack,
        "tile" => tile,
        "pad" => pad,
        "shape" => shape,
        "fill" => fill,
        "fill_like" => fill_like,
        "band_part" => band_part,
        "range_1d" => range_1d,
        "reverse" => reverse,
        _ => return None,
    })
}

/// Calls a generic function with the working type of a value's elements.
macro_rules! by_element {
    ($value:expr, $f:ident($($arg:expr),*)) => {
        match $value.data {
            Elements::Ints(_) => $f::<i32>($($arg),*),
            _ => $f::<f32>($($arg),*),
        }
    };
}
pub(super) use by_element;

/// The shape a `reshape` asks for: one -1 takes what is left, and zeros copy the input's dimension at the same distance from
/// the right.
fn target(asked: &[i32], from: &[usize]) -> Result<Vec<usize>, Fault> {
    let bad = || Fault::new(format!("cannot reshape {from:?} to {asked:?}"));
    let mut shape = Vec::with_capacity(asked.len());
    let mut free = None;
    for (i, &d) in asked.iter().enumerate() {
        shape.push(match d {
            -1 if free.replace(i).is_none() => 1,
            0 => (i + from.len()).checked_sub(asked.len()).map_or(1, |i| from[i]),
            d => usize::try_from(d).map_err(|_| bad())?,
        });
    }
    let (known, n) = (elements(&shape)?, elements(from)?);
    if let Some(i) = free {
        shape[i] = n.checked_div(known).ok_or_else(bad)?;
    }
    if elements(&shape)? == n { Ok(shape) } else { Err(bad()) }
}

fn reshape(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, shape) = (site.operand("x")?, site.operand("shape")?);
    Kernel::moves(move |args, _| {
        let shape = target(args.get(shape).i32s()?, &args.get(x).shape)?;
        Ok(vec![args.take(x).reshaped(shape)])
    })
}

fn expand_dims(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?.unwrap_or_default();
    Kernel::moves(move |args, _| {
        let x = args.take(x);
        let rank = x.shape.len() + axes.len();
        let mut at: Vec<usize> = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?;
        at.sort_unstable();
        at.dedup();
        if at.len() != axes.len() {
            return Err(Fault::new(format!("axes {axes:?} repeat")));
        }
        let mut shape = x.shape.clone();
        at.iter().for_each(|&a| shape.insert(a, 1));
        Ok(vec![x.reshaped(shape)])
    })
}

/// Axes that are named and not 1 stay, as PyTorch has it.
fn squeeze(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?;
    Kernel::moves(move |args, _| {
        let x = args.take(x);
        let rank = x.shape.len();
        let named: Vec<usize> = match &axes {
            None => (0..rank).collect(),
            Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
        };
        let shape = (0..rank).filter(|i| x.shape[*i] != 1 || !named.contains(i)).map(|i| x.shape[i]).collect();
        Ok(vec![x.reshaped(shape)])
    })
}

fn transpose(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let perm = site.ints("perm")?.unwrap_or_default();
    Kernel::moves(move |args, context| {
        let rank = args.get(x).shape.len();
        let perm: Vec<usize> = perm.iter().map(|&p| axis_of(p, rank)).collect::<Result<_, _>>()?;
        let mut seen = perm.clone();
        seen.sort_unstable();
        if !seen.into_iter().eq(0..rank) {
            return Err(Fault::new(format!("perm {perm:?} is not a permutation of {rank} axes")));
        }
        let from = &args.get(x).shape;
        let shape: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
        let moved: Vec<usize> = perm.iter().copied().filter(|&p| from[p] != 1).collect();
        if moved.is_sorted() {
            return Ok(vec![args.take(x).reshaped(shape)]);
        }
        let x = args.get(x);
        Ok(vec![by_element!(x, transposed(context, x, &perm))?])
    })
}

/// A value with its axes in another order.
pub fn transposed<T: Element>(context: &mut Context<'_>, x: &Value, perm: &[usize]) -> Result<Value, Fault> {
    let (shape, out) = transposed_vec(context, x, perm)?;
    Ok(Value { dtype: x.dtype, shape, data: T::wrap(out) })
}

/// The shape and elements of a value with its axes in another order.
pub fn transposed_vec<T: Element>(
    context: &mut Context<'_>,
    x: &Value,
    perm: &[usize],
) -> Result<(Vec<usize>, Vec<T>), Fault> {
    let own = dense(&x.shape);
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p]).collect();
    let steps: Vec<isize> = perm.iter().map(|&p| own[p]).collect();
    let mut out = context.take_shape::<T>(&shape)?;
    copy(&shape, (T::of(x)?, 0, &steps), (&mut out, 0, &dense(&shape)));
    Ok((shape, out))
}

/// Joins values along an axis, or deals them out one by one along it if `interleave`.
fn join<T: Element>(
    context: &mut Context<'_>,
    values: &[&Value],
    axis: usize,
    interleave: bool,
) -> Result<Value, Fault> {
    let first = values[0];
    let mut shape = first.shape.clone();
    shape[axis] = 0;
    for v in values {
        let fits = v.dtype == first.dtype
            && v.shape.len() == shape.len()
            && (0..shape.len()).all(|i| i == axis || v.shape[i] == shape[i])
            && (!interleave || v.shape == first.shape);
        if !fits {
            return Err(Fault::new(format!("cannot join {:?} and {:?} on axis {axis}", first.shape, v.shape)));
        }
        shape[axis] += v.shape[axis];
    }
    let mut out = context.take_shape::<T>(&shape)?;
    let mut to = dense(&shape);
    let step = to[axis];
    if interleave {
        to[axis] *= values.len() as isize;
    }
    let mut at = 0;
    for v in values {
        copy(&v.shape, (T::of(v)?, 0, &dense(&v.shape)), (&mut out, at, &to));
        at += if interleave { step } else { step * v.shape[axis] as isize };
    }
    Ok(Value { dtype: first.dtype, shape, data: T::wrap(out) })
}

fn concat(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let values = site.several("values")?;
    let axis = site.int("axis")?;
    let interleave = site.flag("interleave")?;
    Kernel::moves(move |args, context| {
        if let [only] = values[..] {
            return Ok(vec![args.take(only)]);
        }
        let values: Vec<&Value> = values.iter().map(|&v| args.get(v)).collect();
        let axis = axis_of(axis, values[0].shape.len())?;
        Ok(vec![by_element!(values[0], join(context, &values, axis, interleave))?])
    })
}

fn stack(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let values = site.several("values")?;
    let axis = site.int("axis")?;
    Kernel::moves(move |args, context| {
        let axis = axis_of(axis, args.get(values[0]).shape.len() + 1)?;
        let mut taken = Vec::with_capacity(values.len());
        for &v in &values {
            let v = args.take(v);
            let mut shape = v.shape.clone();
            if axis > shape.len() {
                return Err(Fault::new(format!("cannot stack a value of shape {shape:?} on axis {axis}")));
            }
            shape.insert(axis, 1);
            taken.push(v.reshaped(shape));
        }
        let values: Vec<&Value> = taken.iter().collect();
        Ok(vec![by_element!(values[0], join(context, &values, axis, false))?])
    })
}

fn tile(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, reps) = (site.operand("x")?, site.operand("reps")?);
    fn of<T: Element>(context: &mut Context<'_>, x: &Value, reps: &[usize]) -> Result<Value, Fault> {
        let shape: Vec<usize> = x
            .shape
            .iter()
            .zip(reps)
            .map(|(d, r)| d.checked_mul(*r).ok_or_else(|| Fault::new("the tiled shape is too large")))
            .collect::<Result<_, _>>()?;
        let mut out = context.take_shape::<T>(&shape)?;
        // Each dimension becomes two: the repetition outside, the original inside.
        let (own, whole) = (dense(&x.shape), dense(&shape));
        let (mut dims, mut from, mut to) = (vec![], vec![], vec![]);
        for i in 0..reps.len() {
            dims.extend([reps[i], x.shape[i]]);
            from.extend([0, own[i]]);
            to.extend([whole[i] * x.shape[i] as isize, whole[i]]);
        }
        copy(&dims, (T::of(x)?, 0, &from), (&mut out, 0, &to));
        Ok(Value { dtype: x.dtype, shape, data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (x, reps) = (args.get(x), args.get(reps).i32s()?);
        let counts: Vec<usize> = reps.iter().filter_map(|&r| usize::try_from(r).ok()).collect();
        if counts.len() != x.shape.len() || reps.len() != counts.len() {
            return Err(Fault::new(format!("reps {reps:?} do not fit shape {:?}", x.shape)));
        }
        Ok(vec![by_element!(x, of(context, x, &counts))?])
    })
}

/// How `pad` fills what it adds.
#[derive(Clone, Copy, PartialEq)]
enum PadMode {
    Constant,
    Reflect,
    Replicate,
}

/// Pads the last dimensions; `pad` holds a count before and one after for each of them.
fn pad(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, pads) = (site.operand("x")?, site.operand("pad")?);
    let mode = match site.text("mode")?.as_str() {
        "constant" => PadMode::Constant,
        "reflect" => PadMode::Reflect,
        "replicate" => PadMode::Replicate,
        other => return Err(Fault::new(format!("mode `{other}` is not supported"))),
    };
    let value = site.optional("constant_val")?;
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let pads = args.get(pads).i32s()?;
        let rank = x.shape.len();
        if pads.len() % 2 != 0 || pads.len() > 2 * rank || pads.iter().any(|&p| p < 0) {
            return Err(Fault::new(format!("pad {pads:?} does not fit shape {:?}", x.shape)));
        }
        let first = rank - pads.len() / 2;
        let amount = |d: usize| match d.checked_sub(first) {
            Some(i) => (pads[2 * i] as usize, pads[2 * i + 1] as usize),
            None => (0, 0),
        };
        let amounts: Vec<(usize, usize)> = (0..rank).map(amount).collect();
        Ok(vec![match x.data {
            Elements::Ints(_) => {
                let fill = value.map(|v| args.get(v).i32s()).transpose()?.and_then(|v| v.first().copied());
                padded(context, x, &amounts, mode, fill.unwrap_or(0))?
            }
            _ => {
                let fill = value.map(|v| args.get(v).f32s()).transpose()?.and_then(|v| v.first().copied());
                padded(context, x, &amounts, mode, fill.unwrap_or(0.0))?
            }
        }])
    })
}

fn padded<T: Element>(
    context: &mut Context<'_>,
    x: &Value,
    amounts: &[(usize, usize)],
    mode: PadMode,
    fill: T,
) -> Result<Value, Fault> {
    let shape: Vec<usize> = x
        .shape
        .iter()
        .zip(amounts)
        .map(|(d, (before, after))| {
            d.checked_add(before + after).ok_or_else(|| Fault::new("the padded shape is too large"))
        })
        .collect::<Result<_, _>>()?;
    let mut out = context.take_shape::<T>(&shape)?;
    out.fill(fill);
    let whole = dense(&shape);
    let start: isize = whole.iter().zip(amounts).map(|(s, (before, _))| s * *before as isize).sum();
    copy(&x.shape, (T::of(x)?, 0, &dense(&x.shape)), (&mut out, start, &whole));
    if mode != PadMode::Constant {
        // One dimension after another, so that corners are filled from edges already made.
        for (d, &(before, after)) in amounts.iter().enumerate() {
            let n = x.shape[d];
            if n == 0 || (mode == PadMode::Reflect && before.max(after) >= n) {
                return Err(Fault::new(format!("cannot pad {n} elements by {before} and {after} from themselves")));
            }
            let (inner, outer) = (whole[d] as usize, shape[..d].iter().product::<usize>());
            let line = shape[d] * inner;
            for o in 0..outer {
                let line = &mut out[o * line..(o + 1) * line];
                let from = |i: usize| match mode {
                    PadMode::Reflect if i < before => 2 * before - i,
                    PadMode::Reflect => 2 * (before + n - 1) - i,
                    _ => i.clamp(before, before + n - 1),
                };
                for i in (0..before).chain(before + n..shape[d]) {
                    line.copy_within(from(i) * inner..(from(i) + 1) * inner, i * inner);
                }
            }
        }
    }
    Ok(Value { dtype: x.dtype, shape, data: T::wrap(out) })
}

fn shape(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    Kernel::moves(move |args, _| {
        let dims: Vec<i32> = args
            .get(x)
            .shape
            .iter()
            .map(|&d| i32::try_from(d).map_err(|_| Fault::new(format!("dimension {d} does not fit int32"))))
            .collect::<Result<_, _>>()?;
        Ok(vec![Value::ints(Dtype::I32, &[dims.len()], dims)])
    })
}

/// A value of one element, repeated.
fn filled(context: &mut Context<'_>, shape: &[usize], dtype: Dtype, value: f64) -> Result<Value, Fault> {
    fn of<T: Element>(context: &mut Context<'_>, shape: &[usize], dtype: Dtype, value: T) -> Result<Value, Fault> {
        let mut out = context.take_shape::<T>(shape)?;
        out.fill(value);
        Ok(Value { dtype, shape: shape.to_vec(), data: T::wrap(out) })
    }
    if dtype.is_float() { of(context, shape, dtype, value as f32) } else { of(context, shape, dtype, value as i32) }
}

fn fill(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (dims, value) = (site.operand("shape")?, site.operand("value")?);
    Kernel::moves(move |args, context| {
        let (dims, value) = (args.get(dims).i32s()?, args.get(value));
        let shape = dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| Fault::new(format!("cannot fill shape {dims:?}")))?;
        Ok(vec![filled(context, &shape, value.dtype, value.scalar()?)?])
    })
}

fn fill_like(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (like, value) = (site.operand("ref_tensor")?, site.operand("value")?);
    Kernel::moves(move |args, context| {
        let value = args.get(value);
        Ok(vec![filled(context, &args.get(like).shape, value.dtype, value.scalar()?)?])
    })
}

/// Zeroes what is more than `lower` below or `upper` above the diagonal of the last two dimensions.
fn band_part(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let (lower, upper) = (site.int("lower")?, site.int("upper")?);
    fn of<T: Element>(
        context: &mut Context<'_>,
        x: &Value,
        keeps: impl Fn(usize, usize) -> bool,
    ) -> Result<Value, Fault> {
        let [rows, columns] = [x.shape[x.shape.len() - 2], x.shape[x.shape.len() - 1]];
        let mut out = context.take_shape::<T>(&x.shape)?;
        for (i, (out, &from)) in out.iter_mut().zip(T::of(x)?).enumerate() {
            *out = if keeps(i / columns % rows, i % columns) { from } else { T::default() };
        }
        Ok(Value { dtype: x.dtype, shape: x.shape.clone(), data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        if x.shape.len() < 2 {
            return Err(Fault::new(format!("shape {:?} has no matrices", x.shape)));
        }
        let within = |distance: usize, limit: i32| usize::try_from(limit).map_or(true, |limit| distance <= limit);
        let keeps = |m: usize, n: usize| (m < n || within(m - n, lower)) && (n < m || within(n - m, upper));
        Ok(vec![by_element!(x, of(context, x, keeps))?])
    })
}

/// `start, start + step, ...` up to and without `end`.
fn range_1d(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (start, end, step) = (site.operand("start")?, site.operand("end")?, site.operand("step")?);
    Kernel::computes(move |args, context| {
        let bounds = [start, end, step].map(|s| args.get(s));
        if bounds.iter().any(|b| b.dtype != bounds[0].dtype) {
            return Err(Fault::new("start, end and step must be of one type"));
        }
        let [start, end, step] = [bounds[0].scalar()?, bounds[1].scalar()?, bounds[2].scalar()?];
        let n = ((end - start) / step).ceil();
        if step == 0.0 || !n.is_finite() {
            return Err(Fault::new(format!("no range from {start} to {end} by {step}")));
        }
        let n = n.max(0.0) as usize;
        let at = |i: usize| start + i as f64 * step;
        Ok(vec![match bounds[0].data {
            Elements::Ints(_) => {
                let mut out = context.take::<i32>(n)?;
                out.iter_mut().enumerate().for_each(|(i, o)| *o = at(i) as i32);
                Value::ints(bounds[0].dtype, &[n], out)
            }
            _ => {
                let mut out = context.take::<f32>(n)?;
                out.iter_mut().enumerate().for_each(|(i, o)| *o = at(i) as f32);
                Value::floats(bounds[0].dtype, &[n], out)
            }
        }])
    })
}

fn reverse(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?;
    fn of<T: Element>(context: &mut Context<'_>, x: &Value, axes: &[usize]) -> Result<Value, Fault> {
        let mut steps = dense(&x.shape);
        let mut start = 0;
        for &a in axes {
            start += steps[a] * (x.shape[a] as isize - 1);
            steps[a] = -steps[a];
        }
        let mut out = context.take_shape::<T>(&x.shape)?;
        copy(&x.shape, (T::of(x)?, start, &steps), (&mut out, 0, &dense(&x.shape)));
        Ok(Value { dtype: x.dtype, shape: x.shape.clone(), data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let rank = x.shape.len();
        let mut axes: Vec<usize> = match &axes {
            None => (0..rank).collect(),
            Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
        };
        axes.sort_unstable();
        axes.dedup();
        Ok(vec![by_element!(x, of(context, x, &axes))?])
    })
}
