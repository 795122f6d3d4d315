//! `anemone build`: a bundle from a GGUF.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anemone_bundle::{Manifest, layout};
use anemone_chat::{ChatTemplate, Tokenizer};
use anemone_gguf::{Gguf, optional};
use anemone_lower::{self as lower, LayerCut, Model, Plan, contract};
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
    #[arg(short, long, required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub cut: Cut,
    /// Print what would be written, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: as JSON.
    #[arg(long, requires = "dry_run")]
    pub json: bool,
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
    let target = args.output.as_deref().expect("clap requires it without --dry-run");
    let manifest = build(&prepared, target, ui)?;
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
pub fn build(prepared: &Prepared, target: &Path, ui: &Ui) -> Result<Manifest> {
    let bar = ui.bytes(prepared.plan.bytes());
    Ok(lower::build(&prepared.model, &prepared.options, target, &bar)?)
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

fn show_plan(prepared: &Prepared, json: bool) -> Result<()> {
    let Prepared { model, options, plan } = prepared;
    if json {
        let piece = |p: &lower::build::Piece| {
            serde_json::json!({"path": p.path, "start": p.range.start, "end": p.range.end, "weight_bytes": p.weight_bytes})
        };
        let value = serde_json::json!({
            "contract": model.contract,
            "contract_hash": model.contract.hash(),
            "tokens": options.tokens,
            "pieces": plan.pieces.iter().map(piece).collect::<Vec<_>>(),
            "embedding_bytes": plan.embedding_bytes,
            "bytes": plan.bytes(),
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let piece = |p: &lower::build::Piece| {
        vec![p.path.clone(), format!("{}-{}", p.range.start, p.range.end), ui::bytes(p.weight_bytes).to_string()]
    };
    let mut rows: Vec<Vec<String>> = plan.pieces.iter().map(piece).collect();
    let embedding = ui::bytes(plan.embedding_bytes).to_string();
    rows.push(vec![layout::EMBEDDING.into(), format!("0-{}", model.contract.vocab), embedding]);
    ui::table(&["file", "layers or rows", "weights"], &rows);
    println!("\n{} in all, {} weights, context {}", ui::bytes(plan.bytes()), model.contract.weights, model.contract.context);
    Ok(())
}
