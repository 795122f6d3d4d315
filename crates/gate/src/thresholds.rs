//! How near is near enough: one table, for each way to store weights and each way to compute.
//!
//! Every bound comes from measurement (`docs/gates.md` has the figures of each model and topology) with a margin of about
//! two above the worst that a right bundle showed. A bundle that does not keep to them is looked into; they are never
//! loosened to let one pass.

use anemone_bundle::contract::WeightMode;
use anemone_exec::Numerics;
use serde::Serialize;

use crate::figures::Bounds;

/// What comparisons keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Thresholds {
    /// A shard against the reference on the shard's own weights: is the program right.
    pub tight: Bounds,
    /// A shard against the reference on the source's weights: what quantisation costs.
    pub cost: Bounds,
    /// Logits of the whole chain against the reference on the bundle's own weights.
    pub chain_tight: Bounds,
    /// Logits of the whole chain against the reference on the source's weights.
    pub chain_cost: Bounds,
    /// Where the reference's best two logits are closer than this, in units of the root mean square of its logits, either
    /// token is right.
    pub sure: f64,
}

const fn bounds(cosine: f64, relative_rmse: f64) -> Bounds {
    Bounds { cosine, relative_rmse }
}

impl Thresholds {
    /// What the values inside a shard keep to where its output does not keep to [`tight`](Self::tight): less than that, since an
    /// error grows on its way to where it is seen, and its cause is to be named. A test holds right shards to this.
    pub fn inside(&self) -> Bounds {
        const PART: f64 = 0.6;
        let Bounds { cosine, relative_rmse } = self.tight;
        bounds(1.0 - PART * (1.0 - cosine), PART * relative_rmse)
    }

    /// The row of the table.
    pub fn of(mode: WeightMode, numerics: Numerics) -> Self {
        use Numerics::{Ane, Exact};
        use WeightMode::{Fp16, Int8, Int8Channel};
        let (tight, chain_tight) = match numerics {
            Exact => (bounds(0.999_999_7, 1e-3), bounds(0.999_998, 2.5e-3)),
            Ane => (bounds(0.999_8, 3e-2), bounds(0.999_2, 6e-2)),
        };
        let (cost, chain_cost, sure) = match (mode, numerics) {
            (Fp16, Exact) => (bounds(0.999_99, 5e-3), bounds(0.999_975, 1e-2), 0.02),
            (Fp16, Ane) => (tight, chain_tight, 0.05),
            (Int8Channel, _) => (bounds(0.993, 0.17), bounds(0.95, 0.4), 0.1),
            (Int8, _) => (bounds(0.985, 0.25), bounds(0.97, 0.35), 0.2),
        };
        Self { tight, cost, chain_tight, chain_cost, sure }
    }
}
