//! Types of one element to a block.

/// The value of a half-precision bit pattern, exactly. A NaN keeps its payload and its quiet bit as they are, whatever
/// the processor's own conversion would do.
#[inline(always)]
pub(super) fn half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let fraction = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        // Zero and subnormals: an integer multiple of 2^-24, which single precision holds exactly.
        0 => (fraction as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        31 => 0x7f80_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

pub(super) fn f32(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

#[inline(always)]
pub(super) fn f16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = half(u16::from_le_bytes(*block));
}

pub(super) fn bf16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

/// A plain number of another kind, rounded to the nearest `f32`.
macro_rules! converted {
    ($name:ident, $bytes:literal) => {
        pub(super) fn $name(block: &[u8; $bytes], out: &mut [f32; 1]) {
            out[0] = $name::from_le_bytes(*block) as f32;
        }
    };
}
converted!(f64, 8);
converted!(i8, 1);
converted!(i16, 2);
converted!(i32, 4);
converted!(i64, 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_that_is_a_number_equals_an_independent_conversion() {
        for bits in 0..=u16::MAX {
            let (sign, exponent, fraction) = (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023));
            let magnitude = match exponent {
                0 => fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
            };
            let expected = if sign == 1 { -magnitude } else { magnitude } as f32;
            let found = half(bits);
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
        assert_eq!(half(0x7c01).to_bits(), 0x7f80_2000, "the payload of a signalling nan");
    }
}
