//! A random valid program prints and reads back as itself, and runs the same with one thread and with two.
#![no_main]

use anemone_exec::{Model, Numerics, Options, Portable, Tensor};
use anemone_fuzz::tensor;
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
                let zeros = |port| tensor(port, 1, model.float(), usize::MAX, |_| 0.0).expect("a small input");
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
