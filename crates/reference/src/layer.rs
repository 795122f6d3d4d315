//! One transformer block: attention and feed-forward, each behind a norm and added to the stream.
//!
//! ```text
//! h = x + Wo attend(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x))
//! y = h + Wdown (silu(Wgate n2(h)) * (Wup n2(h)))
//! ```

use std::collections::BTreeMap;

use crate::math::{Linear, dot, rms_norm, silu, softmax};
use crate::model::LayerCache;
use crate::stage::LayerTap;
use crate::weights::{Part, Size, Weight, Weights};
use crate::{Error, Hyperparameters, Rope, Stage, Variant};

/// What a layer needs to know besides its weights.
pub(crate) struct Terms<'a> {
    pub hyper: &'a Hyperparameters,
    pub rope: &'a Rope,
    pub variant: &'a Variant,
}

/// A layer's weights in f32.
#[derive(Debug)]
pub(crate) struct Layer {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    ffn_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Reads rows `rows` of a matrix.
pub(crate) fn load_rows(
    weights: &dyn Weights,
    weight: Weight,
    rows: std::ops::Range<usize>,
    cols: usize,
) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; rows.len() * cols];
    for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
        weights.row(weight, row, out)?;
    }
    Ok(out)
}

impl Layer {
    pub fn load(weights: &dyn Weights, sizes: &BTreeMap<Weight, Size>, n: usize) -> Result<Layer, Error> {
        let size = |part| sizes[&Weight::Layer(n, part)];
        let load = |part| load_rows(weights, Weight::Layer(n, part), 0..size(part).rows, size(part).cols);
        let linear = |part, bias| -> Result<Linear, Error> {
            let Size { rows, cols } = size(part);
            let bias = if sizes.contains_key(&Weight::Layer(n, bias)) { Some(load(bias)?) } else { None };
            Ok(Linear { rows, cols, weight: load(part)?, bias })
        };
        Ok(Layer {
            attention_norm: load(Part::AttentionNorm)?,
            query: linear(Part::Query, Part::QueryBias)?,
            key: linear(Part::Key, Part::KeyBias)?,
            value: linear(Part::Value, Part::ValueBias)?,
            output: linear(Part::Output, Part::OutputBias)?,
            ffn_norm: load(Part::FfnNorm)?,
            gate: linear(Part::Gate, Part::GateBias)?,
            up: linear(Part::Up, Part::UpBias)?,
            down: linear(Part::Down, Part::DownBias)?,
        })
    }

    /// Replaces `hidden`, `[n, width]`, by the layer's output. The rows stand at positions `position..`, which is where
    /// `cache` ends; their keys and values are appended to it. `tap`, where there is one, is told every stage.
    pub fn run(
        &self,
        terms: &Terms<'_>,
        hidden: &mut [f32],
        cache: &mut LayerCache,
        position: usize,
        mut tap: Option<&mut LayerTap<'_>>,
    ) {
        let Terms { hyper: h, rope, variant } = *terms;
        // Only for who asks: over a long context they are larger than anything else here.
        let mut attention = tap.is_some().then(Attention::default);
        let mut tell = |stage, rows: &[f32]| {
            if let Some(tap) = tap.as_mut() {
                tap(stage, rows);
            }
        };
        let normed = norm(hidden, &self.attention_norm, terms);
        tell(Stage::AttentionNorm, &normed);
        let mut queries = self.query.apply(&normed);
        let mut keys = self.key.apply(&normed);
        let values = self.value.apply(&normed);
        tell(Stage::Query, &queries);
        tell(Stage::Key, &keys);
        tell(Stage::Value, &values);
        for (i, row) in queries.chunks_exact_mut(h.q_rows()).enumerate() {
            rope.turn(row, h.head_dim, position + i);
        }
        for (i, row) in keys.chunks_exact_mut(h.kv_rows()).enumerate() {
            rope.turn(row, h.head_dim, position + i);
        }
        tell(Stage::TurnedQuery, &queries);
        tell(Stage::TurnedKey, &keys);
        cache.keys.extend_from_slice(&keys);
        cache.values.extend(values);
        tell(Stage::CachedKeys, &cache.keys);
        tell(Stage::CachedValues, &cache.values);

        let mut attended = vec![0.0; queries.len()];
        let rows = queries.chunks_exact(h.q_rows()).zip(attended.chunks_exact_mut(h.q_rows()));
        let positions = position + rows.len();
        for (i, (queries, out)) in rows.enumerate() {
            attend(terms, queries, cache, position + i + 1, out, positions, attention.as_mut());
        }
        if let Some(Attention { scores, weights }) = &attention {
            tell(Stage::Scores, scores);
            tell(Stage::Weights, weights);
        }
        tell(Stage::Mixed, &attended);
        let update = self.output.apply(&attended);
        tell(Stage::AttentionOutput, &update);
        add(hidden, &update);
        tell(Stage::Attended, hidden);

        let normed = norm(hidden, &self.ffn_norm, terms);
        tell(Stage::FfnNorm, &normed);
        let mut inner = self.gate.apply(&normed);
        let up = self.up.apply(&normed);
        tell(Stage::Gate, &inner);
        tell(Stage::Up, &up);
        for (gate, up) in inner.iter_mut().zip(&up) {
            *gate = if variant.gate_is_up { *gate * silu(*up) } else { silu(*gate) * up };
        }
        tell(Stage::Gated, &inner);
        let update = self.down.apply(&inner);
        tell(Stage::Down, &update);
        add(hidden, &update);
        tell(Stage::Hidden, hidden);
    }
}

