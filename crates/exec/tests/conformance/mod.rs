//! What every runtime promises its users, whatever computes behind it. A runtime's tests say how it loads a program and ask
//! for [`all`]; numbers are such that fp16 holds them exactly.

use std::collections::BTreeMap;

use anemone_exec::{Data, Dtype, Error, Model, Rows, Tensor};
use anemone_mil::ir::{Dim, Flexibility, Function, Literal, TensorType, ValueId};
use anemone_mil::{FunctionBuilder, Valid, validate};

/// How the runtime under test loads a program.
pub type Load<'a> = &'a dyn Fn(&Valid) -> Box<dyn Model>;

/// Every promise.
pub fn all(load: Load<'_>) {
    two_reads_around_a_write_differ(load);
    functions_share_states_by_name(load);
    functions_with_other_states_share_what_they_have_in_common(load);
    a_slice_update_of_a_state_leaves_other_rows_alone(load);
    a_state_of_another_model_is_refused(load);
    inputs_are_checked_by_name_type_and_shape(load);
    flexible_shapes_are_those_of_the_description(load);
    a_call_that_fails_loses_its_state_and_no_other(load);
    results_are_not_changed_by_later_calls(load);
    rows_are_the_columns_of_the_result(load);
}

/// A valid program of these functions, the first the default.
pub fn program(functions: Vec<Function>) -> Valid {
    validate(anemone_mil::program(functions, BTreeMap::new())).unwrap_or_else(|report| panic!("{report}"))
}

