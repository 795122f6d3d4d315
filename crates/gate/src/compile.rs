//! The compile gate: every package is well formed, and Core ML compiles and loads it.
//!
//! Off a Mac nothing compiles a package, so the best verdict there is `well-formed`: every rule of the format that our
//! validator knows holds, those that no other tool outside Apple's checks included. On a Mac Core ML is asked
//! ([`measured`]), and only its word makes `passed`.

use std::path::Path;

use anemone_mil::{Valid, package, validate};

use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "compile";

/// Judges each package by our own rules.
pub fn judge(subject: &Subject) -> Vec<Finding> {
    let judge = |(path, _): (&str, String)| match read(&subject.folder.join(path)) {
        Ok(valid) => {
            let message = format!("{} ops; not compiled by Core ML", ops(&valid));
            subject.finding(NAME, path, Verdict::WellFormed, RULES, message)
        }
        Err(report) => subject.finding(NAME, path, Verdict::Failed, RULES, report),
    };
    subject.packages().map(judge).collect()
}

/// Judges each package by our own rules and, where they hold, by Core ML, which `measured_on` names: `ask` has it compile and load
/// the package and gives what there is to say of that, or Core ML's refusal.
pub fn measured(subject: &Subject, measured_on: &str, ask: &dyn Fn(&Path) -> Result<String, String>) -> Vec<Finding> {
    let judge = |(path, _): (&str, String)| {
        let file = subject.folder.join(path);
        let valid = match read(&file) {
            Ok(valid) => valid,
            Err(report) => return subject.finding(NAME, path, Verdict::Failed, RULES, report),
        };
        let (verdict, message) = match ask(&file) {
            Ok(said) => (Verdict::Passed, format!("{} ops; {said}", ops(&valid))),
            Err(said) => (Verdict::Failed, said),
        };
        subject.finding(NAME, path, verdict, measured_on, message)
    };
    subject.packages().map(judge).collect()
}

/// What a verdict is measured on that nothing but our own rules made.
const RULES: &str = "format rules";

fn read(package: &Path) -> Result<Valid, String> {
    let program = package::read(package).map_err(|e| e.to_string())?;
    validate(program).map_err(|report| report.to_string())
}

fn ops(program: &anemone_mil::ir::Program) -> usize {
    program.functions.iter().flat_map(|f| &f.ops).filter(|op| op.kind != "const").count()
}
