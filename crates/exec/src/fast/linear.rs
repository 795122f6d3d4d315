//! Weights times activations: `y[t] = W x[t] + b`, for a few tokens at a time.
//!
//! Weights keep the form in which the package stores them and are read once for all tokens of a call.
//!
//! **8-bit weights** meet 16-bit activations: each token's row is scaled so that its largest magnitude becomes 32767 and rounded,
//! which costs a relative 2^-16 of that maximum (8 bits would cost as much as the weights' own rounding). Products are summed
//! in integers, [`CHUNK`] at a time. A chunk's sum has at most `|w| |x|` by Cauchy and Schwarz, so the scale is lowered where
//! `127 sqrt(CHUNK) |x|` could reach 2^31; intermediate sums may wrap, the whole does not. Integer sums are exact
//! in any order: the result does not depend on the instruction set, the number of tokens or the number of threads.
//!
//! **fp16 weights** meet f32 activations in sixteen running sums, one for each residue of the column modulo 16, added by one
//! fixed tree. **Palettised weights** of four bits are looked up sixteen at a time and are then as fp16: the results are those of
//! the same weights stored as fp16, bit for bit.

use std::ops::Range;
use std::sync::Arc;

use anemone_mil::ir::Literal;

use super::resident::Resident;
use super::simd::{LANES, Simd, Task};

/// Columns that are summed in 32 bits.
pub const CHUNK: usize = 2048;
/// Activation rows are padded with zeros to a multiple of this many.
pub const PADDING: usize = 32;
/// The largest activation in 16 bits.
const AMPLITUDE: f32 = 32767.0;
/// Rows of weights in a block.
const ROWS: usize = 4;
/// Tokens whose activations are gone through before the next rows: they stay in the second-level cache meanwhile.
const PANEL: usize = 48;
/// Bytes of activations that stay in the first-level cache while rows of weights go by, one at a time.
const NEAR: usize = 16 << 10;
/// Tokens beyond which rows of weights one at a time wait for arithmetic.
const FEW: usize = 4;
/// How far ahead of the arithmetic weights are asked for where several rows are read together, in bytes: floats.
const AHEAD: usize = 512;
/// The same for integers, at least.
const AHEAD_TOGETHER: usize = 4096;

/// A constant matrix `[rows, columns]`, row-major.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// What the bytes mean.
    pub elements: Weights,
    /// The bytes.
    pub data: Bytes,
}

/// What the bytes of a [`Matrix`] mean.
#[derive(Clone, Debug)]
pub enum Weights {
    /// int8 with a scale for each row, or one for all.
    Int8(Arc<[f32]>),
    /// fp16.
    Half,
    /// Indices of four bits, the first of two in a byte's low half, and a table of [`LANES`] fp16 values, widened, for each of as many
    /// rows on end, or one for all. Rows have an even number of columns.
    Palette(Arc<[f32]>),
}

/// Where the bytes of a [`Matrix`] are: in the package's mapped file, and once they have been copied, in the copy.
#[derive(Clone, Debug)]
pub struct Bytes {
    stored: Literal,
    copy: Option<(Arc<Resident>, Range<usize>)>,
}

impl Bytes {
    /// Bytes as the package stores them.
    pub fn stored(stored: Literal) -> Self {
        Self { stored, copy: None }
    }

    /// Has them read from this part of the copy, as soon as that exists.
    pub fn expect(&mut self, copy: &Arc<Resident>, part: Range<usize>) {
        self.copy = Some((Arc::clone(copy), part));
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        let copied = self.copy.as_ref().and_then(|(copy, part)| copy.get(part.clone()));
        copied.unwrap_or_else(|| self.stored.bytes().unwrap_or_default())
    }
}

impl Matrix {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.get()
    }

    /// Whether there are as many bytes and scales as the shape says, and any at all.
    pub fn is_whole(&self) -> bool {
        let n = self.rows.checked_mul(self.columns).filter(|&n| n > 0);
        if n.is_none() {
            return false;
        }
        match &self.elements {
            Weights::Int8(scales) => Some(self.bytes().len()) == n && (scales.len() == 1 || scales.len() == self.rows),
            Weights::Half => Some(self.bytes().len()) == n.and_then(|n| n.checked_mul(2)),
            Weights::Palette(tables) => {
                let even =
                    tables.len().is_multiple_of(LANES) && self.rows.is_multiple_of((tables.len() / LANES).max(1));
                let whole = n.is_some_and(|n| 2 * self.bytes().len() == n) && self.columns.is_multiple_of(2);
                whole && even && !tables.is_empty()
            }
        }
    }
}

