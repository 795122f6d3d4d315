//! The [`simple`] draw without an exponential in double precision for each token of the vocabulary.
//!
//! Filters that leave few tokens need the weights of those few, and these are computed as `simple` does. Where the whole row counts
//! (the share that a nucleus has to reach, a draw from all tokens), its sum is estimated, each time more closely where the last
//! was too near to tell: in single precision without the blocks that by their peaks weigh next to nothing, in single precision with
//! them, by a short polynomial in double precision.
//! Estimates have bounds: **where one decides, `simple` decides the same; where none does, nothing is said**, and `simple` is asked.

use std::cmp::Reverse;
use std::ops::RangeInclusive;

use anemone_exec::Row;
use anemone_exec::fast::{BLOCK, Weigher};

use super::row::{at_least, likeliest};
use super::simple::{pick, weight, weight_of};
use super::{Key, SamplingOptions};

/// How a row is weighed.
#[derive(Clone, Copy, Debug)]
enum Precision {
    /// As `Single`, without the blocks that weigh at most [`LITTLE`].
    Brief,
    Single,
    Double,
}

/// Of the likeliest token's weight, 1. So little that large nuclei are seldom too near to tell.
const LITTLE: f32 = 1.0 / (1 << 21) as f32;

impl Precision {
    /// How far two shares of the whole row may be from the truth together, as parts of the whole.
    ///
    /// In single precision a weight `w = e^-a` of [`Weigher::sums`] is off by `3 a w 2^-24`; the mean of `a` over a distribution of n
    /// tokens is at most its entropy and so ln n, 23 for as many as there are ids. With the roundings of exponential and sums a
    /// share is off by 5e-6 at most. In double precision the polynomial's rest is what counts, 1e-11, and a share is off by less than
    /// 1e-10 for sums of any vocabulary.
    fn margin(self) -> f64 {
        match self {
            Self::Brief | Self::Single => 1.0 / f64::from(1 << 16),
            Self::Double => 1.0 / f64::from(1 << 30),
        }
    }

    /// What is tried where this cannot tell.
    fn next(self) -> Option<Self> {
        match self {
            Self::Brief => Some(Self::Single),
            Self::Single => Some(Self::Double),
            Self::Double => None,
        }
    }
}

/// What a row weighs in all.
#[derive(Clone, Copy)]
struct Total {
    weight: f64,
    /// How far a share of it and the weight of some of its tokens, which are compared, may be off together.
    margin: f64,
}

/// Where single precision neither overflows nor loses digits on the way to an exponent.
const TEMPERATURES: RangeInclusive<f32> = 1e-20..=1e20;

/// How many of the likeliest tokens are looked through for a nucleus, about, one after the other.
const RUNGS: [usize; 6] = [8, 64, 512, 4096, 32768, usize::MAX];

/// Memory that draws find again.
#[derive(Clone, Debug, Default)]
pub struct Room {
    ids: Vec<u32>,
    floors: Vec<f32>,
    /// Weights of blocks as the vectors give them,
    singles: Vec<f32>,
    /// and as they are added.
    sums: Vec<f64>,
    kept: Vec<(u32, f64)>,
}

impl Room {
    /// The `count` likeliest ids, the likeliest first.
    pub fn likeliest(&mut self, row: Row<'_>, count: usize) -> &[u32] {
        likeliest(row, count, &mut self.ids, &mut self.floors);
        &self.ids
    }

    /// Weighs the ids, in their order.
    fn keep(&mut self, logits: &[f32], best: u32, temperature: f32) {
        self.kept.clear();
        self.kept.extend(self.ids.iter().map(|&id| (id, weight(logits, best, temperature, id))));
    }

