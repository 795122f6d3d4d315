//! The compile gate: every package is well formed.
//!
//! Off a Mac nothing compiles a package, so the best verdict here is `well-formed`: every rule of the format that our
//! validator knows holds, those that no other tool outside Apple's checks included.

use anemone_mil::{package, validate};

use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "compile";

/// Judges each package.
pub fn judge(subject: &Subject) -> Vec<Finding> {
    let judge = |(path, _): (&str, String)| {
        let read = package::read(&subject.folder.join(path)).map_err(|e| e.to_string());
        let valid = read.and_then(|program| validate(program).map_err(|report| report.to_string()));
        let (verdict, message) = match valid {
            Ok(valid) => (Verdict::WellFormed, format!("{} ops; not compiled by Core ML", ops(&valid))),
            Err(report) => (Verdict::Failed, report),
        };
        subject.finding(NAME, path, verdict, "format rules", message)
    };
    subject.packages().map(judge).collect()
}

fn ops(program: &anemone_mil::ir::Program) -> usize {
    program.functions.iter().flat_map(|f| &f.ops).filter(|op| op.kind != "const").count()
}
