//! `anemone build`: a bundle from a GGUF.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anemone_bundle::{Manifest, layout};
use anemone_chat::{ChatTemplate, Tokenizer};
use anemone_gate::journal::{self, Heading, Line};
use anemone_gate::residency::{self, Place, Prediction, Rules, Target};
use anemone_gguf::{Gguf, optional};
use anemone_lower::build::Piece;
use anemone_lower::{self as lower, Access, Baseline, LayerCut, Model, Plan, contract};
use anyhow::{Context, Result};
use clap::Parser;

use crate::Outcome;
use crate::cache;
use crate::options::{TargetArgs, WeightsArg, file_name, open_source};
use crate::ui::{self, Ui};

/// Tokens of the prefill function where nobody says.
const DEFAULT_PREFILL: usize = 32;

/// Build a bundle of Core ML shards from a GGUF.
#[derive(Parser)]
#[command(after_help = "Example: anemone build phi4-mini.gguf -o phi4-mini.anemone --topology 0-20,20-24,24-30,30-32")]
pub struct Args {
    /// The model: a GGUF, or the name of one that was pulled.
    pub model: PathBuf,
    /// Where the bundle goes; must not exist.
    #[arg(short, long, required_unless_present_any = ["dry_run", "plan"])]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub cut: Cut,
    /// Take head slices and embedding from this bundle, by hash: it must have the same source, contract, tokens and head slices.
    #[arg(long, value_name = "BUNDLE")]
    pub reuse: Option<PathBuf>,
    /// What this build is to show: opens an entry in the journal before work starts. A build that fails leaves the entry in
    /// <OUTPUT>.journal.jsonl, where the next one takes it up.
    #[arg(long, value_name = "TEXT")]
    pub intent: Option<String>,
    /// Go on from what an earlier build of the same request finished, after checking its hashes; keep what is finished if
    /// this one fails too.
    #[arg(long)]
    pub resume: bool,
    /// Print what would be written, and stop.
    #[arg(long, group = "instead")]
    pub dry_run: bool,
    /// Print what was built, or with --dry-run would be, as JSON.
    #[arg(long)]
    pub json: bool,
    /// Print the jobs of this build as JSON, and stop: each makes one piece, on any machine that sees the target's folder.
    #[arg(long, group = "instead")]
    pub plan: bool,
    /// Make only this piece of the plan; others may run at the same time.
    #[arg(long, group = "instead", value_name = "K")]
    pub job: Option<usize>,
    /// Check the pieces that jobs made, and make the bundle of them.
    #[arg(long, group = "instead", conflicts_with = "resume")]
    pub join: bool,
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What a build can be told about its result.
#[derive(clap::Args, Clone)]
pub struct Cut {
    /// Layer ranges of the shards, ends exclusive: 0-20,20-24,24-30,30-32. Default: as few shards as stay under 1 GiB.
    #[arg(long, conflicts_with = "layers_per_shard")]
    pub topology: Option<String>,
    /// Layers of each shard, the last one with what is left.
    #[arg(long)]
    pub layers_per_shard: Option<usize>,
    /// Slices of the head. Default: as many as keep each within 16384 rows.
    #[arg(long)]
    pub head_slices: Option<usize>,
    /// How projections are stored.
    #[arg(long, value_enum, default_value_t = WeightsArg::Int8Channel)]
    pub weights: WeightsArg,
    /// Positions of the cache. Default: 2048, or the model's own limit where that is less.
    #[arg(long)]
    pub context: Option<usize>,
    /// Tokens a call takes: `1` alone, or `1,N` for a prefill function of N beside it. Default: 1,32.
    #[arg(long, value_delimiter = ',')]
    pub tokens: Option<Vec<usize>>,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let model = cache::model(&args.model)?;
    let source = open_source(&model)?;
    let mut prepared = prepare(&model, source, &args.cut)?;
    prepared.options.reuse = args.reuse.as_deref().map(Baseline::open).transpose()?;
    if args.dry_run {
        show_plan(&prepared, args.target.target(), args.json)?;
        return Ok(Outcome::Done);
    }
    if args.plan {
        ui::json(&jobs(&prepared))?;
        return Ok(Outcome::Done);
    }
    let target = args.output.as_deref().expect("clap requires it for all that follows");
    if let Some(number) = args.job {
        let bar = ui.bytes(prepared.plan.pieces.get(number).map_or(0, |p| p.weight_bytes));
        lower::build_piece(&prepared.model, &prepared.options, target, number, &bar)?;
        drop(bar);
        ui.say(format_args!("job {number}: {} is finished", prepared.plan.pieces[number].path));
        return Ok(Outcome::Done);
    }
    let work = || match args.join {
        true => Ok(lower::join(&prepared.model, &prepared.options, target)?),
        false => build(&prepared, target, if args.resume { Access::Resumable } else { Access::Alone }, ui),
    };
    let manifest = match &args.intent {
        Some(intent) => recorded(&prepared, target, intent, args.reuse.as_deref(), work)?,
        None => work()?,
    };
    if journal::beside(target).exists() {
        journal::adopt(target).with_context(|| format!("{}: journal", target.display()))?;
    }
    if args.json {
        let (layers, head) = (&manifest.layers, &manifest.head);
        let weights = manifest.contract.weights;
        ui::json(&serde_json::json!({
            "bundle": target, "hash": manifest.hash(), "bytes": manifest.bytes(), "weights": weights, "layers": layers, "head": head,
        }))?;
    }
    let total: u64 = manifest.bytes();
    let shards = (manifest.layers.len(), manifest.head.len());
    ui.say(format_args!(
        "{}: {} layer shards, {} head slices, {} weights, {}",
        target.display(),
        shards.0,
        shards.1,
        manifest.contract.weights,
        ui::bytes(total)
    ));
    Ok(Outcome::Done)
}

/// Does the work between the lines of a journal's entry: the intent and the setup are on disk before it starts, and what came
/// of it after, whichever it was.
fn recorded(
    prepared: &Prepared,
    target: &Path,
    intent: &str,
    reuse: Option<&Path>,
    work: impl FnOnce() -> Result<Manifest>,
) -> Result<Manifest> {
    let Prepared { model, options, plan } = prepared;
    let path = journal::beside(target);
    let write = |lines: &[Line]| journal::append(&path, lines).with_context(|| path.display().to_string());
    let shards: Vec<String> = plan.topology.layers.iter().map(|r| format!("{}-{}", r.start, r.end)).collect();
    let reuse = reuse.map_or(String::new(), |b| format!("; head and embedding of {}", file_name(b)));
    let setup = format!(
        "source {} (BLAKE3 {}); contract {}; layers {}; {} head slices; {} weights; context {}; tokens {:?}{reuse}",
        model.file_name,
        lower::build::source(model).blake3,
        model.contract.hash(),
        shards.join(","),
        plan.topology.head.len(),
        model.contract.weights,
        model.contract.context,
        options.tokens,
    );
    write(&[Line::now(Heading::Intent, intent, None), Line::now(Heading::Setup, setup, None)])?;
    let start = Instant::now();
    let built = work();
    write(&[match &built {
        Ok(manifest) => {
            let total: u64 = manifest.bytes();
            let text = format!(
                "built in {:.1} s: {} bytes in {} files",
                start.elapsed().as_secs_f64(),
                total,
                manifest.files.len()
            );
            Line::now(Heading::Result, text, Some(&manifest.hash()))
        }
        Err(e) => Line::now(Heading::Result, format!("the build failed: {e:#}"), None),
    }])?;
    built
}

/// A model, and options that fit it.
pub struct Prepared {
    model: Model,
    options: lower::Options,
    plan: Plan,
}

/// Reads the contract and plans; everything about the request that can be wrong is found here, before a byte is written.
pub fn prepare(path: &Path, source: Arc<Gguf>, cut: &Cut) -> Result<Prepared> {
    let name = || path.display().to_string();
    let tokenizer = Tokenizer::from_gguf(source.metadata()).with_context(name)?;
    let host_files = host_files(&source, &tokenizer).with_context(name)?;
    let stop = tokenizer.config().stop.clone();
    let contract = contract::Options { context: cut.context, weights: cut.weights.into(), stop };
    let model = Model::new(source, &file_name(path), &contract).with_context(name)?;
    let layers = match (&cut.topology, cut.layers_per_shard) {
        (Some(ranges), _) => LayerCut::Ranges(ranges.clone()),
        (None, Some(n)) => LayerCut::Every(n),
        (None, None) => LayerCut::Default,
    };
    let tokens = cut.tokens.clone().unwrap_or_else(|| vec![1, DEFAULT_PREFILL.min(model.contract.context)]);
    let options = lower::Options { layers, head_slices: cut.head_slices, tokens, reuse: None, host_files };
    let plan = Plan::new(&model, &options)?;
    Ok(Prepared { model, options, plan })
}

impl Prepared {
    /// The contract's hash.
    pub fn contract_hash(&self) -> String {
        self.model.contract.hash()
    }

