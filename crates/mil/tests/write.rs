//! The writer: producers, sharing, placement, and what is left behind when something fails.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anemone_mil::ir::{Arg, Deferred, Dtype, Function, Literal, Payload, Producer, Sink, TensorType, ValueType};
use anemone_mil::{FunctionBuilder, WriteError, program, read, validate, write};
use common::{shard, weight_file};

/// Makes int8 data in slot 0 and an fp16 scale in slot 1, in pieces and out of order, and counts how often it is asked.
struct Quantiser {
    rows: usize,
    calls: AtomicUsize,
    /// How many bytes of the data to leave out.
    short: usize,
}

impl Producer for Quantiser {
    fn produce(&self, sink: &dyn Sink) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        for row in (0..self.rows).rev() {
            sink.write(1, row * 2, &half::f16::from_f32(row as f32).to_le_bytes())?;
            let short = if row == 0 { self.short } else { 0 };
            sink.write(0, row * 16, &vec![row as u8; 16 - short])?;
        }
        Ok(())
    }
}

fn deferred(producer: &Arc<Quantiser>, slot: usize, ty: TensorType) -> Literal {
    let producer: Arc<dyn Producer> = producer.clone();
    Literal { ty: ValueType::Tensor(ty), payload: Payload::Deferred(Deferred { producer, slot }) }
}

fn quantised(name: &str, producer: &Arc<Quantiser>) -> Function {
    let rows = producer.rows;
    let mut b = FunctionBuilder::new(name, "CoreML8").unwrap();
    let x = b.input("x", TensorType::new(Dtype::F16, &[1, 16])).unwrap();
    let data = deferred(producer, 0, TensorType::new(Dtype::I8, &[rows, 16]));
    let scale = deferred(producer, 1, TensorType::new(Dtype::F16, &[rows, 1]));
    let operands = [("data", data.into()), ("scale", scale.into())];
    let weight = b.op("constexpr_blockwise_shift_scale", "w", &operands).unwrap();
    let y = b.op("linear", "y", &[("x", x.into()), ("weight", weight.into())]).unwrap();
    b.finish(&[("y", y)]).unwrap()
}

fn producer(rows: usize, short: usize) -> Arc<Quantiser> {
    Arc::new(Quantiser { rows, calls: AtomicUsize::new(0), short })
}

/// The literals of the constexpr op of a function.
fn weight(f: &Function) -> (Literal, Literal) {
    let op = f.ops.iter().find(|op| op.kind == "constexpr_blockwise_shift_scale").unwrap();
    let literal = |name: &str| match op.inputs[name].as_slice() {
        [Arg::Literal(lit)] => lit.clone(),
        other => panic!("{other:?}"),
    };
    (literal("data"), literal("scale"))
}

