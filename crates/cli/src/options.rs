//! Arguments that several commands take.

use std::path::Path;
use std::sync::Arc;

use anemone_bundle::contract::WeightMode;
use anemone_exec::{self as exec, Numerics};
use anemone_gate::residency::{Chip, Target};
use anemone_gguf::Gguf;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::runtime::Chosen;

/// What a command runs on.
#[derive(Args, Clone)]
pub struct RuntimeArgs {
    /// What runs the shards: Core ML, on a Mac, or the program's own runtime, anywhere.
    #[arg(long, value_enum, default_value_t = RuntimeArg::HERE)]
    pub runtime: RuntimeArg,
    /// Where Core ML may compute. The GPU is used where it is named here, and not otherwise.
    #[arg(long, value_enum, default_value_t = UnitsArg::Ane)]
    pub units: UnitsArg,
    /// How the portable runtime computes: `exact` op by op in f32, `ane` rounds to fp16 at every op, as the Neural Engine is
    /// known to, `fast` in fused kernels. Answers come `fast` and gates judge `exact`, if nothing else is said.
    #[arg(long, value_enum)]
    pub numerics: Option<NumericsArg>,
    /// Threads; all cores where not given. Results do not depend on it.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// The runtimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArg {
    /// Core ML: on a Mac only, and the default there.
    Coreml,
    /// The program's own.
    Portable,
}

impl RuntimeArg {
    /// The default of this machine.
    pub const HERE: Self = if cfg!(target_os = "macos") { Self::Coreml } else { Self::Portable };
}

/// Where Core ML may compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnitsArg {
    /// The Neural Engine, and the CPU for what it does not take.
    Ane,
    /// The CPU alone.
    Cpu,
    /// Whatever Core ML likes, the GPU among it.
    All,
}

/// See [`Numerics`](exec::Numerics).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// f32 throughout.
    Exact,
    /// fp16 at every op, f32 accumulation.
    Ane,
    /// Fused kernels.
    Fast,
}

impl Default for RuntimeArgs {
    fn default() -> Self {
        Self { runtime: RuntimeArg::HERE, units: UnitsArg::Ane, numerics: None, threads: None }
    }
}

impl RuntimeArgs {
    /// The runtime that was asked for; the portable one with these numerics where the user asked for none.
    pub fn choose(&self, default: NumericsArg) -> Result<Chosen> {
        match self.runtime {
            RuntimeArg::Coreml => Chosen::core_ml(self.units),
            RuntimeArg::Portable => Ok(Chosen::portable(self, default)),
        }
    }

    /// What a gate holds the portable runtime's findings to: the fast one means what the exact one does.
    pub fn judged_as(&self) -> Numerics {
        match self.numerics {
            Some(NumericsArg::Ane) => Numerics::Ane,
            _ => Numerics::Exact,
        }
    }

    /// Its settings, whatever the numerics.
    pub fn portable_options(&self) -> exec::Options {
        let mut options = exec::Options::default();
        if let Some(threads) = self.threads {
            options.threads = threads;
        }
        options
    }
}

/// The machine that a placement is predicted for.
#[derive(Args, Clone, Copy)]
pub struct TargetArgs {
    /// Predict placement for this chip: M1 to M5.
    #[arg(long, default_value_t = Target::default().chip)]
    pub chip: Chip,
    /// Predict placement for this macOS.
    #[arg(long, value_name = "MAJOR", default_value_t = Target::default().os, value_parser = clap::value_parser!(u32).range(11..100))]
    pub os: u32,
}

impl TargetArgs {
    /// The machine.
    pub fn target(self) -> Target {
        Target { chip: self.chip, os: self.os }
    }
}

impl Default for TargetArgs {
    fn default() -> Self {
        let Target { chip, os } = Target::default();
        Self { chip, os }
    }
}

/// How projections are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsArg {
    /// int8, one scale for each output channel.
    Int8Channel,
    /// int8, one scale for each tensor.
    Int8,
    /// fp16.
    Fp16,
}

impl From<WeightsArg> for WeightMode {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::Int8Channel => WeightMode::Int8Channel,
            WeightsArg::Int8 => WeightMode::Int8,
            WeightsArg::Fp16 => WeightMode::Fp16,
        }
    }
}

/// Opens a source; its errors name what is wrong in it, and this names the file.
pub fn open_source(path: &Path) -> Result<Arc<Gguf>> {
    Ok(Arc::new(Gguf::open(path).with_context(|| path.display().to_string())?))
}

/// A path's last part, for manifests that do not know where they were built.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
