//! Verdicts and evidence: what must hold before anyone trusts a shard.
//!
//! A gate judges a [`Subject`] (a bundle and its source) and gives [`Finding`]s. It never shares a blind spot with what it
//! judges: facts are read again by the reference's own reader, numbers come from the reference's own forward.

pub mod bisect;
pub mod cliffs;
pub mod compile;
pub mod contract;
pub mod cut;
pub mod evidence;
pub mod figures;
pub mod journal;
pub mod numeric;
pub mod own;
pub mod parity;
pub mod probe;
pub mod prompts;
pub mod range_golden;
pub mod report;
pub mod residency;
pub mod run;
pub mod runtime_meta;
pub mod shard_weights;
pub mod smoke;
pub mod stack_golden;
mod stages;
pub mod subject;
pub mod sweep;
pub mod thresholds;
pub mod verdict;
pub mod weights;

pub use run::Run;
pub use subject::Subject;
pub use verdict::{Finding, Verdict};
