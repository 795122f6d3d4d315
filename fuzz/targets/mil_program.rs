//! A random valid program prints and reads back as itself, and runs the same with one thread and with two.
#![no_main]

use anemone_exec::{Data, Dtype, Model, Numerics, Options, Portable, Tensor};
use anemone_mil::testing::random_program;
use anemone_mil::text::{parse, to_text};
use anemone_mil::validate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|seed: u64| {
    let program = random_program(seed);
    let printed = to_text(&program);
    let again = parse(&printed).unwrap_or_else(|e| panic!("what was printed does not parse: {e}\n{printed}"));
    assert_eq!(to_text(&again), printed);
    let valid = validate(again).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let results = [1, 2].map(|threads| {
            let runtime = Portable::new(numerics, Options { threads, memory_limit: 64 << 20, ..Options::default() });
            let model = runtime.prepare(&valid).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            let mut state = model.new_state().expect("small states");
            let each = (0..model.functions().len()).map(|f| {
                let zeros = |port: &anemone_exec::Port| {
                    let shape: Vec<usize> = port.shape.iter().map(|d| d.unwrap_or(1)).collect();
                    let zeros = vec![0.0; shape.iter().product()];
                    match port.dtype {
                        Dtype::I32 => Tensor::new(&shape, Data::I32(vec![0; zeros.len()])),
                        Dtype::F32 => Tensor::new(&shape, Data::F32(zeros)),
                        _ => Tensor::from_f32(&shape, zeros, model.float()),
                    }
                };
                let inputs: Vec<Tensor> = model.functions()[f].inputs.iter().map(zeros).collect();
                // Zeros may be no index, and one may be no size: refusals are equal too.
                let outputs = model.run(f, &inputs.iter().collect::<Vec<_>>(), &mut state).map_err(|e| e.to_string());
                outputs.map(|o| {
                    o.iter().map(|t| t.to_f32().into_iter().map(f32::to_bits).collect::<Vec<_>>()).collect::<Vec<_>>()
                })
            });
            each.collect::<Vec<_>>()
        });
        assert_eq!(results[0], results[1], "{printed}");
    }
});
