//! The i-quants: eight (or four) elements at a time are one point of a fixed grid, times a scale, times stored signs.
//!
//! Grids hold magnitudes only; signs are a byte to eight elements. Where seven bits are stored, the eighth is such that
//! the number of minus signs is even. The one-bit types have ternary grids and shift each group of points by an eighth
//! instead of storing signs. `IQ4_NL` and `IQ4_XS` are scalar: nibbles index a table of uneven levels.

use super::grids;
use super::{half_at, nibbles, plain};

/// Magnitudes of the two-bit grids; the fourth index occurs in no grid.
const LEVELS_2: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Coordinates of the ternary grid; the fourth index does not occur.
const LEVELS_1: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// Magnitudes of the grid of `IQ3_XXS`.
const LEVELS_3_XXS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Magnitudes of the grid of `IQ3_S`.
const LEVELS_3_S: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// Levels of `IQ4_NL` and `IQ4_XS`.
const LEVELS_4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// How far the one-bit types shift a group of points, up or down.
const DELTA: f32 = 0.125;

/// Coordinate `i` of a point with two bits to a coordinate.
fn coordinate_2(point: u16, i: usize) -> usize {
    usize::from(point >> (2 * i) & 3)
}

/// Coordinate `i` of a point with four bits to a coordinate, of which three are used.
fn coordinate_3(point: u16, i: usize) -> usize {
    usize::from(point >> (4 * i) & 7)
}

/// Eight signs from seven stored bits.
fn even_signs(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | (bits.count_ones() as u8 & 1) << 7
}

/// Element `i`'s sign from a byte for eight.
fn sign(signs: u8, i: usize) -> f32 {
    if signs >> i & 1 == 0 { 1.0 } else { -1.0 }
}

fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Per 32 elements: four point indices, then a word of four times seven sign bits and a four-bit scale.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let at = 2 + 8 * sub;
        let word = u32_at(block, at + 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        for (group, out) in out.chunks_exact_mut(8).enumerate() {
            let point = grids::IQ2_XXS[usize::from(block[at + group])];
            let signs = even_signs(word >> (7 * group));
            for (i, out) in out.iter_mut().enumerate() {
                *out = scale * LEVELS_2[coordinate_2(point, i)] * sign(signs, i);
            }
        }
    }
}

/// Per 8 elements: nine bits of point index and seven of signs; per 16 a four-bit scale.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * group);
        let scale = d * (0.5 + f32::from(nibble(&block[66..], group / 2))) * 0.25;
        let point = grids::IQ2_XS[usize::from(word & 511)];
        let signs = even_signs(u32::from(word >> 9));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * LEVELS_2[coordinate_2(point, i)] * sign(signs, i);
        }
    }
}

/// Per 8 elements: ten bits of point index in two places, eight signs; per 16 a four-bit scale.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (low, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = d * (0.5 + f32::from(nibble(scales, group / 2))) * 0.25;
        let top = high[group / 4] >> (2 * (group % 4)) & 3;
        let point = grids::IQ2_S[usize::from(low[group]) | usize::from(top) << 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * LEVELS_2[coordinate_2(point, i)] * sign(signs[group], i);
        }
    }
}

/// Per 4 elements a point index; per 32 a word of four times seven sign bits and a four-bit scale.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (points, words) = (&block[2..66], &block[66..]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let word = u32_at(words, 4 * sub);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        for (i, out) in out.iter_mut().enumerate() {
            let point = grids::IQ3_XXS[usize::from(points[8 * sub + i / 4])];
            let signs = even_signs(word >> (7 * (i / 8)));
            *out = scale * LEVELS_3_XXS[coordinate_3(point, i % 4)] * sign(signs, i % 8);
        }
    }
}

/// Per 4 elements nine bits of point index in two places; per 8 a byte of signs; per 32 a four-bit scale.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (low, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (sub, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = d * f32::from(1 + 2 * nibble(scales, sub));
        for (i, out) in out.iter_mut().enumerate() {
            let group = 8 * sub + i / 4;
            let top = high[group / 8] >> (group % 8) & 1;
            let point = grids::IQ3_S[usize::from(low[group]) | usize::from(top) << 8];
            *out = scale * LEVELS_3_S[coordinate_3(point, i % 4)] * sign(signs[4 * sub + i / 8], i % 8);
        }
    }
}

/// Per 32 elements a word: four times three high bits of point index, a three-bit scale, the sign of the shift.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let low = &block[2..34];
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 34 + 2 * (group / 4));
        let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
        let delta = if word & 0x8000 == 0 { DELTA } else { -DELTA };
        let top = word >> (3 * (group % 4)) & 7;
        let point = grids::IQ1_S[usize::from(low[group]) | usize::from(top) << 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * (LEVELS_1[coordinate_2(point, i)] + delta);
        }
    }
}

/// Per 8 elements a nibble: three high bits of point index and the sign of the shift. Per 16 a three-bit scale, in four
/// words whose top nibbles together are the half-precision scale of the block.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (low, high) = (&block[..32], &block[32..48]);
    let words = [0, 1, 2, 3].map(|i| u16_at(block, 48 + 2 * i));
    let d = plain::half(words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12);
    for (group, out) in out.chunks_exact_mut(8).enumerate() {
        let sub = group / 2;
        let scale = d * f32::from(2 * (words[sub / 4] >> (3 * (sub % 4)) & 7) + 1);
        let top = nibble(high, group);
        let delta = if top & 8 == 0 { DELTA } else { -DELTA };
        let point = grids::IQ1_S[usize::from(low[group]) | usize::from(top & 7) << 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * (LEVELS_1[coordinate_2(point, i)] + delta);
        }
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |_, q| d * f32::from(LEVELS_4[usize::from(q)]));
}

/// Eight sub-blocks of `IQ4_NL`, each with a six-bit scale: four bits in bytes 4 to 7, two in the word before.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let high = u16_at(block, 2);
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let bits = nibble(&block[4..8], sub) | ((high >> (2 * sub) & 3) << 4) as u8;
        let scale = d * f32::from(bits as i8 - 32);
        nibbles(&block[8 + 16 * sub..][..16], out, |_, q| scale * f32::from(LEVELS_4[usize::from(q)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seven_sign_bits_make_an_even_number_of_signs() {
        for bits in 0..128 {
            let signs = even_signs(bits);
            assert_eq!(u32::from(signs) & 127, bits);
            assert_eq!(signs.count_ones() % 2, 0);
        }
    }

    #[test]
    fn no_grid_names_a_level_that_does_not_exist() {
        let two_bits = [grids::IQ1_S.as_slice(), &grids::IQ2_XXS, &grids::IQ2_XS, &grids::IQ2_S];
        for point in two_bits.into_iter().flatten() {
            assert!((0..8).all(|i| coordinate_2(*point, i) < 3), "{point:#06x}");
        }
        for point in grids::IQ3_XXS.iter().chain(&grids::IQ3_S) {
            assert_eq!(point & 0x8888, 0, "{point:#06x}");
        }
    }
}