/// Rows of activations, padded, in the form that the weights want.
#[derive(Clone, Copy)]
pub struct Activations {
    /// f32, `[tokens, padded]`.
    pub floats: *const f32,
    /// 16-bit integers, `[tokens, padded]`.
    pub ints: *const i16,
    /// What an integer of each token is worth.
    pub scales: *const f32,
    /// Elements of a padded row.
    pub padded: usize,
    /// How many rows there are.
    pub tokens: usize,
}

/// Where results go: `out[t * stride + row]`.
#[derive(Clone, Copy)]
pub struct Output {
    /// The first token's first row.
    pub out: *mut f32,
    /// Between tokens.
    pub stride: usize,
    /// Added to the result, `[tokens, stride]` of its own; may be `out` itself.
    pub residual: Option<(*const f32, usize)>,
}

/// Rounds a row to 16 bits; `ints` has the row's padded length. Returns what one is worth: NaN for a row whose sum of squares is
/// not finite.
#[inline(always)]
pub fn round_row<S: Simd>(s: S, row: &[f32], ints: &mut [i16]) -> f32 {
    debug_assert_eq!(row.len(), ints.len());
    debug_assert_eq!(row.len() % PADDING, 0);
    let mut peak = s.splat(0.0);
    let (mut largest_chunk, mut finite) = (0.0f32, true);
    for chunk in row.chunks(CHUNK) {
        let mut squares = s.splat(0.0);
        for v in chunk.chunks_exact(LANES) {
            let v = s.load_some(v);
            peak = s.max(peak, s.max(v, s.sub(s.splat(0.0), v)));
            squares = s.mul_add(v, v, squares);
        }
        let squares = s.sum(squares);
        finite &= squares.is_finite();
        largest_chunk = largest_chunk.max(squares);
    }
    let peak = s.largest(peak);
    if !finite || peak < f32::MIN_POSITIVE {
        ints.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    // |w| of a chunk is at most 128 sqrt(CHUNK); 2e9 leaves room below 2^31 for the rounding of the activations.
    let bound = 2e9 / (128.0 * (CHUNK as f32).sqrt() * (largest_chunk.sqrt() / peak));
    let amplitude = AMPLITUDE.min(bound);
    let factor = s.splat(amplitude / peak);
    for (v, out) in row.chunks_exact(LANES).zip(ints.chunks_exact_mut(LANES)) {
        // SAFETY: `out` has sixteen elements.
        unsafe { s.store_i16(out.as_mut_ptr(), s.mul(s.load_some(v), factor)) };
    }
    peak / amplitude
}

/// A range of a matrix's rows times all tokens.
pub struct Product<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// The rows.
    pub rows: Range<usize>,
    /// The activations.
    pub x: Activations,
    /// Where the results go.
    pub y: Output,
}

impl Task for Product<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Where a few tokens are all there are, weights come from memory as fast as it gives them, as a single run of addresses; where there
        // are more, what counts is that activations are read once for several rows.
        let bytes = self.matrix.bytes();
        let near = match self.matrix.elements {
            Weights::Int8(_) => 2 * self.x.tokens * self.x.padded <= NEAR,
            Weights::Half => 4 * self.x.tokens * self.x.padded <= NEAR,
            // Looking up takes longer than reading: several rows keep it busy.
            Weights::Palette(_) => false,
        };
        if near && self.x.tokens <= FEW {
            for row in self.rows.clone() {
                self.tokens::<S, 1>(s, bytes, row, 0..self.x.tokens);
            }
            return;
        }
        let mut first = 0;
        while first < self.x.tokens {
            let panel = first..self.x.tokens.min(first + PANEL);
            let mut row = self.rows.start;
            while row + ROWS <= self.rows.end {
                self.tokens::<S, ROWS>(s, bytes, row, panel.clone());
                row += ROWS;
            }
            while row < self.rows.end {
                self.tokens::<S, 1>(s, bytes, row, panel.clone());
                row += 1;
            }
            first = panel.end;
        }
    }
}

