//! The contract probe: does a neighbouring contract explain the model better than the declared one?
//!
//! Every other gate compares the bundle with a reference that reads the same file. Where the file itself is wrong (a rotary
//! width that nothing else in it contradicts) both are wrong alike. The probe asks the model: its weights were trained under one
//! contract, and under that one it is surest of itself and of what it was taught.
//!
//! Two statistics are taken under the declared contract and under each neighbour, which differs from it in one thing:
//!
//! - **doubt**: the mean entropy of the model's own greedy answer, in nats a token, over prompts that it was made for;
//! - **surprise**: the mean NLL of a given answer, where the prompts have one.
//!
//! Neither decides alone where both are there. The likelihood of text that a narrow model was not made for misleads (a wrong width
//! may win by half a nat), and an answer that only repeats itself is sure of itself under any contract. So a neighbour is
//! preferred if it is better by [`CLEAR`] in one statistic and not worse by [`SLIGHT`] in the other, and on most of the prompts,
//! not by a few. A narrow model is so sure of itself that a contract nearly right costs it far less than [`CLEAR`]; so a neighbour
//! is preferred as well if it leaves less than [`HALF`] of the doubt, by more than [`SMALL`], on every one of [`MANY`] prompts
//! or more. Where a neighbour is clearly better in one and worse in the other, where the model is doubtful under every
//! contract because the prompts are none it was made for, or where they hardly tell contracts apart, the probe is inconclusive and
//! says so.
//!
//! Two changes are tried and reported, never judged by: norms' eps, to which both statistics are blind, and the scale of logits,
//! which moves both whatever the contract is, since a model that is right is surer of itself with its logits doubled.

use anemone_reference::{self as reference, FactorSet, Hypothesis, Pairing, Rope, Variant};
use serde::Serialize;
use serde_json::json;

use crate::own;
use crate::prompts::Prompt;
use crate::stack_golden::argmax;
use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "probe";

/// Nats by which a neighbour has to be better to be preferred.
pub const CLEAR: f64 = 0.25;
/// Nats by which it may be worse in the other statistic.
pub const SLIGHT: f64 = 0.1;
/// The part of the declared contract's doubt below which a neighbour's is another order of certainty, not chance.
pub const HALF: f64 = 0.5;
/// Nats of doubt that are noise whatever part of the whole they are.
pub const SMALL: f64 = 0.05;
/// Prompts that have to agree without exception before [`HALF`] counts: chance agrees on eight in one of 256.
pub const MANY: usize = 8;
/// Nats of doubt above which a model does not know what it is asked: half way, on a scale of ratios, between the most that was seen of a
/// right contract (1.50, a general model of 135 million weights on the built-in questions) and the least of a wrong one on the same
/// (3.72).
pub const DOUBTFUL: f64 = 2.4;
/// The part of the neighbours that has to be clearly worse before the declared contract is said to stand: prompts on which all
/// contracts are alike say nothing for any.
pub const APART: f64 = 0.5;
/// The part of the prompts on which a preferred neighbour is better.
const MOST: f64 = 0.7;
/// Tokens of an answer that are looked at.
const ANSWER: usize = 8;
/// Prompts that a neighbour is tried on before it is tried on all.
const SCREEN: usize = 3;

/// A contract that differs from the declared one in one thing.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// What is different: `rope.dim = 96`.
    pub name: String,
    /// Under what the model runs.
    pub hypothesis: Hypothesis,
}

/// The rotary base as the frequencies show it, and the width that their exponent runs over being that of the pairs:
/// `f_1 = base^(-2 / dim)`. Only for frequencies that no factors stretch.
fn base(frequencies: &[f64]) -> Option<f64> {
    let dim = 2.0 * frequencies.len() as f64;
    let base = frequencies.get(1)?.powf(-dim / 2.0);
    let plain = plain(base, frequencies.len(), dim);
    frequencies.iter().zip(&plain).all(|(a, b)| (a / b - 1.0).abs() < 1e-6).then_some(base)
}

/// `pairs` frequencies of an unscaled rotation whose exponent runs over `width`.
fn plain(base: f64, pairs: usize, width: f64) -> Vec<f64> {
    (0..pairs).map(|i| base.powf(-2.0 * i as f64 / width)).collect()
}

