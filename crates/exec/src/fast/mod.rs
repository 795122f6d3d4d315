//! The fast runtime: executes the same programs as the portable one, in fused kernels over memory placed once.
//!
//! [`select`] recognises groups of ops, [`plan`] orders the kernels that stand for them and gives every value a place, and a
//! [`Team`] of resident threads goes through the steps together. What no rule recognises runs op by op between them
//! ([`island`]); a package whose states are used in unknown ways, or of which nothing is recognised, runs as a whole on the
//! portable runtime, so that every package works.
//!
//! Values are f32 throughout, whatever float type the program declares, as in `exact`; only what meets 8-bit weights is rounded,
//! to 16 bits ([`linear`]). Weights are copied once, to large pages, when a package is called again ([`resident`]).
//!
//! **Invariants.** A token's result is equal bit for bit whatever the number of tokens in its call, of threads, or the instruction
//! set: each kernel fixes the order of its sums for one token alone, and units of work that threads share out at will never
//! split a sum. After a state's first calls nothing is allocated but the tensors handed out, unless ops run one by one.

mod attention;
mod cache;
mod graph;
mod island;
mod linear;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
mod resident;
mod rows;
mod select;
mod simd;
mod team;
#[cfg(test)]
mod tests;
mod weigh;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anemone_mil::Valid;
use anemone_mil::ir::Dtype;

use crate::border::Signature;
use crate::portable::constants::Shared;
use crate::portable::{Numerics, Options, Portable, PortableModel};
use crate::rows::Rows;
use crate::runtime::{Error, Model, Runtime, State};
use crate::tensor::{Data, Tensor};
use attention::{Answer, Attention, Layer, Masked, Masks, Write};
use cache::{Cache, RawCache};
use graph::Graph;
use linear::{Activations, Output, Product, Weights};
use plan::{CacheSpec, Crossing, Part, Plan, Step};
use rows::{Arena, Prepared, Row, RowSource};
pub use select::LABELS;
use select::Selector;
use simd::Isa;
use team::{Meeting, Team};
pub use weigh::{BLOCK, Weigher};

/// The most tokens that a call of an elastic function takes: beyond it weights are shared by enough tokens already.
pub const MOST_TOKENS: usize = 512;

/// Settings of the fast runtime.
#[derive(Clone, Debug)]
pub struct FastOptions {
    /// Threads; never changes a result. By default as many as the machine has.
    pub threads: usize,
    /// Labels of rules that are switched off, of [`LABELS`].
    pub off: BTreeSet<String>,
    /// The most bytes that decompressed constants, and values of ops that run one by one, may occupy.
    pub memory_limit: usize,
}

impl Default for FastOptions {
    fn default() -> Self {
        let Options { threads, memory_limit, .. } = Options::default();
        Self { threads, off: BTreeSet::new(), memory_limit }
    }
}

/// The fast runtime. Packages that it loads share its threads.
#[derive(Clone)]
pub struct Fast {
    options: FastOptions,
    team: Arc<Team>,
    isa: Isa,
}

impl Fast {
    /// A runtime with threads of its own.
    pub fn new(options: FastOptions) -> Self {
        let team = Arc::new(Team::new(options.threads));
        Self { options, team, isa: Isa::best() }
    }

    /// As [`new`](Self::new), for each instruction set of this machine, the plainest first: tests compare them.
    pub fn for_each_isa(options: &FastOptions) -> Vec<(&'static str, Self)> {
        let each = Isa::available().into_iter();
        each.map(|isa| (isa.name(), Self { isa, ..Self::new(options.clone()) })).collect()
    }