    /// Bytes of weights of each layer, as it would be stored.
    pub fn layer_bytes(&self) -> Result<Vec<u64>> {
        let options = lower::Options { layers: LayerCut::Every(1), ..self.options.clone() };
        let plan = Plan::new(&self.model, &options)?;
        let layers = plan.topology.layers.len();
        Ok(plan.pieces.iter().take(layers).map(|p| p.weight_bytes).collect())
    }

    /// The placement that is predicted for one shard of layers, whatever else the topology has.
    pub fn predict(&self, layers: Range<usize>, target: Target) -> Result<Option<Prediction>> {
        let all = self.model.contract.layers;
        let rest =
            (0..layers.start).map(|l| l..l + 1).chain([layers.clone()]).chain((layers.end..all).map(|l| l..l + 1));
        let cut: Vec<String> = rest.map(|r| format!("{}-{}", r.start, r.end)).collect();
        let options = lower::Options { layers: LayerCut::Ranges(cut.join(",")), ..self.options.clone() };
        let plan = Plan::new(&self.model, &options)?;
        let program = lower::build::program(&self.model, &plan.pieces[layers.start], &options.tokens)?;
        Ok(program.map(|program| residency::predict(&program, Rules::known(), target)))
    }
}

/// Builds what was prepared.
pub fn build(prepared: &Prepared, target: &Path, access: Access, ui: &Ui) -> Result<Manifest> {
    let bar = ui.bytes(prepared.plan.bytes());
    Ok(lower::build(&prepared.model, &prepared.options, target, access, &bar)?)
}

/// What hosts need besides shards: made from the source's metadata once, so that a bundle answers without it.
fn host_files(source: &Gguf, tokenizer: &Tokenizer) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::from([
        (layout::TOKENIZER.to_owned(), tokenizer.to_json().into_bytes()),
        (layout::TOKENIZER_CONFIG.to_owned(), serde_json::to_vec_pretty(tokenizer.config())?),
    ]);
    // A model without a template can still complete text.
    if let Some(template) = optional(source.metadata().str("tokenizer.chat_template"))? {
        ChatTemplate::new(template)?;
        files.insert(layout::CHAT_TEMPLATE.to_owned(), template.as_bytes().to_vec());
    }
    Ok(files)
}

