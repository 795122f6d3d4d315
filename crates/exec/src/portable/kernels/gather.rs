//! Indexed reads: `gather`, `gather_along_axis`, `one_hot`.
//!
//! An index outside its axis is an error that says which. Before iOS 17 a negative index counts from the end.

use anemone_mil::ops::Opset;

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::dot::Rows;
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::value::{Elements, Value, axis_of};

use super::shape::by_element;

/// The kernel of a gathering op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "gather" => gather,
        "gather_along_axis" => gather_along_axis,
        "one_hot" => one_hot,
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
    let batch_dims = if site.opset() >= Opset::CoreMl7 { site.int("batch_dims")? } else { 0 };
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

fn one_hot(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (indices, size) = (site.operand("indices")?, site.operand("one_hot_vector_size")?);
    let axis = site.int("axis")?;
    let (on, off) = (site.operand("on_value")?, site.operand("off_value")?);
    fn of<T: Element>(
        context: &mut Context<'_>,
        indices: &Value,
        (axis, n): (usize, usize),
        (on, off): (&Value, &Value),
    ) -> Result<Value, Fault> {
        let mut shape = indices.shape.clone();
        shape.insert(axis, n);
        let inner: usize = shape[axis + 1..].iter().product();
        let (Some(&on_), Some(&off)) = (T::of(on)?.first(), T::of(off)?.first()) else {
            return Err(Fault::new("on_value and off_value must be scalars"));
        };
        let mut out = context.take_shape::<T>(&shape)?;
        out.fill(off);
        for (r, &i) in indices.i32s()?.iter().enumerate() {
            // An index outside the vector lights nothing.
            if let Some(i) = usize::try_from(i).ok().filter(|&i| i < n) {
                out[(r / inner * n + i) * inner + r % inner] = on_;
            }
        }
        Ok(Value { dtype: on.dtype, shape, data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (indices, size, on, off) = (args.get(indices), args.get(size), args.get(on), args.get(off));
        let axis = axis_of(axis, indices.shape.len() + 1)?;
        let n = size.i32s()?.first().and_then(|&n| usize::try_from(n).ok());
        let n = n.ok_or_else(|| Fault::new("one_hot_vector_size must be a count"))?;
        Ok(vec![by_element!(on, of(context, indices, (axis, n), (on, off)))?])
    })
}
