//! Rules as data, and how they decide.
//!
//! A rule fires where all its conditions hold. Of those that fire the worst place wins, since one reason to leave the
//! Neural Engine is enough, except that a rule may name others it `beats`. Where none fires the place is unknown: an op that
//! nobody reported is not predicted by analogy.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::{Chip, Feature, Features, Place, Target};

/// `rules.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Who is behind a tag, and what they measured with.
    pub sources: std::collections::BTreeMap<String, String>,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Stable, kebab-case.
    pub id: String,
    /// What it says, for people.
    pub says: String,
    /// Where it sends an op.
    pub place: Place,
    /// All must hold.
    #[serde(default)]
    pub when: Vec<Condition>,
    /// A size beyond which it fires, as far as claims tell it for the target.
    pub limit: Option<Limit>,
    /// The first and last chip it is about; all where not given.
    pub from: Option<Chip>,
    /// See `from`.
    pub until: Option<Chip>,
    /// Whose observations it rests on. A limit's are those of its claims.
    #[serde(default)]
    pub sources: BTreeSet<String>,
    /// `high`, `medium` or `low`.
    pub confidence: String,
    /// Rules that do not count where this one fires.
    #[serde(default)]
    pub beats: Vec<String>,
    /// Reports that contradict it.
    #[serde(default)]
    pub against: Vec<Contradiction>,
}

/// A report that contradicts a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contradiction {
    /// Whose.
    pub source: String,
    /// What was seen.
    pub says: String,
}

/// A condition on one feature.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Its name.
    pub feature: String,
    /// One of its words is one of these.
    #[serde(rename = "in")]
    pub any: Option<BTreeSet<String>>,
    /// At least this.
    pub at_least: Option<f64>,
    /// Less than this.
    pub below: Option<f64>,
}

impl Condition {
    fn holds(&self, features: &Features) -> bool {
        match features.get(&self.feature) {
            None => false,
            Some(Feature::Number(n)) => {
                self.any.is_none()
                    && self.at_least.is_none_or(|least| *n >= least)
                    && self.below.is_none_or(|most| *n < most)
            }
            Some(Feature::Word(w)) => self.any.as_ref().is_some_and(|any| any.contains(w)),
            Some(Feature::Words(ws)) => self.any.as_ref().is_some_and(|any| !any.is_disjoint(ws)),
        }
    }
}

/// A limit on a feature that chips and systems differ in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The feature.
    pub feature: String,
    /// Which side of the limit breaks.
    pub breaks: Side,
    /// What is known about where it lies.
    pub claims: Vec<Claim>,
}

/// A side of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Values above it.
    Above,
    /// Values below it.
    Below,
}

/// What one source says about where a limit lies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Whose.
    pub source: String,
    /// Chips it was seen on; empty where it does not say.
    #[serde(default)]
    pub chips: BTreeSet<Chip>,
    /// Systems it was seen on.
    #[serde(default)]
    pub os: BTreeSet<u32>,
    /// The most extreme value that stayed.
    pub stayed: Option<f64>,
    /// The mildest value that left.
    pub left: Option<f64>,
    /// Whether somebody measured it; otherwise it is advice.
    pub measured: bool,
    /// In its own terms.
    pub says: String,
}

/// What was decided, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Where.
    pub place: Place,
    /// By which rule; empty where none fired.
    pub rule: String,
    /// How sure.
    pub confidence: String,
    /// Whose observations the rule rests on.
    pub sources: Vec<String>,
    /// What the rule says, with the limit where it has one.
    pub says: String,
    /// Rules and reports that say otherwise.
    pub against: Vec<String>,
}

static KNOWN: LazyLock<Rules> = LazyLock::new(|| {
    serde_json::from_str(include_str!("rules.json")).expect("the rules of this crate are well formed")
});

/// A limit as the claims nearest to a target put it.
struct Placed {
    value: f64,
    /// Whether those claims agree with each other.
    agreed: bool,
    /// The claims that placed it.
    by: Vec<String>,
    /// Sources among them.
    sources: Vec<String>,
    /// Whether they speak of the target's chip.
    near: bool,
}

