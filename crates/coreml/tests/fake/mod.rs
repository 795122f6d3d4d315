//! A Core ML that computes with the portable runtime and can be told to misbehave.
//!
//! It "compiles" by copying, loads by preparing, and hands states out per function as Core ML does per model. What is wrong
//! with it is set before or between calls ([`Fake::faults`]); what happened is counted ([`Fake::seen`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anemone_coreml::foreign::Described;
use anemone_coreml::{
    Array, Completion, Description, Device, Failure, Foreign, Machine, OpUsage, Returned, Strided, Units,
};
use anemone_exec::{Data, Dtype, Model, Numerics, Options, Port, Portable, PortableModel, State, Tensor};

/// What a handler does.
#[derive(Clone, Debug, Default)]
pub enum Handler {
    /// Answers.
    #[default]
    Answers,
    /// Is kept and never called.
    NeverComes,
    /// Is thrown away.
    IsDropped,
    /// Is called with this error, so many times; then it answers.
    Fails(Failure, usize),
    /// Is called by the main queue, when that has turned three times.
    WaitsForMainQueue,
}

/// Where outputs come back.
#[derive(Clone, Debug, Default)]
pub enum Outputs {
    /// In the memory that was offered.
    #[default]
    InPlace,
    /// In memory of Core ML's own, rows padded to 64 bytes.
    Padded,
    /// With these strides, whatever the shape.
    Strides(Vec<i64>),
    /// This one has no value.
    Nil(String),
    /// In another element type.
    Widened,
}

/// What is wrong.
#[derive(Default)]
pub struct Faults {
    pub compile: Handler,
    pub load: Handler,
    pub plan: Handler,
    pub outputs: Outputs,
    /// Predictions fail from this one on, that many times.
    pub predictions: Option<(usize, usize, Failure)>,
    /// A function refuses the state of another one.
    pub refuses_borrowed_states: bool,
    /// States cannot be copied.
    pub refuses_copies: bool,
    /// Arrays of a call are held beyond it.
    pub holds_memory: bool,
    /// Predictions without a state begin when so many of them are there, and fail where the others do not come.
    pub meeting: Option<usize>,
    /// An input that descriptions leave out.
    pub undescribed: Option<String>,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Seen {
    pub compiled: AtomicUsize,
    pub loaded: AtomicUsize,
    pub predicted: AtomicUsize,
    pub copied: AtomicUsize,
}

/// The Core ML.
#[derive(Clone, Default)]
pub struct Fake(Arc<Inner>);

#[derive(Default)]
struct Inner {
    faults: Mutex<Faults>,
    seen: Seen,
    models: Mutex<BTreeMap<PathBuf, Arc<PortableModel>>>,
    /// Handlers that wait, as what calls them.
    queue: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    turns: AtomicUsize,
    /// Meetings so far, and who waits for the next one.
    meetings: Mutex<(usize, usize)>,
    met: Condvar,
    /// Handlers that never come.
    kept: Mutex<Vec<Box<dyn std::any::Any + Send>>>,
    held: Mutex<Vec<Arc<anemone_coreml::array::Memory>>>,
    /// Shared by every state that is alive.
    alive: Arc<()>,
}

pub struct FakeFunction {
    model: Arc<PortableModel>,
    index: usize,
}

pub struct FakeState {
    model: Arc<PortableModel>,
    made_by: usize,
    inner: Mutex<State>,
    _alive: Arc<()>,
}

pub fn failure(code: i64, text: &str) -> Failure {
    Failure { domain: "com.apple.CoreML".to_owned(), code, text: text.to_owned() }
}

impl Fake {
    /// What is wrong, to be changed.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.0.faults.lock().unwrap()
    }

    /// What happened.
    pub fn seen(&self) -> &Seen {
        &self.0.seen
    }

    /// States that have been made and not been dropped.
    pub fn live_states(&self) -> usize {
        Arc::strong_count(&self.0.alive) - 1
    }

    /// Waits for `count` to be here at once; false where they do not come.
    fn meet(&self, count: usize) -> bool {
        let mut meetings = self.0.meetings.lock().unwrap();
        let mine = meetings.0;
        meetings.1 += 1;
        if meetings.1 == count {
            *meetings = (mine + 1, 0);
            self.0.met.notify_all();
            return true;
        }
        let long = Duration::from_secs(20);
        let (meetings, _) = self.0.met.wait_timeout_while(meetings, long, |meetings| meetings.0 == mine).unwrap();
        meetings.0 != mine
    }

