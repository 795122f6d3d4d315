//! Four-bit floats: E2M1 elements under eight-bit scales. The tables hold twice the element, an integer, so the scales
//! are decoded to half their value.

use super::nibbles;

/// Twice the value of each E2M1 pattern. OCP Microscaling Formats 1.0, table of FP4. Minus zero reads as zero.
const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of an E8M0 scale: 2^(e - 128). The two smallest are subnormal; 255, NaN in the standard, is a power like the
/// others here, as it is in ggml.
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of an unsigned E4M3 scale of bias 7. The top bit is ignored, except that only 0x7f itself, NaN in the standard,
/// reads as zero: so ggml has it.
fn half_ue4m3(byte: u8) -> f32 {
    let exponent = byte >> 3 & 15;
    let mantissa = f32::from(byte & 7);
    match (byte, exponent) {
        (0 | 0x7f, _) => 0.0,
        (_, 0) => mantissa * (-10f32).exp2(),
        _ => (1.0 + mantissa / 8.0) * (f32::from(exponent) - 8.0).exp2(),
    }
}

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_e8m0(block[0]);
    nibbles(&block[1..], out, |_, q| d * f32::from(DOUBLED[usize::from(q)]));
}

pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (sub, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_ue4m3(block[sub]);
        nibbles(&block[4 + 8 * sub..][..8], out, |_, q| d * f32::from(DOUBLED[usize::from(q)]));
    }
}
