//! A row of logits, seen once: which is the highest, whether all of them are numbers, and the highest of each block, by which
//! those that are not among the likeliest are passed over a block at a time.

use std::cmp::Reverse;

use anemone_exec::fast::BLOCK;

use super::Key;
use crate::Error;

/// Floats that are compared at once.
const LANES: usize = 16;

/// The id of the highest logit, the lowest of equal ones; `peaks` becomes the highest of each [`BLOCK`].
///
/// # Errors
/// Logits that are no distribution: none at all, NaN, plus infinity, or minus infinity throughout.
pub fn survey(logits: &[f32], peaks: &mut Vec<f32>) -> Result<u32, Error> {
    if logits.is_empty() || u32::try_from(logits.len()).is_err() {
        return Err(Error::Logits(format!("{} of them: expected one for each token", logits.len())));
    }
    peaks.clear();
    peaks.resize(logits.len().div_ceil(BLOCK), f32::NEG_INFINITY);
    let (mut best, mut block, mut wrong) = (f32::NEG_INFINITY, 0, [0; LANES]);
    for (i, (logits, peak)) in logits.chunks(BLOCK).zip(peaks).enumerate() {
        *peak = highest(logits, &mut wrong);
        if *peak > best {
            (best, block) = (*peak, i);
        }
    }
    if wrong != [0; LANES] {
        return Err(overflow(logits));
    }
    let start = block * BLOCK;
    match logits[start..].iter().position(|l| *l == best) {
        Some(at) if best > f32::NEG_INFINITY => Ok((start + at) as u32),
        _ => Err(Error::Logits("every token is excluded".into())),
    }
}

/// The highest; `wrong` is told of NaN and plus infinity. In lanes, so that it compiles to vectors.
#[inline]
fn highest(block: &[f32], wrong: &mut [u32; LANES]) -> f32 {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let mut take = |part: &[f32; LANES]| {
        for ((highest, wrong), &v) in highest.iter_mut().zip(wrong.iter_mut()).zip(part) {
            *highest = if v > *highest { v } else { *highest };
            *wrong |= u32::from(v.is_nan() | (v == f32::INFINITY));
        }
    };
    let (whole, rest) = block.as_chunks::<LANES>();
    whole.iter().for_each(&mut take);
    if !rest.is_empty() {
        let mut padded = [f32::NEG_INFINITY; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        take(&padded);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            highest[i] = if highest[i + half] > highest[i] { highest[i + half] } else { highest[i] };
        }
        half /= 2;
    }
    highest[0]
}

fn overflow(logits: &[f32]) -> Error {
    let wrong = || logits.iter().enumerate().filter(|(_, l)| l.is_nan() || **l == f32::INFINITY);
    let (id, value) = wrong().next().unwrap_or((0, &f32::NAN));
    Error::Logits(format!(
        "the one of token {id} is {value} ({} of {} are not finite): the model's numbers overflowed",
        wrong().count(),
        logits.len()
    ))
}

/// The `count` ids of the highest logits into `ids`, the highest first, of equal ones the lowest id first. `floors` is room.
pub fn likeliest(logits: &[f32], peaks: &[f32], count: usize, ids: &mut Vec<u32>, floors: &mut Vec<f32>) {
    ids.clear();
    if count == 0 {
        return;
    }
    // As many blocks as are wanted have a logit of at least this, so none below it is wanted.
    let floor = if count <= peaks.len() {
        floors.clear();
        floors.extend_from_slice(peaks);
        *floors.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    at_least(logits, peaks, floor.into(), ids);
    let order = |&id: &u32| (Reverse(Key(f64::from(logits[id as usize]))), id);
    if count < ids.len() {
        ids.select_nth_unstable_by_key(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by_key(order);
}

/// Adds the ids of logits of at least `floor`, in their order.
pub fn at_least(logits: &[f32], peaks: &[f32], floor: f64, ids: &mut Vec<u32>) {
    for ((logits, peak), start) in logits.chunks(BLOCK).zip(peaks).zip((0u32..).step_by(BLOCK)) {
        if f64::from(*peak) >= floor {
            ids.extend(logits.iter().zip(start..).filter(|(l, _)| f64::from(**l) >= floor).map(|(_, id)| id));
        }
    }
}
