//! One transformer block: attention and feed-forward, each behind a norm and added to the stream.
//!
//! ```text
//! h = x + Wo attend(rope(Wq n1(x)), rope(Wk n1(x)), Wv n1(x))
//! y = h + Wdown (silu(Wgate n2(h)) * (Wup n2(h)))
//! ```

use std::ops::Range;

use crate::math::{dot, rms_norm, silu, softmax};
use crate::model::{LayerCache, Model};
use crate::stage::LayerTap;
use crate::weights::Part;
use crate::{Error, Hyperparameters, Rope, Stage, Variant};

/// What a layer needs to know besides its weights.
pub(crate) struct Terms<'a> {
    pub hyper: &'a Hyperparameters,
    pub rope: &'a Rope,
    pub variant: &'a Variant,
}

/// Replaces `hidden`, `[n, width]`, by the output of layer `layer`. The rows stand in `windows` of positions, which ascend, and the
/// first of which begins where `cache` ends; their keys and values are appended to it, and zeros for positions between windows.
/// `tap`, where there is one, is told every stage. Each matrix is asked of the model where it is used, so that one at a time is
/// enough.
pub(crate) fn run(
    model: &Model,
    layer: usize,
    hidden: &mut [f32],
    cache: &mut LayerCache,
    windows: &[Range<usize>],
    mut tap: Option<&mut LayerTap<'_>>,
) -> Result<(), Error> {
    let terms = &model.terms();
    let Terms { hyper: h, rope, variant } = *terms;
    let positions = || windows.iter().cloned().flatten();
    // Only for who asks: over a long context they are larger than anything else here.
    let mut attention = tap.is_some().then(Attention::default);
    let mut tell = |stage, rows: &[f32]| {
        if let Some(tap) = tap.as_mut() {
            tap(stage, rows);
        }
    };
    let linear = |part, bias, x: &[f32]| Ok::<_, Error>(model.linear(layer, part, bias)?.apply(x));
    let normed = norm(hidden, &model.vector(layer, Part::AttentionNorm)?, terms);
    tell(Stage::AttentionNorm, &normed);
    let mut queries = linear(Part::Query, Part::QueryBias, &normed)?;
    let mut keys = linear(Part::Key, Part::KeyBias, &normed)?;
    let values = linear(Part::Value, Part::ValueBias, &normed)?;
    tell(Stage::Query, &queries);
    tell(Stage::Key, &keys);
    tell(Stage::Value, &values);
    for (row, position) in queries.chunks_exact_mut(h.q_rows()).zip(positions()) {
        rope.turn(row, h.head_dim, position);
    }
    for (row, position) in keys.chunks_exact_mut(h.kv_rows()).zip(positions()) {
        rope.turn(row, h.head_dim, position);
    }
    tell(Stage::TurnedQuery, &queries);
    tell(Stage::TurnedKey, &keys);
    let mut row = 0;
    for window in windows {
        let rows = row * h.kv_rows()..(row + window.len()) * h.kv_rows();
        for (cached, new) in [(&mut cache.keys, &keys), (&mut cache.values, &values)] {
            cached.resize(window.start * h.kv_rows(), 0.0);
            cached.extend_from_slice(&new[rows.clone()]);
        }
        row += window.len();
    }
    tell(Stage::CachedKeys, &cache.keys);
    tell(Stage::CachedValues, &cache.values);

    let mut attended = vec![0.0; queries.len()];
    let rows = queries.chunks_exact(h.q_rows()).zip(attended.chunks_exact_mut(h.q_rows()));
    let end = windows.last().map_or(0, |window| window.end);
    for ((queries, out), position) in rows.zip(positions()) {
        attend(terms, queries, cache, position + 1, out, end, attention.as_mut());
    }
    if let Some(Attention { scores, weights }) = &attention {
        tell(Stage::Scores, scores);
        tell(Stage::Weights, weights);
    }
    tell(Stage::Mixed, &attended);
    let update = linear(Part::Output, Part::OutputBias, &attended)?;
    tell(Stage::AttentionOutput, &update);
    add(hidden, &update);
    tell(Stage::Attended, hidden);

    let normed = norm(hidden, &model.vector(layer, Part::FfnNorm)?, terms);
    tell(Stage::FfnNorm, &normed);
    let mut inner = linear(Part::Gate, Part::GateBias, &normed)?;
    let up = linear(Part::Up, Part::UpBias, &normed)?;
    tell(Stage::Gate, &inner);
    tell(Stage::Up, &up);
    for (gate, up) in inner.iter_mut().zip(&up) {
        *gate = if variant.gate_is_up { *gate * silu(*up) } else { silu(*gate) * up };
    }
    tell(Stage::Gated, &inner);
    let update = linear(Part::Down, Part::DownBias, &inner)?;
    tell(Stage::Down, &update);
    add(hidden, &update);
    tell(Stage::Hidden, hidden);
    Ok(())
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