/// Scores and weights of a call, `[n, heads, positions]`.
#[derive(Default)]
struct Attention {
    scores: Vec<f32>,
    weights: Vec<f32>,
}

/// Each head of one token's query over the first `seen` of `positions` positions; several query heads share a kv head.
fn attend(
    terms: &Terms<'_>,
    queries: &[f32],
    cache: &LayerCache,
    seen: usize,
    out: &mut [f32],
    positions: usize,
    mut attention: Option<&mut Attention>,
) {
    let h = terms.hyper;
    let kv_head = |head: usize| match terms.variant.kv_round_robin {
        true => head % h.kv_heads,
        false => head / (h.heads / h.kv_heads),
    };
    let scale = 1.0 / (h.head_dim as f32).sqrt();
    let mut scores = vec![0.0; seen];
    let unseen = positions - seen;
    let keep = |all: &mut Vec<f32>, row: &[f32]| {
        all.extend_from_slice(row);
        all.resize(all.len() + unseen, 0.0);
    };
    let heads = queries.chunks_exact(h.head_dim).zip(out.chunks_exact_mut(h.head_dim));
    for (head, (query, out)) in heads.enumerate() {
        let kv = kv_head(head) * h.head_dim;
        let at = |position: usize| position * h.kv_rows() + kv..position * h.kv_rows() + kv + h.head_dim;
        for (position, score) in scores.iter_mut().enumerate() {
            *score = dot(query, &cache.keys[at(position)]) * scale;
        }
        if let Some(attention) = attention.as_mut() {
            keep(&mut attention.scores, &scores);
        }
        softmax(&mut scores);
        if let Some(attention) = attention.as_mut() {
            keep(&mut attention.weights, &scores);
        }
        for (position, score) in scores.iter().enumerate() {
            for (out, value) in out.iter_mut().zip(&cache.values[at(position)]) {
                *out += score * value;
            }
        }
    }
}

/// RMSNorm by stored weights.
pub(crate) fn norm(rows: &[f32], weight: &[f32], terms: &Terms<'_>) -> Vec<f32> {
    match terms.variant.norm_offset {
        0.0 => rms_norm(rows, weight, terms.hyper.eps),
        offset => {
            let weight: Vec<f32> = weight.iter().map(|w| w + offset).collect();
            rms_norm(rows, &weight, terms.hyper.eps)
        }
    }
}

fn add(stream: &mut [f32], update: &[f32]) {
    for (x, y) in stream.iter_mut().zip(update) {
        *x += y;
    }
}
