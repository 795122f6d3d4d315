//! How fast source weights become a shard's, on one core and on all: `cargo bench -p anemone-lower`.
//!
//! First the steps of a row that stays in the cache, with every vector width the processor has; then whole projections from
//! a GGUF in memory to a sink that forgets them, which is everything a build does but read, write and hash. Figures are
//! billions of elements a second, the best of several runs.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anemone_gguf::simd::Simd;
use anemone_gguf::writer::Writer;
use anemone_gguf::{BlockType, Gguf};
use anemone_lower::quantize::{narrow_with, quantize_with, scale};
use anemone_lower::weights::{Rows, Scales, plain};
use anemone_mil::ir::{Literal, Payload, Sink};
use half::f16;

const COLUMNS: usize = 3072;
const ROWS: usize = 16384;

/// Billions of elements a second, where one call of `work` does `elements`.
fn rate(elements: usize, mut work: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
    }
    elements as f64 / best.as_secs_f64() / 1e9
}

fn steps() {
    let levels = Simd::available();
    let heads: Vec<String> = levels.iter().map(|simd| format!("{simd:>8}")).collect();
    println!("one row, G elements/s      {}", heads.join(" "));
    let row: Vec<f32> = (0..COLUMNS).map(|i| (i as f32 * 0.37).sin() * 0.05).collect();
    let mut halves = vec![f16::ZERO; COLUMNS];
    let mut integers = vec![0i8; COLUMNS];
    let scale = scale(narrow_with(Simd::Plain, &row, &mut halves));
    let print = |name: &str, rates: Vec<f64>| {
        let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:8.2}")).collect();
        println!("{name:25}  {}", rates.join(" "));
    };
    let run = |simd| {
        rate(100 * COLUMNS, || {
            for _ in 0..100 {
                narrow_with(simd, std::hint::black_box(&row), &mut halves);
            }
        })
    };
    print("f32 to fp16, largest", levels.iter().copied().map(run).collect());
    let run = |simd| {
        rate(100 * COLUMNS, || {
            for _ in 0..100 {
                quantize_with(simd, std::hint::black_box(&halves), scale, &mut integers);
            }
        })
    };
    print("fp16 to int8", levels.iter().copied().map(run).collect());
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&self, _slot: usize, _offset: usize, bytes: &[u8]) -> io::Result<()> {
        std::hint::black_box(bytes);
        Ok(())
    }
}

fn produce(literal: &Literal) {
    let Payload::Deferred(deferred) = &literal.payload else {
        unreachable!("projections are made when they are written")
    };
    deferred.producer.produce(&Nowhere).unwrap();
}

fn projections() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\n{ROWS} x {COLUMNS}, G elements/s     1 thread  {cores} threads");
    for ty in [BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K, BlockType::F16] {
        // Finite blocks: every scale, wherever the type keeps it, has a small exponent.
        let bytes: Vec<u8> = (0..ty.bytes_of(ROWS * COLUMNS).unwrap())
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f)
            .collect();
        let mut writer = Writer::new("bench");
        writer.tensor("w", &[ROWS, COLUMNS], ty, bytes);
        let gguf = Arc::new(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap());
        let rows = Rows::new(&gguf, "w", plain(0..ROWS)).unwrap();
        let modes = [
            ("int8-channel", rows.clone().int8(Scales::PerChannel).0),
            ("int8", rows.clone().int8(Scales::PerTensor).0),
            ("fp16", rows.fp16()),
        ];
        for (mode, literal) in modes {
            let rates: Vec<String> = [1, cores]
                .into_iter()
                .map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    format!("{:9.2}", pool.install(|| rate(ROWS * COLUMNS, || produce(&literal))))
                })
                .collect();
            println!("{:25}  {}", format!("{ty} to {mode}"), rates.join(" "));
        }
    }
}

fn main() {
    steps();
    projections();
}
