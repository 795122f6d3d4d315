//! The residency gate proper: what Core ML's compute plan says of every op, held against the strict rule and our prediction.
//!
//! Strict means: every op that computes and that the plan speaks of *prefers* the Neural Engine, in every function, and at
//! least one of them is a convolution. What an op could run on (*supported*) is reported and decides nothing. An op that the
//! plan does not speak of is counted apart. A plan is not a run: that the ops ran there is a third claim, not made here.
//!
//! Where the plan differs from the prediction the difference becomes an observation in the form of `observations.json`, so
//! that rules can be held against it.

use std::collections::{BTreeMap, BTreeSet};

use anemone_coreml::{Device, Machine, OpUsage};
use anemone_mil::Valid;
use serde::Serialize;
use serde_json::json;

use super::{Chip, NAME, Place, Prediction, Rules, Target, features, predict};
use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// Asks Core ML for a package's compute plan; the error is what it said instead.
pub type Ask<'a> = dyn Fn(&std::path::Path) -> Result<Vec<OpUsage>, String> + 'a;

/// One op, predicted and planned.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    /// The function.
    pub function: String,
    /// Its index in the function.
    pub index: usize,
    /// Its kind.
    pub kind: String,
    /// The name of its first result.
    pub name: String,
    /// Where the plan puts it; absent where the plan does not speak of it.
    pub preferred: Option<&'static str>,
    /// Where it could run.
    pub supported: Vec<&'static str>,
    /// Its part of the estimated cost.
    pub cost: Option<f64>,
    /// Where the rules put it.
    pub predicted: Place,
    /// By which rule.
    pub rule: String,
}

/// A plan, held against a prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Every op that computes.
    pub ops: Vec<Op>,
    /// What speaks against the rules, in the form of `observations.json`: each kind of disagreement once.
    pub observations: Vec<serde_json::Value>,
}

/// The chip that a machine's name speaks of: `Apple M4 Max` is an M4.
pub fn chip(machine: &Machine) -> Option<Chip> {
    let mut words = machine.chip.split_whitespace();
    words.find_map(|word| Chip::ALL.into_iter().find(|c| c.to_string() == word))
}

fn place(device: Device) -> Place {
    match device {
        Device::NeuralEngine => Place::Ane,
        Device::Cpu | Device::Gpu => Place::Cpu,
        Device::Other => Place::Unknown,
    }
}

/// Lays a plan beside the program and the prediction for it. Ops are found by the names of their results.
pub fn compare(program: &Valid, usages: &[OpUsage], prediction: &Prediction, about: &About) -> Comparison {
    let planned: BTreeMap<(&str, &str), &OpUsage> =
        usages.iter().flat_map(|u| u.outputs.iter().map(move |o| ((u.function.as_str(), o.as_str()), u))).collect();
    let whole = features::program(program);
    let (mut ops, mut observations, mut told) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (f, function) in program.functions.iter().enumerate() {
        for predicted in &prediction.functions[f].ops {
            let op = &function.ops[predicted.index];
            let name = op.outputs.first().map_or("", |id| function.value(*id).name.as_str());
            let usage = planned.get(&(function.name.as_str(), name));
            let preferred = usage.and_then(|u| u.preferred);
            let (expected, rule) = (predicted.decision.place, &predicted.decision.rule);
            if let Some(saw) = preferred.map(place).filter(|s| *s != Place::Unknown)
                && !super::score::agrees(expected, saw)
            {
                let seen = features::op(program, f, predicted.index, &whole);
                let key = json!([seen, saw]).to_string();
                if told.insert(key) {
                    observations.push(json!({
                        "id": format!("{}: {} `{name}` of `{}`", about.part, op.kind, function.name),
                        "source": about.source,
                        "cite": about.cite,
                        "chip": prediction.target.chip,
                        "os": prediction.target.os,
                        "saw": saw,
                        "features": seen,
                        "note": format!("predicted {} by {}", expected.name(), if rule.is_empty() { "no rule" } else { rule }),
                    }));
                }
            }
            ops.push(Op {
                function: function.name.clone(),
                index: predicted.index,
                kind: op.kind.clone(),
                name: name.to_owned(),
                preferred: preferred.map(Device::name),
                supported: usage.map(|u| u.supported.iter().map(|d| d.name()).collect()).unwrap_or_default(),
                cost: usage.and_then(|u| u.cost),
                predicted: expected,
                rule: rule.clone(),
            });
        }
    }
    Comparison { ops, observations }
}

