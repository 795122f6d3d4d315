//! Every op on every runtime of this crate.

#[path = "conformance/cases.rs"]
mod cases;

use std::collections::BTreeSet;

use anemone_exec::{Fast, FastOptions, Numerics, Options, Portable};
use anemone_mil::ops;
use cases::Subject;

#[test]
fn every_case_on_every_runtime() {
    let portable = |numerics| Subject {
        runtime: Box::new(Portable::new(numerics, Options { threads: 2, ..Options::default() })),
        skips: &[],
    };
    let fast = Fast::new(FastOptions { threads: 2, ..FastOptions::default() });
    cases::all(&[portable(Numerics::Exact), portable(Numerics::Ane), Subject { runtime: Box::new(fast), skips: &[] }]);
}

#[test]
fn every_op_of_the_table_has_a_case() {
    let cases = cases::read();
    let covered: BTreeSet<&str> = cases.iter().map(|c| c["op"].as_str().unwrap()).collect();
    let elsewhere = |spec: &ops::OpSpec| spec.is_constant() || spec.name.ends_with("_state");
    let without: Vec<&str> =
        ops::all().filter(|s| !elsewhere(s) && !covered.contains(s.name)).map(|s| s.name).collect();
    assert!(without.is_empty(), "ops without a case: {without:?}");
}