    /// Prepares a valid program that need not come from a file.
    pub fn prepare(&self, program: &Valid) -> Result<FastModel, Error> {
        let FastOptions { threads, ref off, memory_limit } = self.options;
        // Of whatever runs op by op.
        let portable = Options { threads, memory_limit, headroom: false };
        let mut constants = Shared::default();
        let mut caches = Vec::new();
        let mut plan = |index: usize| {
            let graph = Graph::new(program, index);
            let selection = Selector::select(&graph, off, &mut constants, memory_limit, &mut caches)?;
            Plan::new(&graph, selection, &portable)
        };
        let plans: Result<Vec<Plan>, (usize, String)> =
            (0..program.functions.len()).map(|i| plan(i).map_err(|reason| (i, reason))).collect();
        // What takes more memory than it may is the portable runtime's to refuse, which says so in its own words.
        let plans = plans.and_then(|plans| {
            let calls = plans.iter().map(Plan::bytes).try_fold(0, |most, bytes| Some(bytes?.max(most)));
            let caches = caches.iter().try_fold(0usize, |sum, cache| sum.checked_add(cache.bytes()?));
            let needed = calls.zip(caches).and_then(|(calls, caches)| calls.checked_add(caches));
            match needed.filter(|&needed| needed <= memory_limit) {
                Some(_) => Ok(plans),
                None => Err((0, format!("it needs more memory than {memory_limit} bytes"))),
            }
        });
        let form = match plans {
            Ok(mut plans) => {
                let copy = resident::Copy::of(plans.iter_mut().flat_map(Plan::matrices));
                Form::Planned { plans, copy }
            }
            Err((index, reason)) => {
                let reason = format!("{}: {reason}", program.functions[index].name);
                Form::Whole { model: Box::new(Portable::new(Numerics::Exact, portable).prepare(program)?), reason }
            }
        };
        Ok(FastModel {
            form,
            signatures: program.functions.iter().map(Signature::of).collect(),
            default_function: program.functions.iter().position(|f| f.name == program.default_function).unwrap_or(0),
            caches,
            metadata: program.metadata.clone(),
            team: Arc::clone(&self.team),
            isa: self.isa,
            identity: Arc::new(()),
        })
    }

    /// As [`Runtime::load`], for callers that want to see the plan.
    pub fn load_fast(&self, package: &Path) -> Result<FastModel, Error> {
        self.prepare(&crate::runtime::open(package)?)
    }
}

impl Runtime for Fast {
    fn describe(&self) -> String {
        format!("portable fast ({}, {} threads)", self.isa.name(), self.team.threads())
    }

    fn load(&self, package: &Path) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.load_fast(package)?))
    }
    fn load_program(&self, program: &Valid) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.prepare(program)?))
    }
}

/// How a package is executed.
enum Form {
    /// By plans, one for each function, on weights that are still to be copied or have been.
    Planned { plans: Vec<Plan>, copy: resident::Copy },
    /// Op by op, and why.
    Whole { model: Box<PortableModel>, reason: String },
}

