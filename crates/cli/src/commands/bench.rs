//! `anemone bench`: how fast a bundle answers here, stage by stage.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anemone_chat::engine::{Logits, Stages};
use anemone_chat::{Engine, Sampler, SamplingOptions, Session};
use anemone_exec::Rows;
use anemone_gate::journal::{self, Heading, Line};
use anyhow::{Result, bail};
use clap::Parser;
use serde_json::{Value as Json, json};

use crate::Outcome;
use crate::energy::{Energy, Meter, Span};
use crate::options::{NumericsArg, RuntimeArgs};
use crate::ui::{self, Ui};

/// Measure prefill and decode, cold and warm apart, per stage.
#[derive(Parser)]
#[command(
    after_help = "The prompt is made of seeded token ids, so nothing depends on a text. Rates are medians over the repetitions; the first \
    repetition is reported apart, as cold, and so are loading and the first call of every function.

Energy is what macOS's powermetrics estimates while this runs; it is root's, so run `sudo -v` before. Elsewhere, and where it \
    refuses, energy is not measured.

Example: anemone bench smollm2.anemone --prompt 512 --generate 128 --threads 2"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Tokens generated after it.
    #[arg(long, default_value_t = 128)]
    pub generate: usize,
    /// Repetitions, besides the cold one.
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Fill the context with the prompt before generating; otherwise generation begins in an empty one.
    #[arg(long)]
    pub after_prompt: bool,
    /// Draw tokens at this temperature; 0 takes the likeliest. What sampling costs depends on it.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw from the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Do not write the result into the bundle's journal.
    #[arg(long)]
    pub no_journal: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// One repetition.
struct Pass {
    /// Calls of the layer shards, one after another.
    prefill: Vec<Span>,
    tokens: Vec<Span>,
    sampling: Duration,
    stages: Stages,
}

impl Pass {
    fn prefill(&self) -> Duration {
        self.prefill.iter().map(Span::length).sum()
    }

    fn decode(&self) -> Duration {
        self.tokens.iter().map(Span::length).sum()
    }
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    if args.repeat == 0 {
        bail!("--repeat must be at least 1");
    }
    let chosen = args.runtime.choose(NumericsArg::Fast)?;
    let runtime = chosen.runtime();
    let start = Instant::now();
    let engine = Engine::open(&args.bundle, runtime)?;
    let load = start.elapsed();
    let context = engine.contract().context;
    let needed = args.generate + if args.after_prompt { args.prompt } else { 0 };
    let (prompt, generate) = (args.prompt, args.generate);
    if prompt == 0 || generate < 2 {
        bail!(
            "--prompt {prompt} --generate {generate}: there is nothing to time below a prompt of 1 token and 2 after it"
        );
    }
    if needed.max(prompt) > context {
        bail!(
            "a prompt of {prompt} and {generate} tokens after it do not fit the bundle's context of {context}; \
             choose fewer with --prompt and --generate, or build with --context"
        );
    }
    let bar = ui.steps(1 + args.repeat as u64);
    bar.doing("first calls");
    let warm_up = engine.warm_up()?;
    bar.doing("bench");
    let meter = Meter::start();
    let mut passes = Vec::new();
    for _ in 0..=args.repeat {
        passes.push(pass(&engine, &args)?);
        bar.advance(1);
    }
    drop(bar);
    let energy = meter.map(Meter::stop);
    let cold = passes.remove(0);
    let runs = Runs { args: &args, load, warm_up, cold, warm: passes };
    let mut figures = figures(&runs, &runtime.describe());
    figures["loads"] = chosen.loads().into();
    figures["energy"] = self::energy(&runs, energy);
    if !args.no_journal {
        let text = format!(
            "bench on {}: prefill {} at {:.1} tokens/s, decode at {:.1}; cold {:.1} and {:.1}; energy {}",
            runtime.describe(),
            args.prompt,
            figures["prefill"]["rate"].as_f64().unwrap_or_default(),
            figures["decode"]["rate"].as_f64().unwrap_or_default(),
            figures["cold"]["prefill_rate"].as_f64().unwrap_or_default(),
            figures["cold"]["decode_rate"].as_f64().unwrap_or_default(),
            told(&figures["energy"]),
        );
        let hash = engine.manifest().hash();
        journal::append(&journal::of_bundle(&args.bundle), &[Line::now(Heading::Result, text, Some(&hash))])?;
    }
    match args.json {
        true => ui::json(&figures)?,
        false => table(&figures),
    }
    Ok(Outcome::Done)
}

