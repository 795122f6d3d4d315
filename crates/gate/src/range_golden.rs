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
//! Where that takes too long, a sample fills three windows, at the first positions, around the middle and at the last, over a cache
//! that holds zeros between them; the reference's does too.
//!
//! At the three places the output of every layer inside the shard is compared as well, against the shard's own weights, so that the
//! evidence tells how an error grows from layer to layer. Where a program is wrong, the first op whose value leaves tolerance is
//! named ([`bisect`](crate::bisect)).

use std::collections::BTreeMap;
use std::ops::Range;

use anemone_chat::engine::Watch;
use anemone_exec::Tensor;
use anemone_reference::{self as reference, Stage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bisect;
use crate::figures::{self, Bounds, Figures};
use crate::own::{self, Own};
use crate::run::{Error, Run};
use crate::stages::Counterpart;
use crate::subject::Subject;
use crate::thresholds::Thresholds;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "range-golden";

/// What a caller may ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// About how many positions are filled, in three windows each of which holds the widest function; all of the context where
    /// `None`. A sample says so in its finding.
    pub sample: Option<usize>,
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
    let windows = windows(c.context, options.sample, widest(&subject.manifest.tokens));
    let judge = Judge { subject, run, thresholds: Thresholds::of(c.weights, run.numerics), options, windows };
    let mut hidden = source.embed(&token_ids(c.context, c.vocab))?;
    let mut cache = source.cache();
    let mut findings = Vec::new();
    for (i, shard) in subject.manifest.layers.iter().enumerate() {
        let input = hidden.clone();
        judge.reference(&source, shard.range(), &mut hidden, &mut cache)?;
        findings.push(match Own::open(subject, &source, &shard.path, 0) {
            Ok(own) => judge.layers(i, shard.range(), &own, &input, &hidden)?,
            Err(fault) => judge.unreadable(&shard.path, &fault),
        });
        step(&shard.path);
    }
    findings.extend(judge.head(&source, &hidden)?);
    Ok(findings)
}

/// The three places of a context that every finding has figures of.
fn places(context: usize) -> [(&'static str, usize); 3] {
    [("first", 0), ("middle", context / 2), ("last", context - 1)]
}

/// Tokens of the widest function.
fn widest(tokens: &[usize]) -> usize {
    tokens[tokens.len() - 1]
}

/// The positions that are filled: all of the context, or windows around the three places that have about `sample` together and
/// `wide` each at least.
fn windows(context: usize, sample: Option<usize>, wide: usize) -> Vec<Range<usize>> {
    let each = sample.map_or(context, |n| n.div_ceil(3).max(wide));
    if each.saturating_mul(3) >= context {
        return vec![Range { start: 0, end: context }];
    }
    let middle = context / 2 - each / 2;
    vec![0..each, middle..middle + each, context - each..context]
}

/// Blocks over `windows` with the function each goes through: T = 1 at the positions `single`, which ascend, and the widest
/// elsewhere.
fn blocks(windows: &[Range<usize>], single: &[usize], tokens: &[usize]) -> Vec<(Range<usize>, usize)> {
    let mut blocks = Vec::new();
    for window in windows {
        let mut at = window.start;
        while at < window.end {
            let next = single.iter().copied().find(|&s| s >= at).unwrap_or(window.end);
            let wide = (at..window.end.min(next).min(at + widest(tokens)), tokens.len() - 1);
            let (block, function) = if next == at { (at..at + 1, 0) } else { wide };
            at = block.end;
            blocks.push((block, function));
        }
    }
    blocks
}

struct Judge<'a> {
    subject: &'a Subject,
    run: &'a Run<'a>,
    thresholds: Thresholds,
    options: Options,
    windows: Vec<Range<usize>>,
}

/// The output of one layer inside a shard at one of the three places, against the reference on the shard's own weights.
#[derive(Serialize)]
struct LayerFigures {
    layer: usize,
    place: &'static str,
    position: usize,
    figures: Figures,
}

