//! What is left without llguidance: the names, and a refusal.

use std::collections::BTreeSet;

use super::Constraint;
use crate::Error;
use crate::sample::Mask;
use crate::tokenizer::Tokenizer;

/// Compiles no constraint.
#[derive(Debug)]
pub struct Grammar;

impl Grammar {
    /// Nothing.
    ///
    /// # Errors
    /// None.
    pub fn new(_: &Tokenizer, _: usize, _: &BTreeSet<u32>) -> Result<Self, Error> {
        Ok(Self)
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn matcher(&self, _: &Constraint) -> Result<Matcher, Error> {
        Err(Error::Grammar("this program was built without the feature `grammar`".into()))
    }
}

/// There is none.
#[derive(Clone, Debug)]
pub enum Matcher {}

impl Matcher {
    /// The same.
    pub fn looking(self) -> Self {
        self
    }

    pub(crate) fn mask(&mut self) -> Result<Mask, Error> {
        match *self {}
    }

    pub(crate) fn forced(&mut self) -> Option<u32> {
        match *self {}
    }

    pub(crate) fn take(&mut self, _: u32) -> Result<(), Error> {
        match *self {}
    }

    pub(crate) fn is_complete(&self) -> bool {
        match *self {}
    }
}
