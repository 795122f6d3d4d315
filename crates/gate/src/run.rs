//! What a gate runs: a loaded bundle, and on what.

use anemone_chat::{Engine, engine};
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
    /// A state of layer shard `shard` whose first rows hold something else: another's tokens, or a draft that was dropped.
    /// Writing over them has to leave nothing of it.
    pub(crate) fn used_state(&self, shard: usize, rows: &[f32]) -> Result<State, Error> {
        let mut state = self.engine.shard_state(shard)?;
        let width = self.engine.contract().width;
        let (block, function) = self.blocks(rows.len() / width, false)[0].clone();
        let other: Vec<f32> = rows[..block.end * width].iter().map(|v| -v).collect();
        self.engine.run_shard(shard, function, &other, 0, &mut state, None)?;
        Ok(state)
    }

    /// Blocks of at most `tokens` over `0..n`, each with its function: the widest, or `main` for every token.
    pub(crate) fn blocks(&self, n: usize, single: bool) -> Vec<(std::ops::Range<usize>, usize)> {
        let tokens = &self.engine.manifest().tokens;
        let function = if single { 0 } else { tokens.len() - 1 };
        let width = tokens[function];
        (0..n).step_by(width).map(|at| (at..n.min(at + width), function)).collect()
    }
}