/// Every neighbour of what `model` runs under. `stored_base` is the base that the file states.
pub fn neighbours(model: &reference::Model, stored_base: f64) -> Vec<Neighbour> {
    let (declared, h) = (&model.hypothesis(), model.hyperparameters());
    let mut all = Vec::new();
    let rope = &declared.rope;
    let pairs = rope.frequencies.len();
    let mut turned = |name: String, frequencies: Vec<f64>, pairing: Pairing| {
        let rope = Rope { frequencies, pairing, ..rope.clone() };
        all.push(Neighbour { name, hypothesis: Hypothesis { rope, ..declared.clone() } });
    };
    let unscaled = base(&rope.frequencies);
    let own_base = unscaled.unwrap_or(stored_base);
    // What scaling makes of each pair; it belongs to a number of pairs, so that only an unscaled rotation has neighbours of another
    // width.
    let stretch: Vec<f64> = match unscaled {
        Some(_) => vec![1.0; pairs],
        None => plain(own_base, pairs, 2.0 * pairs as f64).iter().zip(&rope.frequencies).map(|(p, f)| p / f).collect(),
    };
    let stretched = |base: f64, width: f64| -> Vec<f64> {
        plain(base, pairs, width).iter().zip(&stretch).map(|(plain, stretch)| plain / stretch).collect()
    };
    if unscaled.is_some() {
        for dim in (16..=h.head_dim).step_by(16).filter(|&dim| dim != 2 * pairs) {
            turned(format!("rope.dim = {dim}"), plain(own_base, dim / 2, dim as f64), rope.pairing);
        }
    }
    let mut bases = vec![own_base / 10.0, 1e4, 1e5, 1.3e5, 5e5, 1e6, own_base * 10.0];
    bases.sort_by(f64::total_cmp);
    bases.dedup_by(|a, b| (*a / *b - 1.0).abs() < 0.01);
    for known in bases.into_iter().filter(|known| (known / own_base - 1.0).abs() > 0.01) {
        turned(format!("rope.base = {known:.0}"), stretched(known, 2.0 * pairs as f64), rope.pairing);
    }
    if unscaled.is_some() {
        for factor in [4.0, 8.0] {
            let slower = rope.frequencies.iter().map(|f| f / factor).collect();
            turned(format!("rope scaling = linear by {factor}"), slower, rope.pairing);
        }
    } else {
        turned("rope scaling off".into(), plain(stored_base, pairs, 2.0 * pairs as f64), rope.pairing);
    }
    if let Some((set, other)) = model.other_factors()
        && other.frequencies != rope.frequencies
    {
        let set = match set {
            FactorSet::Short => "short",
            FactorSet::Long => "long",
        };
        turned(format!("rope factors = {set}"), other.frequencies.clone(), rope.pairing);
    }
    if 2 * pairs != h.head_dim {
        let over = stretched(own_base, h.head_dim as f64);
        turned(format!("rope exponent over the head's {}", h.head_dim), over, rope.pairing);
    }
    let other = match rope.pairing {
        Pairing::HalfSplit => Pairing::Interleaved,
        Pairing::Interleaved => Pairing::HalfSplit,
    };
    turned(format!("rope.pairing = {other:?}, or q and k rows permuted"), rope.frequencies.clone(), other);

    let mut vary = |name: &str, change: &dyn Fn(&mut Variant)| {
        let mut hypothesis = declared.clone();
        change(&mut hypothesis.variant);
        all.push(Neighbour { name: name.to_owned(), hypothesis });
    };
    let scale = (h.width as f32).sqrt();
    vary("embedding_scale = sqrt(width)", &|v| v.embedding_scale *= scale);
    vary("norm weights plus one", &|v| v.norm_offset += 1.0);
    vary("gate and up exchanged", &|v| v.gate_is_up = !v.gate_is_up);
    if h.kv_heads > 1 && h.kv_heads < h.heads {
        vary("kv heads round robin", &|v| v.kv_round_robin = !v.kv_round_robin);
    }
    all
}

/// Neighbours that are tried and never judged by.
pub fn unjudged(model: &reference::Model) -> Vec<Neighbour> {
    let declared = model.hypothesis();
    let eps = |name: &str, factor: f32| Neighbour {
        name: name.to_owned(),
        hypothesis: Hypothesis { eps: declared.eps * factor, ..declared.clone() },
    };
    let scaled = |name: &str, factor: f32| {
        let variant = Variant { logit_scale: declared.variant.logit_scale * factor, ..declared.variant };
        Neighbour { name: name.to_owned(), hypothesis: Hypothesis { variant, ..declared.clone() } }
    };
    vec![eps("eps / 10", 0.1), eps("eps x 10", 10.0), scaled("logits halved", 0.5), scaled("logits doubled", 2.0)]
}

