//! The range golden: each shard alone, against the reference over the same layers.
//!
//! Every shard is given the hidden rows that the reference computed for it, so that one shard's error is not another's. It
//! is compared twice. Against the reference on *the shard's own dequantised weights* what remains is the program, and the
//! bounds are tight: whatever is wrong with it shows, and no quantisation noise hides it. Against the reference on *the
//! source's weights* the difference is what quantisation costs.
//!
//! The rows fill the cache to its last position, twice: once with every block through the widest function (T = N), once with
//! the first position, the middle of the context and the last through `main` (T = 1) and everything between through the
//! widest. So both functions are seen at all three places, and on a cache that the other one wrote. The cache is not new: its
//! first rows held something else before, of which nothing may be left.
//!
//! Where a program is wrong, the first op whose value leaves tolerance is named ([`bisect`](crate::bisect)).

use std::ops::Range;

use anemone_reference as reference;
use serde_json::{Value, json};

use crate::bisect;
use crate::figures::{Bounds, Figures};
use crate::own::{self, Own};
use crate::run::{Error, Run};
use crate::subject::Subject;
use crate::thresholds::Thresholds;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "range-golden";

/// What a caller may ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Positions that are filled; all of the context where `None`. A sample says so in its finding.
    pub positions: Option<usize>,
    /// Whether findings carry the figures of every token, not only those of the three places and the worst.
    pub per_token: bool,
}

/// A deterministic walk over the vocabulary, spread so that rows differ: text is not needed to compare two programs.
fn token_ids(count: usize, vocab: usize) -> Vec<u32> {
    // The multiplier of Knuth's MMIX generator; the high bits are the good ones.
    let next = |s: &mut u64| {
        *s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((*s >> 33) % vocab as u64) as u32
    };
    let mut state = 1;
    (0..count).map(|_| next(&mut state)).collect()
}

/// Judges every layer shard and head slice; `step` is called after each shard.
pub fn judge(
    subject: &Subject,
    run: &Run<'_>,
    options: Options,
    mut step: impl FnMut(&str),
) -> Result<Vec<Finding>, Error> {
    let c = &subject.manifest.contract;
    let source = own::source(subject)?;
    let judge = Judge { subject, run, thresholds: Thresholds::of(c.weights, run.numerics), options };
    let positions = options.positions.map_or(c.context, |n| n.clamp(1, c.context));
    let mut hidden = source.embed(&token_ids(positions, c.vocab))?;
    let mut cache = source.cache();
    let mut findings = Vec::new();
    for (i, shard) in subject.manifest.layers.iter().enumerate() {
        let input = hidden.clone();
        source.layer_range(shard.range(), &mut hidden, &mut cache, 0)?;
        findings.push(match Own::open(subject, &source, &shard.path, 0) {
            Ok(own) => judge.layers(i, shard.range(), &own, &input, &hidden)?,
            Err(fault) => judge.unreadable(&shard.path, &fault),
        });
        step(&shard.path);
    }
    findings.extend(judge.head(&source, &hidden)?);
    Ok(findings)
}

/// Blocks over `0..n` with the function each goes through: T = 1 at the first position, the middle and the last.
fn mixed(n: usize, tokens: &[usize]) -> Vec<(Range<usize>, usize)> {
    let single = [0, n / 2, n - 1];
    let wide = tokens.len() - 1;
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < n {
        let next_single = single.iter().copied().find(|&s| s >= at).unwrap_or(n);
        let (end, function) = if next_single == at { (at + 1, 0) } else { (next_single.min(at + tokens[wide]), wide) };
        blocks.push((at..end, function));
        at = end;
    }
    blocks
}

struct Judge<'a> {
    subject: &'a Subject,
    run: &'a Run<'a>,
    thresholds: Thresholds,
    options: Options,
}