impl Rules {
    /// What is known.
    pub fn known() -> &'static Rules {
        &KNOWN
    }

    /// The rules as they would be had `source` never published: its claims are gone, and so is every rule that rests on
    /// nobody else.
    pub fn without(&self, source: &str) -> Rules {
        let mut rules = self.clone();
        rules.rules.retain_mut(|rule| {
            rule.sources.remove(source);
            rule.against.retain(|c| c.source != source);
            match &mut rule.limit {
                Some(limit) => {
                    limit.claims.retain(|c| c.source != source);
                    !limit.claims.is_empty()
                }
                None => !rule.sources.is_empty(),
            }
        });
        rules
    }

    /// Where an op with these features goes.
    pub fn decide(&self, features: &Features, target: Target) -> Decision {
        let fired: Vec<(&Rule, Option<Placed>)> =
            self.rules.iter().filter_map(|rule| rule.fires(features, target)).collect();
        let beaten: BTreeSet<&str> = fired.iter().flat_map(|(rule, _)| &rule.beats).map(String::as_str).collect();
        let standing = || fired.iter().filter(|(rule, _)| !beaten.contains(rule.id.as_str()));
        // The first of equals: rules are listed from the program to the op.
        let worst = standing().map(|(rule, _)| rule.place).max();
        let Some((rule, placed)) = worst.and_then(|worst| standing().find(|(rule, _)| rule.place == worst)) else {
            return Decision {
                place: Place::Unknown,
                rule: String::new(),
                confidence: "no".into(),
                sources: Vec::new(),
                says: "no rule speaks of it".into(),
                against: Vec::new(),
            };
        };
        let mut against: Vec<String> = rule.against.iter().map(|c| format!("{}: {}", c.source, c.says)).collect();
        let others = fired.iter().filter(|(other, _)| other.place != rule.place && other.place != Place::Ane);
        against.extend(others.map(|(other, _)| format!("rule {} says {}", other.id, other.place.name())));
        let (mut says, mut confidence, mut sources) =
            (rule.says.clone(), rule.confidence.clone(), rule.sources.iter().cloned().collect::<Vec<_>>());
        if let (Some(placed), Some(limit)) = (placed, &rule.limit) {
            says = format!("{says}; the limit taken is {}, from {}", magnitude(placed.value), placed.by.join(" and "));
            sources = placed.sources.clone();
            if !placed.agreed || !placed.near {
                confidence = "low".into();
            }
            against.extend(limit.disagreeing(features, placed));
        }
        if rule.place == Place::Ane {
            against.extend(
                self.rules
                    .iter()
                    .filter(|r| r.concerns(features, target))
                    .flat_map(|r| r.limit.iter())
                    .flat_map(|l| l.doubts(features)),
            );
        }
        Decision { place: rule.place, rule: rule.id.clone(), confidence, sources, says, against }
    }
}

/// `2.21e9` as people write it.
fn magnitude(value: f64) -> String {
    if value >= 1e5 { format!("{:.1} MB", value / 1e6) } else { format!("{value}") }
}

impl Rule {
    /// Whether it is about this chip and this op, its limit aside.
    fn concerns(&self, features: &Features, target: Target) -> bool {
        let about =
            self.from.is_none_or(|from| target.chip >= from) && self.until.is_none_or(|until| target.chip <= until);
        about && self.when.iter().all(|c| c.holds(features))
    }

    fn fires(&self, features: &Features, target: Target) -> Option<(&Rule, Option<Placed>)> {
        if !self.concerns(features, target) {
            return None;
        }
        let Some(limit) = &self.limit else { return Some((self, None)) };
        let Some(Feature::Number(value)) = features.get(&limit.feature) else { return None };
        let placed = limit.placed(target)?;
        let beyond = match limit.breaks {
            Side::Above => *value > placed.value,
            Side::Below => *value < placed.value,
        };
        beyond.then_some((self, Some(placed)))
    }
}