/// How one call is made.
enum Way<'m> {
    /// By a plan, with so many tokens.
    Planned(&'m Plan, usize),
    /// Op by op.
    Whole(&'m PortableModel),
}

/// A package in the fast runtime.
pub struct FastModel {
    form: Form,
    signatures: Vec<Signature>,
    default_function: usize,
    caches: Vec<CacheSpec>,
    metadata: BTreeMap<String, String>,
    team: Arc<Team>,
    isa: Isa,
    identity: Arc<()>,
}

/// A conversation's caches, and the memory of its calls.
struct FastState {
    identity: Arc<()>,
    caches: Vec<Cache>,
    arena: Vec<f32>,
    /// One for each thread, and one that they share.
    scratch: Vec<Scratch>,
    masks: Vec<Masks>,
    counters: Vec<AtomicUsize>,
    /// For each function, the states of its islands.
    islands: Vec<Vec<State>>,
    raw: Vec<RawCache>,
}

/// A line of the cache. Rows that meet weights begin at one, so that no load needs two.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line<T, const N: usize>([T; N]);

/// Rows on their way into projections, and scores.
#[derive(Default)]
struct Scratch {
    floats: Vec<Line<f32, { linear::PADDING / 2 }>>,
    ints: Vec<Line<i16, { linear::PADDING }>>,
    worth: Vec<f32>,
    scores: Vec<f32>,
}

impl Scratch {
    /// Makes room for that many rows of `padded` elements: each takes whole lines.
    fn reserve(&mut self, rows: usize, padded: usize) {
        let n = rows * padded / linear::PADDING;
        if self.ints.len() < n {
            self.floats.resize(2 * n, Line([0.0; linear::PADDING / 2]));
            self.ints.resize(n, Line([0; linear::PADDING]));
        }
        if self.worth.len() < rows {
            self.worth.resize(rows, 0.0);
        }
    }
}

/// A pointer that threads of a team share; whoever follows it says why that is sound.
struct Across<T>(*mut T);
// SAFETY: the pointer alone does nothing.
unsafe impl<T> Send for Across<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Across<T> {}

impl<T> Across<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

impl FastModel {
    /// What a function's plan does, a line for each step; or why the package runs op by op.
    pub fn listing(&self, function: usize) -> Vec<String> {
        match &self.form {
            Form::Planned { plans, .. } => plans.get(function).map(Plan::listing).unwrap_or_default(),
            Form::Whole { reason, .. } => vec![format!("op by op on the portable runtime ({reason})")],
        }
    }

    /// How a call of that function is made with these inputs, which are checked where a plan makes it.
    fn way(&self, function: usize, inputs: &[&Tensor]) -> Result<Way<'_>, Error> {
        let plans = match &self.form {
            Form::Whole { model, .. } => return Ok(Way::Whole(model)),
            Form::Planned { plans, .. } => plans,
        };
        let plan = plans.get(function).ok_or_else(|| Error::no_function(function, plans.len()))?;
        Ok(Way::Planned(plan, self.tokens(function, plan, inputs)?))
    }

    /// How many tokens a call has, by the shapes of its inputs; all of them are checked.
    fn tokens(&self, function: usize, plan: &Plan, inputs: &[&Tensor]) -> Result<usize, Error> {
        let signature = &self.signatures[function];
        signature.check_kinds(self.float(), inputs)?;
        let mut tokens = None;
        for ((port, axis), tensor) in signature.inputs.iter().zip(&plan.input_axes).zip(inputs) {
            let shape = tensor.shape();
            let own = if plan.elastic { axis.and_then(|a| shape.get(a)).copied() } else { None };
            tokens = tokens.or(own);
            let wanted = tokens.unwrap_or(plan.tokens);
            let fits = shape.len() == port.shape.len()
                && (1..=MOST_TOKENS.max(plan.tokens)).contains(&wanted)
                && port.shape.iter().zip(shape).enumerate().all(|(a, (declared, &found))| {
                    if plan.elastic && Some(a) == *axis { found == wanted } else { declared.is_none_or(|d| d == found) }
                });
            if !fits {
                let mut expected: Vec<Option<usize>> = port.shape.clone();
                if let Some(axis) = axis {
                    expected[*axis] = Some(wanted);
                }
                return Err(signature.refuse(&port.name, format!("shape {expected:?}"), format!("shape {shape:?}")));
            }
        }
        Ok(tokens.unwrap_or(plan.tokens))
    }

    /// One call of a planned function, its inputs checked: the memory in which the results are.
    fn call<'s>(
        &self,
        function: usize,
        plan: &Plan,
        tokens: usize,
        inputs: &[&Tensor],
        state: &'s mut State,
    ) -> Result<&'s [f32], Error> {
        if let Form::Planned { copy, .. } = &self.form {
            copy.before_call(&self.team);
        }
        let state = state
            .downcast::<FastState>()
            .filter(|s| Arc::ptr_eq(&s.identity, &self.identity))
            .ok_or(Error::ForeignState)?;
        let threads = self.team.threads();
        let floats = |i: usize| match inputs[i].data() {
            Data::F32(v) => Ok(&v[..]),
            other => {
                let signature = &self.signatures[function];
                Err(signature.refuse(&signature.inputs[i].name, "fp32", other.dtype().to_string()))
            }
        };
        // Room, which later calls find.
        if state.arena.len() < plan.width * tokens {
            state.arena.resize(plan.width * tokens, 0.0);
        }
        state.scratch.resize_with(threads + 1, Scratch::default);
        for scratch in &mut state.scratch[..threads] {
            scratch.reserve(1, plan.longest);
            if scratch.scores.len() < plan.scores {
                scratch.scores.resize(plan.scores, 0.0);
            }
        }
        state.scratch[threads].reserve(tokens, plan.longest);
        if state.counters.len() < plan.steps.len() {
            state.counters.resize_with(plan.steps.len(), AtomicUsize::default);
        }
        state.counters.iter().for_each(|c| c.store(0, Ordering::Relaxed));
        state.masks.resize_with(plan.masks.len().max(state.masks.len()), Masks::default);
        for (masks, &(attention, write)) in state.masks.iter_mut().zip(&plan.masks) {
            masks.read(floats(attention)?, floats(write)?, tokens);
        }
        for (i, crossing) in plan.inputs.iter().enumerate() {
            if let Some(crossing) = crossing {
                let from = floats(i)?;
                crossing.enter(from, &mut state.arena[crossing.view.place * tokens..]);
            }
        }
        state.raw.clear();
        state.raw.extend(state.caches.iter_mut().map(Cache::raw));

        let meeting = Meeting::new(threads);
        let failure = Mutex::new(None);
        let call = Call {
            plan,
            isa: self.isa,
            tokens,
            threads,
            inputs,
            arena: Across(state.arena.as_mut_ptr()),
            raw: Across(state.raw.as_mut_ptr()),
            scratch: Across(state.scratch.as_mut_ptr()),
            masks: &state.masks,
            counters: &state.counters,
            islands: Across(state.islands[function].as_mut_ptr()),
            meeting: &meeting,
            failure: &failure,
        };
        self.team.run(&|thread| {
            let _guard = meeting.guard();
            call.run(thread);
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        Ok(&state.arena)
    }
}

