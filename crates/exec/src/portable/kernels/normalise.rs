//! Softmax and the norms. All compute in f32 throughout and round once, at the end.

use crate::portable::Fault;
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::value::{Elements, Value, axis_of};

use super::reduce::{axes_of, blocks};
use super::shape::{transposed, transposed_vec};

/// The kernel of a normalising op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "softmax" => softmax,
        "layer_norm" => layer_norm,
        "l2_norm" => l2_norm,
        "batch_norm" => batch_norm,
        "instance_norm" => instance_norm,
        _ => return None,
    })
}

/// Below this, the exponential is zero in f32. Most of an attention mask is.
const VANISHES: f32 = -104.0;

/// Softmax of one contiguous row, in place.
pub fn softmax_row(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f32;
    for v in row.iter_mut() {
        let below = *v - largest;
        *v = if below < VANISHES { 0.0 } else { below.exp() };
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
}

fn softmax(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axis = site.int("axis")?;
    Kernel::computes(move |args, context| {
        let mut x = args.take(x);
        let axis = axis_of(axis, x.shape.len())?;
        let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
        if inner > 1 {
            // Rare: bring the axis to the end and back.
            let rank = x.shape.len();
            let mut perm: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
            perm.push(axis);
            let mut back = vec![0; rank];
            perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
            let (shape, mut rows) = transposed_vec::<f32>(context, &x, &perm)?;
            rows.chunks_exact_mut(n.max(1)).for_each(softmax_row);
            return Ok(vec![transposed::<f32>(context, &Value::floats(x.dtype, &shape, rows), &back)?]);
        }
        if let Elements::Floats(b) = &mut x.data
            && let Some(own) = b.unique()
        {
            own.chunks_exact_mut(n.max(1)).for_each(softmax_row);
            return Ok(vec![x]);
        }
        let mut out = context.take::<f32>(x.len())?;
        out.copy_from_slice(x.f32s()?);
        out.chunks_exact_mut(n.max(1)).for_each(softmax_row);
        Ok(vec![Value::floats(x.dtype, &x.shape, out)])
    })
}

/// Mean and biased variance of `n` elements, the variance around the mean.
fn moments(row: impl Iterator<Item = f32> + Clone, n: usize) -> (f32, f32) {
    let mean = row.clone().sum::<f32>() / n as f32;
    let variance = row.map(|v| (v - mean) * (v - mean)).sum::<f32>() / n as f32;
    (mean, variance)
}

fn layer_norm(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axes = site.ints("axes")?;
    let (gamma, beta) = (site.floats("gamma")?, site.floats("beta")?);
    let epsilon = site.float("epsilon")?;
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        let rank = x.shape.len();
        let axes = axes_of(axes.as_deref(), rank)?;
        let kept: Vec<usize> = (0..rank).filter(|a| !axes.contains(a)).collect();
        let perm: Vec<usize> = kept.iter().chain(&axes).copied().collect();
        let n: usize = axes.iter().map(|&a| x.shape[a]).product();
        if [&gamma, &beta].into_iter().flatten().any(|v| v.len() != n) {
            return Err(Fault::new(format!("gamma or beta does not have {n} elements")));
        }
        let (shape, mut rows) = transposed_vec::<f32>(context, x, &perm)?;
        for row in rows.chunks_exact_mut(n.max(1)) {
            let (mean, variance) = moments(row.iter().copied(), n);
            let scale = 1.0 / (variance + epsilon).sqrt();
            for (i, v) in row.iter_mut().enumerate() {
                *v = (*v - mean) * scale * gamma.as_ref().map_or(1.0, |g| g[i]) + beta.as_ref().map_or(0.0, |b| b[i]);
            }
        }
        let rows = Value::floats(x.dtype, &shape, rows);
        let mut back = vec![0; rank];
        perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
        Ok(vec![if back.is_sorted() { rows } else { transposed::<f32>(context, &rows, &back)? }])
    })
}

