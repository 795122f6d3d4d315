//! The portable runtime: executes ML Programs on any machine, op by op.
//!
//! It is the oracle of everything faster, so it stays plain. A plan is made once per function; then each op's
//! kernel runs in order, in f32, and its results are brought to their declared type. Two numerics share all of it:
//!
//! - [`Numerics::Exact`]: what the program means. Values declared fp16 are held as f32 and never rounded.
//! - [`Numerics::Ane`]: what fp16 hardware with a wide accumulator gives. Every result declared fp16 is rounded to fp16 once,
//!   and so, since constants and inputs are fp16 already, is every operand. Values declared fp32 are not rounded: the Neural
//!   Engine does not take them, and Core ML computes them elsewhere, in fp32.
//!
//! **Invariants.** A sum is formed in an order that its own length and layout decide, never the number of tokens, blocks or
//! threads around it. Everything that can be refused is refused at load, by the name of the op. Memory is counted: constants
//! and values of known shape at load, the rest as it is asked for.

pub(crate) mod constants;
mod context;
pub mod headroom;
mod kernel;
mod kernels;
mod loops;
mod plan;
mod strided;
mod threads;
pub(crate) mod value;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anemone_mil::Valid;
use anemone_mil::ir::{Dtype, Feature, TensorType};
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::border::Signature;
use crate::runtime::{Error, Model, Runtime, State};
use crate::tensor::{Data, Tensor};
use context::{Context, Pool};
use headroom::{Headroom, Recorder};
use kernel::Args;
use plan::{Action, Plan, Planner, Source, StateSpec, Step};
use value::{Elements, Value, elements};

/// Why an op cannot be prepared or run; the caller adds which.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fault(String);

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// How floats are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numerics {
    /// f32 throughout: what the program means.
    Exact,
    /// fp16 results, wide accumulation: what the Neural Engine is expected to give.
    Ane,
}

/// Settings of the portable runtime.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads a kernel may use; never changes a result. By default as many as the machine has.
    pub threads: usize,
    /// The most bytes that decoded constants, states and intermediate values may occupy. By default 64 GiB.
    pub memory_limit: usize,
    /// Whether to keep the largest magnitude of every fp16 result, for [`Portable::load_portable`]'s models to report.
    pub headroom: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: available_parallelism().map_or(1, usize::from), memory_limit: 64 << 30, headroom: false }
    }
}

/// The portable runtime.
#[derive(Clone, Debug)]
pub struct Portable {
    numerics: Numerics,
    options: Options,
}

impl Portable {
    /// A runtime of those numerics.
    pub fn new(numerics: Numerics, options: Options) -> Self {
        Self { numerics, options }
    }

    /// As [`Runtime::load`], for callers that need what only this runtime's models tell.
    pub fn load_portable(&self, package: &Path) -> Result<PortableModel, Error> {
        self.prepare(&crate::runtime::open(package)?)
    }

    /// Prepares a valid program that need not come from a file.
    pub fn prepare(&self, program: &Valid) -> Result<PortableModel, Error> {
        let mut planner = Planner::default();
        let mut functions = Vec::new();
        for (i, function) in program.functions.iter().enumerate() {
            let plan = planner.plan(program, i, self.options.memory_limit)?;
            let signature = Signature::of(function);
            functions.push(Prepared { plan, features: signature.features(function), signature });
        }
        let states: usize = planner
            .states
            .iter()
            .map(|s| s.ty.elements().unwrap_or(usize::MAX).saturating_mul(4))
            .fold(0, usize::saturating_add);
        let fixed = states.saturating_add(planner.constants.bytes);
        for f in &functions {
            if fixed.saturating_add(f.plan.peak) > self.options.memory_limit {
                return Err(Error::Unsupported {
                    function: f.plan.name.clone(),
                    op: "the whole".to_owned(),
                    reason: format!(
                        "{} bytes of constants, {states} of states and {} of values exceed the limit of {}",
                        planner.constants.bytes, f.plan.peak, self.options.memory_limit
                    ),
                });
            }
        }
        let recorder = self.options.headroom.then(|| Recorder::new(functions.iter().map(|f| f.plan.steps.len())));
        Ok(PortableModel {
            numerics: self.numerics,
            threads: self.options.threads.max(1),
            value_limit: self.options.memory_limit - fixed,
            signatures: functions.iter().map(|f| f.signature.clone()).collect(),
            default_function: functions
                .iter()
                .position(|f| f.plan.name == program.default_function)
                .unwrap_or_default(),
            functions,
            states: planner.states,
            metadata: program.metadata.clone(),
            recorder,
            identity: Arc::new(()),
        })
    }
}

