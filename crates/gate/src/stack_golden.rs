//! The stack golden: prompts through everything, from embedding to token.
//!
//! A prompt goes through the bundle as a session runs it, in blocks and then token by token, along the greedy answer that
//! the reference gives on the source (or that the prompt's file states). At every position the logits are held to two
//! references: on the bundle's own weights (tight: is the chain right) and on the source's (what quantisation costs). The
//! greedy token has to be the reference's wherever the reference is sure of it.
//!
//! Along one sequence, equal greedy tokens at every position mean equal answers, by induction; and unlike two free answers,
//! the comparison goes on after a first difference.
//!
//! Where the chain is wrong it is taken apart: each shard runs over the reference's rows, and the first op of the first shard
//! that leaves tolerance is named.

use anemone_chat::engine::Logits;
use anemone_reference as reference;
use serde_json::{Value, json};

use crate::bisect;
use crate::figures::{self, Figures};
use crate::own::{self, Own};
use crate::prompts::Prompt;
use crate::run::{Error, Run};
use crate::subject::Subject;
use crate::thresholds::Thresholds;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "stack-golden";

/// Judges each prompt over `max_tokens` tokens of its answer at most; `step` is called after each.
pub fn judge(
    subject: &Subject,
    run: &Run<'_>,
    prompts: &[Prompt],
    max_tokens: usize,
    mut step: impl FnMut(&str),
) -> Result<Vec<Finding>, Error> {
    let source = &own::source(subject)?;
    let own = match Chain::open(subject, source) {
        Ok(own) => own,
        Err(fault) => {
            return Ok(vec![subject.finding(NAME, "bundle", Verdict::Failed, &run.measured_on, fault.to_string())]);
        }
    };
    let thresholds = Thresholds::of(subject.manifest.contract.weights, run.numerics);
    let judge = Judge { subject, run, source, own, thresholds };
    let mut findings = Vec::new();
    for prompt in prompts {
        findings.push(judge.prompt(prompt, max_tokens)?);
        step(&prompt.name);
    }
    Ok(findings)
}

/// The index of the largest logit; the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best =
        logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best });
    best.0 as u32
}

/// How far the best logit is above the next one, in units of the row's root mean square.
pub(crate) fn margin(logits: &[f32]) -> f64 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &v in logits {
        if v > first {
            (first, second) = (v, first);
        } else if v > second {
            second = v;
        }
    }
    let square: f64 = logits.iter().map(|&v| f64::from(v).powi(2)).sum();
    f64::from(first - second) / (square / logits.len().max(1) as f64).sqrt()
}

/// A bundle's session along `prompt` in blocks and `answer` token by token: logits `[prompt + answer, vocab]`.
pub(crate) fn session_logits(run: &Run<'_>, prompt: &[u32], answer: &[u32]) -> Result<Vec<f32>, Error> {
    let mut session = run.engine.session()?;
    let mut logits = session.feed(prompt, Logits::All)?;
    for &id in answer {
        logits.extend(session.feed(&[id], Logits::Last)?);
    }
    Ok(logits)
}

/// The reference on the weights of a whole bundle.
struct Chain {
    layers: Vec<Own>,
    head: Vec<Own>,
}

impl Chain {
    fn open(subject: &Subject, source: &reference::Model) -> Result<Self, Error> {
        let open = |s: &anemone_bundle::manifest::Shard, first_row| Own::open(subject, source, &s.path, first_row);
        let layers = subject.manifest.layers.iter().map(|s| open(s, 0)).collect::<Result<_, _>>()?;
        let head = subject.manifest.head.iter().map(|s| open(s, s.start)).collect::<Result<_, _>>()?;
        Ok(Self { layers, head })
    }

    /// The hidden rows before each layer shard, and after the last.
    fn hidden(&self, subject: &Subject, mut rows: Vec<f32>) -> Result<Vec<Vec<f32>>, Error> {
        let mut all = vec![rows.clone()];
        for (own, shard) in self.layers.iter().zip(&subject.manifest.layers) {
            own.model.layer_range(shard.range(), &mut rows, &mut own.model.cache(), 0)?;
            all.push(rows.clone());
        }
        Ok(all)
    }

