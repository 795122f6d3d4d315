//! From rows of a GGUF tensor to the bytes of a shard's weight, in one pass and a tile at a time.
//!
//! A [`Rows`] says which rows of which tensor, in which order and with which gain, make a projection. Everything that
//! happens to weights besides quantisation happens there: query and key rows of an interleaved source are permuted to
//! half-split pairs, and rotary rows carry the attention factor. Both are exact before quantisation.

use std::sync::Arc;

use anemone_gguf::Gguf;
use anemone_mil::ir::{Deferred, Dtype, Literal, Payload, Producer, Sink, TensorType, ValueType};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::quantize;

/// One row of a projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The row in the source tensor.
    pub index: usize,
    /// Factor on it.
    pub gain: f32,
}

/// The rows of a projection, in the order the shard has them.
#[derive(Clone)]
pub struct Rows {
    source: Arc<Gguf>,
    tensor: String,
    rows: Vec<Row>,
    columns: usize,
}

/// Elements in a tile: what one task dequantises before it writes. A tile in fp16 is 512 KiB, which stays in cache.
const TILE: usize = 1 << 18;

impl Rows {
    /// Rows of a tensor that the structure check has found present. `rows` must lie in it.
    pub fn new(source: &Arc<Gguf>, tensor: &str, rows: Vec<Row>) -> Result<Self, anemone_gguf::Error> {
        let columns = source.tensor(tensor)?.row_len();
        Ok(Self { source: Arc::clone(source), tensor: tensor.to_owned(), rows, columns })
    }

    /// The projection's shape: output channels, input channels.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows.len(), self.columns)
    }

    /// Rows a tile holds; at least one.
    fn tile_rows(&self) -> usize {
        (TILE / self.columns.max(1)).max(1)
    }

    /// Calls `work` for each tile with its first row and its fp16 values, on all cores.
    fn for_each_tile(&self, work: impl Fn(usize, &[f16]) -> std::io::Result<()> + Sync) -> std::io::Result<()> {
        let step = self.tile_rows();
        let tensor = self.source.tensor(&self.tensor).map_err(std::io::Error::other)?;
        self.rows.par_chunks(step).enumerate().try_for_each_init(
            || (vec![0f32; self.columns], Vec::<f16>::new()),
            |(row, tile), (chunk, rows)| {
                tile.resize(rows.len() * self.columns, f16::ZERO);
                for (r, out) in rows.iter().zip(tile.chunks_exact_mut(self.columns)) {
                    tensor.dequantize_row(r.index, row).map_err(std::io::Error::other)?;
                    if r.gain != 1.0 {
                        row.iter_mut().for_each(|w| *w *= r.gain);
                    }
                    out.convert_from_f32_slice(row);
                    if let Some(column) = out.iter().position(|w| !w.is_finite()) {
                        return Err(std::io::Error::other(format!(
                            "tensor `{}` row {} column {column} is {}, which fp16 cannot hold",
                            self.tensor, r.index, row[column]
                        )));
                    }
                }
                work(chunk * step, tile)
            },
        )
    }

    /// Writes the rows in fp16 to slot 0.
    pub fn write_fp16(&self, sink: &dyn Sink) -> std::io::Result<()> {
        self.for_each_tile(|first, tile| sink.write(0, first * self.columns * 2, &le_bytes(tile)))
    }

    fn literal(producer: &Arc<dyn Producer>, slot: usize, dtype: Dtype, shape: &[usize]) -> Literal {
        Literal {
            ty: ValueType::Tensor(TensorType::new(dtype, shape)),
            payload: Payload::Deferred(Deferred { producer: Arc::clone(producer), slot }),
        }
    }

    /// The projection in fp16, `[out, in, 1, 1]`.
    pub fn fp16(self) -> Literal {
        let (out, columns) = self.shape();
        let producer: Arc<dyn Producer> = Arc::new(Half(self));
        Self::literal(&producer, 0, Dtype::F16, &[out, columns, 1, 1])
    }

    /// The projection in int8, `[out, in, 1, 1]`, and its scale in fp16: `[1, 1, 1, 1]`, or `[out, 1, 1, 1]` with one for
    /// each channel.
    pub fn int8(self, scales: Scales) -> (Literal, Literal) {
        let (out, columns) = self.shape();
        let count = match scales {
            Scales::PerTensor => 1,
            Scales::PerChannel => out,
        };
        let producer: Arc<dyn Producer> = Arc::new(Int8 { rows: self, scales });
        (
            Self::literal(&producer, Int8::DATA, Dtype::I8, &[out, columns, 1, 1]),
            Self::literal(&producer, Int8::SCALE, Dtype::F16, &[count, 1, 1, 1]),
        )
    }
}