    /// What [`simple::draw`](super::simple::draw) gives, or `None` where that has to be asked.
    pub fn draw(&mut self, row: Row<'_>, best: u32, options: &SamplingOptions, random: f64) -> Option<u32> {
        let logits = row.values();
        if !TEMPERATURES.contains(&options.temperature) {
            return None;
        }
        let (p, min_p) = (f64::from(options.top_p), f64::from(options.min_p));
        if options.top_k > 0 {
            self.likeliest(row, options.top_k);
            self.keep(logits, best, options.temperature);
            if p < 1.0 {
                let enough = p * sum(&self.kept);
                sort(&mut self.kept);
                let mut so_far = 0.0;
                let last = |(_, w): &(u32, f64)| {
                    so_far += w;
                    so_far >= enough
                };
                let end = self.kept.iter().position(last).map_or(self.kept.len(), |at| at + 1);
                self.kept.truncate(end);
            }
        } else if p < 1.0 {
            self.nucleus(row, best, options)?;
            self.kept.retain(|&(_, w)| w >= min_p);
            let total = sum(&self.kept);
            return match reaches(&mut self.kept, random * total, total * Precision::Double.margin()) {
                Reached::At(at) => Some(self.kept[at].0),
                Reached::Never | Reached::Near => None,
            };
        } else if min_p > 0.0 {
            // A little lower than the filter's own floor, which `pick` applies.
            let (top, reach) = (f64::from(logits[best as usize]), f64::from(options.temperature) * libm::log(min_p));
            let floor = top + reach - 1e-9 * (top.abs() + reach.abs());
            self.ids.clear();
            at_least(row, floor, &mut self.ids);
            self.keep(logits, best, options.temperature);
        } else {
            let mut precisions = std::iter::successors(Some(Precision::Brief), |precision| precision.next());
            return precisions.find_map(|precision| self.anywhere(row, best, options, random, precision));
        }
        Some(pick(&mut self.kept, best, min_p, random))
    }

    /// The weight of the whole row, by its blocks, which are left in `sums`.
    fn total(&mut self, row: Row<'_>, best: u32, options: &SamplingOptions, precision: Precision) -> Total {
        let mut unread = 0.0;
        self.sums.clear();
        match precision {
            Precision::Brief | Precision::Single => {
                // A peak that counts for 0 has a block that does.
                let least = if let Precision::Brief = precision { LITTLE } else { 0.0 };
                unread = Weigher::default().sums(row, 1.0 / options.temperature, least, &mut self.singles);
                self.sums.extend(self.singles.iter().map(|&sum| f64::from(sum)));
            }
            Precision::Double => {
                let (best, rate) = (f64::from(row.values()[best as usize]), 1.0 / f64::from(options.temperature));
                self.sums.extend(row.values().chunks(BLOCK).map(|block| sum_of_exponentials(block, best, rate)));
            }
        }
        let weight = self.sums.iter().sum();
        // What was not read may belong to the tokens, or to the share and not to them.
        Total { weight, margin: unread + (weight + unread) * precision.margin() }
    }

    /// Leaves in `kept` the likeliest tokens that together reach the share of the nucleus, in no order.
    fn nucleus(&mut self, row: Row<'_>, best: u32, options: &SamplingOptions) -> Option<()> {
        let logits = row.values();
        let share = f64::from(options.top_p);
        let mut precision = Precision::Brief;
        let mut total = self.total(row, best, options, precision);
        for count in RUNGS {
            let floor = self.floor(row, count);
            self.ids.clear();
            at_least(row, floor.into(), &mut self.ids);
            self.keep(logits, best, options.temperature);
            let mut reached = reaches(&mut self.kept, share * total.weight, total.margin);
            while let (Reached::Near, Some(next)) = (&reached, precision.next()) {
                precision = next;
                total = self.total(row, best, options, precision);
                reached = reaches(&mut self.kept, share * total.weight, total.margin);
            }
            // Others below the floor may weigh as much as the last one, and come before it.
            let below = weight_of(floor, logits[best as usize], options.temperature);
            match reached {
                Reached::At(end) if self.kept.len() == logits.len() || self.kept[end].1 > below => {
                    self.kept.truncate(end + 1);
                    return Some(());
                }
                Reached::At(_) | Reached::Never => {}
                Reached::Near => return None,
            }
        }
        None
    }

    /// A logit that about `count` others are as high as, by the highest of blocks or by a sample.
    fn floor(&mut self, row: Row<'_>, count: usize) -> f32 {
        /// Of so many logits the sample has one.
        const STRIDE: usize = 16;
        self.floors.clear();
        let at = if count <= row.peaks().len() / 4 {
            self.floors.extend_from_slice(row.peaks());
            count
        } else {
            self.floors.extend(row.values().iter().step_by(STRIDE));
            count / STRIDE
        };
        if at >= self.floors.len() {
            return f32::NEG_INFINITY;
        }
        *self.floors.select_nth_unstable_by(at, |a, b| b.total_cmp(a)).1
    }

