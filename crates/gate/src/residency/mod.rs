//! The residency prediction: where Core ML would place each op, by rules, where no Core ML is at hand to be asked.
//!
//! Four facts are easily confused: an op is *supported* on a device, it is *preferred* there by a compute plan, it *ran*
//! there, and it ran there and was *right*. Only a Mac can tell any of them. What is here is a fifth thing, a
//! **prediction** of the second, and it is always called that: its verdict is [`Verdict::Predicted`] and never `passed`.
//!
//! [`features`] turns an op in its program into named values: op kind, element types, sizes, how its weight is encoded, how
//! large and how stateful the whole program is. [`rules`] are data (`rules.json`), each with its sources and a confidence,
//! and the ones that fire decide. Limits that depend on chip and system (how large a program may be) are not numbers in
//! the code but *claims*: one source saw this much stay and that much leave, another saw something else. The claims
//! nearest to the target decide, and those that contradict them are shown. Names of models decide nothing.
//!
//! [`score`] holds the rules against what others published (`observations.json`), with each source's rules and claims left
//! out in turn while its own observations are predicted.

pub mod features;
pub mod measured;
pub mod rules;
pub mod score;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anemone_mil::Valid;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use features::{Feature, Features};
pub use rules::{Decision, Rules};

use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "residency";

/// A generation of Apple's chips. Phones are filed under the Mac chip that shares their Neural Engine's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Chip {
    /// M1, M1 Pro, M1 Max, M1 Ultra; A14.
    M1,
    /// M2 and its kin; A15.
    M2,
    /// M3 and its kin; A16.
    M3,
    /// M4 and its kin; A17, A18.
    M4,
    /// M5 and its kin; A19.
    M5,
}

impl Chip {
    /// Every chip.
    pub const ALL: [Chip; 5] = [Chip::M1, Chip::M2, Chip::M3, Chip::M4, Chip::M5];
}

impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a prediction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The chip.
    pub chip: Chip,
    /// The major version of macOS: 15 is what brought states, and 26 followed it.
    pub os: u32,
}

impl Default for Target {
    /// Where most of what is known was seen.
    fn default() -> Self {
        Self { chip: Chip::M4, os: 15 }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on macOS {}", self.chip, self.os)
    }
}

impl FromStr for Chip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Chip::ALL.into_iter().find(|c| c.to_string().eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("`{text}` is not one of M1, M2, M3, M4, M5"))
    }
}

/// Where an op, or a program, would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The Neural Engine.
    Ane,
    /// No rule speaks of it.
    Unknown,
    /// The CPU, or the GPU where it is allowed: away from the Neural Engine.
    Cpu,
    /// Nowhere: the Neural Engine's compiler or loader was seen to fail on it.
    Fails,
}

impl Place {
    /// The word in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Place::Ane => "ane",
            Place::Unknown => "unknown",
            Place::Cpu => "cpu",
            Place::Fails => "fails",
        }
    }
}

/// One op and where it would go.
#[derive(Clone, Debug)]
pub struct OpPlace {
    /// Its index in the function.
    pub index: usize,
    /// Its kind.
    pub kind: String,
    /// Its name; empty where the package has none.
    pub name: String,
    /// What decided.
    pub decision: Decision,
}

/// A function's ops and where they would go.
#[derive(Clone, Debug)]
pub struct FunctionPlaces {
    /// The function.
    pub name: String,
    /// Its ops that compute: not constants.
    pub ops: Vec<OpPlace>,
}

/// A predicted placement.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// What for.
    pub target: Target,
    /// The program's own features.
    pub program: Features,
    /// Every function.
    pub functions: Vec<FunctionPlaces>,
}

/// Predicts the placement of every op of a program. Weights need not exist yet: their types are enough.
pub fn predict(program: &Valid, rules: &Rules, target: Target) -> Prediction {
    let whole = features::program(program);
    let place = |function: usize| {
        let f = &program.functions[function];
        let ops = (0..f.ops.len()).filter(|&op| !program.spec(function, op).is_constant());
        let ops = ops.map(|op| OpPlace {
            index: op,
            kind: f.ops[op].kind.clone(),
            name: f.ops[op].name.clone(),
            decision: rules.decide(&features::op(program, function, op, &whole), target),
        });
        FunctionPlaces { name: f.name.clone(), ops: ops.collect() }
    };
    let functions = (0..program.functions.len()).map(place).collect();
    Prediction { target, program: whole, functions }
}