/// What one contract makes of one prompt.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reading {
    /// Mean entropy of the greedy answer.
    pub doubt: f64,
    /// Mean NLL of the given answer.
    pub surprise: Option<f64>,
}

/// Entropy of a row of logits, in nats, and the log-probability of `token`.
fn entropy(logits: &[f32], token: u32) -> (f64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials = || logits.iter().map(|&v| f64::from(v - max).exp());
    let sum: f64 = exponentials().sum();
    let weighted: f64 = logits.iter().zip(exponentials()).map(|(&v, e)| e * f64::from(v - max)).sum();
    let log_sum = sum.ln();
    let own = logits.get(token as usize).map_or(f64::NEG_INFINITY, |&v| f64::from(v - max) - log_sum);
    (log_sum - weighted / sum, own)
}

/// Runs one prompt under one contract.
fn read(model: &reference::Model, prompt: &Prompt, stop: &dyn Fn(u32) -> bool) -> Result<Reading, reference::Error> {
    let mut cache = model.cache();
    let first = model.forward_last(&prompt.ids, &mut cache)?;
    let (mut doubt, mut count, mut logits) = (0.0, 0, first.clone());
    loop {
        let token = argmax(&logits);
        doubt += entropy(&logits, token).0;
        count += 1;
        if count == ANSWER || stop(token) {
            break;
        }
        logits = model.forward_last(&[token], &mut cache)?;
    }
    let surprise = match &prompt.expected {
        Some(answer) if !answer.is_empty() => {
            cache.truncate(prompt.ids.len());
            let answer = &answer[..answer.len().min(2 * ANSWER)];
            let rest = model.forward(&answer[..answer.len() - 1], &mut cache)?;
            let rows = std::iter::once(&first[..]).chain(rest.chunks_exact(first.len()));
            let nll: f64 = rows.zip(answer).map(|(row, &token)| -entropy(row, token).1).sum();
            Some(nll / answer.len() as f64)
        }
        _ => None,
    };
    // A forward that overflows is as doubtful as can be.
    let doubt = if doubt.is_nan() { f64::INFINITY } else { doubt / count as f64 };
    Ok(Reading { doubt, surprise: surprise.map(|s| if s.is_nan() { f64::INFINITY } else { s }) })
}

/// How much better a neighbour is than the declared contract.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The neighbour.
    pub name: String,
    /// Prompts it was tried on.
    pub prompts: usize,
    /// Nats of doubt less.
    pub doubt: f64,
    /// The neighbour's doubt as a part of the declared contract's.
    pub left: f64,
    /// Nats of surprise less.
    pub surprise: Option<f64>,
    /// The part of the prompts on which it is the better one.
    pub better: f64,
}

impl Comparison {
    fn of(name: &str, declared: &[Reading], found: &[Reading]) -> Self {
        let pairs = || declared.iter().zip(found);
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let surprises: Vec<f64> = pairs().filter_map(|(d, f)| Some(d.surprise? - f.surprise?)).collect();
        let better = pairs().filter(|(d, f)| match (d.surprise, f.surprise) {
            (Some(d), Some(f)) => f < d,
            _ => f.doubt < d.doubt,
        });
        let total = |readings: &[Reading]| readings.iter().map(|r| r.doubt).sum::<f64>();
        Self {
            name: name.to_owned(),
            prompts: found.len(),
            left: total(found) / total(&declared[..found.len()]).max(f64::MIN_POSITIVE),
            better: better.count() as f64 / found.len().max(1) as f64,
            doubt: mean(pairs().map(|(d, f)| d.doubt - f.doubt).collect()),
            surprise: (!surprises.is_empty()).then(|| mean(surprises)),
        }
    }

    /// Better by so much in one statistic.
    fn clearly(&self) -> bool {
        self.doubt > CLEAR || self.surprise.is_some_and(|s| s > CLEAR) || self.steadily()
    }

    /// Worse by as much.
    fn clearly_worse(&self) -> bool {
        self.doubt < -CLEAR || self.surprise.is_some_and(|s| s < -CLEAR)
    }

    /// Better by little, and always.
    fn steadily(&self) -> bool {
        self.doubt > SMALL && self.left < HALF && self.better == 1.0 && self.prompts >= MANY
    }

    /// Worse by so much in one statistic.
    fn contradicted(&self) -> bool {
        self.doubt < -SLIGHT || self.surprise.is_some_and(|s| s < -SLIGHT)
    }

