//! What is computed for each token by itself, from rows to a row: norms, gates, rotations, sums.
//!
//! Activations of the fast path are token-first: a value `[1, channels, T, 1]` of the program is `[T, channels]` in memory.

use std::sync::Arc;

use super::simd::{LANES, Simd, Task, exp};

/// A part of the rows of a value in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Where the value begins, in floats for each token.
    pub place: usize,
    /// Elements of one of its rows.
    pub stride: usize,
    /// The first element that is looked at.
    pub offset: usize,
    /// How many are.
    pub width: usize,
}

/// The memory of one call's values: `place * tokens` is where a value begins.
#[derive(Clone, Copy)]
pub struct Arena {
    base: *mut f32,
    tokens: usize,
}

impl Arena {
    /// The arena at `base` for that many tokens.
    pub fn new(base: *mut f32, tokens: usize) -> Self {
        Self { base, tokens }
    }

    /// Where token `t`'s part of `view` begins.
    pub fn at(&self, view: &View, t: usize) -> *mut f32 {
        self.base.wrapping_add(view.place * self.tokens + t * view.stride + view.offset)
    }

    /// Token `t`'s part of `view`.
    ///
    /// # Safety
    /// The view is within the arena, and nobody writes it meanwhile.
    pub unsafe fn row<'a>(&self, view: &View, t: usize) -> &'a [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(self.at(view, t), view.width) }
    }

    /// As [`row`](Self::row), to be written.
    ///
    /// # Safety
    /// The view is within the arena, and nobody else reads or writes it meanwhile.
    pub unsafe fn row_mut<'a>(&self, view: &View, t: usize) -> &'a mut [f32] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at(view, t), view.width) }
    }
}

/// How rows are rotated: pairs `(i, i + half)` of each head by the angle whose cosine and sine a token has for `i`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotation {
    /// `[T, half]`.
    pub cos: View,
    /// `[T, half]`.
    pub sin: View,
}

/// Heads of a row, rotated and scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turned {
    /// `[T, heads * head_dim]`.
    pub x: View,
    /// How many heads the row has.
    pub heads: usize,
    /// `None` where they stay as they are.
    pub rotation: Option<Rotation>,
    /// Multiplies the result.
    pub scale: f32,
}

impl Turned {
    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.x.width / self.heads
    }

    /// Head `head` of token `t`.
    ///
    /// # Safety
    /// The views are within the arena, and nobody writes them meanwhile.
    #[inline(always)]
    pub unsafe fn head<S: Simd>(&self, s: S, arena: Arena, t: usize, head: usize, out: &mut [f32]) {
        let hd = self.head_dim();
        // SAFETY: as the caller promises.
        let x = unsafe { &arena.row(&self.x, t)[head * hd..(head + 1) * hd] };
        let scale = s.splat(self.scale);
        let turned = match &self.rotation {
            None => 0,
            Some(Rotation { cos, sin }) => {
                // SAFETY: as the caller promises.
                let (cos, sin) = unsafe { (arena.row(cos, t), arena.row(sin, t)) };
                let half = cos.len();
                let (low, high) = x[..2 * half].split_at(half);
                let (out_low, out_high) = out[..2 * half].split_at_mut(half);
                let outs = out_low.chunks_mut(LANES).zip(out_high.chunks_mut(LANES));
                let tables = cos.chunks(LANES).zip(sin.chunks(LANES));
                for (((out_low, out_high), (cos, sin)), (low, high)) in
                    outs.zip(tables).zip(low.chunks(LANES).zip(high.chunks(LANES)))
                {
                    let (cos, sin) = (s.load_some(cos), s.load_some(sin));
                    let (low, high) = (s.load_some(low), s.load_some(high));
                    let turned_low = s.sub(s.mul(low, cos), s.mul(high, sin));
                    let turned_high = s.add(s.mul(low, sin), s.mul(high, cos));
                    s.store_some(out_low, s.mul(turned_low, scale));
                    s.store_some(out_high, s.mul(turned_high, scale));
                }
                2 * half
            }
        };
        for (out, x) in out[turned..].chunks_mut(LANES).zip(x[turned..].chunks(LANES)) {
            s.store_some(out, s.mul(s.load_some(x), scale));
        }
    }
}

