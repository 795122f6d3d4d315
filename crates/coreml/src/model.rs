//! One loaded package: calls checked on their way in and out, states kept per conversation.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anemone_exec::{self as exec, Error, Model, Port, Signature, State, Tensor};
use anemone_mil::Valid;
use anemone_mil::ir::{Dtype, Feature};

use crate::array::{Array, element_bytes};
use crate::foreign::{Described, Description, Foreign, Returned};
use crate::states::{Latest, Slots};

/// What the functions of a package do with each other's states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// There is one function with states, or none.
    Alone,
    /// Core ML lets every function with the same states work on one.
    Shared,
    /// Core ML refused; caches are copied when the function changes. With the functions that have states of their own, and
    /// what Core ML said.
    Copied(Vec<String>, String),
}

/// A package loaded in Core ML.
pub struct CoreMlModel<F: Foreign> {
    foreign: Arc<F>,
    functions: Vec<Loaded<F>>,
    signatures: Vec<Signature>,
    default_function: usize,
    metadata: BTreeMap<String, String>,
    slots: Slots,
    /// What a state is checked against.
    identity: Arc<()>,
}

/// One function and its border.
struct Loaded<F: Foreign> {
    function: Mutex<F::Function>,
    features: Vec<Option<Feature>>,
    /// Arrays of calls that are over, for the next ones.
    spare: Mutex<Vec<Border>>,
}

/// Arrays for one call at a time.
struct Border {
    inputs: Vec<Array>,
    /// `None` where the shape is only known when it comes back.
    outputs: Vec<Option<Array>>,
}

/// A conversation's caches.
struct CoreMlState<S> {
    identity: Arc<()>,
    /// One a slot, made when a function of the slot first runs.
    slots: BTreeMap<usize, S>,
    latest: Latest,
    /// A call failed: nobody knows how much of the caches it wrote.
    lost: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The border of every function, in the program's order.
pub(crate) fn signatures(program: &Valid) -> Vec<Signature> {
    program.functions.iter().map(Signature::of).collect()
}

/// What in a program cannot cross Core ML's border: function and reason.
pub(crate) fn unsupported(signatures: &[Signature]) -> Option<(String, String)> {
    for s in signatures {
        let ports = s.inputs.iter().chain(&s.outputs).chain(&s.states);
        if let Some(port) = ports.into_iter().find(|p| element_bytes(p.dtype).is_none()) {
            return Some((
                s.name.clone(),
                format!("`{}` is {}, which Core ML's arrays cannot hold", port.name, port.dtype),
            ));
        }
    }
    None
}

/// Where Core ML's description of a function differs from the package's.
pub(crate) fn disagreement(signature: &Signature, description: &Description) -> Option<String> {
    let kinds = [
        ("input", &signature.inputs, &description.inputs),
        ("output", &signature.outputs, &description.outputs),
        ("state", &signature.states, &description.states),
    ];
    kinds.into_iter().find_map(|(kind, ports, described)| {
        let unknown = described.iter().find(|d| ports.iter().all(|p| p.name != d.name));
        if let Some(unknown) = unknown {
            return Some(format!("Core ML describes {kind} `{}`, which the package does not have", unknown.name));
        }
        ports.iter().find_map(|port| match described.iter().find(|d| d.name == port.name) {
            None => Some(format!("Core ML does not describe {kind} `{}`", port.name)),
            Some(d) => differs(port, d).map(|how| format!("{kind} `{}` {how}", port.name)),
        })
    })
}

fn differs(port: &Port, described: &Described) -> Option<String> {
    if described.dtype != Some(port.dtype) {
        let found = described.dtype.map_or("another type", Dtype::name);
        return Some(format!("is {} in the package and {found} in Core ML's description", port.dtype));
    }
    let fits = |(p, &d): (&Option<usize>, &usize)| p.is_none_or(|p| p == d);
    let same = described.shape.len() == port.shape.len() && port.shape.iter().zip(&described.shape).all(fits);
    (!same && !described.shape.is_empty())
        .then(|| format!("is {:?} in the package and {:?} in Core ML's description", port.shape, described.shape))
}

impl<F: Foreign> CoreMlModel<F> {
    pub(crate) fn new(foreign: Arc<F>, program: &Valid, functions: Vec<F::Function>) -> Self {
        let signatures = signatures(program);
        let features =
            program.functions.iter().zip(&signatures).map(|(function, signature)| signature.features(function));
        let loaded =
            |(function, features)| Loaded { function: Mutex::new(function), features, spare: Mutex::new(Vec::new()) };
        Self {
            foreign,
            functions: functions.into_iter().zip(features).map(loaded).collect(),
            slots: Slots::of(&signatures),
            default_function: signatures.iter().position(|s| s.name == program.default_function).unwrap_or_default(),
            signatures,
            metadata: program.metadata.clone(),
            identity: Arc::new(()),
        }
    }

