//! What a host computes for the shards: rotary tables, masks, embedding rows. Nothing else of the model lives outside them.

use std::ops::Range;

use anemone_bundle::Contract;
use anemone_exec::Dtype;
use anemone_exec::{Data, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// The mask's value where a token may not look: large enough that softmax gives 0, small enough to stay finite in fp16.
pub const MASKED: f32 = -1e4;

/// The host's side of one call of a layer shard with T tokens, of which the first `len` are real.
///
/// The tokens sit at `position..position + len`. What pads a short block writes no cache row, and looks where the last real
/// token looks, so that it meets no row without a single visible position.
pub struct HostInputs {
    /// `[T, rope_dim / 2]`.
    rope_cos: Tensor,
    /// `[T, rope_dim / 2]`.
    rope_sin: Tensor,
    /// `[1, 1, T, S]`.
    attn_mask: Tensor,
    /// `[1, 1, S, T]`.
    kv_write_mask: Tensor,
    /// The positions that the masks are of; none at first.
    block: Range<usize>,
}

impl HostInputs {
    /// Tables and masks in the working float type.
    ///
    /// # Panics
    /// If `len` is 0 or more than `tokens`, or the block ends beyond the context.
    pub fn new(contract: &Contract, position: usize, len: usize, tokens: usize, float: Dtype) -> Self {
        let (s, half) = (contract.context, contract.rope.dim / 2);
        let full = |shape: &[usize], v| Tensor::from_f32(shape, vec![v; shape.iter().product()], float);
        let mut inputs = Self {
            rope_cos: full(&[tokens, half], 0.0),
            rope_sin: full(&[tokens, half], 0.0),
            attn_mask: full(&[1, 1, tokens, s], MASKED),
            kv_write_mask: full(&[1, 1, s, tokens], 0.0),
            block: 0..0,
        };
        inputs.set(contract, &contract.inverse_frequencies(), position, len);
        inputs
    }

    /// The same for another block of as many tokens, in the same memory. `frequencies` are the contract's inverse ones.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn set(&mut self, contract: &Contract, frequencies: &[f64], position: usize, len: usize) {
        let (s, half, tokens) = (contract.context, contract.rope.dim / 2, self.rope_cos.shape()[0]);
        assert!(len > 0 && len <= tokens && position + len <= s, "block of {len}/{tokens} at {position} of {s}");
        // In f64: an f32 angle at position 2000 is off by more than an fp16 cosine resolves.
        write(&mut self.rope_cos, |cos| {
            write(&mut self.rope_sin, |sin| {
                for (t, (cos, sin)) in cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half)).enumerate() {
                    let at = (position + t.min(len - 1)) as f64;
                    for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                        // One call for both where the system's library has one.
                        let angle = (at * frequency).sin_cos();
                        (*sin, *cos) = (angle.0 as f32, angle.1 as f32);
                    }
                }
            });
        });
        let block = position..position + len;
        move_masks(&mut self.attn_mask, &mut self.kv_write_mask, &self.block, &block);
        self.block = block;
    }

    /// The tensor of an interface name other than `x`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        match name {
            "rope_cos" => Some(&self.rope_cos),
            "rope_sin" => Some(&self.rope_sin),
            "attn_mask" => Some(&self.attn_mask),
            "kv_write_mask" => Some(&self.kv_write_mask),
            _ => None,
        }
    }
}

/// Makes masks `[1, 1, T, S]` and `[1, 1, S, T]` of positions `from` those of `to`. Only what differs is written: a long context's
/// masks are as long as it is, and far from the caches.
fn move_masks(attention: &mut Tensor, write: &mut Tensor, from: &Range<usize>, to: &Range<usize>) {
    let (tokens, s) = (attention.shape()[2], attention.shape()[3]);
    // How many positions a token sees; none where there was no block yet.
    let sees = |block: &Range<usize>, t: usize| block.end.min(block.start + t + 1);
    for t in 0..tokens {
        let (old, new) = (t * s + sees(from, t), t * s + sees(to, t));
        fill(attention, old..new, 0.0);
        fill(attention, new..old, MASKED);
    }
    for (block, value) in [(from, 0.0), (to, 1.0)] {
        for (t, row) in block.clone().enumerate() {
            let at = row * tokens + t;
            fill(write, at..at + 1, value);
        }
    }
}

/// Lets `f` fill a tensor of a working float type.
fn write(tensor: &mut Tensor, f: impl FnOnce(&mut [f32])) {
    match tensor.data_mut() {
        Data::F32(v) => f(v),
        Data::F16(v) => {
            let mut wide = vec![0.0; v.len()];
            f(&mut wide);
            v.convert_from_f32_slice(&wide);
        }
        other => panic!("{} is not a working float type", other.dtype()),
    }
}

/// Sets elements of a tensor of a working float type; none where the range is empty.
fn fill(tensor: &mut Tensor, range: Range<usize>, value: f32) {
    match tensor.data_mut() {
        _ if range.is_empty() => {}
        Data::F32(v) => v[range].fill(value),
        Data::F16(v) => v[range].fill(f16::from_f32(value)),
        other => panic!("{} is not a working float type", other.dtype()),
    }
}

