//! A package of anyone's is refused with an error, or it runs: within the memory it is allowed, with every output of the shape that
//! was promised, and the same with one thread and with two.
#![no_main]

use anemone_exec::{Dtype, Model, Numerics, Options, Port, Portable, Runtime, Tensor};
use anemone_fuzz::{package, tensor};
use libfuzzer_sys::fuzz_target;

/// Bytes of constants, states and values: small, so that no product of sizes within it takes long.
const MEMORY: usize = 256 << 10;
/// Elements of an input that are made up at most.
const ELEMENTS: usize = 1 << 15;

/// Small numbers of both signs, some of them an index and some none; `free` for a dimension known at run time only.
fn made_up(port: &Port, free: usize, float: Dtype) -> Option<Tensor> {
    tensor(port, free, float, ELEMENTS, |i| (i % 5) as f32 - 1.0)
}

/// What each function gives, called twice on one state; errors as text.
fn outcome(model: &dyn Model, free: usize) -> Vec<Result<Vec<Vec<u32>>, String>> {
    let Ok(mut state) = model.new_state() else { return Vec::new() };
    let mut outcome = Vec::new();
    for (f, function) in model.functions().iter().enumerate().flat_map(|f| [f, f]) {
        let inputs: Option<Vec<Tensor>> = function.inputs.iter().map(|p| made_up(p, free, model.float())).collect();
        let Some(inputs) = inputs else { continue };
        let result = model.run(f, &inputs.iter().collect::<Vec<_>>(), &mut state).map_err(|e| e.to_string());
        let result = result.map(|outputs| {
            assert_eq!(outputs.len(), function.outputs.len());
            for (output, port) in outputs.iter().zip(&function.outputs) {
                let kept = output.shape().iter().zip(&port.shape).all(|(d, p)| p.is_none_or(|p| p == *d));
                assert!(kept && output.shape().len() == port.shape.len(), "{:?} is no {port:?}", output.shape());
            }
            outputs.iter().map(|t| t.to_f32().into_iter().map(f32::to_bits).collect()).collect()
        });
        let failed = result.is_err();
        outcome.push(result);
        if failed {
            break; // the state is unspecified
        }
    }
    outcome
}

fuzz_target!(|data: &[u8]| {
    let package = package(data);
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let [one, two] = [1, 2].map(|threads| {
            let options = Options { threads, memory_limit: MEMORY, ..Options::default() };
            let model = Portable::new(numerics, options).load(&package).map_err(|e| e.to_string())?;
            Ok::<_, String>([1, 3].map(|free| outcome(model.as_ref(), free)))
        });
        assert_eq!(one, two);
    }
});