    /// Logits of the last hidden rows, `[n, vocab]`.
    fn logits(&self, subject: &Subject, rows: &[f32]) -> Result<Vec<f32>, Error> {
        let c = &subject.manifest.contract;
        let mut logits = vec![0.0; rows.len() / c.width * c.vocab];
        for (own, slice) in self.head.iter().zip(&subject.manifest.head) {
            let part = own.model.head_rows(rows, slice.range())?;
            for (row, part) in logits.chunks_exact_mut(c.vocab).zip(part.chunks_exact(slice.range().len())) {
                row[slice.range()].copy_from_slice(part);
            }
        }
        Ok(logits)
    }
}

struct Judge<'a> {
    subject: &'a Subject,
    run: &'a Run<'a>,
    source: &'a reference::Model,
    own: Chain,
    thresholds: Thresholds,
}

/// A token that differs.
struct Difference {
    position: usize,
    expected: u32,
    found: u32,
    margin: f64,
}

impl Difference {
    fn json(&self) -> Value {
        json!({"answer_token": self.position, "expected": self.expected, "found": self.found, "margin": self.margin})
    }
}

impl Judge<'_> {
    fn prompt(&self, prompt: &Prompt, max_tokens: usize) -> Result<Finding, Error> {
        let c = &self.subject.manifest.contract;
        let room = c.context.saturating_sub(prompt.ids.len());
        if room == 0 {
            let message = format!("{} tokens leave no room in a context of {}", prompt.ids.len(), c.context);
            return Ok(self.finding(prompt, Verdict::Skipped, message));
        }
        let (answer, cost) = self.reference(prompt, max_tokens.min(room))?;
        let fed = &answer[..answer.len() - 1];
        let found = session_logits(self.run, &prompt.ids, fed)?;
        let ids: Vec<u32> = prompt.ids.iter().chain(fed).copied().collect();
        let hidden = self.own.hidden(self.subject, self.run.engine.embed(&ids)?)?;
        let tight = self.own.logits(self.subject, hidden.last().map_or(&[], Vec::as_slice))?;
        let (tight, own_cost) = (figures::rows(&found, &tight, c.vocab), figures::rows(&found, &cost, c.vocab));
        let worst = |all: &[Figures]| figures::worst_of(all.iter().copied());
        let (tight_worst, cost_worst) = (worst(&tight), worst(&own_cost));

        let t = &self.thresholds;
        let answers = |logits: &[f32]| -> Vec<(u32, f64)> {
            logits.chunks_exact(c.vocab).skip(prompt.ids.len() - 1).map(|row| (argmax(row), margin(row))).collect()
        };
        let (own_answer, reference_answer) = (answers(&found), answers(&cost));
        let differs = |found: &[(u32, f64)]| {
            let pairs = answer.iter().zip(found).zip(&reference_answer).enumerate();
            pairs
                .filter(|(_, ((e, f), _))| **e != f.0)
                .map(|(position, ((&expected, &(found, _)), &(_, margin)))| Difference {
                    position,
                    expected,
                    found,
                    margin,
                })
                .collect::<Vec<_>>()
        };
        let (differences, stated) = (differs(&own_answer), differs(&reference_answer));
        let sure = |all: &[Difference]| all.iter().position(|d| d.margin > t.sure);

        let summary = format!(
            "{} of {} greedy tokens; logits: program cosine {:.7}, relative rmse {:.1e}; with quantisation cosine {:.6}, relative rmse {:.1e}",
            answer.len() - differences.len(),
            answer.len(),
            tight_worst.cosine,
            tight_worst.relative_rmse,
            cost_worst.cosine,
            cost_worst.relative_rmse,
        );
        let mut divergence = Value::Null;
        let (verdict, message) = if let Some(i) = sure(&stated) {
            // Nothing of the bundle is in this: source and stated answer disagree.
            let Difference { position, expected, found, margin } = &stated[i];
            (
                Verdict::Failed,
                format!(
                    "the source itself does not give the stated answer: at answer token {position} the reference says {found}, expected \
                 {expected} (margin {margin:.2}); {summary}"
                ),
            )
        } else if let Some(at) = tight.iter().position(|f| !f.within(&t.chain_tight)) {
            let (place, json) = self.bisect(&hidden, prompt.ids.len())?;
            divergence = json;
            (Verdict::Failed, format!("logits leave the program's tolerance at position {at}; {place}; {summary}"))
        } else if let Some(at) = own_cost.iter().position(|f| !f.within(&t.chain_cost)) {
            (
                Verdict::Failed,
                format!("the program is right, and its weights cost too much at position {at}: {summary}"),
            )
        } else if let Some(i) = sure(&differences) {
            let Difference { position, expected, found, margin } = &differences[i];
            (
                Verdict::Failed,
                format!(
                    "answer token {position} is {found}, expected {expected}, where the reference is sure (margin {margin:.2}); {summary}"
                ),
            )
        } else {
            let near = differences.first().map_or(String::new(), |d| {
                format!(", the first other at {} where the margin is {:.3}", d.position, d.margin)
            });
            (Verdict::Passed, format!("{summary}{near}"))
        };
        let mut finding = self.finding(prompt, verdict, message);
        finding.figures = json!({
            "prompt_tokens": prompt.ids.len(), "answer_tokens": answer.len(),
            "tight": {"bounds": t.chain_tight, "worst": tight_worst, "tokens": tight},
            "cost": {"bounds": t.chain_cost, "worst": cost_worst, "tokens": own_cost},
            "differences": differences.iter().map(Difference::json).collect::<Vec<_>>(),
            "smallest_margin": reference_answer.iter().map(|a| a.1).fold(f64::INFINITY, f64::min),
            "sure": t.sure,
            "divergence": divergence,
        });
        Ok(finding)
    }

    fn finding(&self, prompt: &Prompt, verdict: Verdict, message: String) -> Finding {
        self.subject.finding(NAME, &format!("prompt {}", prompt.name), verdict, &self.run.measured_on, message)
    }

    /// The answer to go along, at least a token, and the source's logits over prompt and answer but its last token.
    fn reference(&self, prompt: &Prompt, max_tokens: usize) -> Result<(Vec<u32>, Vec<f32>), Error> {
        let mut cache = self.source.cache();
        let mut logits = self.source.forward(&prompt.ids, &mut cache)?;
        let vocab = self.subject.manifest.contract.vocab;
        let last = |logits: &[f32]| argmax(&logits[logits.len() - vocab..]);
        if let Some(expected) = prompt.expected.as_ref().filter(|e| !e.is_empty()) {
            let answer = expected[..expected.len().min(max_tokens)].to_vec();
            logits.extend(self.source.forward(&answer[..answer.len() - 1], &mut cache)?);
            return Ok((answer, logits));
        }
        let mut answer = vec![last(&logits)];
        while answer.len() < max_tokens
            && !self.subject.manifest.contract.tokens.stop.contains(&answer[answer.len() - 1])
        {
            logits.extend(self.source.forward(&answer[answer.len() - 1..], &mut cache)?);
            answer.push(last(&logits));
        }
        Ok((answer, logits))
    }

    /// The first part of the chain that is wrong on its own, in words and in figures. `prompt` tokens go in blocks, the
    /// others one by one, as the session ran them.
    fn bisect(&self, hidden: &[Vec<f32>], prompt: usize) -> Result<(String, Value), Error> {
        let c = &self.subject.manifest.contract;
        let n = hidden[0].len() / c.width;
        let mut blocks = self.run.blocks(prompt, prompt == 1);
        if let Some((block, function)) = blocks.last_mut().filter(|(block, _)| block.len() == 1) {
            // A session gives a lone token to `main`.
            (*block, *function) = (block.clone(), 0);
        }
        blocks.extend((prompt..n).map(|at| (at..at + 1, 0)));
        for (i, (own, shard)) in self.own.layers.iter().zip(&self.subject.manifest.layers).enumerate() {
            let bounds = &self.thresholds.inside();
            if let Some(found) =
                bisect::locate(self.run, own, self.run.engine.shard(i), shard.range(), &hidden[i], &blocks, bounds)?
            {
                return Ok((format!("{}: {found}", shard.path), json!(found)));
            }
        }
        let rows = &hidden[hidden.len() - 1];
        let (found, expected) = (self.run.engine.logits(rows)?, self.own.logits(self.subject, rows)?);
        for slice in &self.subject.manifest.head {
            let pairs = found.chunks_exact(c.vocab).zip(expected.chunks_exact(c.vocab));
            let figures = pairs.map(|(f, e)| Figures::of(&f[slice.range()], &e[slice.range()]));
            let mut out = figures.enumerate().filter(|(_, f)| !f.within(&self.thresholds.chain_tight));
            if let Some((at, f)) = out.next() {
                let message = format!(
                    "{}: logits are wrong from position {at} on, relative rmse {:.1e}",
                    slice.path, f.relative_rmse
                );
                return Ok((message, json!({"slice": slice.path, "position": at, "figures": f})));
            }
        }
        let message = "every shard alone is right: the fault is in how they are chained, in their order, their states or what a \
                       session gives them";
        Ok((message.to_owned(), Value::Null))
    }
}