/// A function, built.
pub fn function(name: &str, build: impl FnOnce(&mut FunctionBuilder) -> Vec<(&'static str, ValueId)>) -> Function {
    let mut b = FunctionBuilder::new(name, "CoreML8").unwrap();
    let outputs = build(&mut b);
    b.finish(&outputs).unwrap()
}

/// fp16 of that shape.
pub fn f16(shape: &[usize]) -> TensorType {
    TensorType::new(Dtype::F16, shape)
}

/// Adds its input `x[1, 4]` to the state `total` and gives what that held before (`was`) and after (`is`).
pub fn accumulator(name: &str) -> Function {
    function(name, |b| {
        let x = b.input("x", f16(&[1, 4])).unwrap();
        let s = b.state("total", f16(&[1, 4])).unwrap();
        let before = b.op("read_state", "before", &[("input", s.into())]).unwrap();
        let sum = b.op("add", "sum", &[("x", before.into()), ("y", x.into())]).unwrap();
        b.write_state("write", s, sum).unwrap();
        let after = b.op("read_state", "after", &[("input", s.into())]).unwrap();
        let kept = b.op("identity", "kept", &[("x", before.into())]).unwrap();
        vec![("was", kept), ("is", after)]
    })
}

fn row(model: &dyn Model, v: &[f32]) -> Tensor {
    Tensor::from_f32(&[1, v.len()], v.to_vec(), model.float())
}

fn two_reads_around_a_write_differ(load: Load<'_>) {
    let model = load(&program(vec![accumulator("main")]));
    let mut state = model.new_state().unwrap();
    for call in 0..3 {
        let out = model.run(0, &[&row(&*model, &[1.0, 2.0, 3.0, 4.0])], &mut state).unwrap();
        let times = |n: i32| [1.0, 2.0, 3.0, 4.0].map(|v| v * n as f32);
        assert_eq!(out[0].to_f32(), times(call));
        assert_eq!(out[1].to_f32(), times(call + 1));
    }
    let fresh = model.run(0, &[&row(&*model, &[0.0; 4])], &mut model.new_state().unwrap()).unwrap();
    assert_eq!(fresh[1].to_f32(), [0.0; 4]);
}

fn functions_share_states_by_name(load: Load<'_>) {
    let model = load(&program(vec![accumulator("a"), accumulator("b")]));
    assert_eq!(model.functions().iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let mut state = model.new_state().unwrap();
    let x = row(&*model, &[1.0; 4]);
    for (call, function) in [0, 1, 1, 0, 1].into_iter().enumerate() {
        assert_eq!(model.run(function, &[&x], &mut state).unwrap()[1].to_f32(), [call as f32 + 1.0; 4]);
    }
    // The other way round in a conversation of its own.
    let mut state = model.new_state().unwrap();
    model.run(1, &[&x], &mut state).unwrap();
    assert_eq!(model.run(0, &[&x], &mut state).unwrap()[1].to_f32(), [2.0; 4]);
}

fn functions_with_other_states_share_what_they_have_in_common(load: Load<'_>) {
    let both = function("both", |b| {
        let x = b.input("x", f16(&[1, 4])).unwrap();
        let mut outputs = vec![];
        for (name, out) in [("total", "first"), ("other", "second")] {
            let s = b.state(name, f16(&[1, 4])).unwrap();
            let old = b.op("read_state", &format!("old_{name}"), &[("input", s.into())]).unwrap();
            let sum = b.op("add", &format!("sum_{name}"), &[("x", old.into()), ("y", x.into())]).unwrap();
            b.write_state(&format!("write_{name}"), s, sum).unwrap();
            outputs.push((out, b.op("read_state", &format!("new_{name}"), &[("input", s.into())]).unwrap()));
        }
        outputs
    });
    let model = load(&program(vec![accumulator("one"), both]));
    let mut state = model.new_state().unwrap();
    let (one, x) = (model.functions().iter().position(|f| f.name == "one").unwrap(), row(&*model, &[1.0; 4]));
    let both = 1 - one;
    let mut last = |function: usize| -> Vec<f32> {
        let outputs = model.run(function, &[&x], &mut state).unwrap();
        outputs.iter().map(|o| o.to_f32()[0]).collect()
    };
    assert_eq!(last(one), [0.0, 1.0]);
    assert_eq!(last(both), [2.0, 1.0]);
    assert_eq!(last(one), [2.0, 3.0]);
    assert_eq!(last(both), [4.0, 2.0]);
}

fn a_slice_update_of_a_state_leaves_other_rows_alone(load: Load<'_>) {
    let program = program(vec![function("main", |b| {
        let x = b.input("x", f16(&[1, 2])).unwrap();
        let row = b.input("row", TensorType::new(Dtype::I32, &[2])).unwrap();
        let end = b.input("end", TensorType::new(Dtype::I32, &[2])).unwrap();
        let s = b.state("rows", f16(&[3, 2])).unwrap();
        let read = b.op("read_state", "read", &[("input", s.into())]).unwrap();
        let bounds = [("x", read.into()), ("update", x.into()), ("begin", row.into()), ("end", end.into())];
        let update = b.op("slice_update", "update", &bounds).unwrap();
        b.write_state("write", s, update).unwrap();
        let now = b.op("read_state", "now", &[("input", s.into())]).unwrap();
        vec![("all", now)]
    })]);
    let model = load(&program);
    let mut state = model.new_state().unwrap();
    let mut put = |at: i32, v: f32| {
        let index = |r: i32, c: i32| Tensor::new(&[2], Data::I32(vec![r, c]));
        let inputs = [&row(&*model, &[v, -v]), &index(at, 0), &index(at + 1, 2)];
        model.run(0, &inputs, &mut state).unwrap()[0].to_f32()
    };
    assert_eq!(put(1, 5.0), [0.0, 0.0, 5.0, -5.0, 0.0, 0.0]);
    assert_eq!(put(0, 7.0), [7.0, -7.0, 5.0, -5.0, 0.0, 0.0]);
}

/// Of a projection, of what is done element by element, and of an order of elements that is not the tokens'.
fn rows_are_the_columns_of_the_result(load: Load<'_>) {
    const TOKENS: usize = 3;
    for (name, width) in [("projection", 24), ("sum", 8), ("turn", 8)] {
        for tokens in [1, TOKENS] {
            let model = load(&program(vec![function("main", |b| {
                let x = b.input("x", f16(&[1, 8, tokens, 1])).unwrap();
                let weight: Vec<f32> = (0..24 * 8).map(|i| (i % 5) as f32 - 2.0).collect();
                let weight = Literal::f16s(&[24, 8, 1, 1], &weight);
                let all = b.op("conv", "all", &[("x", x.into()), ("weight", weight.into())]).unwrap();
                let y = match name {
                    "projection" => all,
                    "sum" => b.op("add", "y", &[("x", x.into()), ("y", x.into())]).unwrap(),
                    _ => {
                        let shape = Literal::i32s(&[1, 8, tokens as i32, 1]);
                        let flat = Literal::i32s(&[1, tokens as i32, 8, 1]);
                        let x = b.op("reshape", "flat", &[("x", x.into()), ("shape", flat.into())]).unwrap();
                        let x = b.op("add", "twice", &[("x", x.into()), ("y", x.into())]).unwrap();
                        b.op("reshape", "y", &[("x", x.into()), ("shape", shape.into())]).unwrap()
                    }
                };
                vec![(if name == "projection" { "all" } else { "y" }, y)]
            })]));
            let x: Vec<f32> = (0..8 * tokens).map(|i| (i % 7) as f32 - 3.0).collect();
            let x = Tensor::from_f32(&[1, 8, tokens, 1], x, model.float());
            let columns = model.run(0, &[&x], &mut model.new_state().unwrap()).unwrap()[0].to_f32();
            // In the middle of longer rows, behind another one, and of the first tokens alone.
            for wanted in 1..=tokens {
                let mut rows = Rows::default();
                rows.begin(1 + wanted, width + 5);
                for row in 0..=wanted {
                    rows.put(row, 0, &[9.0; 2]);
                    rows.put(row, 2 + width, &[8.0; 3]);
                }
                rows.put(0, 2, &vec![9.0; width]);
                model.run_rows(0, &[&x], &mut model.new_state().unwrap(), &mut rows, 1, 2).unwrap();
                for row in 0..=wanted {
                    let of = |c: usize| if row == 0 { 9.0 } else { columns[c * tokens + row - 1] };
                    let expected: Vec<f32> = [9.0; 2].into_iter().chain((0..width).map(of)).chain([8.0; 3]).collect();
                    let highest = expected.iter().copied().reduce(f32::max);
                    let found = rows.row(row);
                    assert_eq!(found.values(), expected, "{name} of {tokens}, row {row} of {wanted}");
                    assert_eq!(found.top(), highest, "{name} of {tokens}, row {row} of {wanted}");
                }
            }
        }
    }
}

fn a_state_of_another_model_is_refused(load: Load<'_>) {
    let (a, b) = (load(&program(vec![accumulator("main")])), load(&program(vec![accumulator("main")])));
    let result = a.run(0, &[&row(&*a, &[1.0; 4])], &mut b.new_state().unwrap());
    assert!(matches!(result, Err(Error::ForeignState)));
}

fn inputs_are_checked_by_name_type_and_shape(load: Load<'_>) {
    let model = load(&program(vec![accumulator("main")]));
    let mut state = model.new_state().unwrap();
    let mut fails = |inputs: &[&Tensor]| model.run(0, inputs, &mut state).unwrap_err().to_string();
    assert_eq!(fails(&[]), "main: input `x`: expected 1 inputs, found 0");
    let (float, other) = match model.float() {
        Dtype::F16 => (Dtype::F16, Dtype::F32),
        _ => (Dtype::F32, Dtype::F16),
    };
    let wrong = Tensor::from_f32(&[1, 4], vec![0.0; 4], other);
    assert_eq!(fails(&[&wrong]), format!("main: input `x`: expected {float}, found {other}"));
    let flat = Tensor::from_f32(&[4], vec![0.0; 4], float);
    assert_eq!(fails(&[&flat]), "main: input `x`: expected shape [1, 4], found shape [4]");
    // What was refused at the door has done nothing to the state.
    assert!(model.run(0, &[&row(&*model, &[1.0; 4])], &mut state).is_ok());
}

/// `relu(x)` joined with itself and 1 added, for any `x` the description allows.
fn flexible(default: &[usize], flexibility: Flexibility) -> Valid {
    program(vec![function("main", |b| {
        let ty = TensorType { dtype: Dtype::F16, shape: vec![Dim::Fixed(1), Dim::Unknown] };
        let x = b.flexible_input("x", ty, default, flexibility).unwrap();
        let relu = b.op("relu", "relu", &[("x", x.into())]).unwrap();
        let axis = Literal::i32(1);
        let joined = b.op("concat", "joined", &[("values", vec![relu, relu].into()), ("axis", axis.into())]).unwrap();
        // A shape that is only known from a value.
        let shape = b.op("shape", "shape", &[("x", joined.into())]).unwrap();
        let ones = b.op("fill", "ones", &[("shape", shape.into()), ("value", Literal::f16(1.0).into())]).unwrap();
        let y = b.op("add", "y", &[("x", joined.into()), ("y", ones.into())]).unwrap();
        vec![("y", y)]
    })])
}

fn flexible_shapes_are_those_of_the_description(load: Load<'_>) {
    let ranged = load(&flexible(&[1, 2], Flexibility::Range(vec![(1, Some(1)), (1, Some(4))])));
    let enumerated = load(&flexible(&[1, 2], Flexibility::Enumerated(vec![vec![1, 2], vec![1, 5]])));
    for (model, n, accepted) in
        [(&ranged, 1, true), (&ranged, 4, true), (&ranged, 5, false), (&enumerated, 5, true), (&enumerated, 4, false)]
    {
        let x: Vec<f32> = (0..n).map(|i| i as f32 - 1.0).collect();
        let result = model.run(0, &[&row(&**model, &x)], &mut model.new_state().unwrap());
        match (result, accepted) {
            (Ok(out), true) => {
                let once: Vec<f32> = x.iter().map(|v| v.max(0.0) + 1.0).collect();
                assert_eq!((out[0].shape(), out[0].to_f32()), (&[1, 2 * n][..], [once.clone(), once].concat()));
            }
            (Err(Error::Input { input, .. }), false) => assert_eq!(input, "x"),
            (other, _) => panic!("{n}: {other:?}"),
        }
    }
}

fn a_call_that_fails_loses_its_state_and_no_other(load: Load<'_>) {
    let model = load(&program(vec![function("main", |b| {
        let i = b.input("i", TensorType::new(Dtype::I32, &[1])).unwrap();
        let s = b.state("s", f16(&[1])).unwrap();
        let old = b.op("read_state", "old", &[("input", s.into())]).unwrap();
        let table = b.constant("table", Literal::f16s(&[3], &[1.0, 2.0, 3.0]));
        let picked = b.op("gather", "picked", &[("x", table.into()), ("indices", i.into())]).unwrap();
        let new = b.op("add", "new", &[("x", old.into()), ("y", picked.into())]).unwrap();
        b.write_state("write", s, new).unwrap();
        let now = b.op("read_state", "now", &[("input", s.into())]).unwrap();
        vec![("y", now)]
    })]));
    let (mut state, mut other) = (model.new_state().unwrap(), model.new_state().unwrap());
    let call =
        |i: i32, state: &mut _| model.run(0, &[&Tensor::new(&[1], Data::I32(vec![i]))], state).map(|o| o[0].to_f32());
    assert_eq!(call(2, &mut state).unwrap(), [3.0]);
    assert_eq!(call(1, &mut other).unwrap(), [2.0]);
    let error = call(9, &mut state).unwrap_err().to_string();
    assert!(error.contains("gather"), "{error}");
    let error = call(0, &mut state).unwrap_err().to_string();
    assert!(error.contains("the state was lost"), "{error}");
    assert_eq!(call(0, &mut other).unwrap(), [3.0], "another conversation goes on");
    assert_eq!(call(0, &mut model.new_state().unwrap()).unwrap(), [1.0], "a new one starts from zero");
}

fn results_are_not_changed_by_later_calls(load: Load<'_>) {
    let model = load(&program(vec![accumulator("main")]));
    let mut state = model.new_state().unwrap();
    let first = model.run(0, &[&row(&*model, &[1.0; 4])], &mut state).unwrap();
    let kept = first.clone();
    model.run(0, &[&row(&*model, &[5.0; 4])], &mut state).unwrap();
    assert_eq!(first, kept);
}
