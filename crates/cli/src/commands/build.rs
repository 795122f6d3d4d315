//! `anemone build`: a bundle from a GGUF.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anemone_bundle::{Manifest, layout};
use anemone_chat::{ChatTemplate, Tokenizer};
use anemone_gguf::{Gguf, optional};
use anemone_lower::build::Piece;
use anemone_lower::{self as lower, Access, LayerCut, Model, Plan, contract};
use anyhow::{Context, Result};
use clap::Parser;

use crate::Outcome;
use crate::options::{WeightsArg, file_name, open_source};
use crate::ui::{self, Ui};

/// Tokens of the prefill function where nobody says.
const DEFAULT_PREFILL: usize = 32;

/// Build a bundle of Core ML shards from a GGUF.
#[derive(Parser)]
#[command(after_help = "Example: anemone build phi4-mini.gguf -o phi4-mini.anemone --topology 0-20,20-24,24-30,30-32")]
pub struct Args {
    /// The model.
    pub model: PathBuf,
    /// Where the bundle goes; must not exist.
    #[arg(short, long, required_unless_present_any = ["dry_run", "plan"])]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub cut: Cut,
    /// Go on from what an earlier build of the same request finished, after checking its hashes; keep what is finished if
    /// this one fails too.
    #[arg(long)]
    pub resume: bool,
    /// Print what would be written, and stop.
    #[arg(long, group = "instead")]
    pub dry_run: bool,
    /// With --dry-run: as JSON.
    #[arg(long, requires = "dry_run")]
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
    let source = open_source(&args.model)?;
    let prepared = prepare(&args.model, source, &args.cut)?;
    if args.dry_run {
        show_plan(&prepared, args.json)?;
        return Ok(Outcome::Done);
    }
    if args.plan {
        println!("{}", serde_json::to_string_pretty(&jobs(&prepared))?);
        return Ok(Outcome::Done);
    }
    let target = args.output.as_deref().expect("clap requires it for all that follows");
    if let Some(number) = args.job {
        lower::build_piece(&prepared.model, &prepared.options, target, number)?;
        ui.say(format_args!("job {number}: {} is finished", prepared.plan.pieces[number].path));
        return Ok(Outcome::Done);
    }
    let manifest = match args.join {
        true => lower::join(&prepared.model, &prepared.options, target)?,
        false => build(&prepared, target, if args.resume { Access::Resumable } else { Access::Alone }, ui)?,
    };
    let total: u64 = manifest.files.values().map(|f| f.bytes).sum();
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
    let options = lower::Options { layers, head_slices: cut.head_slices, tokens, host_files };
    let plan = Plan::new(&model, &options)?;
    Ok(Prepared { model, options, plan })
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

fn show_plan(prepared: &Prepared, json: bool) -> Result<()> {
    let Prepared { model, options, plan } = prepared;
    if json {
        let value = serde_json::json!({
            "contract": model.contract,
            "contract_hash": model.contract.hash(),
            "tokens": options.tokens,
            "pieces": jobs(prepared),
            "bytes": plan.bytes(),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let row = |p: &Piece| {
        vec![p.path.clone(), format!("{}-{}", p.range.start, p.range.end), ui::bytes(p.weight_bytes).to_string()]
    };
    ui::table(&["file", "layers or rows", "weights"], &plan.pieces.iter().map(row).collect::<Vec<_>>());
    println!("\n{} in all, {} weights, context {}", ui::bytes(plan.bytes()), model.contract.weights, model.contract.context);
    Ok(())
}
