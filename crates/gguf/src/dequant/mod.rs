//! From blocks to `f32`.
//!
//! Each block type is one function from the block's bytes to its elements, written from the layout and with the
//! operations in the order that decides the last bit, so the result is that of ggml's reference code. Families share a
//! file.

mod fp4;
mod grids;
mod i_quants;
mod k_quants;
mod legacy;
mod plain;
mod ternary;
#[cfg(target_arch = "x86_64")]
mod wide;

use crate::simd::Simd;
use crate::{BlockType, Error};

/// Dequantises consecutive blocks of type `ty` into `out`, with the widest vectors that the processor has.
///
/// Integers and `F64` are converted to the nearest `f32`.
///
/// # Errors
/// [`Error::BlockSize`] unless `bytes` is exactly the blocks of `out.len()` elements.
pub fn dequantize(ty: BlockType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    dequantize_with(Simd::best(), ty, bytes, out)
}

/// [`dequantize`] with vectors of the caller's choice, which do not change a bit of the result (of a NaN that arithmetic
/// makes, IEEE leaves sign and payload open).
///
/// # Errors
/// As [`dequantize`].
pub fn dequantize_with(simd: Simd, ty: BlockType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    if ty.bytes_of(out.len()) != Some(bytes.len()) {
        return Err(Error::BlockSize { ty, bytes: bytes.len(), elements: out.len() });
    }
    match simd {
        Simd::Plain => rows(ty, bytes, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2(token) => wide::avx2(token, ty, bytes, out),
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512(token) => wide::avx512(token, ty, bytes, out),
    }
    Ok(())
}

/// Whole blocks, of a type whose sizes have been checked. It is inlined, and with it the hot types, into functions that are
/// compiled for wider vectors: one source, so the plain form and the wide ones cannot drift apart.
#[inline(always)]
fn rows(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        BlockType::F32 => blocks(bytes, out, plain::f32),
        BlockType::F16 => blocks(bytes, out, plain::f16),
        BlockType::BF16 => blocks(bytes, out, plain::bf16),
        BlockType::F64 => blocks(bytes, out, plain::f64),
        BlockType::I8 => blocks(bytes, out, plain::i8),
        BlockType::I16 => blocks(bytes, out, plain::i16),
        BlockType::I32 => blocks(bytes, out, plain::i32),
        BlockType::I64 => blocks(bytes, out, plain::i64),
        BlockType::Q4_0 => blocks(bytes, out, legacy::q4_0),
        BlockType::Q4_1 => blocks(bytes, out, legacy::q4_1),
        BlockType::Q5_0 => blocks(bytes, out, legacy::q5_0),
        BlockType::Q5_1 => blocks(bytes, out, legacy::q5_1),
        BlockType::Q8_0 => blocks(bytes, out, legacy::q8_0),
        BlockType::Q8_1 => blocks(bytes, out, legacy::q8_1),
        BlockType::Q1_0 => blocks(bytes, out, legacy::q1_0),
        BlockType::Q2_K => blocks(bytes, out, k_quants::q2_k),
        BlockType::Q3_K => blocks(bytes, out, k_quants::q3_k),
        BlockType::Q4_K => blocks(bytes, out, k_quants::q4_k),
        BlockType::Q5_K => blocks(bytes, out, k_quants::q5_k),
        BlockType::Q6_K => blocks(bytes, out, k_quants::q6_k),
        BlockType::Q8_K => blocks(bytes, out, k_quants::q8_k),
        BlockType::IQ2_XXS => blocks(bytes, out, i_quants::iq2_xxs),
        BlockType::IQ2_XS => blocks(bytes, out, i_quants::iq2_xs),
        BlockType::IQ2_S => blocks(bytes, out, i_quants::iq2_s),
        BlockType::IQ3_XXS => blocks(bytes, out, i_quants::iq3_xxs),
        BlockType::IQ3_S => blocks(bytes, out, i_quants::iq3_s),
        BlockType::IQ1_S => blocks(bytes, out, i_quants::iq1_s),
        BlockType::IQ1_M => blocks(bytes, out, i_quants::iq1_m),
        BlockType::IQ4_NL => blocks(bytes, out, i_quants::iq4_nl),
        BlockType::IQ4_XS => blocks(bytes, out, i_quants::iq4_xs),
        BlockType::TQ1_0 => blocks(bytes, out, ternary::tq1_0),
        BlockType::TQ2_0 => blocks(bytes, out, ternary::tq2_0),
        BlockType::MXFP4 => blocks(bytes, out, fp4::mxfp4),
        BlockType::NVFP4 => blocks(bytes, out, fp4::nvfp4),
    }
}

/// Applies one block's function to all of them.
#[inline(always)]
fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    let (bytes, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for (bytes, out) in bytes.iter().zip(out) {
        block(bytes, out);
    }
}

/// The half-precision number in two bytes at `at`.
#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    plain::half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Low nibbles to the first half of `out`, high nibbles to the second. `element` gets its index and its nibble.
#[inline(always)]
fn nibbles(bytes: &[u8], out: &mut [f32], element: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for (i, ((low, high), byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = element(i, byte & 15);
        *high = element(bytes.len() + i, byte >> 4);
    }
}
