//! Symmetric int8, in the arithmetic of coremltools 9.
//!
//! A published shard's numbers come from `linear_quantize_weights` over fp16 tensors, so that every step rounds to fp16:
//! with `m = max|w|`, `scale = fp16(fp16(2m) / 254)` and `q = clip(rint(fp16(w / scale)), -127, 127)`. Doing the same in f32
//! moves about one value in a hundred by one step. A quotient of two fp16 numbers that is rounded to f32 first and to fp16
//! second is the quotient rounded once, because f32 has more than twice the digits.

use half::f16;

/// The largest magnitude of a row or tensor; 0 for none. NaN is ignored: the caller has refused it.
pub fn max_abs(weights: &[f16]) -> f16 {
    // The order of finite magnitudes is the order of their bits.
    f16::from_bits(weights.iter().map(|w| w.to_bits() & 0x7fff).max().unwrap_or(0))
}

/// The scale of everything whose largest magnitude is `max`. It is zero where `max` is zero or too small, and infinite
/// where `2 max` overflows: [`quantize`] says what becomes of the weights then.
pub fn scale(max: f16) -> f16 {
    let span = f16::from_f32(max.to_f32() * 2.0);
    f16::from_f32(span.to_f32() / 254.0)
}

/// Quantises `weights` with one scale into `out`.
///
/// Where the scale is zero the quotient is infinite (the value clips to ±127) or, for a zero weight, undefined: it is 0.
/// Where the scale is infinite every value is 0.
///
/// # Panics
/// If the two slices differ in length.
pub fn quantize(weights: &[f16], scale: f16, out: &mut [i8]) {
    assert_eq!(weights.len(), out.len());
    let scale = scale.to_f32();
    for (q, w) in out.iter_mut().zip(weights) {
        let quotient = f16::from_f32(w.to_f32() / scale).to_f32();
        // The cast from NaN gives 0, and the clamp comes first, so the cast itself never saturates.
        *q = quotient.round_ties_even().clamp(-127.0, 127.0) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(weights: &[f32]) -> (f16, Vec<i8>) {
        let weights: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
        let scale = scale(max_abs(&weights));
        let mut out = vec![0; weights.len()];
        quantize(&weights, scale, &mut out);
        (scale, out)
    }

    #[test]
    fn edges_are_what_coremltools_gives() {
        assert_eq!(quantized(&[0.0, -0.0]), (f16::ZERO, vec![0, 0]));
        assert_eq!(quantized(&[40000.0, -1.0]), (f16::INFINITY, vec![0, 0]));
        let tiny = f16::from_bits(1).to_f32();
        assert_eq!(quantized(&[tiny, -tiny, 0.0]), (f16::ZERO, vec![127, -127, 0]));
    }

    #[test]
    fn ties_round_to_even() {
        // max 127 gives scale 1 exactly.
        assert_eq!(quantized(&[127.0, 0.5, 1.5, -2.5]).1, vec![127, 0, 2, -2]);
    }
}