/// `[1, width, tokens, 1]` of zeros.
pub fn blank(width: usize, tokens: usize, float: Dtype) -> Tensor {
    Tensor::from_f32(&[1, width, tokens, 1], vec![0.0; width * tokens], float)
}

/// `[n, width]` rows to the shards' `[1, width, T, 1]`, the columns beyond `n` zero.
pub fn to_columns(rows: &[f32], width: usize, tokens: usize, float: Dtype) -> Tensor {
    let mut columns = blank(width, tokens, float);
    set_columns(&mut columns, rows);
    columns
}

/// As [`to_columns`], in memory that is there.
pub fn set_columns(columns: &mut Tensor, rows: &[f32]) {
    let (width, tokens) = (columns.shape()[1], columns.shape()[2]);
    write(columns, |columns| {
        if tokens == 1 {
            return columns.copy_from_slice(rows);
        }
        let n = rows.len() / width;
        for (c, column) in columns.chunks_exact_mut(tokens).enumerate() {
            column[n..].fill(0.0);
            column[..n].iter_mut().enumerate().for_each(|(t, v)| *v = rows[t * width + c]);
        }
    });
}

/// The first `n` columns of `[1, width, T, 1]` as rows `[n, width]`.
pub fn to_rows(columns: &Tensor, n: usize) -> Vec<f32> {
    let mut rows = Vec::new();
    extend_rows(columns, 0..n, &mut rows);
    rows
}

/// Appends those columns of `[1, width, T, 1]` as rows.
pub fn extend_rows(columns: &Tensor, which: Range<usize>, rows: &mut Vec<f32>) {
    let (width, before) = (columns.shape()[1], rows.len());
    rows.resize(before + which.len() * width, 0.0);
    which.zip(rows[before..].chunks_exact_mut(width)).for_each(|(t, row)| columns.column(t, row));
}

/// Rows of the embedding table, scaled: `[ids, width]`.
pub fn embed(contract: &Contract, table: &[u8], ids: &[u32]) -> Vec<f32> {
    let mut rows = vec![0.0; ids.len() * contract.width];
    embed_into(contract, table, ids, &mut rows);
    rows
}

/// As [`embed`], in the columns of `[1, width, T, 1]`; `rows` is room.
pub fn embed_columns(contract: &Contract, table: &[u8], ids: &[u32], columns: &mut Tensor, rows: &mut Vec<f32>) {
    // One column is one row.
    if columns.shape()[2] == 1 {
        return write(columns, |row| embed_into(contract, table, ids, row));
    }
    rows.resize(ids.len() * contract.width, 0.0);
    embed_into(contract, table, ids, rows);
    set_columns(columns, rows);
}

fn embed_into(contract: &Contract, table: &[u8], ids: &[u32], rows: &mut [f32]) {
    let (width, scale) = (contract.width, contract.embedding_scale);
    // Some at a time, for which the processor has instructions.
    let mut halves = [f16::ZERO; 64];
    for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(width)) {
        let stored = table[id as usize * 2 * width..].chunks(2 * halves.len());
        for (floats, stored) in row.chunks_mut(halves.len()).zip(stored) {
            let halves = &mut halves[..floats.len()];
            halves.iter_mut().zip(stored.chunks_exact(2)).for_each(|(h, b)| *h = f16::from_le_bytes([b[0], b[1]]));
            halves.convert_to_f32_slice(floats);
            floats.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever blocks went before, the masks are those of the last one by their definition.
        #[test]
        fn masks_remember_nothing(
            s in 1usize..40, tokens in 1usize..9, half: bool,
            blocks in prop::collection::vec((0usize..40, 1usize..9), 1..6),
        ) {
            let tokens = tokens.min(s);
            let float = if half { Dtype::F16 } else { Dtype::F32 };
            let full = |shape: &[usize], v| Tensor::from_f32(shape, vec![v; s * tokens], float);
            let (mut attention, mut write) = (full(&[1, 1, tokens, s], MASKED), full(&[1, 1, s, tokens], 0.0));
            let mut before = 0..0;
            for (position, len) in blocks {
                let len = len.min(tokens);
                let position = position.min(s - len);
                let block = position..position + len;
                move_masks(&mut attention, &mut write, &before, &block);
                let (seen, written) = (attention.to_f32(), write.to_f32());
                for t in 0..tokens {
                    for row in 0..s {
                        let sees = row <= position + t.min(len - 1);
                        prop_assert_eq!(seen[t * s + row] == 0.0, sees, "token {} and position {} of {:?}", t, row, block);
                        prop_assert!(sees || seen[t * s + row] < -9e3);
                        let writes = t < len && row == position + t;
                        prop_assert_eq!(written[row * tokens + t], f32::from(u8::from(writes)));
                    }
                }
                before = block;
            }
        }
    }
}
