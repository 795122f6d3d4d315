//! `anemone sweep`: looks for the fastest topology that passes its gates, by building, gating and timing one after another.
//!
//! What to try next is [`anemone_gate::sweep`]'s; here the tries are made, and each thing learnt becomes a line of one file,
//! from which a sweep that was stopped goes on.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anemone_chat::Engine;
use anemone_chat::engine::Logits;
use anemone_exec::Rows;
use anemone_gate::residency::Place;
use anemone_gate::sweep::{Edge, Guess, Known, Profile, Search, Topology, name};
use anemone_gate::verdict::TOOL;
use anemone_gate::{Finding, Run, Subject, Verdict, range_golden};
use anemone_lower::Access;
use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::build::{self, Cut};
use crate::Outcome;
use crate::cache;
use crate::options::{NumericsArg, RuntimeArgs, TargetArgs, WeightsArg, open_source};
use crate::runtime::Chosen;
use crate::ui::{self, Ui};

/// Look for the fastest topology that passes its gates.
#[derive(Parser)]
#[command(
    after_help = "Each try builds a bundle, asks the residency gate and the range golden about each of its shards, and times them. A shard \
    that fails is in no later try. Every finding is a line of the evidence file; a sweep that was stopped goes on from it.

On a Mac placement is Core ML's compute plan and times are Core ML's. Elsewhere placement is predicted and times are the \
    portable runtime's, which say nothing about the Neural Engine; the file says which. Times are those of the layer shards in a \
    conversation that decodes with a whole head; host and head are not in them, being the same for every topology.

Example: anemone sweep phi4-mini.gguf --evidence sweep.jsonl --tries 8"
)]
pub struct Args {
    /// The model.
    pub model: PathBuf,
    /// What was found, a line each. Made where it is not there, continued where it is.
    #[arg(long, default_value = "sweep.jsonl")]
    pub evidence: PathBuf,
    /// Topologies to try in this run, at most.
    #[arg(long, default_value_t = 4)]
    pub tries: usize,
    /// Tokens that each topology is timed over.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub tokens: u32,
    /// Positions that the range golden fills, about.
    #[arg(long, default_value_t = 16)]
    pub sample: usize,
    /// How projections are stored.
    #[arg(long, value_enum, default_value_t = WeightsArg::Int8Channel)]
    pub weights: WeightsArg,
    /// Positions of the cache; the build's default where not given.
    #[arg(long)]
    pub context: Option<usize>,
    /// A folder for bundles while they are tried; they are removed afterwards. Default: temporary.
    #[arg(long)]
    pub work: Option<PathBuf>,
    /// Print what is known in the end as JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// A line of the evidence file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    /// The first line: what everything below is about.
    About(About),
    /// What was learnt of a shard, and by what.
    Edge { edge: Edge, known: Known, by: String },
    /// A topology that ran as a whole.
    Ran(Profile),
    /// A topology that did not, and why.
    Failed { topology: Topology, reason: String },
}

/// What evidence is about: of two of these that differ nothing can be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    tool: String,
    contract: String,
    runtime: String,
    placement: String,
}

/// The evidence file and what it says so far.
struct Log {
    file: File,
    path: PathBuf,
    search: Search,
}

