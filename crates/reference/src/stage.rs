//! What a layer computes on its way, by name, for who must know where two forwards part.

/// An intermediate result of a layer, in the order in which they are computed. Rows are tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The input behind the first norm, `[n, width]`.
    AttentionNorm,
    /// Queries before they turn, `[n, heads * head_dim]`.
    Query,
    /// Keys before they turn, `[n, kv_heads * head_dim]`.
    Key,
    /// Values, `[n, kv_heads * head_dim]`.
    Value,
    /// Queries as turned, `[n, heads * head_dim]`.
    TurnedQuery,
    /// Keys as turned, `[n, kv_heads * head_dim]`.
    TurnedKey,
    /// Every key seen so far, these tokens' included, `[positions, kv_heads * head_dim]`.
    CachedKeys,
    /// Every value seen so far, `[positions, kv_heads * head_dim]`.
    CachedValues,
    /// Scaled products of queries and keys, `[n, heads, positions]`, 0 where a token may not look.
    Scores,
    /// Their softmax, `[n, heads, positions]`, 0 where a token may not look.
    Weights,
    /// Values mixed by the weights, `[n, heads * head_dim]`.
    Mixed,
    /// The projection of what was mixed, `[n, width]`.
    AttentionOutput,
    /// The input plus that, `[n, width]`.
    Attended,
    /// That behind the second norm, `[n, width]`.
    FfnNorm,
    /// The gate before its activation, `[n, ffn]`.
    Gate,
    /// What is gated, `[n, ffn]`.
    Up,
    /// The activated gate times what is gated, `[n, ffn]`.
    Gated,
    /// The projection of that, `[n, width]`.
    Down,
    /// The layer's output, `[n, width]`.
    Hidden,
}

/// Told the number of a layer, a stage and its rows.
pub type Tap<'a> = dyn FnMut(usize, Stage, &[f32]) + 'a;

/// A [`Tap`] on one layer.
pub(crate) type LayerTap<'a> = dyn FnMut(Stage, &[f32]) + 'a;