impl Runtime for Portable {
    fn describe(&self) -> String {
        match self.numerics {
            Numerics::Exact => "portable exact".to_owned(),
            Numerics::Ane => "portable ane".to_owned(),
        }
    }

    fn load(&self, package: &Path) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.load_portable(package)?))
    }
    fn load_program(&self, program: &Valid) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.prepare(program)?))
    }
}

/// A function and its border.
struct Prepared {
    plan: Plan,
    signature: Signature,
    features: Vec<Option<Feature>>,
}

/// A package in the portable runtime.
pub struct PortableModel {
    numerics: Numerics,
    threads: usize,
    value_limit: usize,
    functions: Vec<Prepared>,
    signatures: Vec<Signature>,
    default_function: usize,
    states: Vec<StateSpec>,
    metadata: BTreeMap<String, String>,
    recorder: Option<Recorder>,
    /// What a state is checked against.
    identity: Arc<()>,
}

/// A conversation's caches, and memory for intermediate values.
struct PortableState {
    identity: Arc<()>,
    /// `None` while a call has taken a cache out.
    caches: Vec<Option<Value>>,
    pool: Pool,
}

impl PortableModel {
    /// The magnitudes that the fp16 results of all calls so far have reached, in the order of functions and ops; empty if
    /// the model was loaded without [`Options::headroom`].
    pub fn headroom(&self) -> Vec<Headroom> {
        let Some(recorder) = &self.recorder else { return vec![] };
        let mut records = Vec::new();
        for (i, f) in self.functions.iter().enumerate() {
            let seen = recorder.largest(i);
            let computed = f.plan.steps.iter().zip(seen).filter(|(s, _)| s.records());
            records.extend(computed.map(|(step, largest)| record(f, step, largest)));
        }
        records
    }

    /// The op whose results were the first to leave fp16, if any did.
    pub fn first_overflow(&self) -> Option<Headroom> {
        let recorder = self.recorder.as_ref()?;
        let (function, step) = recorder.first()?;
        let f = &self.functions[function];
        Some(record(f, &f.plan.steps[step], recorder.largest(function)[step]))
    }

    /// One call; `watch`, where there is one, sees each value as it is computed.
    fn call(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Vec<Tensor>, Error> {
        let Some(f) = self.functions.get(function) else {
            return Err(Error::no_function(function, self.functions.len()));
        };
        let state = state
            .downcast::<PortableState>()
            .filter(|s| Arc::ptr_eq(&s.identity, &self.identity))
            .ok_or(Error::ForeignState)?;
        f.signature.check(&f.features, self.float(), inputs)?;
        let context = Context::new(&mut state.pool, self.value_limit, self.threads);
        let mut run = Run { model: self, plan: &f.plan, slots: vec![None; f.plan.slots], context };
        run.enter(&f.signature, inputs)?;
        run.steps(function, &mut state.caches, watch)?;
        run.leave(&f.signature)
    }
}

fn record(f: &Prepared, step: &Step, largest: f32) -> Headroom {
    Headroom {
        function: f.plan.name.clone(),
        op: step.kind.clone(),
        value: step.value().to_owned(),
        largest,
        limit: step.limit,
    }
}

impl Model for PortableModel {
    fn functions(&self) -> &[Signature] {
        &self.signatures
    }

    fn default_function(&self) -> usize {
        self.default_function
    }

    fn float(&self) -> Dtype {
        match self.numerics {
            Numerics::Exact => Dtype::F32,
            Numerics::Ane => Dtype::F16,
        }
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn new_state(&self) -> Result<State, Error> {
        let caches = self
            .states
            .iter()
            .map(|s| {
                let shape = s.ty.fixed_shape().unwrap_or_default();
                let n = shape.iter().product();
                Some(if s.ty.dtype.is_float() {
                    Value::floats(s.ty.dtype, &shape, vec![0.0f32; n])
                } else {
                    Value::ints(s.ty.dtype, &shape, vec![0i32; n])
                })
            })
            .collect();
        Ok(State::new(PortableState { identity: Arc::clone(&self.identity), caches, pool: Pool::default() }))
    }

    fn run(&self, function: usize, inputs: &[&Tensor], state: &mut State) -> Result<Vec<Tensor>, Error> {
        self.call(function, inputs, state, None)
    }

    fn run_watched(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        watch: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        self.call(function, inputs, state, Some(watch))
    }
}

/// Who is told each value, by name, as it is computed.
type Watch<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// One call of one function.
struct Run<'a> {
    model: &'a PortableModel,
    plan: &'a Plan,
    slots: Vec<Option<Value>>,
    context: Context<'a>,
}

impl Run<'_> {
    fn error(&self, op: &str, fault: Fault) -> Error {
        Error::Op { function: self.plan.name.clone(), op: op.to_owned(), reason: fault.to_string() }
    }

