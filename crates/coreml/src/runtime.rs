//! Loading: compile or find, load each function, hold it against the package, warm it up.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anemone_exec::{Error, Model, Runtime};
use anemone_mil::Valid;

use crate::cache::{Cache, Key};
use crate::deadline::{self, Completion, Late};
use crate::foreign::{Foreign, Machine, OpUsage, Units};
use crate::model::{self, CoreMlModel, Sharing};

/// How long Core ML may take for what it answers through a handler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To compile a package.
    pub compile: Duration,
    /// To load a function, the Neural Engine's own compiler included.
    pub load: Duration,
    /// To make a compute plan.
    pub plan: Duration,
}

impl Default for Limits {
    /// Several times the longest that was reported: 115 s for a 20-layer shard of Phi-4-mini, 133 s for a flexible one.
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self { compile: minutes(20), load: minutes(20), plan: minutes(20) }
    }
}

/// What loading a package took and found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The package.
    pub package: PathBuf,
    /// How long compiling took; `None` where the compiled form was found in the cache.
    pub compile: Option<Duration>,
    /// How long loading all functions took.
    pub load: Duration,
    /// How long the first call of all functions took.
    pub warm_up: Duration,
    /// What its functions do with states.
    pub sharing: Sharing,
}

/// A package that Core ML took, before its first call.
struct Loaded<F: Foreign> {
    program: Valid,
    functions: Vec<F::Function>,
    /// As in [`Report`].
    compile: Option<Duration>,
    load: Duration,
}

/// Core ML as a runtime.
pub struct CoreMl<F: Foreign> {
    foreign: Arc<F>,
    /// Asked once: it is in every key and every description.
    machine: Machine,
    units: Units,
    limits: Limits,
    cache: Cache,
    reports: Mutex<Vec<Report>>,
}

impl<F: Foreign> CoreMl<F> {
    /// A runtime that computes on `units` and keeps compiled packages in the folder `cache`.
    pub fn new(foreign: F, units: Units, cache: PathBuf, limits: Limits) -> Self {
        let machine = foreign.machine();
        Self { foreign: Arc::new(foreign), machine, units, limits, cache: Cache::new(cache), reports: Mutex::default() }
    }

    /// What each load so far took, in order.
    pub fn reports(&self) -> Vec<Report> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The machine that answers.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// As [`Runtime::load`], for callers that know which runtime they hold.
    pub fn load_coreml(&self, package: &Path) -> Result<CoreMlModel<F>, Error> {
        let Loaded { program, functions, compile, load } = self.functions(package)?;
        let mut model = CoreMlModel::new(self.foreign.clone(), &program, functions);
        let start = Instant::now();
        let sharing = model.warm_up()?;
        let warm_up = start.elapsed();
        let report = Report { package: package.to_owned(), compile, load, warm_up, sharing };
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        Ok(model)
    }

    /// Compiles and loads a package and lets go of it: what Core ML refuses without a call. Says how long compiling took, unless
    /// the compiled form was there, and loading.
    pub fn try_load(&self, package: &Path) -> Result<(Option<Duration>, Duration), Error> {
        self.functions(package).map(|loaded| (loaded.compile, loaded.load))
    }

    /// The functions of a package, each held against what the package says of it.
    fn functions(&self, package: &Path) -> Result<Loaded<F>, Error> {
        let program = model::open(package)?;
        let refuse = |reason: String| Error::Package { package: package.display().to_string(), reason };
        let (compiled, key, compile) = self.compiled(package)?;
        let start = Instant::now();
        // The one function of a package has no name for Core ML.
        let several = program.functions.len() > 1;
        let names = || program.functions.iter().map(|f| several.then_some(f.name.as_str()));
        let load_all =
            |compiled: &Path| names().map(|n| self.load_function(compiled, n)).collect::<Result<Vec<_>, _>>();
        let functions = match load_all(&compiled) {
            // A compiled form that was kept may have gone stale; a fresh one has no such excuse.
            Err(Late::Failed(_)) if compile.is_none() => {
                self.cache.forget(&key).map_err(|e| refuse(format!("cache: {e}")))?;
                let (compiled, _, _) = self.compiled(package)?;
                load_all(&compiled)
            }
            other => other,
        };
        let functions = functions.map_err(|e| refuse(e.to_string()))?;
        for (signature, function) in model::signatures(&program).iter().zip(&functions) {
            if let Some(how) = model::disagreement(signature, &self.foreign.describe(function)) {
                return Err(refuse(format!("{}: {how}", signature.name)));
            }
        }
        Ok(Loaded { program, functions, compile, load: start.elapsed() })
    }

    /// Where Core ML plans to run each op of each function.
    pub fn plan(&self, package: &Path) -> Result<Vec<OpUsage>, Error> {
        model::open(package)?;
        let (compiled, _, _) = self.compiled(package)?;
        let plan = self.wait(self.limits.plan, |done| self.foreign.plan(&compiled, self.units, done));
        plan.map_err(|e| Error::Package { package: package.display().to_string(), reason: e.to_string() })
    }

    /// The compiled form of a package, and how long it took unless it was there.
    fn compiled(&self, package: &Path) -> Result<(PathBuf, Key, Option<Duration>), Error> {
        let refuse = |reason: String| Error::Package { package: package.display().to_string(), reason };
        let key = Key::of(package, &self.machine).map_err(|e| refuse(e.to_string()))?;
        if let Some(compiled) = self.cache.find(&key) {
            return Ok((compiled, key, None));
        }
        let start = Instant::now();
        let fresh = self.wait(self.limits.compile, |done| self.foreign.compile(package, done));
        let fresh = fresh.map_err(|e| refuse(e.to_string()))?;
        let kept = self.cache.keep(&key, &fresh).map_err(|e| refuse(format!("keeping the compiled form: {e}")))?;
        Ok((kept, key, Some(start.elapsed())))
    }

    fn load_function(&self, compiled: &Path, name: Option<&str>) -> Result<F::Function, Late> {
        self.wait(self.limits.load, |done| self.foreign.load(compiled, name, self.units, done))
    }

    fn wait<T>(&self, limit: Duration, ask: impl FnOnce(Completion<T>)) -> Result<T, Late> {
        let (done, waiter) = deadline::request();
        ask(done);
        waiter.wait(limit, |slice| self.foreign.turn_main_queue(slice))
    }
}

impl<F: Foreign> Runtime for CoreMl<F> {
    fn describe(&self) -> String {
        format!("core ml on {} of {}", self.units.name(), self.machine)
    }

    fn load(&self, package: &Path) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.load_coreml(package)?))
    }
}
