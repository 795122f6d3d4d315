//! The runtime that a command runs on: Core ML on a Mac, the program's own anywhere. Commands hold a trait; what only one of
//! them can tell is told here.

#[cfg(target_os = "macos")]
use anemone_coreml::{CoreMl, Limits, Report, Sharing, Units, apple::Apple};
use anemone_exec::{self as exec, Fast, FastOptions, Numerics, Portable, Runtime};
use anemone_gate::residency::{self, Target};
use anemone_gate::{Finding, Subject, compile};
use anyhow::Result;

use crate::options::{NumericsArg, RuntimeArgs, UnitsArg};
use crate::ui::Ui;

/// Why there is no Core ML here.
#[cfg(not(target_os = "macos"))]
pub const ABSENT: &str = "Core ML is a part of macOS, and this is another system; use `--runtime portable`";

/// A runtime.
pub enum Chosen {
    /// The program's own.
    Portable(Box<dyn Runtime>, Numerics),
    /// Core ML.
    #[cfg(target_os = "macos")]
    CoreMl(CoreMl<Apple>),
}

impl Chosen {
    /// The portable runtime, with these numerics where the user asked for none.
    pub fn portable(args: &RuntimeArgs, default: NumericsArg) -> Self {
        let options = args.portable_options();
        let runtime: Box<dyn Runtime> = match args.numerics.unwrap_or(default) {
            NumericsArg::Exact => Box::new(Portable::new(Numerics::Exact, options)),
            NumericsArg::Ane => Box::new(Portable::new(Numerics::Ane, options)),
            NumericsArg::Fast => {
                let exec::Options { threads, memory_limit, .. } = options;
                Box::new(Fast::new(FastOptions { threads, memory_limit, ..FastOptions::default() }))
            }
        };
        Chosen::Portable(runtime, args.judged_as())
    }

    /// Core ML of this machine.
    #[cfg(target_os = "macos")]
    pub fn core_ml(units: UnitsArg) -> Result<Self> {
        let units = match units {
            UnitsArg::Ane => Units::NeuralEngineAndCpu,
            UnitsArg::Cpu => Units::CpuOnly,
            UnitsArg::All => Units::All,
        };
        let compiled = crate::cache::home()?.join("compiled");
        Ok(Chosen::CoreMl(CoreMl::new(Apple, units, compiled, Limits::default())))
    }

    /// Core ML of this machine: there is none.
    #[cfg(not(target_os = "macos"))]
    pub fn core_ml(_: UnitsArg) -> Result<Self> {
        anyhow::bail!(ABSENT)
    }

    /// What loads packages.
    pub fn runtime(&self) -> &dyn Runtime {
        match self {
            Chosen::Portable(portable, _) => portable.as_ref(),
            #[cfg(target_os = "macos")]
            Chosen::CoreMl(core_ml) => core_ml,
        }
    }

    /// How it computes, which decides how near it has to come to a reference.
    pub fn numerics(&self) -> Numerics {
        match self {
            Chosen::Portable(_, numerics) => *numerics,
            #[cfg(target_os = "macos")]
            Chosen::CoreMl(_) => Numerics::Ane,
        }
    }

    /// Whether placement is asked of Core ML here, and not predicted.
    pub fn measures_placement(&self) -> bool {
        !matches!(self, Chosen::Portable(..))
    }

    /// Whether a bundle's packages are well formed and, where there is one, Core ML compiles and loads them.
    pub fn compile(&self, subject: &Subject) -> Vec<Finding> {
        match self {
            Chosen::Portable(..) => compile::judge(subject),
            #[cfg(target_os = "macos")]
            Chosen::CoreMl(core_ml) => {
                let ask = |package: &std::path::Path| match core_ml.try_load(package) {
                    Ok((compile, load)) => Ok(format!("{}, loaded in {:.1} s", compiled(compile), load.as_secs_f64())),
                    Err(e) => Err(e.to_string()),
                };
                compile::measured(subject, &core_ml.describe(), &ask)
            }
        }
    }

    /// Where each op of a bundle's packages runs, judged: by Core ML's plans, or predicted for `target` where there is none.
    pub fn residency(&self, subject: &Subject, target: Target) -> Vec<Finding> {
        match self {
            Chosen::Portable(..) => residency::judge(subject, target),
            #[cfg(target_os = "macos")]
            Chosen::CoreMl(core_ml) => {
                let ask = |package: &std::path::Path| core_ml.plan(package).map_err(|e| e.to_string());
                residency::measured::judge(subject, core_ml.machine(), &ask)
            }
        }
    }

    /// Says what loading took, where that is worth a word: compiling, loading and first calls apart.
    pub fn tell_loads(&self, ui: &Ui) {
        for line in self.loads() {
            ui.say(line);
        }
    }

    /// A line for each package that was loaded.
    pub fn loads(&self) -> Vec<String> {
        match self {
            Chosen::Portable(..) => Vec::new(),
            #[cfg(target_os = "macos")]
            Chosen::CoreMl(core_ml) => core_ml.reports().iter().map(line).collect(),
        }
    }
}

#[cfg(target_os = "macos")]
fn compiled(time: Option<std::time::Duration>) -> String {
    time.map_or("compiled before".to_owned(), |time| format!("compiled in {:.1} s", time.as_secs_f64()))
}

#[cfg(target_os = "macos")]
fn line(report: &Report) -> String {
    let compiled = compiled(report.compile);
    let shared = match &report.sharing {
        Sharing::Copied(functions, said) => format!("; caches are copied for {} ({said})", functions.join(", ")),
        Sharing::Alone | Sharing::Shared => String::new(),
    };
    format!(
        "{}: {compiled}, loaded in {:.1} s, first calls {:.1} s{shared}",
        report.package.display(),
        report.load.as_secs_f64(),
        report.warm_up.as_secs_f64()
    )
}
