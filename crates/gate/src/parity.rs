//! Parity: the fused chain is the one-layer chain.
//!
//! Fusing layers changes no arithmetic that a program states, so the baseline of one-layer shards judges a fused bundle more
//! closely than any reference of another make: same weights, same numerics, same tokens. Likewise a token's logits may not
//! depend on how many tokens a call took. The bound on that is one of figures; that the *tokens* are the same, which is what
//! drafts rest on, is counted apart ([`drafts`]).

use serde_json::json;

use crate::figures::{self, Bounds, Figures};
use crate::prompts::Prompt;
use crate::run::{Error, Run};
use crate::stack_golden::{argmax, margin, session_logits};
use crate::subject::Subject;
use crate::thresholds::Thresholds;
use crate::verdict::{Finding, TOOL, Verdict};

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

    let other_tokens = single.chunks_exact(c.vocab).zip(found.chunks_exact(c.vocab));
    let other_tokens = other_tokens.filter(|(s, f)| argmax(s) != argmax(f)).count();
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
    finding.figures = json!({
        "answer_tokens": answer.len(),
        "baseline": chain.worst,
        "single_tokens": steps.worst,
        // Of so many rows, in how many the likeliest token is another when each token has a call of its own.
        "single_rows": prompt.ids.len() + fed.len(),
        "single_other_tokens": other_tokens,
        "bounds": thresholds.chain_tight,
    });
    Ok(finding)
}

/// Whether answers may be drafted ahead on a runtime of which it is not known that a token's result is the same however many
/// tokens a call takes: where this gate has measured there (`measured_on`), on this very bundle (whose evidence `findings` are), that
/// T = N and T = 1 give the same tokens. Says by what it was shown, or what is missing.
pub fn drafts(findings: &[Finding], measured_on: &str) -> Result<String, String> {
    let here = format!("{measured_on}, {TOOL}");
    let here = findings.iter().filter(|f| f.gate == NAME && f.measured_on == here);
    let (mut prompts, mut rows) = (0, 0);
    for finding in here {
        let part = &finding.subject;
        if finding.verdict == Verdict::Skipped {
            continue;
        }
        if finding.verdict != Verdict::Passed {
            return Err(format!("gate {NAME}, {part}: {}", finding.verdict.name()));
        }
        let figure = |name: &str| finding.figures.get(name).and_then(serde_json::Value::as_u64);
        match (figure("single_rows"), figure("single_other_tokens")) {
            (Some(n), Some(0)) => rows += n,
            (_, Some(n)) => return Err(format!("gate {NAME}, {part}: {n} tokens depend on how many a call takes")),
            (_, None) => {
                return Err(format!("gate {NAME}, {part}: does not say whether tokens were the same; run it again"));
            }
        }
        prompts += 1;
    }
    match rows {
        0 => Err(format!("gate {NAME} has not run on {measured_on}")),
        _ => Ok(format!(
            "gate {NAME} on {measured_on}: {prompts} prompts, the same token at all {rows} positions with T = N and T = 1"
        )),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_need_the_same_tokens_measured_here() {
        let finding = |subject: &str, verdict, measured_on: &str, figures| Finding {
            gate: NAME.to_owned(),
            subject: subject.to_owned(),
            verdict,
            measured_on: format!("{measured_on}, {TOOL}"),
            bundle: String::new(),
            message: String::new(),
            figures,
        };
        let rows = |n: u64, others: u64| json!({"single_rows": n, "single_other_tokens": others});
        let passed = |n, others, on: &str| finding("prompt a", Verdict::Passed, on, rows(n, others));
        let says = |findings: &[Finding]| drafts(findings, "here").unwrap_or_else(|reason| format!("no: {reason}"));
        assert_eq!(says(&[]), "no: gate parity has not run on here");
        assert_eq!(says(&[passed(40, 0, "elsewhere")]), "no: gate parity has not run on here");
        let skipped = finding("prompt long", Verdict::Skipped, "here", json!(null));
        assert_eq!(says(std::slice::from_ref(&skipped)), "no: gate parity has not run on here");
        assert_eq!(
            says(&[passed(40, 0, "here"), skipped, passed(2, 0, "here"), passed(9, 9, "elsewhere")]),
            "gate parity on here: 2 prompts, the same token at all 42 positions with T = N and T = 1"
        );
        let one = "no: gate parity, prompt a: 1 tokens depend on how many a call takes";
        assert_eq!(says(&[passed(40, 0, "here"), passed(40, 1, "here")]), one);
        let failed = finding("prompt b", Verdict::Failed, "here", rows(40, 0));
        assert_eq!(says(&[passed(40, 0, "here"), failed]), "no: gate parity, prompt b: failed");
        let old = finding("prompt c", Verdict::Passed, "here", json!({}));
        assert!(says(&[passed(40, 0, "here"), old]).contains("run it again"));
    }
}
