//! Attention over a cache that is written by rows.
//!
//! The program multiplies the whole cache with one-hot masks and adds -1e4 to the scores of rows that a token may not see. What
//! that means is read from the masks once for each call ([`Masks`]): which row a token writes, and how many rows it sees.
//! Then rows are written where they belong, and attention costs by the rows present, not by the cache's size. Masks that mean
//! something else are computed as the program says.
//!
//! Queries that share a kv head go together, four at a time, so that each cached row is read once for them. A query's own result
//! does not depend on its company: every score, the largest, the sum and the mixture take the same steps in the same order.

use super::cache::RawCache;
use super::rows::{Arena, Turned, View};
use super::simd::{LANES, Simd, Task, exp};

/// A mask below this hides a row: its weight is 0 in f32 for scores up to some thousands.
const HIDDEN: f32 = -5e3;
/// The longest head that is attended to here.
pub const MOST_HEAD_DIM: usize = 512;
/// Queries that go together.
const TOGETHER: usize = 4;

/// What the masks of one call mean.
#[derive(Default)]
pub struct Masks {
    /// For each token, how many rows it sees.
    seen: Vec<usize>,
    /// Whether each token sees the first rows and nothing else.
    plain: bool,
    /// The row that each token writes, if it writes one.
    written: Vec<Option<usize>>,
    /// Whether each token writes at most one row, and no two the same.
    one_hot: bool,
}

impl Masks {
    /// Reads `attention[tokens, rows]` and `write[rows, tokens]`.
    pub fn read(&mut self, attention: &[f32], write: &[f32], tokens: usize) {
        let rows = write.len() / tokens;
        self.seen.clear();
        self.plain = true;
        for mask in attention.chunks_exact(rows) {
            let seen = mask.iter().rposition(|&m| m > HIDDEN).map_or(0, |last| last + 1);
            self.plain &= seen > 0 && mask[..seen].iter().all(|&m| m == 0.0);
            self.seen.push(seen);
        }
        self.written.clear();
        self.written.resize(tokens, None);
        self.one_hot = true;
        for (row, columns) in write.chunks_exact(tokens).enumerate() {
            // Nearly every row is left alone.
            if columns.iter().all(|&w| w == 0.0) {
                continue;
            }
            let mut ones = 0;
            for (token, &w) in columns.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                ones += 1;
                self.one_hot &= w == 1.0 && self.written[token].is_none();
                self.written[token] = Some(row);
            }
            self.one_hot &= ones == 1;
        }
        if !self.plain {
            self.seen.fill(rows);
        }
    }
}

/// The attention of one layer.
#[derive(Clone, Debug)]
pub struct Attention {
    /// `[T, heads * head_dim]`.
    pub q: Turned,
    /// `[T, kv * head_dim]`.
    pub k: Turned,
    /// `[T, kv * head_dim]`.
    pub v: View,
    /// `[T, heads * head_dim]`.
    pub out: View,
    /// The cache's number.
    pub cache: usize,
    /// Rows of the cache.
    pub rows: usize,
    /// The pair of masks: a number in the plan's list.
    pub masks: usize,
}

impl Attention {
    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.q.heads / self.k.heads
    }

    /// In how many units rows are written.
    pub fn writes(&self, masks: &Masks, tokens: usize) -> usize {
        if masks.one_hot { self.k.heads * tokens } else { self.k.heads }
    }

    /// In how many units queries are answered.
    pub fn answers(&self, tokens: usize) -> usize {
        self.k.heads * (tokens * self.group()).div_ceil(TOGETHER)
    }

    /// Floats that an answer needs for itself.
    pub fn scratch(&self) -> usize {
        TOGETHER * (self.q.head_dim() + self.rows.next_multiple_of(2 * LANES))
    }
}

/// The masks' tensors and meaning.
#[derive(Clone, Copy)]
pub struct Masked<'a> {
    /// What they mean.
    pub masks: &'a Masks,
    /// `[T, rows]`.
    pub attention: &'a [f32],
    /// `[rows, T]`.
    pub write: &'a [f32],
}

