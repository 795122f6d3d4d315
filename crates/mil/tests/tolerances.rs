//! The judges in `crosscheck/` hold a runtime to the classes of tolerance that the op table states, and to no others.

use std::collections::BTreeMap;
use std::path::Path;

use anemone_mil::ops::{self, Tolerance};

#[test]
fn the_judges_read_the_tables_classes() {
    let mut classes = BTreeMap::new();
    for op in ops::all() {
        let class = match op.tolerance {
            Tolerance::Exact => "exact",
            Tolerance::Rounding => "rounding",
            Tolerance::Accumulating => "accumulating",
            Tolerance::Transcendental => "transcendental",
        };
        assert_eq!(*classes.entry(op.name).or_insert(class), class, "`{}` has two classes in the table", op.name);
    }
    let stated = serde_json::to_string_pretty(&classes).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crosscheck/tolerances.json");
    if std::env::var_os("ANEMONE_UPDATE").is_some() {
        std::fs::write(&path, &stated).unwrap();
    }
    let read = std::fs::read_to_string(&path).unwrap();
    assert!(read == stated, "crosscheck/tolerances.json is not the op table's: run this test with ANEMONE_UPDATE=1");
}
