//! The ternary types: digits 0, 1, 2 stand for minus, nothing and plus one scale.

use super::half_at;

/// Five digits to a byte, as a fraction of 256: multiplying by a power of three and dropping the overflow moves a digit
/// to the front, and the high byte of three times the rest is that digit. Forty-eight bytes hold five digits each, in
/// runs of 32 and 16 bytes; the last four hold four.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        let mut power = 1u8;
        for out in out.chunks_exact_mut(bytes.len()) {
            for (out, byte) in out.iter_mut().zip(bytes) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *out = d * f32::from(digit as i8 - 1);
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// Two bits to a digit; a run of 32 bytes holds four runs of 32 elements.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (i, out) in out.iter_mut().enumerate() {
        let digit = block[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        *out = d * f32::from(digit as i8 - 1);
    }
}
