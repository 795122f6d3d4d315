//! From rows of a GGUF tensor to the bytes of a shard's weight, in one pass and a tile at a time.
//!
//! A [`Rows`] says which rows of which tensor, in which order and with which gain, make a projection. Everything that
//! happens to weights besides quantisation happens there: query and key rows of an interleaved source are permuted to
//! half-split pairs, and rotary rows carry the attention factor. Both are exact before quantisation.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anemone_gguf::{Gguf, Tensor};
use anemone_mil::ir::{Deferred, Dtype, Literal, Payload, Producer, Sink, TensorType, ValueType};
use half::f16;
use rayon::prelude::*;
use zerocopy::IntoBytes;

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

/// Elements in a tile: what one task makes before it writes. In int8 that is 256 KiB, which stays in cache.
const TILE: usize = 1 << 18;

// Weights go to the file as they are in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the package format is little endian");

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

    /// Calls `work` for each tile, on all cores. `S` is what `work` keeps between the tiles of a thread.
    fn for_each_tile<S: Default>(&self, work: impl Fn(&mut S, Tile<'_>) -> io::Result<()> + Sync) -> io::Result<()> {
        let step = self.tile_rows();
        let source = self.source.tensor(&self.tensor).map_err(io::Error::other)?;
        self.rows.par_chunks(step).enumerate().try_for_each_init(
            || (vec![0.0; self.columns], vec![f16::ZERO; self.columns], S::default()),
            |(wide, row, scratch), (chunk, rows)| work(scratch, Tile { first: chunk * step, source, rows, wide, row }),
        )
    }

    /// Writes the rows in fp16 to slot 0.
    pub fn write_fp16(&self, sink: &dyn Sink) -> io::Result<()> {
        let columns = self.columns;
        self.for_each_tile(|out: &mut Vec<f16>, mut tile| {
            out.resize(tile.rows.len() * columns, f16::ZERO);
            for (r, out) in out.chunks_exact_mut(columns).enumerate() {
                out.copy_from_slice(tile.row(r)?.0);
            }
            sink.write(0, tile.first * columns * 2, out.as_bytes())
        })
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

/// Consecutive rows of a projection, and where one of them is worked on.
struct Tile<'a> {
    /// The first row's place in the projection.
    first: usize,
    source: Tensor<'a>,
    rows: &'a [Row],
    wide: &'a mut [f32],
    row: &'a mut [f16],
}

impl Tile<'_> {
    /// Row `r` of the tile in fp16, and its largest magnitude.
    fn row(&mut self, r: usize) -> io::Result<(&[f16], f16)> {
        let Row { index, gain } = self.rows[r];
        self.source.dequantize_row(index, self.wide).map_err(io::Error::other)?;
        if gain != 1.0 {
            self.wide.iter_mut().for_each(|w| *w *= gain);
        }
        let peak = quantize::narrow(self.wide, self.row);
        if peak.is_finite() {
            return Ok((self.row, peak));
        }
        let column = self.row.iter().position(|w| !w.is_finite()).unwrap_or_default();
        let (tensor, value) = (self.source.name(), self.wide[column]);
        Err(io::Error::other(format!(
            "tensor `{tensor}` row {index} column {column} is {value}, which fp16 cannot hold"
        )))
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
    fn produce(&self, sink: &dyn Sink) -> io::Result<()> {
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
    fn peak(&self) -> io::Result<f16> {
        let peak = AtomicU16::new(0);
        self.rows.for_each_tile(|(): &mut (), mut tile| {
            for r in 0..tile.rows.len() {
                peak.fetch_max(tile.row(r)?.1.to_bits(), Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(f16::from_bits(peak.into_inner()))
    }
}

impl Producer for Int8 {
    fn produce(&self, sink: &dyn Sink) -> io::Result<()> {
        let columns = self.rows.columns;
        let shared = match self.scales {
            Scales::PerTensor => {
                let scale = quantize::scale(self.peak()?);
                sink.write(Self::SCALE, 0, &scale.to_le_bytes())?;
                Some(scale)
            }
            Scales::PerChannel => None,
        };
        self.rows.for_each_tile(|(out, scales): &mut (Vec<i8>, Vec<f16>), mut tile| {
            out.resize(tile.rows.len() * columns, 0);
            scales.clear();
            for (r, out) in out.chunks_exact_mut(columns).enumerate() {
                let (row, peak) = tile.row(r)?;
                let scale = shared.unwrap_or_else(|| quantize::scale(peak));
                quantize::quantize(row, scale, out);
                scales.push(scale);
            }
            if shared.is_none() {
                sink.write(Self::SCALE, tile.first * 2, scales.as_bytes())?;
            }
            sink.write(Self::DATA, tile.first * columns, out.as_bytes())
        })
    }
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