impl Product<'_> {
    /// `R` rows of the matrix's `bytes` from `row` on times a panel of tokens.
    #[inline(always)]
    fn tokens<S: Simd, const R: usize>(&self, s: S, bytes: &[u8], row: usize, panel: Range<usize>) {
        let mut t = panel.start;
        while t + 6 <= panel.end {
            self.block::<S, R, 6>(s, bytes, row, t, t == panel.start);
            t += 6;
        }
        if t + 4 <= panel.end {
            self.block::<S, R, 4>(s, bytes, row, t, t == panel.start);
            t += 4;
        }
        if t + 2 <= panel.end {
            self.block::<S, R, 2>(s, bytes, row, t, t == panel.start);
            t += 2;
        }
        if t < panel.end {
            self.block::<S, R, 1>(s, bytes, row, t, t == panel.start);
        }
    }

    /// `R` rows times `M` tokens. The `first` of a panel brings the weights from memory, and asks for those that follow.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const M: usize>(
        &self,
        s: S,
        bytes: &[u8],
        row: usize,
        token: usize,
        first: bool,
    ) {
        let columns = self.matrix.columns;
        let sums: [[f32; M]; R] = match &self.matrix.elements {
            Weights::Int8(scales) => {
                let weights = &bytes[row * columns..(row + R) * columns];
                // SAFETY: `M` tokens from `token` on are there, each of `padded` elements, no fewer than `columns`.
                let sums: [[i64; M]; R] = unsafe {
                    let x = self.x.ints.add(token * self.x.padded);
                    if R == 1 {
                        [integers_alone::<S, M>(s, weights, x, self.x.padded); R]
                    } else if M == 1 {
                        let mut sums = [[0; M]; R];
                        for (sums, weights) in sums.iter_mut().zip(weights.chunks_exact(columns)) {
                            *sums = integers_alone::<S, M>(s, weights, x, self.x.padded);
                        }
                        sums
                    } else {
                        integers::<S, R, M>(s, weights, columns, x, self.x.padded, first)
                    }
                };
                std::array::from_fn(|r| {
                    let scale = scales[if scales.len() == 1 { 0 } else { row + r }];
                    // SAFETY: each token has a scale.
                    std::array::from_fn(|m| sums[r][m] as f32 * (scale * unsafe { *self.x.scales.add(token + m) }))
                })
            }
            Weights::Half => {
                let weights = &bytes[2 * row * columns..2 * (row + R) * columns];
                // SAFETY: as above.
                unsafe {
                    let x = self.x.floats.add(token * self.x.padded);
                    floats::<S, Halves<'_>, R, M>(s, Halves { weights, columns }, columns, x, self.x.padded)
                }
            }
            Weights::Palette(tables) => {
                let weights = &bytes[row * columns / 2..(row + R) * columns / 2];
                let each = self.matrix.rows / (tables.len() / LANES);
                let mut own: [&[f32; LANES]; R] = [&[0.0; LANES]; R];
                for (r, own) in own.iter_mut().enumerate() {
                    let table = tables[(row + r) / each * LANES..].first_chunk();
                    *own = table.expect("a table for every row");
                }
                // SAFETY: as above.
                unsafe {
                    let x = self.x.floats.add(token * self.x.padded);
                    floats::<S, Palette<'_, R>, R, M>(
                        s,
                        Palette { weights, columns, tables: own },
                        columns,
                        x,
                        self.x.padded,
                    )
                }
            }
        };
        for m in 0..M {
            for (r, sums) in sums.iter().enumerate() {
                let mut v = sums[m];
                if let Some(bias) = self.bias {
                    v += bias[row + r];
                }
                // SAFETY: the caller gave room for every token and row, which nobody else writes.
                unsafe {
                    if let Some((residual, stride)) = self.y.residual {
                        v += *residual.add((token + m) * stride + row + r);
                    }
                    *self.y.out.add((token + m) * self.y.stride + row + r) = v;
                }
            }
        }
    }
}