    /// Preferred to the declared contract.
    pub fn preferred(&self) -> bool {
        self.clearly() && !self.contradicted() && self.better >= MOST
    }

    /// The order of preference.
    fn gain(&self) -> f64 {
        self.doubt + self.surprise.unwrap_or_default()
    }

    fn words(&self) -> String {
        let surprise = self.surprise.map_or(String::new(), |s| format!(" and {s:.2} of surprise"));
        format!("{} ({:.2} nats of doubt{surprise} less, better on {:.0}%)", self.name, self.doubt, 100.0 * self.better)
    }
}

/// What the probe found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether the declared contract stands.
    pub verdict: Verdict,
    /// One line.
    pub message: String,
    /// Mean doubt and surprise under the declared contract.
    pub declared: Reading,
    /// Every neighbour, the best first.
    pub neighbours: Vec<Comparison>,
    /// What was tried and not judged by.
    pub unjudged: Vec<Comparison>,
}

/// Probes `model` as it runs: the verdict is about `neighbours`, and the `unjudged` are reported beside it. `stop` says which
/// tokens end an answer; `step` is called for each contract tried.
pub fn probe(
    model: &reference::Model,
    neighbours: &[Neighbour],
    unjudged: &[Neighbour],
    prompts: &[Prompt],
    stop: &dyn Fn(u32) -> bool,
    mut step: impl FnMut(&str),
) -> Result<Outcome, reference::Error> {
    let read_all = |model: &reference::Model, prompts: &[Prompt]| -> Result<Vec<Reading>, reference::Error> {
        prompts.iter().map(|prompt| read(model, prompt, stop)).collect()
    };
    let declared = read_all(model, prompts)?;
    let mut compare = |neighbour: &Neighbour| -> Result<Comparison, reference::Error> {
        step(&neighbour.name);
        let other = model.under(neighbour.hypothesis.clone())?;
        let (first, rest) = prompts.split_at(SCREEN.min(prompts.len()));
        let mut readings = read_all(&other, first)?;
        let screened = Comparison::of(&neighbour.name, &declared, &readings);
        if screened.doubt > 0.0 || screened.surprise.is_some_and(|s| s > 0.0) {
            readings.extend(read_all(&other, rest)?);
        }
        Ok(Comparison::of(&neighbour.name, &declared, &readings))
    };
    let mut found = neighbours.iter().map(&mut compare).collect::<Result<Vec<_>, _>>()?;
    let unjudged = unjudged.iter().map(&mut compare).collect::<Result<Vec<_>, _>>()?;
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let surprises: Vec<f64> = declared.iter().filter_map(|r| r.surprise).collect();
    let own = Reading {
        doubt: mean(declared.iter().map(|r| r.doubt).collect()),
        surprise: (!surprises.is_empty()).then(|| mean(surprises)),
    };
    let (verdict, message) = decide(own, &found, prompts.len());
    found.sort_by(|a, b| b.gain().total_cmp(&a.gain()));
    Ok(Outcome { verdict, message, declared: own, neighbours: found, unjudged })
}

fn decide(own: Reading, found: &[Comparison], prompts: usize) -> (Verdict, String) {
    let tried = format!("{} neighbours over {prompts} prompts", found.len());
    let stated = format!("{:.2} nats of doubt under the declared contract", own.doubt);
    if prompts < SCREEN {
        return (Verdict::Inconclusive, format!("{prompts} prompts are too few; give at least {SCREEN}"));
    }
    let best = found.iter().filter(|c| c.preferred()).map(Comparison::gain).fold(f64::NEG_INFINITY, f64::max);
    // What only slow pairs tell apart is equally good over short prompts: the first in the order of neighbours, a width
    // before an exponent, is named first, and the others with it.
    let mut equals = found.iter().filter(|c| c.preferred() && c.gain() >= best - SLIGHT);
    if let Some(named) = equals.next() {
        let others: Vec<&str> = equals.map(|c| c.name.as_str()).collect();
        let others = if others.is_empty() { String::new() } else { format!("; as good: {}", others.join(", ")) };
        let words = named.words();
        let message = format!("another contract explains the model better: {words}{others}; {stated}, {tried}");
        return (Verdict::Failed, message);
    }
    if let Some(torn) = found.iter().find(|c| c.clearly() && c.better >= MOST) {
        return (
            Verdict::Inconclusive,
            format!("the statistics contradict each other on {}; {stated}, {tried}", torn.words()),
        );
    }
    if own.doubt > DOUBTFUL {
        let reason = "the model is doubtful under every contract; give prompts that it was made for";
        return (Verdict::Inconclusive, format!("{reason}: {stated}, {tried}"));
    }
    let apart = found.iter().filter(|c| c.clearly_worse()).count();
    if (apart as f64) < APART * found.len() as f64 {
        let reason =
            format!("only {apart} neighbours are clearly worse, so that these prompts tell contracts hardly apart");
        return (Verdict::Inconclusive, format!("{reason}: {stated}, {tried}"));
    }
    let nearest = found
        .iter()
        .max_by(|a, b| a.gain().total_cmp(&b.gain()))
        .map_or(String::new(), |c| format!("; the nearest: {}", c.words()));
    (
        Verdict::Passed,
        format!(
            "no neighbouring contract explains the model better, {apart} clearly worse: {stated}, {tried}{nearest}"
        ),
    )
}

