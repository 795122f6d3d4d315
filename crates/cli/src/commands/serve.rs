//! `anemone serve`: the server's flags.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::options::RuntimeArgs;
use crate::serve::{self, Bounds, stdio};
use crate::speak::{Speaker, SpeculationArgs};
use crate::ui::Ui;
use crate::{Outcome, cache};

/// Names the key where a command line would show it to everybody on the machine.
const KEY_VARIABLE: &str = "ANEMONE_API_KEY";

/// Answer over HTTP as OpenAI's clients ask, or JSON lines on stdin and stdout.
#[derive(Parser)]
#[command(
    after_help = "Routes: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, and / for a page. Fields that cannot be honoured \
    are refused by name. On an address other than the loopback one a key is asked for: the environment variable \
    ANEMONE_API_KEY, or the first line of --api-key-file.

Example: anemone serve phi4-mini.anemone --port 8080"
)]
pub struct Args {
    /// The bundle; or a GGUF, a file or hf:OWNER/REPO[:FILE] if it was pulled, which is built into the cache first.
    pub bundle: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// The port; 0 for any that is free.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// A file whose first line is the key that clients must send.
    #[arg(long)]
    pub api_key_file: Option<PathBuf>,
    /// Memory for the caches of conversations, in MiB. One conversation is always kept.
    #[arg(long, default_value_t = 2048)]
    pub cache_mib: usize,
    /// Requests at once, from its headers to the last byte of a stream, or until a whole answer is made; more are told to come again.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_requests: u16,
    /// Size of a request's body at most, in KiB.
    #[arg(long, default_value_t = 1024)]
    pub max_body_kib: usize,
    /// Tokens of a prompt at most. Default: what the context holds.
    #[arg(long)]
    pub max_prompt: Option<usize>,
    /// Seconds for one answer at most, queue included.
    #[arg(long, default_value_t = 600)]
    pub time_limit: u64,
    /// Threads that run the model, each with as many threads of its own as --threads says.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// Answer JSON lines from stdin on stdout instead, one at a time.
    #[arg(long, conflicts_with_all = ["host", "port", "api_key_file", "max_requests", "workers"])]
    pub stdio: bool,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let key = key(&args)?;
    if !args.stdio && key.is_none() && !args.host.is_loopback() {
        bail!("{} can be reached from outside: set {KEY_VARIABLE} or --api-key-file, or leave --host out", args.host);
    }
    let bundle = cache::bundle(&args.bundle, &args.runtime, ui)?;
    let speaker = args.speculation.apply(Speaker::open(&bundle, &args.runtime, ui)?, &bundle, &args.runtime, ui)?;
    speaker.warm_up(ui)?;
    let bounds = Bounds {
        address: SocketAddr::new(args.host, args.port),
        key,
        cache: args.cache_mib.saturating_mul(1 << 20),
        places: args.max_requests.into(),
        body: args.max_body_kib.saturating_mul(1 << 10),
        prompt: args.max_prompt,
        time: Duration::from_secs(args.time_limit),
        workers: args.workers.into(),
    };
    match args.stdio {
        true => stdio::run(speaker, &bounds)?,
        false => serve::run(speaker, &bounds, ui)?,
    }
    Ok(Outcome::Done)
}

fn key(args: &Args) -> Result<Option<String>> {
    let key = match &args.api_key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Some(text.lines().next().unwrap_or_default().trim().to_owned())
        }
        None => std::env::var(KEY_VARIABLE).ok(),
    };
    match key {
        Some(key) if key.is_empty() => bail!("the key is empty; give one, or none at all"),
        key => Ok(key),
    }
}
