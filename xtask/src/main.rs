//! Work around the repository that is not part of the program: `cargo run --release -p xtask -- synth`.

mod synth;

use clap::Parser;

#[derive(Parser)]
#[command(name = "xtask", about = "Tasks of the repository")]
enum Task {
    Synth(synth::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Synth(args) => synth::run(&args),
    }
}
