//! A draw as it is defined: every token's weight, the filters one after the other, a walk along what they leave.
//!
//! It costs an exponential for each token of the vocabulary. It is what [`quick`](super::quick) is held to, and what decides
//! where that cannot.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Key, SamplingOptions};

/// The token that `random`, a fraction in [0, 1), falls on. `best` is the id of the highest logit, which is finite.
pub fn draw(logits: &[f32], best: u32, options: &SamplingOptions, random: f64) -> u32 {
    let weight = |id: u32| weight(logits, best, options.temperature, id);
    let ids = 0..logits.len() as u32;
    let mut kept: Vec<(u32, f64)> = if options.top_k == 0 {
        ids.map(|id| (id, weight(id))).collect()
    } else {
        likeliest(logits, options.top_k).into_iter().map(|id| (id, weight(id))).collect()
    };
    if options.top_p < 1.0 {
        kept = nucleus(kept, f64::from(options.top_p));
    }
    pick(&mut kept, best, f64::from(options.min_p), random)
}

/// Of a token, relative to the likeliest one, whose weight is therefore 1.
pub fn weight(logits: &[f32], best: u32, temperature: f32, id: u32) -> f64 {
    weight_of(logits[id as usize], logits[best as usize], temperature)
}

/// Of a logit, relative to the highest one.
pub fn weight_of(logit: f32, highest: f32, temperature: f32) -> f64 {
    libm::exp((f64::from(logit) - f64::from(highest)) / f64::from(temperature))
}

/// The one of `kept` that `random` falls on, when those below `min_p` are gone.
pub fn pick(kept: &mut Vec<(u32, f64)>, best: u32, min_p: f64, random: f64) -> u32 {
    // The likeliest token always stays: its weight is 1, and min_p at most that.
    kept.retain(|&(_, w)| w >= min_p);
    let mut left = random * kept.iter().map(|(_, w)| w).sum::<f64>();
    let mut last = best;
    for &(id, w) in kept.iter() {
        if w > 0.0 {
            last = id;
            if left < w {
                break;
            }
            left -= w;
        }
    }
    last
}

/// The `count` ids of the highest logits, the highest first, of equal ones the lowest id first.
pub fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_unstable_by_key(|&id| (Reverse(Key(f64::from(logits[id as usize]))), id));
    ids.truncate(count);
    ids
}

/// The likeliest of weighted tokens that together reach the share `p`.
fn nucleus(weighted: Vec<(u32, f64)>, p: f64) -> Vec<(u32, f64)> {
    let enough = p * weighted.iter().map(|(_, w)| w).sum::<f64>();
    let mut heap: BinaryHeap<_> = weighted.into_iter().map(|(id, w)| (Key(w), Reverse(id))).collect();
    let (mut kept, mut sum) = (Vec::new(), 0.0);
    while let Some((Key(w), Reverse(id))) = heap.pop() {
        kept.push((id, w));
        sum += w;
        if sum >= enough {
            break;
        }
    }
    kept
}
