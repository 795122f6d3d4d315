//! Files that lie. Each gets one error that names the field and the offset; none panics or allocates what it promises.

use anemone_gguf::writer::Writer;
use anemone_gguf::{BlockType, Gguf};
use proptest::prelude::*;

/// Bytes of a file under construction, for what the writer refuses to write.
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }
    fn u32(mut self, v: u32) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn bytes(mut self, v: &[u8]) -> Raw {
        self.0.extend(v);
        self
    }
    fn string(self, v: &str) -> Raw {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }
    /// A tensor's record, dimensions innermost first.
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let mut raw = self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            raw = raw.u64(dim);
        }
        raw.u32(ty).u64(offset)
    }
    /// Padding to the alignment and `len` bytes of data.
    fn data(mut self, len: usize) -> Raw {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + len, 0);
        self
    }
    fn error(self) -> String {
        Gguf::from_bytes(self.0).expect_err("accepted").to_string()
    }
}

/// `$raw` is refused with exactly this message.
macro_rules! refused {
    ($raw:expr, $message:literal) => {
        assert_eq!($raw.error(), $message)
    };
}

#[test]
fn what_is_no_gguf_at_all() {
    refused!(Raw(vec![]), "the file is empty, not a gguf");
    refused!(Raw(b"GG".to_vec()), "not a gguf: the file begins with [47, 47], expected the bytes of \"GGUF\"");
    refused!(
        Raw(b"PK\x03\x04 and so on".to_vec()),
        "not a gguf: the file begins with [50, 4b, 03, 04], expected the bytes of \"GGUF\""
    );
    refused!(Raw(b"GGUF".to_vec()), "truncated gguf: version at offset 4 needs 4 bytes, 0 are left");
    refused!(
        Raw(b"GGUF".to_vec()).u32(1).u64(0).u64(0),
        "gguf version 1 at offset 4 is not supported, expected 2 or 3 (version 1 has 32-bit counts; convert the model \
         again with a current tool)"
    );
    refused!(Raw(b"GGUF".to_vec()).u32(4), "gguf version 4 at offset 4 is not supported, expected 2 or 3");
    let big = "the gguf is big-endian (version field at offset 4); only little-endian files are read";
    assert_eq!(Raw(b"GGUF".to_vec()).u32(3u32.swap_bytes()).error(), big);
    assert_eq!(Raw(b"FUGG".to_vec()).error(), big);
}

#[test]
fn counts_and_lengths_beyond_the_file() {
    refused!(
        Raw::new(0, u64::MAX),
        "truncated gguf: key count 18446744073709551615 at offset 16 needs 18446744073709551615 bytes, 0 are left"
    );
    refused!(
        Raw::new(1 << 60, 0),
        "truncated gguf: tensor count 1152921504606846976 at offset 8 needs 18446744073709551615 bytes, 0 are left"
    );
    refused!(
        Raw::new(0, 1).u64(u64::MAX).bytes(b"12345"),
        "truncated gguf: name of key 0 at offset 32 needs 18446744073709551615 bytes, 5 are left"
    );
    refused!(
        Raw::new(0, 1).string("k").u32(8).u64(9).bytes(b"12345678"),
        "truncated gguf: value of key `k` at offset 45 needs 9 bytes, 8 are left"
    );
    refused!(
        Raw::new(0, 1).string("k").u32(9).u32(4).u64(1 << 62).u64(0),
        "truncated gguf: element count 4611686018427387904 of key `k` at offset 41 needs 18446744073709551615 bytes, 8 are left"
    );
    refused!(
        Raw::new(0, 1).string("k").u32(9).u32(9).u64(2).bytes(&[0; 20]),
        "truncated gguf: element count 2 of key `k` at offset 41 needs 24 bytes, 20 are left"
    );
}

#[test]
fn values_that_are_not_of_their_type() {
    refused!(
        Raw::new(0, 1).string("k").u32(13).u64(0),
        "malformed gguf: type of key `k` at offset 33: unknown value type 13, expected 0 to 12"
    );
    refused!(
        Raw::new(0, 1).string("k").u32(7).bytes(&[2]),
        "malformed gguf: value of key `k` at offset 37: 2 is not a bool, expected 0 or 1"
    );
    refused!(
        Raw::new(0, 1).string("k").u32(8).u64(3).bytes(b"a\xffb"),
        "malformed gguf: value of key `k` at offset 37: not utf-8 after 1 of its 3 bytes"
    );
    refused!(
        Raw::new(0, 2).string("k").u32(0).bytes(&[1]).string("k").u32(0).bytes(&[1]),
        "malformed gguf: key `k` at offset 38: appears twice"
    );
    let mut deep = Raw::new(0, 1).string("k").u32(9);
    for _ in 0..10_000 {
        deep = deep.u32(9).u64(1);
    }
    refused!(deep.u32(0).u64(0), "malformed gguf: value of key `k` at offset 85: arrays nest deeper than 4");
    refused!(
        Raw::new(0, 1).string("general.alignment").u32(4).u32(24),
        "key `general.alignment` is 24, expected a power of two of at most 2 MiB"
    );
    refused!(
        Raw::new(0, 1).string("general.alignment").u32(4).u32(0),
        "key `general.alignment` is 0, expected a power of two of at most 2 MiB"
    );
}