    /// Brings the inputs into their slots.
    fn enter(&mut self, signature: &Signature, inputs: &[&Tensor]) -> Result<(), Error> {
        for ((slot, port), tensor) in self.plan.inputs.iter().zip(&signature.inputs).zip(inputs) {
            if let Some(slot) = *slot {
                let mut value = from_tensor(&mut self.context, tensor).map_err(|fault| self.error("input", fault))?;
                // What the program declares fp16 crosses the border in the working type.
                value.dtype = port.dtype;
                self.slots[slot] = Some(value);
            }
        }
        Ok(())
    }

    fn fetch(&mut self, source: &Source) -> Option<Value> {
        match source {
            Source::Share(slot) => self.slots[*slot].clone(),
            Source::Take(slot) => self.slots[*slot].take(),
            Source::Constant(value) => Some(value.clone()),
        }
    }

    fn steps(
        &mut self,
        function: usize,
        caches: &mut [Option<Value>],
        mut watch: Option<&mut Watch<'_>>,
    ) -> Result<(), Error> {
        let plan = self.plan;
        let float = self.model.float();
        // Tensors have fewer types than values; one without is nothing that a model computes with.
        let mut tell = |name: &str, value: &Value| {
            let Some(watch) = watch.as_mut() else { return };
            if let Ok(tensor) = to_tensor(value.clone(), float) {
                watch(name, &tensor);
            }
        };
        let recorder = self.model.recorder.as_ref();
        let mut seen = vec![0.0f32; if recorder.is_some() { plan.steps.len() } else { 0 }];
        let mut first = None;
        for (i, step) in plan.steps.iter().enumerate() {
            match &step.action {
                Action::Read { state, take, to } => {
                    let cache = if *take { caches[*state].take() } else { caches[*state].clone() };
                    let Some(cache) = cache else {
                        let lost = Fault::new("the state was lost in a call that failed; make a new one");
                        return Err(self.error(&step.printed, lost));
                    };
                    tell(step.value(), &cache);
                    if let Some(to) = *to {
                        self.slots[to] = Some(cache);
                    }
                }
                Action::Write { state, from } => {
                    let value = self.fetch(from);
                    if let Some(old) = std::mem::replace(&mut caches[*state], value) {
                        self.context.recycle(old);
                    }
                }
                Action::Compute { kernel, args, results } => {
                    let mut args = Args::new(args.iter().map(|a| self.fetch(a)).collect());
                    let infinite = recorder.is_some() && args.values().any(headroom::has_infinity);
                    let values =
                        kernel.run(&mut args, &mut self.context).map_err(|fault| self.error(&step.printed, fault))?;
                    args.rest().for_each(|value| self.context.recycle(value));
                    if values.len() != results.len() {
                        let fault = Fault::new(format!("{} results, expected {}", values.len(), results.len()));
                        return Err(self.error(&step.printed, fault));
                    }
                    for ((mut value, (slot, ty)), name) in values.into_iter().zip(results).zip(&step.values) {
                        let checked = check_type(&value, ty).and_then(|()| self.context.check(&value.shape));
                        checked.map_err(|fault| self.error(&step.printed, fault))?;
                        if recorder.is_some() && value.dtype == Dtype::F16 {
                            seen[i] = seen[i].max(headroom::largest(&value, infinite));
                            if seen[i] > step.limit {
                                first.get_or_insert(i);
                            }
                        }
                        if !kernel.only_moves() {
                            self.round(&mut value).map_err(|fault| self.error(&step.printed, fault))?;
                        }
                        tell(name, &value);
                        match *slot {
                            Some(slot) => self.slots[slot] = Some(value),
                            None => self.context.recycle(value),
                        }
                    }
                }
            }
        }
        if let Some(recorder) = recorder {
            recorder.add(function, &seen, first);
        }
        Ok(())
    }

