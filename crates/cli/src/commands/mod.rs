//! The commands, a file each; beside them what two of them are made of: `proof`, the gates that run a bundle, and
//! `inspect_plan`, the plans that `inspect` shows.

pub mod bench;
pub mod build;
pub mod chat;
pub mod check;
pub mod demo;
pub mod doctor;
pub mod export;
pub mod gate;
pub mod generate;
pub mod inspect;
mod inspect_plan;
pub mod journal;
pub mod models;
pub mod observations;
pub mod proof;
#[cfg(feature = "pull")]
pub mod pull;
pub mod report;
pub mod run;
pub mod schema;
pub mod serve;
pub mod shell;
pub mod smoke;
pub mod sweep;
