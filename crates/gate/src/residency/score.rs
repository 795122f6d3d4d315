//! How well the rules predict what others published.
//!
//! Each observation is predicted twice: with every rule, and with everything its own source said left out. The second is the
//! figure that says something about graphs nobody has published; the first only that the rules were written down right.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde::Deserialize;

use super::{Chip, Decision, Features, Place, Rules, Target};

/// What somebody saw.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// What was observed, for people: no rule reads it.
    pub id: String,
    /// Who saw it.
    pub source: String,
    /// Where it says so.
    pub cite: String,
    /// On which chip.
    pub chip: Chip,
    /// On which system.
    pub os: u32,
    /// Where the op, or the program's convolutions, went.
    pub saw: Place,
    /// What is known of the graph.
    pub features: Features,
    /// What else was seen, or what had to be assumed.
    pub note: Option<String>,
}

/// Every observation known.
pub fn observations() -> Vec<Observation> {
    serde_json::from_str(include_str!("observations.json")).expect("the observations of this crate are well formed")
}

/// One observation, predicted.
pub struct Scored {
    /// What was seen.
    pub observation: Observation,
    /// With every rule.
    pub all: Decision,
    /// With its own source left out.
    pub left_out: Decision,
}

/// Whether a prediction agrees: on or off the Neural Engine is the question, and failing is being off it.
pub fn agrees(predicted: Place, saw: Place) -> bool {
    predicted != Place::Unknown && (predicted == Place::Ane) == (saw == Place::Ane)
}

/// Predicts every observation.
pub fn score(rules: &Rules) -> Vec<Scored> {
    let predict = |observation: Observation| {
        let target = Target { chip: observation.chip, os: observation.os };
        let all = rules.decide(&observation.features, target);
        let left_out = rules.without(&observation.source).decide(&observation.features, target);
        Scored { observation, all, left_out }
    };
    observations().into_iter().map(predict).collect()
}

/// Counts over some observations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Observations.
    pub seen: usize,
    /// Of them off the Neural Engine.
    pub off: usize,
    /// Right with every rule.
    pub all: usize,
    /// Right with the source left out.
    pub left_out: usize,
    /// Among those off the engine, right with the source left out.
    pub left_out_off: usize,
    /// No rule spoke once the source was left out.
    pub silent: usize,
}

/// Counts what agrees.
pub fn tally<'a>(scored: impl IntoIterator<Item = &'a Scored>) -> Tally {
    let mut t = Tally::default();
    for s in scored {
        let saw = s.observation.saw;
        let right = agrees(s.left_out.place, saw);
        t.seen += 1;
        t.off += usize::from(saw != Place::Ane);
        t.all += usize::from(agrees(s.all.place, saw));
        t.left_out += usize::from(right);
        t.left_out_off += usize::from(right && saw != Place::Ane);
        t.silent += usize::from(s.left_out.place == Place::Unknown);
    }
    t
}

/// The score as Markdown: by source, in all, and every observation that is predicted wrongly.
pub fn report(rules: &Rules) -> String {
    let scored = score(rules);
    let sources: BTreeSet<&str> = scored.iter().map(|s| s.observation.source.as_str()).collect();
    let mut text = String::from(
        "| source | observations | off the engine | right, all rules | right, source left out | of those off the engine | no rule left |\n|---|---|---|---|---|---|---|\n",
    );
    let mut row = |name: &str, t: Tally| {
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} of {} | {} |",
            t.seen, t.off, t.all, t.left_out, t.left_out_off, t.off, t.silent
        );
    };
    for source in sources {
        row(source, tally(scored.iter().filter(|s| s.observation.source == source)));
    }
    let total = tally(&scored);
    row("**all**", total);
    let _ = writeln!(
        text,
        "\nSaying \"Neural Engine\" to everything would be right {} times of {}.\n\nPredicted wrongly with every rule in force:\n\n| observation | seen | predicted | by |\n|---|---|---|---|",
        total.seen - total.off,
        total.seen
    );
    for s in scored.iter().filter(|s| !agrees(s.all.place, s.observation.saw)) {
        let o = &s.observation;
        let _ = writeln!(
            text,
            "| {}: {} ({}) | {} | {} | {} |",
            o.source,
            o.id,
            o.cite,
            o.saw.name(),
            s.all.place.name(),
            s.all.rule
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed with `--nocapture`; `docs/placement.md` carries the same text, and this keeps it true.
    #[test]
    fn the_published_score_is_the_score() {
        let report = report(Rules::known());
        println!("{report}");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/placement.md");
        let published = std::fs::read_to_string(path).unwrap();
        assert!(published.contains(&report), "docs/placement.md does not carry this score:\n{report}");
    }

    #[test]
    fn names_decide_nothing() {
        // Features hold no model's name, and observations are predicted from features alone.
        let known = [
            "op",
            "dtype",
            "weight",
            "weight_bytes",
            "states",
            "state_width",
            "state_width_by_32",
            "convs",
            "functions",
            "shapes",
            "channels",
            "rank",
            "reduced",
            "indices",
            "depthwise",
            "kernel_width",
            "ops",
            "width",
            "encodings",
        ];
        for o in observations() {
            for name in o.features.keys() {
                assert!(known.contains(&name.as_str()), "{}: {name}", o.id);
            }
            assert!(Rules::known().sources.contains_key(&o.source), "{}", o.id);
        }
    }

    #[test]
    fn it_knows_more_than_the_majority() {
        let t = tally(&score(Rules::known()));
        assert!(t.all > t.seen - t.off && t.left_out > t.seen - t.off, "{t:?}");
    }
}