impl Model for FastModel {
    fn functions(&self) -> &[Signature] {
        &self.signatures
    }

    fn default_function(&self) -> usize {
        self.default_function
    }

    fn float(&self) -> Dtype {
        Dtype::F32
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    fn most_tokens(&self, function: usize) -> Option<usize> {
        match &self.form {
            Form::Planned { plans, .. } => plans.get(function).filter(|p| p.elastic).map(|_| MOST_TOKENS),
            Form::Whole { .. } => None,
        }
    }

    fn new_state(&self) -> Result<State, Error> {
        let islands = match &self.form {
            Form::Whole { model, .. } => return model.new_state(),
            Form::Planned { plans, .. } => {
                let of = |plan: &Plan| {
                    let islands = plan.steps.iter().filter_map(|step| match step {
                        Step::Island(island) => Some(island.new_state()),
                        _ => None,
                    });
                    islands.collect::<Result<Vec<_>, _>>()
                };
                plans.iter().map(of).collect::<Result<Vec<_>, _>>()?
            }
        };
        Ok(State::new(FastState {
            identity: Arc::clone(&self.identity),
            caches: self.caches.iter().map(|c| Cache::new(c.heads, c.rows, c.head_dim)).collect(),
            arena: Vec::new(),
            scratch: Vec::new(),
            masks: Vec::new(),
            counters: Vec::new(),
            islands,
            raw: Vec::new(),
        }))
    }

    fn run(&self, function: usize, inputs: &[&Tensor], state: &mut State) -> Result<Vec<Tensor>, Error> {
        let (plan, tokens) = match self.way(function, inputs)? {
            Way::Whole(model) => return model.run(function, inputs, state),
            Way::Planned(plan, tokens) => (plan, tokens),
        };
        let blank = |crossing| {
            let shape: Vec<usize> = plan.shape(crossing, tokens).collect();
            let n = shape.iter().product();
            Tensor::new(&shape, Data::F32(vec![0.0; n]))
        };
        let mut outputs: Vec<Tensor> = plan.outputs.iter().map(blank).collect();
        plan.leave(self.call(function, plan, tokens, inputs, state)?, tokens, &mut outputs);
        Ok(outputs)
    }

    fn run_into(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        outputs: &mut [Tensor],
    ) -> Result<(), Error> {
        let (plan, tokens) = match self.way(function, inputs)? {
            Way::Whole(model) => return model.run_into(function, inputs, state, outputs),
            Way::Planned(plan, tokens) => (plan, tokens),
        };
        let fits = |(output, crossing): (&Tensor, _)| {
            output.dtype() == Dtype::F32 && output.shape().iter().copied().eq(plan.shape(crossing, tokens))
        };
        if outputs.len() != plan.outputs.len() || !outputs.iter().zip(&plan.outputs).all(fits) {
            return Err(self.signatures[function].refuse("outputs", "outputs of the call's shapes", "others"));
        }
        plan.leave(self.call(function, plan, tokens, inputs, state)?, tokens, outputs);
        Ok(())
    }

    fn run_rows(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        rows: &mut Rows,
        row: usize,
        column: usize,
    ) -> Result<(), Error> {
        let (plan, tokens) = match self.way(function, inputs)? {
            Way::Whole(model) => return model.run_rows(function, inputs, state, rows, row, column),
            Way::Planned(plan, tokens) => (plan, tokens),
        };
        let Crossing { view, axis, .. } = &plan.outputs[0];
        if tokens > 1 && *axis != Some(2) {
            rows.put_tokens(row, column, &self.run(function, inputs, state)?[0]);
            return Ok(());
        }
        let arena = self.call(function, plan, tokens, inputs, state)?;
        // Rows are what it has.
        for (row, from) in (row..rows.len()).zip(arena[view.place * tokens..].chunks(view.width).take(tokens)) {
            rows.put(row, column, from);
        }
        Ok(())
    }
}

/// One call, as every thread of the team sees it.
struct Call<'a> {
    plan: &'a Plan,
    isa: Isa,
    tokens: usize,
    threads: usize,
    inputs: &'a [&'a Tensor],
    arena: Across<f32>,
    raw: Across<RawCache>,
    scratch: Across<Scratch>,
    masks: &'a [Masks],
    counters: &'a [AtomicUsize],
    islands: Across<State>,
    meeting: &'a Meeting,
    failure: &'a Mutex<Option<Error>>,
}

