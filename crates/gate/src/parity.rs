//! Parity: the fused chain is the one-layer chain.
//!
//! Fusing layers changes no arithmetic that a program states, so the baseline of one-layer shards judges a fused bundle more
//! closely than any reference of another make: same weights, same numerics, same tokens. Likewise a token's logits may not
//! depend on how many tokens a call took.

use serde_json::json;

use crate::figures::{self, Bounds, Figures};
use crate::prompts::Prompt;
use crate::run::{Error, Run};
use crate::stack_golden::{argmax, margin, session_logits};
use crate::subject::Subject;
use crate::thresholds::Thresholds;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "parity";

/// Judges `run`, the fused bundle, by `baseline`, along the greedy answers that the baseline gives; `step` is called after each
/// prompt.
pub fn judge(
    subject: &Subject,
    run: &Run<'_>,
    baseline: &Run<'_>,
    prompts: &[Prompt],
    max_tokens: usize,
    mut step: impl FnMut(&str),
) -> Result<Vec<Finding>, Error> {
    let (manifest, base) = (&subject.manifest, baseline.engine.manifest());
    let mut faults = manifest.contract.differences(&base.contract);
    if manifest.source != base.source {
        faults.push(format!("source {} against {}", manifest.source.blake3, base.source.blake3));
    }
    if !faults.is_empty() {
        let message = format!("the baseline is of another model or contract ({})", faults.join("; "));
        return Ok(vec![subject.finding(NAME, "bundle", Verdict::Failed, &run.measured_on, message)]);
    }
    let thresholds = Thresholds::of(manifest.contract.weights, run.numerics);
    let mut findings = Vec::new();
    for prompt in prompts {
        findings.push(one(subject, run, baseline, prompt, max_tokens, &thresholds)?);
        step(&prompt.name);
    }
    Ok(findings)
}

fn one(
    subject: &Subject,
    run: &Run<'_>,
    baseline: &Run<'_>,
    prompt: &Prompt,
    max_tokens: usize,
    thresholds: &Thresholds,
) -> Result<Finding, Error> {
    let c = &subject.manifest.contract;
    let name = format!("prompt {}", prompt.name);
    let room = c.context.saturating_sub(prompt.ids.len()).min(max_tokens);
    if room == 0 {
        let message = format!("{} tokens leave no room in a context of {}", prompt.ids.len(), c.context);
        return Ok(subject.finding(NAME, &name, Verdict::Skipped, &run.measured_on, message));
    }
    let (answer, expected) = greedy(baseline, &prompt.ids, room)?;
    let fed = &answer[..answer.len() - 1];
    let found = session_logits(run, &prompt.ids, fed)?;
    // The same tokens, one a call from the first on.
    let single = session_logits(run, &prompt.ids[..1], &[&prompt.ids[1..], fed].concat())?;

    let chain = compare(&found, &expected, c.vocab, &thresholds.chain_tight);
    let steps = compare(&single, &found, c.vocab, &thresholds.chain_tight);
    let rows = found.chunks_exact(c.vocab).zip(expected.chunks_exact(c.vocab)).skip(prompt.ids.len() - 1);
    let differs = rows.enumerate().find(|(_, (f, e))| argmax(f) != argmax(e) && margin(e) > thresholds.sure);
    let summary = format!(
        "{} greedy tokens; logits against the baseline: relative rmse {:.1e}, at most {:.1e}; T = N against T = 1: at most {:.1e}",
        answer.len(),
        chain.worst.relative_rmse,
        chain.worst.max_abs,
        steps.worst.max_abs
    );
    let (verdict, message) = match (chain.first_out, steps.first_out, differs) {
        (Some(at), _, _) => (Verdict::Failed, format!("logits part from the baseline's at position {at}; {summary}")),
        (_, Some(at), _) => {
            (Verdict::Failed, format!("logits depend on how many tokens a call takes from position {at} on; {summary}"))
        }
        (_, _, Some((at, (f, e)))) => {
            let (found, expected) = (argmax(f), argmax(e));
            (Verdict::Failed, format!("answer token {at} is {found}, and the baseline's {expected}; {summary}"))
        }
        (None, None, None) => (Verdict::Passed, summary),
    };
    let mut finding = subject.finding(NAME, &name, verdict, &run.measured_on, message);
    finding.figures = json!({"answer_tokens": answer.len(), "baseline": chain.worst, "single_tokens": steps.worst, "bounds": thresholds.chain_tight});
    Ok(finding)
}

struct Compared {
    worst: Figures,
    first_out: Option<usize>,
}

fn compare(found: &[f32], expected: &[f32], vocab: usize, bounds: &Bounds) -> Compared {
    let rows = figures::rows(found, expected, vocab);
    let first_out = rows.iter().position(|f| !f.within(bounds));
    Compared { worst: figures::worst_of(rows), first_out }
}

/// A greedy answer of at least a token, and the logits over prompt and answer but its last token.
fn greedy(run: &Run<'_>, prompt: &[u32], max_tokens: usize) -> Result<(Vec<u32>, Vec<f32>), Error> {
    use anemone_chat::engine::Logits;
    let c = run.engine.contract();
    let mut session = run.engine.session()?;
    let mut logits = session.feed(prompt, Logits::All)?;
    let mut answer = vec![argmax(&logits[logits.len() - c.vocab..])];
    while answer.len() < max_tokens && !c.tokens.stop.contains(&answer[answer.len() - 1]) {
        let row = session.feed(&answer[answer.len() - 1..], Logits::Last)?;
        answer.push(argmax(&row));
        logits.extend(row);
    }
    Ok((answer, logits))
}
