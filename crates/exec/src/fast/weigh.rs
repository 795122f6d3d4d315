//! What a sampler needs of a whole row of logits: the highest of each block, and how much probability lies where, near enough to
//! decide by.

use super::simd::{Isa, LANES, Simd, Task, exp};

/// Logits that one sum stands for.
pub const BLOCK: usize = 64;

/// Weighs rows of logits with the widest vectors of this machine. What it finds is equal bit for bit on all of them.
#[derive(Clone, Copy, Debug)]
pub struct Weigher(Isa);

impl Default for Weigher {
    fn default() -> Self {
        Self(Isa::best())
    }
}

impl Weigher {
    /// For each [`BLOCK`] of `logits`, the sum of `e^((logit - best) * rate)`. `best` is the highest and finite, `rate`
    /// normal; a logit may be minus infinity, and then weighs nothing.
    ///
    /// A weight is off by a part of `3 * 2^-24 * |(logit - best) * rate|`, which is the difference, the rate and the product, each
    /// rounded, and of `3e-7`, the exponential's; what is below `e^-87` counts for 0. A sum is off by `2^-21` more.
    pub fn sums(self, logits: &[f32], best: f32, rate: f32, sums: &mut Vec<f32>) {
        sums.clear();
        sums.resize(logits.len().div_ceil(BLOCK), 0.0);
        self.0.run(Sums { logits, best, rate, sums });
    }

    /// The highest of each [`BLOCK`] of `logits` into `peaks`. Returns the highest of these, and `None`, with `peaks` that mean
    /// nothing, where one is NaN or plus infinity. A block of minus infinity alone has [`f32::MIN`].
    pub fn peaks(self, logits: &[f32], peaks: &mut Vec<f32>) -> Option<f32> {
        peaks.clear();
        peaks.resize(logits.len().div_ceil(BLOCK), f32::MIN);
        self.0.run(Survey { logits, copy: None, start: 0, peaks })
    }

    /// As [`peaks`](Self::peaks), of logits that begin with number `start` of their row, and while they are copied to `copy`, as many:
    /// one read for both. `peaks` are the row's, and become higher where these logits are.
    pub fn copy(self, logits: &[f32], copy: &mut [f32], start: usize, peaks: &mut [f32]) -> Option<f32> {
        assert!(start + logits.len() <= peaks.len() * BLOCK && logits.len() == copy.len(), "a part of the row");
        self.0.run(Survey { logits, copy: Some(copy), start, peaks })
    }
}

struct Survey<'a> {
    logits: &'a [f32],
    copy: Option<&'a mut [f32]>,
    /// Of the logits in their row.
    start: usize,
    /// Of the row.
    peaks: &'a mut [f32],
}

impl Task for Survey<'_> {
    type Out = Option<f32>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Option<f32> {
        let least = s.splat(f32::MIN);
        let zero = s.splat(0.0);
        // 0 in every lane, and NaN for ever where a logit was NaN or plus infinity. Several, so that none waits for the last.
        let mut wrong = [zero; BLOCK / LANES];
        let mut top = least;
        let (mut from, mut block) = (0, self.start / BLOCK);
        while from < self.logits.len() {
            // To the end of the block, which may have begun before.
            let to = self.logits.len().min((block + 1) * BLOCK - self.start);
            let mut highest = least;
            for (part, wrong) in (from..to).step_by(LANES).zip(&mut wrong) {
                let logits = &self.logits[part..to.min(part + LANES)];
                let v = s.load_padded(logits, f32::MIN);
                if let Some(copy) = &mut self.copy {
                    s.store_some(&mut copy[part..part + logits.len()], v);
                }
                // Minus infinity becomes a number; NaN and plus infinity stay.
                let finite = s.max(least, v);
                *wrong = s.mul_add(finite, zero, *wrong);
                highest = s.max(highest, finite);
            }
            top = s.max(top, highest);
            let peak = &mut self.peaks[block];
            *peak = peak.max(s.largest(highest));
            (from, block) = (to, block + 1);
        }
        for wrong in wrong {
            if s.sum(wrong) != 0.0 {
                return None;
            }
        }
        Some(s.largest(top))
    }
}

struct Sums<'a> {
    logits: &'a [f32],
    best: f32,
    rate: f32,
    sums: &'a mut [f32],
}

impl Task for Sums<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (best, rate) = (s.splat(self.best), s.splat(self.rate));
        for (block, sum) in self.logits.chunks(BLOCK).zip(self.sums) {
            let mut total = s.splat(0.0);
            for part in block.chunks(LANES) {
                let part = s.load_padded(part, f32::NEG_INFINITY);
                total = s.add(total, exp(s, s.mul(s.sub(part, best), rate)));
            }
            *sum = s.sum(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_the_highest_and_what_is_no_number_is_told() {
        let logits: Vec<f32> =
            (0..1000)
                .map(|i| {
                    if i % 97 == 5 || i / 64 == 3 {
                        f32::NEG_INFINITY
                    } else {
                        ((i * 7919) % 1000) as f32 / 31.0 - 20.0
                    }
                })
                .collect();
        for n in [0, 1, 15, 16, 63, 64, 65, 300, 1000] {
            let logits = &logits[..n];
            let expected: Vec<f32> =
                logits.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::MIN, f32::max)).collect();
            for isa in Isa::available() {
                let mut peaks = vec![9.0; 3];
                let top = expected.iter().copied().fold(f32::MIN, f32::max);
                assert_eq!(Weigher(isa).peaks(logits, &mut peaks), Some(top), "{}", isa.name());
                assert_eq!(peaks, expected, "{}", isa.name());
                for at in (0..n).step_by(13) {
                    for broken in [f32::NAN, -f32::NAN, f32::INFINITY] {
                        let mut logits = logits.to_vec();
                        logits[at] = broken;
                        let top = Weigher(isa).peaks(&logits, &mut peaks);
                        assert_eq!(top, None, "{broken} at {at} of {n}, {}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_near_and_equal_everywhere() {
        let logits: Vec<f32> = (0..1000)
            .map(|i| if i % 97 == 5 { f32::NEG_INFINITY } else { ((i * 7919) % 1000) as f32 / 31.0 - 20.0 })
            .collect();
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for rate in [0.5, 1.0, 1.4285715, 30.0] {
            for n in [1, 15, 64, 65, 1000] {
                let found = |isa| {
                    let mut sums = vec![9.0; 3];
                    Weigher(isa).sums(&logits[..n], best, rate, &mut sums);
                    sums
                };
                let plain = found(Isa::Plain);
                for isa in Isa::available() {
                    assert_eq!(found(isa), plain, "{}", isa.name());
                }
                for (sum, block) in plain.iter().zip(logits[..n].chunks(BLOCK)) {
                    let argument = |l: f32| (f64::from(l) - f64::from(best)) * f64::from(rate);
                    let exact: f64 = block.iter().map(|&l| argument(l).exp()).sum();
                    let part = |l: f32| argument(l).exp() * (3.0 * argument(l).abs() / f64::from(1 << 24) + 3e-7);
                    let most: f64 = block.iter().filter(|l| l.is_finite()).map(|&l| part(l)).sum::<f64>()
                        + exact / f64::from(1 << 21);
                    assert!((f64::from(*sum) - exact).abs() <= most + 1e-36, "{sum} {exact} {most}");
                }
            }
        }
    }
}
