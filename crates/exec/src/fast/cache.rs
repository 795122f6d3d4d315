//! A layer's keys and values, laid out for attention.
//!
//! Keys are held in tiles of sixteen rows, transposed: `[kv, rows / 16, head_dim, 16]`, so that one vector holds the same
//! element of sixteen keys, and scores need no sum over lanes. Values are rows: `[kv, rows, head_dim]`. Both are f32.

use super::simd::LANES;

/// Keys and values of one layer.
pub struct Cache {
    /// `[kv, tiles, head_dim, 16]`.
    pub keys: Vec<f32>,
    /// `[kv, rows, head_dim]`.
    pub values: Vec<f32>,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
}

impl Cache {
    /// All zeros. The system gives such memory when it is first touched.
    pub fn new(heads: usize, rows: usize, head_dim: usize) -> Self {
        let tiles = rows.div_ceil(LANES);
        let keys = vec![0.0; heads * tiles * LANES * head_dim];
        Self { keys, values: vec![0.0; heads * rows * head_dim], rows, head_dim }
    }

    /// The cache for the threads of one call.
    pub fn raw(&mut self) -> RawCache {
        let Self { rows, head_dim, .. } = *self;
        RawCache { keys: self.keys.as_mut_ptr(), values: self.values.as_mut_ptr(), rows, head_dim }
    }
}

/// A [`Cache`] in the hands of several threads, which write different rows of it and read it when all have.
#[derive(Clone, Copy)]
pub struct RawCache {
    /// See [`Cache::keys`].
    pub keys: *mut f32,
    /// See [`Cache::values`].
    pub values: *mut f32,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub head_dim: usize,
}

// SAFETY: the pointers alone do nothing; kernels say why following them is sound.
unsafe impl Send for RawCache {}

impl RawCache {
    /// Where an element of a key is.
    pub fn key(&self, head: usize, row: usize, element: usize) -> usize {
        let tile = head * self.rows.div_ceil(LANES) + row / LANES;
        (tile * self.head_dim + element) * LANES + row % LANES
    }

    /// Where a value's row begins.
    pub fn value(&self, head: usize, row: usize) -> usize {
        (head * self.rows + row) * self.head_dim
    }
}
