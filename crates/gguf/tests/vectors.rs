//! The wide forms of dequantisation against the plain one, which `dequant.rs` holds to other people's program: equal bit for bit.
//!
//! Where arithmetic makes a NaN, both must; IEEE leaves open which one.

use anemone_gguf::simd::Simd;
use anemone_gguf::{BlockType, dequantize_with};
use proptest::prelude::*;

fn same(ty: BlockType, bytes: &[u8]) -> Result<(), String> {
    let run = |simd| {
        let mut out = vec![0.5; bytes.len() / ty.block_bytes() * ty.block_len()];
        dequantize_with(simd, ty, bytes, &mut out).unwrap();
        out
    };
    let plain = run(Simd::Plain);
    let moved_only = matches!(ty, BlockType::F32 | BlockType::F16 | BlockType::BF16);
    for simd in Simd::available() {
        for (i, (a, b)) in plain.iter().zip(run(simd)).enumerate() {
            if a.to_bits() != b.to_bits() && (moved_only || !(a.is_nan() && b.is_nan())) {
                return Err(format!("{ty} element {i}: {b:?} with {simd}, {a:?} without"));
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_blocks_of_any_type(seed in prop::collection::vec(any::<u8>(), 1..600), blocks in 1usize..5) {
        for &ty in BlockType::ALL {
            let bytes: Vec<u8> = seed.iter().copied().cycle().take(blocks * ty.block_bytes()).collect();
            prop_assert_eq!(same(ty, &bytes), Ok(()));
        }
    }
}

/// A pattern without a period that a vector could share.
fn filler(i: usize) -> u8 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8
}

#[test]
fn every_half_precision_scale() {
    // Where each hot type keeps its scales; the second of a pair gets a pattern that meets all of the first's in turn.
    let hot: [(BlockType, &[usize]); 4] =
        [(BlockType::F16, &[0]), (BlockType::Q8_0, &[0]), (BlockType::Q4_K, &[0, 2]), (BlockType::Q6_K, &[208])];
    for (ty, places) in hot {
        // More than a vector of blocks of one element, at least one of the long ones.
        let blocks = (256 / ty.block_len()).clamp(1, 72);
        for bits in 0..=u16::MAX {
            let mut bytes: Vec<u8> = (0..blocks * ty.block_bytes()).map(filler).collect();
            for block in bytes.chunks_mut(ty.block_bytes()) {
                for (place, bits) in places.iter().zip([bits, bits.wrapping_mul(40503)]) {
                    block[*place..][..2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            same(ty, &bytes).unwrap_or_else(|e| panic!("scale {bits:#06x}: {e}"));
        }
    }
}

#[test]
fn every_quant_with_special_scales() {
    for bits in [0x0000u16, 0x8000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7c01, 0x7e00] {
        let bytes: Vec<u8> = (0..8u8)
            .flat_map(|block| bits.to_le_bytes().into_iter().chain((0..32).map(move |i| block * 32 + i)))
            .collect();
        same(BlockType::Q8_0, &bytes).unwrap();
    }
}
