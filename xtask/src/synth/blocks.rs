//! From `f32` to blocks, by the plainest rule that each type allows: nobody will compare this model's quality.

use anemone_gguf::BlockType;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Quantises one row into `out`, whose length is the row's in blocks of `ty`.
///
/// # Panics
/// For a type that no option names.
pub fn quantize(ty: BlockType, row: &[f32], out: &mut [u8]) {
    match ty {
        BlockType::F16 => halves(row, out),
        BlockType::Q8_0 => blocks(row, out, q8_0),
        BlockType::Q4_K => blocks(row, out, q4_k),
        other => unreachable!("{other} is not a format of this task"),
    }
}

fn blocks<const N: usize, const B: usize>(row: &[f32], out: &mut [u8], block: impl Fn(&[f32; N], &mut [u8; B])) {
    for (row, out) in row.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(row, out);
    }
}

fn halves(row: &[f32], out: &mut [u8]) {
    let mut buffer = [f16::ZERO; 64];
    for (row, out) in row.chunks(64).zip(out.chunks_mut(128)) {
        let buffer = &mut buffer[..row.len()];
        buffer.convert_from_f32_slice(row);
        for (half, out) in buffer.iter().zip(out.as_chunks_mut().0) {
            *out = half.to_le_bytes();
        }
    }
}

/// The nearest integer of a number below 2^22, in the low bits of the result. Adding 1.5 * 2^23 leaves no room for a
/// fraction, and a compiler makes this wide on every processor.
fn nearest(value: f32) -> u32 {
    (value + 12_582_912.0).to_bits()
}

/// The inverse, or 0 for a scale of 0: all elements are 0 then.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn q8_0(row: &[f32; 32], out: &mut [u8; 34]) {
    let scale = row.iter().fold(0f32, |m, w| m.max(w.abs())) / 127.0;
    let inverse = inverse(scale);
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (q, w) in out[2..].iter_mut().zip(row) {
        *q = nearest(w * inverse) as u8;
    }
}

/// Each sub-block of 32 spans its range, zero included, in 15 steps; scales and minima are 6-bit multiples of the largest.
fn q4_k(row: &[f32; 256], out: &mut [u8; 144]) {
    let subs = row.as_chunks::<32>().0;
    let mut scales = [0f32; 8];
    let mut minima = [0f32; 8];
    for ((sub, scale), minimum) in subs.iter().zip(&mut scales).zip(&mut minima) {
        let low = sub.iter().fold(0f32, |m, &w| m.min(w));
        let high = sub.iter().fold(0f32, |m, &w| m.max(w));
        (*scale, *minimum) = ((high - low) / 15.0, -low);
    }
    let unit = |values: &[f32; 8]| f16::from_f32(values.iter().fold(0f32, |m, &v| m.max(v)) / 63.0);
    let (d, dmin) = (unit(&scales), unit(&minima));
    out[..2].copy_from_slice(&d.to_le_bytes());
    out[2..4].copy_from_slice(&dmin.to_le_bytes());
    let six = |value: f32, unit: f16| (nearest(value * inverse(unit.to_f32())) & 0xff).min(63) as u8;
    let packed = &mut out[4..16];
    packed.fill(0);
    for sub in 0..8 {
        let (s, m) = (six(scales[sub], d), six(minima[sub], dmin));
        // Six bits each in the first eight bytes; of the last four sub-blocks only the top two bits are there, and the low
        // nibbles of scale and minimum share a byte.
        if sub < 4 {
            packed[sub] |= s;
            packed[sub + 4] |= m;
        } else {
            packed[sub + 4] |= s & 15 | m << 4;
            packed[sub - 4] |= s >> 4 << 6;
            packed[sub] |= m >> 4 << 6;
        }
        (scales[sub], minima[sub]) = (d.to_f32() * f32::from(s), dmin.to_f32() * f32::from(m));
    }
    let element = |sub: usize, i: usize| {
        let q = nearest((subs[sub][i] + minima[sub]) * inverse(scales[sub]) + 64.0) & 0xff;
        q.clamp(64, 79) as u8 - 64
    };
    for (i, q) in out[16..].iter_mut().enumerate() {
        let low = i / 32 * 2;
        *q = element(low, i % 32) | element(low + 1, i % 32) << 4;
    }
}

#[cfg(test)]
mod tests {
    use anemone_gguf::dequantize;

    use super::super::random::Random;
    use super::*;

    #[test]
    fn what_is_quantised_comes_back_within_the_types_step() {
        let mut random = Random::new(3, 0);
        for (ty, tolerance) in [(BlockType::F16, 0.002), (BlockType::Q8_0, 0.02), (BlockType::Q4_K, 0.35)] {
            for outlier in [1.0, 20.0] {
                let mut row: Vec<f32> = (0..512).map(|_| random.normal()).collect();
                row[300] *= outlier;
                let mut bytes = vec![0xff; ty.bytes_of(512).unwrap()];
                quantize(ty, &row, &mut bytes);
                let mut back = vec![0.0; 512];
                dequantize(ty, &bytes, &mut back).unwrap();
                for (i, (w, b)) in row.iter().zip(&back).enumerate() {
                    assert!((w - b).abs() <= tolerance * outlier, "{ty} element {i}: {w} became {b}");
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for ty in [BlockType::F16, BlockType::Q8_0, BlockType::Q4_K] {
            let mut bytes = vec![0xff; ty.bytes_of(256).unwrap()];
            quantize(ty, &[0.0; 256], &mut bytes);
            let mut back = vec![1.0; 256];
            dequantize(ty, &bytes, &mut back).unwrap();
            assert!(back.iter().all(|&w| w == 0.0), "{ty}");
        }
    }
}
