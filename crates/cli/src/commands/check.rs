//! `anemone check`: anyone's package, without its source.
//!
//! Three questions: is it well formed, where would it be placed, and does it walk into a numeric cliff? The first can be answered; the
//! second is a prediction; the third is what op and parameters alone tell. Errors fail; warnings and predictions do not.

use std::path::{Path, PathBuf};

use anemone_gate::cliffs;
use anemone_gate::residency::{self, Place, Prediction, Rules};
use anemone_mil::{OpenError, ReadError, Severity, package};
use anyhow::Result;
use clap::Parser;
use serde_json::{Value, json};

use crate::options::TargetArgs;
use crate::ui;
use crate::{Outcome, output};

/// Check an .mlpackage without its source: well formed, where it would be placed, numeric cliffs.
#[derive(Parser)]
#[command(
    after_help = "Exit codes: 0 no error (warnings are not errors); 1 the package is not well formed; 2 it could not be read.

Example: anemone check model.mlpackage --chip M2 --sarif check.sarif"
)]
pub struct Args {
    /// The package.
    pub package: PathBuf,
    #[command(flatten)]
    pub target: TargetArgs,
    /// As JSON, with the place of every op.
    #[arg(long)]
    pub json: bool,
    /// Write a JUnit report here.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write a SARIF 2.1.0 report here.
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<PathBuf>,
}

/// How much a finding weighs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
    Note,
}

impl Level {
    /// SARIF's word.
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        }
    }
}

/// One finding, from whichever question.
struct Item {
    check: &'static str,
    rule: String,
    level: Level,
    place: String,
    message: String,
}

