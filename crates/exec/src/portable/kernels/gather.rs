//! Indexed reads and writes: the `gather` and `scatter` families, `one_hot`, `non_zero`.
//!
//! An index outside its axis is an error that says which. Before iOS 17 a negative index counts from the end.

use anemone_mil::ir::Dtype;
use anemone_mil::ops::Opset;

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::loops::Rows;
use crate::portable::value::{Elements, Value, axis_of, strides};

use super::shape::by_element;

/// The kernel of a gathering op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "gather" => gather,
        "gather_along_axis" => gather_along_axis,
        "gather_nd" => gather_nd,
        "scatter" => |s| scatter(s, slices_along_axis),
        "scatter_along_axis" => |s| scatter(s, elements_along_axis),
        "scatter_nd" => |s| scatter(s, slices_at_coordinates),
        "one_hot" => one_hot,
        "non_zero" => non_zero,
        _ => return None,
    })
}

/// Where an index points, within `n` elements.
fn resolve(index: i32, n: usize, wraps: bool) -> Result<usize, Fault> {
    let i = if wraps && index < 0 { i64::from(index) + n as i64 } else { i64::from(index) };
    usize::try_from(i)
        .ok()
        .filter(|&i| i < n)
        .ok_or_else(|| Fault::new(format!("index {index} is out of range for {n} elements")))
}

fn wraps(site: &Site<'_>) -> bool {
    site.opset() < Opset::CoreMl7
}

fn gather(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, indices) = (site.weight("x")?, site.operand("indices")?);
    let axis = site.int("axis")?;
    let batch_dims = site.int("batch_dims")?;
    // Whether to check is the runtime's freedom; this one always does.
    site.ints("validate_indices")?;
    let wraps = wraps(site);
    Kernel::moves(move |args, context| {
        let (x, indices) = (args.get(x), args.get(indices));
        let axis = axis_of(axis, x.shape.len())?;
        let batch = usize::try_from(batch_dims).unwrap_or(usize::MAX);
        if batch > axis || batch > indices.shape.len() || x.shape[..batch] != indices.shape[..batch] {
            return Err(Fault::new(format!("{batch_dims} batch dimensions of {:?} and {:?}", x.shape, indices.shape)));
        }
        let size = |s: &[usize]| s.iter().product::<usize>();
        let (lots, outer) = (size(&x.shape[..batch]), size(&x.shape[batch..axis]));
        let (n, inner) = (x.shape[axis], size(&x.shape[axis + 1..]));
        let per_lot = size(&indices.shape[batch..]);
        let mut shape = x.shape[..axis].to_vec();
        shape.extend(&indices.shape[batch..]);
        shape.extend(&x.shape[axis + 1..]);
        // Checked before indices are turned into as many places.
        context.check(&shape)?;
        let at = indices.i32s()?;
        // The source start of every run of `inner` elements, in the order of the result.
        let mut starts = Vec::with_capacity(lots * outer * per_lot);
        for lot in 0..lots {
            for o in 0..outer {
                for &i in &at[lot * per_lot..(lot + 1) * per_lot] {
                    starts.push(((lot * outer + o) * n + resolve(i, n, wraps)?) * inner);
                }
            }
        }
        Ok(vec![match &x.data {
            Elements::Ints(from) => {
                let mut out = context.take_shape::<i32>(&shape)?;
                for (out, &s) in out.chunks_mut(inner.max(1)).zip(&starts) {
                    out.copy_from_slice(&from[s..s + inner]);
                }
                Value::ints(x.dtype, &shape, out)
            }
            _ => {
                let rows = Rows::of(x)?;
                let mut scratch = Vec::new();
                let mut out = context.take_shape::<f32>(&shape)?;
                for (out, &s) in out.chunks_mut(inner.max(1)).zip(&starts) {
                    out.copy_from_slice(rows.get(s, inner, &mut scratch));
                }
                Value::floats(x.dtype, &shape, out)
            }
        }])
    })
}

fn gather_along_axis(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, indices) = (site.operand("x")?, site.operand("indices")?);
    let axis = site.int("axis")?;
    site.ints("validate_indices")?;
    let wraps = wraps(site);
    fn of<T: Element>(
        context: &mut Context<'_>,
        x: &Value,
        indices: &Value,
        axis: usize,
        wraps: bool,
    ) -> Result<Value, Fault> {
        let (n, m) = (x.shape[axis], indices.shape[axis]);
        let inner: usize = x.shape[axis + 1..].iter().product();
        let (from, at) = (T::of(x)?, indices.i32s()?);
        let mut out = context.take::<T>(at.len())?;
        for (r, (out, &i)) in out.iter_mut().zip(at).enumerate() {
            let outer = r / (m * inner);
            *out = from[(outer * n + resolve(i, n, wraps)?) * inner + r % inner];
        }
        Ok(Value { dtype: x.dtype, shape: indices.shape.clone(), data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (x, indices) = (args.get(x), args.get(indices));
        let rank = x.shape.len();
        let axis = axis_of(axis, rank)?;
        if indices.shape.len() != rank || (0..rank).any(|d| d != axis && indices.shape[d] != x.shape[d]) {
            return Err(Fault::new(format!("indices {:?} do not fit {:?} on axis {axis}", indices.shape, x.shape)));
        }
        Ok(vec![by_element!(x, of(context, x, indices, axis, wraps))?])
    })
}