    /// Calls every function once with zeros, and finds out which of them work on one state.
    ///
    /// Zeros are good floats and need not be good indices: a function that takes integers may fail here for no fault of
    /// Core ML's, so its failure refuses nothing, and it keeps a state of its own.
    pub(crate) fn warm_up(&mut self) -> Result<Sharing, Error> {
        let mut refused = Vec::new();
        let mut said = String::new();
        for f in 0..self.functions.len() {
            let mut inputs = Vec::new();
            for (port, feature) in self.signatures[f].inputs.iter().zip(&self.functions[f].features) {
                inputs.push(zeros(port, feature.as_ref()).map_err(|reason| self.failed(f, reason))?);
            }
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            let indices = self.signatures[f].inputs.iter().any(|p| p.dtype.is_int());
            let borrowed = self.slots.slot(f).filter(|_| self.slots.borrows(f));
            let Err(error) = self.run(f, &inputs, &mut self.new_state()?) else { continue };
            match borrowed {
                Some(leader) => {
                    self.slots.separate(f);
                    let alone = self.run(f, &inputs, &mut self.new_state()?);
                    // On a state of its own it must work; otherwise the state is not what is wrong.
                    match alone {
                        Ok(_) => {
                            let (own, other) = (&self.signatures[f].name, &self.signatures[leader].name);
                            said = format!("`{own}` on the state of `{other}`: {error}");
                            refused.push(own.clone());
                        }
                        Err(_) if indices => {}
                        Err(_) => return Err(error),
                    }
                }
                None if indices => {}
                None => return Err(error),
            }
        }
        let stateful = self.signatures.iter().filter(|s| !s.states.is_empty()).count();
        Ok(match (stateful, refused.is_empty()) {
            (0 | 1, _) => Sharing::Alone,
            (_, true) => Sharing::Shared,
            (_, false) => Sharing::Copied(refused, said),
        })
    }

    fn failed(&self, function: usize, reason: impl Into<String>) -> Error {
        Error::Foreign { function: self.signatures[function].name.clone(), reason: reason.into() }
    }

    /// As [`failed`](Self::failed), for what Core ML said, with what the package's states make likely.
    fn refused(&self, function: usize, failure: &crate::Failure) -> Error {
        let narrow = |p: &&Port| p.shape.last().copied().flatten().is_some_and(|w| w % 32 != 0);
        let narrow = self.signatures[function].states.iter().find(narrow);
        let hint = narrow.map(|p| {
            format!(
                "; state `{}` is {:?}, and states whose last dimension is no multiple of 32 were seen to fail",
                p.name, p.shape
            )
        });
        self.failed(function, format!("{failure}{}", hint.unwrap_or_default()))
    }

    /// Arrays for a call, with the inputs in them.
    fn border(&self, function: usize, inputs: &[&Tensor]) -> Result<Border, String> {
        let signature = &self.signatures[function];
        let spare = lock(&self.functions[function].spare).pop();
        let mut border = match spare {
            Some(border) => border,
            None => {
                let output = |p: &Port| {
                    let shape: Option<Vec<usize>> = p.shape.iter().copied().collect();
                    shape.map(|shape| Array::new(p.dtype, &shape)).transpose()
                };
                Border {
                    inputs: inputs.iter().map(|t| Array::new(t.dtype(), t.shape())).collect::<Result<_, _>>()?,
                    outputs: signature.outputs.iter().map(output).collect::<Result<_, _>>()?,
                }
            }
        };
        for (array, tensor) in border.inputs.iter_mut().zip(inputs) {
            // Flexible inputs change their shape from call to call.
            if array.shape() != tensor.shape() {
                *array = Array::new(tensor.dtype(), tensor.shape())?;
            }
            array.write(tensor)?;
        }
        border.outputs.iter_mut().flatten().try_for_each(Array::own)?;
        Ok(border)
    }

    /// The call proper, on a state that is in order.
    fn call(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut CoreMlState<F::State>,
    ) -> Result<Vec<Tensor>, Error> {
        let (signature, loaded) = (&self.signatures[function], &self.functions[function]);
        let border = self.border(function, inputs).map_err(|reason| self.failed(function, reason))?;
        let slot = self.slots.slot(function);
        if let Some(slot) = slot {
            self.fill_slot(function, slot, state)?;
        }
        let given: Vec<(&str, &Array)> = signature.inputs.iter().map(|p| p.name.as_str()).zip(&border.inputs).collect();
        let wanted: Vec<(&str, Option<&Array>)> =
            signature.outputs.iter().map(|p| p.name.as_str()).zip(border.outputs.iter().map(Option::as_ref)).collect();
        let foreign = slot.and_then(|slot| state.slots.get(&slot));
        let returned = self.foreign.predict(&lock(&loaded.function), &given, foreign, &wanted);
        let returned = returned.map_err(|failure| self.refused(function, &failure))?;
        if returned.len() != wanted.len() {
            return Err(self.failed(function, format!("{} results for {} outputs", returned.len(), wanted.len())));
        }
        let mut results = Vec::with_capacity(wanted.len());
        for ((port, array), returned) in signature.outputs.iter().zip(&border.outputs).zip(returned) {
            let result = result(port, array.as_ref(), returned);
            results.push(result.map_err(|reason| self.failed(function, format!("output `{}`: {reason}", port.name)))?);
        }
        if let Some(slot) = slot {
            state.latest.ran(&signature.states, slot);
        }
        lock(&loaded.spare).push(border);
        Ok(results)
    }

