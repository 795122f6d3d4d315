//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::simd::{LANES, Simd, Task};

/// Proof that this processor has AVX2, FMA and F16C, and that the system saves their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub fn detect() -> Option<Self> {
        let all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Self(()))
    }

    /// Runs a task in code compiled for AVX2.
    #[inline]
    pub fn enter<T: Task>(self, task: T) -> T::Out {
        // SAFETY: the token proves the features.
        unsafe { avx2(self, task) }
    }
}

/// Proof that this processor has AVX-512 F, BW, VL, DQ and VNNI, and that the system saves their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the processor.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && Avx2::detect().is_some();
        all.then_some(Self(()))
    }

    /// Runs a task in code compiled for AVX-512.
    #[inline]
    pub fn enter<T: Task>(self, task: T) -> T::Out {
        // SAFETY: the token proves the features.
        unsafe { avx512(self, task) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<T: Task>(s: Avx2, task: T) -> T::Out {
    task.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn avx512<T: Task>(s: Avx512, task: T) -> T::Out {
    task.run(s)
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Sixteen indices of four bits as bytes, in order.
///
/// # Safety
/// Eight bytes can be read at `p`.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> __m128i {
    // SAFETY: as the caller promises; every x86-64 processor has these instructions.
    unsafe {
        let bytes = _mm_loadl_epi64(p.cast());
        let low = _mm_set1_epi8(15);
        _mm_unpacklo_epi8(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16::<4>(bytes), low))
    }
}

// SAFETY: a token exists only where `detect` found every feature used here. That covers the intrinsics below; what they read
// and write is as the callers of the trait's methods promise.
unsafe impl Simd for Avx512 {
    type F32 = __m512;
    type Sum = __m512i;
    type Weights = __m512i;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[f32; LANES], p: *const u8) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles(p)), _mm512_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: __m512) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_roundscale_ps::<NEAREST>(v) }
    }
    #[inline(always)]
    fn exp2i(self, v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see the impl. The tree is that of the trait: halves of 8, 4, 2 and 1.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            sum8(v)
        }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn weights(self, p: *const i8) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn dot(self, sum: __m512i, weights: __m512i, x: *const i16) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_dpwssd_epi32(sum, weights, _mm512_loadu_si512(x.cast())) }
    }
    #[inline(always)]
    fn join(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn total(self, sum: __m512i) -> i32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_add_epi32(sum) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// The lower levels of the tree.
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: callers hold a token of AVX2 or better.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// One operation on both halves.
macro_rules! both {
    ($f:ident($($v:expr),*)) => {
        // SAFETY: see the impl.
        unsafe { [$f($($v[0]),*), $f($($v[1]),*)] }
    };
}

// SAFETY: as for AVX-512.
unsafe impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type Sum = [__m256i; 2];
    type Weights = [__m256i; 2];

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[f32; LANES], p: *const u8) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
            let indices = nibbles(p);
            let mut found = [low, high];
            for (half, index) in found.iter_mut().zip([indices, _mm_srli_si128::<8>(indices)]) {
                let index = _mm256_cvtepu8_epi32(index);
                // A permutation looks at three bits of an index; the fourth, moved to the sign, chooses between the table's halves.
                let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                *half = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(low, index),
                    _mm256_permutevar8x32_ps(high, index),
                    fourth,
                );
            }
            found
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F32) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F32) {
        // SAFETY: see the impl. Packing works within 128-bit lanes, so the middle quarters change places.
        unsafe {
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        both!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe { [_mm256_round_ps::<NEAREST>(v[0]), _mm256_round_ps::<NEAREST>(v[1])] }
    }
    #[inline(always)]
    fn exp2i(self, v: Self::F32) -> Self::F32 {
        // SAFETY: see the impl.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let biased =
                [_mm256_add_epi32(_mm256_cvtps_epi32(v[0]), bias), _mm256_add_epi32(_mm256_cvtps_epi32(v[1]), bias)];
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[0])),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased[1])),
            ]
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::F32) -> f32 {
        // SAFETY: see the impl. The tree is that of the trait.
        unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
    }

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        // SAFETY: see the impl.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn weights(self, p: *const i8) -> Self::Weights {
        // SAFETY: see the impl.
        unsafe {
            [_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())), _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn dot(self, sum: Self::Sum, weights: Self::Weights, x: *const i16) -> Self::Sum {
        // SAFETY: see the impl. The product of two pairs fits 32 bits: -128 * -32768 * 2 does not come up, activations
        // being within 32767.
        unsafe {
            let x = [_mm256_loadu_si256(x.cast()), _mm256_loadu_si256(x.add(16).cast())];
            let products = [_mm256_madd_epi16(weights[0], x[0]), _mm256_madd_epi16(weights[1], x[1])];
            [_mm256_add_epi32(sum[0], products[0]), _mm256_add_epi32(sum[1], products[1])]
        }
    }
    #[inline(always)]
    fn join(self, a: Self::Sum, b: Self::Sum) -> Self::Sum {
        both!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn total(self, sum: Self::Sum) -> i32 {
        // SAFETY: see the impl.
        unsafe {
            let v = _mm256_add_epi32(sum[0], sum[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b00_00_11_10>(v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b00_00_00_01>(v)))
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