#[test]
fn a_producer_runs_once_for_both_functions_and_their_blobs_are_one() {
    let p = producer(120, 0);
    let valid = validate(program(vec![quantised("main", &p), quantised("prefill", &p)], Default::default())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.mlpackage");
    let written = write(&valid, &path).unwrap();
    assert_eq!(p.calls.load(Ordering::Relaxed), 1);
    // Data, scale, and the zero bias that `linear` is always given.
    assert_eq!(written.blobs, 3);

    let back = read(&path).unwrap();
    let records: Vec<(u64, u64)> = back
        .functions
        .iter()
        .map(|f| match weight(f) {
            (Literal { payload: Payload::Blob(d), .. }, Literal { payload: Payload::Blob(s), .. }) => {
                (d.record, s.record)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(records[0], records[1]);
    let (data, scale) = weight(&back.functions[0]);
    assert_eq!(data.bytes().unwrap(), (0..120u8).flat_map(|r| [r; 16]).collect::<Vec<_>>());
    assert_eq!(scale.to_floats().unwrap(), (0..120).map(|r| r as f32).collect::<Vec<_>>());
}

#[test]
fn small_results_of_a_producer_are_part_of_the_model() {
    let p = producer(4, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.mlpackage");
    write(&validate(program(vec![quantised("main", &p)], Default::default())).unwrap(), &path).unwrap();
    let (data, scale) = weight(&read(&path).unwrap().functions[0]);
    assert!(matches!(data.payload, Payload::Blob(_)));
    assert!(matches!(scale.payload, Payload::Bytes(_)));
    assert_eq!(scale.to_floats().unwrap(), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn equal_content_is_stored_once_from_a_hundred_elements_on() {
    let constants = |n: usize| {
        let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
        let mut x = b.input("x", TensorType::new(Dtype::F16, &[n])).unwrap();
        for i in 0..3 {
            let c = Literal::f16s(&[n], &vec![1.5; n]);
            x = b.op("add", &format!("a{i}"), &[("x", x.into()), ("y", c.into())]).unwrap();
        }
        let f = b.finish(&[("y", x)]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        write(&validate(program(vec![f], Default::default())).unwrap(), &dir.path().join("p.mlpackage")).unwrap().blobs
    };
    assert_eq!(constants(100), 1);
    assert_eq!(constants(99), 3);
    assert_eq!(constants(9), 0);
}

#[test]
fn blobs_are_aligned_and_the_last_one_is_not_padded() {
    let dir = tempfile::tempdir().unwrap();
    let package = common::written(dir.path());
    let file = std::fs::read(weight_file(&package)).unwrap();
    let count = u32::from_le_bytes(file[..4].try_into().unwrap());
    let mut at = 64;
    for blob in 1..=count {
        let word = |k: usize| u64::from_le_bytes(file[k..k + 8].try_into().unwrap()) as usize;
        assert_eq!(file[at..at + 4], [0xef, 0xbe, 0xad, 0xde]);
        assert_eq!(word(at + 16), at + 64);
        let end = at + 64 + word(at + 8);
        at = end.next_multiple_of(64);
        if blob == count {
            assert_eq!(end, file.len());
        } else {
            assert!(file[end..at].iter().all(|&b| b == 0));
        }
    }
    assert!(count > 3);
}

#[test]
fn a_failed_write_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let entries = || std::fs::read_dir(dir.path()).unwrap().count();
    let short = validate(program(vec![quantised("main", &producer(40, 1))], Default::default())).unwrap();
    let e = write(&short, &dir.path().join("p.mlpackage")).unwrap_err();
    assert!(matches!(e, WriteError::Produce(_)) && e.to_string().contains("639 bytes of slot 0"), "{e}");
    assert_eq!(entries(), 0);

    struct TooMuch;
    impl Producer for TooMuch {
        fn produce(&self, sink: &dyn Sink) -> io::Result<()> {
            sink.write(0, 100, &[0; 1000])
        }
    }
    let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
    let x = b.input("x", TensorType::new(Dtype::F16, &[100])).unwrap();
    let ty = ValueType::Tensor(TensorType::new(Dtype::F16, &[100]));
    let c = Literal { ty, payload: Payload::Deferred(Deferred { producer: Arc::new(TooMuch), slot: 0 }) };
    let y = b.op("add", "y", &[("x", x.into()), ("y", c.into())]).unwrap();
    let valid = validate(program(vec![b.finish(&[("y", y)]).unwrap()], Default::default())).unwrap();
    let e = write(&valid, &dir.path().join("p.mlpackage")).unwrap_err();
    assert!(e.to_string().contains("1000 bytes at 100 of slot 0, which has 200"), "{e}");
    assert_eq!(entries(), 0);

    let valid = validate(program(vec![shard()], Default::default())).unwrap();
    let missing = dir.path().join("nowhere").join("p.mlpackage");
    assert!(matches!(write(&valid, &missing).unwrap_err(), WriteError::Io { .. }));
    assert_eq!(entries(), 0);
}

/// The default of a parameter that means nothing beside another argument is not written.
#[test]
fn topk_gives_values_alone_where_no_indices_are_asked_for() {
    let build = |opset: &str, indices: Option<bool>| {
        let mut b = FunctionBuilder::new("main", opset).unwrap();
        let x = b.input("x", TensorType::new(Dtype::F16, &[2, 3])).unwrap();
        let mut operands = vec![("x", x.into()), ("k", Literal::i32(2).into())];
        operands.extend(indices.map(|given| ("return_indices", Literal::bool(given).into())));
        let values = b.ops_multi("topk", "best", &operands).unwrap();
        let outputs: Vec<_> = ["y", "at"].into_iter().zip(values.iter().copied()).collect();
        let valid = validate(program(vec![b.finish(&outputs).unwrap()], Default::default())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.mlpackage");
        write(&valid, &path).unwrap();
        let op = read(&path).unwrap().functions[0].ops.iter().find(|op| op.kind == "topk").unwrap().clone();
        (op.outputs.len(), op.inputs.contains_key("output_indices_dtype"))
    };
    assert_eq!(build("CoreML8", Some(false)), (1, false));
    assert_eq!(build("CoreML8", Some(true)), (2, true));
    assert_eq!(build("CoreML8", None), (2, true));
    assert_eq!(build("CoreML6", Some(false)), (1, false));
}

#[test]
fn what_is_there_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let package = common::written(dir.path());
    let before = std::fs::read(common::model_file(&package)).unwrap();
    let valid = validate(program(vec![shard()], Default::default())).unwrap();
    assert!(matches!(write(&valid, &package).unwrap_err(), WriteError::Exists(_)));
    assert_eq!(std::fs::read(common::model_file(&package)).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_program_with_warnings_is_executed_but_not_written() {
    let text = "program 9 default main single { func main CoreML8 (%x: fp16[2]) {
        input x: fp16 [2] output y: fp16 [2]
        %y: fp16[2] = add(x=%x, y=fp16[](1.0)) {name=\"y\"}
        return %y } }";
    let (valid, warnings) = anemone_mil::validate_foreign(anemone_mil::text::parse(text).unwrap()).unwrap();
    assert_eq!(warnings.len(), 1);
    let dir = tempfile::tempdir().unwrap();
    let e = write(&valid, &dir.path().join("p.mlpackage")).unwrap_err();
    assert!(matches!(e, WriteError::NotStrict(_)) && e.to_string().contains("inline-literal"), "{e}");
}