    /// Makes the slot's state where there is none yet, and brings over what another slot wrote since.
    fn fill_slot(&self, function: usize, slot: usize, state: &mut CoreMlState<F::State>) -> Result<(), Error> {
        if let Entry::Vacant(place) = state.slots.entry(slot) {
            // A slot's states are made by the function it is named after.
            let made = self.foreign.new_state(&lock(&self.functions[slot].function));
            place.insert(made.map_err(|failure| self.refused(function, &failure))?);
        }
        for (from, names) in state.latest.stale(&self.signatures[function].states, slot) {
            let (Some(from), Some(to)) = (state.slots.get(&from), state.slots.get(&slot)) else { continue };
            self.foreign.copy_state(&names, from, to).map_err(|failure| self.refused(function, &failure))?;
        }
        Ok(())
    }
}

/// One output, wherever Core ML put it.
fn result(port: &Port, array: Option<&Array>, returned: Option<Returned>) -> Result<Tensor, String> {
    let tensor = match (returned, array) {
        (None, _) => return Err("Core ML gave no value for it".to_owned()),
        // SAFETY: the call that was given the memory is over.
        (Some(Returned::InPlace), Some(array)) => unsafe { array.read() }?,
        (Some(Returned::InPlace), None) => return Err("in place, where no place was offered".to_owned()),
        (Some(Returned::Elsewhere(strided)), _) => strided.gather()?,
    };
    let fits = |(p, &d): (&Option<usize>, &usize)| p.is_none_or(|p| p == d);
    let shape = tensor.shape();
    if tensor.dtype() != port.dtype || shape.len() != port.shape.len() || !port.shape.iter().zip(shape).all(fits) {
        let (dtype, expected) = (port.dtype, &port.shape);
        return Err(format!("expected {dtype} {expected:?}, found {} {shape:?}", tensor.dtype()));
    }
    Ok(tensor)
}

/// Zeros of the default shape.
fn zeros(port: &Port, feature: Option<&Feature>) -> Result<Tensor, String> {
    let default = feature.and_then(|f| f.shape.clone());
    let shape = port.shape.iter().copied().collect::<Option<Vec<usize>>>().or(default);
    let shape = shape.ok_or_else(|| format!("input `{}` has no default shape", port.name))?;
    // SAFETY: nobody has the pointer.
    unsafe { Array::new(port.dtype, &shape)?.read() }
}

impl<F: Foreign> Model for CoreMlModel<F> {
    fn functions(&self) -> &[Signature] {
        &self.signatures
    }

    fn default_function(&self) -> usize {
        self.default_function
    }

    fn float(&self) -> Dtype {
        Dtype::F16
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A call waits for an engine elsewhere, and Core ML keeps the queue to it.
    fn overlaps(&self) -> bool {
        true
    }

    fn new_state(&self) -> Result<State, Error> {
        Ok(State::new(CoreMlState::<F::State> {
            identity: self.identity.clone(),
            slots: BTreeMap::new(),
            latest: Latest::default(),
            lost: false,
        }))
    }

    fn run(&self, function: usize, inputs: &[&Tensor], state: &mut State) -> Result<Vec<Tensor>, Error> {
        let Some(loaded) = self.functions.get(function) else {
            return Err(Error::no_function(function, self.functions.len()));
        };
        let state = state
            .downcast::<CoreMlState<F::State>>()
            .filter(|s| Arc::ptr_eq(&s.identity, &self.identity))
            .ok_or(Error::ForeignState)?;
        self.signatures[function].check(&loaded.features, self.float(), inputs)?;
        if state.lost {
            return Err(self.failed(function, "the state was lost in a call that failed; make a new one"));
        }
        let result = self.call(function, inputs, state);
        if result.is_err() {
            state.lost = true;
            state.slots.clear();
        }
        result
    }
}

/// Opens a package for Core ML: valid, and with nothing that cannot cross the border.
pub(crate) fn open(package: &Path) -> Result<Valid, Error> {
    let program = exec::open(package)?;
    match unsupported(&signatures(&program)) {
        Some((function, reason)) => {
            let reason = format!("{function}: {reason}");
            Err(Error::Package { package: package.display().to_string(), reason })
        }
        None => Ok(program),
    }
}
