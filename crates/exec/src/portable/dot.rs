//! The inner loop of every projection: rows times rows.
//!
//! **The order in which a sum is formed is a function of its length alone.** Products go to eight partial sums, the i-th to
//! the sum `i mod 8`; these are added pairwise; what is left of the row is added one by one. A column computed alone, in a
//! group of four, or on another thread passes through the very same additions, which is what makes a token's result the
//! same whatever block it was computed in. The compiler vectorises the eight lanes; it never contracts or reorders.

use super::Fault;
use super::value::{Elements, Halves, Value};

const LANES: usize = 8;

/// The dot products of `w` with `N` rows of the same length.
#[inline]
fn dots<const N: usize>(w: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    let (blocks, tail) = w.as_chunks::<LANES>();
    let rows = rows.map(|r| r[..w.len()].as_chunks::<LANES>());
    let mut lanes = [[0.0f32; LANES]; N];
    for (i, w) in blocks.iter().enumerate() {
        for n in 0..N {
            let x = &rows[n].0[i];
            for l in 0..LANES {
                lanes[n][l] += w[l] * x[l];
            }
        }
    }
    std::array::from_fn(|n| {
        let l = &lanes[n];
        let sum = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
        tail.iter().zip(rows[n].1).fold(sum, |s, (w, x)| s + w * x)
    })
}

/// Writes to `out[p]` the dot product of `w` with the p-th row of `rows`.
pub fn row_by_rows(w: &[f32], rows: &[f32], out: &mut [f32]) {
    let k = w.len();
    if k == 0 {
        return out.fill(0.0);
    }
    let mut rows = rows.chunks_exact(4 * k);
    let mut outs = out.chunks_exact_mut(4);
    for (r, o) in (&mut rows).zip(&mut outs) {
        o.copy_from_slice(&dots(w, [&r[..k], &r[k..2 * k], &r[2 * k..3 * k], &r[3 * k..]]));
    }
    for (r, o) in rows.remainder().chunks_exact(k).zip(outs.into_remainder()) {
        [*o] = dots(w, [r]);
    }
}

/// Adds `scale * row` to `out`, element by element.
pub fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
    for (o, r) in out.iter_mut().zip(row) {
        *o += scale * r;
    }
}

/// A matrix whose rows are read one at a time, in whatever form it is stored.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Dense f32.
    Floats(&'a [f32]),
    /// fp16, widened on the way.
    Halves(&'a Halves),
}

impl<'a> Rows<'a> {
    /// The elements of a float value as rows.
    pub fn of(value: &'a Value) -> Result<Self, Fault> {
        match &value.data {
            Elements::Halves(h) => Ok(Rows::Halves(h)),
            _ => Ok(Rows::Floats(value.f32s()?)),
        }
    }

    /// The `len` elements from `start` on; `scratch` is where they are widened.
    pub fn get<'s>(&self, start: usize, len: usize, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        match self {
            Rows::Floats(v) => &v[start..start + len],
            Rows::Halves(h) => {
                scratch.resize(len, 0.0);
                h.widen(start, scratch);
                scratch
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_alone_or_among_four_is_the_same() {
        let k = 37;
        let w: Vec<f32> = (0..k).map(|i| (i as f32 * 0.37).sin()).collect();
        let rows: Vec<f32> = (0..7 * k).map(|i| (i as f32 * 0.11).cos() * 3.0).collect();
        let mut all = [0.0; 7];
        row_by_rows(&w, &rows, &mut all);
        for (p, row) in rows.chunks_exact(k).enumerate() {
            let mut one = [0.0];
            row_by_rows(&w, row, &mut one);
            assert_eq!(one[0].to_bits(), all[p].to_bits());
            let exact: f64 = w.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(one[0]) - exact).abs() < 1e-4);
        }
    }
}
