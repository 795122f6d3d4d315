//! What a gate runs: a loaded bundle, and on what.

use std::ops::Range;

use anemone_chat::engine::{self, Engine, Shard};
use anemone_exec::{Numerics, State};
use anemone_reference as reference;

/// A bundle loaded on a runtime.
pub struct Run<'a> {
    /// The bundle.
    pub engine: &'a Engine,
    /// What [`Runtime::describe`](anemone_exec::Runtime::describe) says of the runtime.
    pub measured_on: String,
    /// How the runtime computes, which decides how near it has to come.
    pub numerics: Numerics,
}

/// Why a gate could not judge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle cannot be run.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The source cannot be run.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// The request does not fit the bundle.
    #[error("{0}")]
    Asked(String),
    /// A package cannot be compared with the source.
    #[error("{package}: {reason}")]
    Package {
        /// Its path in the bundle.
        package: String,
        /// Why not.
        reason: String,
    },
}

impl Run<'_> {
    /// A state of a layer shard in which the first of `positions` hold something else: another's tokens, or a draft that was
    /// dropped. Writing `rows`, which stand there, has to leave nothing of it.
    pub(crate) fn used_state(&self, shard: &Shard, rows: &[f32], positions: &Range<usize>) -> Result<State, Error> {
        let mut state = shard.new_state()?;
        let (width, tokens) = (self.engine.contract().width, &self.engine.manifest().tokens);
        let function = tokens.len() - 1;
        let other: Vec<f32> = rows[..positions.len().min(tokens[function]) * width].iter().map(|v| -v).collect();
        self.engine.run(shard, function, &other, positions.start, &mut state, None)?;
        Ok(state)
    }

    /// Blocks of at most `tokens` over `0..n`, each with its function: the widest, or `main` for every token.
    pub(crate) fn blocks(&self, n: usize, single: bool) -> Vec<(Range<usize>, usize)> {
        let tokens = &self.engine.manifest().tokens;
        let function = if single { 0 } else { tokens.len() - 1 };
        let width = tokens[function];
        (0..n).step_by(width).map(|at| (at..n.min(at + width), function)).collect()
    }
}