/// As [`integers`] for one row: what a processor reads of weights is then one run of addresses, which its own prefetching follows,
/// and best where nothing else is asked for: a turn of the loop takes one line of the cache. On a Zen 4 this streams at the speed of
/// plain reading, 25 GB/s on one core; with two lines in a turn, or with asking ahead, it is 13 to 17. Integer sums do not mind the
/// order.
///
/// # Safety
/// As for [`integers`].
#[allow(clippy::needless_range_loop, reason = "one index for activations and sums")]
#[inline(always)]
unsafe fn integers_alone<S: Simd, const M: usize>(s: S, weights: &[u8], x: *const i16, padded: usize) -> [i64; M] {
    let mut totals = [0i64; M];
    let mut k = 0;
    for chunk in weights.chunks(CHUNK) {
        let w: *const i8 = chunk.as_ptr().cast();
        let mut sums = [[s.zero(); M]; 2];
        let mut at = 0;
        while at + 2 * S::STEP <= chunk.len() {
            for i in 0..2 {
                let at = at + i * S::STEP;
                // SAFETY: `STEP` columns from `at` on are within the chunk.
                let weights = unsafe { s.weights(w.add(at)) };
                for m in 0..M {
                    // SAFETY: and within the row of activations.
                    sums[i][m] = unsafe { s.dot(sums[i][m], weights, x.add(m * padded + k + at)) };
                }
            }
            at += 2 * S::STEP;
        }
        while at + S::STEP <= chunk.len() {
            // SAFETY: as above.
            unsafe {
                let weights = s.weights(w.add(at));
                for m in 0..M {
                    sums[0][m] = s.dot(sums[0][m], weights, x.add(m * padded + k + at));
                }
            }
            at += S::STEP;
        }
        if at < chunk.len() {
            let mut last = [0i8; 32];
            last.iter_mut().zip(&chunk[at..]).for_each(|(l, &w)| *l = w as i8);
            // SAFETY: the buffer has `STEP` weights, and the rows of activations are padded.
            unsafe {
                let weights = s.weights(last.as_ptr());
                for m in 0..M {
                    sums[0][m] = s.dot(sums[0][m], weights, x.add(m * padded + k + at));
                }
            }
        }
        for m in 0..M {
            // Modulo 2^32 as the parts are, and exact as the whole is.
            let both = s.join(sums[0][m], sums[1][m]);
            totals[m] += i64::from(s.total(both));
        }
        k += chunk.len();
    }
    totals
}

/// Exact dot products of `R` rows of int8 with `M` rows of integers.
///
/// # Safety
/// `M` rows of `padded` elements can be read at `x`, and `padded` is at least `columns` rounded up to [`PADDING`].
#[allow(clippy::needless_range_loop, reason = "one index for weights, activations and sums")]
#[inline(always)]
unsafe fn integers<S: Simd, const R: usize, const M: usize>(
    s: S,
    weights: &[u8],
    columns: usize,
    x: *const i16,
    padded: usize,
    first: bool,
) -> [[i64; M]; R] {
    let mut totals = [[0i64; M]; R];
    let w: *const i8 = weights.as_ptr().cast();
    // The same place some blocks of rows further on: a processor's own prefetching does not see four short runs as one long one.
    let ahead = R * columns * (1 + AHEAD_TOGETHER / (R * columns).max(1));
    let mut k = 0;
    while k < columns {
        let end = columns.min(k + CHUNK);
        let mut sums = [[s.zero(); M]; R];
        while k + S::STEP <= end {
            for r in 0..R {
                // SAFETY: `STEP` columns from `k` on are within row `r`.
                let weights = unsafe { s.weights(w.add(r * columns + k)) };
                if first {
                    s.prefetch(w.wrapping_add(r * columns + k + ahead).cast());
                }
                for m in 0..M {
                    // SAFETY: and within the row of activations.
                    sums[r][m] = unsafe { s.dot(sums[r][m], weights, x.add(m * padded + k)) };
                }
            }
            k += S::STEP;
        }
        if k < end {
            for r in 0..R {
                let mut last = [0i8; 32];
                let rest = &weights[r * columns + k..r * columns + end];
                last.iter_mut().zip(rest).for_each(|(l, &w)| *l = w as i8);
                // SAFETY: the buffer has `STEP` weights, and the padded row as many activations.
                unsafe {
                    let weights = s.weights(last.as_ptr());
                    for m in 0..M {
                        sums[r][m] = s.dot(sums[r][m], weights, x.add(m * padded + k));
                    }
                }
            }
            k = end;
        }
        for r in 0..R {
            for m in 0..M {
                totals[r][m] += i64::from(s.total(sums[r][m]));
            }
        }
    }
    totals
}

