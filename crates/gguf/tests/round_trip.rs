//! What the writer writes, the reader reads.

use std::path::PathBuf;

use anemone_gguf::writer::Writer;
use anemone_gguf::{Array, BlockType, Error, Gguf, Value};
use proptest::prelude::*;

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), 0..9).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..9).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..9).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..9).prop_map(Array::I32),
        prop::collection::vec(-1e9f32..1e9, 0..9).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        prop::collection::vec(".{0,6}", 0..9).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), 0..9).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..9).prop_map(Array::I64),
        prop::collection::vec(-1e99f64..1e99, 0..9).prop_map(Array::F64),
    ];
    flat.prop_recursive(3, 24, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        (-1e9f32..1e9).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::String),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        (-1e99f64..1e99).prop_map(Value::F64),
        array().prop_map(Value::Array),
    ]
}

/// A type, a shape outermost first whose rows are whole blocks, and its bytes.
fn tensor() -> impl Strategy<Value = (BlockType, Vec<usize>, Vec<u8>)> {
    (prop::sample::select(BlockType::ALL), prop::collection::vec(1usize..4, 0..=4)).prop_flat_map(|(ty, mut shape)| {
        match shape.last_mut() {
            Some(last) => *last *= ty.block_len(),
            None if ty.block_len() > 1 => shape.push(ty.block_len()),
            None => {}
        }
        let bytes = ty.bytes_of(shape.iter().product()).unwrap();
        (Just(ty), Just(shape), prop::collection::vec(any::<u8>(), bytes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn everything_comes_back(
        keys in prop::collection::vec(("[a-z.]{1,12}", value()), 0..8),
        tensors in prop::collection::vec(tensor(), 0..5),
        alignment in 0u32..8,
    ) {
        let mut writer = Writer::new("llama");
        for (key, value) in &keys {
            writer.key(key, value.clone());
        }
        writer.key("general.alignment", 1u32 << alignment);
        for (i, (ty, shape, bytes)) in tensors.iter().enumerate() {
            writer.tensor(&format!("t{i}"), shape, *ty, bytes.as_slice());
        }
        let file = writer.to_bytes().unwrap();
        prop_assert_eq!(&file, &writer.to_bytes().unwrap(), "two writes differ");

        let gguf = Gguf::from_bytes(file.clone()).unwrap();
        prop_assert_eq!((gguf.version(), gguf.alignment(), gguf.len()), (3, 1 << alignment, file.len() as u64));
        let last: std::collections::BTreeMap<_, _> = keys.iter().map(|(k, v)| (k.as_str(), v)).collect();
        for (key, value) in last {
            prop_assert_eq!(gguf.metadata().get(key), Some(value));
        }
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (i, (ty, shape, bytes)) in tensors.iter().enumerate() {
            let tensor = gguf.tensor(&format!("t{i}")).unwrap();
            prop_assert_eq!((tensor.ty(), tensor.shape(), tensor.bytes()), (*ty, shape.as_slice(), bytes.as_slice()));
            let whole = tensor.dequantize();
            let mut row = vec![0.0; tensor.row_len()];
            for (r, expected) in whole.chunks(tensor.row_len()).enumerate() {
                tensor.dequantize_row(r, &mut row).unwrap();
                prop_assert!(row.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
        prop_assert_eq!(Writer::copy_of(&gguf).to_bytes().unwrap(), file, "a copy differs");
    }
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let message = |build: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new("llama");
        build(&mut writer);
        let error = writer.to_bytes().unwrap_err();
        assert!(matches!(error, Error::Unwritable { .. }));
        error.to_string()
    };
    let short = message(&|w| {
        w.tensor("t", &[2, 32], BlockType::Q8_0, vec![0u8; 67]);
    });
    assert_eq!(short, "cannot write tensor `t`: its data is 67 bytes, its shape and type ask for 68");
    let broken = message(&|w| {
        w.tensor("t", &[33], BlockType::Q8_0, vec![0u8; 34]);
    });
    assert_eq!(broken, "cannot write tensor `t`: rows of 33 are not whole Q8_0 blocks");
    let twice = message(&|w| {
        w.tensor_f32("t", &[1], &[0.0]).tensor_f32("t", &[1], &[0.0]);
    });
    assert_eq!(twice, "cannot write the tensors: two have the same name");
    assert!(
        message(&|w| {
            w.tensor_f32("t", &[0], &[]);
        })
        .contains("size of zero")
    );
    assert!(
        message(&|w| {
            w.tensor_f32("t", &[1; 5], &[0.0]);
        })
        .contains("at most 4")
    );
    assert!(
        message(&|w| {
            w.key("general.alignment", 12u32);
        })
        .contains("is 12, expected a power of two")
    );
}

/// A directory that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("anemone-gguf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_mapped_file_equals_one_in_memory() {
    let scratch = Scratch::new("mapped");
    let path = scratch.0.join("m.gguf");
    let mut writer = Writer::new("llama");
    // Streamed in pieces.
    writer.tensor_with("t", &[4, 64], BlockType::F32, |out| (0..64).try_for_each(|i| out.write_all(&[i; 16])));
    writer.write_to(&path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.bytes(), writer.to_bytes().unwrap());
    assert_eq!(gguf.tensor("t").unwrap().row_bytes(1).unwrap()[..17], [[16; 16].as_slice(), &[17]].concat());
    assert_eq!(gguf.tensor("u").unwrap_err().to_string(), "the gguf has no tensor `u`");

    std::fs::write(&path, []).unwrap();
    assert!(matches!(Gguf::open(&path), Err(Error::Empty)));
    assert!(matches!(Gguf::open(scratch.0.join("absent.gguf")), Err(Error::Io { .. })));
}

/// File `no` (from 0) of `count`, holding one tensor.
fn part(no: usize, count: usize, total: usize, tensor: &str) -> Writer<'static> {
    let mut writer = if no == 0 { Writer::new("llama") } else { Writer::default() };
    writer.key("split.no", no as u16).key("split.count", count as u16).key("split.tensors.count", total as i32);
    writer.tensor_f32(tensor, &[2], &[no as f32, 1.0]);
    writer
}

#[test]
fn a_split_model_is_one_model() {
    let scratch = Scratch::new("split");
    let path = |no: usize| scratch.0.join(format!("m-{:05}-of-00003.gguf", no + 1));
    for (no, name) in ["a", "b", "c"].into_iter().enumerate() {
        part(no, 3, 3, name).write_to(path(no)).unwrap();
    }
    let gguf = Gguf::open(path(0)).unwrap();
    assert_eq!(
        gguf.tensors().iter().map(|t| (t.name.as_str(), t.part)).collect::<Vec<_>>(),
        [("a", 0), ("b", 1), ("c", 2)]
    );
    assert_eq!(gguf.tensor("c").unwrap().dequantize(), [2.0, 1.0]);
    assert_eq!(gguf.len(), gguf.parts().map(|p| p.len() as u64).sum::<u64>());
    let joined = Gguf::from_bytes(Writer::copy_of(&gguf).to_bytes().unwrap()).unwrap();
    assert_eq!(joined.tensor("b").unwrap().dequantize(), [1.0, 1.0]);

    let error = |no| Gguf::open(path(no)).unwrap_err().to_string();
    assert_eq!(error(1), "split gguf: this is file 2 of 3; open the first, whose name ends in `-00001-of-00003.gguf`");
    let bytes = std::fs::read(path(0)).unwrap();
    assert_eq!(
        Gguf::from_bytes(bytes).unwrap_err().to_string(),
        "split gguf: this is file 1 of 3; open it by its path"
    );

    part(1, 3, 3, "c").write_to(path(2)).unwrap();
    assert!(error(0).ends_with("split gguf: split.no 1 of 3, expected 2 of 3"), "{}", error(0));
    part(2, 3, 3, "a").write_to(path(2)).unwrap();
    assert!(error(0).ends_with("split gguf: tensor `a` is in an earlier file too"), "{}", error(0));
    part(2, 3, 3, "c").tensor_f32("d", &[1], &[0.0]).write_to(path(2)).unwrap();
    assert_eq!(error(0), "split gguf: the files hold 4 tensors, split.tensors.count says 3");
    std::fs::remove_file(path(2)).unwrap();
    assert!(matches!(Gguf::open(path(0)), Err(Error::Io { .. })));

    let renamed = scratch.0.join("model.gguf");
    std::fs::rename(path(0), &renamed).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("has to end in `-00001-of-00003.gguf`"));
}