/// A piece for machines.
fn piece(number: usize, p: &Piece) -> serde_json::Value {
    serde_json::json!({
        "job": number, "path": p.path, "start": p.range.start, "end": p.range.end, "weight_bytes": p.weight_bytes,
    })
}

/// The jobs of a build.
fn jobs(prepared: &Prepared) -> Vec<serde_json::Value> {
    prepared.plan.pieces.iter().enumerate().map(|(number, p)| piece(number, p)).collect()
}

fn show_plan(prepared: &Prepared, target: Target, json: bool) -> Result<()> {
    let Prepared { model, options, plan } = prepared;
    // Programs without their weights: types and sizes are all that a prediction looks at.
    let predict = |p: &Piece| -> Result<Option<Prediction>> {
        let program = lower::build::program(model, p, &options.tokens)?;
        Ok(program.map(|program| residency::predict(&program, Rules::known(), target)))
    };
    let predicted: Vec<_> = plan.pieces.iter().map(predict).collect::<Result<_>>()?;
    if json {
        let mut pieces = jobs(prepared);
        for (piece, prediction) in pieces.iter_mut().zip(&predicted) {
            piece["placement"] = serde_json::json!(prediction.as_ref().map(|p| {
                serde_json::json!({
                    "target": p.target, "place": p.place(), "ane": p.count(Place::Ane), "total": p.total(), "rules": p.rules(),
                })
            }));
        }
        let value = serde_json::json!({
            "contract": model.contract,
            "contract_hash": model.contract.hash(),
            "tokens": options.tokens,
            "pieces": pieces,
            "bytes": plan.bytes(),
        });
        return ui::json(&value);
    }
    let row = |(p, prediction): (&Piece, &Option<Prediction>)| {
        let range = format!("{}-{}", p.range.start, p.range.end);
        let placement = prediction.as_ref().map_or("host".to_owned(), Prediction::summary);
        vec![p.path.clone(), range, ui::bytes(p.weight_bytes).to_string(), placement]
    };
    let rows: Vec<_> = plan.pieces.iter().zip(&predicted).map(row).collect();
    ui::table(&["file", "layers or rows", "weights", "predicted placement"], &rows);
    println!(
        "\n{} in all, {} weights, context {}",
        ui::bytes(plan.bytes()),
        model.contract.weights,
        model.contract.context
    );
    let mut against: Vec<String> =
        predicted.iter().flatten().flat_map(Prediction::rules).flat_map(|r| r.against).collect();
    against.sort();
    against.dedup();
    if !against.is_empty() {
        println!("\nPlacement is predicted from rules; nothing ran. Sources that say otherwise for some of these ops:");
        against.iter().for_each(|line| println!("  {line}"));
    }
    Ok(())
}