impl Judge<'_> {
    fn unreadable(&self, path: &str, fault: &Error) -> Finding {
        self.subject.finding(NAME, path, Verdict::Failed, &self.run.measured_on, fault.to_string())
    }

    /// One layer shard over `input`, whose outputs on the source's weights are `cost`.
    fn layers(
        &self,
        shard: usize,
        range: Range<usize>,
        own: &Own,
        input: &[f32],
        cost: &[f32],
    ) -> Result<Finding, Error> {
        let width = self.run.engine.contract().width;
        let tokens = &self.run.engine.manifest().tokens;
        let n = input.len() / width;
        let mut tight = input.to_vec();
        own.model.layer_range(range.clone(), &mut tight, &mut own.model.cache(), 0)?;
        let mut passes = vec![("T = 1 at first, middle, last", mixed(n, tokens))];
        if tokens.len() > 1 {
            passes.push(("T = N throughout", self.run.blocks(n, false)));
        }
        let mut compared = Vec::new();
        for (name, blocks) in &passes {
            let mut state = self.run.used_state(shard, input)?;
            let mut found = Vec::with_capacity(input.len());
            for (block, function) in blocks {
                let rows = &input[block.start * width..block.end * width];
                found.extend(self.run.engine.run_shard(shard, *function, rows, block.start, &mut state, None)?);
            }
            compared.push(Comparison {
                pass: name,
                tight: per_token(&found, &tight, width),
                cost: per_token(&found, cost, width),
            });
        }
        let path = &self.subject.manifest.layers[shard].path;
        let place = || {
            for ((_, blocks), comparison) in passes.iter().zip(&compared) {
                let Some(at) = comparison.program_fails(&self.thresholds) else { continue };
                let upto = blocks.iter().take_while(|(block, _)| block.start <= at).cloned().collect::<Vec<_>>();
                let bounds = &self.thresholds.inside();
                let found = bisect::locate(self.run, own, shard, range.clone(), input, &upto, bounds)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok::<_, Error>(None)
        };
        self.finding(path, &compared, place)
    }

    /// The head slices, each on its own rows of the vocabulary, over the reference's last hidden rows.
    fn head(&self, source: &reference::Model, hidden: &[f32]) -> Result<Vec<Finding>, Error> {
        let c = &self.subject.manifest.contract;
        // The head sees no position: a few rows are as good as all.
        let rows = &hidden[..hidden.len().min(8 * c.width)];
        let found = self.run.engine.logits(rows)?;
        let mut findings = Vec::new();
        for slice in &self.subject.manifest.head {
            let range = slice.range();
            let own = match Own::open(self.subject, source, &slice.path, range.start) {
                Ok(own) => own,
                Err(fault) => {
                    findings.push(self.unreadable(&slice.path, &fault));
                    continue;
                }
            };
            let part: Vec<f32> = found.chunks_exact(c.vocab).flat_map(|row| &row[range.clone()]).copied().collect();
            let (tight, cost) = (own.model.head_rows(rows, range.clone())?, source.head_rows(rows, range.clone())?);
            let (tight, cost) = (per_token(&part, &tight, range.len()), per_token(&part, &cost, range.len()));
            let comparison = Comparison { pass: "head", tight, cost };
            findings.push(self.finding(&slice.path, &[comparison], || Ok(None))?);
        }
        Ok(findings)
    }

    /// The verdict on one package; `place` finds the op where the program is wrong.
    fn finding(
        &self,
        path: &str,
        compared: &[Comparison],
        place: impl FnOnce() -> Result<Option<bisect::Divergence>, Error>,
    ) -> Result<Finding, Error> {
        let tight = worst(compared.iter().flat_map(|c| &c.tight));
        let cost = worst(compared.iter().flat_map(|c| &c.cost));
        let n = compared[0].tight.len();
        let sample =
            if self.options.positions.is_some() { format!("; a sample of {n} positions") } else { String::new() };
        let summary = format!(
            "program: cosine {:.7}, relative rmse {:.1e}; with quantisation: cosine {:.6}, relative rmse {:.1e}{sample}",
            tight.cosine, tight.relative_rmse, cost.cosine, cost.relative_rmse
        );
        let program = compared.iter().find_map(|c| c.program_fails(&self.thresholds).map(|at| (c.pass, at)));
        let weights = compared.iter().find_map(|c| c.weights_fail(&self.thresholds));
        let mut divergence = None;
        let (verdict, message) = match (program, weights) {
            (None, None) => (Verdict::Passed, summary),
            (Some((pass, at)), _) => {
                divergence = place()?;
                let place = divergence.as_ref().map_or(String::new(), |d| format!("; {d}"));
                (Verdict::Failed, format!("the program is wrong from position {at} on ({pass}){place}; {summary}"))
            }
            (None, Some(at)) => (
                Verdict::Failed,
                format!("the program is right, and its weights cost too much at position {at}: {summary}"),
            ),
        };
        let mut finding = self.subject.finding(NAME, path, verdict, &self.run.measured_on, message);
        finding.figures = json!({
            "tokens": n,
            "tight": {"bounds": self.thresholds.tight, "worst": tight},
            "cost": {"bounds": self.thresholds.cost, "worst": cost},
            "passes": compared.iter().map(|c| c.json(self.options.per_token)).collect::<Vec<_>>(),
            "divergence": divergence,
        });
        Ok(finding)
    }
}

/// Figures of each token's row.
fn per_token(found: &[f32], expected: &[f32], width: usize) -> Vec<Figures> {
    found.chunks_exact(width).zip(expected.chunks_exact(width)).map(|(f, e)| Figures::of(f, e)).collect()
}

fn worst<'a>(all: impl Iterator<Item = &'a Figures>) -> Figures {
    all.copied().fold(Figures::EQUAL, Figures::worst)
}

/// One pass over the rows, and what two references say of each.
struct Comparison {
    pass: &'static str,
    tight: Vec<Figures>,
    cost: Vec<Figures>,
}

impl Comparison {
    fn first_out(all: &[Figures], bounds: &Bounds) -> Option<usize> {
        all.iter().position(|f| !f.within(bounds))
    }

    /// The first position where the program is wrong.
    fn program_fails(&self, thresholds: &Thresholds) -> Option<usize> {
        Self::first_out(&self.tight, &thresholds.tight)
    }

    /// The first position where the weights cost too much.
    fn weights_fail(&self, thresholds: &Thresholds) -> Option<usize> {
        Self::first_out(&self.cost, &thresholds.cost)
    }

    fn json(&self, per_token: bool) -> Value {
        let n = self.tight.len();
        let places = [("first", 0), ("middle", n / 2), ("last", n - 1)];
        let at = |all: &[Figures]| places.map(|(name, i)| json!({"place": name, "position": i, "figures": all[i]}));
        let mut value = json!({"pass": self.pass, "tight": at(&self.tight), "cost": at(&self.cost)});
        if per_token {
            value["tokens"] = json!({"tight": self.tight, "cost": self.cost});
        }
        value
    }
}