/// How many ops a rule sent where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleCount {
    /// The rule; empty where none spoke.
    pub rule: String,
    /// Where.
    pub place: Place,
    /// How many ops.
    pub ops: usize,
    /// Which kinds.
    pub kinds: BTreeMap<String, usize>,
    /// How sure.
    pub confidence: String,
    /// Whose observations it rests on.
    pub sources: Vec<String>,
    /// What it says.
    pub says: String,
    /// What speaks against it, and was not said of a rule before it.
    pub against: Vec<String>,
}

impl Prediction {
    fn ops(&self) -> impl Iterator<Item = &OpPlace> {
        self.functions.iter().flat_map(|f| &f.ops)
    }

    /// How many ops would go to `place`.
    pub fn count(&self, place: Place) -> usize {
        self.ops().filter(|op| op.decision.place == place).count()
    }

    /// All ops.
    pub fn total(&self) -> usize {
        self.ops().count()
    }

    /// Where the program's work would go: where its convolutions and matrix products go, the worst of them. A program with
    /// neither goes where its worst op goes.
    pub fn place(&self) -> Place {
        let heavy = |op: &&OpPlace| matches!(op.kind.as_str(), "conv" | "conv_transpose" | "linear" | "matmul");
        let worst = self.ops().filter(heavy).map(|op| op.decision.place).max();
        worst.or_else(|| self.ops().map(|op| op.decision.place).max()).unwrap_or(Place::Unknown)
    }

    /// Which rules decided, those that keep ops off the Neural Engine first.
    pub fn rules(&self) -> Vec<RuleCount> {
        let mut all: Vec<RuleCount> = Vec::new();
        for op in self.ops() {
            let d = &op.decision;
            let found = all.iter().position(|c| c.rule == d.rule && c.place == d.place && c.confidence == d.confidence);
            let at = found.unwrap_or_else(|| {
                all.push(RuleCount {
                    rule: d.rule.clone(),
                    place: d.place,
                    ops: 0,
                    kinds: BTreeMap::new(),
                    confidence: d.confidence.clone(),
                    sources: d.sources.clone(),
                    says: d.says.clone(),
                    against: Vec::new(),
                });
                all.len() - 1
            });
            let count = &mut all[at];
            count.ops += 1;
            *count.kinds.entry(op.kind.clone()).or_default() += 1;
            for reason in &d.against {
                if !count.against.contains(reason) {
                    count.against.push(reason.clone());
                }
            }
        }
        all.sort_by(|a, b| b.place.cmp(&a.place).then(b.ops.cmp(&a.ops)).then(a.rule.cmp(&b.rule)));
        // What speaks against the whole program would stand at every rule: it is said once, at the first.
        let mut said = BTreeSet::new();
        for count in &mut all {
            count.against.retain(|reason| said.insert(reason.clone()));
        }
        all
    }

    /// One line: the place, the count, and the rule behind each op that is not on the Neural Engine.
    pub fn summary(&self) -> String {
        let ane = self.count(Place::Ane);
        let mut line = format!(
            "{}: {ane} of {} ops on the Neural Engine of an {}",
            self.place().name(),
            self.total(),
            self.target
        );
        for count in self.rules().iter().filter(|c| c.place != Place::Ane || c.ops == self.total()) {
            let rule = if count.rule.is_empty() { "no rule" } else { &count.rule };
            line.push_str(&format!(
                "; {} {} by {rule} ({} confidence)",
                count.ops,
                count.place.name(),
                count.confidence
            ));
        }
        line
    }

    /// Everything, for files.
    pub fn to_json(&self) -> serde_json::Value {
        let functions: Vec<_> = self.functions.iter().map(|f| {
            let ops: Vec<_> = f.ops.iter().map(|op| {
                json!({"op": op.index, "kind": op.kind, "name": op.name, "place": op.decision.place, "rule": op.decision.rule})
            }).collect();
            json!({"function": f.name, "ops": ops})
        }).collect();
        json!({
            "target": self.target,
            "place": self.place(),
            "ane": self.count(Place::Ane),
            "total": self.total(),
            "program": self.program,
            "rules": self.rules(),
            "functions": functions,
        })
    }
}

/// Predicts every package of a bundle. A package that is not well formed is the compile gate's matter, and a skip here.
pub fn judge(subject: &Subject, target: Target) -> Vec<Finding> {
    let rules = Rules::known();
    let judge = |(path, _): (&str, String)| {
        let seen = format!("rules for {target}");
        match anemone_mil::package::open(&subject.folder.join(path)) {
            Ok((program, _)) => {
                let prediction = predict(&program, rules, target);
                let mut finding = subject.finding(NAME, path, Verdict::Predicted, &seen, prediction.summary());
                finding.figures = prediction.to_json();
                finding
            }
            Err(e) => subject.finding(NAME, path, Verdict::Skipped, &seen, format!("cannot be read: {e}")),
        }
    };
    subject.packages().map(judge).collect()
}