impl Limit {
    /// Where the claims nearest to the target put the limit: between the most extreme value that stayed and the mildest that
    /// left, on a scale of ratios. Claims about the target's own chip come before others, its own system before others,
    /// measurements before advice. Where they contradict each other, the mildest that left: a prediction should rather warn.
    fn placed(&self, target: Target) -> Option<Placed> {
        // A system tells something about a limit only on the chip it was seen on.
        let nearness = |c: &Claim| {
            let chip = c.chips.contains(&target.chip);
            4 * u32::from(c.measured) + 2 * u32::from(chip) + u32::from(chip && c.os.contains(&target.os))
        };
        // Only claims that say where it breaks can place a limit.
        let nearest = self.claims.iter().filter(|c| c.left.is_some()).map(nearness).max()?;
        let claims: Vec<&Claim> = self.claims.iter().filter(|c| nearness(c) == nearest).collect();
        let milder = |a: f64, b: f64| if self.breaks == Side::Above { a.min(b) } else { a.max(b) };
        let harsher = |a: f64, b: f64| if self.breaks == Side::Above { a.max(b) } else { a.min(b) };
        let left = claims.iter().filter_map(|c| c.left).reduce(milder)?;
        let among = claims.iter().filter_map(|c| c.stayed).reduce(harsher);
        // What somebody nearer saw stay, without having looked for where it breaks.
        let nearer = self.claims.iter().filter(|c| nearness(c) > nearest).filter_map(|c| c.stayed).reduce(harsher);
        let within = |stayed: f64| harsher(stayed, left) == left && stayed != left;
        let agreed = among.into_iter().chain(nearer).all(within);
        let value = match (among.into_iter().chain(nearer).reduce(harsher), nearer) {
            (Some(stayed), _) if agreed => (stayed * left).sqrt(),
            (_, Some(nearer)) if !within(nearer) => nearer,
            _ => left,
        };
        Some(Placed {
            value,
            agreed,
            by: claims.iter().map(|c| format!("{} ({})", c.source, c.says)).collect(),
            sources: claims.iter().map(|c| c.source.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
            near: claims.iter().any(|c| c.chips.contains(&target.chip)),
        })
    }

    /// Claims by which this value would have left, although the nearest ones let it stay.
    fn doubts(&self, features: &Features) -> Vec<String> {
        let Some(Feature::Number(value)) = features.get(&self.feature) else { return Vec::new() };
        let leaves = |c: &&Claim| match (self.breaks, c.left) {
            (Side::Above, Some(left)) => *value >= left,
            (Side::Below, Some(left)) => *value <= left,
            (_, None) => false,
        };
        self.claims.iter().filter(leaves).map(|c| format!("{}: {}", c.source, c.says)).collect()
    }

    /// Claims by which this value would have stayed.
    fn disagreeing(&self, features: &Features, placed: &Placed) -> Vec<String> {
        let Some(Feature::Number(value)) = features.get(&self.feature) else { return Vec::new() };
        let stays = |c: &&Claim| match (self.breaks, c.stayed) {
            (Side::Above, Some(stayed)) => *value <= stayed,
            (Side::Below, Some(stayed)) => *value >= stayed,
            (_, None) => false,
        };
        let text = |c: &Claim| format!("{}: {}", c.source, c.says);
        let own = |c: &&Claim| !placed.agreed || !placed.by.contains(&format!("{} ({})", c.source, c.says));
        self.claims.iter().filter(stays).filter(own).map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(all: &[(&str, Feature)]) -> Features {
        all.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn conv(bytes: f64) -> Features {
        let word = |w: &str| Feature::Word(w.into());
        features(&[("op", word("conv")), ("weight", word("int8-channel")), ("weight_bytes", Feature::Number(bytes))])
    }

    #[test]
    fn every_source_of_a_rule_is_described_and_every_id_is_its_own() {
        let rules = Rules::known();
        let mut ids = BTreeSet::new();
        for rule in &rules.rules {
            assert!(ids.insert(&rule.id), "{} twice", rule.id);
            let claims = rule.limit.iter().flat_map(|l| &l.claims).map(|c| &c.source);
            let all: Vec<_> = rule.sources.iter().chain(claims).chain(rule.against.iter().map(|c| &c.source)).collect();
            assert!(!all.is_empty(), "{} rests on nobody", rule.id);
            for source in all {
                assert!(rules.sources.contains_key(source), "{}: who is {source}?", rule.id);
            }
            for beaten in &rule.beats {
                assert!(rules.rules.iter().any(|r| r.id == *beaten), "{} beats {beaten}, which is not there", rule.id);
            }
            assert!(["high", "medium", "low"].contains(&rule.confidence.as_str()), "{}", rule.id);
        }
    }

    #[test]
    fn the_nearest_claims_place_a_limit() {
        let mac = Target { chip: Chip::M4, os: 15 };
        let rules = Rules::known();
        assert_eq!(rules.decide(&conv(2.0e9), mac).place, Place::Ane);
        let large = rules.decide(&conv(2.4e9), mac);
        assert_eq!(
            (large.place, large.rule.as_str(), large.confidence.as_str()),
            (Place::Cpu, "program-too-large", "high")
        );
        // Other chips were reported to bear less, and nobody measured this one: the prediction warns and is less sure.
        let other = rules.decide(&conv(2.0e9), Target { chip: Chip::M2, os: 14 });
        assert_eq!((other.place, other.confidence.as_str()), (Place::Cpu, "low"));
        assert!(!other.against.is_empty());
    }

    #[test]
    fn a_source_left_out_takes_its_rules_with_it() {
        let rules = Rules::known();
        let without = rules.without("AB");
        assert!(without.rules.len() < rules.rules.len());
        assert!(without.rules.iter().all(|r| !r.sources.contains("AB")));
        assert!(
            without.rules.iter().filter_map(|r| r.limit.as_ref()).flat_map(|l| &l.claims).all(|c| c.source != "AB")
        );
    }

    #[test]
    fn what_nobody_reported_is_unknown() {
        let op = features(&[("op", Feature::Word("an_op_of_tomorrow".into())), ("weight_bytes", Feature::Number(1e8))]);
        assert_eq!(Rules::known().decide(&op, Target::default()).place, Place::Unknown);
    }
}