impl Judge<'_> {
    /// Runs the reference over the windows of `hidden[context, width]`, in place.
    fn reference(
        &self,
        model: &reference::Model,
        range: Range<usize>,
        hidden: &mut [f32],
        cache: &mut reference::Cache,
    ) -> Result<(), Error> {
        let width = self.run.engine.contract().width;
        for window in &self.windows {
            cache.pad(window.start);
            model.layer_range(
                range.clone(),
                &mut hidden[window.start * width..window.end * width],
                cache,
                window.start,
            )?;
        }
        Ok(())
    }

    /// The figures of each filled position, of rows `[context, width]`.
    fn compare(&self, found: &[f32], expected: &[f32], width: usize) -> Vec<At> {
        let window = |window: &Range<usize>| {
            let span = window.start * width..window.end * width;
            per_row(window.start, &found[span.clone()], &expected[span], width)
        };
        self.windows.iter().flat_map(window).collect()
    }

    /// The hidden row that each layer leaves at each of the three places, by place and layer. `cache` has seen all of `input`.
    fn layer_rows(
        &self,
        own: &Own,
        range: Range<usize>,
        input: &[f32],
        cache: &mut reference::Cache,
    ) -> Result<BTreeMap<(usize, usize), Vec<f32>>, Error> {
        let c = self.run.engine.contract();
        let mut rows = BTreeMap::new();
        // From the last: a run forgets what the cache holds from its position on.
        for (_, at) in places(c.context).into_iter().rev() {
            let mut row = input[at * c.width..(at + 1) * c.width].to_vec();
            let mut tap = |layer: usize, stage: Stage, hidden: &[f32]| {
                if stage == Stage::Hidden {
                    rows.insert((at, layer), hidden.to_vec());
                }
            };
            own.model.layer_range_tapped(range.clone(), &mut row, cache, at, Some(&mut tap))?;
        }
        Ok(rows)
    }

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
        let c = self.run.engine.contract();
        let (width, tokens) = (c.width, &self.run.engine.manifest().tokens);
        let (mut tight, mut cache) = (input.to_vec(), own.model.cache());
        self.reference(&own.model, range.clone(), &mut tight, &mut cache)?;
        let layer_rows = self.layer_rows(own, range.clone(), input, &mut cache)?;
        let single = places(c.context).map(|(_, at)| at);
        let mut passes = vec![("T = 1 at first, middle, last", blocks(&self.windows, &single, tokens))];
        if tokens.len() > 1 {
            passes.push(("T = N throughout", blocks(&self.windows, &[], tokens)));
        }
        let mut compared = Vec::new();
        let mut layers = Vec::new();
        for (name, blocks) in &passes {
            let mut state = self.run.used_state(shard, input)?;
            let mut found = vec![0.0; input.len()];
            for (block, function) in blocks {
                // The first pass goes through `main` at each place.
                let place = places(c.context).into_iter().find(|(_, at)| compared.is_empty() && *at == block.start);
                let mut watch = |value: &str, tensor: &Tensor| {
                    let Some((place, position)) = place else { return };
                    let Some(part) = Counterpart::of(value, width, range.end, c) else { return };
                    let Some(expected) = layer_rows.get(&(position, part.layer)) else { return };
                    if part.stage != Stage::Hidden {
                        return;
                    }
                    let rows = part.rows(&tensor.to_f32(), tensor.shape(), expected, position, 1, c);
                    let figures = rows.iter().flatten().map(|(found, expected)| Figures::of(found, expected));
                    layers.extend(figures.map(|figures| LayerFigures { layer: part.layer, place, position, figures }));
                };
                let span = block.start * width..block.end * width;
                let watch: Option<&mut Watch<'_>> = if place.is_some() { Some(&mut watch) } else { None };
                let rows = &input[span.clone()];
                let out = self.run.engine.run_shard(shard, *function, rows, block.start, &mut state, watch)?;
                found[span].copy_from_slice(&out);
            }
            compared.push(Comparison {
                pass: name,
                tight: self.compare(&found, &tight, width),
                cost: self.compare(&found, cost, width),
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
        let mut finding = self.finding(path, &compared, place)?;
        finding.figures["layer_by_layer"] = json!(layers);
        Ok(finding)
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
            let (tight, cost) = (per_row(0, &part, &tight, range.len()), per_row(0, &part, &cost, range.len()));
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
        let tight = figures::worst_of(compared.iter().flat_map(|c| &c.tight).map(|at| at.figures));
        let cost = figures::worst_of(compared.iter().flat_map(|c| &c.cost).map(|at| at.figures));
        let n = compared[0].tight.len();
        let sample = match self.windows.len() {
            1 => String::new(),
            _ => "; a sample: zeros in the cache between first, middle and last positions".to_owned(),
        };
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

/// The figures of one position.
#[derive(Clone, Copy, Serialize)]
struct At {
    position: usize,
    #[serde(flatten)]
    figures: Figures,
}

/// Figures of rows that lie one after another from position `first`.
fn per_row(first: usize, found: &[f32], expected: &[f32], width: usize) -> Vec<At> {
    let rows = figures::rows(found, expected, width).into_iter();
    rows.zip(first..).map(|(figures, position)| At { position, figures }).collect()
}

/// One pass over the rows, and what two references say of each.
struct Comparison {
    pass: &'static str,
    tight: Vec<At>,
    cost: Vec<At>,
}

impl Comparison {
    fn first_out(all: &[At], bounds: &Bounds) -> Option<usize> {
        all.iter().find(|at| !at.figures.within(bounds)).map(|at| at.position)
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
        let context = self.tight[self.tight.len() - 1].position + 1;
        let at = |all: &[At]| {
            places(context).map(|(name, position)| {
                let figures = all.iter().find(|at| at.position == position).map(|at| at.figures);
                json!({"place": name, "position": position, "figures": figures})
            })
        };
        let mut value = json!({"pass": self.pass, "tight": at(&self.tight), "cost": at(&self.cost)});
        if per_token {
            value["tokens"] = json!({"tight": self.tight, "cost": self.cost});
        }
        value
    }
}