pub fn run(args: Args) -> Result<Outcome> {
    let path = &args.package;
    let target = args.target.target();
    let mut items = Vec::new();
    let mut prediction = None;
    match package::open(path) {
        Ok((program, notes)) => {
            // What the validator let pass with a warning is among the notes of opening.
            items.extend(notes.iter().map(diagnostic));
            for c in cliffs::find(&program, target.chip) {
                let place = format!("{}, op {} ({})", c.function, c.op, c.what);
                items.push(Item {
                    check: "cliffs",
                    rule: c.rule.into(),
                    level: Level::Warning,
                    place,
                    message: format!("{} [{}]", c.message, c.sources),
                });
            }
            let predicted = residency::predict(&program, Rules::known(), target);
            items.extend(placed(&predicted));
            prediction = Some(predicted);
        }
        Err(OpenError::Invalid(report)) => items.extend(report.diagnostics.iter().map(diagnostic)),
        // What cannot be opened is a bad request; what opens and makes no sense is a bad package.
        Err(OpenError::Read(e @ ReadError::Io { .. })) => return Err(e.into()),
        Err(OpenError::Read(e)) => items.push(Item {
            check: "well-formed",
            rule: "unreadable".into(),
            level: Level::Error,
            place: "package".into(),
            message: e.to_string(),
        }),
    }
    if let Some(file) = &args.junit {
        output::write(file, &junit(path, &items))?;
    }
    if let Some(file) = &args.sarif {
        output::write(file, &serde_json::to_string_pretty(&sarif(path, &items))?)?;
    }
    let failed = items.iter().any(|i| i.level == Level::Error);
    if args.json {
        let all: Vec<Value> = items.iter().map(item_json).collect();
        let placement = prediction.as_ref().map(Prediction::to_json);
        let value = json!({
            "package": path.display().to_string(),
            "well_formed": !failed,
            "findings": all,
            "placement": placement,
        });
        ui::json(&value)?;
    } else {
        show(&items, prediction.as_ref());
    }
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

fn diagnostic(d: &anemone_mil::Diagnostic) -> Item {
    let op = d.op.as_ref().map(|(index, line)| format!("op {index}: {line}"));
    let place: Vec<String> = d.function.iter().cloned().chain(op).collect();
    let level = if d.severity == Severity::Error { Level::Error } else { Level::Warning };
    let place = if place.is_empty() { "package".to_owned() } else { place.join(", ") };
    Item { check: "well-formed", rule: d.rule.into(), level, place, message: d.message.clone() }
}

/// A note for each rule that keeps ops off the Neural Engine.
fn placed(prediction: &Prediction) -> Vec<Item> {
    let off = prediction.rules().into_iter().filter(|r| r.place != Place::Ane);
    off.map(|r| {
        let kinds: Vec<String> = r.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let against =
            if r.against.is_empty() { String::new() } else { format!("; against it: {}", r.against.join("; ")) };
        Item {
            check: "placement",
            rule: if r.rule.is_empty() { "unknown".into() } else { r.rule },
            level: Level::Note,
            place: kinds.join(", "),
            message: format!(
                "predicted {}, {} confidence: {} [{}]{against}",
                r.place.name(),
                r.confidence,
                r.says,
                r.sources.join(", ")
            ),
        }
    })
    .collect()
}

fn item_json(item: &Item) -> Value {
    json!({"check": item.check, "rule": item.rule, "level": item.level.name(), "place": item.place, "message": item.message})
}

fn show(items: &[Item], prediction: Option<&Prediction>) {
    let count = |check: &str, level: Level| items.iter().filter(|i| i.check == check && i.level == level).count();
    let errors = count("well-formed", Level::Error);
    println!(
        "well formed   {}",
        match (errors, count("well-formed", Level::Warning)) {
            (0, 0) => "yes (Core ML has not compiled it)".to_owned(),
            (0, n) => format!("yes, with {n} warnings (Core ML has not compiled it)"),
            (n, _) => format!("no: {n} errors"),
        }
    );
    if let Some(p) = prediction {
        println!("placement     predicted {}", p.summary());
        println!("cliffs        {}", count("cliffs", Level::Warning));
    }
    if items.is_empty() {
        return;
    }
    println!();
    let row = |i: &Item| {
        vec![i.level.name().to_owned(), i.check.to_owned(), i.rule.clone(), i.place.clone(), i.message.clone()]
    };
    ui::table(&["level", "check", "rule", "place", "finding"], &items.iter().map(row).collect::<Vec<_>>());
}

/// What XML cannot hold is replaced, the rest escaped.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(c),
            c if (c as u32) < 0x20 || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A test case for each question; errors are failures, everything else goes to the output of its case.
fn junit(path: &Path, items: &[Item]) -> String {
    let failures = items.iter().filter(|i| i.level == Level::Error).count();
    let name = xml(&path.display().to_string());
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"{name}\" tests=\"3\" failures=\"{}\" errors=\"0\">\n",
        usize::from(failures > 0)
    );
    for check in ["well-formed", "placement", "cliffs"] {
        let of = |error: bool| {
            let all = items.iter().filter(|i| i.check == check && (i.level == Level::Error) == error);
            all.map(|i| format!("{} [{}] {}: {}", i.level.name(), i.rule, i.place, i.message))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let (errors, rest) = (of(true), of(false));
        out.push_str(&format!("<testcase classname=\"{name}\" name=\"{check}\">"));
        if !errors.is_empty() {
            out.push_str(&format!("<failure message=\"{} errors\">{}</failure>", errors.lines().count(), xml(&errors)));
        }
        if check != "well-formed" && failures > 0 {
            out.push_str("<skipped message=\"the package is not well formed\"/>");
        }
        if !rest.is_empty() {
            out.push_str(&format!("<system-out>{}</system-out>", xml(&rest)));
        }
        out.push_str("</testcase>\n");
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

fn sarif(path: &Path, items: &[Item]) -> Value {
    let mut rules: Vec<&str> = items.iter().map(|i| i.rule.as_str()).collect();
    rules.sort_unstable();
    rules.dedup();
    let rule = |id: &&str| {
        let check = items.iter().find(|i| i.rule == **id).map_or("", |i| i.check);
        json!({"id": id, "properties": {"check": check}})
    };
    let result = |i: &Item| {
        json!({
            "ruleId": i.rule,
            "ruleIndex": rules.binary_search(&i.rule.as_str()).unwrap_or(0),
            "level": i.level.name(),
            "message": {"text": i.message},
            "locations": [{
                "physicalLocation": {"artifactLocation": {"uri": uri(path)}},
                "logicalLocations": [{"fullyQualifiedName": i.place}],
            }],
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "anemone",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules.iter().map(rule).collect::<Vec<_>>(),
            }},
            "results": items.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

/// A path as a relative reference: everything but the unreserved characters and `/` in percent form.
fn uri(path: &Path) -> String {
    let mut out = String::new();
    for b in path.to_string_lossy().bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(b as char),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
