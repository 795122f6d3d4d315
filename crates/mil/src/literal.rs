//! Reading small literals as numbers: axes, pads, flags, epsilons.
//!
//! These are for parameters, not for weights: they copy. Weights are decoded by [`crate::decode`].

use half::{bf16, f16};

use crate::ir::{Dtype, Literal, Payload, TensorType};

impl Literal {
    /// The number of elements, where this is a tensor of known shape.
    pub fn elements(&self) -> Option<usize> {
        self.tensor_type()?.elements()
    }

    /// The elements as integers, where this is a tensor of an integer type (of any width) whose bytes are in memory.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        let ty = self.tensor_type()?;
        let bytes = self.bytes()?;
        let (n, bits) = (ty.elements()?, ty.dtype.bits());
        if !ty.dtype.is_int() || bytes.len() != n.checked_mul(bits)?.div_ceil(8) {
            return None;
        }
        let wide = |width: usize| bytes.chunks_exact(width);
        Some(match ty.dtype {
            Dtype::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            Dtype::U8 => bytes.iter().map(|&b| i64::from(b)).collect(),
            Dtype::I16 => wide(2).map(|b| i64::from(i16::from_le_bytes([b[0], b[1]]))).collect(),
            Dtype::U16 => wide(2).map(|b| i64::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
            Dtype::I32 => wide(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap_or_default()))).collect(),
            Dtype::U32 => wide(4).map(|b| i64::from(u32::from_le_bytes(b.try_into().unwrap_or_default()))).collect(),
            Dtype::I64 => wide(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
            Dtype::U64 => wide(8)
                .map(|b| i64::try_from(u64::from_le_bytes(b.try_into().unwrap_or_default())))
                .collect::<Result<_, _>>()
                .ok()?,
            narrow => (0..n).map(|i| unpack(bytes, i, narrow)).collect(),
        })
    }

    /// The elements as floats, where this is a tensor of fp16, bf16, fp32 or fp64 whose bytes are in memory.
    pub fn to_floats(&self) -> Option<Vec<f32>> {
        let bytes = self.bytes()?;
        let chunk = |width: usize| bytes.chunks_exact(width);
        Some(match self.tensor_type()?.dtype {
            Dtype::F16 => chunk(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => chunk(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => chunk(4).map(|b| f32::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
            Dtype::F64 => chunk(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()) as f32).collect(),
            _ => return None,
        })
    }

    /// The elements as bools, where this is a tensor of bools whose bytes are in memory.
    pub fn to_bools(&self) -> Option<Vec<bool>> {
        match self.tensor_type()?.dtype {
            Dtype::Bool => Some(self.bytes()?.iter().map(|&b| b != 0).collect()),
            _ => None,
        }
    }

    /// The string, where this is one.
    pub fn to_str(&self) -> Option<&str> {
        match &self.payload {
            Payload::Strings(s) if s.len() == 1 => Some(&s[0]),
            _ => None,
        }
    }

    /// An fp32 tensor.
    ///
    /// # Panics
    /// If `v` has not as many elements as `shape`.
    pub fn f32s(shape: &[usize], v: &[f32]) -> Self {
        let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes(TensorType::new(Dtype::F32, shape), bytes)
    }
}

/// Element `i` of a packed bitstream: bits `[i * n, i * n + n)`, least significant first, possibly astride two bytes.
/// Signed types are sign-extended. Zero beyond the end.
pub fn unpack(bytes: &[u8], i: usize, dtype: Dtype) -> i64 {
    let n = dtype.bits();
    let (byte, shift) = (i * n / 8, i * n % 8);
    let at = |k: usize| u32::from(bytes.get(k).copied().unwrap_or(0));
    let raw = ((at(byte) | at(byte + 1) << 8) >> shift) & ((1 << n) - 1);
    match dtype {
        Dtype::I4 if raw >= 8 => i64::from(raw) - 16,
        _ => i64::from(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Bytes from packages written by Core ML's own tools.
    #[test]
    fn packed_elements_are_read_least_significant_bit_first() {
        let case = |dtype, bytes: &[u8], expected: &[i64]| {
            let lit = Literal::from_bytes(TensorType::new(dtype, &[expected.len()]), bytes);
            assert_eq!(lit.to_ints().unwrap(), expected);
        };
        case(Dtype::U1, &[0x8d, 0x01], &[1, 0, 1, 1, 0, 0, 0, 1, 1]);
        case(Dtype::U2, &[0xe4, 0x01], &[0, 1, 2, 3, 1]);
        case(Dtype::U3, &[0xd1, 0x58], &[1, 2, 3, 4, 5]);
        case(Dtype::U4, &[0x21, 0x0f], &[1, 2, 15]);
        case(Dtype::U6, &[0x81, 0xf0, 0x17, 0x09], &[1, 2, 63, 5, 9]);
        case(Dtype::I4, &[0xe1, 0x87, 0x03], &[1, -2, 7, -8, 3]);
    }
}
