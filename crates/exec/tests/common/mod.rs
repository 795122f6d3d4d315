//! From functions to a model, for several tests.

use std::collections::BTreeMap;

use anemone_exec::{Numerics, Options, Portable, PortableModel};
use anemone_mil::ir::Function;
use anemone_mil::{Valid, validate};

/// A valid program of these functions, the first the default.
pub fn program(functions: Vec<Function>) -> Valid {
    validate(anemone_mil::program(functions, BTreeMap::new())).unwrap_or_else(|report| panic!("{report}"))
}

/// A model of it.
pub fn model(program: &Valid, numerics: Numerics, threads: usize) -> PortableModel {
    let options = Options { threads, ..Options::default() };
    Portable::new(numerics, options).prepare(program).unwrap_or_else(|e| panic!("{e}"))
}
