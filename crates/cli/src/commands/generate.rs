//! `anemone generate`: one answer, or a file of them.

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anemone_chat::generate::{Answer, Finish, generate};
use anemone_chat::{Conversation, Message, Prompt};
use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Parser};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;
use crate::options::RuntimeArgs;
use crate::speak::{LimitArgs, SamplingArgs, Speaker, SpeculationArgs, question};
use crate::ui::Ui;

/// Answer one prompt, or a file of them.
#[derive(Parser)]
#[command(group = ArgGroup::new("what").required(true).args(["prompt", "messages", "ids", "batch"]))]
#[command(
    after_help = "Each line of a --batch file has `id` and either `messages` or `ids`, and may have `max_tokens`; each line of the \
    result repeats `id` and has `prompt_ids`, `ids` (the stop token included), `text`, `finish` and `timings`.

Example: anemone generate phi4-mini.anemone --prompt 'write hello world in Erlang' --greedy"
)]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// A question, put through the chat template.
    #[arg(long)]
    pub prompt: Option<String>,
    /// A system prompt before --prompt.
    #[arg(long, requires = "prompt")]
    pub system: Option<String>,
    /// Continue --prompt as plain text, without the template.
    #[arg(long, requires = "prompt", conflicts_with = "system")]
    pub raw: bool,
    /// A JSON file with a list of messages, each with `role` and `content`.
    #[arg(long)]
    pub messages: Option<PathBuf>,
    /// Token ids.
    #[arg(long, value_delimiter = ',')]
    pub ids: Vec<u32>,
    /// A file of requests, one JSON object a line.
    #[arg(long)]
    pub batch: Option<PathBuf>,
    /// Print one JSON object instead of the text.
    #[arg(long)]
    pub json: bool,
    /// With --json or --batch: add the logits after the prompt.
    #[arg(long)]
    pub logits: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

/// One line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Value,
    messages: Option<Vec<Message>>,
    ids: Option<Vec<u32>>,
    max_tokens: Option<usize>,
}

struct Request {
    id: Value,
    prompt: Prompt,
    max_tokens: Option<usize>,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    args.sampling.sampler()?;
    let speaker =
        args.speculation.apply(Speaker::open(&args.bundle, &args.runtime, ui)?, &args.bundle, &args.runtime, ui)?;
    match &args.batch {
        Some(path) => batch(&args, &speaker, path, ui)?,
        None => one(&args, &speaker, ui)?,
    }
    Ok(Outcome::Done)
}

fn one(args: &Args, speaker: &Speaker, ui: &Ui) -> Result<()> {
    let prompt = prompt(args, speaker)?;
    let mut out = std::io::stdout().lock();
    let mut shown = Ok(());
    let answer = answer(args, speaker, &prompt, args.limits.max_tokens, &mut |piece| {
        if !args.json {
            shown = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
        }
        if shown.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    shown?;
    if args.json {
        writeln!(out, "{}", report(None, &prompt, &answer, args.logits))?;
        return Ok(());
    }
    writeln!(out)?;
    let t = &answer.timings;
    let drafted = match t.drafted_tokens {
        0 => String::new(),
        n => format!(", {} of {n} drafted ones kept", t.accepted_tokens),
    };
    let ended = match answer.finish {
        Finish::Context => "; the context is full, and the answer cut: build with a larger --context",
        Finish::Length => "; cut at --max-tokens",
        Finish::Stop | Finish::Cancelled => "",
    };
    ui.say(format_args!(
        "{} prompt tokens at {:.0}/s, {} tokens at {:.1}/s{drafted}{ended}",
        t.prompt_tokens,
        t.prompt_rate(),
        t.generated_tokens,
        t.decode_rate()
    ));
    Ok(())
}

fn prompt(args: &Args, speaker: &Speaker) -> Result<Prompt> {
    if let Some(text) = &args.prompt {
        return match args.raw || speaker.voice.template.is_none() {
            true => Ok(speaker.voice.text(text)),
            false => Ok(speaker.voice.prompt(&question(args.system.as_deref(), text))?),
        };
    }
    if let Some(path) = &args.messages {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let messages: Vec<Message> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        return Ok(speaker.voice.prompt(&Conversation::new(messages))?);
    }
    from_ids(speaker, args.ids.clone())
}

fn from_ids(speaker: &Speaker, ids: Vec<u32>) -> Result<Prompt> {
    if ids.is_empty() {
        bail!("a prompt needs at least one token id");
    }
    let text = speaker.voice.tokenizer.decode(&ids, anemone_chat::Control::Show)?;
    Ok(Prompt { text, ids })
}

/// Reads and checks every line before the first is answered, then answers them in order.
fn batch(args: &Args, speaker: &Speaker, path: &Path, ui: &Ui) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut requests = Vec::new();
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| path.display().to_string())?;
        if !line.trim().is_empty() {
            requests.push(request(speaker, &line).with_context(|| format!("{} line {}", path.display(), n + 1))?);
        }
    }
    let bar = ui.steps(requests.len() as u64);
    bar.doing("answering");
    for request in &requests {
        let answer = answer(args, speaker, &request.prompt, request.max_tokens, &mut |_| ControlFlow::Continue(()))
            .with_context(|| format!("request {}", request.id))?;
        writeln!(std::io::stdout(), "{}", report(Some(&request.id), &request.prompt, &answer, args.logits))?;
        bar.advance(1);
    }
    Ok(())
}

fn request(speaker: &Speaker, line: &str) -> Result<Request> {
    let Line { id, messages, ids, max_tokens } = serde_json::from_str(line)?;
    let prompt = match (messages, ids) {
        (Some(messages), None) => speaker.voice.prompt(&Conversation::new(messages))?,
        (None, Some(ids)) => from_ids(speaker, ids)?,
        _ => bail!("expected either `messages` or `ids`"),
    };
    Ok(Request { id, prompt, max_tokens })
}

fn answer(
    args: &Args,
    speaker: &Speaker,
    prompt: &Prompt,
    max_tokens: Option<usize>,
    listen: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Answer> {
    let mut session = speaker.engine.session()?;
    let mut sampler = args.sampling.sampler()?;
    let limits = args.limits.limits(max_tokens);
    Ok(generate(&mut session, &speaker.voice.tokenizer, &prompt.ids, &mut sampler, &limits, listen)?)
}

fn report(id: Option<&Value>, prompt: &Prompt, answer: &Answer, logits: bool) -> Value {
    let mut value = json!({
        "prompt_ids": prompt.ids,
        "ids": answer.ids,
        "text": answer.text,
        "finish": answer.finish,
        "timings": answer.timings,
    });
    if let Some(id) = id {
        value["id"] = id.clone();
    }
    if logits {
        value["logits"] = json!(answer.first_logits);
    }
    value
}
