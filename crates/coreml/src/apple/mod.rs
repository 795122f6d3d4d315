//! The foreign calls, made: Core ML through its Objective-C interface.
//!
//! Written against Apple's headers as `objc2-core-ml` translates them, type-checked and linked on Linux, and not yet run by
//! anyone. Each call runs in an autorelease pool of its own: what Core ML autoreleases per prediction would otherwise pile up
//! until the thread ends.
//!
//! # Threads
//!
//! `MLModel`'s calls are made one at a time for each model ([`Foreign`]'s contract, kept by a lock above), from any thread.
//! Handlers come on queues of Core ML's choosing and only deliver a [`Completion`].

mod arrays;
mod model;
mod plan;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use block2::RcBlock;
use objc2::Message;
use objc2::rc::{Retained, autoreleasepool};
use objc2_core_ml::{MLComputePlan, MLComputeUnits, MLModel, MLModelConfiguration, MLState};
use objc2_foundation::{NSDate, NSError, NSProcessInfo, NSRunLoop, NSString, NSThread, NSURL};

use crate::array::Array;
use crate::deadline::Completion;
use crate::failure::{DOMAIN, Failure};
use crate::foreign::{Description, Foreign, Machine, OpUsage, Returned, Units};

/// Core ML of the machine this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Apple;

/// One loaded function: a model that was configured with its name.
pub struct AppleFunction(Retained<MLModel>);

// SAFETY: Core ML lets a model be used from any thread, one call at a time; `Foreign` promises the latter, and a `Retained` may
// be released on any thread.
unsafe impl Send for AppleFunction {}

/// What `NSError` says, errors beneath it included: the Neural Engine's own codes stand there.
fn failure(error: &NSError) -> Failure {
    let mut text = error.localizedDescription().to_string();
    for beneath in error.underlyingErrors().iter() {
        let (domain, code) = (beneath.domain(), beneath.code());
        text.push_str(&format!("; beneath it {domain} {code}: {}", beneath.localizedDescription()));
    }
    Failure { domain: error.domain().to_string(), code: error.code() as i64, text }
}

/// A failure that is ours to state: Core ML answered what its interface does not allow.
fn unexpected(text: &str) -> Failure {
    Failure { domain: DOMAIN.to_owned(), code: 0, text: text.to_owned() }
}

fn url(path: &Path) -> Result<Retained<NSURL>, Failure> {
    NSURL::from_file_path(path).ok_or_else(|| unexpected(&format!("{} cannot be made a URL", path.display())))
}

fn configuration(function: Option<&str>, units: Units) -> Retained<MLModelConfiguration> {
    // SAFETY: plain constructors and setters; the configuration is ours alone.
    unsafe {
        let configuration = MLModelConfiguration::new();
        configuration.setComputeUnits(match units {
            Units::NeuralEngineAndCpu => MLComputeUnits::CPUAndNeuralEngine,
            Units::CpuOnly => MLComputeUnits::CPUOnly,
            Units::All => MLComputeUnits::All,
        });
        if let Some(name) = function {
            configuration.setFunctionName(Some(&NSString::from_str(name)));
        }
        configuration
    }
}

/// A block for a handler of Core ML's: `read` makes the answer of what the handler is given.
///
/// A block may be called more than once as far as the types know; the completion is there for the first call.
fn handler<O: Message, T: 'static>(
    done: Completion<T>,
    read: impl Fn(&O) -> Result<T, Failure> + 'static,
) -> RcBlock<dyn Fn(*mut O, *mut NSError)> {
    let done = Mutex::new(Some(done));
    RcBlock::new(move |object: *mut O, error: *mut NSError| {
        let Some(done) = done.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // SAFETY: Core ML gives null or an object that lives while the handler runs.
        let (object, error) = unsafe { (object.as_ref(), error.as_ref()) };
        done.deliver(autoreleasepool(|_| match (object, error) {
            (Some(object), _) => read(object),
            (None, Some(error)) => Err(failure(error)),
            (None, None) => Err(unexpected("neither a result nor an error")),
        }));
    })
}