    fn answer<T: Send + 'static>(
        &self,
        handler: impl Fn(&mut Faults) -> &mut Handler,
        done: Completion<T>,
        answer: Result<T, Failure>,
    ) {
        let mut faults = self.faults();
        match handler(&mut faults) {
            Handler::Answers => {
                std::thread::spawn(move || done.deliver(answer));
            }
            Handler::NeverComes => self.0.kept.lock().unwrap().push(Box::new(done)),
            Handler::IsDropped => drop(done),
            Handler::Fails(_, 0) => done.deliver(answer),
            Handler::Fails(failure, left) => {
                *left -= 1;
                done.deliver(Err(failure.clone()));
            }
            Handler::WaitsForMainQueue => self.0.queue.lock().unwrap().push(Box::new(move || done.deliver(answer))),
        }
    }
}

fn described(port: &Port) -> Described {
    // A flexible dimension's default is not known here; Core ML would say it.
    let shape = port.shape.iter().copied().collect::<Option<Vec<_>>>().unwrap_or_default();
    Described { name: port.name.clone(), dtype: Some(port.dtype), shape }
}

fn tensor(array: &Array) -> Tensor {
    // SAFETY: nothing writes to inputs.
    unsafe { array.read() }.unwrap()
}

fn dense(tensor: &Tensor) -> Vec<u8> {
    match tensor.data() {
        Data::F16(v) => v.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        Data::F32(v) => v.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        Data::I32(v) => v.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        other => panic!("{}", other.dtype()),
    }
}

/// Rows of the last dimension 64 bytes apart.
fn padded(tensor: &Tensor) -> Strided {
    let element = anemone_coreml::array::element_bytes(tensor.dtype()).unwrap();
    let shape = tensor.shape().to_vec();
    let width = *shape.last().unwrap();
    let row = (width * element).next_multiple_of(64);
    let mut bytes = Vec::new();
    for values in dense(tensor).chunks((width * element).max(1)) {
        bytes.extend_from_slice(values);
        bytes.resize(bytes.len().next_multiple_of(row), 0xff);
    }
    let mut strides = vec![1i64; shape.len()];
    let mut step = (row / element) as i64;
    for axis in (0..shape.len() - 1).rev() {
        strides[axis] = step;
        step *= shape[axis] as i64;
    }
    Strided { dtype: tensor.dtype(), shape, strides, bytes }
}

impl Foreign for Fake {
    type Function = FakeFunction;
    type State = FakeState;

    fn machine(&self) -> Machine {
        Machine { chip: "a fake".to_owned(), os: [15, 0, 0] }
    }

    fn turn_main_queue(&self, _: Duration) -> bool {
        let waiting = !self.0.queue.lock().unwrap().is_empty();
        if waiting && self.0.turns.fetch_add(1, Ordering::Relaxed) >= 2 {
            self.0.turns.store(0, Ordering::Relaxed);
            let queue = std::mem::take(&mut *self.0.queue.lock().unwrap());
            queue.into_iter().for_each(|handler| handler());
        }
        waiting
    }

    fn compile(&self, package: &Path, done: Completion<PathBuf>) {
        let number = self.0.seen.compiled.fetch_add(1, Ordering::Relaxed);
        let target = package.with_file_name(format!("fresh-{number}.mlmodelc"));
        copy(package, &target);
        self.answer(|f| &mut f.compile, done, Ok(target));
    }

    fn load(&self, compiled: &Path, function: Option<&str>, _: Units, done: Completion<FakeFunction>) {
        self.0.seen.loaded.fetch_add(1, Ordering::Relaxed);
        let model = self
            .0
            .models
            .lock()
            .unwrap()
            .entry(compiled.to_owned())
            .or_insert_with(|| {
                let runtime = Portable::new(Numerics::Ane, Options { threads: 1, ..Options::default() });
                Arc::new(runtime.load_portable(compiled).unwrap())
            })
            .clone();
        let index = match function {
            Some(name) => model.functions().iter().position(|f| f.name == name).unwrap(),
            None => {
                assert_eq!(model.functions().len(), 1, "of several functions one is named");
                0
            }
        };
        self.answer(|f| &mut f.load, done, Ok(FakeFunction { model, index }));
    }

    fn describe(&self, function: &FakeFunction) -> Description {
        let signature = &function.model.functions()[function.index];
        let hidden = self.faults().undescribed.clone();
        let all = |ports: &[Port]| {
            // In no order: backwards.
            ports.iter().rev().filter(|p| Some(&p.name) != hidden.as_ref()).map(described).collect()
        };
        Description { inputs: all(&signature.inputs), outputs: all(&signature.outputs), states: all(&signature.states) }
    }

