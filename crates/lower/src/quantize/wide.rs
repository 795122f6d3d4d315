//! The loops of the parent module in vectors: F16C does the conversions, eight or sixteen at a time. What does not fill a
//! vector goes through the plain loops.
//!
//! Nothing here is fused or approximated, and every conversion names its rounding, so the results are those of the plain
//! loops. Two facts of the instruction set carry the edges: an ordered comparison of a NaN with itself is false, which is how a
//! NaN quotient becomes 0; and the conversion to integers rounds ties to even, the mode that every Rust program runs in.

use std::arch::x86_64::*;

use anemone_gguf::simd::{Avx2, Avx512};
use half::f16;

use super::{narrow_plain, quantize_plain};

const NEAREST_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT;

pub(super) fn narrow_avx2(_: Avx2, row: &[f32], out: &mut [f16]) -> f16 {
    // SAFETY: the token exists only where the processor has the features.
    unsafe { narrow_8(row, out) }
}

pub(super) fn narrow_avx512(_: Avx512, row: &[f32], out: &mut [f16]) -> f16 {
    // SAFETY: the token exists only where the processor has the features.
    unsafe { narrow_16(row, out) }
}

pub(super) fn quantize_avx2(_: Avx2, weights: &[f16], scale: f16, out: &mut [i8]) {
    // SAFETY: the token exists only where the processor has the features.
    unsafe { quantize_8(weights, scale, out) }
}

pub(super) fn quantize_avx512(_: Avx512, weights: &[f16], scale: f16, out: &mut [i8]) {
    // SAFETY: the token exists only where the processor has the features.
    unsafe { quantize_16(weights, scale, out) }
}

#[target_feature(enable = "avx2,f16c")]
fn narrow_8(row: &[f32], out: &mut [f16]) -> f16 {
    let (row, row_rest) = row.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    let magnitude = _mm_set1_epi16(0x7fff);
    let mut peaks = _mm_setzero_si128();
    for (row, out) in row.iter().zip(out) {
        // SAFETY: the array is the 32 bytes that are read.
        let wide = unsafe { _mm256_loadu_ps(row.as_ptr()) };
        let halves = _mm256_cvtps_ph::<NEAREST_EVEN>(wide);
        // SAFETY: the array is the 16 bytes that are written, and any bits are an f16.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), halves) };
        peaks = _mm_max_epu16(peaks, _mm_and_si128(halves, magnitude));
    }
    largest(peaks, narrow_plain(row_rest, out_rest))
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn narrow_16(row: &[f32], out: &mut [f16]) -> f16 {
    let (row, row_rest) = row.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    let magnitude = _mm256_set1_epi16(0x7fff);
    let mut peaks = _mm256_setzero_si256();
    for (row, out) in row.iter().zip(out) {
        // SAFETY: the array is the 64 bytes that are read.
        let wide = unsafe { _mm512_loadu_ps(row.as_ptr()) };
        let halves = _mm512_cvtps_ph::<NEAREST_EVEN>(wide);
        // SAFETY: the array is the 32 bytes that are written, and any bits are an f16.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), halves) };
        peaks = _mm256_max_epu16(peaks, _mm256_and_si256(halves, magnitude));
    }
    let peaks = _mm_max_epu16(_mm256_castsi256_si128(peaks), _mm256_extracti128_si256::<1>(peaks));
    largest(peaks, narrow_plain(row_rest, out_rest))
}

/// The largest of eight magnitudes and one more.
#[target_feature(enable = "avx2")]
fn largest(peaks: __m128i, rest: f16) -> f16 {
    let mut lanes = [0u16; 8];
    // SAFETY: the array is the 16 bytes that are written.
    unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), peaks) };
    f16::from_bits(lanes.into_iter().fold(rest.to_bits(), u16::max))
}

#[target_feature(enable = "avx2,f16c")]
fn quantize_8(weights: &[f16], scale: f16, out: &mut [i8]) {
    let (weights, weights_rest) = weights.as_chunks::<32>();
    let (out, out_rest) = out.as_chunks_mut::<32>();
    let divisor = _mm256_set1_ps(scale.to_f32());
    for (weights, out) in weights.iter().zip(out) {
        let [a, b, c, d] = [0, 8, 16, 24].map(|at| {
            // SAFETY: the array holds 16 bytes at each of these four places.
            let halves = unsafe { _mm_loadu_si128(weights.as_ptr().add(at).cast()) };
            integers_8(halves, divisor)
        });
        // The clamp has left nothing to saturate. Packing interleaves the halves of its operands, 4 bytes at a time.
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: the array is the 32 bytes that are written.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), ordered) };
    }
    quantize_plain(weights_rest, scale, out_rest);
}

#[target_feature(enable = "avx2,f16c")]
fn integers_8(halves: __m128i, divisor: __m256) -> __m256i {
    let quotient = _mm256_div_ps(_mm256_cvtph_ps(halves), divisor);
    let rounded = _mm256_cvtph_ps(_mm256_cvtps_ph::<NEAREST_EVEN>(quotient));
    let ordered = _mm256_and_ps(rounded, _mm256_cmp_ps::<_CMP_ORD_Q>(rounded, rounded));
    let limit = _mm256_set1_ps(127.0);
    let clamped = _mm256_min_ps(_mm256_max_ps(ordered, _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit);
    _mm256_cvtps_epi32(clamped)
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize_16(weights: &[f16], scale: f16, out: &mut [i8]) {
    let (weights, weights_rest) = weights.as_chunks::<16>();
    let (out, out_rest) = out.as_chunks_mut::<16>();
    let divisor = _mm512_set1_ps(scale.to_f32());
    let (low, high) = (_mm512_set1_ps(-127.0), _mm512_set1_ps(127.0));
    for (weights, out) in weights.iter().zip(out) {
        // SAFETY: the array is the 32 bytes that are read.
        let halves = unsafe { _mm256_loadu_si256(weights.as_ptr().cast()) };
        let quotient = _mm512_div_ps(_mm512_cvtph_ps(halves), divisor);
        let rounded = _mm512_cvtph_ps(_mm512_cvtps_ph::<NEAREST_EVEN>(quotient));
        let ordered = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(rounded, rounded);
        let clamped = _mm512_min_ps(_mm512_max_ps(rounded, low), high);
        let integers = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(ordered, clamped));
        // SAFETY: the array is the 16 bytes that are written.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), integers) };
    }
    quantize_plain(weights_rest, scale, out_rest);
}
