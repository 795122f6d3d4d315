//! How fast each block type becomes `f32`, with every vector width the processor has: `cargo bench -p anemone-gguf`.
//!
//! A row of 3072 elements is dequantised again and again, so that what is measured is the processor and not the memory.
//! Figures are billions of elements a second on one core, the best of several runs.

use std::time::{Duration, Instant};

use anemone_gguf::simd::Simd;
use anemone_gguf::{BlockType, dequantize_with};

const ROW: usize = 3072;

fn rate(simd: Simd, ty: BlockType, bytes: &[u8], out: &mut [f32]) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..100 {
            dequantize_with(simd, ty, std::hint::black_box(bytes), out).unwrap();
        }
        best = best.min(start.elapsed());
    }
    (100 * ROW) as f64 / best.as_secs_f64() / 1e9
}

fn main() {
    let levels = Simd::available();
    let heads: Vec<String> = levels.iter().map(|simd| format!("{simd:>8}")).collect();
    println!("G elements/s  {}", heads.join(" "));
    let mut out = vec![0.0; ROW];
    for &ty in BlockType::ALL {
        let size = ty.bytes_of(ROW).expect("3072 is whole blocks of every type");
        // Bytes without a pattern (Knuth's multiplicative hash).
        let bytes: Vec<u8> = (0..size).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let rates: Vec<String> =
            levels.iter().map(|&simd| format!("{:8.2}", rate(simd, ty, &bytes, &mut out))).collect();
        println!("{:12}  {}", ty.name(), rates.join(" "));
    }
}
