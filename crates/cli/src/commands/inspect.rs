//! `anemone inspect`: what a GGUF, a package or a bundle holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anemone_bundle::contract::WeightMode;
use anemone_bundle::{Contract, Manifest, layout};
use anemone_chat::Tokenizer;
use anemone_exec::{Fast, FastOptions, fast};
use anemone_gguf::{Gguf, Value};
use anemone_lower::{Model, contract};
use anemone_mil::ir::{Feature, Function, Payload, Program};
use anemone_mil::package;
use anyhow::{Context, Result, bail};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use serde_json::{Value as Json, json};

use crate::Outcome;
use crate::cache;
use crate::options::{file_name, open_source};
use crate::ui;

/// Describe a GGUF, an .mlpackage or a bundle.
#[derive(Parser)]
#[command(after_help = "Example: anemone inspect phi4-mini.gguf")]
pub struct Args {
    /// The file or folder.
    pub path: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// How the fast runtime executes it: the kernels of every function, in order.
    #[arg(long)]
    pub plan: bool,
    /// With --plan, do without this rewrite; may be repeated. One of linear, norm, gate, residual, rotary, attention.
    #[arg(long, value_name = "LABEL", requires = "plan", value_parser = PossibleValuesParser::new(fast::LABELS))]
    pub no_fuse: Vec<String>,
}

pub fn run(args: Args) -> Result<Outcome> {
    let path = &cache::model(&args.path)?;
    if args.plan {
        let options = FastOptions { off: args.no_fuse.iter().cloned().collect(), ..FastOptions::default() };
        super::inspect_plan::show(path, &Fast::new(options), args.json)?;
        return Ok(Outcome::Done);
    }
    if path.join(layout::MANIFEST).is_file() {
        bundle(path, args.json)?;
    } else if path.join("Manifest.json").is_file() {
        show_package(path, args.json)?;
    } else if path.is_dir() {
        bail!("{}: neither a bundle (no {}) nor a package (no Manifest.json)", path.display(), layout::MANIFEST);
    } else {
        gguf(path, args.json)?;
    }
    Ok(Outcome::Done)
}

// ---- GGUF

fn gguf(path: &Path, json: bool) -> Result<()> {
    let source = open_source(path)?;
    // What cannot be lowered can still be looked at: the reason is part of the answer.
    let model = lowered(path, &source);
    if json {
        let tensor = |t: &anemone_gguf::TensorInfo| json!({"name": t.name, "shape": t.shape, "type": t.ty.name(), "bytes": t.len});
        let metadata = source.metadata().iter().map(|(k, v)| (k.to_owned(), describe(v).into()));
        return ui::json(&json!({
            "kind": "gguf",
            "version": source.version(),
            "bytes": source.len(),
            "metadata": Json::Object(metadata.collect()),
            "tensors": source.tensors().iter().map(tensor).collect::<Vec<_>>(),
            "contract": model.as_ref().ok().map(|m| &m.contract),
            "origins": model.as_ref().ok().map(|m| &m.origins),
            "not_lowered": model.as_ref().err().map(|e| e.to_string()),
        }));
    }
    println!("GGUF v{}, {}, {} tensors\n", source.version(), ui::bytes(source.len()), source.tensors().len());
    match &model {
        Ok(model) => show_contract(&model.contract, &model.origins),
        Err(e) => println!("cannot be lowered: {e}\n"),
    }
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for t in source.tensors() {
        let entry = types.entry(t.ty.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + t.len);
    }
    let rows =
        types.iter().map(|(ty, (n, bytes))| vec![(*ty).to_owned(), n.to_string(), ui::bytes(*bytes).to_string()]);
    ui::table(&["type", "tensors", "size"], &rows.collect::<Vec<_>>());
    println!();
    show_metadata(&source);
    Ok(())
}

/// The source as a model, with a build's defaults.
fn lowered(path: &Path, source: &Arc<Gguf>) -> Result<Model, anemone_lower::Error> {
    let stop = Tokenizer::from_gguf(source.metadata()).map(|t| t.config().stop.clone()).unwrap_or_default();
    let options = contract::Options { context: None, weights: WeightMode::Int8Channel, stop };
    Model::new(Arc::clone(source), &file_name(path), &options)
}

