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
//! Where that takes too long, a sample of positions is filled, over a cache that holds zeros between them; the reference's does too.
//! And of a large model chosen layers can be judged, each cut out of its shard ([`cut`](crate::cut)) and given the rows that the reference
//! has before it. Then no more than a layer's state is held, and of the weights a matrix at a time.
//!
//! At the places that `main` computes the output of every layer inside the shard is compared as well, against the shard's own weights, so
//! that the evidence tells how an error grows from layer to layer. Where a program is wrong, the first op whose value leaves
//! tolerance is named ([`bisect`](crate::bisect)).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use anemone_chat::engine::{self, Shard, Watch};
use anemone_exec::{Runtime, Tensor};
use anemone_reference::{self as reference, Stage};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bisect;
use crate::cut;
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
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The positions that are filled.
    pub positions: Positions,
    /// Whether findings carry the figures of every token, not only those of the places and the worst.
    pub per_token: bool,
}

/// Positions to be filled. Less than all of them is a sample, and the finding says so.
#[derive(Clone, Debug, Default)]
pub enum Positions {
    /// The whole context.
    #[default]
    All,
    /// About as many, in three windows, each of which holds the widest function.
    About(usize),
    /// These, in any order.
    These(Vec<Range<usize>>),
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
    options: &Options,
    mut step: impl FnMut(),
) -> Result<Vec<Finding>, Error> {
    let source = &own::source(subject)?;
    let judge = Judge::new(subject, run, options)?;
    let mut hidden = judge.embed(source)?;
    let mut findings = Vec::new();
    for (i, shard) in subject.manifest.layers.iter().enumerate() {
        let input = hidden.clone();
        judge.reference(source, shard.range(), &mut hidden, |_, _| {})?;
        findings.push(match Own::open(subject, source, &shard.path, 0) {
            Ok(own) => judge.layers(&shard.path, run.engine.shard(i), shard.range(), &own, &input, &hidden)?,
            Err(fault) => judge.unreadable(&shard.path, &fault),
        });
        step();
    }
    findings.extend(judge.head(source, &hidden)?);
    Ok(findings)
}

/// Judges chosen layers alone, each cut out of its shard and run by `runtime`; `step` is called after each layer of the model, up to the
/// last that was chosen.
pub fn judge_layers(
    subject: &Subject,
    run: &Run<'_>,
    runtime: &dyn Runtime,
    layers: &[Range<usize>],
    options: &Options,
    mut step: impl FnMut(),
) -> Result<Vec<Finding>, Error> {
    let count = subject.manifest.contract.layers;
    let layers = within(layers, count, "layer", "the model's layers")?;
    let end = layers.last().map_or(0, |range| range.end);
    let source = &own::source(subject)?;
    let judge = Judge::new(subject, run, options)?;
    let mut hidden = judge.embed(source)?;
    let mut findings = Vec::new();
    for shard in &subject.manifest.layers {
        // One for all layers of a shard, opened at the first that was chosen.
        let mut own = None;
        for layer in shard.range().take_while(|&layer| layer < end) {
            let chosen = layers.iter().any(|range| range.contains(&layer));
            let input = if chosen { hidden.clone() } else { Vec::new() };
            judge.reference(source, layer..layer + 1, &mut hidden, |_, _| {})?;
            step();
            if !chosen {
                continue;
            }
            let name = format!("{}, layer {layer}", shard.path);
            let own = own.get_or_insert_with(|| Own::open(subject, source, &shard.path, 0));
            let loaded = own.as_ref().map_err(ToString::to_string).and_then(|own| {
                let program = cut::layer(&own.program, &shard.range(), layer)?;
                Ok((own, program))
            });
            findings.push(match loaded {
                Ok((own, program)) => {
                    let model = runtime.load_program(&program).map_err(engine::Error::from)?;
                    let part = run.engine.part(&subject.folder.join(&shard.path), model)?;
                    judge.layers(&name, &part, layer..layer + 1, own, &input, &hidden)?
                }
                Err(fault) => judge.unreadable(&name, &fault),
            });
        }
    }
    Ok(findings)
}

