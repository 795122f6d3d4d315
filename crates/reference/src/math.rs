//! The arithmetic, in f32.
//!
//! A result depends on its operands alone, never on how many rows were computed with it or by how many threads: every
//! sum runs in one fixed order.

use std::thread;

/// Partial sums of a dot product: enough to fill the registers of any processor, few enough to be summed in a moment.
const LANES: usize = 16;

/// The sum of products, in [`LANES`] interleaved partial sums that are added pairwise.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// A matrix with an optional bias: y = W x + b.
#[derive(Debug)]
pub(crate) struct Linear {
    pub rows: usize,
    pub cols: usize,
    /// Row-major.
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

/// Below this many products a thread costs more than it brings.
const PRODUCTS_PER_THREAD: usize = 4 << 20;

impl Linear {
    /// Applies it to each row of `x`, `[n, cols]`, giving `[n, rows]`.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.cols;
        // Transposed, so that each thread writes a part of its own.
        let mut columns = vec![0.0; self.rows * n];
        let wanted = (self.rows * self.cols).saturating_mul(n) / PRODUCTS_PER_THREAD;
        let threads = wanted.clamp(1, thread::available_parallelism().map_or(1, usize::from));
        let rows_each = self.rows.div_ceil(threads);
        if threads == 1 {
            self.rows_into(x, 0, &mut columns);
        } else {
            thread::scope(|scope| {
                for (i, part) in columns.chunks_mut(rows_each * n).enumerate() {
                    scope.spawn(move || self.rows_into(x, i * rows_each, part));
                }
            });
        }
        if n == 1 {
            return columns;
        }
        let mut out = vec![0.0; columns.len()];
        for (t, out) in out.chunks_exact_mut(self.rows).enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = columns[r * n + t];
            }
        }
        out
    }

    /// Rows from `first` on, each for all of `x`.
    fn rows_into(&self, x: &[f32], first: usize, out: &mut [f32]) {
        let n = x.len() / self.cols;
        for (r, out) in out.chunks_exact_mut(n).enumerate() {
            let r = first + r;
            let weight = &self.weight[r * self.cols..][..self.cols];
            for (x, out) in x.chunks_exact(self.cols).zip(out) {
                *out = dot(weight, x) + self.bias.as_ref().map_or(0.0, |bias| bias[r]);
            }
        }
    }
}

/// RMSNorm of each row: x / sqrt(mean(x^2) + eps) * weight. Zhang and Sennrich 2019.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let mean_square = dot(x, x) / x.len() as f32;
        let scale = 1.0 / (mean_square + eps).sqrt();
        out.extend(x.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    out
}

/// Replaces scores by their softmax.
pub(crate) fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

/// x times its logistic.
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_product_of_any_length_is_the_sum_of_products() {
        for len in 0..70 {
            let a: Vec<f32> = (0..len).map(|i| i as f32 - 20.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            // Integers this small are exact in any order.
            assert_eq!(dot(&a, &b), a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
        }
    }

    #[test]
    fn threads_and_batches_change_nothing() {
        let (rows, cols, n) = (700, 2048, 9);
        let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        let weight: Vec<f32> = (0..rows * cols).map(value).collect();
        let x: Vec<f32> = (0..n * cols).map(|i| value(i + 17)).collect();
        let linear = Linear { rows, cols, weight, bias: Some((0..rows).map(value).collect()) };
        let together = linear.apply(&x);
        let one_by_one: Vec<f32> = x.chunks(cols).flat_map(|x| linear.apply(x)).collect();
        assert_eq!(together, one_by_one);
        assert_eq!(together[rows + 1], dot(&linear.weight[cols..2 * cols], &x[cols..2 * cols]) + value(1));
    }

    #[test]
    fn norm_and_softmax_of_known_values() {
        assert_eq!(
            rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0)[..2],
            [3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt()]
        );
        assert!(rms_norm(&[0.0, 0.0], &[1.0, 1.0], 1e-5).iter().all(|&x| x == 0.0));
        let mut scores = [1000.0, 1000.0, f32::NEG_INFINITY];
        softmax(&mut scores);
        assert_eq!(scores, [0.5, 0.5, 0.0]);
    }
}
