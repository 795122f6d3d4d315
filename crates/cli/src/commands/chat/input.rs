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
    /// three quotes. `None` at the end of input.
    pub fn message(&mut self) -> Result<Option<String>> {
        let Some(first) = self.line("> ")? else { return Ok(None) };
        let mut text = String::new();
        if first.trim() == QUOTES {
            while let Some(line) = self.line(". ")?.filter(|line| line.trim() != QUOTES) {
                text.push_str(&line);
                text.push('\n');
            }
            return Ok(Some(text));
        }
        let mut line = first;
        while let Some(start) = line.strip_suffix('\\') {
            text.push_str(start);
            text.push('\n');
            line = self.line(". ")?.unwrap_or_default();
        }
        Ok(Some(text + &line))
    }

    fn line(&mut self, prompt: &str) -> Result<Option<String>> {
        match self {
            Input::Plain(lines) => Ok(lines.next().transpose()?),
            Input::Terminal(editor, memory) => loop {
                match editor.readline(prompt) {
                    Ok(line) => {
                        let _ = editor.add_history_entry(&line);
                        if let Some(path) = memory {
                            let _ = path.parent().map(std::fs::create_dir_all);
                            let _ = editor.save_history(path);
                        }
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