/// Where the coordinates in the last dimension of `indices` point within dimensions of that shape.
fn resolve_all(coordinates: &[i32], shape: &[usize], wraps: bool) -> Result<usize, Fault> {
    coordinates.iter().zip(shape).try_fold(0, |at, (&i, &n)| Ok(at * n + resolve(i, n, wraps)?))
}

fn gather_nd(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, indices) = (site.operand("x")?, site.operand("indices")?);
    let batch_dims = site.int("batch_dims")?;
    site.ints("validate_indices")?;
    let wraps = wraps(site);
    fn of<T: Element>(
        context: &mut Context<'_>,
        x: &Value,
        indices: &Value,
        batch: usize,
        wraps: bool,
    ) -> Result<Value, Fault> {
        let (coordinates, depth) = (indices.shape.len() - 1, indices.shape[indices.shape.len() - 1]);
        let inner: usize = x.shape[batch + depth..].iter().product();
        let block: usize = x.shape[batch..].iter().product();
        let per_batch: usize = indices.shape[batch..coordinates].iter().product();
        let mut shape = indices.shape[..coordinates].to_vec();
        shape.extend(&x.shape[batch + depth..]);
        let mut out = context.take_shape::<T>(&shape)?;
        let (from, at) = (T::of(x)?, indices.i32s()?);
        for (r, out) in out.chunks_mut(inner.max(1)).enumerate() {
            let place = resolve_all(&at[r * depth..(r + 1) * depth], &x.shape[batch..], wraps)?;
            let start = r / per_batch * block + place * inner;
            out.copy_from_slice(&from[start..start + inner]);
        }
        Ok(Value { dtype: x.dtype, shape, data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (x, indices) = (args.get(x), args.get(indices));
        let batch = usize::try_from(batch_dims).unwrap_or(usize::MAX);
        let depth = indices.shape.last().copied().unwrap_or(0);
        let fits = batch < indices.shape.len()
            && batch.checked_add(depth).is_some_and(|d| d <= x.shape.len())
            && x.shape[..batch] == indices.shape[..batch];
        if !fits {
            return Err(Fault::new(format!("indices {:?} do not fit {:?}", indices.shape, x.shape)));
        }
        Ok(vec![by_element!(x, of(context, x, indices, batch, wraps))?])
    })
}

/// Where updates go: the start of each run in the data, in the order of the updates, and the length of a run.
type Runs = fn(data: &[usize], indices: &Value, axis: i32, wraps: bool) -> Result<(Vec<usize>, usize), Fault>;

/// The places of `scatter`: slices along an axis.
fn slices_along_axis(data: &[usize], indices: &Value, axis: i32, wraps: bool) -> Result<(Vec<usize>, usize), Fault> {
    let axis = axis_of(axis, data.len())?;
    let (n, inner) = (data[axis], data[axis + 1..].iter().product::<usize>());
    let mut starts = Vec::new();
    for o in 0..data[..axis].iter().product() {
        for &i in indices.i32s()? {
            starts.push((o * n + resolve(i, n, wraps)?) * inner);
        }
    }
    Ok((starts, inner))
}

/// The places of `scatter_along_axis`: single elements whose coordinate along the axis is replaced.
fn elements_along_axis(data: &[usize], indices: &Value, axis: i32, wraps: bool) -> Result<(Vec<usize>, usize), Fault> {
    let axis = axis_of(axis, data.len())?;
    if indices.shape.len() != data.len() || (0..data.len()).any(|d| d != axis && indices.shape[d] != data[d]) {
        return Err(Fault::new(format!("indices {:?} do not fit {data:?} on axis {axis}", indices.shape)));
    }
    let (n, m) = (data[axis], indices.shape[axis]);
    let inner: usize = data[axis + 1..].iter().product();
    let place = |(r, &i): (usize, &i32)| Ok((r / (m * inner) * n + resolve(i, n, wraps)?) * inner + r % inner);
    Ok((indices.i32s()?.iter().enumerate().map(place).collect::<Result<_, Fault>>()?, 1))
}

/// The places of `scatter_nd`: slices at the coordinates in the last dimension of the indices.
fn slices_at_coordinates(data: &[usize], indices: &Value, _: i32, wraps: bool) -> Result<(Vec<usize>, usize), Fault> {
    let depth = indices.shape.last().copied().filter(|&d| d <= data.len());
    let depth = depth.ok_or_else(|| Fault::new(format!("indices {:?} do not fit {data:?}", indices.shape)))?;
    let inner: usize = data[depth..].iter().product();
    let places: usize = indices.shape[..indices.shape.len() - 1].iter().product();
    let at = indices.i32s()?;
    let start = |r: usize| Ok(resolve_all(&at[r * depth..(r + 1) * depth], data, wraps)? * inner);
    Ok(((0..places).map(start).collect::<Result<_, Fault>>()?, inner))
}

/// What becomes of an element of the data and its update.
type Combine<T> = fn(T, T) -> T;

