//! Instruction sets beyond what a program may assume, as values that exist only where the processor has them.
//!
//! A function compiled for such a set is undefined on a processor without it. Whoever holds an [`Avx2`] or an [`Avx512`] has
//! asked the processor, so a call that takes one as its argument is sound, and the one `unsafe` block behind it says so.
//! NEON needs no token: it is part of every 64-bit ARM processor, and plain loops are compiled for it.

use std::fmt;

/// What vector code may use. [`Simd::Plain`] is every loop's other form, and the oracle of the rest: results are equal bit for
/// bit whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// Nothing beyond the target's baseline.
    Plain,
    /// 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Simd {
    /// The widest this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = Avx512::detect() {
                return Simd::Avx512(avx512);
            }
            if let Some(avx2) = Avx2::detect() {
                return Simd::Avx2(avx2);
            }
        }
        Simd::Plain
    }

    /// All this processor has, narrowest first.
    pub fn available() -> Vec<Self> {
        let all = std::iter::once(Simd::Plain);
        #[cfg(target_arch = "x86_64")]
        let all = all.chain(Avx2::detect().map(Simd::Avx2)).chain(Avx512::detect().map(Simd::Avx512));
        all.collect()
    }
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Simd::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => "avx512",
        })
    }
}

/// Proof that this processor has AVX2 and F16C, and that the system saves their registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// Asks the processor.
    pub fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Avx2(()))
    }
}

/// Proof that this processor has AVX2, F16C, and AVX-512 F, BW, DQ and VL, and that the system saves their registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// Asks the processor.
    pub fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && Avx2::detect().is_some();
        all.then_some(Avx512(()))
    }
}
