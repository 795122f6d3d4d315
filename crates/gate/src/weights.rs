//! The weights gate: every row that a package stores is the source's row, as near as its encoding allows.
//!
//! What an encoding may do to a weight is known, so the bounds are derived and not measured. fp16 keeps 11 bits: half a unit is
//! `2^-11` of the value. int8 with a scale of `peak / 127` is off by half a step, `peak / 254`; weight, scale, quotient and
//! product are rounded to fp16 on the way, half a unit each. A flipped bit, a scale of another row, a transposed or swapped matrix and a
//! stale table all leave these bounds by far, at one row of one tensor, which is named. The network's own noise hides nothing
//! here, since nothing is run.
//!
//! What the source's rows are in a shard is said here once more, apart from the lowering: q and k rows in half-split order, the
//! rotary ones times the attention factor.

use anemone_bundle::contract::WeightMode;
use anemone_chat::engine;
use anemone_reference::{self as reference, Pairing, Part, Weight};
use serde_json::json;

use crate::own::{self, Own};
use crate::run::{Error, Run};
use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "weights";

/// Half a unit in the last place of fp16, relative to the value.
const HALF_UNIT: f32 = 1.0 / 2048.0;
/// Half the distance of fp16's subnormals.
const SUBNORMAL: f32 = 3e-8;
/// Rows of the embedding that are read at a time.
const BATCH: u32 = 1024;

/// Judges every package, then the embedding table. Only the table needs the loaded bundle; nothing is run.
pub fn judge(subject: &Subject, run: &Run<'_>) -> Result<Vec<Finding>, Error> {
    let source = &own::source(subject)?;
    let mut findings = Vec::new();
    for (shard, first_row) in
        subject.manifest.layers.iter().map(|s| (s, 0)).chain(subject.manifest.head.iter().map(|s| (s, s.start)))
    {
        let worst = Own::open(subject, source, &shard.path, first_row)
            .and_then(|own| package(&own, source, subject.manifest.contract.weights, first_row));
        findings.push(finding(subject, &shard.path, worst));
    }
    findings.push(finding(subject, anemone_bundle::layout::EMBEDDING, embedding(source, run)));
    Ok(findings)
}

/// The row that is furthest out, in units of what it may be.
#[derive(Clone, Debug)]
struct Worst {
    place: String,
    /// The largest error of the row over what is allowed.
    ratio: f32,
    error: f32,
    allowed: f32,
    /// Rows that are out.
    out: usize,
    rows: usize,
}

impl Worst {
    const NONE: Self = Self { place: String::new(), ratio: 0.0, error: 0.0, allowed: 0.0, out: 0, rows: 0 };

    /// Compares a row; `allowed` is the largest error it may have, given an element's own magnitude.
    fn add(&mut self, found: &[f32], expected: &[f32], allowed: impl Fn(f32) -> f32, place: impl Fn(usize) -> String) {
        let mut row: Option<(usize, f32, f32, f32)> = None;
        for (column, (f, e)) in found.iter().zip(expected).enumerate() {
            let (error, allowed) = ((f - e).abs(), allowed(e.abs()));
            let ratio = if error.is_finite() { error / allowed } else { f32::INFINITY };
            if row.is_none_or(|(_, _, _, worst)| ratio > worst) {
                row = Some((column, error, allowed, ratio));
            }
        }
        self.rows += 1;
        let Some((column, error, allowed, ratio)) = row else { return };
        self.out += usize::from(ratio > 1.0);
        if ratio > self.ratio {
            *self = Self { place: place(column), ratio, error, allowed, ..*self };
        }
    }
}

fn finding(subject: &Subject, path: &str, worst: Result<Worst, Error>) -> Finding {
    let (verdict, message, figures) = match worst {
        Err(fault) => (Verdict::Failed, fault.to_string(), json!(null)),
        Ok(w) => {
            let figures =
                json!({"rows": w.rows, "rows_out": w.out, "worst": w.place, "error": w.error, "allowed": w.allowed});
            let at = format!("{} is off by {:.2e}, and its encoding allows {:.2e}", w.place, w.error, w.allowed);
            match w.out {
                0 if w.place.is_empty() => {
                    (Verdict::Passed, format!("{} rows are the source's to the bit", w.rows), figures)
                }
                0 => (Verdict::Passed, format!("{} rows are the source's; the worst: {at}", w.rows), figures),
                out => (Verdict::Failed, format!("{out} of {} rows are not the source's; {at}", w.rows), figures),
            }
        }
    };
    let mut finding = subject.finding(NAME, path, verdict, "files", message);
    finding.figures = figures;
    finding
}

