//! Matrix products: `matmul` and `linear`.
//!
//! Each result is one sum over the contracted dimension, in an order that only its length and the layout of `y` decide.
//! Where `y` is transposed, its rows lie along the contraction and the products are dots of rows; where it is not, its rows
//! are scaled and added, one contraction step after another. Neither depends on how many rows `x` has.

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::loops::{Rows, add_scaled, row_by_rows};
use crate::portable::strided::{Walk, broadcast};
use crate::portable::threads;
use crate::portable::value::{Elements, Value, elements};

use super::elementwise::broadcast_shape;
use super::shape::transposed;

/// The kernel of a matrix product.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "matmul" => matmul,
        "linear" => linear,
        _ => return None,
    })
}

/// The sizes of one product: `x` is `m` by `k`, `y` is `k` by `n`.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Rows of `x`.
    pub m: usize,
    /// The contraction.
    pub k: usize,
    /// Columns of the result.
    pub n: usize,
}

/// `out = x * transpose(y)`, `y` stored as `n` rows of `k`.
pub fn times_transposed(Sizes { m, k, n }: Sizes, x: &[f32], y: &[f32], out: &mut [f32]) {
    for i in 0..m {
        row_by_rows(&x[i * k..(i + 1) * k], &y[..n * k], &mut out[i * n..(i + 1) * n]);
    }
}

/// `out = x * y`, `y` stored as `k` rows of `n`.
pub fn times(Sizes { m, k, n }: Sizes, x: &[f32], y: &[f32], out: &mut [f32]) {
    for i in 0..m {
        let row = &mut out[i * n..(i + 1) * n];
        row.fill(0.0);
        for (l, &x) in x[i * k..(i + 1) * k].iter().enumerate() {
            add_scaled(row, x, &y[l * n..(l + 1) * n]);
        }
    }
}

/// The last two axes swapped.
fn flipped<T: Element>(context: &mut Context<'_>, x: &Value) -> Result<Value, Fault> {
    let rank = x.shape.len();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 1, rank - 2);
    transposed::<T>(context, x, &perm)
}

fn matmul(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, y) = (site.operand("x")?, site.operand("y")?);
    let (transpose_x, transpose_y) = (site.flag("transpose_x")?, site.flag("transpose_y")?);
    Kernel::computes(move |args, context| {
        let (mut x, mut y) = (args.take(x), args.take(y));
        if x.dtype != y.dtype || x.shape.is_empty() || y.shape.is_empty() {
            return Err(Fault::new(format!("no product of {}{:?} and {}{:?}", x.dtype, x.shape, y.dtype, y.shape)));
        }
        // A vector is a row on the left and a column on the right, and the dimension added for it goes away again.
        let (row, column) = (x.shape.len() == 1, y.shape.len() == 1);
        let floats = matches!(x.data, Elements::Floats(_));
        if row {
            let shape = vec![1, x.shape[0]];
            x = x.reshaped(shape);
        } else if transpose_x {
            x = if floats { flipped::<f32>(context, &x)? } else { flipped::<i32>(context, &x)? };
        }
        let mut transpose_y = transpose_y;
        if column {
            let shape = vec![1, y.shape[0]];
            y = y.reshaped(shape);
            transpose_y = true;
        }
        if !floats && transpose_y {
            y = flipped::<i32>(context, &y)?;
        }
        let (rx, ry) = (x.shape.len(), y.shape.len());
        let [m, k] = [x.shape[rx - 2], x.shape[rx - 1]];
        let [mut yk, mut n] = [y.shape[ry - 2], y.shape[ry - 1]];
        if floats && transpose_y {
            (yk, n) = (n, yk);
        }
        if k != yk {
            return Err(Fault::new(format!("rows of {k} against columns of {yk}")));
        }
        let batch = broadcast_shape(&x.shape[..rx - 2], &y.shape[..ry - 2])?;
        let mut shape = batch.clone();
        shape.extend([m, n]);
        let sizes = Sizes { m, k, n };
        if elements(&shape)? == 0 {
            let data = if floats { Elements::Floats(Vec::new().into()) } else { Elements::Ints(Vec::new().into()) };
            return Ok(vec![Value { dtype: x.dtype, shape: without_added(shape, row, column), data }]);
        }
        // One entry a batch: where its operands start.
        let steps = [broadcast(&x.shape[..rx - 2], &batch), broadcast(&y.shape[..ry - 2], &batch)];
        let mut starts = Vec::new();
        let walk = Walk::new(&batch, [&steps[0], &steps[1]]);
        let [sx, sy] = walk.steps();
        walk.rows([0; 2], |[a, b]| {
            let each = |i: usize| ((a + sx * i as isize) as usize * m * k, (b + sy * i as isize) as usize * k * n);
            starts.extend((0..walk.row()).map(each));
        });
        let result = if floats {
            let mut out = context.take_shape::<f32>(&shape)?;
            let (a, b) = (x.f32s()?, y.f32s()?);
            let work = out.len().saturating_mul(k);
            threads::split(&mut out, m * n, work, context.threads(), |first, out| {
                for (out, &(xa, yb)) in out.chunks_mut((m * n).max(1)).zip(&starts[first..]) {
                    let (a, b) = (&a[xa..xa + m * k], &b[yb..yb + k * n]);
                    if transpose_y { times_transposed(sizes, a, b, out) } else { times(sizes, a, b, out) }
                }
            });
            Value::floats(x.dtype, &shape, out)
        } else {
            let mut out = context.take_shape::<i32>(&shape)?;
            out.fill(0);
            let (a, b) = (x.i32s()?, y.i32s()?);
            for (out, &(xa, yb)) in out.chunks_mut((m * n).max(1)).zip(&starts) {
                for i in 0..m {
                    for l in 0..k {
                        let s = a[xa + i * k + l];
                        for j in 0..n {
                            let o = &mut out[i * n + j];
                            *o = o.wrapping_add(s.wrapping_mul(b[yb + l * n + j]));
                        }
                    }
                }
            }
            Value::ints(x.dtype, &shape, out)
        };
        context.recycle(x);
        context.recycle(y);
        let shape = without_added(shape, row, column);
        Ok(vec![result.reshaped(shape)])
    })
}

