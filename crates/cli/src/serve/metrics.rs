//! What the server counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anemone_chat::pool::Occupancy;

use super::work::{Progress, Task, Usage};

/// Counters since the start.
#[derive(Default)]
pub struct Metrics {
    /// Answers by route and status.
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    computed_tokens: AtomicU64,
    drawn_tokens: AtomicU64,
    forced_tokens: AtomicU64,
    drafted_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    finished: AtomicU64,
    abandoned: AtomicU64,
    steps: AtomicU64,
    answer_micros: AtomicU64,
    waited_micros: AtomicU64,
}

impl Metrics {
    /// A route answered with that status.
    pub fn responded(&self, route: &'static str, status: u16) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((route, status)).or_default() += 1;
    }

    /// A task took a step.
    pub fn stepped(&self, task: &Task<'_>, progress: Progress) {
        self.steps.fetch_add(1, Relaxed);
        if progress == Progress::Over {
            let Usage { prompt, cached, computed, drawn, forced, drafted, accepted, waited, prompt_time, decode_time } =
                *task.usage();
            let done = task.is_done();
            self.prompt_tokens.fetch_add(prompt as u64, Relaxed);
            self.cached_tokens.fetch_add(cached as u64, Relaxed);
            self.computed_tokens.fetch_add(computed as u64, Relaxed);
            self.drawn_tokens.fetch_add(drawn as u64, Relaxed);
            self.forced_tokens.fetch_add(forced as u64, Relaxed);
            self.drafted_tokens.fetch_add(drafted as u64, Relaxed);
            self.accepted_tokens.fetch_add(accepted as u64, Relaxed);
            self.waited_micros.fetch_add(waited.as_micros() as u64, Relaxed);
            if done {
                self.finished.fetch_add(1, Relaxed);
                self.answer_micros.fetch_add((prompt_time + decode_time).as_micros() as u64, Relaxed);
            } else {
                self.abandoned.fetch_add(1, Relaxed);
            }
        }
    }

    /// How long an answer took so far, on average: what a client that is sent away may have to wait.
    pub fn mean_answer(&self) -> Duration {
        let finished = self.finished.load(Relaxed).max(1);
        Duration::from_micros(self.answer_micros.load(Relaxed) / finished)
    }

    /// The text form: `load` is what waits and what is worked on.
    pub fn render(&self, load: (usize, usize), pool: Occupancy, session_bytes: usize) -> String {
        let mut text = String::new();
        let mut metric = |kind: &str, name: &str, help: &str, values: &[(String, f64)]| {
            let _ = writeln!(text, "# HELP anemone_{name} {help}\n# TYPE anemone_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(text, "anemone_{name}{labels} {value}");
            }
        };
        let one = |value: f64| vec![(String::new(), value)];
        let count = |counter: &AtomicU64| one(counter.load(Relaxed) as f64);
        let seconds = |counter: &AtomicU64| one(counter.load(Relaxed) as f64 / 1e6);
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let responses: Vec<_> = responses
            .into_iter()
            .map(|((route, status), n)| (format!("{{route=\"{route}\",status=\"{status}\"}}"), n as f64))
            .collect();
        metric("counter", "responses_total", "HTTP answers by route and status.", &responses);
        metric("counter", "answers_total", "Requests answered whole.", &count(&self.finished));
        metric("counter", "abandoned_total", "Requests that failed or whose client left.", &count(&self.abandoned));
        metric("counter", "prompt_tokens_total", "Tokens of prompts.", &count(&self.prompt_tokens));
        metric("counter", "cached_tokens_total", "Of these, not computed again.", &count(&self.cached_tokens));
        metric(
            "counter",
            "computed_tokens_total",
            "Tokens computed, of prompts and answers.",
            &count(&self.computed_tokens),
        );
        metric("counter", "drawn_tokens_total", "Tokens of answers.", &count(&self.drawn_tokens));
        metric("counter", "forced_tokens_total", "Of these, forced by a grammar.", &count(&self.forced_tokens));
        metric("counter", "drafted_tokens_total", "Tokens guessed ahead.", &count(&self.drafted_tokens));
        metric("counter", "accepted_tokens_total", "Of these, what was drawn.", &count(&self.accepted_tokens));
        metric("counter", "steps_total", "Turns taken on the model.", &count(&self.steps));
        metric("counter", "answer_seconds_total", "Time from first step to end.", &seconds(&self.answer_micros));
        metric("counter", "queue_seconds_total", "Time in the queue.", &seconds(&self.waited_micros));
        metric("gauge", "requests_waiting", "Requests without a session.", &one(load.0 as f64));
        metric("gauge", "requests_running", "Requests with one.", &one(load.1 as f64));
        let resident = pool.resting + pool.leased;
        metric("gauge", "sessions_resident", "Sessions in memory.", &one(resident as f64));
        metric("gauge", "sessions_most", "Sessions that the budget has room for.", &one(pool.most as f64));
        metric("gauge", "cache_bytes", "Memory of their caches.", &one((resident * session_bytes) as f64));
        metric("counter", "sessions_evicted_total", "Sessions given to another.", &one(pool.evicted as f64));
        text
    }
}
