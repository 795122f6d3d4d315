//! What is typed: lines, several of them where asked for, edited and remembered on a terminal.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::cache;

/// Opens and closes a text of several lines.
const QUOTES: &str = "\"\"\"";

/// Where messages come from.
pub enum Input {
    /// A terminal, with the file that remembers.
    Terminal(Box<DefaultEditor>, Option<PathBuf>),
    /// Anything else.
    Plain(std::io::Lines<std::io::StdinLock<'static>>),
}

impl Input {
    /// Of this process.
    pub fn new() -> Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Input::Plain(std::io::stdin().lines()));
        }
        let mut editor = DefaultEditor::new()?;
        let memory = cache::home().ok().map(|home| home.join("chat_history"));
        if let Some(path) = &memory {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Input::Terminal(Box::new(editor), memory))
    }

    /// The next message: a line, lines that each end with a backslash and the one behind them, or what stands between lines of
    /// three quotes. `None` at the end of input. An interrupt throws away what is being typed.
    pub fn message(&mut self) -> Result<Option<String>> {
        loop {
            match self.whole()? {
                Typed::Text(text) => {
                    self.remember(text.trim_end());
                    return Ok(Some(text));
                }
                Typed::Interrupt => {}
                Typed::End => return Ok(None),
            }
        }
    }

    fn whole(&mut self) -> Result<Typed> {
        let mut line = match self.line("> ")? {
            Typed::Text(line) => line,
            other => return Ok(other),
        };
        let mut text = String::new();
        if line.trim() == QUOTES {
            loop {
                match self.line(". ")? {
                    Typed::Text(line) if line.trim() != QUOTES => text.push_str(&(line + "\n")),
                    Typed::Text(_) | Typed::End => return Ok(Typed::Text(text)),
                    Typed::Interrupt => return Ok(Typed::Interrupt),
                }
            }
        }
        while let Some(start) = line.strip_suffix('\\') {
            text.push_str(start);
            text.push('\n');
            line = match self.line(". ")? {
                Typed::Text(line) => line,
                Typed::End => String::new(),
                Typed::Interrupt => return Ok(Typed::Interrupt),
            };
        }
        Ok(Typed::Text(text + &line))
    }

    fn line(&mut self, prompt: &str) -> Result<Typed> {
        match self {
            Input::Plain(lines) => Ok(lines.next().transpose()?.map_or(Typed::End, Typed::Text)),
            Input::Terminal(editor, _) => match editor.readline(prompt) {
                Ok(line) => Ok(Typed::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Typed::Interrupt),
                Err(ReadlineError::Eof) => Ok(Typed::End),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// Whole messages are remembered, so that one of many lines comes back as one.
    fn remember(&mut self, text: &str) {
        if let Input::Terminal(editor, memory) = self {
            // A history that cannot be kept is no reason to stop talking.
            let _ = editor.add_history_entry(text);
            if let Some(path) = memory {
                let _ = path.parent().map(std::fs::create_dir_all);
                let _ = editor.save_history(path);
            }
        }
    }
}

/// What came of asking for a line, or for a message.
enum Typed {
    Text(String),
    Interrupt,
    End,
}
