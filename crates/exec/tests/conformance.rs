//! The portable runtime, in both numerics, and the fast one keep what every runtime promises.

#[path = "conformance/mod.rs"]
mod promises;

use anemone_exec::{Fast, FastOptions, Numerics, Options, Portable};

#[test]
fn the_portable_runtime_keeps_every_promise() {
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let runtime = Portable::new(numerics, Options { threads: 1, ..Options::default() });
        promises::all(&|program| Box::new(runtime.prepare(program).unwrap_or_else(|e| panic!("{e}"))));
    }
}

#[test]
fn the_fast_runtime_keeps_every_promise() {
    let runtime = Fast::new(FastOptions { threads: 2, ..FastOptions::default() });
    promises::all(&|program| Box::new(runtime.prepare(program).unwrap_or_else(|e| panic!("{e}"))));
}