/// What was asked for, in ascending order and without overlaps; refused where it is empty or goes beyond `count`.
fn within(asked: &[Range<usize>], count: usize, what: &str, of: &str) -> Result<Vec<Range<usize>>, Error> {
    let mut all = asked.to_vec();
    all.sort_by_key(|range| range.start);
    if let Some(wrong) = all.iter().find(|range| range.is_empty() || range.end > count) {
        let last = wrong.end.max(1) - 1;
        return Err(Error::Asked(format!("{what} {last} was asked for, and {of} are 0 to {}", count.max(1) - 1)));
    }
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in all {
        match joined.last_mut() {
            Some(before) if range.start <= before.end => before.end = before.end.max(range.end),
            _ => joined.push(range),
        }
    }
    Ok(joined)
}

/// The places that every finding has figures of, and that go through `main`: the first position, the middle of the context and
/// the last, and where positions were chosen one by one the first of each window.
fn places(context: usize, windows: &[Range<usize>]) -> Vec<(&'static str, usize)> {
    let named = [("first", 0), ("middle", context / 2), ("last", context - 1)];
    let filled = named.into_iter().filter(|(_, at)| windows.iter().any(|window| window.contains(at)));
    let mut all: Vec<(&'static str, usize)> = filled.collect();
    for window in windows {
        if !all.iter().any(|(_, at)| window.contains(at)) {
            all.push(("chosen", window.start));
        }
    }
    all.sort_by_key(|&(_, at)| at);
    all
}

/// Tokens of the widest function.
fn widest(tokens: &[usize]) -> usize {
    tokens[tokens.len() - 1]
}

/// The positions that are filled: all of the context, windows around the three places that have about as many positions together and
/// `wide` each at least, or those that were chosen.
fn windows(context: usize, positions: &Positions, wide: usize) -> Result<Vec<Range<usize>>, Error> {
    let whole = vec![Range { start: 0, end: context }];
    let each = match positions {
        Positions::All => return Ok(whole),
        Positions::These(chosen) => return within(chosen, context, "position", "the bundle's positions"),
        Positions::About(count) => count.div_ceil(3).max(wide),
    };
    if each.saturating_mul(3) >= context {
        return Ok(whole);
    }
    let middle = context / 2 - each / 2;
    Ok(vec![0..each, middle..middle + each, context - each..context])
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
    options: &'a Options,
    /// Ascending. Rows are those of their positions, one after another.
    windows: Vec<Range<usize>>,
    places: Vec<(&'static str, usize)>,
}

/// The output of one layer inside a shard at one of the places, against the reference on the shard's own weights.
#[derive(Serialize)]
struct LayerFigures {
    layer: usize,
    place: &'static str,
    position: usize,
    figures: Figures,
}

impl<'a> Judge<'a> {
    fn new(subject: &'a Subject, run: &'a Run<'a>, options: &'a Options) -> Result<Self, Error> {
        let c = &subject.manifest.contract;
        let windows = windows(c.context, &options.positions, widest(&subject.manifest.tokens))?;
        let places = places(c.context, &windows);
        Ok(Self { subject, run, thresholds: Thresholds::of(c.weights, run.numerics), options, windows, places })
    }

    /// Embedded rows for every position that is filled.
    fn embed(&self, source: &reference::Model) -> Result<Vec<f32>, Error> {
        let c = &self.subject.manifest.contract;
        let ids = token_ids(c.context, c.vocab);
        let filled: Vec<u32> = self.windows.iter().flat_map(|window| &ids[window.clone()]).copied().collect();
        Ok(source.embed(&filled)?)
    }

    /// Runs the reference over `hidden`, in place and layer by layer, so that no layer's cache outlives it; `after` is told what
    /// each leaves.
    fn reference(
        &self,
        model: &reference::Model,
        range: Range<usize>,
        hidden: &mut [f32],
        mut after: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        for layer in range {
            model.layer_windows(layer..layer + 1, hidden, &mut model.cache(), &self.windows, None)?;
            after(layer, hidden);
        }
        Ok(())
    }

    /// The number of a position's row.
    fn row(&self, position: usize) -> usize {
        let before = self.windows.iter().take_while(|window| window.start <= position);
        before.map(|window| window.end.min(position) - window.start).sum()
    }

    /// The figures of each filled position.
    fn compare(&self, found: &[f32], expected: &[f32], width: usize) -> Vec<At> {
        let positions = self.windows.iter().cloned().flatten();
        let figures = figures::rows(found, expected, width).into_iter();
        figures.zip(positions).map(|(figures, position)| At { position, figures }).collect()
    }

    fn unreadable(&self, path: &str, fault: &impl fmt::Display) -> Finding {
        self.subject.finding(NAME, path, Verdict::Failed, &self.run.measured_on, fault.to_string())
    }

    /// Layers `range` of `shard` over `input`, whose outputs on the source's weights are `cost`; `name` is what the finding calls them.
    fn layers(
        &self,
        name: &str,
        shard: &Shard,
        range: Range<usize>,
        own: &Own,
        input: &[f32],
        cost: &[f32],
    ) -> Result<Finding, Error> {
        let c = self.run.engine.contract();
        let (width, tokens) = (c.width, &self.run.engine.manifest().tokens);
        let mut tight = input.to_vec();
        let mut layer_rows = BTreeMap::new();
        self.reference(&own.model, range.clone(), &mut tight, |layer, hidden| {
            for &(_, at) in &self.places {
                let row = self.row(at);
                layer_rows.insert((at, layer), hidden[row * width..(row + 1) * width].to_vec());
            }
        })?;
        let single: Vec<usize> = self.places.iter().map(|&(_, at)| at).collect();
        let mut passes = vec![("T = 1 at first, middle, last", blocks(&self.windows, &single, tokens))];
        if tokens.len() > 1 {
            passes.push(("T = N throughout", blocks(&self.windows, &[], tokens)));
        }
        let mut compared = Vec::new();
        let mut layers = Vec::new();
        for (pass, blocks) in &passes {
            let mut state = self.run.used_state(shard, input, &self.windows[0])?;
            let mut found = Vec::with_capacity(input.len());
            for (block, function) in blocks {
                // The first pass goes through `main` at each place.
                let place = self.places.iter().find(|(_, at)| compared.is_empty() && *at == block.start);
                let mut watch = |value: &str, tensor: &Tensor| {
                    let Some(&(place, position)) = place else { return };
                    let Some(part) = Counterpart::of(value, width, range.end, c) else { return };
                    let Some(expected) = layer_rows.get(&(position, part.layer)) else { return };
                    if part.stage != Stage::Hidden {
                        return;
                    }
                    let rows = part.rows(&tensor.to_f32(), tensor.shape(), expected, position, 1, c);
                    let figures = rows.iter().flatten().map(|(found, expected)| Figures::of(found, expected));
                    layers.extend(figures.map(|figures| LayerFigures { layer: part.layer, place, position, figures }));
                };
                let watch: Option<&mut Watch<'_>> = if place.is_some() { Some(&mut watch) } else { None };
                let rows = &input[found.len()..found.len() + block.len() * width];
                found.extend(self.run.engine.run(shard, *function, rows, block.start, &mut state, watch)?);
            }
            compared.push(Comparison {
                pass,
                tight: self.compare(&found, &tight, width),
                cost: self.compare(&found, cost, width),
            });
        }
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
        let mut finding = self.finding(name, &compared, place)?;
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
            let (tight, cost) = (self.compare(&part, &tight, range.len()), self.compare(&part, &cost, range.len()));
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
        let (filled, context) =
            (self.windows.iter().map(Range::len).sum::<usize>(), self.run.engine.contract().context);
        let sample = match filled < context {
            true => format!("; a sample: {filled} of {context} positions, zeros in the cache for the others"),
            false => String::new(),
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
            "passes": compared.iter().map(|c| c.json(&self.places, self.options.per_token)).collect::<Vec<_>>(),
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

    fn json(&self, places: &[(&str, usize)], per_token: bool) -> Value {
        let at = |all: &[At]| {
            let figures = |position| all.iter().find(|at| at.position == position).map(|at| at.figures);
            let place = |&(name, position)| json!({"place": name, "position": position, "figures": figures(position)});
            places.iter().map(place).collect::<Vec<_>>()
        };
        let mut value = json!({"pass": self.pass, "tight": at(&self.tight), "cost": at(&self.cost)});
        if per_token {
            value["tokens"] = json!({"tight": self.tight, "cost": self.cost});
        }
        value
    }
}
