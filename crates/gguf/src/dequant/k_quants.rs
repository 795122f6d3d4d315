//! The k-quants: super-blocks of 256 elements whose sub-blocks of 16 or 32 have small integer scales (and, in half of
//! the types, minima) of their own, which one or two half-precision numbers scale in turn.
//!
//! Bits are laid out for wide registers: a run of bytes holds its low bits for one stretch of elements, its next bits
//! for the stretch after that. [`strided`] is that order.

use super::half_at;

/// Field `width` bits wide of element `i`, where each run of `run` bytes holds its lowest bits for `run` consecutive
/// elements, then its next bits for the next `run`.
#[inline(always)]
fn strided(bytes: &[u8], run: usize, width: usize, i: usize) -> u8 {
    let per_run = run * (8 / width);
    let byte = bytes[i / per_run * run + i % run];
    let shift = i % per_run / run * width;
    byte >> shift & ((1u16 << width) - 1) as u8
}

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let minimum = dmin * f32::from(scales[sub] >> 4);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(strided(qs, 32, 2, sub * 16 + i)) - minimum;
        }
    }
}

/// The high-bit mask is inverted: a clear bit subtracts four.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (mask, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (sub, out) in out.chunks_exact_mut(16).enumerate() {
        // Six bits: four in the first eight bytes, two in the last four.
        let bits = strided(&scales[..8], 8, 4, sub) | strided(&scales[8..], 4, 2, sub) << 4;
        let scale = d * f32::from(bits as i8 - 32);
        for (i, out) in out.iter_mut().enumerate() {
            let i = sub * 16 + i;
            let high = strided(mask, 32, 1, i) ^ 1;
            *out = scale * f32::from(strided(qs, 32, 2, i) as i8 - (high << 2) as i8);
        }
    }
}

/// The six-bit scale and minimum of sub-block `sub`, of eight, packed in twelve bytes: the first four of each are the
/// low six bits of bytes 0 to 7; the last four take their low nibbles from bytes 8 to 11 and their top two bits from
/// what is left of the first eight.
#[inline(always)]
fn scale_and_minimum(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let low = packed[sub + 4];
        (low & 15 | packed[sub - 4] >> 6 << 4, low >> 4 | packed[sub] >> 6 << 4)
    }
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, qs) = (&block[4..16], &block[16..]);
    let mut q = [0u8; 256];
    for (q, qs) in q.as_chunks_mut::<64>().0.iter_mut().zip(qs.as_chunks::<32>().0) {
        for i in 0..32 {
            (q[i], q[32 + i]) = (qs[i] & 15, qs[i] >> 4);
        }
    }
    for (sub, (out, q)) in out.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<32>().0).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (out, &q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(q) - minimum;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (packed, high, qs) = (&block[4..16], &block[16..48], &block[48..]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(packed, sub);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        for (i, out) in out.iter_mut().enumerate() {
            let i = sub * 32 + i;
            let q = strided(qs, 32, 4, i) | strided(high, 32, 1, i) << 4;
            *out = scale * f32::from(q) - minimum;
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    let mut q = [0i8; 256];
    // Half of the elements at a time: 64 bytes hold their low nibbles, 32 bytes their high pairs of bits.
    for ((q, low), high) in
        q.as_chunks_mut::<128>().0.iter_mut().zip(low.as_chunks::<64>().0).zip(high.as_chunks::<32>().0)
    {
        for i in 0..32 {
            let (a, b, h) = (low[i], low[32 + i], high[i]);
            q[i] = (a & 15 | (h & 3) << 4) as i8 - 32;
            q[32 + i] = (b & 15 | (h >> 2 & 3) << 4) as i8 - 32;
            q[64 + i] = (a >> 4 | (h >> 4 & 3) << 4) as i8 - 32;
            q[96 + i] = (b >> 4 | h >> 6 << 4) as i8 - 32;
        }
    }
    for ((out, q), &scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(q.as_chunks::<16>().0).zip(scales) {
        let scale = d * f32::from(scale as i8);
        for (out, &q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(q);
        }
    }
}

/// The last 32 bytes are sums of sixteen elements each, for dot products.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (out, &q) in out.iter_mut().zip(&block[4..260]) {
        *out = d * f32::from(q as i8);
    }
}