/// How many weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// The whole tensor.
    PerTensor,
    /// Each output channel.
    PerChannel,
}

struct Half(Rows);

impl Producer for Half {
    fn produce(&self, sink: &dyn Sink) -> std::io::Result<()> {
        self.0.write_fp16(sink)
    }
}

struct Int8 {
    rows: Rows,
    scales: Scales,
}

impl Int8 {
    const DATA: usize = 0;
    const SCALE: usize = 1;

    /// The largest magnitude of the whole projection: a pass of its own over the source, which the second pass then
    /// finds in the page cache.
    fn max_abs(&self) -> std::io::Result<f16> {
        let max = std::sync::atomic::AtomicU16::new(0);
        self.rows.for_each_tile(|_, tile| {
            max.fetch_max(quantize::max_abs(tile).to_bits(), std::sync::atomic::Ordering::Relaxed);
            Ok(())
        })?;
        Ok(f16::from_bits(max.into_inner()))
    }
}

impl Producer for Int8 {
    fn produce(&self, sink: &dyn Sink) -> std::io::Result<()> {
        let columns = self.rows.columns;
        let write = |first: usize, q: &[i8]| {
            let bytes: Vec<u8> = q.iter().map(|&v| v as u8).collect();
            sink.write(Self::DATA, first * columns, &bytes)
        };
        match self.scales {
            Scales::PerTensor => {
                let scale = quantize::scale(self.max_abs()?);
                sink.write(Self::SCALE, 0, &scale.to_le_bytes())?;
                self.rows.for_each_tile(|first, tile| {
                    let mut q = vec![0; tile.len()];
                    quantize::quantize(tile, scale, &mut q);
                    write(first, &q)
                })
            }
            Scales::PerChannel => self.rows.for_each_tile(|first, tile| {
                let mut q = vec![0; tile.len()];
                let mut scales = Vec::with_capacity(tile.len() / columns);
                for (row, q) in tile.chunks_exact(columns).zip(q.chunks_exact_mut(columns)) {
                    let scale = quantize::scale(quantize::max_abs(row));
                    quantize::quantize(row, scale, q);
                    scales.push(scale);
                }
                sink.write(Self::SCALE, first * 2, &le_bytes(&scales))?;
                write(first, &q)
            }),
        }
    }
}

/// fp16 values as the format stores them.
pub(crate) fn le_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Rows `range` of a tensor as they are.
pub fn plain(range: std::ops::Range<usize>) -> Vec<Row> {
    range.map(|index| Row { index, gain: 1.0 }).collect()
}

/// The rows of `heads` query or key heads that start at `first`: permuted from `pairing` to half-split pairs, with `gain`
/// on the rotary rows.
pub fn rotary(
    first: usize,
    heads: usize,
    head_dim: usize,
    rope_dim: usize,
    pairing: anemone_bundle::contract::Pairing,
    gain: f32,
) -> Vec<Row> {
    use anemone_bundle::contract::Pairing;
    let half = rope_dim / 2;
    let within = |j: usize| match pairing {
        Pairing::HalfSplit => j,
        // Half-split element j is the first of pair j, or the second of pair j - half.
        Pairing::Interleaved if j < half => 2 * j,
        Pairing::Interleaved => 2 * (j - half) + 1,
    };
    let row = |head: usize, j: usize| match j < rope_dim {
        true => Row { index: first + head * head_dim + within(j), gain },
        false => Row { index: first + head * head_dim + j, gain: 1.0 },
    };
    (0..heads).flat_map(|head| (0..head_dim).map(move |j| row(head, j))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anemone_bundle::contract::Pairing;

    #[test]
    fn interleaved_rows_become_half_split_and_the_rest_stays() {
        let rows = rotary(10, 2, 6, 4, Pairing::Interleaved, 2.0);
        let indices: Vec<usize> = rows.iter().map(|r| r.index).collect();
        assert_eq!(indices, [10, 12, 11, 13, 14, 15, 16, 18, 17, 19, 20, 21]);
        let gains: Vec<f32> = rows.iter().map(|r| r.gain).collect();
        assert_eq!(gains[..6], [2.0, 2.0, 2.0, 2.0, 1.0, 1.0]);
    }
}
