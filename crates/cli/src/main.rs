//! The program `anemone`: one file a command, and here what they share: arguments, exit codes, one line per error.

mod cache;
mod commands;
mod energy;
mod npz;
mod options;
mod output;
mod runtime;
mod serve;
mod speak;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Compiles GGUF language models into Core ML shards for the Apple Neural Engine, proves them, and runs them anywhere.
#[derive(Parser)]
#[command(name = "anemone", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    /// Print results only: no progress, no remarks.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done; 1 a gate or comparison failed; 2 the request was bad or could not be met; 3 not all was
proven that `gate --strict` asks for.

Example: anemone demo";

#[derive(Subcommand)]
enum Command {
    /// The whole main job on the model that ships with the program: build, gate, answer.
    Demo(commands::demo::Args),
    /// Describe a GGUF, an .mlpackage or a bundle.
    Inspect(commands::inspect::Args),
    /// Build a bundle of shards from a GGUF.
    Build(commands::build::Args),
    /// Judge a bundle against its source.
    Gate(commands::gate::Args),
    /// Check anyone's package without its source.
    Check(commands::check::Args),
    /// Write the published runtime's manifest for a proven bundle.
    Export(commands::export::Args),
    /// Ask a bundle for hello world in Erlang, and run the answer.
    Smoke(commands::smoke::Args),
    /// A bundle's journal: intents, results, lessons.
    Journal(commands::journal::Args),
    /// The evidence as one HTML page.
    Report(commands::report::Args),
    /// Execute any ML Program package on tensors from .npz files.
    Run(commands::run::Args),
    /// Answer one prompt, or a file of them.
    Generate(commands::generate::Args),
    /// Measure prefill and decode, cold and warm apart, per stage.
    Bench(commands::bench::Args),
    /// Converse in the terminal.
    Chat(commands::chat::Args),
    /// Answer over HTTP as OpenAI's clients ask, with a page to talk with the model; or JSON lines on stdin and stdout.
    Serve(commands::serve::Args),
    /// Get a model from the Hugging Face Hub, verified, into the cache.
    #[cfg(feature = "pull")]
    Pull(commands::pull::Args),
    /// What the cache of models and bundles holds.
    Models(commands::models::Args),
    /// Print the JSON Schema of what a command prints with `--json`.
    Schema(commands::schema::Args),
    /// Print the completions of a shell.
    Completions(commands::shell::Completions),
    /// Write manual pages.
    Man(commands::shell::Man),
    /// What this machine can do, what it cannot, and why.
    Doctor(commands::doctor::Args),
    /// What compute plans said against the placement rules.
    Observations(commands::observations::Args),
    /// Look for the fastest topology that passes its gates.
    Sweep(commands::sweep::Args),
}

/// What a command that did its work has to say by its exit code.
enum Outcome {
    /// 0.
    Done,
    /// 1: a gate failed, or numbers differ.
    Failed,
    /// 3: nothing failed, and `--strict` asked for more than was seen.
    Unproven,
}

fn main() -> ExitCode {
    // clap itself exits with 2 where the command line is wrong.
    let cli = Cli::parse();
    let ui = ui::Ui::new(cli.quiet);
    let outcome = match cli.command {
        Command::Demo(args) => commands::demo::run(args, &ui),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Build(args) => commands::build::run(args, &ui),
        Command::Gate(args) => commands::gate::run(args, &ui),
        Command::Check(args) => commands::check::run(args),
        Command::Export(args) => commands::export::run(args, &ui),
        Command::Smoke(args) => commands::smoke::run(args, &ui),
        Command::Journal(args) => commands::journal::run(args, &ui),
        Command::Report(args) => commands::report::run(args, &ui),
        Command::Run(args) => commands::run::run(args, &ui),
        Command::Generate(args) => commands::generate::run(args, &ui),
        Command::Bench(args) => commands::bench::run(args, &ui),
        Command::Chat(args) => commands::chat::run(args, &ui),
        Command::Serve(args) => commands::serve::run(args, &ui),
        #[cfg(feature = "pull")]
        Command::Pull(args) => commands::pull::run(args, &ui),
        Command::Models(args) => commands::models::run(args, &ui),
        Command::Schema(args) => commands::schema::run(args),
        Command::Completions(args) => commands::shell::completions(args, Cli::command()),
        Command::Man(args) => commands::shell::man(args, Cli::command()),
        Command::Doctor(args) => commands::doctor::run(args, &ui),
        Command::Observations(args) => commands::observations::run(args),
        Command::Sweep(args) => commands::sweep::run(args, &ui),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::Unproven) => ExitCode::from(3),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the reader of our output went away, as `| head` does: no fault of the request.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
