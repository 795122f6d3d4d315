//! The logic above Core ML's calls, over a Core ML that computes with the portable runtime and misbehaves on demand.

#[path = "../../exec/tests/conformance/cases.rs"]
mod cases;
mod fake;
#[path = "../../exec/tests/conformance/mod.rs"]
mod promises;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anemone_coreml::{CoreMl, CoreMlModel, Device, Limits, Sharing, Units};
use anemone_exec::{Data, Error, Model, Runtime, Tensor};
use anemone_mil::Valid;
use anemone_mil::ir::{Dtype, TensorType};
use fake::{Fake, Handler, Outputs, failure};
use promises::{accumulator, f16, function, program};
use tempfile::TempDir;

/// A runtime over a fake, with a folder for packages and cache.
struct Bench {
    folder: TempDir,
    fake: Fake,
    runtime: CoreMl<Fake>,
}

fn bench() -> Bench {
    let (folder, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let short = Duration::from_millis(20);
    // Long enough for a busy machine, but where nothing comes.
    let limits = Limits { compile: Duration::from_secs(60), load: Duration::from_secs(60), plan: short };
    let runtime = CoreMl::new(fake.clone(), Units::default(), folder.path().join("cache"), limits);
    Bench { folder, fake, runtime }
}

impl Bench {
    fn write(&self, program: &Valid) -> std::path::PathBuf {
        let number = std::fs::read_dir(self.folder.path()).unwrap().count();
        let path = self.folder.path().join(format!("{number}.mlpackage"));
        anemone_mil::write(program, &path).unwrap();
        path
    }

    fn load(&self, program: &Valid) -> Result<CoreMlModel<Fake>, Error> {
        self.runtime.load_coreml(&self.write(program))
    }

    /// What is said instead of loading.
    fn refusal(&self, program: &Valid) -> String {
        self.load(program).err().expect("a refusal").to_string()
    }

    fn silent(mut self) -> Self {
        let short = Duration::from_millis(20);
        let limits = Limits { compile: short, load: short, plan: short };
        self.runtime = CoreMl::new(self.fake.clone(), Units::default(), self.folder.path().join("cache"), limits);
        self
    }
}

fn ones() -> Tensor {
    Tensor::from_f32(&[1, 4], vec![1.0; 4], Dtype::F16)
}

fn two() -> Valid {
    program(vec![accumulator("main"), accumulator("prefill")])
}

/// Alternates between functions and checks every sum.
fn converse(model: &dyn Model) {
    let mut state = model.new_state().unwrap();
    for (call, function) in [1, 1, 0, 0, 1, 0].into_iter().enumerate() {
        let outputs = model.run(function, &[&ones()], &mut state).unwrap();
        assert_eq!(outputs[1].to_f32(), [call as f32 + 1.0; 4], "call {call}");
    }
}

#[test]
fn core_ml_keeps_every_promise() {
    let bench = bench();
    promises::all(&|program| Box::new(bench.load(program).unwrap_or_else(|e| panic!("{e}"))));
    assert_eq!(bench.fake.live_states(), 0, "every conversation's state is gone with it");
}

#[test]
fn core_ml_keeps_every_promise_where_outputs_come_back_padded_and_memory_is_held() {
    let bench = bench();
    bench.fake.faults().outputs = Outputs::Padded;
    bench.fake.faults().holds_memory = true;
    promises::all(&|program| Box::new(bench.load(program).unwrap_or_else(|e| panic!("{e}"))));
}

#[test]
fn every_case_of_every_op_crosses_the_border_and_comes_back() {
    // What comes back is in the memory that was offered, or in rows of 64 bytes.
    let (here, there) = (bench(), bench());
    there.fake.faults().outputs = Outputs::Padded;
    let (folders, subjects): (Vec<TempDir>, Vec<_>) = [here, there].into_iter().map(subject).unzip();
    cases::all(&subjects);
    drop(folders);
}

fn subject(bench: Bench) -> (TempDir, cases::Subject) {
    (bench.folder, cases::Subject { runtime: Box::new(bench.runtime), skips: &[] })
}

#[test]
fn states_are_shared_where_core_ml_lets_them() {
    let bench = bench();
    let model = bench.load(&two()).unwrap();
    converse(&model);
    assert_eq!(bench.fake.seen().copied.load(Relaxed), 0);
    assert_eq!(bench.runtime.reports()[0].sharing, Sharing::Shared);
    let alone = bench.load(&program(vec![accumulator("main")])).unwrap();
    converse_alone(&alone);
    assert_eq!(bench.runtime.reports()[1].sharing, Sharing::Alone);
    assert_eq!(bench.fake.live_states(), 0);
}

fn converse_alone(model: &dyn Model) {
    let mut state = model.new_state().unwrap();
    for call in 1..3 {
        assert_eq!(model.run(0, &[&ones()], &mut state).unwrap()[1].to_f32(), [call as f32; 4]);
    }
}

#[test]
fn a_state_that_a_second_function_refuses_is_copied_and_that_is_said() {
    let bench = bench();
    bench.fake.faults().refuses_borrowed_states = true;
    let model = bench.load(&two()).unwrap();
    let Sharing::Copied(functions, said) = bench.runtime.reports()[0].sharing.clone() else { panic!() };
    assert_eq!(functions, ["prefill"]);
    assert!(said.contains("`prefill` on the state of `main`") && said.contains("made by another model"), "{said}");
    converse(&model);
    // prefill, prefill, main, main, prefill, main: three changes, and nothing copied where nothing changed.
    assert_eq!(bench.fake.seen().copied.load(Relaxed), 3);
    assert_eq!(bench.fake.live_states(), 0);

    bench.fake.faults().refuses_copies = true;
    let mut state = model.new_state().unwrap();
    model.run(0, &[&ones()], &mut state).unwrap();
    let error = model.run(1, &[&ones()], &mut state).unwrap_err().to_string();
    assert!(error.starts_with("prefill: Core ML failed (com.apple.CoreML 0): no state to copy"), "{error}");
}

#[test]
fn an_error_in_the_middle_loses_one_conversation_and_leaks_nothing() {
    let bench = bench();
    let model = bench.load(&two()).unwrap();
    let (mut one, mut other) = (model.new_state().unwrap(), model.new_state().unwrap());
    model.run(0, &[&ones()], &mut one).unwrap();
    model.run(0, &[&ones()], &mut other).unwrap();
    assert_eq!(bench.fake.live_states(), 2);
    let next = bench.fake.seen().predicted.load(Relaxed);
    bench.fake.faults().predictions = Some((next, 1, failure(0, "Failed to run: error code: -14.")));
    let error = model.run(0, &[&ones()], &mut one).unwrap_err().to_string();
    assert!(error.starts_with("main: Core ML failed") && error.contains("too many are loaded at once"), "{error}");
    assert_eq!(bench.fake.live_states(), 1, "what Core ML may have half written is gone");
    let error = model.run(0, &[&ones()], &mut one).unwrap_err().to_string();
    assert_eq!(error, "main: the state was lost in a call that failed; make a new one");
    assert_eq!(model.run(1, &[&ones()], &mut other).unwrap()[1].to_f32(), [2.0; 4]);
    drop((one, other));
    assert_eq!(bench.fake.live_states(), 0);
    converse(&model);
}

#[test]
fn outputs_that_cannot_be_are_named() {
    for (outputs, says) in [
        (Outputs::Nil("is".to_owned()), "main: output `is`: Core ML gave no value for it"),
        (Outputs::Strides(vec![1, 1]), ""),
        (
            Outputs::Strides(vec![32, 0]),
            "main: output `was`: strides [32, 0] of shape [1, 4] let elements share a place",
        ),
        (
            Outputs::Strides(vec![32, 32]),
            "main: output `was`: strides [32, 32] of shape [1, 4] reach beyond its 64 bytes",
        ),
        (Outputs::Strides(vec![1]), "main: output `was`: strides [1] of shape [1, 4] are of another rank"),
        (Outputs::Strides(vec![32, -1]), "main: output `was`: strides [32, -1] of shape [1, 4] run backwards"),
        (Outputs::Widened, "main: output `was`: expected fp16 [Some(1), Some(4)], found fp32 [1, 4]"),
    ] {
        let bench = bench();
        let model = bench.load(&program(vec![accumulator("main")])).unwrap();
        bench.fake.faults().outputs = outputs.clone();
        let mut state = model.new_state().unwrap();
        match model.run(0, &[&ones()], &mut state) {
            Ok(found) => {
                assert!(says.is_empty(), "{outputs:?}");
                assert_eq!(found[1].to_f32(), [1.0; 4]);
            }
            Err(error) => assert_eq!(error.to_string(), says, "{outputs:?}"),
        }
        bench.fake.faults().outputs = Outputs::InPlace;
        converse_alone(&model);
        drop(state);
        assert_eq!(bench.fake.live_states(), 0);
    }
}

#[test]
fn handlers_that_never_come_are_given_up() {
    type Set = fn(&Fake, Handler);
    let places: [(&str, Set); 2] = [("compile", |f, h| f.faults().compile = h), ("load", |f, h| f.faults().load = h)];
    for (place, set) in places {
        let bench = bench().silent();
        set(&bench.fake, Handler::NeverComes);
        let error = bench.refusal(&two());
        assert!(error.ends_with("Core ML did not answer within 0.02 s"), "{place}: {error}");
        set(&bench.fake, Handler::IsDropped);
        let error = bench.refusal(&two());
        assert!(error.ends_with("Core ML dropped the request without an answer"), "{place}: {error}");
    }
    let bench = bench();
    bench.fake.faults().plan = Handler::NeverComes;
    let error = bench.runtime.plan(&bench.write(&two())).unwrap_err().to_string();
    assert!(error.ends_with("Core ML did not answer within 0.02 s"), "{error}");
}

#[test]
fn handlers_on_the_main_queue_are_not_waited_for_by_blocking_it() {
    let bench = bench();
    bench.fake.faults().compile = Handler::WaitsForMainQueue;
    bench.fake.faults().load = Handler::WaitsForMainQueue;
    converse(&bench.load(&two()).unwrap());
}

#[test]
fn what_was_compiled_is_kept_and_what_has_gone_stale_compiled_again() {
    let bench = bench();
    let package = bench.write(&two());
    let compiled = || bench.fake.seen().compiled.load(Relaxed);
    bench.runtime.load(&package).unwrap();
    bench.runtime.load(&package).unwrap();
    assert_eq!(compiled(), 1);
    let reports = bench.runtime.reports();
    assert!(reports[0].compile.is_some() && reports[1].compile.is_none());
    // Inside the package nothing was written.
    assert!(anemone_mil::open(&package).is_ok());
    assert!(bench.folder.path().join("cache").is_dir());

    bench.fake.faults().load = Handler::Fails(failure(3, "cannot be read"), 1);
    converse(&*bench.runtime.load(&package).unwrap());
    assert_eq!(compiled(), 2, "an old compiled form gets one more chance");

    let other = bench.write(&program(vec![accumulator("main")]));
    bench.fake.faults().load = Handler::Fails(failure(3, "cannot be read"), 9);
    let error = bench.runtime.load(&other).err().unwrap().to_string();
    assert!(error.contains("com.apple.CoreML 3") && error.contains("the disk may be full"), "{error}");
    assert_eq!(compiled(), 3, "a fresh one does not");
}

#[test]
fn what_core_ml_refuses_at_load_is_explained() {
    let bench = bench();
    bench.fake.faults().load = Handler::Fails(failure(0, "execution plan: error code: -14"), 9);
    let error = bench.refusal(&two());
    assert!(
        error.contains(".mlpackage: Core ML failed (com.apple.CoreML 0)") && error.contains("more shards"),
        "{error}"
    );

    // Neither on a borrowed state nor on its own: then the state is not what is wrong.
    let bench = self::bench();
    bench.fake.faults().predictions = Some((1, 9, failure(0, "no")));
    let error = bench.refusal(&two());
    assert!(
        error.starts_with("prefill: Core ML failed (com.apple.CoreML 0): no; state `total` is [Some(1), Some(4)]"),
        "{error}"
    );
    assert!(error.contains("no multiple of 32"), "{error}");
}

#[test]
fn descriptions_are_held_against_the_package() {
    let bench = bench();
    bench.fake.faults().undescribed = Some("x".to_owned());
    let error = bench.refusal(&two());
    assert!(error.ends_with("main: Core ML does not describe input `x`"), "{error}");
}

#[test]
fn indices_that_zeros_are_not_refuse_nothing() {
    let bench = bench();
    let reshaped = |name: &str| {
        function(name, |b| {
            let x = b.input("x", f16(&[1, 4])).unwrap();
            let shape = b.input("shape", TensorType::new(Dtype::I32, &[2])).unwrap();
            let s = b.state("total", f16(&[1, 4])).unwrap();
            let old = b.op("read_state", "old", &[("input", s.into())]).unwrap();
            let sum = b.op("add", "sum", &[("x", old.into()), ("y", x.into())]).unwrap();
            b.write_state("write", s, sum).unwrap();
            vec![("y", b.op("reshape", "y", &[("x", sum.into()), ("shape", shape.into())]).unwrap())]
        })
    };
    // A shape of [0, 0] fits nothing; [2, 2] does.
    let model = bench.load(&program(vec![reshaped("main"), reshaped("second")])).unwrap();
    let mut state = model.new_state().unwrap();
    for (call, function) in [0, 1, 0].into_iter().enumerate() {
        let (x, shape) = (ones(), Tensor::new(&[2], Data::I32(vec![2, 2])));
        let given: Vec<&Tensor> = match model.functions()[function].input("x") {
            Some(0) => vec![&x, &shape],
            _ => vec![&shape, &x],
        };
        let y = &model.run(function, &given, &mut state).unwrap()[0];
        assert_eq!((y.shape(), y.to_f32()), (&[2, 2][..], vec![call as f32 + 1.0; 4]));
    }
}

#[test]
fn a_plan_speaks_of_every_function() {
    let bench = bench();
    bench.fake.faults().plan = Handler::Answers;
    let package = bench.write(&two());
    // The limit of this bench is short, and a busy machine may take longer: what is asked is what a plan says.
    let usages = (0..100).find_map(|_| bench.runtime.plan(&package).ok()).unwrap();
    let ops =
        |name: &str| usages.iter().filter(|u| u.function == name && u.preferred == Some(Device::NeuralEngine)).count();
    assert_eq!((ops("main"), ops("prefill")), (5, 5));
    assert!(usages.iter().any(|u| u.kind == "ios18.read_state" && u.outputs == ["before"]));
    assert_eq!(bench.runtime.describe(), "core ml on neural engine and cpu of a fake, macOS 15.0.0");
}
