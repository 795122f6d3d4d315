//! Symmetric int8, in the arithmetic of coremltools 9.
//!
//! A published shard's numbers come from `linear_quantize_weights` over fp16 tensors, so that every step rounds to fp16:
//! with `m = max|w|`, `scale = fp16(fp16(2m) / 254)` and `q = clip(rint(fp16(w / scale)), -127, 127)`. Doing the same in f32
//! moves about one value in a hundred by one step. A quotient of two fp16 numbers that is rounded to f32 first and to fp16
//! second is the quotient rounded once, because f32 has more than twice the digits.
//!
//! The loops below say what is computed. Where the processor has wider vectors, `wide` computes the same bits; [`Simd::Plain`]
//! asks for the loops themselves.

#[cfg(target_arch = "x86_64")]
mod wide;

use anemone_gguf::simd::Simd;
use half::f16;

/// Rounds `row` to fp16 into `out` and returns the largest magnitude there: infinite where a value is beyond fp16, and NaN
/// where one is NaN, so that a finite result says that all of them are.
///
/// # Panics
/// If the two slices differ in length.
pub fn narrow(row: &[f32], out: &mut [f16]) -> f16 {
    narrow_with(Simd::best(), row, out)
}

/// [`narrow`] with vectors of the caller's choice, which do not change a bit of the result.
///
/// # Panics
/// If the two slices differ in length.
pub fn narrow_with(simd: Simd, row: &[f32], out: &mut [f16]) -> f16 {
    assert_eq!(row.len(), out.len());
    match simd {
        Simd::Plain => narrow_plain(row, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2(token) => wide::narrow_avx2(token, row, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512(token) => wide::narrow_avx512(token, row, out),
    }
}

fn narrow_plain(row: &[f32], out: &mut [f16]) -> f16 {
    // The order of magnitudes is the order of their bits, infinity and NaN above all others.
    let mut peak = 0;
    for (out, &w) in out.iter_mut().zip(row) {
        *out = f16::from_f32(w);
        peak = peak.max(out.to_bits() & 0x7fff);
    }
    f16::from_bits(peak)
}

/// The scale of everything whose largest magnitude is `peak`. It is zero where `peak` is zero or too small, and infinite
/// where twice that overflows: [`quantize`] says what becomes of the weights then.
pub fn scale(peak: f16) -> f16 {
    let span = f16::from_f32(peak.to_f32() * 2.0);
    f16::from_f32(span.to_f32() / 254.0)
}

/// Quantises `weights` with one scale into `out`.
///
/// Where the scale is zero the quotient is infinite (the value clips to ±127) or, for a zero weight, undefined: it is 0.
/// Where the scale is infinite every finite value is 0. A quotient that is NaN for another reason is 0 too; [`narrow`] is
/// where such weights are found.
///
/// # Panics
/// If the two slices differ in length.
pub fn quantize(weights: &[f16], scale: f16, out: &mut [i8]) {
    quantize_with(Simd::best(), weights, scale, out);
}

/// [`quantize`] with vectors of the caller's choice, which do not change a bit of the result.
///
/// # Panics
/// If the two slices differ in length.
pub fn quantize_with(simd: Simd, weights: &[f16], scale: f16, out: &mut [i8]) {
    assert_eq!(weights.len(), out.len());
    match simd {
        Simd::Plain => quantize_plain(weights, scale, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2(token) => wide::quantize_avx2(token, weights, scale, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512(token) => wide::quantize_avx512(token, weights, scale, out),
    }
}

fn quantize_plain(weights: &[f16], scale: f16, out: &mut [i8]) {
    let scale = scale.to_f32();
    for (q, w) in out.iter_mut().zip(weights) {
        let quotient = f16::from_f32(w.to_f32() / scale).to_f32();
        // The cast from NaN gives 0, and the clamp comes first, so the cast itself never saturates.
        *q = quotient.round_ties_even().clamp(-127.0, 127.0) as i8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantized(weights: &[f32]) -> (f16, Vec<i8>) {
        let mut row = vec![f16::ZERO; weights.len()];
        let scale = scale(narrow(weights, &mut row));
        let mut out = vec![0; weights.len()];
        quantize(&row, scale, &mut out);
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

    /// Every width against plain, which is called first; lengths that are no multiple of a vector included.
    fn same_integers(weights: &[f16], scale: f16) -> Result<(), String> {
        let run = |simd| {
            let mut out = vec![99; weights.len()];
            quantize_with(simd, weights, scale, &mut out);
            out
        };
        let plain = run(Simd::Plain);
        for simd in Simd::available() {
            for (i, (p, w)) in plain.iter().zip(run(simd)).enumerate() {
                if *p != w {
                    return Err(format!("{:?} / {scale:?} is {w} with {simd}, {p} without", weights[i]));
                }
            }
        }
        Ok(())
    }

    fn same_halves(row: &[f32]) -> Result<(), String> {
        // The conversion in software, whatever the processor offers.
        let exact: Vec<u16> = row.iter().map(|&w| f16::from_f32_const(w).to_bits()).collect();
        let peak = exact.iter().map(|bits| bits & 0x7fff).max().unwrap_or(0);
        for simd in Simd::available() {
            let mut out = vec![f16::ONE; row.len()];
            let found = narrow_with(simd, row, &mut out).to_bits();
            let out: Vec<u16> = out.iter().map(|h| h.to_bits()).collect();
            if out != exact || found != peak {
                return Err(format!(
                    "{row:?} with {simd}: {out:x?} of peak {found:x}, expected {exact:x?} of {peak:x}"
                ));
            }
        }
        Ok(())
    }

    #[test]
    fn every_scale_gives_the_same_integers_at_every_width() {
        let special = [0x0000u16, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff];
        for bits in 0..=u16::MAX {
            let scale = f16::from_bits(bits);
            // Quotients of every size around the range of int8, ties among them, and the special values.
            let multiples = (0..60).map(|i| f16::from_f32(scale.to_f32() * (i as f32 * 4.5 - 131.5)));
            let weights: Vec<f16> = multiples.chain(special.map(f16::from_bits)).chain([scale]).collect();
            same_integers(&weights, scale).unwrap();
        }
    }

    #[test]
    fn every_weight_gives_the_same_integers_at_every_width() {
        let weights: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for scale in [0x0000u16, 0x0001, 0x03ff, 0x0400, 0x1403, 0x2e66, 0x3c00, 0x5bff, 0x7bff, 0x7c00, 0xfc00, 0x7e00]
        {
            same_integers(&weights, f16::from_bits(scale)).unwrap();
        }
    }

    #[test]
    fn every_half_and_its_neighbours_narrow_to_the_same_bits_at_every_width() {
        for bits in 0..=u16::MAX {
            // The value itself, the middle to the next one (where ties are decided), and one f32 step to either side of it.
            let exact = f16::from_bits(bits).to_f32().to_bits();
            let middle = exact.wrapping_add(0x1000);
            let row = [exact, middle.wrapping_sub(1), middle, middle.wrapping_add(1)].map(f32::from_bits);
            same_halves(&row.repeat(5)[..17]).unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_row_narrows_to_the_same_bits_at_every_width(row in prop::collection::vec(any::<u32>(), 0..100)) {
            let row: Vec<f32> = row.into_iter().map(f32::from_bits).collect();
            prop_assert_eq!(same_halves(&row), Ok(()));
        }

        #[test]
        fn any_row_quantises_to_the_same_integers_at_every_width(
            row in prop::collection::vec(any::<u16>(), 0..200),
            scale in any::<u16>(),
        ) {
            let row: Vec<f16> = row.into_iter().map(f16::from_bits).collect();
            prop_assert_eq!(same_integers(&row, f16::from_bits(scale)), Ok(()));
        }
    }
}