/// A copy of the data with updates combined into it, one after another.
fn scatter(site: &mut Site<'_>, runs: Runs) -> Result<Kernel, Fault> {
    let (data, indices, updates) = (site.operand("data")?, site.operand("indices")?, site.operand("updates")?);
    let axis = if site.kind() == "scatter_nd" { 0 } else { site.int("axis")? };
    let mode = site.text("mode")?;
    site.ints("validate_indices")?;
    let wraps = wraps(site);
    let (floats, ints): (Combine<f32>, Combine<i32>) = match mode.as_str() {
        "update" => (|_, u| u, |_, u| u),
        "add" => (|d, u| d + u, i32::wrapping_add),
        "sub" => (|d, u| d - u, i32::wrapping_sub),
        "mul" => (|d, u| d * u, i32::wrapping_mul),
        "div" => (|d, u| d / u, |d, u| d.checked_div(u).unwrap_or(0)),
        "max" => (f32::max, i32::max),
        "min" => (f32::min, i32::min),
        other => return Err(Fault::new(format!("mode `{other}` is not supported"))),
    };
    fn of<T: Element>(
        context: &mut Context<'_>,
        mut data: Value,
        (starts, run): (Vec<usize>, usize),
        updates: &Value,
        f: Combine<T>,
    ) -> Result<Value, Fault> {
        let updates = T::of(updates)?;
        if starts.len().checked_mul(run) != Some(updates.len()) {
            return Err(Fault::new(format!("{} updates for {} places of {run}", updates.len(), starts.len())));
        }
        let apply = |own: &mut [T]| {
            for (updates, &start) in updates.chunks(run.max(1)).zip(&starts) {
                for (d, &u) in own[start..start + run].iter_mut().zip(updates) {
                    *d = f(*d, u);
                }
            }
        };
        if let Some(own) = T::buf(&mut data).and_then(|b| b.unique()) {
            apply(own);
            return Ok(data);
        }
        let mut out = context.take_shape::<T>(&data.shape)?;
        out.copy_from_slice(T::of(&data)?);
        apply(&mut out);
        Ok(Value { data: T::wrap(out), ..data })
    }
    Kernel::computes(move |args, context| {
        let data = args.take(data);
        context.check(&args.get(updates).shape)?;
        let runs = runs(&data.shape, args.get(indices), axis, wraps)?;
        let updates = args.get(updates);
        Ok(vec![match data.data {
            Elements::Ints(_) => of(context, data, runs, updates, ints)?,
            _ => of(context, data, runs, updates, floats)?,
        }])
    })
}

fn one_hot(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (indices, size) = (site.operand("indices")?, site.operand("one_hot_vector_size")?);
    let axis = site.int("axis")?;
    let (on, off) = (site.operand("on_value")?, site.operand("off_value")?);
    let dtype = site.output_dtype().unwrap_or(Dtype::I32);
    fn of<T: Element>(
        context: &mut Context<'_>,
        indices: &Value,
        (axis, n): (usize, usize),
        dtype: Dtype,
        [on, off]: [T; 2],
    ) -> Result<Value, Fault> {
        let mut shape = indices.shape.clone();
        shape.insert(axis, n);
        let inner: usize = shape[axis + 1..].iter().product();
        let mut out = context.take_shape::<T>(&shape)?;
        out.fill(off);
        for (r, &i) in indices.i32s()?.iter().enumerate() {
            // An index outside the vector lights nothing.
            if let Some(i) = usize::try_from(i).ok().filter(|&i| i < n) {
                out[(r / inner * n + i) * inner + r % inner] = on;
            }
        }
        Ok(Value { dtype, shape, data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (indices, size) = (args.get(indices), args.get(size));
        let axis = axis_of(axis, indices.shape.len() + 1)?;
        let n = size.i32s()?.first().and_then(|&n| usize::try_from(n).ok());
        let n = n.ok_or_else(|| Fault::new("one_hot_vector_size must be a count"))?;
        // One of the two may be a default of another type than the one that is given.
        let values = [args.get(on).scalar()?, args.get(off).scalar()?];
        Ok(vec![match dtype.is_float() {
            true => of(context, indices, (axis, n), dtype, values.map(|v| v as f32))?,
            false => of(context, indices, (axis, n), dtype, values.map(|v| v as i32))?,
        }])
    })
}

/// The coordinates of the elements that are not zero, one row each.
fn non_zero(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let places: Vec<usize> = match &x.data {
            Elements::Ints(v) => v.iter().enumerate().filter(|(_, v)| **v != 0).map(|(i, _)| i).collect(),
            _ => x.f32s()?.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect(),
        };
        let rank = x.shape.len();
        let shape = [places.len(), rank];
        let mut out = context.take_shape::<i32>(&shape)?;
        let strides = strides(&x.shape);
        for (out, place) in out.chunks_mut(rank.max(1)).zip(places) {
            for (d, out) in out.iter_mut().enumerate() {
                *out = (place / strides[d] % x.shape[d]) as i32;
            }
        }
        Ok(vec![Value::ints(Dtype::I32, &shape, out)])
    })
}
