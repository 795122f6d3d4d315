//! What is read off a surveyed row of logits: the highest, and the likeliest without a look at blocks that hold none of them.

use std::cmp::Reverse;

use anemone_exec::Row;
use anemone_exec::fast::BLOCK;

use super::Key;
use crate::Error;

/// The id of the highest logit, the lowest of equal ones.
///
/// # Errors
/// Logits that are no distribution: none at all, NaN, plus infinity, or minus infinity throughout.
pub fn best(row: Row<'_>) -> Result<u32, Error> {
    let logits = row.values();
    if logits.is_empty() || u32::try_from(logits.len()).is_err() {
        return Err(Error::Logits(format!("{} of them: expected one for each token", logits.len())));
    }
    let Some(top) = row.top() else {
        return Err(overflow(logits));
    };
    let start = row.peaks().iter().position(|peak| *peak == top).unwrap_or_default() * BLOCK;
    // Not there where minus infinity is all there is.
    match logits[start..].iter().position(|l| *l == top) {
        Some(at) => Ok((start + at) as u32),
        None => Err(Error::Logits("every token is excluded".into())),
    }
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
pub fn likeliest(row: Row<'_>, count: usize, ids: &mut Vec<u32>, floors: &mut Vec<f32>) {
    let (logits, peaks) = (row.values(), row.peaks());
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
    at_least(row, floor.into(), ids);
    let order = |&id: &u32| (Reverse(Key(f64::from(logits[id as usize]))), id);
    if count < ids.len() {
        ids.select_nth_unstable_by_key(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by_key(order);
}

/// Adds the ids of logits of at least `floor`, in their order.
pub fn at_least(row: Row<'_>, floor: f64, ids: &mut Vec<u32>) {
    for ((logits, peak), start) in row.values().chunks(BLOCK).zip(row.peaks()).zip((0u32..).step_by(BLOCK)) {
        if f64::from(*peak) >= floor {
            ids.extend(logits.iter().zip(start..).filter(|(l, _)| f64::from(**l) >= floor).map(|(_, id)| id));
        }
    }
}
