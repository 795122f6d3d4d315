//! The calls that only a Mac can answer, and the words in which their answers are given.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anemone_mil::ir::Dtype;

use crate::array::{Array, Strided};
use crate::deadline::Completion;
use crate::failure::Failure;

/// Where Core ML may compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// The Neural Engine, and the CPU for what it does not take.
    #[default]
    NeuralEngineAndCpu,
    /// The CPU alone: for comparisons, not for speed. Reported to give NaN for some stateful fp16 programs, so no oracle.
    CpuOnly,
    /// Whatever Core ML likes, the GPU among it.
    All,
}

impl Units {
    /// The words of a verdict's `measured_on`.
    pub fn name(self) -> &'static str {
        match self {
            Units::NeuralEngineAndCpu => "neural engine and cpu",
            Units::CpuOnly => "cpu only",
            Units::All => "all units",
        }
    }
}

/// Where a compute plan puts an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The GPU.
    Gpu,
    /// The Neural Engine.
    NeuralEngine,
    /// A device that this program does not know.
    Other,
}

impl Device {
    /// The word in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
            Device::NeuralEngine => "ane",
            Device::Other => "other",
        }
    }
}

/// The machine and system that answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// As the system names it: `Apple M4 Max`.
    pub chip: String,
    /// Major, minor and patch of macOS.
    pub os: [u32; 3],
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.os;
        write!(f, "{}, macOS {major}.{minor}.{patch}", self.chip)
    }
}

/// What Core ML says a function takes, gives and keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Inputs, in no order.
    pub inputs: Vec<Described>,
    /// Outputs, in no order.
    pub outputs: Vec<Described>,
    /// States, in no order.
    pub states: Vec<Described>,
}

/// One array of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its element type; `None` where Core ML names one that programs do not have.
    pub dtype: Option<Dtype>,
    /// Its shape, the default one where several are accepted; empty where Core ML does not say.
    pub shape: Vec<usize>,
}

/// An output as it came back.
#[derive(Debug)]
pub enum Returned {
    /// In the memory that was proposed for it.
    InPlace,
    /// In Core ML's own memory, copied out as it lay there.
    Elsewhere(Strided),
}

/// One op of a compute plan.
#[derive(Clone, Debug, PartialEq)]
pub struct OpUsage {
    /// The function.
    pub function: String,
    /// The op's kind. Core ML may prefix it with the opset: `ios18.conv`.
    pub kind: String,
    /// Names of its results, which is what a package's own ops are found by.
    pub outputs: Vec<String>,
    /// Where the plan puts it; `None` where the plan does not speak of it, as for constants.
    pub preferred: Option<Device>,
    /// Where it could run.
    pub supported: Vec<Device>,
    /// Its part of the whole program's estimated cost, 0 to 1.
    pub cost: Option<f64>,
}

/// The foreign calls. An implementation does no more than to translate.
///
/// Those that answer through a [`Completion`] return at once; whoever calls them waits with a time limit.
pub trait Foreign: Send + Sync + 'static {
    /// One loaded function. Calls on one function are made one at a time.
    type Function: Send;
    /// The state of a conversation inside one package.
    type State: Send;

    /// The machine that answers.
    fn machine(&self) -> Machine;

    /// Whether the caller is on the thread whose queue handlers may be delivered to. If so, lets that queue run for at most
    /// `slice`.
    fn turn_main_queue(&self, slice: Duration) -> bool;

    /// Compiles a package into a temporary folder that is the caller's from then on.
    fn compile(&self, package: &Path, done: Completion<PathBuf>);

    /// Loads one function of a compiled package: the only one where no name is given.
    fn load(&self, compiled: &Path, function: Option<&str>, units: Units, done: Completion<Self::Function>);

    /// What Core ML says of a loaded function.
    fn describe(&self, function: &Self::Function) -> Description;

    /// A fresh state, every element zero.
    fn new_state(&self, function: &Self::Function) -> Result<Self::State, Failure>;

    /// Copies the named states from one state to another that has states of the same names, types and shapes.
    fn copy_state(&self, names: &[&str], from: &Self::State, to: &Self::State) -> Result<(), Failure>;

    /// Runs a function once. `wanted` names the outputs, each with memory proposed for it where its shape is known; the
    /// answer is in that order, `None` where Core ML gave no value. When the call is over nothing writes to the proposed
    /// memory any more.
    fn predict(
        &self,
        function: &Self::Function,
        inputs: &[(&str, &Array)],
        state: Option<&Self::State>,
        wanted: &[(&str, Option<&Array>)],
    ) -> Result<Vec<Option<Returned>>, Failure>;

    /// Where each op of each function of a compiled package would run.
    fn plan(&self, compiled: &Path, units: Units, done: Completion<Vec<OpUsage>>);
}
