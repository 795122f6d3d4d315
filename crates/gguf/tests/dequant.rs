//! Every block type against the `gguf` package, bit for bit. `crosscheck/goldens/gguf_blocks.py` wrote `data/` and says
//! what is in it; a larger set in the directory that `ANEMONE_DEQUANT_VECTORS` names is read too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anemone_gguf::{BlockType, dequantize};

/// Types the package has no function for. Their values are checked by hand below.
const NOT_IN_PACKAGE: [BlockType; 8] = [
    BlockType::Q8_1,
    BlockType::Q8_K,
    BlockType::I8,
    BlockType::I16,
    BlockType::I32,
    BlockType::I64,
    BlockType::F64,
    BlockType::Q1_0,
];

fn check(path: &Path) -> BlockType {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let ty = *BlockType::ALL.iter().find(|ty| ty.name() == name).unwrap_or_else(|| panic!("{name} is unknown"));
    let file = std::fs::read(path).unwrap();
    let header = |i: usize| u32::from_le_bytes(file[4 * i..][..4].try_into().unwrap()) as usize;
    let (count, size, len) = (header(0), header(1), header(2));
    assert_eq!((ty.block_bytes(), ty.block_len()), (size, len), "{ty}");

    let (blocks, expected) = file[12..].split_at(count * size);
    assert_eq!(expected.len(), count * len * 4);
    let mut found = vec![f32::NAN; count * len];
    dequantize(ty, blocks, &mut found).unwrap();
    // A conversion has one answer; of arithmetic on NaN, IEEE leaves sign and payload open.
    let exact = matches!(ty, BlockType::F32 | BlockType::F16 | BlockType::BF16);
    for (i, (found, expected)) in found.iter().zip(expected.as_chunks().0).enumerate() {
        let expected = f32::from_le_bytes(*expected);
        let same = found.to_bits() == expected.to_bits() || !exact && found.is_nan() && expected.is_nan();
        assert!(same, "{ty} block {} element {}: {found:?}, expected {expected:?}", i / len, i % len);
    }
    ty
}

fn check_all(directory: &Path) -> BTreeSet<BlockType> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "bin"))
        .map(|path| check(&path))
        .collect()
}

#[test]
fn every_type_the_package_knows_agrees_with_it() {
    let seen = check_all(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data"));
    let expected = BlockType::ALL.iter().copied().filter(|ty| !NOT_IN_PACKAGE.contains(ty)).collect();
    assert_eq!(seen, expected);
    if let Some(directory) = std::env::var_os("ANEMONE_DEQUANT_VECTORS") {
        assert_eq!(check_all(Path::new(&directory)), expected);
    }
}

fn one(ty: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / ty.block_bytes() * ty.block_len()];
    dequantize(ty, bytes, &mut out).unwrap();
    out
}

#[test]
fn types_the_package_lacks() {
    assert_eq!(one(BlockType::I8, &[0x80, 0x7f]), [-128.0, 127.0]);
    assert_eq!(one(BlockType::I16, &[0, 0x80]), [-32768.0]);
    assert_eq!(one(BlockType::I32, &i32::MIN.to_le_bytes()), [-2147483648.0]);
    assert_eq!(one(BlockType::I64, &(1i64 << 40).to_le_bytes()), [1099511627776.0]);
    assert_eq!(one(BlockType::F64, &0.1f64.to_le_bytes()), [0.1]);

    let half = 0x3800u16.to_le_bytes(); // 0.5
    let quants: Vec<u8> = (0..=255u8).collect();

    let q8_1 = [&half[..], &[0xff, 0xff], &quants[112..144]].concat();
    let expected: Vec<f32> = (112..144u8).map(|q| 0.5 * f32::from(q as i8)).collect();
    assert_eq!(one(BlockType::Q8_1, &q8_1), expected);

    let q8_k = [&0.25f32.to_le_bytes()[..], &quants, &[0xff; 32]].concat();
    let expected: Vec<f32> = quants.iter().map(|&q| 0.25 * f32::from(q as i8)).collect();
    assert_eq!(one(BlockType::Q8_K, &q8_k), expected);

    let q1_0 = [&half[..], &[0b0000_0101; 16]].concat();
    let expected: Vec<f32> = (0..128).map(|i| if [0, 2].contains(&(i % 8)) { 0.5 } else { -0.5 }).collect();
    assert_eq!(one(BlockType::Q1_0, &q1_0), expected);
}

#[test]
fn bytes_that_are_not_the_blocks_of_the_elements_are_refused() {
    for &ty in BlockType::ALL {
        let (size, len) = (ty.block_bytes(), ty.block_len());
        let bytes = vec![0; 2 * size];
        assert!(dequantize(ty, &bytes, &mut vec![0.0; 2 * len]).is_ok());
        assert!(dequantize(ty, &bytes[1..], &mut vec![0.0; 2 * len]).is_err());
        assert!(dequantize(ty, &bytes, &mut vec![0.0; len]).is_err());
        assert!(dequantize(ty, &bytes, &mut vec![0.0; 2 * len + 1]).is_err());
        assert!(dequantize(ty, &[], &mut []).is_ok());
    }
}