#[test]
fn tensors_that_cannot_be() {
    refused!(
        Raw::new(1, 0).string("t").u32(5).bytes(&[0; 80]),
        "malformed gguf: dimension count of tensor `t` at offset 33: 5 dimensions, expected at most 4"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4, 0], 0, 0).data(32),
        "malformed gguf: dimensions of tensor `t` at offset 37: dimension 1 is zero"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[1 << 32, 1 << 32], 0, 0).data(32),
        "malformed gguf: dimensions of tensor `t` at offset 37: the element count overflows 64 bits"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[1 << 62], 0, 0).data(32),
        "malformed gguf: dimensions of tensor `t` at offset 37: the byte count overflows 64 bits"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4], 31, 0).data(32),
        "malformed gguf: type of tensor `t` at offset 45: unknown ggml type 31"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[48], 8, 0).data(51),
        "malformed gguf: dimensions of tensor `t` at offset 37: rows of 48 elements are not whole Q8_0 blocks of 32"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4], 0, 8).data(32),
        "malformed gguf: offset of tensor `t` at offset 49: 8 is not a multiple of the alignment 32"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4], 0, !31).data(32),
        "malformed gguf: offset of tensor `t` at offset 49: 18446744073709551584 overflows 64 bits"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4], 0, 0).data(15),
        "truncated gguf: data of tensor `t` at offset 64 needs 16 bytes, 15 are left"
    );
    refused!(
        Raw::new(1, 0).tensor("t", &[4], 0, 1 << 40).data(32),
        "truncated gguf: data of tensor `t` at offset 1099511627840 needs 16 bytes, 0 are left"
    );
    refused!(
        Raw::new(2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64),
        "malformed gguf: tensor `t` at offset 57: appears twice"
    );
    refused!(
        Raw::new(2, 0).tensor("t", &[9], 0, 0).tensor("u", &[4], 0, 32).data(64),
        "malformed gguf: offset of tensor `u` at offset 82: its data overlaps that of tensor `t`"
    );
}

#[test]
fn an_alignment_that_pushes_the_data_out_of_the_file_or_beyond_any_page() {
    let file = |alignment: u64| {
        Raw::new(1, 1).string("general.alignment").u32(10).u64(alignment).tensor("t", &[4], 0, 0).data(64)
    };
    assert!(Gguf::from_bytes(file(32).0).is_ok());
    refused!(file(1 << 21), "truncated gguf: data of tensor `t` at offset 2097152 needs 16 bytes, 0 are left");
    // A copy of a file without tensors would be as long: found by fuzzing.
    refused!(file(1 << 30), "key `general.alignment` is 1073741824, expected a power of two of at most 2 MiB");
    refused!(file(1 << 63), "key `general.alignment` is 9223372036854775808, expected a power of two of at most 2 MiB");
}

/// A small file with a bit of everything.
fn valid() -> Vec<u8> {
    let mut writer = Writer::new("phi3");
    writer
        .key("tokens", vec!["a".to_owned(), "é".to_owned(), String::new()])
        .key("scores", vec![0.5f32, -1.0])
        .key("flags", vec![true, false])
        .key("phi3.block_count", 2u32)
        .tensor("token_embd.weight", &[2, 32], BlockType::Q8_0, vec![7u8; 68])
        .tensor_f32("output_norm.weight", &[3], &[1.0, 2.0, 3.0]);
    writer.to_bytes().unwrap()
}

/// Reads all that can be read.
fn exercise(bytes: Vec<u8>) {
    if let Ok(gguf) = Gguf::from_bytes(bytes) {
        for info in gguf.tensors() {
            let tensor = gguf.tensor(&info.name).unwrap();
            assert_eq!(tensor.dequantize().len(), tensor.rows() * tensor.row_len());
            assert!(tensor.row_bytes(tensor.rows()).is_err());
        }
        for (key, _) in gguf.metadata().iter() {
            let _ = gguf.metadata().u32(key);
        }
    }
}

#[test]
fn every_truncation_and_every_single_byte_change_is_survived() {
    let bytes = valid();
    let last_data = bytes.len() - 20; // 12 bytes of data end before 20 of padding
    for len in 0..bytes.len() {
        let cut = Gguf::from_bytes(bytes[..len].to_vec());
        assert_eq!(cut.is_ok(), len >= last_data, "{len} of {} bytes", bytes.len());
    }
    for at in 0..bytes.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff, bytes[at] ^ 0x10, bytes[at].wrapping_add(1)] {
            let mut changed = bytes.clone();
            changed[at] = value;
            exercise(changed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn many_changed_bytes_are_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24), len in any::<prop::sample::Index>()) {
        let mut bytes = valid();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let len = len.index(bytes.len() * 2).min(bytes.len());
        bytes.truncate(len);
        exercise(bytes);
    }

    #[test]
    fn noise_behind_a_true_header_is_survived(noise in prop::collection::vec(prop_oneof![3 => 0u8..14, 1 => any::<u8>()], 0..400), tensors in 0u64..4, keys in 0u64..6) {
        exercise(Raw::new(tensors, keys).bytes(&noise).0);
    }
}
