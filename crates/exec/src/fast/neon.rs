//! NEON, part of every 64-bit ARM processor.

use std::arch::aarch64::*;

use super::simd::{LANES, Simd};

/// NEON; there is nothing to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

impl Neon {
    /// The token.
    pub fn new() -> Self {
        Self(())
    }
}

/// One operation on all four quarters.
macro_rules! quarters {
    ($f:ident($($v:expr),*)) => {
        // SAFETY: see the impl.
        unsafe { [$f($($v[0]),*), $f($($v[1]),*), $f($($v[2]),*), $f($($v[3]),*)] }
    };
}

// SAFETY: the target has NEON; what the intrinsics read and write is as the callers of the trait's methods promise.
unsafe impl Simd for Neon {
    type F32 = [float32x4_t; 4];
    type Sum = [int32x4_t; 4];
    type Weights = [int16x8_t; 4];

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F32 {
        // SAFETY: see the impl.
        let bytes = unsafe { p.cast::<[u8; 32]>().read_unaligned() };
        let lanes: [f32; LANES] =
            std::array::from_fn(|i| half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32());
        // SAFETY: sixteen lanes.
        unsafe { self.load(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[f32; LANES], p: *const u8) -> Self::F32 {
        // SAFETY: see the impl; the table has 64 bytes, and so has what is stored.
        unsafe {
            let bytes = vld1_u8(p);
            let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
            let indices = vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
            // Byte by byte: the four bytes of the entries come as four tables, and are woven together again on the way back.
            let planes = vld4q_u8(table.as_ptr().cast());
            let found = uint8x16x4_t(
                vqtbl1q_u8(planes.0, indices),
                vqtbl1q_u8(planes.1, indices),
                vqtbl1q_u8(planes.2, indices),
                vqtbl1q_u8(planes.3, indices),
            );
            let mut lanes = [0.0f32; LANES];
            vst4q_u8(lanes.as_mut_ptr().cast(), found);
            self.load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F32) {
        // SAFETY: see the impl.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(p.add(4 * i), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F32) {
        // SAFETY: see the impl.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1_s16(p.add(4 * i), vqmovn_s32(vcvtnq_s32_f32(v)));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        quarters!(vminq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        quarters!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        quarters!(vrndnq_f32(v))
    }
    #[inline(always)]
    fn exp2i(self, v: Self::F32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe {
            let mut out = v;
            for v in &mut out {
                *v = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(*v), vdupq_n_s32(127))));
            }
            out
        }
    }

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn weights(self, p: *const i8) -> Self::Weights {
        // SAFETY: see the impl.
        unsafe {
            let (low, high) = (vld1q_s8(p), vld1q_s8(p.add(16)));
            [vmovl_s8(vget_low_s8(low)), vmovl_high_s8(low), vmovl_s8(vget_low_s8(high)), vmovl_high_s8(high)]
        }
    }
    #[inline(always)]
    unsafe fn dot(self, sum: Self::Sum, weights: Self::Weights, x: *const i16) -> Self::Sum {
        let mut sum = sum;
        for (i, sum) in sum.iter_mut().enumerate() {
            // SAFETY: see the impl.
            unsafe {
                let x = vld1q_s16(x.add(8 * i));
                *sum = vmlal_s16(*sum, vget_low_s16(weights[i]), vget_low_s16(x));
                *sum = vmlal_high_s16(*sum, weights[i], x);
            }
        }
        sum
    }
    #[inline(always)]
    fn join(self, a: Self::Sum, b: Self::Sum) -> Self::Sum {
        quarters!(vaddq_s32(a, b))
    }
    #[inline(always)]
    fn total(self, sum: Self::Sum) -> i32 {
        // SAFETY: see the impl.
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(sum[0], sum[1]), vaddq_s32(sum[2], sum[3]))) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
