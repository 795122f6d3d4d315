//! `anemone chat`: a conversation in the terminal.

mod input;
mod shown;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anemone_chat::generate::{Answer, Finish, Limits, generate};
use anemone_chat::{Conversation, Message, Pool, Sampler};
use anyhow::{Context, Result, bail};
use clap::Parser;

use self::input::Input;
use self::shown::Shown;
use crate::options::RuntimeArgs;
use crate::speak::{LimitArgs, SamplingArgs, Speaker, SpeculationArgs};
use crate::ui::{self, Ui};
use crate::{Outcome, cache, output};

/// Converse in the terminal. An interrupt stops the answer, not the program; end of input leaves.
#[derive(Parser)]
#[command(after_help = "A GGUF in place of a bundle is built into the cache first, and starts at once the next time.

Inside: /system TEXT, /retry, /reset, /save FILE, /load FILE, /stats, /help, /quit. A line that ends with a backslash goes on; a line of \
three quotes begins and ends a text of many lines.

Example: anemone chat phi4-mini.anemone --system 'Answer briefly.'")]
pub struct Args {
    /// The bundle, or a GGUF: a file, or hf:OWNER/REPO[:FILE] if it was pulled.
    pub bundle: PathBuf,
    /// A system prompt.
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

const HELP: &str = "/system TEXT  a system prompt from here on; without a text, none
/retry        another answer to the last question
/reset        forget the conversation
/save FILE    write it as JSON, which `generate --messages` reads too
/load FILE    go on with one that was saved
/stats        tokens, speed and how full the context is
/quit         leave, as the end of input does";

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let bundle = cache::bundle(&args.bundle, &args.runtime, ui)?;
    let speaker = args.speculation.apply(Speaker::open(&bundle, &args.runtime, ui)?, &bundle, &args.runtime, ui)?;
    speaker.warm_up(ui)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot listen for interrupts")?;
    let mut talk = Talk {
        speaker: &speaker,
        // One conversation: one session, which each turn goes on with.
        pool: Pool::new(&speaker.engine, 0),
        sampler: args.sampling.sampler()?,
        limits: args.limits.limits(None),
        interrupted,
        system: args.system,
        messages: Vec::new(),
        last: None,
        ui,
    };
    let mut input = Input::new()?;
    if std::io::stdin().is_terminal() {
        let m = speaker.engine.manifest();
        ui.say(format_args!(
            "{} ({} weights, context {}). /help tells what can be done, /quit leaves.",
            m.name, m.contract.weights, m.contract.context
        ));
    }
    while let Some(text) = input.message()? {
        let trimmed = text.trim();
        let (command, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let done = match command {
            "" => Ok(()),
            "/quit" | "/exit" => break,
            command if command.starts_with('/') => talk.command(command, rest.trim()),
            _ => talk.ask(&text),
        };
        // What cannot be done is said, and the conversation goes on.
        if let Err(error) = done {
            eprintln!("error: {error:#}");
        }
    }
    Ok(Outcome::Done)
}

/// A conversation and what it is had with.
struct Talk<'s> {
    speaker: &'s Speaker,
    pool: Pool<'s>,
    sampler: Sampler,
    limits: Limits,
    interrupted: Arc<AtomicBool>,
    system: Option<String>,
    messages: Vec<Message>,
    last: Option<(Answer, usize)>,
    ui: &'s Ui,
}

impl Talk<'_> {
    fn command(&mut self, command: &str, rest: &str) -> Result<()> {
        match command {
            "/help" => self.ui.say(HELP),
            "/system" => self.system = Some(rest.to_owned()).filter(|text| !text.is_empty()),
            "/reset" => self.messages.clear(),
            "/retry" => {
                let question = self.messages.iter().rposition(|m| m.role == "user").context("nothing was asked yet")?;
                let before = self.messages.clone();
                self.messages.truncate(question + 1);
                self.answer().inspect_err(|_| self.messages = before)?;
            }
            "/save" => self.save(file(rest)?)?,
            "/load" => self.load(file(rest)?)?,
            "/stats" => self.stats(),
            _ => bail!("no command `{command}`; /help lists them"),
        }
        Ok(())
    }

    fn ask(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new("user", text));
        // A turn that cannot be answered is taken back.
        self.answer().inspect_err(|_| drop(self.messages.pop()))
    }

    /// Answers what was said last.
    fn answer(&mut self) -> Result<()> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let conversation = Conversation::new(system.chain(self.messages.iter().cloned()).collect());
        let prompt = self.speaker.voice.prompt(&conversation)?;
        let mut session = self.pool.lease(&prompt.ids)?.context("the one session is taken")?;
        let reused = session.reused();
        self.interrupted.store(false, Ordering::Relaxed);
        let mut shown = Shown::stdout();
        let mut listen = |piece: &str| match shown.push(piece) {
            Ok(()) if !self.interrupted.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let tokenizer = &self.speaker.voice.tokenizer;
        let answer = generate(&mut session, tokenizer, &prompt.ids, &mut self.sampler, &self.limits, &mut listen)?;
        shown.finish()?;
        let ended = match answer.finish {
            Finish::Stop => "",
            Finish::Length => ", cut at --max-tokens",
            Finish::Context => ", the context is full: /reset to go on",
            Finish::Cancelled => ", stopped",
        };
        let (t, context) = (&answer.timings, self.speaker.engine.contract().context);
        let used = prompt.ids.len() + answer.ids.len();
        self.ui.say(format_args!(
            "[{} tokens, {:.1}/s{ended}; context {}%]",
            t.generated_tokens,
            t.decode_rate(),
            used * 100 / context
        ));
        self.messages.push(Message::new("assistant", &answer.text));
        self.last = Some((answer, reused));
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let text = serde_json::to_string_pretty(&messages)?;
        output::write(path, &text)?;
        self.ui.say(format_args!("{}: {} messages", path.display(), messages.len()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut messages: Vec<Message> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        // The system prompt goes where /system can change it.
        self.system = match messages.first() {
            Some(m) if m.role == "system" => messages.remove(0).content.as_str().map(str::to_owned),
            _ => None,
        };
        self.ui.say(format_args!("{}: {} messages", path.display(), messages.len()));
        self.messages = messages;
        Ok(())
    }

    fn stats(&self) {
        let (engine, context) = (&self.speaker.engine, self.speaker.engine.contract().context);
        self.ui.say(format_args!("{} messages; caches of {} for {context} positions", self.messages.len(), {
            ui::bytes(engine.session_bytes() as u64)
        }));
        if let Some((answer, reused)) = &self.last {
            let t = &answer.timings;
            self.ui.say(format_args!(
                "last answer: {reused} tokens were kept, {} computed at {:.0}/s, {} drawn at {:.1}/s, {} of {} drafted ones kept",
                t.prompt_tokens,
                t.prompt_rate(),
                t.generated_tokens,
                t.decode_rate(),
                t.accepted_tokens,
                t.drafted_tokens
            ));
        }
    }
}

fn file(rest: &str) -> Result<&Path> {
    match rest {
        "" => bail!("which file?"),
        path => Ok(Path::new(path)),
    }
}