fn show_metadata(source: &Gguf) {
    let rows = source.metadata().iter().map(|(k, v)| vec![k.to_owned(), describe(v)]);
    ui::table(&["key", "value"], &rows.collect::<Vec<_>>());
}

/// A value in a few words.
fn describe(value: &Value) -> String {
    const LONG: usize = 60;
    match value {
        Value::Array(a) => format!("{} of {}", a.len(), a.type_name()),
        Value::String(s) if s.chars().count() > LONG => {
            format!("{:?}... ({} bytes)", s.chars().take(LONG).collect::<String>(), s.len())
        }
        Value::String(s) => format!("{s:?}").trim_matches('"').to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        other => other.integer().map_or_else(|| other.type_name().to_owned(), |v| v.to_string()),
    }
}

/// The contract field by field, with where each came from.
fn show_contract(contract: &Contract, origins: &BTreeMap<String, String>) {
    let mut rows = Vec::new();
    let Ok(Json::Object(fields)) = serde_json::to_value(contract) else { return };
    for (name, value) in fields {
        match value {
            Json::Object(inner) if origins.keys().any(|k| k.starts_with(&format!("{name}."))) => {
                for (part, value) in inner {
                    rows.push(contract_row(&format!("{name}.{part}"), &value, origins));
                }
            }
            value => rows.push(contract_row(&name, &value, origins)),
        }
    }
    ui::table(&["contract", "value", "from"], &rows);
    println!("\ncontract hash {}\n", contract.hash());
}

fn contract_row(field: &str, value: &Json, origins: &BTreeMap<String, String>) -> Vec<String> {
    let text = match value {
        Json::Array(a) if a.len() > 8 => {
            let all_equal = a.windows(2).all(|w| w[0] == w[1]);
            if all_equal {
                format!("{} times {}", a.len(), a[0])
            } else {
                format!("{} values, {} to {}", a.len(), a[0], a[a.len() - 1])
            }
        }
        Json::String(s) => s.clone(),
        // Contracts hold f32: printed as f64 they grow digits that nobody wrote.
        Json::Number(n) if n.is_f64() => (n.as_f64().unwrap_or(f64::NAN) as f32).to_string(),
        other => other.to_string(),
    };
    vec![field.to_owned(), text, origins.get(field).cloned().unwrap_or_default()]
}

// ---- bundles

fn bundle(path: &Path, json: bool) -> Result<()> {
    let manifest = Manifest::open(path)?;
    if json {
        let (layers, head) = (manifest.layers.len(), manifest.head.len());
        return ui::json(&json!({
            "kind": "bundle",
            "hash": manifest.hash(),
            "calls_per_token": {"layers": layers, "head": head, "all": layers + head},
            "manifest": manifest,
        }));
    }
    println!("bundle of {}, built by {} from {}", manifest.name, manifest.tool, manifest.source.file);
    println!("hash {}\n", manifest.hash());
    show_contract(&manifest.contract, &BTreeMap::new());
    show_shards(&manifest);
    Ok(())
}

/// The contract of a GGUF and where each field came from.
pub fn contract(path: &Path) -> Result<()> {
    match lowered(path, &open_source(path)?) {
        Ok(model) => show_contract(&model.contract, &model.origins),
        Err(e) => return Err(e.into()),
    }
    Ok(())
}

/// The shards of a bundle.
pub fn shards(path: &Path) -> Result<()> {
    show_shards(&Manifest::open(path)?);
    Ok(())
}

fn show_shards(manifest: &Manifest) {
    let size = |path: &str| -> u64 {
        let inside = format!("{path}/");
        manifest.files.iter().filter(|(name, _)| name.starts_with(&inside)).map(|(_, f)| f.bytes).sum()
    };
    let row = |s: &anemone_bundle::manifest::Shard| {
        vec![s.path.clone(), format!("{}-{}", s.start, s.end), ui::bytes(size(&s.path)).to_string()]
    };
    let rows: Vec<_> = manifest.layers.iter().chain(&manifest.head).map(row).collect();
    ui::table(&["shard", "layers or rows", "size"], &rows);
    let (layers, head) = (manifest.layers.len(), manifest.head.len());
    println!(
        "\n{} calls a token: {layers} layer shards one after another, {head} head slices that Core ML is given together",
        layers + head
    );
    println!("functions take {:?} tokens", manifest.tokens);
}

