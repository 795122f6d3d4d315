//! Sixteen floats at a time, on whatever the processor has.
//!
//! Every kernel is written once, over [`Simd`]: sixteen lanes of f32 with fused multiply-add, and an exact integer dot product.
//! A processor with narrower vectors holds the sixteen in several registers. Each lane does the same operations in the same
//! order everywhere, sums over lanes are taken by one fixed tree, and integer sums are exact, so **results are equal bit for bit
//! on every instruction set**; [`Plain`] is the oracle of the others.
//!
//! A token ([`Avx512`](super::x86::Avx512) and so on) exists only where the processor has the feature. [`Isa::run`] enters code
//! compiled for it; methods of [`Simd`] are inlined there.

use std::sync::OnceLock;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Vectors of [`LANES`] floats, and dot products of 8-bit weights with 16-bit activations.
///
/// # Safety
/// An implementor may only be constructed on a processor that has every instruction its methods use. All methods are
/// `inline(always)` and only to be called within [`Isa::run`], and there in loops, not in closures: a closure is compiled for
/// the plain processor unless it happens to be inlined, and then every operation is a call.
pub unsafe trait Simd: Copy + Send + Sync {
    /// Sixteen floats.
    type F32: Copy;
    /// An integer sum, spread over lanes in a way of its own; it counts modulo 2^32.
    type Sum: Copy;
    /// [`STEP`](Self::STEP) weights, widened.
    type Weights: Copy;

    /// Weights and activations taken by one [`dot`](Self::dot).
    const STEP: usize = 32;

    /// Every lane `v`.
    fn splat(self, v: f32) -> Self::F32;
    /// Sixteen floats from memory.
    ///
    /// # Safety
    /// They can be read at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F32;
    /// Sixteen fp16 values from memory, widened.
    ///
    /// # Safety
    /// 32 bytes can be read at `p`.
    unsafe fn load_f16(self, p: *const u8) -> Self::F32;
    /// The table's entries at sixteen indices of four bits from memory, the first of two in a byte's low half.
    ///
    /// # Safety
    /// Eight bytes can be read at `p`.
    unsafe fn look_up(self, table: &[f32; LANES], p: *const u8) -> Self::F32;
    /// Sixteen floats to memory.
    ///
    /// # Safety
    /// They can be written at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::F32);
    /// Rounded to the nearest integer, ties to even, and stored as 16 bits; lanes must be within them.
    ///
    /// # Safety
    /// 32 bytes can be written at `p`.
    unsafe fn store_i16(self, p: *mut i16, v: Self::F32);
    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger; `a` may not be NaN, and where `b` is, so is the result.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; neither lane may be NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// Rounded to the nearest integer, ties to even.
    fn round(self, v: Self::F32) -> Self::F32;
    /// `2^v` of integers from -126 to 127.
    fn exp2i(self, v: Self::F32) -> Self::F32;

    /// A sum of nothing.
    fn zero(self) -> Self::Sum;
    /// Weights from memory.
    ///
    /// # Safety
    /// [`STEP`](Self::STEP) bytes can be read at `p`.
    unsafe fn weights(self, p: *const i8) -> Self::Weights;
    /// Adds the products of as many weights and activations.
    ///
    /// # Safety
    /// [`STEP`](Self::STEP) integers can be read at `x`.
    unsafe fn dot(self, sum: Self::Sum, weights: Self::Weights, x: *const i16) -> Self::Sum;
    /// Two sums as one.
    fn join(self, a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// The whole of a sum, modulo 2^32.
    fn total(self, sum: Self::Sum) -> i32;
    /// Asks for memory that will be read soon. The address need not be valid.
    fn prefetch(self, p: *const u8);

    /// The lanes.
    #[inline(always)]
    fn lanes(self, v: Self::F32) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: there is room for sixteen.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }

