//! Dequantisation compiled for vectors wider than the target's baseline.

#![allow(unsafe_code)]

use super::rows;
use crate::BlockType;
use crate::simd::{Avx2, Avx512};

pub(super) fn avx2(_: Avx2, ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    #[target_feature(enable = "avx2,f16c")]
    fn compiled(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
        rows(ty, bytes, out);
    }
    // SAFETY: the token exists only where the processor has these features.
    unsafe { compiled(ty, bytes, out) }
}

pub(super) fn avx512(_: Avx512, ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    fn compiled(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
        rows(ty, bytes, out);
    }
    // SAFETY: the token exists only where the processor has these features.
    unsafe { compiled(ty, bytes, out) }
}
