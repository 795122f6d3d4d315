//! Verdicts: what was judged, what was found, and what it was seen on.

use serde::{Deserialize, Serialize};

/// What a gate found. The words keep four claims apart: only [`Passed`](Verdict::Passed) means that the thing itself was
/// measured; a well-formed package has not been compiled, and a prediction has not been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Measured, and within bounds.
    Passed,
    /// Measured, and out of bounds, or not measurable for a fault of the bundle's.
    Failed,
    /// Every rule of the format holds; Core ML has not compiled it.
    WellFormed,
    /// A prediction from rules; nothing has run.
    Predicted,
    /// Measured, and what was measured decides nothing; the message says why.
    Inconclusive,
    /// Not done, and the message says why.
    Skipped,
}

impl Verdict {
    /// The word in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::WellFormed => "well-formed",
            Verdict::Predicted => "predicted",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Skipped => "skipped",
        }
    }
}

/// One gate's finding about one part of a bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// The gate: `contract`, `compile`, `range-golden`.
    pub gate: String,
    /// The part: a package's path, or `bundle`.
    pub subject: String,
    /// What was found.
    pub verdict: Verdict,
    /// Device, numerics and tool version. A verdict never borrows another's.
    pub measured_on: String,
    /// Hash of the manifest it speaks of.
    pub bundle: String,
    /// One line for people.
    pub message: String,
    /// Every figure, as the gate names them.
    pub figures: serde_json::Value,
}

/// The tool's part of `measured_on`.
pub const TOOL: &str = concat!("anemone ", env!("CARGO_PKG_VERSION"));
