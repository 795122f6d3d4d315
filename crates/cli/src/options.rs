//! Arguments that several commands take.

use std::path::Path;
use std::sync::Arc;

use anemone_bundle::contract::WeightMode;
use anemone_exec::{self as exec, Fast, FastOptions, Numerics, Portable, Runtime};
use anemone_gguf::Gguf;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

/// How the portable runtime computes.
#[derive(Args, Clone)]
pub struct RuntimeArgs {
    /// How numbers are computed: `exact` op by op in f32, `ane` rounds to fp16 at every op, as the Neural Engine is known to,
    /// `fast` in fused kernels. Answers come `fast` and gates judge `exact`, if nothing else is said.
    #[arg(long, value_enum)]
    pub numerics: Option<NumericsArg>,
    /// Threads; all cores where not given. Results do not depend on it.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// See [`Numerics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// f32 throughout.
    Exact,
    /// fp16 at every op, f32 accumulation.
    Ane,
    /// Fused kernels.
    Fast,
}

impl RuntimeArgs {
    /// The runtime, with these numerics where the user asked for none.
    pub fn runtime(&self, default: NumericsArg) -> Box<dyn Runtime> {
        match self.numerics.unwrap_or(default) {
            NumericsArg::Exact => Box::new(Portable::new(Numerics::Exact, self.portable_options())),
            NumericsArg::Ane => Box::new(Portable::new(Numerics::Ane, self.portable_options())),
            NumericsArg::Fast => {
                let exec::Options { threads, memory_limit, .. } = self.portable_options();
                Box::new(Fast::new(FastOptions { threads, memory_limit, ..FastOptions::default() }))
            }
        }
    }

    /// What a gate holds its findings to: the fast runtime means what the exact one does.
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