    /// One draw from all tokens.
    fn anywhere(
        &mut self,
        row: Row<'_>,
        best: u32,
        options: &SamplingOptions,
        random: f64,
        precision: Precision,
    ) -> Option<u32> {
        let logits = row.values();
        let Total { weight: total, margin } = self.total(row, best, options, precision);
        let target = random * total;
        let mut before = 0.0;
        let block = self.sums.iter().position(|sum| {
            let here = before + sum > target;
            before += if here { 0.0 } else { *sum };
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

fn sum(kept: &[(u32, f64)]) -> f64 {
    kept.iter().map(|(_, w)| w).sum()
}

/// Where the heaviest of some tokens weigh enough together.
enum Reached {
    /// With that one, the last of them.
    At(usize),
    /// Nowhere.
    Never,
    /// It is too near to tell.
    Near,
}

/// Moves the heaviest to the front until they weigh `enough` together, which is known to `margin`. One half of what is left is put
/// before the other until little is left: sorting all takes longer.
fn reaches(kept: &mut [(u32, f64)], enough: f64, margin: f64) -> Reached {
    /// What is sooner sorted than halved.
    const FEW: usize = 32;
    let (mut from, mut to, mut before) = (0, kept.len(), 0.0);
    while to - from > FEW {
        let half = (to - from) / 2;
        kept[from..to].select_nth_unstable_by_key(half, |&(id, w)| (Reverse(Key(w)), id));
        let here = before + sum(&kept[from..from + half]);
        if (here - enough).abs() <= margin {
            return Reached::Near;
        }
        if here > enough {
            to = from + half;
        } else {
            (from, before) = (from + half, here);
        }
    }
    sort(&mut kept[from..to]);
    for (i, (_, w)) in kept.iter().enumerate().take(to).skip(from) {
        before += w;
        if (before - enough).abs() <= margin {
            return Reached::Near;
        }
        if before > enough {
            return Reached::At(i);
        }
    }
    Reached::Never
}

/// The heaviest first, of equal ones the lowest id first.
fn sort(kept: &mut [(u32, f64)]) {
    kept.sort_unstable_by_key(|&(id, w)| (Reverse(Key(w)), id));
}

/// The sum of `e^((logit - best) * rate)`, each to a part of 1e-11 and what is below `e^-700` counted as that: Cody and Waite's
/// reduction by ln 2 in two parts and a Taylor polynomial of degree 9. Without branches, so that it compiles to vectors.
fn sum_of_exponentials(block: &[f32], best: f64, rate: f64) -> f64 {
    /// Adding it leaves a number rounded to an integer in the low bits.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    /// The upper 32 bits of ln 2, and the rest.
    const HIGH: f64 = 0.693_147_180_369_123_8;
    const LOW: f64 = 1.908_214_929_270_587_7e-10;
    const COEFFICIENTS: [f64; 9] =
        [1.0 / 40320.0, 1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut sums = [0.0; 4];
    let mut take = |part: &[f32; 4]| {
        for (sum, &v) in sums.iter_mut().zip(part) {
            let v = (f64::from(v) - best) * rate;
            let v = if v > -700.0 { v } else { -700.0 };
            let rounded = v * std::f64::consts::LOG2_E + ROUND;
            let n = rounded - ROUND;
            let r = v - n * HIGH - n * LOW;
            let p = COEFFICIENTS.iter().fold(1.0 / 362_880.0, |p, c| p * r + c);
            let scale = (rounded.to_bits() << 52).wrapping_add(1f64.to_bits());
            *sum += p * f64::from_bits(scale);
        }
    };
    let (whole, rest) = block.as_chunks::<4>();
    whole.iter().for_each(&mut take);
    if !rest.is_empty() {
        let mut padded = [f32::NEG_INFINITY; 4];
        padded[..rest.len()].copy_from_slice(rest);
        take(&padded);
    }
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}
