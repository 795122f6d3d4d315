//! The catalogue of defects: each is put into a right bundle, one at a time, and has to be caught by the gate that the catalogue
//! names, in words that name the place. `docs/defects.md` is the table that comes of it; run with `ANEMONE_UPDATE=1` to write it.
//!
//! Defects go in through public data: manifests, packages, weight files, GGUFs, what a runtime is given and gives. Nothing that
//! ships knows of them.

mod case;
mod catalogue;
mod meddler;

use std::iter;
use std::ops::Range;
use std::path::Path;
use std::thread;

use anemone_chat::engine::{Engine, Shard};
use anemone_exec::{Numerics, Options, Portable, Runtime};
use anemone_gate::bisect::locate;
use anemone_gate::own::{self, Own};
use anemone_gate::range_golden::Positions;
use anemone_gate::thresholds::Thresholds;
use anemone_gate::{
    Run, Subject, Verdict, compile, contract, cut, numeric, parity, range_golden, stack_golden, weights,
};
use case::{Base, Case};
use catalogue::{DEFECTS, Defect};

/// A gate that failed: its name, the part, what it said.
type Failure = (String, String, String);

/// Runs the gates in their order until one fails.
fn first_failure(case: &Case) -> Option<Failure> {
    let refused = |gate: &str, message: String| Some((gate.to_owned(), "bundle".to_owned(), message));
    if let Some(message) = &case.refused {
        return refused("build", message.clone());
    }
    let subject = match Subject::open(&case.folder, case.source.clone()) {
        Ok(subject) => subject,
        Err(e) => return refused("manifest", e.to_string()),
    };
    let failed = |findings: Vec<anemone_gate::Finding>| {
        let mut failed = findings.into_iter().filter(|f| f.verdict == Verdict::Failed);
        failed.next().map(|f| (f.gate, f.subject, f.message))
    };
    if let Some(found) = failed(contract::judge(&subject, |_| {})).or_else(|| failed(compile::judge(&subject))) {
        return Some(found);
    }
    let engine = match Engine::open(&case.folder, case.runtime.as_ref()) {
        Ok(engine) => engine,
        Err(e) => return refused("load", e.to_string()),
    };
    let run = Run { engine: &engine, measured_on: case.runtime.describe(), numerics: Numerics::Exact };
    failed(weights::judge(&subject, &run).unwrap())
        .or_else(|| failed(range_golden::judge(&subject, &run, &Default::default(), || {}).unwrap()))
        .or_else(|| failed(stack_golden::judge(&subject, &run, &case.prompts, 16, |_| {}).unwrap()))
}

/// A message without the folder it speaks of and the measured figures, whose last digits are the processor's; short enough for
/// a table.
fn plain(message: &str, case: &Case) -> String {
    let mut message = message.replace(&format!("{}/", case.folder.display()), "").replace('|', "\\|");
    for marker in ["cosine ", "rmse ", "off by ", "allows "] {
        let parts: Vec<&str> = message.split(marker).collect();
        let number = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        let rest = parts[1..].iter().map(|part| format!("{marker}\u{2026}{}", part.trim_start_matches(number)));
        message = parts[0].to_owned() + &rest.collect::<String>();
    }
    match message.char_indices().nth(220) {
        Some((end, _)) => format!("{}\u{2026}", &message[..end]),
        None => message,
    }
}

/// The table's row of a defect, or how it was not caught as it has to be.
fn judge(defect: &Defect) -> Result<String, String> {
    let title = format!("{}: {} ({})", defect.kind, defect.name, defect.base.name());
    let judged = std::panic::catch_unwind(|| {
        let mut case = Case::new(defect.base);
        (defect.inject)(&mut case);
        let failure = first_failure(&case);
        (case, failure)
    });
    let Ok((case, failure)) = judged else { return Err(format!("{title}: panicked")) };
    let Some((gate, part, message)) = failure else { return Err(format!("{title}: not caught")) };
    let said = format!("{part}: {message}");
    if gate != defect.gate {
        return Err(format!("{title}: caught by {gate}, not {}: {said}", defect.gate));
    }
    if let Some(word) = defect.words.iter().find(|word| !said.contains(**word)) {
        return Err(format!("{title}: `{word}` is not in: {said}"));
    }
    let (name, base, message) = (defect.name, defect.base.name(), plain(&message, &case));
    Ok(format!("| {} | {name} | {base} | {gate} | `{part}` | {message} |", defect.kind))
}