/// Token ids that look random and are the same everywhere (splitmix64).
fn prompt(vocab: usize, count: usize) -> Vec<u32> {
    let mut state = 42u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % vocab as u64) as u32
    };
    (0..count).map(|_| next()).collect()
}

fn pass(engine: &Engine, args: &Args) -> Result<Pass> {
    let ids = prompt(engine.contract().vocab, args.prompt);
    let mut logits = Rows::default();
    let mut session: Session<'_> = engine.session()?;
    let (mut prefill, mut rest) = (Vec::new(), &ids[..]);
    while !rest.is_empty() {
        let (call, later) = rest.split_at(engine.call_tokens(rest.len()));
        let start = Instant::now();
        session.feed_into(call, if later.is_empty() { Logits::Last } else { Logits::None }, &mut logits)?;
        prefill.push(Span { start, end: Instant::now() });
        rest = later;
    }
    if !args.after_prompt {
        session.truncate(0);
    }
    let (temperature, top_p) = (args.temperature, args.top_p);
    let mut sampler = Sampler::new(SamplingOptions { temperature, top_p, ..SamplingOptions::greedy() })?;
    let (before, mut tokens, mut sampling) = (session.stages(), Vec::with_capacity(args.generate), Duration::ZERO);
    for _ in 0..args.generate {
        let start = Instant::now();
        let id = sampler.choose(logits.row(0), &[], None)?.id;
        let drawn = start.elapsed();
        session.feed_into(&[id], Logits::Last, &mut logits)?;
        sampling += drawn;
        tokens.push(Span { start, end: Instant::now() });
    }
    let after = session.stages();
    let stages =
        Stages { layers: after.layers - before.layers, head: after.head - before.head, host: after.host - before.host };
    Ok(Pass { prefill, tokens, sampling, stages })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Everything that was timed.
struct Runs<'a> {
    args: &'a Args,
    load: Duration,
    warm_up: Duration,
    cold: Pass,
    warm: Vec<Pass>,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Percentiles of these spans, in milliseconds: of so many the nearest one.
fn percentiles<'a>(spans: impl Iterator<Item = &'a Span>) -> Json {
    let mut all: Vec<f64> = spans.map(|span| ms(span.length())).collect();
    all.sort_by(f64::total_cmp);
    let at = |part: f64| all[((all.len() - 1) as f64 * part).round() as usize];
    json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
}

fn figures(runs: &Runs<'_>, runtime: &str) -> Json {
    let Runs { args, cold, warm, .. } = runs;
    let over = |f: &dyn Fn(&Pass) -> f64| median(warm.iter().map(f).collect());
    let prefill_rate = |p: &Pass| args.prompt as f64 / p.prefill().as_secs_f64();
    let decode_rate = |p: &Pass| args.generate as f64 / p.decode().as_secs_f64();
    let each = |part: Duration| part.as_secs_f64() * 1e6 / args.generate as f64;
    json!({
        "runtime": runtime,
        "repeat": warm.len(),
        "load_ms": ms(runs.load),
        "warm_up_ms": ms(runs.warm_up),
        "prefill": {
            "tokens": args.prompt,
            "calls": cold.prefill.len(),
            "rate": over(&prefill_rate),
            "latency_ms": percentiles(warm.iter().flat_map(|p| &p.prefill)),
        },
        "decode": {
            "tokens": args.generate,
            "after_prompt": args.after_prompt,
            "rate": over(&decode_rate),
            "latency_ms": percentiles(warm.iter().flat_map(|p| &p.tokens)),
            "per_token_us": {
                "layers": over(&|p| each(p.stages.layers)),
                "head": over(&|p| each(p.stages.head)),
                "host": over(&|p| each(p.stages.host)),
                "sampling": over(&|p| each(p.sampling)),
            },
        },
        "cold": {"prefill_rate": prefill_rate(cold), "decode_rate": decode_rate(cold)},
    })
}