/// One layer's attention in one call.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// The layer.
    pub attention: &'a Attention,
    /// Its memory.
    pub cache: RawCache,
    /// What tokens write and see.
    pub masked: Masked<'a>,
    /// The call's values.
    pub arena: Arena,
    /// Tokens of the call.
    pub tokens: usize,
}

/// One unit of writing.
pub struct Write<'a> {
    /// Of which layer.
    pub layer: Layer<'a>,
    /// Which unit.
    pub unit: usize,
}

impl Task for Write<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Layer { attention: Attention { k, v, .. }, cache, masked, arena, tokens } = self.layer;
        let hd = k.head_dim();
        let RawCache { keys, values, .. } = cache;
        let mut key = [0.0f32; MOST_HEAD_DIM];
        let key = &mut key[..hd];
        if masked.masks.one_hot {
            let (token, head) = (self.unit / k.heads, self.unit % k.heads);
            let Some(row) = masked.masks.written[token] else { return };
            // SAFETY: a unit writes rows or heads that no other unit touches, and nothing reads before all are written. The
            // plan places views within the arena.
            unsafe {
                k.head(s, arena, token, head, key);
                for (element, &value) in key.iter().enumerate() {
                    *keys.add(cache.key(head, row, element)) = value;
                }
                let value = &arena.row(v, token)[head * hd..(head + 1) * hd];
                values.add(cache.value(head, row)).copy_from_nonoverlapping(value.as_ptr(), hd);
            }
            return;
        }
        // As the program says: what stays of each row, and what each token adds to it.
        let head = self.unit;
        for (row, columns) in masked.write.chunks_exact(tokens).enumerate() {
            let keep = 1.0 - columns.iter().sum::<f32>();
            if keep == 1.0 && columns.iter().all(|&w| w == 0.0) {
                continue;
            }
            // SAFETY: as above.
            unsafe {
                for element in 0..hd {
                    *keys.add(cache.key(head, row, element)) *= keep;
                    *values.add(cache.value(head, row) + element) *= keep;
                }
                for (token, &weight) in columns.iter().enumerate().filter(|(_, w)| **w != 0.0) {
                    k.head(s, arena, token, head, key);
                    let value = &arena.row(v, token)[head * hd..(head + 1) * hd];
                    for element in 0..hd {
                        *keys.add(cache.key(head, row, element)) += weight * key[element];
                        *values.add(cache.value(head, row) + element) += weight * value[element];
                    }
                }
            }
        }
    }
}

/// One unit of answering, when all is written.
pub struct Answer<'a> {
    /// Of which layer.
    pub layer: Layer<'a>,
    /// Which unit.
    pub unit: usize,
    /// [`Attention::scratch`] floats.
    pub scratch: &'a mut [f32],
}

impl Task for Answer<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let queries = self.layer.tokens * self.layer.attention.group();
        let units = queries.div_ceil(TOGETHER);
        let (head, first) = (self.unit / units, self.unit % units * TOGETHER);
        match queries - first {
            1 => self.together::<S, 1>(s, head, first),
            2 => self.together::<S, 2>(s, head, first),
            3 => self.together::<S, 3>(s, head, first),
            _ => self.together::<S, TOGETHER>(s, head, first),
        }
    }
}