    /// The sum of the lanes, by halving.
    #[inline(always)]
    fn sum(self, v: Self::F32) -> f32 {
        halve(self.lanes(v), |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, v: Self::F32) -> f32 {
        halve(self.lanes(v), |a, b| if a > b { a } else { b })
    }

    /// Up to sixteen floats, zeros behind them.
    #[inline(always)]
    fn load_some(self, v: &[f32]) -> Self::F32 {
        self.load_padded(v, 0.0)
    }

    /// Up to sixteen floats, and `rest` behind them.
    #[inline(always)]
    fn load_padded(self, v: &[f32], rest: f32) -> Self::F32 {
        if v.len() >= LANES {
            // SAFETY: there are sixteen.
            return unsafe { self.load(v.as_ptr()) };
        }
        let mut lanes = [rest; LANES];
        lanes[..v.len()].copy_from_slice(v);
        // SAFETY: sixteen lanes.
        unsafe { self.load(lanes.as_ptr()) }
    }

    /// As many lanes as `out` has room for.
    #[inline(always)]
    fn store_some(self, out: &mut [f32], v: Self::F32) {
        if out.len() >= LANES {
            // SAFETY: there is room for sixteen.
            return unsafe { self.store(out.as_mut_ptr(), v) };
        }
        let lanes = self.lanes(v);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// The tree by which lanes become one: the upper half onto the lower, four times.
#[inline(always)]
fn halve(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// `e^v`, to about two units in the last place: Cody and Waite's reduction by ln 2 in two parts, then a Taylor polynomial of
/// degree 7 on [-ln 2 / 2, ln 2 / 2]. Below -87 it is 0, above 88 the value at 88.
#[inline(always)]
pub fn exp<S: Simd>(s: S, v: S::F32) -> S::F32 {
    let low = s.splat(-87.0);
    let clamped = s.min(s.max(v, low), s.splat(88.0));
    let n = s.round(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let r = s.mul_add(n, s.splat(-355.0 / 512.0), clamped);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }
    let e = s.mul(p, s.exp2i(n));
    // What was clamped from below vanishes: the difference is 0 exactly where it was.
    let beyond = s.sub(clamped, v);
    s.mul(e, s.sub(s.splat(1.0), s.min(s.max(beyond, s.splat(0.0)), s.splat(1.0))))
}

/// Something to be done with vectors.
pub trait Task {
    /// What comes out.
    type Out;
    /// Does it; `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every processor has.
    Plain,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86::Avx2),
    /// 512-bit vectors with integer dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86::Avx512),
    /// 128-bit vectors of 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon(super::neon::Neon),
}

impl Isa {
    /// All that this processor has, the widest last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Isa::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(super::x86::Avx2::detect().map(Isa::Avx2));
            all.extend(super::x86::Avx512::detect().map(Isa::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Isa::Neon(super::neon::Neon::new()));
        all
    }

    /// The widest. The processor is asked once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().pop().unwrap_or(Isa::Plain))
    }

    /// Runs a task in code compiled for this instruction set.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Out {
        match self {
            Isa::Plain => task.run(Plain),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(s) => s.enter(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(s) => s.enter(task),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(s) => task.run(s),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }
}

/// Plain Rust: the definition of what the others compute.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

// SAFETY: it uses nothing that a processor may lack.
unsafe impl Simd for Plain {
    type F32 = [f32; LANES];
    type Sum = i32;
    type Weights = [i8; 32];

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F32 {
        [v; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F32 {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Self::F32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F32 {
        // SAFETY: as the caller promises.
        let bytes = unsafe { p.cast::<[u8; 32]>().read_unaligned() };
        each(|i| half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    unsafe fn look_up(self, table: &[f32; LANES], p: *const u8) -> Self::F32 {
        // SAFETY: as the caller promises.
        let bytes = unsafe { p.cast::<[u8; 8]>().read_unaligned() };
        each(|i| table[usize::from(bytes[i / 2] >> (4 * (i % 2)) & 15)])
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F32) {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Self::F32>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F32) {
        let v: [i16; LANES] = std::array::from_fn(|i| v[i].round_ties_even() as i16);
        // SAFETY: as the caller promises.
        unsafe { p.cast::<[i16; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn round(self, v: Self::F32) -> Self::F32 {
        each(|i| v[i].round_ties_even())
    }
    #[inline(always)]
    fn exp2i(self, v: Self::F32) -> Self::F32 {
        each(|i| f32::from_bits(((v[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn zero(self) -> i32 {
        0
    }
    #[inline(always)]
    unsafe fn weights(self, p: *const i8) -> Self::Weights {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Self::Weights>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot(self, sum: i32, weights: Self::Weights, x: *const i16) -> i32 {
        // SAFETY: as the caller promises.
        let x = unsafe { x.cast::<[i16; 32]>().read_unaligned() };
        weights.iter().zip(&x).fold(sum, |sum, (&w, &x)| sum.wrapping_add(i32::from(w) * i32::from(x)))
    }
    #[inline(always)]
    fn join(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn total(self, sum: i32) -> i32 {
        sum
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
