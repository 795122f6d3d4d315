//! What a sampler needs of a whole row of logits: the highest of each block, and how much probability lies where, near enough to
//! decide by.

use super::simd::{Isa, LANES, Simd, Task, exp};
use crate::rows::Row;

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
    /// For each [`BLOCK`] of a row, the sum of `e^((logit - top) * rate)`; the row's top is finite, `rate` normal, and a logit may be
    /// minus infinity, which weighs nothing. A block that by its peak weighs at most `least` is not read, and its sum 0; returned is
    /// what all of these weigh together at most.
    ///
    /// A weight is off by a part of `3 * 2^-24 * |(logit - top) * rate|`, which is the difference, the rate and the product, each
    /// rounded, and of `3e-7`, the exponential's; what is below `e^-87` counts for 0. A sum is off by `2^-21` more.
    pub fn sums(self, row: Row<'_>, rate: f32, least: f32, sums: &mut Vec<f32>) -> f64 {
        sums.clear();
        sums.resize(row.peaks().len(), 0.0);
        let best = row.top().unwrap_or(f32::NAN);
        self.0.run(Sums { logits: row.values(), peaks: row.peaks(), best, rate, least, sums })
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
    peaks: &'a [f32],
    best: f32,
    rate: f32,
    least: f32,
    sums: &'a mut [f32],
}

impl Task for Sums<'_> {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        /// Logits of a block, and more than a peak's weight can be off.
        const WHOLE: f32 = BLOCK as f32 * (1.0 + 1.0 / 1024.0);
        let (best, rate) = (s.splat(self.best), s.splat(self.rate));
        let mut unread = 0.0;
        let blocks = self.logits.chunks(LANES * BLOCK).zip(self.peaks.chunks(LANES)).zip(self.sums.chunks_mut(LANES));
        for ((logits, peaks), sums) in blocks {
            let peaks = s.load_padded(peaks, f32::NEG_INFINITY);
            let most = s.lanes(s.mul(exp(s, s.mul(s.sub(peaks, best), rate)), s.splat(WHOLE)));
            for ((block, most), sum) in logits.chunks(BLOCK).zip(most).zip(sums) {
                if most <= self.least {
                    unread += f64::from(most);
                    continue;
                }
                let mut total = s.splat(0.0);
                for part in block.chunks(LANES) {
                    let part = s.load_padded(part, f32::NEG_INFINITY);
                    total = s.add(total, exp(s, s.mul(s.sub(part, best), rate)));
                }
                *sum = s.sum(total);
            }
        }
        unread
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
        for rate in [0.5, 1.0, 1.4285715, 30.0] {
            for n in [1, 15, 64, 65, 1000] {
                let (logits, mut peaks) = (&logits[..n], Vec::new());
                let row = Row::of(logits, &mut peaks);
                let best = row.top().unwrap();
                let found = |isa, least| {
                    let mut sums = vec![9.0; 3];
                    let unread = Weigher(isa).sums(row, rate, least, &mut sums);
                    (sums, unread)
                };
                let (plain, unread) = found(Isa::Plain, -1.0);
                assert_eq!(unread, 0.0);
                let argument = |l: f32| (f64::from(l) - f64::from(best)) * f64::from(rate);
                let exact: Vec<f64> =
                    logits.chunks(BLOCK).map(|block| block.iter().map(|&l| argument(l).exp()).sum()).collect();
                for ((sum, exact), block) in plain.iter().zip(&exact).zip(logits.chunks(BLOCK)) {
                    let part = |l: f32| argument(l).exp() * (3.0 * argument(l).abs() / f64::from(1 << 24) + 3e-7);
                    let most: f64 = block.iter().filter(|l| l.is_finite()).map(|&l| part(l)).sum::<f64>()
                        + exact / f64::from(1 << 21);
                    assert!((f64::from(*sum) - exact).abs() <= most + 1e-36, "{sum} {exact} {most}");
                }
                for least in [-1.0, 0.0, 1e-20, 1e-6, 1.0, 1e9] {
                    let (sums, unread) = found(Isa::Plain, least);
                    for isa in Isa::available() {
                        assert_eq!(found(isa, least), (sums.clone(), unread), "{}", isa.name());
                    }
                    let mut missing = 0.0;
                    for ((sum, whole), exact) in sums.iter().zip(&plain).zip(&exact) {
                        assert!(sum == whole || (*sum == 0.0 && *exact <= f64::from(least)), "{sum} {whole}");
                        missing += if sum == whole { 0.0 } else { *exact };
                    }
                    assert!(missing <= unread, "{missing} is missing, at most {unread} was said");
                }
            }
        }
    }
}