/// What observations say of where they come from.
pub struct About {
    /// The package.
    pub part: String,
    /// Who saw it: a tag.
    pub source: String,
    /// Where it says so.
    pub cite: String,
}

impl Comparison {
    /// The strict rule's verdict, and why.
    pub fn verdict(&self) -> (Verdict, String) {
        let spoken: Vec<&Op> = self.ops.iter().filter(|o| o.preferred.is_some()).collect();
        let ane = Device::NeuralEngine.name();
        let away: Vec<&&Op> = spoken.iter().filter(|o| o.preferred != Some(ane)).collect();
        let supported = away.iter().filter(|o| o.supported.contains(&ane)).count();
        let conv = spoken.iter().any(|o| o.kind == "conv" && o.preferred == Some(ane));
        let count = format!("{} of {} ops prefer the Neural Engine", spoken.len() - away.len(), spoken.len());
        let silent = match self.ops.len() - spoken.len() {
            0 => String::new(),
            n => format!("; the plan does not speak of {n} more"),
        };
        if let Some(first) = away.first() {
            let (kind, name, device) = (&first.kind, &first.name, first.preferred.unwrap_or_default());
            let message =
                format!("{count}, {supported} of the others could; the first is {kind} `{name}` on {device}{silent}");
            return (Verdict::Failed, message);
        }
        match (spoken.is_empty(), conv) {
            (true, _) => (Verdict::Inconclusive, format!("the plan speaks of no op{silent}")),
            (_, false) => (Verdict::Failed, format!("{count}, and no convolution is among them{silent}")),
            _ => (Verdict::Passed, format!("{count}{silent}")),
        }
    }
}

/// The tag under which observations of one's own are kept until they are published somewhere.
pub const SOURCE: &str = "OWN";

