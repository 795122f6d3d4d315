//! `anemone run`: executes any ML Program package.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anemone_exec::{Dtype, Model, Signature, Tensor};
use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::json;

use crate::Outcome;
use crate::npz::{self, Npz};
use crate::options::{NumericsArg, RuntimeArgs};
use crate::ui::{self, Ui};

/// Execute any ML Program package, its own or anyone's: one call per input file, with state kept between calls.
#[derive(Parser)]
#[command(
    after_help = "Example: anemone run model.mlpackage --inputs a.npz b.npz --outputs out --expect want_a.npz want_b.npz"
)]
pub struct Args {
    /// The package.
    pub package: PathBuf,
    /// Arrays named as the function's inputs, a file a call.
    #[arg(long, required = true, num_args = 1..)]
    pub inputs: Vec<PathBuf>,
    /// A folder for the results, written as 0.npz, 1.npz, ...; made if it is not there.
    #[arg(long)]
    pub outputs: Option<PathBuf>,
    /// The function; the package's default one where not given.
    #[arg(long)]
    pub function: Option<String>,
    /// Arrays that the outputs must equal within the tolerances, a file a call; exit 1 where they do not.
    #[arg(long, num_args = 1..)]
    pub expect: Vec<PathBuf>,
    /// Absolute tolerance of --expect.
    #[arg(long, default_value_t = 1e-3)]
    pub atol: f64,
    /// Relative tolerance of --expect.
    #[arg(long, default_value_t = 1e-3)]
    pub rtol: f64,
    /// Print JSON: what came out of each call, and what is beyond the tolerances.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// What is told of an output beyond the tolerances.
const BEYOND: [&str; 6] = ["call", "output", "worst difference", "at", "found", "expected"];

/// Elements of one input at most where the package does not say how many: a bound on what a file can make us allocate.
const MAX_ELEMENTS: usize = 1 << 28;

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    if !args.expect.is_empty() && args.expect.len() != args.inputs.len() {
        bail!(
            "--expect has {} files and --inputs {}: one is needed for each call",
            args.expect.len(),
            args.inputs.len()
        );
    }
    let chosen = args.runtime.choose(NumericsArg::Exact)?;
    let model = chosen.runtime().load(&args.package)?;
    chosen.tell_loads(ui);
    let function = find(model.as_ref(), args.function.as_deref())?;
    let signature = &model.functions()[function];
    if let Some(folder) = &args.outputs {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut state = model.new_state()?;
    let (mut calls, mut mismatches) = (Vec::new(), Vec::new());
    for (call, path) in args.inputs.iter().enumerate() {
        let inputs = read_inputs(path, signature, model.float())?;
        let results = model.run(function, &inputs.iter().collect::<Vec<_>>(), &mut state)?;
        let named: Vec<(&str, &Tensor)> = signature.outputs.iter().map(|p| p.name.as_str()).zip(&results).collect();
        let output = |(name, tensor): &(&str, &Tensor)| json!({"name": name, "type": tensor.dtype().to_string(), "shape": tensor.shape()});
        calls.push(json!({"outputs": named.iter().map(output).collect::<Vec<_>>()}));
        match &args.outputs {
            Some(folder) => npz::write(&folder.join(format!("{call}.npz")), &named)?,
            None if args.expect.is_empty() && !args.json => show(call, &named),
            None => {}
        }
        if let Some(path) = args.expect.get(call) {
            mismatches.extend(compare(call, path, &named, args.atol, args.rtol)?);
        }
    }
    if args.json {
        let rows = mismatches.iter().map(|row| BEYOND.iter().zip(row).collect::<BTreeMap<_, _>>());
        ui::json(&json!({"calls": calls, "beyond": rows.collect::<Vec<_>>()}))?;
        return Ok(if mismatches.is_empty() { Outcome::Done } else { Outcome::Failed });
    }
    if mismatches.is_empty() {
        if !args.expect.is_empty() {
            ui.say(format_args!(
                "{} calls, all outputs within atol {} and rtol {}",
                args.inputs.len(),
                args.atol,
                args.rtol
            ));
        }
        return Ok(Outcome::Done);
    }
    ui::table(&BEYOND, &mismatches);
    Ok(Outcome::Failed)
}

fn find(model: &dyn Model, name: Option<&str>) -> Result<usize> {
    let Some(name) = name else { return Ok(model.default_function()) };
    let names: Vec<&str> = model.functions().iter().map(|f| f.name.as_str()).collect();
    let found = names.iter().position(|n| *n == name);
    found.with_context(|| format!("--function: the package has no function `{name}`, only {}", names.join(", ")))
}

/// The function's inputs from one file, in its order. Arrays it does not know are an error: a misspelt name must not pass.
fn read_inputs(path: &Path, signature: &Signature, float: Dtype) -> Result<Vec<Tensor>> {
    let mut npz = Npz::open(path)?;
    let known = |name: &String| signature.input(name).is_some();
    if let Some(name) = npz.names().iter().find(|n| !known(n)) {
        let names: Vec<&str> = signature.inputs.iter().map(|p| p.name.as_str()).collect();
        bail!(
            "{}: array `{name}` is no input of function `{}`, which takes {}",
            path.display(),
            signature.name,
            names.join(", ")
        );
    }
    let read = |port: &anemone_exec::Port| {
        let fixed = port.shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d)?));
        let dtype = if port.dtype == Dtype::F16 { float } else { port.dtype };
        npz.read(&port.name, dtype, fixed.unwrap_or(MAX_ELEMENTS))
    };
    signature.inputs.iter().map(read).collect()
}

