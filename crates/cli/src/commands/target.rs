//! What a placement is predicted for: options that several commands take.

use anemone_gate::residency::{Chip, Target};
use clap::Args;

/// The machine that a placement is predicted for.
#[derive(Args, Clone, Copy)]
pub struct TargetArgs {
    /// Predict placement for this chip: M1 to M5.
    #[arg(long, default_value_t = Target::default().chip)]
    pub chip: Chip,
    /// Predict placement for this macOS.
    #[arg(long, value_name = "MAJOR", default_value_t = Target::default().os, value_parser = clap::value_parser!(u32).range(11..100))]
    pub os: u32,
}

impl TargetArgs {
    /// The machine.
    pub fn target(self) -> Target {
        Target { chip: self.chip, os: self.os }
    }
}

impl Default for TargetArgs {
    fn default() -> Self {
        let Target { chip, os } = Target::default();
        Self { chip, os }
    }
}
