//! The inner loop of every projection: a row times rows.
//!
//! **The order in which a sum is formed is a function of its length alone.** Products go to 32 partial sums, the i-th to the
//! sum `i mod 32`; these are folded in halves; what is left of the row is added one by one. Whatever else is computed
//! beside it, a column passes through the very same additions, which is what makes a token's result the same whatever block it
//! came in.
//!
//! There are no intrinsics here. The compiler turns 32 independent sums into vectors of any width, and it never contracts
//! or reorders, so the loop is compiled a second time for wider vectors and gives the same bits.

use super::Fault;
use super::value::{Elements, Halves, Value};

const LANES: usize = 32;

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    a_rest.iter().zip(b_rest).fold(folded(&sums), |sum, (a, b)| sum + a * b)
}

/// The sum of the partial sums. Out of line, so that they are stored as vectors: seen together with this tree, the compiler
/// would rather keep the loop's sums in pairs.
#[inline(never)]
fn folded(sums: &[f32; LANES]) -> f32 {
    let mut sums = *sums;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn row_by_rows_here(w: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(w.len()).zip(out) {
        *out = dot(w, row);
    }
}

#[inline(always)]
fn add_scaled_here(out: &mut [f32], scale: f32, row: &[f32]) {
    for (o, r) in out.iter_mut().zip(row) {
        *o += scale * r;
    }
}

/// The same loops for 256-bit vectors.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[target_feature(enable = "avx2")]
    pub fn row_by_rows(w: &[f32], rows: &[f32], out: &mut [f32]) {
        super::row_by_rows_here(w, rows, out);
    }

    #[target_feature(enable = "avx2")]
    pub fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
        super::add_scaled_here(out, scale, row);
    }
}

/// Writes to `out[p]` the dot product of `w` with the p-th row of `rows`.
pub fn row_by_rows(w: &[f32], rows: &[f32], out: &mut [f32]) {
    if w.is_empty() {
        return out.fill(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature that the function asks for.
        return unsafe { avx2::row_by_rows(w, rows, out) };
    }
    row_by_rows_here(w, rows, out);
}

/// Adds `scale * row` to `out`, element by element.
pub fn add_scaled(out: &mut [f32], scale: f32, row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature that the function asks for.
        return unsafe { avx2::add_scaled(out, scale, row) };
    }
    add_scaled_here(out, scale, row);
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
    fn wider_vectors_give_the_same_bits() {
        for k in [1, 31, 32, 64, 101] {
            let w: Vec<f32> = (0..k).map(|i| (i as f32 * 0.37).sin()).collect();
            let rows: Vec<f32> = (0..7 * k).map(|i| (i as f32 * 0.11).cos() * 3.0).collect();
            let (mut any, mut plain) = ([0.0; 7], [0.0; 7]);
            row_by_rows(&w, &rows, &mut any);
            row_by_rows_here(&w, &rows, &mut plain);
            assert_eq!(any.map(f32::to_bits), plain.map(f32::to_bits));
            for (row, sum) in rows.chunks_exact(k).zip(plain) {
                let exact: f64 = w.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!((f64::from(sum) - exact).abs() < 1e-4);
            }
            let (mut any, mut plain) = (rows.clone(), rows.clone());
            add_scaled(&mut any, 0.3, &w);
            add_scaled_here(&mut plain, 0.3, &w);
            assert_eq!(any, plain);
        }
    }
}
