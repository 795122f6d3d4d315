//! The fast runtime on whole shards: what the exact one means, and the same bits whatever computed them.

mod common;

use anemone_chat::engine::Logits;
use anemone_chat::{Engine, Session};
use anemone_exec::{Fast, FastOptions, Model, Numerics, Options, Portable, Runtime, fast};
use common::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

fn options(threads: usize) -> FastOptions {
    FastOptions { threads, ..FastOptions::default() }
}

/// Logits after every token, fed in blocks of the sizes given.
fn logits(engine: &Engine, ids: &[u32], blocks: &[usize]) -> Vec<f32> {
    let mut session: Session<'_> = engine.session().unwrap();
    let (mut all, mut rest) = (Vec::new(), ids);
    for &block in blocks {
        let (now, later) = rest.split_at(block.min(rest.len()));
        if !now.is_empty() {
            all.extend(session.feed(now, Logits::All).unwrap());
        }
        rest = later;
    }
    all.extend(session.feed(rest, Logits::All).unwrap());
    all
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_token_is_the_same_whatever_computed_it() {
    for (model, more) in [(MINIATURE, "--head-slices=2"), ("longrope/longrope-f16.gguf", "--context=256")] {
        for weights in ["fp16", "int8", "int8-channel"] {
            let bundle = Bundle::build(&fixture(model), &["--weights", weights, "--tokens", "1,5", more]);
            let exact = Portable::new(Numerics::Exact, Options::default());
            let exact = Engine::open(&bundle.path, &exact).unwrap();
            let one = Engine::open(&bundle.path, &Fast::new(options(1))).unwrap();
            let every = [1, 3].into_iter().flat_map(|threads| Fast::for_each_isa(&options(threads)));
            let every: Vec<(String, Engine)> = every
                .map(|(isa, runtime)| {
                    (format!("{isa} {}", runtime.describe()), Engine::open(&bundle.path, &runtime).unwrap())
                })
                .collect();
            let vocab = one.contract().vocab as u32;
            let config = ProptestConfig { cases: 4, failure_persistence: None, ..Default::default() };
            let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
            let input = (prop::collection::vec(0..vocab, 1..60), prop::collection::vec(1usize..20, 0..6));
            runner
                .run(&input, |(ids, blocks)| {
                    let alone = logits(&one, &ids, &vec![1; ids.len() - 1]);
                    for (name, engine) in &every {
                        prop_assert_eq!(bits(&logits(engine, &ids, &blocks)), bits(&alone), "{}", name);
                    }
                    let meant = logits(&exact, &ids, &blocks);
                    let square = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>();
                    let apart = square(&mut meant.iter().zip(&alone).map(|(a, b)| a - b));
                    let away = (apart / square(&mut meant.iter().copied())).sqrt();
                    // Tokens at random are like nothing the model knows, and it makes much of the last bits of 16.
                    let most = if weights == "fp16" { 1e-4 } else { 1e-2 };
                    prop_assert!(away < most, "{}: {} away from exact", weights, away);
                    Ok(())
                })
                .unwrap();
        }
    }
}

#[test]
fn every_rewrite_can_be_switched_off_and_nothing_changes_but_bits() {
    let bundle = Bundle::build(&fixture(MINIATURE), &["--weights", "int8-channel", "--tokens", "1,4"]);
    let ids: Vec<u32> = (0..11).map(|i| 100 + 37 * i).collect();
    let whole = Fast::new(options(2));
    let meant = logits(&Engine::open(&bundle.path, &whole).unwrap(), &ids, &[4, 4]);
    for label in fast::LABELS {
        let off = FastOptions { off: [label.to_owned()].into(), ..options(2) };
        let runtime = Fast::new(off);
        let found = logits(&Engine::open(&bundle.path, &runtime).unwrap(), &ids, &[4, 4]);
        let worst = meant.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.01, "without {label}: {worst}");
        let package = bundle.path.join("layers/00-04.mlpackage");
        let (all, fewer) = (whole.load_fast(&package).unwrap(), runtime.load_fast(&package).unwrap());
        assert_ne!(all.listing(0), fewer.listing(0), "{label} changes the plan");
    }
}

#[test]
fn layers_of_every_topology_are_five_steps() {
    for topology in ["0-4", "0-1,1-2,2-3,3-4"] {
        let bundle = Bundle::build(&fixture(MINIATURE), &["--topology", topology, "--tokens", "1,8"]);
        for package in std::fs::read_dir(bundle.path.join("layers")).unwrap() {
            let model = Fast::new(options(1)).load_fast(&package.unwrap().path()).unwrap();
            for (i, function) in model.functions().iter().enumerate() {
                let layers = function.states.len() / 2;
                assert_eq!(model.listing(i).len(), 5 * layers, "{:#?}", model.listing(i));
            }
            assert!(model.most_tokens(1).is_some(), "prefill takes any number of tokens");
        }
    }
}
