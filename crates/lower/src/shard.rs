//! Programs of shards: a range of layers, or a slice of the head, with one function for each token count.

use std::collections::BTreeMap;
use std::ops::Range;

use anemone_bundle::layout::{self, metadata};
use anemone_mil::build::{self, BuildError};
use anemone_mil::ir::{Function, Program};
use anemone_mil::{Valid, validate};

use crate::blocks::Graph;
use crate::error::Error;
use crate::model::Model;
use crate::pool::Pool;
use crate::weights::plain;

/// The program of layers `range`: `x` to `hidden`, with the caches of its layers numbered from 0.
pub fn layers(model: &Model, range: &Range<usize>, tokens: &[usize]) -> Result<Valid, Error> {
    let pool = Pool::default();
    program(model, &layout::layers_role(range), tokens, |name, t| {
        let mut g = Graph::new(name, model, &pool, t)?;
        let mut x = g.x()?;
        let shared = g.shared()?;
        for (state, layer) in range.clone().enumerate() {
            x = model.architecture.layer(&mut g, layer, state, x, &shared)?;
        }
        g.finish("hidden", x)
    })
}

/// The program of head rows `rows`: the final norm and those rows, `x` to `logits`.
pub fn head(model: &Model, rows: &Range<usize>, tokens: &[usize]) -> Result<Valid, Error> {
    let pool = Pool::default();
    let matrix = if model.contract.tied { "token_embd" } else { "output" };
    program(model, &layout::head_role(rows), tokens, |name, t| {
        let mut g = Graph::new(name, model, &pool, t)?;
        let x = g.x()?;
        let normal = g.rms_norm("output_norm.weight", x)?;
        let logits = g.project(matrix, normal, || plain(rows.clone()))?;
        g.finish("logits", logits)
    })
}

/// One function for each token count: `main` for one token, `prefill` for more.
fn program(
    model: &Model,
    role: &str,
    tokens: &[usize],
    function: impl Fn(&str, usize) -> Result<Function, BuildError>,
) -> Result<Valid, Error> {
    let invalid = |report: String| Error::Invalid { shard: role.to_owned(), report };
    let functions = tokens.iter().map(|&t| function(if t == 1 { "main" } else { "prefill" }, t));
    let functions: Vec<Function> = functions.collect::<Result<_, _>>().map_err(|e| invalid(e.to_string()))?;
    validate(described(build::program(functions, travelling(model, role)), model, role))
        .map_err(|r| invalid(r.to_string()))
}

/// What a package says of itself: the contract travels here.
fn travelling(model: &Model, role: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (metadata::CONTRACT.to_owned(), model.contract.to_json()),
        (metadata::CONTRACT_HASH.to_owned(), model.contract.hash()),
        (metadata::ROLE.to_owned(), role.to_owned()),
    ])
}

fn described(mut program: Program, model: &Model, role: &str) -> Program {
    program.about.short_description = format!("{}, {role}", model.name());
    program.about.author = concat!("anemone ", env!("CARGO_PKG_VERSION")).to_owned();
    program
}