impl Answer<'_> {
    /// Answers `Q` queries of kv head `head`: query `i` is that of token `i / group`.
    #[inline(always)]
    fn together<S: Simd, const Q: usize>(self, s: S, head: usize, first: usize) {
        let Layer { attention, cache, masked, arena, .. } = self.layer;
        let group = attention.group();
        let hd = attention.q.head_dim();
        let token = |i: usize| (first + i) / group;
        let query = |i: usize| head * group + (first + i) % group;
        let seen: [usize; Q] = std::array::from_fn(|i| masked.masks.seen[token(i)]);
        let most = seen.iter().copied().max().unwrap_or(0);
        let least = seen.iter().copied().min().unwrap_or(0);
        let padded = most.next_multiple_of(2 * LANES);

        let (q, scores) = self.scratch.split_at_mut(TOGETHER * hd);
        for (i, q) in q.chunks_exact_mut(hd).take(Q).enumerate() {
            // SAFETY: the plan places views within the arena, and they were written before the threads met.
            unsafe { attention.q.head(s, arena, token(i), query(i), q) };
        }
        // Scores: two tiles of sixteen rows at a time.
        let mut tile = 0;
        while tile * LANES < most {
            let mut sums = [[s.splat(0.0); Q]; 2];
            // SAFETY: the cache was written before the threads met, and nobody writes it now.
            let keys = unsafe { cache.keys.add(cache.key(head, tile * LANES, 0)) };
            // A cache may end with one tile.
            let second = if (tile + 1) * LANES < cache.rows { hd * LANES } else { 0 };
            for element in 0..hd {
                let at = element * LANES;
                // SAFETY: as above; both tiles are within the head's.
                let both = unsafe { [s.load(keys.add(at)), s.load(keys.add(at + second))] };
                for i in 0..Q {
                    let q = s.splat(q[i * hd + element]);
                    sums[0][i] = s.mul_add(q, both[0], sums[0][i]);
                    sums[1][i] = s.mul_add(q, both[1], sums[1][i]);
                }
            }
            for i in 0..Q {
                for (half, sums) in sums.iter().enumerate() {
                    let at = i * padded + (tile + half) * LANES;
                    s.store_some(&mut scores[at..at + LANES], sums[i]);
                }
            }
            tile += 2;
        }
        // Weights, not yet divided by their sum.
        let mut worth = [0.0f32; Q];
        for (i, scores) in scores.chunks_exact_mut(padded.max(1)).take(Q).enumerate() {
            if !masked.masks.plain {
                let mask = &masked.attention[token(i) * cache.rows..][..seen[i]];
                scores.iter_mut().zip(mask).for_each(|(score, m)| *score += m);
            }
            scores[seen[i]..].fill(f32::NEG_INFINITY);
            let mut peak = s.splat(f32::NEG_INFINITY);
            for v in scores.chunks_exact(LANES) {
                peak = s.max(peak, s.load_some(v));
            }
            let peak = s.splat(s.largest(peak));
            let mut sum = s.splat(0.0);
            for v in scores.chunks_exact_mut(LANES) {
                let weight = exp(s, s.sub(s.load_some(v), peak));
                sum = s.add(sum, weight);
                s.store_some(v, weight);
            }
            worth[i] = 1.0 / s.sum(sum);
        }
        // The mixture: rows that all see go together, the rest one query at a time, in the same order.
        // SAFETY: as above.
        let values = unsafe { cache.values.add(cache.value(head, 0)) };
        let mut element = 0;
        while element < hd {
            let vectors = if element + 2 * LANES <= hd { 2 } else { 1 };
            let mut sums = [[s.splat(0.0); Q]; 2];
            for row in 0..least {
                let at = row * hd + element;
                // SAFETY: as above; a row has `head_dim` elements, a multiple of sixteen.
                let low = unsafe { s.load(values.add(at)) };
                // SAFETY: as above.
                let high = if vectors == 2 { unsafe { s.load(values.add(at + LANES)) } } else { low };
                for i in 0..Q {
                    let weight = s.splat(scores[i * padded + row]);
                    sums[0][i] = s.mul_add(weight, low, sums[0][i]);
                    sums[1][i] = s.mul_add(weight, high, sums[1][i]);
                }
            }
            for i in 0..Q {
                for row in least..seen[i] {
                    let weight = s.splat(scores[i * padded + row]);
                    for (half, sums) in sums.iter_mut().enumerate().take(vectors) {
                        let at = row * hd + element + half * LANES;
                        // SAFETY: as above.
                        sums[i] = s.mul_add(weight, unsafe { s.load(values.add(at)) }, sums[i]);
                    }
                }
                for (half, sums) in sums.iter().enumerate().take(vectors) {
                    let at = query(i) * hd + element + half * LANES;
                    // SAFETY: no other unit writes this query's part of the row.
                    let out =
                        unsafe { std::slice::from_raw_parts_mut(arena.at(&attention.out, token(i)).add(at), LANES) };
                    s.store_some(out, s.mul(sums[i], s.splat(worth[i])));
                }
            }
            element += vectors * LANES;
        }
    }
}
