//! How close a program comes to the end of fp16.
//!
//! The Neural Engine computes in fp16 and says nothing when a value leaves it. Where a model is loaded with
//! [`Options::headroom`](super::Options::headroom), the largest magnitude of every fp16 result is kept, as it was before
//! rounding, beside the magnitude at which that op is known to fail; otherwise nothing is looked at.

use std::sync::{Mutex, PoisonError};

use super::value::Value;

/// The largest finite fp16.
pub const F16_MAX: f32 = 65504.0;

/// Matrix products near this magnitude were seen to become infinite on the Neural Engine (ANEForge's table of numeric cliffs).
pub const MATMUL: f32 = 32752.0;

/// Before M4, a slice of the last axis that does not begin at 0 multiplies by 16 internally: 65504 / 16 (ane-guide, 3).
pub const SLICE: f32 = 4094.0;

/// The largest magnitude that one op's results reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Headroom {
    /// The function.
    pub function: String,
    /// The op's type.
    pub op: String,
    /// The name of the op's first result.
    pub value: String,
    /// The largest magnitude seen, before it was rounded to fp16.
    pub largest: f32,
    /// The magnitude beyond which this op's results become infinite.
    pub limit: f32,
}

impl Headroom {
    /// How many times larger the results could have been.
    pub fn factor(&self) -> f32 {
        self.limit / self.largest
    }

    /// Whether the results left what the op can hold.
    pub fn overflows(&self) -> bool {
        self.largest > self.limit
    }
}

/// The magnitude beyond which the results of an op fail.
pub fn limit(kind: &str, begins_inside_last_axis: bool) -> f32 {
    match kind {
        "matmul" => MATMUL,
        "slice_by_index" | "slice_by_size" if begins_inside_last_axis => SLICE,
        _ => F16_MAX,
    }
}

/// The largest finite magnitude of a result; infinite where an element is infinite although no operand was.
pub fn largest(result: &Value, infinite_operands: bool) -> f32 {
    let Ok(v) = result.f32s() else { return 0.0 };
    let usable = v.iter().map(|v| v.abs()).filter(|v| v.is_finite() || (v.is_infinite() && !infinite_operands));
    usable.fold(0.0, f32::max)
}

/// Whether an operand holds an infinity, as masks may.
pub fn has_infinity(operand: &Value) -> bool {
    operand.f32s().is_ok_and(|v| v.iter().any(|v| v.is_infinite()))
}

/// The largest magnitudes of one model, one list a function, in the order of its steps.
pub struct Recorder {
    largest: Vec<Mutex<Vec<f32>>>,
    first: Mutex<Option<(usize, usize)>>,
}

impl Recorder {
    /// A recorder for functions of so many steps.
    pub fn new(steps: impl Iterator<Item = usize>) -> Self {
        Self { largest: steps.map(|n| Mutex::new(vec![0.0; n])).collect(), first: Mutex::new(None) }
    }

    /// Adds what one call of a function saw. `first` is the first step of the call whose results overflowed.
    pub fn add(&self, function: usize, seen: &[f32], first: Option<usize>) {
        let mut largest = self.largest[function].lock().unwrap_or_else(PoisonError::into_inner);
        for (known, seen) in largest.iter_mut().zip(seen) {
            *known = known.max(*seen);
        }
        if let Some(step) = first {
            self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((function, step));
        }
    }

    /// The largest magnitudes of a function's steps so far.
    pub fn largest(&self, function: usize) -> Vec<f32> {
        self.largest[function].lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The function and step that overflowed first.
    pub fn first(&self) -> Option<(usize, usize)> {
        *self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
