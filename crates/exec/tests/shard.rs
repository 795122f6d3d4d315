//! A stateful shard, run in blocks of any size, on any number of threads, gives every token the same bits.

mod common;

use anemone_exec::{Model, Numerics, PortableModel};
use common::{Dims, inputs, model, program, shard};
use proptest::prelude::*;

const DIMS: Dims = Dims { layers: 2, width: 48, heads: 4, kv_heads: 2, head_dim: 16, ffn: 80, context: 24 };

/// The hidden state of every position, computed in blocks of the sizes given.
fn run(model: &PortableModel, dims: Dims, blocks: &[usize]) -> Vec<Vec<f32>> {
    let mut state = model.new_state().unwrap();
    let mut hidden = Vec::new();
    for &tokens in blocks {
        let name = format!("t{tokens}");
        let function = model.functions().iter().position(|f| f.name == name).unwrap();
        let given = inputs(model, dims, hidden.len(), tokens);
        let out = model.run(function, &given.iter().collect::<Vec<_>>(), &mut state).unwrap();
        assert_eq!(out[0].shape(), [1, dims.width, tokens, 1]);
        let values = out[0].to_f32();
        hidden.extend((0..tokens).map(|t| (0..dims.width).map(|c| values[c * tokens + t]).collect()));
    }
    hidden
}

fn bits(hidden: &[Vec<f32>]) -> Vec<Vec<u32>> {
    hidden.iter().map(|h| h.iter().map(|v| v.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_and_threads_change_nothing(
        blocks in prop::collection::vec(1usize..=6, 1..6),
        threads in 1usize..4,
        ane in any::<bool>(),
        heads in prop::sample::select(vec![(2usize, 1usize), (4, 2), (3, 3)]),
        head_dim in prop::sample::select(vec![6usize, 16]),
        width in prop::sample::select(vec![20usize, 48, 601]),
    ) {
        let (heads, kv_heads) = heads;
        let total: usize = blocks.iter().sum();
        let dims = Dims { heads, kv_heads, head_dim, width, context: total + 3, ..DIMS };
        let program = program((1..=6).map(|t| shard(&format!("t{t}"), dims, t)).collect());
        let numerics = if ane { Numerics::Ane } else { Numerics::Exact };
        let alone = run(&model(&program, numerics, 1), dims, &vec![1; total]);
        let split = run(&model(&program, numerics, threads), dims, &blocks);
        prop_assert!(alone.iter().flatten().all(|v| v.is_finite()));
        prop_assert_eq!(bits(&alone), bits(&split));
    }
}

#[test]
fn threads_change_nothing_where_they_are_used() {
    // Wide enough that kernels do split.
    let dims = Dims { layers: 1, width: 512, heads: 8, kv_heads: 2, head_dim: 64, ffn: 700, context: 16 };
    let program = program([1, 4].map(|t| shard(&format!("t{t}"), dims, t)).into());
    let one = run(&model(&program, Numerics::Exact, 1), dims, &[4, 4, 1, 1]);
    let three = run(&model(&program, Numerics::Exact, 3), dims, &[1, 1, 4, 4]);
    assert_eq!(bits(&one), bits(&three));
}

#[test]
fn what_was_said_before_matters_and_a_new_state_forgets_it() {
    let program = program(vec![shard("t1", DIMS, 1), shard("t2", DIMS, 2)]);
    let model = model(&program, Numerics::Exact, 1);
    let three = run(&model, DIMS, &[1, 1, 1]);
    assert_ne!(three[1], three[2]);
    // The second token without the first: another context, another result.
    let mut state = model.new_state().unwrap();
    let given = inputs(&model, DIMS, 1, 1);
    let alone = model.run(0, &given.iter().collect::<Vec<_>>(), &mut state).unwrap()[0].to_f32();
    assert!(alone.iter().zip(&three[1]).any(|(a, b)| a != b));
    assert_eq!(run(&model, DIMS, &[1, 1, 1]), three);
}

#[test]
fn fp16_results_stay_near_the_exact_ones() {
    let program = program(vec![shard("t1", DIMS, 1)]);
    let exact = run(&model(&program, Numerics::Exact, 1), DIMS, &[1; 8]);
    let ane = run(&model(&program, Numerics::Ane, 1), DIMS, &[1; 8]);
    let worst = exact.iter().flatten().zip(ane.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 0.0, "fp16 rounding must show");
    assert!(worst < 0.05, "fp16 results are {worst} away from the exact ones");
}
