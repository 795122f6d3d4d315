//! `anemone completions` and `anemone man`: what a shell and `man` want to know, from the one definition of the flags.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, Parser};
use clap_complete::Shell;

use crate::Outcome;

/// Print the completions of a shell.
#[derive(Parser)]
#[command(after_help = "Example: anemone completions bash > ~/.local/share/bash-completion/completions/anemone")]
pub struct Completions {
    /// The shell.
    pub shell: Shell,
}

/// Write manual pages: one for the program and one for each command.
#[derive(Parser)]
#[command(after_help = "Example: anemone man -o ~/.local/share/man/man1")]
pub struct Man {
    /// The folder to write them to; without it the program's own page is printed.
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

pub fn completions(args: Completions, mut program: Command) -> Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut program, "anemone", &mut text);
    print(&text)
}

pub fn man(args: Man, program: Command) -> Result<Outcome> {
    match args.output {
        Some(folder) => clap_mangen::generate_to(program, &folder).with_context(|| folder.display().to_string())?,
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(program).render(&mut text)?;
            print(&text)?;
        }
    }
    Ok(Outcome::Done)
}

fn print(text: &[u8]) -> Result<Outcome> {
    std::io::Write::write_all(&mut std::io::stdout(), text)?;
    Ok(Outcome::Done)
}