/// How far off a value of that magnitude may be that was rounded to fp16.
fn fp16(magnitude: f32) -> f32 {
    magnitude * HALF_UNIT + SUBNORMAL
}

/// Every row of one package.
fn package(own: &Own, source: &reference::Model, mode: WeightMode, first_row: usize) -> Result<Worst, Error> {
    let mut worst = Worst::NONE;
    for stored in own.weights.stored() {
        let (mut found, mut expected) = (vec![0.0; stored.columns], vec![0.0; stored.columns]);
        let rows = || {
            let first = |weight| if weight == Weight::Head { first_row } else { 0 };
            stored.parts.iter().flat_map(move |&(weight, rows)| (0..rows).map(move |row| (weight, first(weight) + row)))
        };
        let mut shared = 0f32;
        if mode == WeightMode::Int8 {
            for (weight, row) in rows() {
                shard_row(source, weight, row, &mut expected)?;
                shared = shared.max(peak(&expected));
            }
        }
        for (weight, row) in rows() {
            reference::Weights::row(&*own.weights, weight, row, &mut found)?;
            shard_row(source, weight, row, &mut expected)?;
            let step = match mode {
                WeightMode::Fp16 => None,
                WeightMode::Int8 => Some(shared),
                WeightMode::Int8Channel => Some(peak(&expected)),
            };
            let int8 = |peak: f32, magnitude: f32| peak / 254.0 * (1.0 + 2.0 * HALF_UNIT) + 4.0 * fp16(magnitude);
            let allowed = |magnitude| step.map_or_else(|| fp16(magnitude), |peak| int8(peak, magnitude));
            worst.add(&found, &expected, allowed, |column| format!("`{weight}` row {row} column {column}"));
        }
    }
    for (weight, len) in own.weights.vectors() {
        let (mut found, mut expected) = (vec![0.0; len], vec![0.0; len]);
        reference::Weights::row(&*own.weights, weight, 0, &mut found)?;
        shard_vector(source, weight, &mut expected)?;
        worst.add(&found, &expected, fp16, |column| format!("`{weight}` element {column}"));
    }
    Ok(worst)
}

fn peak(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |peak, v| peak.max(v.abs()))
}

/// Where row `row` of a query or key projection comes from, and its factor, in a shard's half-split form.
fn turned(source: &reference::Model, row: usize) -> (usize, f32) {
    let (rope, head_dim) = (source.rope(), source.hyperparameters().head_dim);
    let (pairs, j) = (rope.frequencies.len(), row % head_dim);
    if j >= 2 * pairs {
        return (row, 1.0);
    }
    let from = match rope.pairing {
        Pairing::HalfSplit => j,
        Pairing::Interleaved => 2 * (j % pairs) + j / pairs,
    };
    (row - j + from, rope.attention_factor as f32)
}

/// A row of the source as a shard has to store it.
fn shard_row(source: &reference::Model, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
    let (row, factor) = match weight {
        Weight::Layer(_, Part::Query | Part::Key) => turned(source, row),
        _ => (row, 1.0),
    };
    source.source().row(weight, row, out)?;
    out.iter_mut().for_each(|v| *v *= factor);
    Ok(())
}

/// A norm or bias of the source as a shard has to store it.
fn shard_vector(source: &reference::Model, weight: Weight, out: &mut [f32]) -> Result<(), Error> {
    source.source().row(weight, 0, out)?;
    if let Weight::Layer(_, Part::QueryBias | Part::KeyBias) = weight {
        let plain = out.to_vec();
        for (row, out) in out.iter_mut().enumerate() {
            let (from, factor) = turned(source, row);
            *out = plain[from] * factor;
        }
    }
    Ok(())
}

/// Every row of the embedding table.
fn embedding(source: &reference::Model, run: &Run<'_>) -> Result<Worst, Error> {
    let c = run.engine.contract();
    let mut worst = Worst::NONE;
    let vocab = u32::try_from(c.vocab).map_err(|_| engine::Error::Token { id: u32::MAX, vocab: c.vocab })?;
    for first in (0..vocab).step_by(BATCH as usize) {
        let ids: Vec<u32> = (first..vocab.min(first.saturating_add(BATCH))).collect();
        let (found, expected) = (run.engine.embed(&ids)?, source.embed(&ids)?);
        let rows = found.chunks_exact(c.width).zip(expected.chunks_exact(c.width));
        for (id, (found, expected)) in ids.iter().zip(rows) {
            worst.add(found, expected, fp16, |column| format!("token {id} column {column}"));
        }
    }
    Ok(worst)
}
