//! What users of the runtimes rely on: what every runtime promises, and of the portable one what it shares, refuses and tells.

mod common;
mod conformance;

use std::collections::BTreeMap;

use anemone_exec::{
    Data, Error, Fast, FastOptions, Model, Numerics, Options, Portable, PortableModel, Runtime, Tensor,
};
use anemone_mil::ir::{Dtype, Literal, TensorType};
use anemone_mil::{FunctionBuilder, Valid, validate};
use common::{model, program};
use conformance::{accumulator, f16, function};

fn floats(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::from_f32(shape, v.to_vec(), Dtype::F32)
}

fn exact(program: &Valid) -> PortableModel {
    model(program, Numerics::Exact, 1)
}

#[test]
fn the_portable_runtime_keeps_every_promise() {
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let runtime = Portable::new(numerics, Options { threads: 1, ..Options::default() });
        conformance::all(&|program| Box::new(runtime.prepare(program).unwrap_or_else(|e| panic!("{e}"))));
    }
}

#[test]
fn the_fast_runtime_keeps_every_promise() {
    let runtime = Fast::new(FastOptions { threads: 2, ..FastOptions::default() });
    conformance::all(&|program| Box::new(runtime.prepare(program).unwrap_or_else(|e| panic!("{e}"))));
}

#[test]
fn a_watched_call_tells_every_value_and_changes_none() {
    let model = exact(&program(vec![accumulator("main")]));
    let mut told = Vec::new();
    let x = floats(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let mut watch = |name: &str, value: &Tensor| told.push((name.to_owned(), value.to_f32()[3]));
    let watched = model.run_watched(0, &[&x], &mut model.new_state().unwrap(), &mut watch).unwrap();
    assert_eq!(watched, model.run(0, &[&x], &mut model.new_state().unwrap()).unwrap());
    let expected = [("before", 0.0), ("sum", 4.0), ("is", 4.0), ("was", 0.0)].map(|(n, v)| (n.to_owned(), v));
    assert_eq!(told, expected);
}

#[test]
fn a_watched_op_tells_each_result_under_its_own_name() {
    let model = exact(&program(vec![function("main", |b| {
        let x = b.input("x", f16(&[4])).unwrap();
        let params = [("x", x.into()), ("num_splits", Literal::i32(2).into()), ("axis", Literal::i32(0).into())];
        let halves = b.ops_multi("split", "halves", &params).unwrap();
        vec![("low", halves[0]), ("high", halves[1])]
    })]));
    let mut told = Vec::new();
    let mut watch = |name: &str, value: &Tensor| told.push((name.to_owned(), value.to_f32()));
    let x = floats(&[4], &[1.0, 2.0, 3.0, 4.0]);
    model.run_watched(0, &[&x], &mut model.new_state().unwrap(), &mut watch).unwrap();
    assert_eq!(told, [("low".to_owned(), vec![1.0, 2.0]), ("high".to_owned(), vec![3.0, 4.0])]);
}

#[test]
fn what_a_run_time_index_misses_is_an_error_that_names_the_op() {
    let model = exact(&program(vec![function("main", |b| {
        let i = b.input("i", TensorType::new(Dtype::I32, &[1])).unwrap();
        let table = b.constant("table", Literal::f16s(&[3], &[1.0, 2.0, 3.0]));
        let y = b.op("gather", "picked", &[("x", table.into()), ("indices", i.into())]).unwrap();
        vec![("y", y)]
    })]));
    let index = Tensor::new(&[1], Data::I32(vec![3]));
    let error = model.run(0, &[&index], &mut model.new_state().unwrap()).unwrap_err().to_string();
    assert!(error.contains("gather") && error.contains("index 3 is out of range for 3 elements"), "{error}");
}

#[test]
fn memory_beyond_the_limit_is_refused_at_load_or_when_asked_for() {
    let limited = |program: &Valid, memory_limit| {
        Portable::new(Numerics::Exact, Options { threads: 1, memory_limit, headroom: false }).prepare(program)
    };
    let wide = program(vec![function("main", |b| {
        let x = b.input("x", f16(&[1000, 1])).unwrap();
        let y = b.op("transpose", "y", &[("x", x.into()), ("perm", Literal::i32s(&[1, 0]).into())]).unwrap();
        let z = b.op("add", "outer", &[("x", x.into()), ("y", y.into())]).unwrap();
        vec![("z", z)]
    })]);
    assert!(limited(&wide, 5 << 20).is_ok());
    let error = limited(&wide, 1 << 20).err().unwrap().to_string();
    assert!(error.contains("exceed the limit of 1048576"), "{error}");

    let dynamic = program(vec![function("main", |b| {
        let shape = b.input("shape", TensorType::new(Dtype::I32, &[2])).unwrap();
        let y = b.op("fill", "y", &[("shape", shape.into()), ("value", Literal::f16(1.0).into())]).unwrap();
        let sum = b.op("reduce_sum", "sum", &[("x", y.into()), ("keep_dims", Literal::bool(true).into())]).unwrap();
        vec![("sum", sum)]
    })]);
    let model = limited(&dynamic, 1 << 20).unwrap();
    let run = |a, b| model.run(0, &[&Tensor::new(&[2], Data::I32(vec![a, b]))], &mut model.new_state().unwrap());
    assert_eq!(run(10, 20).unwrap()[0].to_f32(), [200.0]);
    for (a, b) in [(1 << 15, 1 << 15), (i32::MAX, i32::MAX), (-1, 2)] {
        let error = run(a, b).unwrap_err().to_string();
        assert!(error.contains("fill"), "{error}");
    }
}

#[test]
fn functions_that_share_a_weight_decompress_it_once() {
    let data = Literal::from_bytes(TensorType::new(Dtype::I8, &[64, 64, 1, 1]), vec![3u8; 64 * 64]);
    let projection = |name: &str, tokens: usize| {
        function(name, |b| {
            let x = b.input("x", f16(&[1, 64, tokens, 1])).unwrap();
            // Each function spells its own scales out, as packages do; these lie across the rows.
            let scale = Literal::f16s(&[1, 2, 1, 1], &[0.25, 0.75]);
            let params = [("data", data.clone().into()), ("scale", scale.into())];
            let weight = b.op("constexpr_blockwise_shift_scale", "weight", &params).unwrap();
            let y = b.op("conv", "y", &[("x", x.into()), ("weight", weight.into())]).unwrap();
            vec![("y", y)]
        })
    };
    let program = program(vec![projection("one", 1), projection("two", 2)]);
    // Decompressing takes 12 bytes an element for a while and 2 for good: enough for one, too little for two.
    let options = Options { threads: 1, memory_limit: 64 * 64 * 13, headroom: false };
    let model = Portable::new(Numerics::Exact, options).prepare(&program).unwrap_or_else(|e| panic!("{e}"));
    let mut state = model.new_state().unwrap();
    let y = model.run(1, &[&floats(&[1, 64, 2, 1], &[1.0; 128])], &mut state).unwrap();
    assert_eq!(y[0].to_f32(), [96.0; 128]);
}

/// A palette whose table is quantised itself: two functions share what both ops of the chain make of it, and a function whose chain
/// differs at its far end alone has a weight of its own.
#[test]
fn functions_that_share_a_chained_encoding_decompress_it_once() {
    let indices = Literal::from_bytes(TensorType::new(Dtype::U8, &[64, 64, 1, 1]), vec![3u8; 64 * 64]);
    let table = Literal::from_bytes(TensorType::new(Dtype::I8, &[1, 1, 1, 1, 256, 1]), (0..=255u8).collect::<Vec<_>>());
    let projection = |name: &str, tokens: usize, scale: f32| {
        function(name, |b| {
            let x = b.input("x", f16(&[1, 64, tokens, 1])).unwrap();
            let scale = Literal::f16s(&[1, 1, 1, 1, 1, 1], &[scale]);
            let params = [("data", table.clone().into()), ("scale", scale.into())];
            let lut = b.op("constexpr_blockwise_shift_scale", "lut", &params).unwrap();
            let params = [("indices", indices.clone().into()), ("lut", lut.into())];
            let weight = b.op("constexpr_lut_to_dense", "weight", &params).unwrap();
            let y = b.op("conv", "y", &[("x", x.into()), ("weight", weight.into())]).unwrap();
            vec![("y", y)]
        })
    };
    // Room for one decompression, as above.
    let limited = |program: &Valid| {
        let options = Options { threads: 1, memory_limit: 64 * 64 * 13, headroom: false };
        Portable::new(Numerics::Exact, options).prepare(program)
    };
    let run = |model: &PortableModel, function: usize, tokens: usize| {
        let x = floats(&[1, 64, tokens, 1], &vec![1.0; 64 * tokens]);
        model.run(function, &[&x], &mut model.new_state().unwrap()).unwrap()[0].to_f32()
    };
    let shared = program(vec![projection("one", 1, 0.5), projection("two", 2, 0.5)]);
    let model = limited(&shared).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((run(&model, 0, 1), run(&model, 1, 2)), (vec![96.0; 64], vec![96.0; 128]));

    let apart = program(vec![projection("one", 1, 0.5), projection("two", 2, 0.25)]);
    assert!(limited(&apart).is_err_and(|e| e.to_string().contains("memory limit")), "two weights were taken for one");
    let model = exact(&apart);
    assert_eq!((run(&model, 0, 1), run(&model, 1, 2)), (vec![96.0; 64], vec![48.0; 128]));
}

#[test]
fn a_state_too_large_is_refused_before_it_is_made() {
    let huge = function("main", |b| {
        let s = b.state("s", f16(&[1 << 20, 1 << 20])).unwrap();
        let x = b.op("read_state", "x", &[("input", s.into())]).unwrap();
        let begin = Literal::i32s(&[0, 0]);
        let y = b.op(
            "slice_by_size",
            "y",
            &[("x", x.into()), ("begin", begin.into()), ("size", Literal::i32s(&[1, 1]).into())],
        );
        vec![("y", y.unwrap())]
    });
    let options = Options { threads: 1, ..Options::default() };
    let result = Portable::new(Numerics::Exact, options).prepare(&program(vec![huge]));
    assert!(result.is_err_and(|e| e.to_string().contains("exceed the limit")));
}

#[test]
fn headroom_names_the_op_that_overflows_first() {
    let program = program(vec![function("main", |b| {
        let x = b.input("x", f16(&[1, 2])).unwrap();
        let double = b.op("mul", "double", &[("x", x.into()), ("y", Literal::f16(2.0).into())]).unwrap();
        let square = b.op("mul", "square", &[("x", double.into()), ("y", double.into())]).unwrap();
        let more = b.op("add", "more", &[("x", square.into()), ("y", square.into())]).unwrap();
        vec![("y", more)]
    })]);
    let load = |numerics, headroom| {
        Portable::new(numerics, Options { threads: 1, headroom, ..Options::default() }).prepare(&program).unwrap()
    };
    let model = load(Numerics::Ane, true);
    let run = |v: f32| {
        let x = Tensor::from_f32(&[1, 2], vec![v, -1.0], Dtype::F16);
        model.run(0, &[&x], &mut model.new_state().unwrap()).unwrap()[0].to_f32()
    };
    assert_eq!(run(50.0), [20000.0, 8.0]);
    assert_eq!(model.first_overflow(), None);
    assert_eq!(run(128.0), [f32::INFINITY, 8.0]);
    let seen: Vec<(String, f32)> = model.headroom().into_iter().map(|h| (h.value, h.largest)).collect();
    let expected = [("double", 256.0), ("square", 65536.0), ("y", 20000.0)];
    assert_eq!(seen, expected.map(|(name, v)| (name.to_owned(), v)));
    let first = model.first_overflow().unwrap();
    assert_eq!((first.op.as_str(), first.value.as_str(), first.largest), ("mul", "square", 65536.0));
    assert!(first.overflows() && first.factor() < 1.0);
    assert!(load(Numerics::Ane, false).headroom().is_empty());
}

#[test]
fn headroom_knows_the_cliffs_of_products_and_slices() {
    let program = program(vec![function("main", |b| {
        let x = b.input("x", f16(&[2, 2])).unwrap();
        let product = b.op("matmul", "product", &[("x", x.into()), ("y", x.into())]).unwrap();
        let slice = |b: &mut FunctionBuilder, name: &str, from: i32| {
            let (begin, end) = (Literal::i32s(&[0, from]), Literal::i32s(&[2, from + 1]));
            b.op("slice_by_index", name, &[("x", product.into()), ("begin", begin.into()), ("end", end.into())])
                .unwrap()
        };
        let (first, second) = (slice(b, "first", 0), slice(b, "second", 1));
        vec![("a", first), ("b", second)]
    })]);
    let options = Options { threads: 1, headroom: true, ..Options::default() };
    let model = Portable::new(Numerics::Exact, options).prepare(&program).unwrap();
    let limits: BTreeMap<String, f32> = model.headroom().into_iter().map(|h| (h.value, h.limit)).collect();
    let expected = [("product", 32752.0), ("a", 65504.0), ("b", 4094.0)];
    assert_eq!(limits, expected.map(|(name, v)| (name.to_owned(), v)).into());
}

#[test]
fn packages_are_loaded_and_refused_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mlpackage");
    let mut described = anemone_mil::program(vec![accumulator("main")], BTreeMap::new());
    described.metadata.insert("key".to_owned(), "value".to_owned());
    anemone_mil::write(&validate(described).unwrap(), &path).unwrap();
    let runtime = Portable::new(Numerics::Ane, Options { threads: 1, ..Options::default() });
    let model = runtime.load(&path).unwrap();
    assert_eq!((model.metadata("key"), model.metadata("other")), (Some("value"), None));
    assert_eq!(model.float(), Dtype::F16);
    assert_eq!(model.functions()[model.default_function()].name, "main");
    let missing = folder.path().join("b.mlpackage");
    match runtime.load(&missing) {
        Err(Error::Package { package, .. }) => assert_eq!(package, missing.display().to_string()),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
