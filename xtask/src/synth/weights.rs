//! Weights with the statistics of trained ones, a row at a time.
//!
//! Rows have scales of their own (log-normal), one row in 256 stands out fourfold, and one input channel in 512 eightfold:
//! what per-tensor scales suffer from and per-channel scales absorb.

use std::io::{self, Write};

use anemone_gguf::BlockType;
use rayon::prelude::*;

use super::blocks;
use super::random::Random;

/// Bytes of a batch: enough rows that all cores are busy for some milliseconds. Two batches are in memory.
const BATCH: usize = 8 << 20;

/// A matrix that is made when it is written.
pub struct Matrix {
    seed: u64,
    rows: usize,
    columns: usize,
    ty: BlockType,
}

impl Matrix {
    pub fn new(seed: u64, rows: usize, columns: usize, ty: BlockType) -> Self {
        Matrix { seed, rows, columns, ty }
    }

    /// Writes all rows: one batch is made while the one before it goes out.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let row_bytes = self.ty.bytes_of(self.columns).ok_or(io::ErrorKind::InvalidInput)?;
        let step = (BATCH / row_bytes).max(1);
        let gains = self.channel_gains();
        let mut ready = Vec::new();
        let mut next = Vec::new();
        for first in (0..self.rows).step_by(step) {
            next.resize(row_bytes * step.min(self.rows - first), 0);
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| self.fill(&gains, first, row_bytes, &mut next));
                out.write_all(&ready)
            })?;
            std::mem::swap(&mut ready, &mut next);
        }
        out.write_all(&ready)
    }

    /// Rows from `first` on, as blocks.
    fn fill(&self, gains: &[f32], first: usize, row_bytes: usize, out: &mut [u8]) {
        out.par_chunks_mut(row_bytes).enumerate().for_each_init(
            || vec![0f32; self.columns],
            |row, (i, out)| {
                self.row(gains, first + i, row);
                blocks::quantize(self.ty, row, out);
            },
        );
    }

    fn row(&self, gains: &[f32], index: usize, out: &mut [f32]) {
        let mut random = Random::new(self.seed, index as u64);
        let stands_out = if random.below(256) == 0 { 4.0 } else { 1.0 };
        // Half of what keeps the variance: a residual stream that 64 such projections add to stays within fp16.
        let deviation = 0.5 / (self.columns as f32).sqrt() * (0.3 * random.normal()).exp() * stands_out;
        for (weight, gain) in out.iter_mut().zip(gains) {
            *weight = random.normal() * deviation * gain;
        }
    }

    fn channel_gains(&self) -> Vec<f32> {
        let mut random = Random::new(self.seed, u64::MAX);
        (0..self.columns).map(|_| if random.below(512) == 0 { 8.0 } else { 1.0 }).collect()
    }
}

/// The gains of a norm: around 1, positive.
pub fn norm(seed: u64, width: usize) -> Vec<f32> {
    let mut random = Random::new(seed, 0);
    (0..width).map(|_| (0.15 * random.normal()).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_channels_differ_as_they_do_in_trained_models() {
        let matrix = Matrix::new(7, 1024, 3072, BlockType::F16);
        let gains = matrix.channel_gains();
        let mut peaks: Vec<f32> = Vec::new();
        let mut row = vec![0.0; 3072];
        for i in 0..1024 {
            matrix.row(&gains, i, &mut row);
            peaks.push(row.iter().fold(0.0, |m, w| w.abs().max(m)));
        }
        assert!(gains.contains(&8.0) && gains.iter().filter(|&&g| g == 1.0).count() > 3000);
        peaks.sort_by(f32::total_cmp);
        let (median, largest) = (peaks[512], peaks[1023]);
        assert!(largest > 3.0 * median && largest < 2.0, "median {median}, largest {largest}");
    }
}
