//! How a model is cut: layers into shards, the head into slices of the vocabulary.

use std::ops::Range;

use crate::error::Error;

/// The cut of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Layer ranges, in order, covering every layer once.
    pub layers: Vec<Range<usize>>,
    /// Row ranges of the head, in order, covering the vocabulary once.
    pub head: Vec<Range<usize>>,
}

/// How the layers are to be cut.
#[derive(Clone, Debug)]
pub enum LayerCut {
    /// These ranges, as typed: `0-20,20-24`. Ends are exclusive.
    Ranges(String),
    /// Shards of this many layers, the last with what is left.
    Every(usize),
    /// As few shards as fit [`DEFAULT_SHARD_BYTES`] of weights each.
    Default,
}

/// Weights of a default layer shard at most. Whole programs have been seen to leave the Neural Engine between 1.9 GB and
/// 2.3 GB, and reports disagree on whether less is safe; the default stays well below.
pub const DEFAULT_SHARD_BYTES: u64 = 1 << 30;

/// Rows of a default head slice at most: the width that placement reports agree on.
pub const DEFAULT_SLICE_ROWS: usize = 16384;

impl Topology {
    /// Cuts `layers` layers of `layer_bytes` each, and `vocab` rows into `slices` (or as many as
    /// [`DEFAULT_SLICE_ROWS`] asks for).
    pub fn new(
        cut: &LayerCut,
        slices: Option<usize>,
        layers: usize,
        layer_bytes: u64,
        vocab: usize,
    ) -> Result<Self, Error> {
        let layers = match cut {
            LayerCut::Ranges(text) => ranges(text, layers)?,
            LayerCut::Every(0) => {
                return Err(Error::Option { option: "--layers-per-shard", reason: "0 layers make no shard".into() });
            }
            LayerCut::Every(n) => (0..layers).step_by(*n).map(|start| start..(start + n).min(layers)).collect(),
            LayerCut::Default => {
                let fit = usize::try_from(DEFAULT_SHARD_BYTES / layer_bytes.max(1)).unwrap_or(layers).clamp(1, layers);
                evenly(layers, layers.div_ceil(fit))
            }
        };
        let slices = slices.unwrap_or(vocab.div_ceil(DEFAULT_SLICE_ROWS));
        if slices == 0 || slices > vocab {
            let reason = format!("{slices} slices of a vocabulary of {vocab}");
            return Err(Error::Option { option: "--head-slices", reason });
        }
        Ok(Self { layers, head: evenly(vocab, slices) })
    }
}

/// `parts` ranges whose sizes differ by at most one; `parts` is at most `total`.
fn evenly(total: usize, parts: usize) -> Vec<Range<usize>> {
    (0..parts).map(|i| i * total / parts..(i + 1) * total / parts).collect()
}

/// Parses `0-20,20-24` and holds it to `0..layers`.
fn ranges(text: &str, layers: usize) -> Result<Vec<Range<usize>>, Error> {
    let fault = |reason: String| Error::Option { option: "--topology", reason };
    let mut next = 0;
    let mut all = Vec::new();
    for part in text.split(',') {
        let parsed =
            part.trim().split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let Some((start, end)): Option<(usize, usize)> = parsed else {
            return Err(fault(format!("`{part}` is not a range such as 0-20")));
        };
        if end <= start {
            return Err(fault(format!("range `{part}` is empty (ends are exclusive)")));
        }
        if start > next {
            return Err(fault(format!("gap: layer {next} is in no range before `{part}`")));
        }
        if start < next {
            return Err(fault(format!("overlap: layer {start} of `{part}` is in the range before it too")));
        }
        if end > layers {
            return Err(fault(format!("range `{part}` ends beyond the model's {layers} layers")));
        }
        next = end;
        all.push(start..end);
    }
    if next != layers {
        return Err(fault(format!("gap: layers {next} to {layers} are in no range")));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, layers: usize) -> Result<Vec<Range<usize>>, String> {
        Topology::new(&LayerCut::Ranges(text.into()), Some(1), layers, 1, 8)
            .map(|t| t.layers)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn published_topology() {
        assert_eq!(cut("0-20,20-24,24-30,30-32", 32).unwrap(), [0..20, 20..24, 24..30, 30..32]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("0-2,3-4", "gap"),
            ("0-3,2-4", "overlap"),
            ("0-2", "gap"),
            ("0-5", "beyond"),
            ("0-0", "empty"),
            ("a", "range"),
        ] {
            let message = cut(text, 4).unwrap_err();
            assert!(message.contains(word) && message.contains("--topology"), "{message}");
        }
    }

    #[test]
    fn defaults_follow_size() {
        let t = Topology::new(&LayerCut::Default, None, 32, 100 << 20, 200064).unwrap();
        assert_eq!(t.layers, [0..8, 8..16, 16..24, 24..32]);
        assert_eq!(t.head.len(), 13);
        assert_eq!(t.head.last().unwrap().end, 200064);
    }
}
