//! Calls of several models that do not wait for each other: the slices of a head, which all read the same rows.
//!
//! A runtime that hands calls to an engine elsewhere leaves that engine idle between them, so there they are submitted together
//! ([`Model::overlaps`]). The results are those of calls in order: no call reads what another one writes.

use std::panic::resume_unwind;
use std::slice;
use std::thread;

use crate::runtime::{Error, Model, State};
use crate::tensor::Tensor;

/// One call among several, in the words of [`Model::run_into`], of a function with one output.
pub struct Call<'a> {
    /// Whose function.
    pub model: &'a dyn Model,
    /// Which of them.
    pub function: usize,
    /// What it is given.
    pub inputs: &'a [&'a Tensor],
    /// Its own state.
    pub state: &'a mut State,
    /// Where its result goes.
    pub output: &'a mut Tensor,
}

impl Call<'_> {
    fn make(self) -> Result<(), Error> {
        self.model.run_into(self.function, self.inputs, self.state, slice::from_mut(self.output))
    }
}

/// Calls under way at once, at most: a bundle's manifest says how many slices there are, and each takes a thread.
const AT_ONCE: usize = 16;

/// Makes the calls at once. None is under way any more when it returns.
///
/// # Errors
/// Of the calls that failed, that of the first in the order given. Calls after it may not have been made.
pub fn together<'a>(mut calls: impl Iterator<Item = Call<'a>>) -> Result<(), Error> {
    while let Some(first) = calls.next() {
        let others: Vec<_> = calls.by_ref().take(AT_ONCE - 1).collect();
        thread::scope(|scope| {
            let others: Vec<_> = others.into_iter().map(|call| scope.spawn(|| call.make())).collect();
            let first = first.make();
            others.into_iter().fold(first, |so_far, other| {
                let other = other.join().unwrap_or_else(|panic| resume_unwind(panic));
                so_far.and(other)
            })
        })?;
    }
    Ok(())
}
