//! From blocks to `f32`.
//!
//! Each block type is one function from the block's bytes to its elements, written from the layout and with the
//! operations in the order that decides the last bit, so the result is that of ggml's reference code. Families share a
//! file.

mod legacy;
mod plain;

use crate::{BlockType, Error};

/// Dequantises consecutive blocks of type `ty` into `out`.
///
/// Integers and `F64` are converted to the nearest `f32`.
///
/// # Errors
/// [`Error::BlockSize`] unless `bytes` is exactly the blocks of `out.len()` elements.
pub fn dequantize(ty: BlockType, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    if ty.bytes_of(out.len()) != Some(bytes.len()) {
        return Err(Error::BlockSize { ty, bytes: bytes.len(), elements: out.len() });
    }
    match ty {
        BlockType::F32 => blocks(bytes, out, plain::f32),
        BlockType::F16 => blocks(bytes, out, plain::f16),
        BlockType::BF16 => blocks(bytes, out, plain::bf16),
        BlockType::Q4_0 => blocks(bytes, out, legacy::q4_0),
        BlockType::Q8_0 => blocks(bytes, out, legacy::q8_0),
        _ => return Err(Error::BlockSize { ty, bytes: bytes.len(), elements: out.len() }),
    }
    Ok(())
}

/// Applies one block's function to all of them.
fn blocks<const B: usize, const N: usize>(bytes: &[u8], out: &mut [f32], block: impl Fn(&[u8; B], &mut [f32; N])) {
    let (bytes, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for (bytes, out) in bytes.iter().zip(out) {
        block(bytes, out);
    }
}

/// The half-precision number in two bytes at `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    plain::half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}
