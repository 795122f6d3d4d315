//! The [`simple`] draw without an exponential in double precision for each token of the vocabulary.
//!
//! Filters that leave few tokens need the weights of those few, and these are computed as `simple` does. Where the whole row counts
//! (the share that a nucleus has to reach, a draw from all tokens), its sum is estimated in single precision. The
//! estimate has a bound: **where the estimate decides, `simple` decides the same; where it is too near to tell, nothing is said**, and
//! `simple` is asked.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use anemone_exec::fast::{BLOCK, Weigher};

use super::row::{at_least, likeliest};
use super::simple::{pick, weight};
use super::{Key, SamplingOptions};

/// How far two shares of the whole row, both estimated, may be from the truth together. A weight `w = e^-a` of
/// [`Weigher::sums`] is off by `3 a w 2^-24`; the mean of `a` over a distribution of n tokens is at most its entropy and so ln n, 23
/// for as many as there are ids. With the roundings of exponential and sums a share is off by 5e-6 at most, and 3e-6 for the
/// vocabularies there are.
const MARGIN: f64 = 1.0 / (1 << 16) as f64;

/// Where single precision neither overflows nor loses digits on the way to an exponent.
const TEMPERATURES: RangeInclusive<f32> = 1e-20..=1e20;

/// How many of the likeliest tokens are looked through for a nucleus, one after the other.
const RUNGS: [usize; 3] = [64, 512, 4096];

/// Memory that draws find again.
#[derive(Clone, Debug, Default)]
pub struct Room {
    weigher: Weigher,
    ids: Vec<u32>,
    floors: Vec<f32>,
    sums: Vec<f32>,
    kept: Vec<(u32, f64)>,
}

impl Room {
    /// The `count` likeliest ids, the likeliest first.
    pub fn likeliest(&mut self, logits: &[f32], peaks: &[f32], count: usize) -> &[u32] {
        likeliest(logits, peaks, count, &mut self.ids, &mut self.floors);
        &self.ids
    }

    /// What [`simple::draw`](super::simple::draw) gives, or `None` where that has to be asked. `peaks` are those of
    /// [`survey`](super::row::survey).
    pub fn draw(
        &mut self,
        logits: &[f32],
        peaks: &[f32],
        best: u32,
        options: &SamplingOptions,
        random: f64,
    ) -> Option<u32> {
        if !TEMPERATURES.contains(&options.temperature) {
            return None;
        }
        let weight = |id: u32| (id, weight(logits, best, options.temperature, id));
        let (p, min_p) = (f64::from(options.top_p), f64::from(options.min_p));
        if options.top_k > 0 {
            likeliest(logits, peaks, options.top_k, &mut self.ids, &mut self.floors);
            self.kept.clear();
            self.kept.extend(self.ids.iter().map(|&id| weight(id)));
            if p < 1.0 {
                let enough = p * self.kept.iter().map(|(_, w)| w).sum::<f64>();
                sort(&mut self.kept);
                let mut sum = 0.0;
                let reaches = |(_, w): &(u32, f64)| {
                    sum += w;
                    sum >= enough
                };
                let end = self.kept.iter().position(reaches).map_or(self.kept.len(), |at| at + 1);
                self.kept.truncate(end);
            }
        } else if p < 1.0 {
            let enough = p * self.total(logits, best, options);
            self.nucleus(logits, peaks, weight, enough, enough / p * MARGIN)?;
        } else if min_p > 0.0 {
            // A little lower than the filter's own floor, which `pick` applies.
            let (top, reach) = (f64::from(logits[best as usize]), f64::from(options.temperature) * libm::log(min_p));
            let floor = top + reach - 1e-9 * (top.abs() + reach.abs());
            self.ids.clear();
            at_least(logits, peaks, floor, &mut self.ids);
            self.kept.clear();
            self.kept.extend(self.ids.iter().map(|&id| weight(id)));
        } else {
            return self.anywhere(logits, best, options, random);
        }
        Some(pick(&mut self.kept, best, min_p, random))
    }

    /// The weight of the whole row, by its blocks.
    fn total(&mut self, logits: &[f32], best: u32, options: &SamplingOptions) -> f64 {
        self.weigher.sums(logits, logits[best as usize], 1.0 / options.temperature, &mut self.sums);
        self.sums.iter().map(|&sum| f64::from(sum)).sum()
    }

    /// The likeliest tokens that together reach `enough`, which is known to `margin`.
    fn nucleus(
        &mut self,
        logits: &[f32],
        peaks: &[f32],
        weight: impl Fn(u32) -> (u32, f64),
        enough: f64,
        margin: f64,
    ) -> Option<()> {
        for count in RUNGS {
            likeliest(logits, peaks, count, &mut self.ids, &mut self.floors);
            self.kept.clear();
            self.kept.extend(self.ids.iter().map(|&id| weight(id)));
            sort(&mut self.kept);
            let mut sum = 0.0;
            for i in 0..self.kept.len() {
                let (_, w) = self.kept[i];
                sum += w;
                if (sum - enough).abs() <= margin {
                    return None;
                }
                if sum > enough {
                    // Where it ends among equals, others of them may not have been looked at.
                    let sure = self.ids.len() == logits.len() || self.kept.last().is_some_and(|(_, least)| w > *least);
                    if sure {
                        self.kept.truncate(i + 1);
                        return Some(());
                    }
                    break;
                }
            }
        }
        None
    }

    /// One draw from all tokens.
    fn anywhere(&mut self, logits: &[f32], best: u32, options: &SamplingOptions, random: f64) -> Option<u32> {
        let total = self.total(logits, best, options);
        let (target, margin) = (random * total, total * MARGIN);
        let mut before = 0.0;
        let sum_of = |sum: &f32| f64::from(*sum);
        let block = self.sums.iter().map(sum_of).position(|sum| {
            let here = before + sum > target;
            before += if here { 0.0 } else { sum };
            here
        })?;
        for id in block * BLOCK..logits.len().min((block + 1) * BLOCK) {
            let w = weight(logits, best, options.temperature, id as u32);
            if target < before + w {
                let sure = target - before > margin && before + w - target > margin;
                return sure.then_some(id as u32);
            }
            before += w;
        }
        None
    }
}

/// The heaviest first, of equal ones the lowest id first.
fn sort(kept: &mut [(u32, f64)]) {
    kept.sort_unstable_by_key(|&(id, w)| (Reverse(Key(w)), id));
}