/// A product's shape without the dimensions that made matrices of vectors.
fn without_added(mut shape: Vec<usize>, row: bool, column: bool) -> Vec<usize> {
    let rank = shape.len();
    if column {
        shape.remove(rank - 1);
    }
    if row {
        shape.remove(rank - 2);
    }
    shape
}

fn linear(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, weight, bias) = (site.operand("x")?, site.weight("weight")?, site.optional("bias")?);
    Kernel::computes(move |args, context| {
        let (x, weight, bias) = (args.get(x), args.get(weight), bias.map(|b| args.get(b)));
        let (Some(&k), &[n, wk]) = (x.shape.last(), &weight.shape[..]) else {
            return Err(Fault::new(format!("`x` is {:?}, the weight {:?}", x.shape, weight.shape)));
        };
        if k != wk || x.dtype != weight.dtype || bias.is_some_and(|b| b.len() != n && b.len() != 1) {
            return Err(Fault::new(format!("`x` {:?}, weight {:?} and bias do not fit", x.shape, weight.shape)));
        }
        let mut shape = x.shape.clone();
        shape[x.shape.len() - 1] = n;
        let rows: usize = x.shape[..x.shape.len() - 1].iter().product();
        if let Elements::Ints(_) = x.data {
            let (x_, w) = (x.i32s()?, weight.i32s()?);
            let bias = bias.map(Value::i32s).transpose()?;
            let mut out = context.take_shape::<i32>(&shape)?;
            for (p, out) in out.chunks_mut(n.max(1)).enumerate() {
                for (o, out) in out.iter_mut().enumerate() {
                    let start = bias.map_or(0, |b| b[if b.len() == 1 { 0 } else { o }]);
                    let products = x_[p * k..(p + 1) * k].iter().zip(&w[o * k..(o + 1) * k]);
                    *out = products.fold(start, |s, (a, b)| s.wrapping_add(a.wrapping_mul(*b)));
                }
            }
            return Ok(vec![Value::ints(x.dtype, &shape, out)]);
        }
        let bias = bias.map(Value::f32s).transpose()?;
        let mut columns = context.take::<f32>(n * rows)?;
        project(Rows::of(weight)?, bias, Sizes { m: rows, k, n }, x.f32s()?, &mut columns, context.threads());
        if rows == 1 {
            return Ok(vec![Value::floats(x.dtype, &shape, columns)]);
        }
        let columns = Value::floats(x.dtype, &[n, rows], columns);
        let out = transposed::<f32>(context, &columns, &[1, 0])?;
        context.recycle(columns);
        Ok(vec![out.reshaped(shape)])
    })
}

/// Every row of `weight` times every row of `x`, and the bias: `out[o, p] = weight[o] . x[p] + bias[o]`.
fn project(
    weight: Rows<'_>,
    bias: Option<&[f32]>,
    Sizes { m, k, n }: Sizes,
    x: &[f32],
    out: &mut [f32],
    threads: usize,
) {
    let work = m.saturating_mul(n).saturating_mul(k);
    threads::split(out, m, work, threads, |first, out| {
        let mut scratch = Vec::new();
        for (i, out) in out.chunks_mut(m.max(1)).enumerate() {
            let o = first + i;
            row_by_rows(weight.get(o * k, k, &mut scratch), x, out);
            if let Some(bias) = bias {
                let b = bias[if bias.len() == 1 { 0 } else { o }];
                out.iter_mut().for_each(|v| *v += b);
            }
        }
    });
}
