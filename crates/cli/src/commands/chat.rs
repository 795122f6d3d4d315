//! `anemone chat`: a conversation in the terminal.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anemone_chat::generate::{Finish, generate};
use anemone_chat::{Conversation, Message};
use anyhow::{Context, Result};
use clap::Parser;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::Outcome;
use crate::options::RuntimeArgs;
use crate::speak::{LimitArgs, SamplingArgs, Speaker};
use crate::ui::Ui;

/// Converse in the terminal. An interrupt stops the answer, not the program; end of input leaves.
#[derive(Parser)]
#[command(after_help = "Inside: /reset forgets the conversation, /quit leaves.

Example: anemone chat phi4-mini.anemone --system 'Answer briefly.'")]
pub struct Args {
    /// The bundle.
    pub bundle: PathBuf,
    /// A system prompt.
    #[arg(long)]
    pub system: Option<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

pub fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let speaker = Speaker::open(&args.bundle, &args.runtime, ui)?;
    let mut sampler = args.sampling.sampler()?;
    let limits = args.limits.limits(None);
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)).context("cannot listen for interrupts")?;
    let system: Vec<Message> = args.system.iter().map(|s| Message::new("system", s)).collect();
    let mut messages = system.clone();
    let mut input = Input::new()?;
    if std::io::stdin().is_terminal() {
        let m = speaker.engine.manifest();
        ui.say(format_args!(
            "{} ({} weights, context {}). /quit leaves.",
            m.name, m.contract.weights, m.contract.context
        ));
    }
    while let Some(line) = input.next()? {
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => {
                messages.clone_from(&system);
                continue;
            }
            command if command.starts_with('/') => {
                ui.say(format_args!("no command `{command}`: there are /reset and /quit"));
                continue;
            }
            _ => {}
        }
        messages.push(Message::new("user", &line));
        let answer = speaker.voice.prompt(&Conversation::new(messages.clone())).and_then(|prompt| {
            let mut session = speaker.engine.session()?;
            interrupted.store(false, Ordering::Relaxed);
            let mut listen = |piece: &str| {
                print!("{piece}");
                let shown = std::io::stdout().flush();
                if shown.is_err() || interrupted.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            };
            generate(&mut session, &speaker.voice.tokenizer, &prompt.ids, &mut sampler, &limits, &mut listen)
        });
        match answer {
            Ok(answer) => {
                println!();
                let t = &answer.timings;
                let ended = match answer.finish {
                    Finish::Stop => "",
                    Finish::Length => ", cut at --max-tokens",
                    Finish::Context => ", the context is full: /reset to go on",
                    Finish::Cancelled => ", stopped",
                };
                ui.say(format_args!("[{} tokens, {:.1}/s{ended}]", t.generated_tokens, t.decode_rate()));
                messages.push(Message::new("assistant", &answer.text));
            }
            // A turn that cannot be answered is taken back; the conversation goes on.
            Err(e) => {
                messages.pop();
                eprintln!("error: {e}");
            }
        }
    }
    Ok(Outcome::Done)
}

/// Lines: edited and remembered on a terminal, plain otherwise.
enum Input {
    Terminal(Box<DefaultEditor>),
    Plain(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    fn new() -> Result<Self> {
        Ok(match std::io::stdin().is_terminal() {
            true => Input::Terminal(Box::new(DefaultEditor::new()?)),
            false => Input::Plain(std::io::stdin().lines()),
        })
    }

    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Input::Plain(lines) => Ok(lines.next().transpose()?),
            Input::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
            },
        }
    }
}
