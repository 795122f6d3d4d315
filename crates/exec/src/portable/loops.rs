//! The inner loops: a row times rows, and the conversions between fp16 and f32.
//!
//! **The order in which a sum is formed is a function of its length alone.** Products go to 32 partial sums, the i-th to the
//! sum `i mod 32`; these are folded in halves; what is left of the row is added one by one. Whatever else is computed
//! beside it, a column passes through the very same additions, which is what makes a token's result the same whatever block it
//! came in.
//!
//! There are no intrinsics here. The compiler turns 32 independent sums into vectors of any width, and it never contracts
//! or reorders, so the loop is compiled a second time for wider vectors and gives the same bits.

use super::Fault;
use super::value::{Elements, Stored, Value};

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

/// The sum of the partial sums, in halves. Out of line, so that they are stored as vectors: seen together with this tree, the
/// compiler would rather keep the loop's sums in pairs.
#[inline(never)]
fn folded(sums: &[f32; LANES]) -> f32 {
    let sixteen: [f32; 16] = std::array::from_fn(|i| sums[i] + sums[i + 16]);
    let eight: [f32; 8] = std::array::from_fn(|i| sixteen[i] + sixteen[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
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

/// The value of fp16 bits. Its exponent and fraction read as f32 are 2^112 too small, subnormals included; what had the
/// largest exponent is infinite or no number and gets the largest one again.
#[inline(always)]
fn widened(h: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(h & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | u32::from(h & 0x8000) << 16)
}

#[inline(always)]
fn widen_here(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = widened(u16::from_le_bytes(*b));
    }
}

/// The nearest value that fp16 holds, ties to even; infinite from 65520 on. A normal number loses its last 13 bits; a
/// smaller one is added to 0.5, whose last place is fp16's smallest subnormal.
#[inline(always)]
fn rounded(v: f32) -> f32 {
    let magnitude = v.abs();
    let bits = magnitude.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    let finite = if magnitude < 6.103_515_6e-5 { (magnitude + 0.5) - 0.5 } else { normal };
    let whole = if finite > 65504.0 { f32::INFINITY } else { finite };
    if v.is_nan() { v } else { whole.copysign(v) }
}

#[inline(always)]
fn round_to_f16_here(v: &mut [f32]) {
    v.iter_mut().for_each(|v| *v = rounded(*v));
}

#[inline(always)]
fn scale_here(bytes: &[u8], scale: f32, out: &mut [f32]) {
    for (o, &b) in out.iter_mut().zip(bytes) {
        *o = rounded(scale * f32::from(b as i8));
    }
}

/// The same loops for 256-bit vectors.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    #[target_feature(enable = "avx2")]
    pub fn widen(bytes: &[u8], out: &mut [f32]) {
        super::widen_here(bytes, out);
    }

    #[target_feature(enable = "avx2")]
    pub fn scale(bytes: &[u8], scale: f32, out: &mut [f32]) {
        super::scale_here(bytes, scale, out);
    }

    #[target_feature(enable = "avx2")]
    pub fn round_to_f16(v: &mut [f32]) {
        super::round_to_f16_here(v);
    }

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

/// Widens little-endian fp16 bytes.
pub fn widen(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature that the function asks for.
        return unsafe { avx2::widen(bytes, out) };
    }
    widen_here(bytes, out);
}

/// Dequantises int8: the nearest fp16 to `scale * q`. The product of an fp16 scale and eight bits is exact in f32.
pub fn scale(bytes: &[u8], scale: f32, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature that the function asks for.
        return unsafe { avx2::scale(bytes, scale, out) };
    }
    scale_here(bytes, scale, out);
}

/// Rounds every element to the nearest fp16, ties to even; beyond 65504 to infinity.
pub fn round_to_f16(v: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature that the function asks for.
        return unsafe { avx2::round_to_f16(v) };
    }
    round_to_f16_here(v);
}

/// A matrix whose rows are read one at a time, in whatever form it is stored.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Dense f32.
    Floats(&'a [f32]),
    /// A weight in its stored form, widened on the way.
    Stored(&'a Stored),
}

impl<'a> Rows<'a> {
    /// The elements of a float value as rows.
    pub fn of(value: &'a Value) -> Result<Self, Fault> {
        match &value.data {
            Elements::Stored(w) => Ok(Rows::Stored(w)),
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
            Rows::Stored(w) => {
                scratch.resize(len, 0.0);
                w.widen(start, scratch);
                scratch
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_fp16_widens_as_it_should() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut any, mut plain) = (vec![0.0; 1 << 16], vec![0.0; 1 << 16]);
        widen(&all, &mut any);
        widen_here(&all, &mut plain);
        for (i, (any, plain)) in any.iter().zip(plain).enumerate() {
            let expected = f16::from_bits(i as u16).to_f32();
            assert!(expected.is_nan() && any.is_nan() && plain.is_nan() || any.to_bits() == expected.to_bits());
            assert!(plain.is_nan() || plain.to_bits() == expected.to_bits());
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_fp16() {
        // Every fp16, what lies half-way to the next, and the f32 neighbours of both.
        let mut values: Vec<f32> =
            vec![f32::MAX, f32::MIN_POSITIVE, 1e-40, f32::from_bits(0x7f80_0001), 65519.996, 65520.0];
        for bits in 0..0x7c00u16 {
            let v = f16::from_bits(bits).to_f32();
            let half_way = (v + f16::from_bits(bits + 1).to_f32().min(65536.0)) / 2.0;
            values.extend([v, half_way].into_iter().flat_map(|v| [v.next_down(), v, v.next_up()]));
        }
        values.extend(values.clone().iter().map(|v| -v));
        let (mut any, mut plain) = (values.clone(), values.clone());
        round_to_f16(&mut any);
        round_to_f16_here(&mut plain);
        for ((v, any), plain) in values.iter().zip(any).zip(plain) {
            let expected = f16::from_f32(*v).to_f32();
            assert!(
                v.is_nan() && any.is_nan() && plain.is_nan() || any.to_bits() == expected.to_bits(),
                "{v:e}: {any:e}"
            );
            assert!(v.is_nan() || plain.to_bits() == expected.to_bits(), "{v:e}: {plain:e}");
        }
    }

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
