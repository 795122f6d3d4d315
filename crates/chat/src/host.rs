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
    pub rope_cos: Tensor,
    /// `[T, rope_dim / 2]`.
    pub rope_sin: Tensor,
    /// `[1, 1, T, S]`.
    pub attn_mask: Tensor,
    /// `[1, 1, S, T]`.
    pub kv_write_mask: Tensor,
}

impl HostInputs {
    /// Tables and masks in the working float type.
    ///
    /// # Panics
    /// If `len` is 0 or more than `tokens`, or the block ends beyond the context.
    pub fn new(contract: &Contract, position: usize, len: usize, tokens: usize, float: Dtype) -> Self {
        let (s, half) = (contract.context, contract.rope.dim / 2);
        let blank = |shape: &[usize]| Tensor::from_f32(shape, vec![0.0; shape.iter().product()], float);
        let mut inputs = Self {
            rope_cos: blank(&[tokens, half]),
            rope_sin: blank(&[tokens, half]),
            attn_mask: blank(&[1, 1, tokens, s]),
            kv_write_mask: blank(&[1, 1, s, tokens]),
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
        for (tensor, f) in [(&mut self.rope_cos, f64::cos as fn(f64) -> f64), (&mut self.rope_sin, f64::sin)] {
            write(tensor, |table| {
                for (t, row) in table.chunks_exact_mut(half).enumerate() {
                    let at = (position + t.min(len - 1)) as f64;
                    row.iter_mut().zip(frequencies).for_each(|(v, frequency)| *v = f(at * frequency) as f32);
                }
            });
        }
        write(&mut self.attn_mask, |mask| {
            for (t, row) in mask.chunks_exact_mut(s).enumerate() {
                let (seen, hidden) = row.split_at_mut(position + t.min(len - 1) + 1);
                seen.fill(0.0);
                hidden.fill(MASKED);
            }
        });
        write(&mut self.kv_write_mask, |mask| {
            mask.fill(0.0);
            (0..len).for_each(|t| mask[(position + t) * tokens + t] = 1.0);
        });
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
    let mut rows = Vec::new();
    extend_embedded(contract, table, ids, &mut rows);
    rows
}

/// Appends rows of the embedding table, scaled.
pub fn extend_embedded(contract: &Contract, table: &[u8], ids: &[u32], rows: &mut Vec<f32>) {
    let bytes = 2 * contract.width;
    let scale = contract.embedding_scale;
    // Some at a time, for which the processor has instructions.
    let (mut halves, mut floats) = ([f16::ZERO; 64], [0.0; 64]);
    for &id in ids {
        for part in table[id as usize * bytes..][..bytes].chunks(2 * halves.len()) {
            let n = part.len() / 2;
            halves.iter_mut().zip(part.chunks_exact(2)).for_each(|(h, b)| *h = f16::from_le_bytes([b[0], b[1]]));
            halves[..n].convert_to_f32_slice(&mut floats[..n]);
            rows.extend(floats[..n].iter().map(|v| v * scale));
        }
    }
}