    fn new_state(&self, function: &FakeFunction) -> Result<FakeState, Failure> {
        Ok(FakeState {
            model: function.model.clone(),
            made_by: function.index,
            inner: Mutex::new(function.model.new_state().unwrap()),
            _alive: self.0.alive.clone(),
        })
    }

    /// Moves, so that whoever forgets to copy back finds zeros. Good for states that are all the functions have.
    fn copy_state(&self, _: &[&str], from: &FakeState, to: &FakeState) -> Result<(), Failure> {
        if self.faults().refuses_copies {
            return Err(failure(0, "no state to copy"));
        }
        self.0.seen.copied.fetch_add(1, Ordering::Relaxed);
        let fresh = from.model.new_state().unwrap();
        *to.inner.lock().unwrap() = std::mem::replace(&mut *from.inner.lock().unwrap(), fresh);
        Ok(())
    }

    fn predict(
        &self,
        function: &FakeFunction,
        inputs: &[(&str, &Array)],
        state: Option<&FakeState>,
        wanted: &[(&str, Option<&Array>)],
    ) -> Result<Vec<Option<Returned>>, Failure> {
        let number = self.0.seen.predicted.fetch_add(1, Ordering::Relaxed);
        let (outputs_come, holds_memory, meeting) = {
            let faults = self.faults();
            if let Some((first, count, failure)) = &faults.predictions
                && (*first..first + count).contains(&number)
            {
                return Err(failure.clone());
            }
            if faults.refuses_borrowed_states && state.is_some_and(|s| s.made_by != function.index) {
                return Err(failure(1, "the state was made by another model"));
            }
            (faults.outputs.clone(), faults.holds_memory, faults.meeting.filter(|_| state.is_none()))
        };
        if meeting.is_some_and(|count| !self.meet(count)) {
            return Err(failure(0, "alone"));
        }
        let signature = &function.model.functions()[function.index];
        assert_eq!(state.is_some(), !signature.states.is_empty(), "a state where there are states");
        for (_, array) in inputs.iter().copied().chain(wanted.iter().filter_map(|(n, a)| Some((*n, (*a)?)))) {
            assert_eq!(array.pointer().as_ptr() as usize % 64, 0);
            if holds_memory {
                self.0.held.lock().unwrap().push(array.share());
            }
        }
        let given: Vec<Tensor> = signature
            .inputs
            .iter()
            .map(|p| tensor(inputs.iter().find(|(name, _)| *name == p.name).unwrap().1))
            .collect();
        let given: Vec<&Tensor> = given.iter().collect();
        let mut fresh = function.model.new_state().unwrap();
        let outputs = match state {
            Some(state) => function.model.run(function.index, &given, &mut state.inner.lock().unwrap()),
            None => function.model.run(function.index, &given, &mut fresh),
        };
        let outputs = outputs.map_err(|e| failure(0, &e.to_string()))?;
        let answer = |(name, place): &(&str, Option<&Array>)| {
            let tensor = &outputs[signature.output(name).unwrap()];
            match (&outputs_come, place) {
                (Outputs::Nil(nil), _) if nil == name => None,
                (Outputs::Padded, _) => Some(Returned::Elsewhere(padded(tensor))),
                (Outputs::Strides(strides), _) => {
                    Some(Returned::Elsewhere(Strided { strides: strides.clone(), ..padded(tensor) }))
                }
                (Outputs::Widened, _) => {
                    let wide = Tensor::from_f32(tensor.shape(), tensor.to_f32(), Dtype::F32);
                    Some(Returned::Elsewhere(padded(&wide)))
                }
                (_, Some(place)) => {
                    let bytes = dense(tensor);
                    // SAFETY: the array was offered to be written to, and has as many bytes as its shape says.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.pointer().as_ptr(), bytes.len()) };
                    Some(Returned::InPlace)
                }
                (_, None) => Some(Returned::Elsewhere(padded(tensor))),
            }
        };
        Ok(wanted.iter().map(answer).collect())
    }

    fn plan(&self, compiled: &Path, _: Units, done: Completion<Vec<OpUsage>>) {
        let (program, _) = anemone_mil::open(compiled).unwrap();
        let mut usages = Vec::new();
        for function in &program.functions {
            for op in &function.ops {
                let constant = op.kind == "const";
                usages.push(OpUsage {
                    function: function.name.clone(),
                    kind: format!("ios18.{}", op.kind),
                    outputs: op.outputs.iter().map(|id| function.value(*id).name.clone()).collect(),
                    preferred: (!constant).then_some(Device::NeuralEngine),
                    supported: vec![Device::Cpu, Device::NeuralEngine],
                    cost: None,
                });
            }
        }
        self.answer(|f| &mut f.plan, done, Ok(usages));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
