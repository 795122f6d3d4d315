//! The fast runtime on programs that mean it no good, or less than it hopes for.

mod common;

use anemone_exec::{Error, Fast, FastOptions, Model, Numerics, Tensor};
use anemone_mil::FunctionBuilder;
use anemone_mil::ir::{Dtype, Literal, TensorType};
use common::{model, program};

fn fast(memory_limit: usize) -> Fast {
    Fast::new(FastOptions { threads: 2, memory_limit, ..FastOptions::default() })
}

fn f16(shape: &[usize]) -> TensorType {
    TensorType::new(Dtype::F16, shape)
}

/// A projection of `[1, 32, tokens, 1]` behind as many reshapes that change nothing for long.
fn renamed(tokens: usize, names: usize) -> anemone_mil::Valid {
    let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
    let mut x = b.input("x", f16(&[1, 32, tokens, 1])).unwrap();
    for i in 0..names {
        let shape = if i % 2 == 0 { [1, 4, 8, tokens as i32] } else { [1, 32, tokens as i32, 1] };
        let shape = Literal::i32s(&shape);
        x = b.op("reshape", &format!("name_{i}"), &[("x", x.into()), ("shape", shape.into())]).unwrap();
    }
    let weight =
        Literal::f16s(&[48, 32, 1, 1], &(0..48 * 32).map(|i| (i % 13) as f32 / 8.0 - 0.75).collect::<Vec<_>>());
    let y = b.op("conv", "y", &[("x", x.into()), ("weight", weight.into())]).unwrap();
    program(vec![b.finish(&[("y", y)]).unwrap()])
}

#[test]
fn names_of_names_cost_nothing_but_are_not_followed_for_ever() {
    for (tokens, names) in [(1, 10), (3, 30), (3, 20_000)] {
        let program = renamed(tokens, names);
        let x: Vec<f32> = (0..32 * tokens).map(|i| (i as f32).sin()).collect();
        let x = Tensor::from_f32(&[1, 32, tokens, 1], x, Dtype::F32);
        let run = |model: &dyn Model| model.run(0, &[&x], &mut model.new_state().unwrap()).unwrap()[0].to_f32();
        let (found, meant) =
            (run(&fast(1 << 30).prepare(&program).unwrap()), run(&model(&program, Numerics::Exact, 1)));
        assert_eq!(found.len(), meant.len());
        let worst = found.iter().zip(&meant).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{names} names: {worst}");
    }
}

#[test]
fn what_takes_more_memory_than_it_may_is_refused_at_load() {
    let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
    let x = b.input("x", f16(&[1, 32, 1 << 22, 1])).unwrap();
    let weight = Literal::f16s(&[32, 32, 1, 1], &[0.5; 1024]);
    let y = b.op("conv", "y", &[("x", x.into()), ("weight", weight.into())]).unwrap();
    let program = program(vec![b.finish(&[("y", y)]).unwrap()]);
    match fast(1 << 20).prepare(&program) {
        Err(Error::Unsupported { reason, .. }) => assert!(reason.contains("limit"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(model) => panic!("{:?}", model.listing(0)),
    }
}