    /// Rounds a computed result to its declared type, where the numerics ask for it.
    fn round(&mut self, value: &mut Value) -> Result<(), Fault> {
        if self.model.numerics == Numerics::Exact || value.dtype != Dtype::F16 {
            return Ok(());
        }
        let Elements::Floats(buf) = &mut value.data else { return Ok(()) };
        if let Some(own) = buf.unique() {
            loops::round_to_f16(own);
            return Ok(());
        }
        let mut own = self.context.take::<f32>(buf.len())?;
        own.copy_from_slice(buf);
        loops::round_to_f16(&mut own);
        *buf = own.into();
        Ok(())
    }

    /// Takes the outputs out.
    fn leave(mut self, signature: &Signature) -> Result<Vec<Tensor>, Error> {
        let float = self.model.float();
        let mut outputs = Vec::with_capacity(self.plan.outputs.len());
        for (source, port) in self.plan.outputs.iter().zip(&signature.outputs) {
            let value = self.fetch(source).map(|v| to_tensor(v, float)).transpose();
            let value = value.map_err(|fault| self.error("return", fault))?;
            let lost = || self.error("return", Fault::new(format!("output `{}` was not computed", port.name)));
            outputs.push(value.ok_or_else(lost)?);
        }
        for slot in &mut self.slots {
            if let Some(value) = slot.take() {
                self.context.recycle(value);
            }
        }
        Ok(outputs)
    }
}

/// Whether a result is what its program declares.
fn check_type(value: &Value, ty: &TensorType) -> Result<(), Fault> {
    let fits = value.is_whole()
        && value.dtype == ty.dtype
        && value.shape.len() == ty.shape.len()
        && ty.shape.iter().zip(&value.shape).all(|(d, &n)| d.fixed().is_none_or(|d| d == n));
    if fits {
        return Ok(());
    }
    Err(Fault::new(format!("the result is {}{:?}, declared is {ty}", value.dtype, value.shape)))
}

fn from_tensor(context: &mut Context<'_>, tensor: &Tensor) -> Result<Value, Fault> {
    fn ints<T: Copy>(context: &mut Context<'_>, from: &[T], widen: impl Fn(T) -> i32) -> Result<Vec<i32>, Fault> {
        let mut out = context.take::<i32>(from.len())?;
        out.iter_mut().zip(from).for_each(|(o, &v)| *o = widen(v));
        Ok(out)
    }
    let (shape, dtype) = (tensor.shape(), tensor.dtype());
    context.check(shape)?;
    let n = elements(shape)?;
    let whole = match tensor.data() {
        Data::F32(v) => {
            let mut out = context.take::<f32>(n)?;
            out.copy_from_slice(v);
            return Ok(Value::floats(dtype, shape, out));
        }
        Data::F16(v) => {
            let mut out = context.take::<f32>(n)?;
            v.convert_to_f32_slice(&mut out);
            return Ok(Value::floats(dtype, shape, out));
        }
        Data::I32(v) => ints(context, v, |v| v)?,
        Data::I16(v) => ints(context, v, i32::from)?,
        Data::U16(v) => ints(context, v, i32::from)?,
        Data::I8(v) => ints(context, v, i32::from)?,
        Data::U8(v) => ints(context, v, i32::from)?,
        Data::Bool(v) => ints(context, v, i32::from)?,
    };
    Ok(Value::ints(dtype, shape, whole))
}

fn to_tensor(value: Value, float: Dtype) -> Result<Tensor, Fault> {
    let Value { dtype, shape, data } = value;
    let data = match (data, dtype) {
        (Elements::Floats(b), Dtype::F16) if float == Dtype::F16 => {
            let mut out = vec![f16::ZERO; b.len()];
            out.convert_from_f32_slice(&b);
            Data::F16(out)
        }
        (Elements::Floats(b), Dtype::F16 | Dtype::F32) => Data::F32(b.into_owned_vec()),
        (Elements::Ints(b), Dtype::I32) => Data::I32(b.into_owned_vec()),
        (Elements::Ints(b), Dtype::I16) => Data::I16(b.iter().map(|&v| v as i16).collect()),
        (Elements::Ints(b), Dtype::U16) => Data::U16(b.iter().map(|&v| v as u16).collect()),
        (Elements::Ints(b), Dtype::I8) => Data::I8(b.iter().map(|&v| v as i8).collect()),
        (Elements::Ints(b), Dtype::U8) => Data::U8(b.iter().map(|&v| v as u8).collect()),
        (Elements::Ints(b), Dtype::Bool) => Data::Bool(b.iter().map(|&v| v != 0).collect()),
        _ => return Err(Fault::new(format!("an output of type {dtype} is not supported"))),
    };
    Ok(Tensor::new(&shape, data))
}