impl Call<'_> {
    fn run(&self, thread: usize) {
        let mut island = 0;
        for (number, step) in self.plan.steps.iter().enumerate() {
            match step {
                Step::Rows { source, out } => self.rows(thread, source, out),
                Step::Linear { source, parts } => self.linear(thread, number, source, parts),
                Step::Attention(attention) => self.attention(thread, number, attention),
                Step::Island(ops) => {
                    if thread == 0 {
                        // SAFETY: the other threads are on their way to the meeting below.
                        let result = unsafe {
                            let state = &mut *self.islands.get().add(island);
                            ops.run(self.arena(), self.tokens, self.inputs, state)
                        };
                        if let Err(error) = result {
                            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                    }
                    island += 1;
                }
            }
            self.meeting.wait();
        }
    }

    fn arena(&self) -> Arena {
        Arena::new(self.arena.get(), self.tokens)
    }

    /// Units of a step that no other thread has taken.
    fn units(&self, number: usize, count: usize) -> impl Iterator<Item = usize> {
        let counter = &self.counters[number];
        std::iter::from_fn(move || Some(counter.fetch_add(1, Ordering::Relaxed)).filter(|&unit| unit < count))
    }

    fn rows(&self, thread: usize, source: &RowSource, out: &rows::View) {
        for token in (thread..self.tokens).step_by(self.threads) {
            // SAFETY: the plan gave the result a place of its own, and each token is one thread's.
            let out = unsafe { self.arena().row_mut(out, token) };
            self.isa.run(Prepared { row: Row { source, arena: self.arena(), token, out }, ints: None });
        }
    }

    /// Every thread needs the whole input of a projection. One token's row is sooner computed by each than waited for.
    fn linear(&self, thread: usize, number: usize, source: &RowSource, parts: &[Part]) {
        let padded = source.width().next_multiple_of(linear::PADDING);
        let int8 = parts.iter().any(|p| matches!(p.matrix.elements, Weights::Int8(_)));
        let alone = self.tokens == 1;
        let own = if alone { thread } else { self.threads };
        // SAFETY: a thread's own, or the shared one, of which each thread writes the rows of its tokens.
        let (floats, ints, worth) = unsafe {
            let scratch = self.scratch.get().add(own);
            (
                (*scratch).floats.as_mut_ptr().cast::<f32>(),
                (*scratch).ints.as_mut_ptr().cast::<i16>(),
                (*scratch).worth.as_mut_ptr(),
            )
        };
        let first = if alone { 0 } else { thread };
        for token in (first..self.tokens).step_by(if alone { 1 } else { self.threads }) {
            // SAFETY: there is room for all tokens, and this row is this thread's.
            let (out, ints) = unsafe {
                let row = std::slice::from_raw_parts_mut(ints.add(token * padded), padded);
                (
                    std::slice::from_raw_parts_mut(floats.add(token * padded), padded),
                    int8.then(|| (row, &mut *worth.add(token))),
                )
            };
            self.isa.run(Prepared { row: Row { source, arena: self.arena(), token, out }, ints });
        }
        if !alone {
            self.meeting.wait();
        }
        let x = Activations { floats, ints, scales: worth, padded, tokens: self.tokens };
        // Rows in units small enough that a thread which is late does not keep the others waiting.
        let total: usize = parts.iter().map(|p| p.matrix.rows).sum();
        let each = if self.threads == 1 { total } else { total.div_ceil(8 * self.threads).next_multiple_of(16) };
        let count = |part: &Part| part.matrix.rows.div_ceil(each);
        for unit in self.units(number, parts.iter().map(count).sum()) {
            let mut unit = unit;
            let Some(part) = parts.iter().find(|part| {
                let here = unit < count(part);
                unit -= if here { 0 } else { count(part) };
                here
            }) else {
                continue;
            };
            let rows = unit * each..part.matrix.rows.min((unit + 1) * each);
            let arena = self.arena();
            let y = Output {
                out: arena.at(&part.out, 0),
                stride: part.out.stride,
                residual: part.residual.as_ref().map(|r| (arena.at(r, 0).cast_const(), r.stride)),
            };
            self.isa.run(Product { matrix: &part.matrix, bias: part.bias.as_deref(), rows, x, y });
        }
    }

    fn attention(&self, thread: usize, number: usize, attention: &Attention) {
        // SAFETY: a copy of pointers; who follows them where is said in the kernels.
        let cache = unsafe { *self.raw.get().add(attention.cache) };
        let (mask, write) = self.plan.masks[attention.masks];
        let floats = |i: usize| match self.inputs[i].data() {
            Data::F32(v) => &v[..],
            _ => &[],
        };
        let masked = Masked { masks: &self.masks[attention.masks], attention: floats(mask), write: floats(write) };
        let layer = Layer { attention, cache, masked, arena: self.arena(), tokens: self.tokens };
        for unit in (thread..attention.writes(masked.masks, self.tokens)).step_by(self.threads) {
            self.isa.run(Write { layer, unit });
        }
        self.meeting.wait();
        // SAFETY: this thread's own.
        let scratch = unsafe { &mut (*self.scratch.get().add(thread)).scores };
        for unit in self.units(number, attention.answers(self.tokens)) {
            self.isa.run(Answer { layer, unit, scratch });
        }
    }
}