/// How a row comes from others.
#[derive(Clone, Debug, PartialEq)]
pub enum RowSource {
    /// As it is.
    Plain(View),
    /// `x / sqrt(mean(x^2) + eps) * gamma`.
    Norm {
        /// What is normalised.
        x: View,
        /// A weight for each element.
        gamma: Arc<[f32]>,
        /// Added to the mean.
        eps: f32,
    },
    /// `silu(gate) * up`.
    Gate {
        /// What decides.
        gate: View,
        /// What passes.
        up: View,
    },
    /// `x + y`.
    Sum(View, View),
    /// Rotated heads.
    Turned(Turned),
}

impl RowSource {
    /// Elements of a row.
    pub fn width(&self) -> usize {
        match self {
            RowSource::Plain(v)
            | RowSource::Norm { x: v, .. }
            | RowSource::Gate { gate: v, .. }
            | RowSource::Sum(v, _) => v.width,
            RowSource::Turned(t) => t.x.width,
        }
    }

    /// What it is called in a listing.
    pub fn label(&self) -> &'static str {
        match self {
            RowSource::Plain(_) => "copy",
            RowSource::Norm { .. } => "norm",
            RowSource::Gate { .. } => "gate",
            RowSource::Sum(..) => "sum",
            RowSource::Turned(_) => "rotary",
        }
    }
}

/// One token's row.
pub struct Row<'a> {
    /// Of what.
    pub source: &'a RowSource,
    /// Where from.
    pub arena: Arena,
    /// Whose.
    pub token: usize,
    /// `[width]`.
    pub out: &'a mut [f32],
}

impl Row<'_> {
    /// As the [`Task`], where one runs already.
    ///
    /// # Safety
    /// The source's views are within the arena, and nobody writes them meanwhile.
    #[inline(always)]
    pub unsafe fn compute<S: Simd>(self, s: S) {
        let Self { source, arena, token, out } = self;
        // SAFETY: as the caller promises.
        let row = |view: &View| unsafe { arena.row(view, token) };
        match source {
            RowSource::Plain(x) => out.copy_from_slice(row(x)),
            RowSource::Norm { x, gamma, eps } => {
                let x = row(x);
                let mut squares = s.splat(0.0);
                for v in x.chunks(LANES) {
                    let v = s.load_some(v);
                    squares = s.mul_add(v, v, squares);
                }
                let scale = s.splat(1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt());
                for ((out, x), gamma) in out.chunks_mut(LANES).zip(x.chunks(LANES)).zip(gamma.chunks(LANES)) {
                    s.store_some(out, s.mul(s.mul(s.load_some(x), scale), s.load_some(gamma)));
                }
            }
            RowSource::Gate { gate, up } => {
                let one = s.splat(1.0);
                for ((out, gate), up) in out.chunks_mut(LANES).zip(row(gate).chunks(LANES)).zip(row(up).chunks(LANES)) {
                    let gate = s.load_some(gate);
                    let weight = s.add(one, exp(s, s.sub(s.splat(0.0), gate)));
                    s.store_some(out, s.mul(s.div(gate, weight), s.load_some(up)));
                }
            }
            RowSource::Sum(x, y) => {
                for ((out, x), y) in out.chunks_mut(LANES).zip(row(x).chunks(LANES)).zip(row(y).chunks(LANES)) {
                    s.store_some(out, s.add(s.load_some(x), s.load_some(y)));
                }
            }
            RowSource::Turned(turned) => {
                let hd = turned.head_dim();
                for (head, out) in out.chunks_exact_mut(hd).enumerate() {
                    // SAFETY: as the caller promises.
                    unsafe { turned.head(s, arena, token, head, out) };
                }
            }
        }
    }
}

/// A row, padded and rounded for the weights that it will meet.
pub struct Prepared<'a> {
    /// The row.
    pub row: Row<'a>,
    /// Where to round it to, and what one is then worth.
    pub ints: Option<(&'a mut [i16], &'a mut f32)>,
}

impl Task for Prepared<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.row.source.width();
        let Row { source, arena, token, out } = self.row;
        let (row, padding) = out.split_at_mut(width);
        padding.fill(0.0);
        // SAFETY: the plan places views within the arena, and what a step reads no thread writes before they meet.
        unsafe { Row { source, arena, token, out: row }.compute(s) };
        if let Some((ints, worth)) = self.ints {
            *worth = super::linear::round_row(s, out, ints);
        }
    }
}