/// Outputs beyond tolerance: a row for the table each.
fn compare(call: usize, path: &Path, found: &[(&str, &Tensor)], atol: f64, rtol: f64) -> Result<Vec<Vec<String>>> {
    let mut npz = Npz::open(path)?;
    let mut rows = Vec::new();
    for name in npz.names() {
        let Some((_, tensor)) = found.iter().find(|(n, _)| *n == name) else {
            bail!("{}: array `{name}` is no output of the function", path.display());
        };
        let expected = npz.read(&name, Dtype::F32, tensor.data().len().max(1))?;
        if expected.shape() != tensor.shape() {
            bail!(
                "{}: array `{name}` is {:?}, and the output is {:?}",
                path.display(),
                expected.shape(),
                tensor.shape()
            );
        }
        let (found, expected) = (tensor.to_f32(), expected.to_f32());
        // Infinities and NaN agree only with themselves.
        let excess = |f: f32, e: f32| {
            let (f, e) = (f64::from(f), f64::from(e));
            if f == e || (f.is_nan() && e.is_nan()) {
                0.0
            } else {
                ((f - e).abs() / (atol + rtol * e.abs())).min(f64::MAX)
            }
        };
        let worst = found.iter().zip(&expected).map(|(&f, &e)| excess(f, e)).enumerate();
        let worst = worst.max_by(|a, b| a.1.max(0.0).total_cmp(&b.1.max(0.0)));
        let nan = found.iter().zip(&expected).position(|(f, e)| f.is_nan() != e.is_nan());
        let at = nan.or(worst.filter(|w| w.1 > 1.0).map(|w| w.0));
        if let Some(i) = at {
            let difference = (f64::from(found[i]) - f64::from(expected[i])).abs();
            rows.push(vec![
                call.to_string(),
                name,
                format!("{difference:.3e}"),
                i.to_string(),
                found[i].to_string(),
                expected[i].to_string(),
            ]);
        }
    }
    Ok(rows)
}

/// A glance at the results, where nobody asked for files.
fn show(call: usize, outputs: &[(&str, &Tensor)]) {
    for (name, tensor) in outputs {
        let values = tensor.to_f32();
        let head: Vec<String> = values.iter().take(6).map(|v| format!("{v:.5}")).collect();
        let more = if values.len() > 6 { ", ..." } else { "" };
        println!("{call}: {name} {}{:?} [{}{more}]", tensor.dtype(), tensor.shape(), head.join(", "));
    }
}
