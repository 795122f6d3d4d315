//! What every runtime is to its users: a way to load a package, hold its state, and run its functions.
//!
//! The portable runtime and Core ML stand behind the same two traits, so that chat, gates and benchmarks do not know which
//! one they hold. Tensors cross the border in the runtime's *working* float type ([`Model::float`]): `f32` where the numerics are
//! exact, fp16 where they are the Neural Engine's. A program's fp16 ports accept and yield that type.
//!
//! **Invariant:** a token's result is bit-identical whatever T, block split or thread count computed it.

use std::any::Any;
use std::path::Path;

use anemone_mil::Valid;
use anemone_mil::ir::Dtype;

use crate::border::Signature;
use crate::rows::Rows;
use crate::tensor::Tensor;

/// Loads packages.
pub trait Runtime: Send + Sync {
    /// What a verdict says it was measured on: device and numerics, such as `portable exact`.
    fn describe(&self) -> String;

    /// Reads, validates and prepares one package. Everything that can be refused is refused here, not at the first call.
    fn load(&self, package: &Path) -> Result<Box<dyn Model>, Error>;

    /// Prepares a program that is in no package of its own: a part of one. A runtime of packages refuses it.
    fn load_program(&self, program: &Valid) -> Result<Box<dyn Model>, Error> {
        let _ = program;
        let reason = format!("{} runs packages as a whole; the portable runtime runs parts of them", self.describe());
        Err(Error::Foreign { function: "a part of a package".to_owned(), reason })
    }
}

/// One loaded package.
pub trait Model: Send + Sync {
    /// Its functions, in name order.
    fn functions(&self) -> &[Signature];

    /// The function that runs when none is named: an index into [`functions`](Self::functions).
    fn default_function(&self) -> usize;

    /// The float type in which this model takes and gives what the program declares as fp16.
    fn float(&self) -> Dtype;

    /// Metadata of the package (`userDefined`).
    fn metadata(&self, key: &str) -> Option<&str>;

    /// A fresh state: every cache zero. One conversation owns one state; functions of a package share it by name.
    fn new_state(&self) -> Result<State, Error>;

    /// Runs one function once. `inputs` are in the order of its signature, and so are the results; `state` is left as the
    /// program's writes make it. On an error the state is unspecified and must be dropped.
    fn run(&self, function: usize, inputs: &[&Tensor], state: &mut State) -> Result<Vec<Tensor>, Error>;

    /// As [`run`](Self::run), into tensors of the outputs' types and shapes: a caller in a loop keeps them.
    fn run_into(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        outputs: &mut [Tensor],
    ) -> Result<(), Error> {
        let results = self.run(function, inputs, state)?;
        outputs.iter_mut().zip(results).for_each(|(output, result)| *output = result);
        Ok(())
    }

    /// As [`run`](Self::run), of a function with one output `[1, width, T, 1]`, whose tokens become rows, widened to f32: the first
    /// one row `row` and so on, from element `column` on. Tokens for which there is no row are dropped.
    ///
    /// # Panics
    /// If the output is of another form, or a row ends before it.
    fn run_rows(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        rows: &mut Rows,
        row: usize,
        column: usize,
    ) -> Result<(), Error> {
        rows.put_tokens(row, column, &self.run(function, inputs, state)?[0]);
        Ok(())
    }

    /// Whether calls of several models end sooner when they are made at once than one after another. Not where one call keeps
    /// every core busy.
    fn overlaps(&self) -> bool {
        false
    }

    /// Where a function accepts another number of tokens than it declares, in every input's dimension of tokens at once:
    /// how many at most. The results are those of the declared number, token by token.
    fn most_tokens(&self, function: usize) -> Option<usize> {
        let _ = function;
        None
    }

    /// As [`run`](Self::run), telling `watch` each value that the function computes, by its name in the program and in the
    /// program's order. What a runtime fuses away it does not tell, and one that cannot look inside tells nothing.
    fn run_watched(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        watch: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        let _ = watch;
        self.run(function, inputs, state)
    }
}

/// A conversation's memory inside one package, opaque to everybody but the runtime that made it.
pub struct State(Box<dyn Any + Send>);

impl State {
    /// Wraps a runtime's own state.
    pub fn new<S: Any + Send>(state: S) -> Self {
        Self(Box::new(state))
    }

    /// The runtime's own state, if this runtime made it.
    pub fn downcast<S: Any>(&mut self) -> Option<&mut S> {
        self.0.downcast_mut()
    }
}

/// Why a package could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The package could not be read or is not well formed.
    #[error("{package}: {reason}")]
    Package {
        /// The package's path.
        package: String,
        /// What the reader or validator said.
        reason: String,
    },
    /// The package is well formed, and this runtime cannot execute it.
    #[error("{function}: op `{op}`: {reason}")]
    Unsupported {
        /// The function.
        function: String,
        /// The op, as printed.
        op: String,
        /// What is not supported.
        reason: String,
    },
    /// The caller's tensors do not fit the signature.
    #[error("{function}: input `{input}`: expected {expected}, found {found}")]
    Input {
        /// The function.
        function: String,
        /// The input's name.
        input: String,
        /// What the signature asks for.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An op failed while running: a run-time index out of range, a shape that does not match.
    #[error("{function}: op `{op}`: {reason}")]
    Op {
        /// The function.
        function: String,
        /// The op, as printed.
        op: String,
        /// What went wrong.
        reason: String,
    },
    /// The system's own runtime refused a call, or answered what cannot be.
    #[error("{function}: {reason}")]
    Foreign {
        /// The function.
        function: String,
        /// What it said, and what is known about that.
        reason: String,
    },
    /// A state of another model or runtime.
    #[error("this state belongs to another model; make one with `new_state` of the model it is used with")]
    ForeignState,
}

impl Error {
    /// A call of function number `function` of a package that has `count`.
    pub fn no_function(function: usize, count: usize) -> Self {
        let (expected, found) = (format!("a function below {count}"), function.to_string());
        Self::Input { function: format!("function {function}"), input: String::new(), expected, found }
    }
}

/// The program of a package, read and validated.
pub fn open(package: &Path) -> Result<Valid, Error> {
    match anemone_mil::open(package) {
        Ok((program, _)) => Ok(program),
        Err(e) => Err(Error::Package { package: package.display().to_string(), reason: e.to_string() }),
    }
}