impl Foreign for Apple {
    type Function = AppleFunction;
    type State = Retained<MLState>;

    fn machine(&self) -> Machine {
        let version = NSProcessInfo::processInfo().operatingSystemVersion();
        let number = |n: isize| u32::try_from(n).unwrap_or_default();
        let chip = Command::new("/usr/sbin/sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok();
        let chip = chip.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).filter(|c| !c.is_empty());
        Machine {
            chip: chip.unwrap_or_else(|| "unknown chip".to_owned()),
            os: [number(version.majorVersion), number(version.minorVersion), number(version.patchVersion)],
        }
    }

    fn turn_main_queue(&self, slice: Duration) -> bool {
        if !NSThread::isMainThread_class() {
            return false;
        }
        autoreleasepool(|_| {
            NSRunLoop::currentRunLoop().runUntilDate(&NSDate::dateWithTimeIntervalSinceNow(slice.as_secs_f64()));
        });
        // A run loop without sources returns at once.
        std::thread::sleep(slice.min(Duration::from_millis(1)));
        true
    }

    fn compile(&self, package: &Path, done: Completion<PathBuf>) {
        autoreleasepool(|_| {
            let url = match url(package) {
                Ok(url) => url,
                Err(failure) => return done.deliver(Err(failure)),
            };
            let path = |url: &NSURL| url.to_file_path().ok_or_else(|| unexpected("compiled to no file"));
            // SAFETY: the block is copied by the callee, and captures only what may be sent.
            unsafe { MLModel::compileModelAtURL_completionHandler(&url, &handler(done, path)) };
        });
    }

    fn load(&self, compiled: &Path, function: Option<&str>, units: Units, done: Completion<AppleFunction>) {
        autoreleasepool(|_| {
            let url = match url(compiled) {
                Ok(url) => url,
                Err(failure) => return done.deliver(Err(failure)),
            };
            let block = handler(done, |model: &MLModel| Ok(AppleFunction(model.retain())));
            let configuration = configuration(function, units);
            // SAFETY: as in `compile`.
            unsafe { MLModel::loadContentsOfURL_configuration_completionHandler(&url, &configuration, &block) };
        });
    }

    fn describe(&self, function: &AppleFunction) -> Description {
        autoreleasepool(|_| model::describe(&function.0))
    }

    fn new_state(&self, function: &AppleFunction) -> Result<Retained<MLState>, Failure> {
        // SAFETY: a plain call; the interface says that the result is not null.
        Ok(autoreleasepool(|_| unsafe { function.0.newState() }))
    }

    fn copy_state(&self, names: &[&str], from: &Retained<MLState>, to: &Retained<MLState>) -> Result<(), Failure> {
        autoreleasepool(|_| names.iter().try_for_each(|name| model::copy_state(&NSString::from_str(name), from, to)))
    }

    fn predict(
        &self,
        function: &AppleFunction,
        inputs: &[(&str, &Array)],
        state: Option<&Retained<MLState>>,
        wanted: &[(&str, Option<&Array>)],
    ) -> Result<Vec<Option<Returned>>, Failure> {
        autoreleasepool(|_| model::predict(&function.0, inputs, state.map(|s| &**s), wanted))
    }

    fn plan(&self, compiled: &Path, units: Units, done: Completion<Vec<OpUsage>>) {
        autoreleasepool(|_| {
            let url = match url(compiled) {
                Ok(url) => url,
                Err(failure) => return done.deliver(Err(failure)),
            };
            let block = handler(done, |plan: &MLComputePlan| plan::usages(plan));
            let configuration = configuration(None, units);
            // SAFETY: as in `compile`.
            unsafe { MLComputePlan::loadContentsOfURL_configuration_completionHandler(&url, &configuration, &block) };
        });
    }
}

/// A non-null pointer of the type that Objective-C gives memory away as.
fn untyped(pointer: NonNull<u8>) -> NonNull<std::ffi::c_void> {
    pointer.cast()
}