// ---- packages

fn show_package(path: &Path, json: bool) -> Result<()> {
    let program = package::read(path).with_context(|| path.display().to_string())?;
    if json {
        let functions: Vec<Json> = program.functions.iter().map(function_json).collect();
        return ui::json(&json!({
            "kind": "package",
            "specification_version": program.spec_version,
            "default_function": program.default_function,
            "metadata": program.metadata,
            "functions": functions,
        }));
    }
    println!("ML Program, specification version {}", program.spec_version);
    if !program.about.short_description.is_empty() {
        println!("{}", program.about.short_description);
    }
    for function in &program.functions {
        show_function(function, &program);
    }
    if !program.metadata.is_empty() {
        println!();
        let rows = program.metadata.iter().map(|(k, v)| vec![k.clone(), v.chars().take(100).collect()]);
        ui::table(&["metadata", "value"], &rows.collect::<Vec<_>>());
    }
    Ok(())
}

fn show_function(function: &Function, program: &Program) {
    let default = if function.name == program.default_function { ", default" } else { "" };
    println!("\nfunction {} ({}{default})\n", function.name, function.opset);
    let interface = &function.interface;
    let port = |kind: &str, f: &Feature| {
        let shape = f.shape.as_ref().map_or("only known at run time".to_owned(), |s| format!("{s:?}"));
        vec![kind.to_owned(), f.name.clone(), f.dtype.to_string(), shape]
    };
    let mut rows: Vec<_> = interface.inputs.iter().map(|f| port("input", f)).collect();
    rows.extend(interface.states.iter().map(|f| port("state", f)));
    rows.extend(interface.outputs.iter().map(|f| port("output", f)));
    ui::table(&["port", "name", "type", "shape"], &rows);
    println!();
    let rows = histogram(function).into_iter().map(|(kind, n)| vec![kind, n.to_string()]);
    ui::table(&["op", "count"], &rows.collect::<Vec<_>>());
    println!();
    let rows = encodings(function).into_iter();
    let rows = rows.map(|(kind, (n, bytes))| vec![kind, n.to_string(), ui::bytes(bytes).to_string()]);
    ui::table(&["weights", "count", "size"], &rows.collect::<Vec<_>>());
}

fn function_json(function: &Function) -> Json {
    let port = |f: &Feature| json!({"name": f.name, "type": f.dtype.name(), "shape": f.shape});
    let ports = |all: &[Feature]| all.iter().map(port).collect::<Vec<_>>();
    let weights = encodings(function).into_iter().map(|(k, (n, bytes))| (k, json!({"count": n, "bytes": bytes})));
    json!({
        "name": function.name,
        "opset": function.opset,
        "inputs": ports(&function.interface.inputs),
        "outputs": ports(&function.interface.outputs),
        "states": ports(&function.interface.states),
        "ops": histogram(function),
        "weights": weights.collect::<BTreeMap<_, _>>(),
    })
}

/// How often each op but `const` occurs.
fn histogram(function: &Function) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for op in function.ops.iter().filter(|op| op.kind != "const") {
        *all.entry(op.kind.clone()).or_default() += 1;
    }
    all
}

/// Constants in the weight file, by how they are encoded: count and bytes. A blob that several values share counts once.
fn encodings(function: &Function) -> BTreeMap<String, (usize, u64)> {
    let mut all: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for op in &function.ops {
        let literals = op.inputs.values().flatten().filter_map(|arg| match arg {
            anemone_mil::ir::Arg::Literal(l) => Some(l),
            anemone_mil::ir::Arg::Value(_) => None,
        });
        for literal in literals.chain(op.attributes.values()) {
            let Payload::Blob(blob) = &literal.payload else { continue };
            if !seen.insert(blob.record) {
                continue;
            }
            let dtype = literal.tensor_type().map_or("?", |t| t.dtype.name());
            let entry = all.entry(format!("{} {dtype}", op.kind)).or_default();
            *entry = (entry.0 + 1, entry.1 + blob.range.len() as u64);
        }
    }
    all
}