impl Log {
    fn open(path: &Path, about: &About, mut search: Search) -> Result<Self> {
        let name = || path.display().to_string();
        let mut known = None;
        if path.exists() {
            for (n, line) in BufReader::new(File::open(path).with_context(name)?).lines().enumerate() {
                let line = line.with_context(name)?;
                let line: Line = serde_json::from_str(&line)
                    .with_context(|| format!("{}, line {}: no line of a sweep's evidence", path.display(), n + 1))?;
                match line {
                    Line::About(found) if found == *about => known = Some(found),
                    Line::About(found) => {
                        bail!(
                            "{}: is about {found:?}, and this sweep about {about:?}; give another --evidence",
                            path.display()
                        )
                    }
                    other => apply(&mut search, other),
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(name)?;
        let mut log = Self { file, path: path.to_owned(), search };
        if known.is_none() {
            log.write(&Line::About(about.clone()))?;
        }
        Ok(log)
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text).with_context(|| self.path.display().to_string())
    }

    fn learn(&mut self, line: Line) -> Result<()> {
        self.write(&line)?;
        apply(&mut self.search, line);
        Ok(())
    }
}

fn apply(search: &mut Search, line: Line) {
    match line {
        Line::About(_) => {}
        Line::Edge { edge, known: Known::Measured(ms), .. } => search.measured(edge, ms),
        Line::Edge { edge, known: Known::Rejected(reason), .. } => search.rejected(edge, reason),
        Line::Ran(profile) => search.ran(profile),
        Line::Failed { topology, .. } => search.failed(topology),
    }
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let cut = |topology: Option<String>| Cut {
        topology,
        layers_per_shard: None,
        head_slices: None,
        weights: args.weights,
        context: args.context,
        tokens: Some(vec![1]),
    };
    let model = cache::model(&args.model)?;
    let source = open_source(&model)?;
    let prepared = build::prepare(&model, source.clone(), &cut(None))?;
    let chosen = args.runtime.choose(NumericsArg::Exact)?;
    let target = args.target.target();
    let measured = chosen.measures_placement();
    let about = About {
        tool: TOOL.to_owned(),
        contract: prepared.contract_hash(),
        runtime: chosen.runtime().describe(),
        placement: if measured { "compute plan".to_owned() } else { format!("rules for {target}") },
    };
    let mut log = Log::open(&args.evidence, &about, Search::new(prepared.layer_bytes()?, Guess::default()))?;
    if !measured {
        ui.say("no Core ML here: placement is predicted, and times are the portable runtime's");
    }
    let scratch = tempfile::tempdir().context("no room for temporary files")?;
    let work = args.work.clone().unwrap_or_else(|| scratch.path().to_owned());
    for _ in 0..args.tries {
        let mut fault = None;
        let mut rejected = Vec::new();
        // Rules reject before anything is built; on a Mac the plan decides, once there is something to plan.
        let mut judge = |edge: Edge| {
            if measured || fault.is_some() {
                return None;
            }
            let reason = match prepared.predict(edge.range(), target) {
                Ok(prediction) => prediction.filter(|p| p.place() != Place::Ane).map(|p| p.summary()),
                Err(e) => {
                    fault = Some(e);
                    None
                }
            };
            rejected.extend(reason.clone().map(|r| (edge, r)));
            reason
        };
        let proposed = log.search.propose(&mut judge);
        if let Some(e) = fault {
            return Err(e);
        }
        for (edge, reason) in rejected {
            log.write(&Line::Edge { edge, known: Known::Rejected(reason), by: about.placement.clone() })?;
        }
        let Some((expected, topology)) = proposed else {
            ui.say("nothing is left to try");
            break;
        };
        ui.say(format_args!("{}: {expected:.1} ms a token expected", name(&topology)));
        let bundle = work.join(format!("{}.anemone", name(&topology).replace(',', "_")));
        let prepared = build::prepare(&model, source.clone(), &cut(Some(name(&topology))))?;
        build::build(&prepared, &bundle, Access::Alone, ui)?;
        let subject = Subject::open(&bundle, source.clone())?;
        let tried = attempt(&args, &chosen, &subject, &topology, &mut log, ui);
        std::fs::remove_dir_all(&bundle).with_context(|| bundle.display().to_string())?;
        tried?;
    }
    match args.json {
        true => ui::json(&summary(&log.search, &about))?,
        false => show(&log.search, &about),
    }
    Ok(Outcome::Done)
}

/// Gates and times one bundle; what is learnt goes into the log.
fn attempt(args: &Args, chosen: &Chosen, subject: &Subject, topology: &[Edge], log: &mut Log, ui: &Ui) -> Result<()> {
    let placed = chosen.residency(subject, args.target.target());
    let engine = match Engine::open(&subject.folder, chosen.runtime()) {
        Ok(engine) => engine,
        Err(e) => return log.learn(Line::Failed { topology: topology.to_vec(), reason: e.to_string() }),
    };
    let run = Run { engine: &engine, measured_on: chosen.runtime().describe(), numerics: chosen.numerics() };
    let bar = ui.steps(topology.len() as u64);
    bar.doing("range golden");
    let options = range_golden::Options { positions: range_golden::Positions::About(args.sample), per_token: false };
    let golden = range_golden::judge(subject, &run, &options, || bar.advance(1))?;
    drop(bar);
    let mut failed = None;
    for (shard, &edge) in subject.manifest.layers.iter().zip(topology) {
        let against = |f: &&Finding| f.subject == shard.path && f.verdict == Verdict::Failed;
        if let Some(finding) = placed.iter().chain(&golden).find(against) {
            let reason = format!("{}: {}", finding.gate, finding.message);
            failed = Some(reason.clone());
            log.learn(Line::Edge { edge, known: Known::Rejected(reason), by: finding.measured_on.clone() })?;
        }
    }
    if let Some(reason) = failed {
        return log.learn(Line::Failed { topology: topology.to_vec(), reason });
    }
    let tokens = (args.tokens as usize).min(engine.contract().context);
    let (edges, whole) = time(&engine, tokens)?;
    for (&edge, ms) in topology.iter().zip(edges) {
        log.learn(Line::Edge { edge, known: Known::Measured(ms), by: run.measured_on.clone() })?;
    }
    log.learn(Line::Ran(Profile { topology: topology.to_vec(), tokens, ms: whole }))
}

/// Milliseconds a token over tokens one after another, as a conversation decodes: the median of each layer shard, and the mean of
/// their whole chain. Host and head are left out: they are the same for every topology.
fn time(engine: &Engine, tokens: usize) -> Result<(Vec<f64>, f64)> {
    engine.warm_up()?;
    let mut session = engine.session()?;
    let mut logits = Rows::default();
    let mut times = vec![Vec::with_capacity(tokens); session.shard_times().len()];
    for position in 0..tokens {
        let before = session.shard_times().to_vec();
        session.feed_into(&[(position % engine.contract().vocab) as u32], Logits::Last, &mut logits)?;
        for ((times, after), before) in times.iter_mut().zip(session.shard_times()).zip(before) {
            times.push((*after - before).as_secs_f64() * 1e3);
        }
    }
    let whole = session.stages().layers.as_secs_f64() * 1e3 / tokens as f64;
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok((times.iter_mut().map(median).collect(), whole))
}

fn summary(search: &Search, about: &About) -> Value {
    let rejected = search.edges().iter().filter_map(|(e, known)| match known {
        Known::Rejected(reason) => Some(json!({"layers": name(&[*e]), "reason": reason})),
        Known::Measured(_) => None,
    });
    json!({
        "placement": about.placement,
        "runtime": about.runtime,
        "rejected": rejected.collect::<Vec<_>>(),
        "winner": search.winner().map(|p| json!({"topology": name(&p.topology), "ms": p.ms, "tokens": p.tokens})),
        "hint": search.hint().map(|(ms, hint)| json!({"topology": name(&hint), "ms": ms})),
    })
}

fn show(search: &Search, about: &About) {
    let rejected = search.edges().iter().filter_map(|(e, known)| match known {
        Known::Rejected(reason) => Some(vec![name(&[*e]), reason.clone()]),
        Known::Measured(_) => None,
    });
    let rejected: Vec<_> = rejected.collect();
    if !rejected.is_empty() {
        ui::table(&["rejected", "because"], &rejected);
        println!();
    }
    match search.winner() {
        Some(p) => {
            println!("fastest as a whole: {}, {:.2} ms a token over {} tokens", name(&p.topology), p.ms, p.tokens)
        }
        None => println!("no topology has run as a whole"),
    }
    if let Some((ms, hint)) = search.hint() {
        println!("sum of the best shards, a hint and no result: {}, {ms:.2} ms a token", name(&hint));
    }
    println!("placement: {}; times: {}", about.placement, about.runtime);
}
