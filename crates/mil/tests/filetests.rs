//! One file, one test: programs in text form, with what the validator must say about them.
//!
//! `; error: RULE text` at the end of a line expects an error of that rule, whose message contains the text, about the op on
//! that line; on a line without an op, about the function or the program. `; warning: RULE text` expects a warning in lenient
//! mode. `; parse: text` expects the parser to stop on that line. Findings without an expectation fail the test, and so do
//! expectations without a finding. A program without expectations must be valid, and print and parse back to itself.
//!
//! `; run:` lines say what a valid program computes; the executor's tests run them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anemone_mil::text::{parse, to_text};
use anemone_mil::{Diagnostic, Severity, validate, validate_foreign};

/// An expectation: the line it is on, the rule, and a part of the message.
type Expected = (usize, String, String);

fn expectations(text: &str, kind: &str) -> Vec<Expected> {
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        for comment in line.split(';').skip(1) {
            let Some(rest) = comment.trim().strip_prefix(kind) else { continue };
            let (rule, message) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
            found.push((i + 1, rule.to_owned(), message.trim().to_owned()));
        }
    }
    found
}

/// For every line, the function whose op it holds and that op's index, or the function alone.
fn places(text: &str) -> Vec<Option<(String, Option<usize>)>> {
    let (mut function, mut next) = (None, 0);
    let mut out = Vec::new();
    for line in text.lines() {
        let code = line.split(';').next().unwrap_or_default().trim();
        if let Some(rest) = code.strip_prefix("func ") {
            function = rest.split_whitespace().next().map(str::to_owned);
            next = 0;
            out.push(function.clone().map(|f| (f, None)));
        } else if code.ends_with('}') && code.contains('{') && function.is_some() {
            out.push(function.clone().map(|f| (f, Some(next))));
            next += 1;
        } else if code == "}" {
            out.push(None);
            function = None;
        } else {
            out.push(function.clone().map(|f| (f, None)));
        }
    }
    out
}

fn check(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let stops = expectations(&text, "parse:");
    let program = match (parse(&text), stops.as_slice()) {
        (Ok(program), []) => program,
        (Ok(_), _) => return Err("parses".to_owned()),
        (Err(e), [(line, first, rest)]) => {
            let message = format!("{first} {rest}");
            let as_expected = e.line == *line && e.message.contains(message.trim());
            return if as_expected { Ok(()) } else { Err(format!("{e}, expected line {line}: {message}")) };
        }
        (Err(e), _) => return Err(e.to_string()),
    };
    let places = places(&text);
    let (errors, warnings) = (expectations(&text, "error:"), expectations(&text, "warning:"));
    if errors.is_empty() && warnings.is_empty() {
        let valid = validate(program).map_err(|e| e.to_string())?;
        let again = parse(&to_text(&valid)).map_err(|e| format!("printed: {e}"))?;
        return if to_text(&again) == to_text(&valid) { Ok(()) } else { Err("prints differently".to_owned()) };
    }
    let found = match (warnings.is_empty(), validate_foreign(program.clone())) {
        (false, Ok((_, found))) => found,
        (false, Err(report)) => report.diagnostics,
        (true, _) => match validate(program) {
            Ok(_) => Vec::new(),
            Err(report) => report.diagnostics,
        },
    };
    compare(&places, &errors, &warnings, &found)
}

fn compare(
    places: &[Option<(String, Option<usize>)>],
    errors: &[Expected],
    warnings: &[Expected],
    found: &[Diagnostic],
) -> Result<(), String> {
    let mut matched = BTreeSet::new();
    for (severity, expected) in [(Severity::Error, errors), (Severity::Warning, warnings)] {
        for (line, rule, message) in expected {
            let place = places[line - 1].clone();
            let fits = |d: &Diagnostic| {
                let at = d.function.clone().map(|f| (f, d.op.as_ref().map(|(i, _)| *i)));
                d.severity == severity && d.rule == rule && d.message.contains(message) && at == place
            };
            match found.iter().enumerate().find(|(i, d)| !matched.contains(i) && fits(d)) {
                Some((i, _)) => {
                    matched.insert(i);
                }
                None => return Err(format!("line {line}: no {rule:?} with {message:?} among {found:#?}")),
            }
        }
    }
    let strays: Vec<_> = found
        .iter()
        .enumerate()
        .filter(|(i, d)| !matched.contains(i) && (d.severity == Severity::Error || !warnings.is_empty()))
        .map(|(_, d)| d.to_string())
        .collect();
    if strays.is_empty() { Ok(()) } else { Err(format!("not expected: {strays:#?}")) }
}

#[test]
fn all() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 20, "the files are where they should be");
    let failures: Vec<String> =
        files.iter().filter_map(|f| check(f).err().map(|e| format!("{}: {e}", f.display()))).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
