//! Which value of a shard is which stage of the reference, and how its elements lie.
//!
//! Shards hold activations as `[1, channels, T, 1]` or `[1, heads, head_dim, T]`, products with the cache as `[1, heads, T, ..]`,
//! and the cache as `[1, kv_heads, S, head_dim]`. The reference has a row for each token. This is the one place that knows both.

use std::ops::Range;

use anemone_bundle::Contract;
use anemone_reference::Stage;

use crate::shard_weights::layer_part;

/// How a value's elements lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `[1, channels, T, 1]`, or heads and head_dim for channels: a column is a token.
    Columns,
    /// `[1, heads, T, head_dim]`.
    HeadRows,
    /// `[1, heads, T, S]`, of which a token sees the positions up to its own.
    Seen,
    /// `[1, kv_heads, S, head_dim]`, of which the positions up to the last token are filled.
    Cache,
}

/// A value of a shard that the reference computes too.
#[derive(Clone, Debug, PartialEq)]
pub struct Counterpart {
    /// The layer in the model.
    pub layer: usize,
    /// What it is there.
    pub stage: Stage,
    layout: Layout,
    /// Of the stage's heads; all of its elements where there is none.
    heads: Option<Range<usize>>,
    /// The shard's value times this is the reference's.
    factor: f32,
}

impl Counterpart {
    /// What the value `name` of a shard that ends before layer `end` is; its channels, the second dimension, tell a fused
    /// projection from a plain one.
    pub fn of(name: &str, channels: usize, end: usize, c: &Contract) -> Option<Self> {
        use Layout::*;
        let whole = |layer, stage, layout| Some(Self { layer, stage, layout, heads: None, factor: 1.0 });
        if name == "hidden" {
            return whole(end.checked_sub(1)?, Stage::Hidden, Columns);
        }
        let (layer, part) = layer_part(name)?;
        let (stage, layout) = match part {
            "attn_norm_out" => (Stage::AttentionNorm, Columns),
            "q" | "attn_q" => (Stage::Query, Columns),
            "k" | "attn_k" => (Stage::Key, Columns),
            "v" | "attn_v" => (Stage::Value, Columns),
            "q_turned" => (Stage::TurnedQuery, Columns),
            "k_turned" => (Stage::TurnedKey, Columns),
            "q_rows" => (Stage::TurnedQuery, HeadRows),
            "k_rows" => (Stage::TurnedKey, HeadRows),
            "v_rows" => (Stage::Value, HeadRows),
            "q_scaled" => {
                let factor = (c.head_dim as f32).sqrt();
                return Some(Self { layer, stage: Stage::TurnedQuery, layout: HeadRows, heads: None, factor });
            }
            "k_cache_now" => (Stage::CachedKeys, Cache),
            "v_cache_now" => (Stage::CachedValues, Cache),
            "mixed" => (Stage::Mixed, HeadRows),
            "mixed_flat" => (Stage::Mixed, Columns),
            "attn_output" => (Stage::AttentionOutput, Columns),
            "attended" => (Stage::Attended, Columns),
            "ffn_norm_out" => (Stage::FfnNorm, Columns),
            "gate" | "ffn_gate" => (Stage::Gate, Columns),
            "up" => (Stage::Up, Columns),
            "ffn_up" if channels == c.ffn => (Stage::Up, Columns),
            "gated" => (Stage::Gated, Columns),
            "ffn_down" => (Stage::Down, Columns),
            "hidden" => (Stage::Hidden, Columns),
            _ => return Self::group(layer, part, c),
        };
        whole(layer, stage, layout)
    }

    /// A value of one kv head's group: `kv1_scores`.
    fn group(layer: usize, part: &str, c: &Contract) -> Option<Self> {
        let (group, part) = part.strip_prefix("kv")?.split_once('_')?;
        let group: usize = group.parse().ok().filter(|g| *g < c.kv_heads)?;
        let (stage, layout) = match part {
            "scores" => (Stage::Scores, Layout::Seen),
            "weights" => (Stage::Weights, Layout::Seen),
            "mixed" => (Stage::Mixed, Layout::HeadRows),
            _ => return None,
        };
        let heads = Some(group * c.group()..(group + 1) * c.group());
        Some(Self { layer, stage, layout, heads, factor: 1.0 })
    }

    /// The rows of the shard's value of `shape`, and the same rows of the stage, for the `n` tokens from `position` on:
    /// `None` where the shape is none that this layout has.
    pub fn rows(
        &self,
        value: &[f32],
        shape: &[usize],
        stage: &[f32],
        position: usize,
        n: usize,
        c: &Contract,
    ) -> Option<Vec<(Vec<f32>, Vec<f32>)>> {
        let [1, a, b, d] = shape[..] else { return None };
        let positions = position + n;
        let scaled = |v: f32| v * self.factor;
        let mut rows = Vec::new();
        match self.layout {
            Layout::Columns => {
                // [1, channels, T, 1] and [1, heads, head_dim, T] are the same bytes.
                let width = stage.len() / n;
                let tokens = value.len() / width;
                for (t, expected) in stage.chunks_exact(width).enumerate().take(n.min(tokens)) {
                    rows.push(((0..width).map(|w| scaled(value[w * tokens + t])).collect(), expected.to_vec()));
                }
            }
            Layout::HeadRows => {
                let all = stage.len() / n / d;
                let heads = self.heads.clone().unwrap_or(0..all);
                if heads.len() != a {
                    return None;
                }
                for (t, expected) in stage.chunks_exact(all * d).enumerate().take(n.min(b)) {
                    let found = (0..a).flat_map(|h| &value[(h * b + t) * d..][..d]).map(|&v| scaled(v)).collect();
                    rows.push((found, expected[heads.start * d..heads.end * d].to_vec()));
                }
            }
            Layout::Seen => {
                let heads = self.heads.clone().filter(|heads| heads.len() == a && d >= positions)?;
                for t in 0..n.min(b) {
                    let seen = position + t + 1;
                    let found = (0..a).flat_map(|h| &value[(h * b + t) * d..][..seen]).copied().collect();
                    let expected = heads.clone().flat_map(|h| &stage[(t * c.heads + h) * positions..][..seen]);
                    rows.push((found, expected.copied().collect()));
                }
            }
            Layout::Cache => {
                if b < positions {
                    return None;
                }
                for (p, expected) in stage.chunks_exact(a * d).enumerate().take(positions) {
                    let found = (0..a).flat_map(|h| &value[(h * b + p) * d..][..d]).copied().collect();
                    rows.push((found, expected.to_vec()));
                }
            }
        }
        Some(rows)
    }

    /// The position of row `row` of what [`rows`](Self::rows) gives.
    pub fn position(&self, row: usize, position: usize) -> usize {
        if self.layout == Layout::Cache { row } else { position + row }
    }
}
