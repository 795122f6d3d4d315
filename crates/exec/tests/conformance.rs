//! The portable runtime keeps what every runtime promises, in both numerics.

#[path = "conformance/mod.rs"]
mod promises;

use anemone_exec::{Numerics, Options, Portable};

#[test]
fn the_portable_runtime_keeps_every_promise() {
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let runtime = Portable::new(numerics, Options { threads: 1, ..Options::default() });
        promises::all(&|program| Box::new(runtime.prepare(program).unwrap_or_else(|e| panic!("{e}"))));
    }
}
