//! The commands, a file each.

pub mod build;
pub mod chat;
pub mod demo;
pub mod gate;
pub mod generate;
pub mod inspect;
pub mod proof;
pub mod run;
