//! What a host computes for the shards: rotary tables, masks, embedding rows. Nothing else of the model lives outside them.

use anemone_bundle::Contract;
use anemone_exec::Dtype;
use anemone_exec::{Data, Tensor};
use half::f16;

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
        assert!(len > 0 && len <= tokens && position + len <= s, "block of {len}/{tokens} at {position} of {s}");
        let frequencies = contract.inverse_frequencies();
        // In f64: an f32 angle at position 2000 is off by more than an fp16 cosine resolves.
        let angle = |t: usize, i: usize| (position + t.min(len - 1)) as f64 * frequencies[i];
        let table = |f: fn(f64) -> f64| {
            let values = (0..tokens * half).map(|k| f(angle(k / half, k % half)) as f32).collect();
            Tensor::from_f32(&[tokens, half], values, float)
        };
        let visible = |t: usize, row: usize| row <= position + t.min(len - 1);
        let mask = (0..tokens * s).map(|k| if visible(k / s, k % s) { 0.0 } else { MASKED }).collect();
        let mut write = vec![0.0; s * tokens];
        for t in 0..len {
            write[(position + t) * tokens + t] = 1.0;
        }
        Self {
            rope_cos: table(f64::cos),
            rope_sin: table(f64::sin),
            attn_mask: Tensor::from_f32(&[1, 1, tokens, s], mask, float),
            kv_write_mask: Tensor::from_f32(&[1, 1, s, tokens], write, float),
        }
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

/// `[n, width]` rows to the shards' `[1, width, T, 1]`, the columns beyond `n` zero.
pub fn to_columns(rows: &[f32], width: usize, tokens: usize, float: Dtype) -> Tensor {
    let mut columns = vec![0.0; width * tokens];
    for (t, row) in rows.chunks_exact(width).enumerate() {
        for (c, &v) in row.iter().enumerate() {
            columns[c * tokens + t] = v;
        }
    }
    Tensor::from_f32(&[1, width, tokens, 1], columns, float)
}

/// The first `n` columns of `[1, width, T, 1]` as rows `[n, width]`.
pub fn to_rows(columns: &Tensor, n: usize) -> Vec<f32> {
    let (width, tokens) = (columns.shape()[1], columns.shape()[2]);
    let value = |k: usize| match columns.data() {
        Data::F32(v) => v[k],
        Data::F16(v) => v[k].to_f32(),
        other => panic!("{} is not a working float type", other.dtype()),
    };
    (0..n * width).map(|k| value((k % width) * tokens + k / width)).collect()
}

/// Rows of the embedding table, scaled: `[ids, width]`.
pub fn embed(contract: &Contract, table: &[u8], ids: &[u32]) -> Vec<f32> {
    let bytes = 2 * contract.width;
    let scale = contract.embedding_scale;
    ids.iter()
        .flat_map(|&id| table[id as usize * bytes..][..bytes].chunks_exact(2))
        .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32() * scale)
        .collect()
}