/// Judges every package of a bundle by its compute plan.
pub fn judge(subject: &Subject, machine: &Machine, ask: &Ask<'_>) -> Vec<Finding> {
    let seen = format!("compute plan of {machine}");
    let target = Target { chip: chip(machine).unwrap_or(Target::default().chip), os: machine.os[0] };
    let judge = |(path, _): (&str, String)| {
        let file = subject.folder.join(path);
        let program = match anemone_mil::open(&file) {
            Ok((program, _)) => program,
            Err(e) => return subject.finding(NAME, path, Verdict::Skipped, &seen, format!("cannot be read: {e}")),
        };
        let usages = match ask(&file) {
            Ok(usages) => usages,
            Err(said) => return subject.finding(NAME, path, Verdict::Failed, &seen, said),
        };
        let prediction = predict(&program, Rules::known(), target);
        let about = About {
            part: path.to_owned(),
            source: SOURCE.to_owned(),
            cite: format!("bundle {} on {machine}", subject.manifest.hash()),
        };
        let comparison = compare(&program, &usages, &prediction, &about);
        let (verdict, mut message) = comparison.verdict();
        if !comparison.observations.is_empty() {
            message.push_str(&format!("; {} observations against the rules", comparison.observations.len()));
        }
        let mut finding = subject.finding(NAME, path, verdict, &seen, message);
        finding.figures = json!(comparison);
        finding
    };
    subject.packages().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use anemone_mil::ir::{Dtype, Literal, TensorType};
    use anemone_mil::{FunctionBuilder, program, validate};

    use super::super::score::Observation;
    use super::*;

    fn shard() -> Valid {
        let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
        let x = b.input("x", TensorType::new(Dtype::F16, &[1, 1024, 1, 1])).unwrap();
        let weight = Literal::from_bytes(TensorType::new(Dtype::F16, &[4096, 1024, 1, 1]), vec![0; 2 * 4096 * 1024]);
        let weight = b.constant("weight", weight);
        let conv = b.op("conv", "conv", &[("x", x.into()), ("weight", weight.into())]).unwrap();
        let relu = b.op("relu", "relu", &[("x", conv.into())]).unwrap();
        let main = b.finish(&[("y", relu)]).unwrap();
        validate(program(vec![main], BTreeMap::new())).unwrap()
    }

    fn machine(chip: &str) -> Machine {
        Machine { chip: chip.to_owned(), os: [15, 3, 1] }
    }

    fn plan(program: &Valid, device: impl Fn(&str) -> Option<Device>) -> Comparison {
        let usage = |op: &anemone_mil::ir::Op| OpUsage {
            function: "main".to_owned(),
            kind: format!("ios18.{}", op.kind),
            outputs: op.outputs.iter().map(|id| program.functions[0].value(*id).name.clone()).collect(),
            preferred: device(&op.kind),
            supported: vec![Device::Cpu, Device::NeuralEngine],
            cost: Some(0.5),
        };
        let usages: Vec<_> = program.functions[0].ops.iter().map(usage).collect();
        let prediction = predict(program, Rules::known(), Target::default());
        let about = About { part: "p".to_owned(), source: SOURCE.to_owned(), cite: "c".to_owned() };
        compare(program, &usages, &prediction, &about)
    }

    #[test]
    fn the_strict_rule_is_strict() {
        let program = shard();
        let all = |kind: &str| (kind != "const").then_some(Device::NeuralEngine);
        let passed = plan(&program, all);
        assert_eq!(passed.verdict(), (Verdict::Passed, "2 of 2 ops prefer the Neural Engine".to_owned()));
        let one = plan(&program, |k| if k == "relu" { Some(Device::Gpu) } else { all(k) });
        let (verdict, message) = one.verdict();
        assert_eq!(verdict, Verdict::Failed);
        assert!(
            message.contains("1 of 2 ops") && message.contains("1 of the others could; the first is relu `y` on gpu"),
            "{message}"
        );
        let silent = plan(&program, |k| (k == "conv").then_some(Device::NeuralEngine)).verdict();
        assert_eq!((silent.0, silent.1.ends_with("does not speak of 1 more")), (Verdict::Passed, true));
        assert_eq!(plan(&program, |k| (k == "relu").then_some(Device::NeuralEngine)).verdict().0, Verdict::Failed);
        assert_eq!(plan(&program, |_| None).verdict().0, Verdict::Inconclusive);
    }

    #[test]
    fn disagreements_are_observations_that_the_rules_can_be_held_against() {
        let program = shard();
        assert!(plan(&program, |k| (k != "const").then_some(Device::NeuralEngine)).observations.is_empty());
        let seen = plan(&program, |k| (k != "const").then_some(Device::Cpu));
        assert_eq!(seen.observations.len(), 2);
        let read: Vec<Observation> = serde_json::from_value(json!(seen.observations)).unwrap();
        assert_eq!(read[0].saw, Place::Cpu);
        let again = Rules::known().decide(&read[0].features, Target { chip: read[0].chip, os: read[0].os });
        assert_eq!(again.place, Place::Ane, "the features are those that were predicted from");
    }

    #[test]
    fn chips_are_known_by_their_names() {
        let of = |name: &str| chip(&machine(name));
        assert_eq!((of("Apple M4 Max"), of("Apple M1"), of("Intel Core i9")), (Some(Chip::M4), Some(Chip::M1), None));
    }
}
