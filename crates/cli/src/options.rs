//! Arguments that several commands take.

use std::path::Path;
use std::sync::Arc;

use anemone_bundle::contract::WeightMode;
use anemone_exec::{self as exec, Numerics, Portable};
use anemone_gguf::Gguf;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

/// How the portable runtime computes.
#[derive(Args, Clone)]
pub struct RuntimeArgs {
    /// How numbers round: `exact` is f32 throughout; `ane` rounds to fp16 at every op, as the Neural Engine is known to.
    #[arg(long, value_enum, default_value_t = NumericsArg::Exact)]
    pub numerics: NumericsArg,
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
}

impl RuntimeArgs {
    /// The runtime.
    pub fn portable(&self) -> Portable {
        let numerics = match self.numerics {
            NumericsArg::Exact => Numerics::Exact,
            NumericsArg::Ane => Numerics::Ane,
        };
        Portable::new(numerics, self.portable_options())
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
