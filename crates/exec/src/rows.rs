//! Rows of numbers as a model's last call leaves them, each with what is asked of a row of logits first: the highest of each block,
//! by which the highest of all is found and what is not among the likeliest is passed over a block at a time.
//!
//! A large vocabulary's row fills most of a megabyte, and to read it once more when all of it is there takes longer than anything
//! else that is done for a greedy token outside the model. So who writes a row surveys it with the same read: [`Rows::put`].

use crate::fast::{BLOCK, Weigher};
use crate::tensor::Tensor;

/// `[n, width]`, written part by part.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
    /// Of each [`BLOCK`] of what was put, `[n, width / BLOCK]`, the last one of a row shorter where it must be.
    peaks: Vec<f32>,
    /// Of all that was put, `[n]`.
    tops: Vec<Option<f32>>,
}

impl Rows {
    /// From now on there are `n` rows of `width`, of which every element is to be [`put`](Self::put) once. The memory is kept.
    pub fn begin(&mut self, n: usize, width: usize) {
        self.width = width;
        // Not cleared: each is overwritten.
        self.values.resize(n * width, 0.0);
        self.peaks.clear();
        self.peaks.resize(n * width.div_ceil(BLOCK), f32::MIN);
        self.tops.clear();
        self.tops.resize(n, Some(f32::MIN));
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.tops.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tops.is_empty()
    }

    /// Writes `part` from element `column` of row `row` on.
    ///
    /// # Panics
    /// If the row is not there, or ends before the part.
    pub fn put(&mut self, row: usize, column: usize, part: &[f32]) {
        assert!(column + part.len() <= self.width, "{} from {column} on in a row of {}", part.len(), self.width);
        let start = row * self.width + column;
        let values = &mut self.values[start..start + part.len()];
        let blocks = self.width.div_ceil(BLOCK);
        let peaks = &mut self.peaks[row * blocks..(row + 1) * blocks];
        let top = Weigher::default().copy(part, values, column, peaks);
        self.tops[row] = self.tops[row].zip(top).map(|(before, here)| before.max(here));
    }

    /// Writes `[1, width, T, 1]` from element `column` on, the first token into row `row` and so on. Tokens for which there is no
    /// row are dropped.
    ///
    /// # Panics
    /// As [`put`](Self::put), or if the elements are not of a working float type.
    pub fn put_tokens(&mut self, row: usize, column: usize, tokens: &Tensor) {
        let mut part = vec![0.0; tokens.shape()[1]];
        for token in 0..tokens.shape()[2].min(self.len().saturating_sub(row)) {
            tokens.column(token, &mut part);
            self.put(row + token, column, &part);
        }
    }

    /// Row number `at`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn row(&self, at: usize) -> Row<'_> {
        let blocks = self.width.div_ceil(BLOCK);
        Row {
            values: &self.values[at * self.width..(at + 1) * self.width],
            peaks: &self.peaks[at * blocks..(at + 1) * blocks],
            top: self.tops[at],
        }
    }

    /// All elements, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As [`values`](Self::values), the rest given up.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

/// One row, surveyed.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    values: &'r [f32],
    peaks: &'r [f32],
    top: Option<f32>,
}

impl<'r> Row<'r> {
    /// A row that nobody has surveyed yet; `peaks` is room.
    pub fn of(values: &'r [f32], peaks: &'r mut Vec<f32>) -> Self {
        let top = Weigher::default().peaks(values, peaks);
        Self { values, peaks, top }
    }

    /// Its elements.
    pub fn values(self) -> &'r [f32] {
        self.values
    }

    /// The highest of each [`BLOCK`] of them, [`f32::MIN`] where all of a block are minus infinity. They mean nothing where
    /// [`top`](Self::top) is `None`.
    pub fn peaks(self) -> &'r [f32] {
        self.peaks
    }

    /// The highest of the peaks; `None` where an element is NaN or plus infinity.
    pub fn top(self) -> Option<f32> {
        self.top
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Dtype;

    #[test]
    fn memory_of_other_rows_tells_nothing_of_these() {
        let mut rows = Rows::default();
        rows.begin(2, 100);
        rows.put(0, 0, &[f32::NAN; 100]);
        rows.put(1, 0, &[9.0; 100]);
        rows.begin(1, 70);
        rows.put(0, 0, &[1.0; 70]);
        assert_eq!((rows.len(), rows.values()), (1, &[1.0; 70][..]));
        assert_eq!((rows.row(0).peaks(), rows.row(0).top()), (&[1.0, 1.0][..], Some(1.0)));
    }

    fn element() -> impl Strategy<Value = f32> {
        prop_oneof![
            200 => -30f32..30.0,
            20 => Just(f32::NEG_INFINITY),
            1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY)],
        ]
    }

    proptest! {
        /// In whatever parts and order a row is written, it is the row that is surveyed when all of it is there.
        #[test]
        fn parts_are_surveyed_as_the_whole(
            values in prop::collection::vec(element(), 1..400),
            borders in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            turn in any::<prop::sample::Index>(),
        ) {
            let mut borders: Vec<usize> = borders.iter().map(|at| at.index(values.len() + 1)).collect();
            borders.extend([0, values.len()]);
            borders.sort_unstable();
            let mut parts: Vec<(usize, usize)> = borders.windows(2).map(|b| (b[0], b[1])).collect();
            let turn = turn.index(parts.len());
            parts.rotate_left(turn);
            let mut rows = Rows::default();
            rows.begin(2, values.len());
            for (from, to) in parts {
                rows.put(1, from, &values[from..to]);
                // The other row is no concern of this one.
                rows.put(0, from, &vec![f32::INFINITY; to - from]);
            }
            let (found, mut peaks) = (rows.row(1), Vec::new());
            let whole = Row::of(&values, &mut peaks);
            prop_assert!(found.values().iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
            prop_assert_eq!(found.top(), whole.top());
            if whole.top().is_some() {
                prop_assert_eq!(found.peaks(), whole.peaks());
            }
        }

        #[test]
        fn tokens_become_rows(
            (width, tokens) in (1usize..100, 1usize..4),
            (before, after, wanted) in (0usize..70, 0usize..70, 0usize..5),
            half: bool,
        ) {
            let columns: Vec<f32> = (0..width * tokens).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let dtype = if half { Dtype::F16 } else { Dtype::F32 };
            let tensor = Tensor::from_f32(&[1, width, tokens, 1], columns.clone(), dtype);
            let mut rows = Rows::default();
            rows.begin(1 + wanted, before + width + after);
            for row in 0..=wanted {
                rows.put(row, 0, &vec![7.0; before]);
                rows.put(row, before + width, &vec![7.0; after]);
            }
            rows.put(0, before, &vec![7.0; width]);
            for row in tokens..wanted {
                rows.put(1 + row, before, &vec![7.0; width]);
            }
            rows.put_tokens(1, before, &tensor);
            for (at, &found) in rows.values().iter().enumerate() {
                let (row, column) = (at / (before + width + after), at % (before + width + after));
                let inside = (1..=tokens).contains(&row) && (before..before + width).contains(&column);
                let expected = if inside { columns[(column - before) * tokens + row - 1] } else { 7.0 };
                prop_assert_eq!(found, expected);
            }
        }
    }
}