/// Rows of weights that are floats once they are read.
trait Rows: Copy {
    /// Sixteen weights of row `r` from column `k` on.
    ///
    /// # Safety
    /// Row and columns are there.
    unsafe fn sixteen<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32;
    /// The weights of row `r` from column `k` to its end, fewer than sixteen, with zeros after them.
    fn last<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32;
    /// Asks for what follows column `k` of row `r`.
    fn prefetch<S: Simd>(self, s: S, r: usize, k: usize);
}

/// fp16.
#[derive(Clone, Copy)]
struct Halves<'a> {
    weights: &'a [u8],
    columns: usize,
}

impl Rows for Halves<'_> {
    #[inline(always)]
    unsafe fn sixteen<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32 {
        // SAFETY: as the caller promises.
        unsafe { s.load_f16(self.weights.as_ptr().add(2 * (r * self.columns + k))) }
    }
    #[inline(always)]
    fn last<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32 {
        let mut last = [0u8; 2 * LANES];
        let rest = &self.weights[2 * (r * self.columns + k)..2 * (r + 1) * self.columns];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: the buffer has sixteen.
        unsafe { s.load_f16(last.as_ptr()) }
    }
    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, r: usize, k: usize) {
        s.prefetch(self.weights.as_ptr().wrapping_add(2 * (r * self.columns + k) + AHEAD));
    }
}

/// Indices of four bits, and each row's table.
#[derive(Clone, Copy)]
struct Palette<'a, const R: usize> {
    weights: &'a [u8],
    columns: usize,
    tables: [&'a [f32; LANES]; R],
}

impl<const R: usize> Rows for Palette<'_, R> {
    #[inline(always)]
    unsafe fn sixteen<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32 {
        // SAFETY: as the caller promises, eight bytes; an even number of columns begins on a byte.
        unsafe { s.look_up(self.tables[r], self.weights.as_ptr().add((r * self.columns + k) / 2)) }
    }
    #[inline(always)]
    fn last<S: Simd>(self, s: S, r: usize, k: usize) -> S::F32 {
        let mut last = [0.0; LANES];
        for (i, out) in (r * self.columns + k..(r + 1) * self.columns).zip(&mut last) {
            *out = self.tables[r][usize::from(self.weights[i / 2] >> (4 * (i % 2)) & 15)];
        }
        s.load_some(&last)
    }
    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, r: usize, k: usize) {
        s.prefetch(self.weights.as_ptr().wrapping_add((r * self.columns + k) / 2 + AHEAD));
    }
}

/// Dot products of `R` rows of floats with `M` rows of floats.
///
/// # Safety
/// `weights` has `R` rows of `columns`; and as for [`integers`].
#[allow(clippy::needless_range_loop, reason = "one index for weights, activations and sums")]
#[inline(always)]
unsafe fn floats<S: Simd, W: Rows, const R: usize, const M: usize>(
    s: S,
    weights: W,
    columns: usize,
    x: *const f32,
    padded: usize,
) -> [[f32; M]; R] {
    let mut sums = [[s.splat(0.0); M]; R];
    let mut k = 0;
    while k + LANES <= columns {
        let mut rows = [s.splat(0.0); R];
        for r in 0..R {
            // SAFETY: sixteen columns from `k` on are within row `r`.
            rows[r] = unsafe { weights.sixteen(s, r, k) };
            if M == 1 && R > 1 {
                weights.prefetch(s, r, k);
            }
        }
        for m in 0..M {
            // SAFETY: and within the row of activations.
            let x = unsafe { s.load(x.add(m * padded + k)) };
            for r in 0..R {
                sums[r][m] = s.mul_add(rows[r], x, sums[r][m]);
            }
        }
        k += LANES;
    }
    if k < columns {
        for r in 0..R {
            let row = weights.last(s, r, k);
            for m in 0..M {
                // SAFETY: the padded row of activations has sixteen from `k` on.
                sums[r][m] = unsafe { s.mul_add(row, s.load(x.add(m * padded + k)), sums[r][m]) };
            }
        }
    }
    let mut totals = [[0.0; M]; R];
    for r in 0..R {
        for m in 0..M {
            totals[r][m] = s.sum(sums[r][m]);
        }
    }
    totals
}