/// Joules a token over the warm repetitions, or that they were not measured, and why.
fn energy(runs: &Runs<'_>, energy: Result<Energy, String>) -> Json {
    let energy = match energy {
        Ok(energy) => energy,
        Err(reason) => return format!("not measured: {reason}").into(),
    };
    let each = |spans: &dyn Fn(&Pass) -> Vec<Span>, tokens: usize| {
        let spans: Vec<Span> = runs.warm.iter().flat_map(spans).collect();
        let Some(mut rails) = energy.joules(&spans) else { return "not measured: no sample covers it".into() };
        let tokens = (tokens * runs.warm.len()) as f64;
        for (_, joules) in rails.as_object_mut().into_iter().flatten() {
            *joules = joules.as_f64().map_or(joules.clone(), |j| json!(j / tokens));
        }
        rails
    };
    json!({
        "by": "powermetrics, an estimate",
        "unit": "J a token",
        "prefill": each(&|p| p.prefill.clone(), runs.args.prompt),
        "decode": each(&|p| p.tokens.clone(), runs.args.generate),
    })
}

/// Energy in a line.
fn told(energy: &Json) -> String {
    let rails = |part: &Json| match part.as_object() {
        Some(rails) => rails
            .iter()
            .map(|(rail, joules)| match joules.as_f64() {
                Some(joules) => format!("{rail} {joules:.4}"),
                None => format!("{rail} not measured"),
            })
            .collect::<Vec<_>>()
            .join(", "),
        None => part.as_str().unwrap_or_default().to_owned(),
    };
    match energy.as_str() {
        Some(reason) => reason.to_owned(),
        None => format!(
            "J a token as powermetrics estimates it: prefill {}; decode {}",
            rails(&energy["prefill"]),
            rails(&energy["decode"])
        ),
    }
}

fn table(f: &Json) {
    let rate = |v: &Json| format!("{:.1}", v.as_f64().unwrap_or(f64::NAN));
    println!(
        "{}, {} repetitions, loaded in {} ms, first calls in {} ms\n",
        f["runtime"].as_str().unwrap_or(""),
        f["repeat"],
        rate(&f["load_ms"]),
        rate(&f["warm_up_ms"])
    );
    ui::table(
        &["", "tokens", "warm tokens/s", "cold tokens/s"],
        &[
            vec![
                "prefill".into(),
                f["prefill"]["tokens"].to_string(),
                rate(&f["prefill"]["rate"]),
                rate(&f["cold"]["prefill_rate"]),
            ],
            vec![
                "decode".into(),
                f["decode"]["tokens"].to_string(),
                rate(&f["decode"]["rate"]),
                rate(&f["cold"]["decode_rate"]),
            ],
        ],
    );
    println!();
    let (us, ms) = (&f["decode"]["per_token_us"], &f["decode"]["latency_ms"]);
    let stage = |name: &str| vec![name.to_owned(), rate(&us[name])];
    ui::table(&["stage of a token", "us"], &["layers", "head", "host", "sampling"].map(stage));
    println!();
    let latency = |name: &str| vec![name.to_owned(), rate(&f["prefill"]["latency_ms"][name]), rate(&ms[name])];
    let call = format!("ms a prefill call, of {}", f["prefill"]["calls"]);
    ui::table(&["latency", &call, "ms a token"], &["p50", "p90", "p99", "max"].map(latency));
    println!();
    println!("energy: {}", told(&f["energy"]));
}