const HEAD: &str = "# Seeded defects\n\nEach is put into a right bundle, alone, and judged by the gates in their order. The gate is the first \
    one that fails, the message what it says. `crates/gate/tests/defects` holds the catalogue and writes this table; a test holds \
    the two together.\n\n| in | defect | model | gate | part | what the gate says |\n| --- | --- | --- | --- | --- | --- |\n";

#[test]
fn every_defect_is_caught_by_its_gate_and_the_table_is_current() {
    let results: Vec<Result<String, String>> = thread::scope(|scope| {
        let halves: Vec<_> = DEFECTS.chunks(DEFECTS.len().div_ceil(2)).collect();
        let work: Vec<_> =
            halves.into_iter().map(|half| scope.spawn(|| half.iter().map(judge).collect::<Vec<_>>())).collect();
        work.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    let missed: Vec<&String> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert!(
        missed.is_empty(),
        "{} of {} defects:\n{}",
        missed.len(),
        DEFECTS.len(),
        missed.iter().map(|m| format!("- {m}\n")).collect::<String>()
    );
    assert!(DEFECTS.len() >= 40, "only {} defects", DEFECTS.len());
    let rows: Vec<String> = results.into_iter().map(Result::unwrap).collect();
    let table = format!("{HEAD}{}\n", rows.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/defects.md");
    if std::env::var_os("ANEMONE_UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let current = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(current == table, "docs/defects.md is stale: run this test with ANEMONE_UPDATE=1");
}

/// What names the place of a defect must not name one where there is none: every value of a right shard that the reference
/// knows is within tolerance, at every position.
#[test]
fn no_value_of_a_right_shard_is_out_of_tolerance() {
    for base in Base::ALL {
        let case = Case::new(base);
        let subject = Subject::open(&case.folder, case.source.clone()).unwrap();
        let engine = Engine::open(&case.folder, case.runtime.as_ref()).unwrap();
        let run = Run { engine: &engine, measured_on: String::new(), numerics: Numerics::Exact };
        let source = own::source(&subject).unwrap();
        let ids: Vec<u32> = (0..64).map(|i| (i * 37 + 5) % subject.manifest.contract.vocab as u32).collect();
        let mut hidden = source.embed(&ids).unwrap();
        let mut cache = source.cache();
        let bounds = Thresholds::of(subject.manifest.contract.weights, Numerics::Exact).inside();
        for (i, shard) in subject.manifest.layers.iter().enumerate() {
            let own = Own::open(&subject, &source, &shard.path, 0).unwrap();
            for tokens in [1, 16] {
                let blocks: Vec<_> =
                    (0..64).step_by(tokens).map(|at| (at..at + tokens, usize::from(tokens > 1))).collect();
                let found = locate(&run, &own, engine.shard(i), shard.range(), &hidden, &blocks, &bounds).unwrap();
                assert!(found.is_none(), "{}, {}: {}", base.name(), shard.path, found.unwrap());
            }
            source.layer_range(shard.range(), &mut hidden, &mut cache, 0).unwrap();
        }
    }
}

/// Layers that are cut out of a shard and chained give what the shard gives, bit for bit, in every function.
#[test]
fn a_shard_is_its_layers_cut_out_and_chained() {
    for base in Base::ALL {
        let case = Case::new(base);
        let subject = Subject::open(&case.folder, case.source.clone()).unwrap();
        let engine = Engine::open(&case.folder, case.runtime.as_ref()).unwrap();
        let c = &subject.manifest.contract;
        for (i, shard) in subject.manifest.layers.iter().enumerate() {
            let (program, _) = anemone_mil::open(&case.folder.join(&shard.path)).unwrap();
            for (function, &tokens) in subject.manifest.tokens.iter().enumerate() {
                let rows: Vec<f32> = (0..3 * tokens * c.width).map(|n| ((n * 37) % 101) as f32 / 50.0 - 1.0).collect();
                let through = |part: &Shard, rows: &[f32]| -> Vec<f32> {
                    let mut state = part.new_state().unwrap();
                    let blocks = rows.chunks(tokens * c.width).enumerate();
                    let run = |(n, rows)| engine.run(part, function, rows, n * tokens, &mut state, None).unwrap();
                    blocks.flat_map(run).collect()
                };
                let whole = through(engine.shard(i), &rows);
                let chained = shard.range().fold(rows, |rows, layer| {
                    let program = cut::layer(&program, &shard.range(), layer).unwrap();
                    let states = program.functions[0].interface.states.len();
                    assert_eq!(states, 2, "{}: layer {layer} has a cache of keys and one of values", shard.path);
                    let model = case.runtime.load_program(&program).unwrap();
                    through(&engine.part(&case.folder, model).unwrap(), &rows)
                });
                assert!(whole == chained, "{}, {}, T = {tokens}", base.name(), shard.path);
            }
        }
    }
}

/// A defect in one layer is found where only layers are judged, in that layer and in no other, at whatever positions.
#[test]
fn a_wrong_layer_fails_by_itself_and_its_neighbours_pass() {
    let case = Case::new(Base::Miniature);
    let found = |case: &Case, positions: Positions, layers: &[(usize, usize)]| {
        let subject = Subject::open(&case.folder, case.source.clone()).unwrap();
        let engine = Engine::open(&case.folder, case.runtime.as_ref()).unwrap();
        let run = Run { engine: &engine, measured_on: String::new(), numerics: Numerics::Exact };
        let options = range_golden::Options { positions, per_token: false };
        let mut steps = 0;
        let layers: Vec<Range<usize>> = layers.iter().map(|&(start, end)| start..end).collect();
        let found = range_golden::judge_layers(&subject, &run, case.runtime.as_ref(), &layers, &options, || steps += 1);
        found.map(|found| {
            assert_eq!(Some(steps), layers.iter().map(|range| range.end).max());
            let verdict = |f: &anemone_gate::Finding| (f.subject.clone(), f.verdict);
            found.iter().map(verdict).collect::<Vec<_>>()
        })
    };
    let name = |layer: usize| format!("layers/{:02}-{:02}.mlpackage, layer {layer}", layer / 2 * 2, layer / 2 * 2 + 2);
    let verdicts = |wrong: Option<usize>, layers: &[usize]| -> Vec<(String, Verdict)> {
        let verdict = |layer| if Some(layer) == wrong { Verdict::Failed } else { Verdict::Passed };
        layers.iter().map(|&layer| (name(layer), verdict(layer))).collect()
    };
    assert_eq!(found(&case, Positions::All, &[(0, 4)]).unwrap(), verdicts(None, &[0, 1, 2, 3]));
    case.functions(|e| e.kind("blk_1_active", "sigmoid"));
    let some = || Positions::These(vec![40..41, 5..9]);
    for positions in [Positions::All, Positions::About(8), some()] {
        assert_eq!(found(&case, positions, &[(3, 4), (0, 2)]).unwrap(), verdicts(Some(1), &[0, 1, 3]));
    }
    assert_eq!(found(&case, some(), &[(2, 3)]).unwrap(), verdicts(None, &[2]));
    let refused = |positions, layers: &[(usize, usize)]| found(&case, positions, layers).unwrap_err().to_string();
    assert_eq!(refused(some(), &[(3, 5)]), "layer 4 was asked for, and the model's layers are 0 to 3");
    let context = Subject::open(&case.folder, case.source.clone()).unwrap().manifest.contract.context;
    let beyond = format!("position {context} was asked for, and the bundle's positions are 0 to {}", context - 1);
    assert_eq!(refused(Positions::These(iter::once(context..context + 1).collect()), &[(0, 1)]), beyond);
}

#[test]
fn right_bundles_raise_no_alarm() {
    for base in Base::ALL {
        let case = Case::new(base);
        assert_eq!(first_failure(&case), None, "{}", base.name());
    }
}

/// Scaling up what is gated and scaling down what comes of it changes nothing in f32 and loses everything in fp16.
#[test]
fn a_layer_that_overflows_fp16_passes_exact_and_fails_ane_by_name() {
    let mut case = Case::new(Base::Miniature);
    case.other_source(|w, g| {
        case::tensor(w, g, "blk.3.ffn_up.weight", |v, shape| {
            let up = v.len() / 2;
            assert_eq!(shape[0], 1024, "gate rows, then up rows");
            v[up..].iter_mut().for_each(|v| *v *= SCALE);
        });
        case::tensor(w, g, "blk.3.ffn_down.weight", |v, _| v.iter_mut().for_each(|v| *v /= SCALE));
    });
    let subject = Subject::open(&case.folder, case.source.clone()).unwrap();
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let runtime = Portable::new(numerics, Options::default());
        let engine = Engine::open(&case.folder, &runtime).unwrap();
        let run = Run { engine: &engine, measured_on: runtime.describe(), numerics };
        let range = range_golden::judge(&subject, &run, &Default::default(), || {}).unwrap();
        let stack = stack_golden::judge(&subject, &run, &case.prompts, 16, |_| {}).unwrap();
        let failed: Vec<_> = range.iter().chain(&stack).filter(|f| f.verdict == Verdict::Failed).collect();
        if numerics == Numerics::Exact {
            assert!(failed.is_empty(), "{}", failed[0].message);
            let numeric = numeric::judge(&subject, &run, &case.prompts, |_| {}).unwrap();
            let verdicts: Vec<_> = numeric.iter().map(|f| (f.verdict, f.message.as_str())).collect();
            assert_eq!(verdicts[0].0, Verdict::Passed, "{}", verdicts[0].1);
            assert_eq!(verdicts[1].0, Verdict::Failed, "{}", verdicts[1].1);
            assert!(verdicts[1].1.contains("layer 3, op `blk_3_gated` (mul) overflows first"), "{}", verdicts[1].1);
            println!("{}", verdicts[1].1);
        } else {
            let named = |f: &&&anemone_gate::Finding| f.message.contains("layer 3, op `blk_3_gated` (mul)");
            assert!(
                failed.iter().filter(named).count() >= 2,
                "{:?}",
                failed.iter().map(|f| &f.message).collect::<Vec<_>>()
            );
            failed.iter().for_each(|f| println!("{}: {}", f.subject, f.message));
        }
    }
}

/// Takes what is gated in the miniature's last layer beyond fp16, and leaves its weights in it.
const SCALE: f32 = 8192.0;

#[test]
fn a_fused_bundle_is_held_to_its_baseline() {
    let runtime = Portable::new(Numerics::Exact, Options::default());
    let single = Case::cut(Base::Miniature, "0-1,1-2,2-3,3-4");
    let baseline = Engine::open(&single.folder, &runtime).unwrap();
    let baseline = Run { engine: &baseline, measured_on: runtime.describe(), numerics: Numerics::Exact };
    let judge = |case: &Case| {
        let subject = Subject::open(&case.folder, case.source.clone()).unwrap();
        let engine = Engine::open(&case.folder, &runtime).unwrap();
        let run = Run { engine: &engine, measured_on: runtime.describe(), numerics: Numerics::Exact };
        let findings = parity::judge(&subject, &run, &baseline, &case.prompts, 16, |_| {}).unwrap();
        (findings[0].verdict, findings[0].message.clone(), findings[0].figures.clone())
    };
    let (verdict, message, figures) = judge(&Case::new(Base::Miniature));
    assert_eq!(verdict, Verdict::Passed, "{message}");
    assert_eq!(figures["baseline"]["max_abs"], 0.0, "fusing changed a bit: {message}");
    assert_eq!(figures["single_tokens"]["max_abs"], 0.0, "T changed a bit: {message}");

    let broken = Case::new(Base::Miniature);
    broken.functions(|e| e.kind("blk_1_active", "sigmoid"));
    let (verdict, message, _) = judge(&broken);
    assert!(verdict == Verdict::Failed && message.contains("part from the baseline's"), "{message}");

    let prefill = Case::new(Base::Miniature);
    prefill.function(Some("prefill"), |e| e.kind("blk_1_active", "sigmoid"));
    assert_eq!(judge(&prefill).0, Verdict::Failed);

    let (verdict, message, _) = judge(&Case::new(Base::MiniatureInt8));
    assert!(verdict == Verdict::Failed && message.contains("another model or contract"), "{message}");
}