/// Weights beyond which the reference takes so long that the probe has to be asked for by name.
const LARGE: usize = 500_000_000;

/// Judges the source's contract by itself; a large model only if `asked` by name.
pub fn judge(
    subject: &Subject,
    prompts: &[Prompt],
    asked: bool,
    step: impl FnMut(&str),
) -> Result<Finding, reference::Error> {
    let model = own::source(subject)?;
    let weights: usize = model.weights().map(|(_, rows, columns)| rows.saturating_mul(columns)).sum();
    if weights > LARGE && !asked {
        let reason = "the reference takes long on a model of this size; ask for it with --only probe".to_owned();
        return Ok(subject.finding(NAME, "source", Verdict::Skipped, "the reference forward", reason));
    }
    let c = &subject.manifest.contract;
    let all = neighbours(&model, f64::from(c.rope.base));
    let room = c.context.saturating_sub(2 * ANSWER);
    let prompts: Vec<Prompt> = prompts.iter().filter(|p| p.ids.len() <= room).cloned().collect();
    let outcome = probe(&model, &all, &unjudged(&model), &prompts, &|id| c.tokens.stop.contains(&id), step)?;
    let mut finding = subject.finding(NAME, "source", outcome.verdict, "the reference forward", outcome.message);
    finding.figures = json!({
        "declared": outcome.declared, "neighbours": outcome.neighbours, "unjudged": outcome.unjudged, "prompts": prompts.len(),
        "clear": CLEAR, "slight": SLIGHT, "half": HALF, "small": SMALL, "many": MANY, "doubtful": DOUBTFUL, "apart": APART,
    });
    Ok(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubt and surprise less than declared, and the part of the prompts on which that is better.
    fn compared(figures: &[(f64, f64, f64)]) -> Vec<Comparison> {
        let of = |&(doubt, surprise, better): &(f64, f64, f64)| Comparison {
            name: "a neighbour".into(),
            prompts: 12,
            doubt,
            left: 1.0,
            surprise: Some(surprise),
            better,
        };
        figures.iter().map(of).collect()
    }

    /// What SmolLM2's right contract and its fourteen neighbours were measured at over the built-in prompts (`docs/gates.md`).
    #[test]
    fn the_figures_of_a_general_model_pass_and_worse_ones_decide_nothing() {
        let neighbours = compared(&[
            (-0.009, -0.006, 0.33),
            (-0.061, 0.023, 0.33),
            (-0.094, -0.019, 0.33),
            (-0.195, -0.021, 0.25),
            (-0.380, 0.067, 0.67),
            (-2.125, -1.587, 0.0),
            (-1.589, -2.192, 0.0),
            (-1.588, -2.903, 0.0),
            (-0.518, -4.089, 0.0),
            (-1.194, -4.410, 0.0),
            (-3.524, -3.889, 0.0),
            (-4.106, -8.299, 0.0),
            (0.552, -21.847, 0.0),
            (-1.690, -21.822, 0.0),
        ]);
        let own = |doubt| Reading { doubt, surprise: Some(1.17) };
        let (verdict, message) = decide(own(1.5009), &neighbours, 12);
        assert_eq!(verdict, Verdict::Passed, "{message}");
        assert!(message.contains("10 clearly worse"), "{message}");
        // As doubtful as it is under the patched width.
        let (verdict, message) = decide(own(3.72), &neighbours, 12);
        assert!(verdict == Verdict::Inconclusive && message.contains("doubtful"), "{message}");
        // Prompts that tell contracts hardly apart.
        let (verdict, message) = decide(own(1.5009), &neighbours[..7], 12);
        assert!(verdict == Verdict::Inconclusive && message.contains("only 3 neighbours"), "{message}");
    }
}