/// Divides by the root of the sum of squares over the last three dimensions.
fn l2_norm(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let epsilon = site.float("epsilon")?;
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        let rank = x.shape.len();
        if rank < 3 {
            return Err(Fault::new(format!("rank {rank}, expected at least 3")));
        }
        let axes: Vec<usize> = (rank - 3..rank).collect();
        let (_, cut) = blocks::<f32>(context, x, &axes)?;
        let mut out = context.take::<f32>(x.len())?;
        let n = cut.count.max(1);
        for (row, out) in x.f32s()?.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let norm = (row.iter().map(|v| v * v).sum::<f32>() + epsilon).sqrt();
            out.iter_mut().zip(row).for_each(|(o, v)| *o = v / norm);
        }
        Ok(vec![Value::floats(x.dtype, &x.shape, out)])
    })
}

/// Normalises a value whose dimension 1 is the channel: `moments` gives a channel's mean and variance from its elements.
/// In double precision: nothing is gained by less, and `x - mean` may cancel.
fn per_channel(
    x: &Value,
    out: &mut [f32],
    affine: &Affine,
    moments: impl Fn(usize, &[f32]) -> (f64, f64),
) -> Result<(), Fault> {
    let (channels, inner) = (x.shape[1], x.shape[2..].iter().product::<usize>().max(1));
    for (i, (row, out)) in x.f32s()?.chunks_exact(inner).zip(out.chunks_exact_mut(inner)).enumerate() {
        let channel = i % channels;
        let (mean, variance) = moments(channel, row);
        let scale = affine.gamma.as_ref().map_or(1.0, |g| f64::from(g[channel])) / (variance + affine.epsilon).sqrt();
        let shift = affine.beta.as_ref().map_or(0.0, |b| f64::from(b[channel]));
        out.iter_mut().zip(row).for_each(|(o, &v)| *o = ((f64::from(v) - mean) * scale + shift) as f32);
    }
    Ok(())
}

/// What is applied after normalising.
struct Affine {
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    epsilon: f64,
}

impl Affine {
    fn of(site: &mut Site<'_>) -> Result<Self, Fault> {
        let (gamma, beta) = (site.floats("gamma")?, site.floats("beta")?);
        Ok(Self { gamma, beta, epsilon: f64::from(site.float("epsilon")?) })
    }

    /// Refuses a value that has not one channel for each parameter.
    fn check(&self, x: &Value, others: &[&[f32]]) -> Result<(), Fault> {
        let own = [&self.gamma, &self.beta].into_iter().flatten().map(Vec::as_slice);
        if x.shape.len() < 3 || own.chain(others.iter().copied()).any(|v| v.len() != x.shape[1]) {
            return Err(Fault::new(format!("`x` {:?} does not have one channel for each parameter", x.shape)));
        }
        Ok(())
    }
}

fn batch_norm(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let mean = site.floats("mean")?.unwrap_or_default();
    let variance = site.floats("variance")?.unwrap_or_default();
    let affine = Affine::of(site)?;
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        affine.check(x, &[&mean, &variance])?;
        let mut out = context.take::<f32>(x.len())?;
        per_channel(x, &mut out, &affine, |c, _| (mean[c].into(), variance[c].into()))?;
        Ok(vec![Value::floats(x.dtype, &x.shape, out)])
    })
}

fn instance_norm(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let affine = Affine::of(site)?;
    Kernel::computes(move |args, context| {
        let x = args.get(x);
        affine.check(x, &[])?;
        let mut out = context.take::<f32>(x.len())?;
        per_channel(x, &mut out, &affine, |_, row| {
            let (mean, variance) = moments(row.iter().copied(), row.len());
            (mean.into(), variance.into())
        })?;
        Ok(vec![Value::floats(x.dtype, &x.shape, out)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vanishes_is_zero() {
        assert_eq!(VANISHES.exp(), 0.0);
        let mut row = [0.0, VANISHES.next_up(), VANISHES.next_down(), -1e4, f32::NEG_INFINITY];
        softmax_row(&mut row);
        assert_eq!(row, [1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
