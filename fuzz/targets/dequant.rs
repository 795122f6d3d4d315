//! Whatever the blocks hold, each vector decoder gives the bits of the plain one.
#![no_main]

use anemone_gguf::simd::Simd;
use anemone_gguf::{BlockType, dequantize_with};
use libfuzzer_sys::fuzz_target;

/// Blocks at most in one run: more than the widest decoder takes at once.
const BLOCKS: usize = 67;

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    let types = BlockType::ALL;
    let ty = types[usize::from(which) % types.len()];
    let blocks = (data.len() / ty.block_bytes()).min(BLOCKS);
    let bytes = &data[..blocks * ty.block_bytes()];
    let decoded = |simd| {
        let mut out = vec![f32::NAN; blocks * ty.block_len()];
        dequantize_with(simd, ty, bytes, &mut out).expect("whole blocks");
        out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let mut all = Simd::available().into_iter().map(decoded);
    let first = all.next().expect("the plain decoder is always there");
    assert!(all.all(|other| other == first), "{ty:?} decodes differently");
});
