//! Answers on a terminal: code in colour, its fences faint, headings and bold as such. Elsewhere every byte is as it came.

use std::io::{IsTerminal, Write};

const CODE: &str = "\x1b[36m";
const FAINT: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Shows text as it comes.
pub struct Shown<W> {
    out: W,
    styled: bool,
    /// A line that may still turn out to be a fence or a heading.
    line: String,
    in_code: bool,
    /// Whether the current line is beyond doubt and goes out as it comes.
    flowing: bool,
}

impl Shown<std::io::Stdout> {
    /// On stdout.
    pub fn stdout() -> Self {
        Self::new(std::io::stdout(), std::io::stdout().is_terminal())
    }
}

impl<W: Write> Shown<W> {
    /// On `out`, with styles or without.
    pub fn new(out: W, styled: bool) -> Self {
        Self { out, styled, line: String::new(), in_code: false, flowing: false }
    }

    /// The next piece.
    pub fn push(&mut self, piece: &str) -> std::io::Result<()> {
        if !self.styled {
            self.out.write_all(piece.as_bytes())?;
            return self.out.flush();
        }
        for part in piece.split_inclusive('\n') {
            self.line.push_str(part);
            if part.ends_with('\n') {
                self.end_line()?;
            } else if self.flowing || !may_be_markup(&self.line) {
                // Bold is a matter of whole lines; what flows is shown as it is.
                let style = if self.in_code { CODE } else { PLAIN };
                write!(self.out, "{style}{}{PLAIN}", std::mem::take(&mut self.line))?;
                self.flowing = true;
            }
        }
        self.out.flush()
    }

    /// The end of the answer.
    pub fn finish(&mut self) -> std::io::Result<()> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        (self.in_code, self.flowing) = (false, false);
        writeln!(self.out)?;
        self.out.flush()
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        let line = std::mem::take(&mut self.line);
        let fence = !self.flowing && line.trim_start().starts_with("```");
        let heading = !self.flowing && !self.in_code && line.starts_with('#');
        let style = match () {
            () if fence => FAINT,
            () if self.in_code => CODE,
            () if heading => BOLD,
            () => PLAIN,
        };
        self.in_code ^= fence;
        self.flowing = false;
        let text = line.trim_end_matches('\n');
        write!(self.out, "{style}{text}{PLAIN}{}", &line[text.len()..])
    }
}

/// Whether a line with this beginning may be a fence or a heading.
fn may_be_markup(start: &str) -> bool {
    let start = start.trim_start_matches(' ');
    start.is_empty() || start.starts_with('#') || "```".starts_with(start) || start.starts_with("```")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(styled: bool, pieces: &[&str]) -> String {
        let mut out = Vec::new();
        let mut shown = Shown::new(&mut out, styled);
        pieces.iter().for_each(|p| shown.push(p).unwrap());
        shown.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn without_a_terminal_every_byte_is_as_it_came() {
        assert_eq!(shown(false, &["# a\n`", "``x\n", "b", "\n```"]), "# a\n```x\nb\n```\n");
    }

    #[test]
    fn fences_are_found_however_they_come_in_pieces() {
        let whole = shown(true, &["a\n```erlang\nmain(_) -> ok.\n```\nb"]);
        let pieces: Vec<String> = "a\n```erlang\nmain(_) -> ok.\n```\nb".chars().map(String::from).collect();
        let pieces = shown(true, &pieces.iter().map(String::as_str).collect::<Vec<_>>());
        let plain = |s: &str| [CODE, FAINT, BOLD, PLAIN].iter().fold(s.to_owned(), |s, style| s.replace(style, ""));
        assert_eq!(plain(&whole), plain(&pieces));
        assert_eq!(plain(&whole), "a\n```erlang\nmain(_) -> ok.\n```\nb\n");
        for text in [&whole, &pieces] {
            assert!(text.contains(&format!("{FAINT}```erlang{PLAIN}")), "{text:?}");
            assert!(text.contains(CODE), "{text:?}");
        }
        assert!(whole.contains(&format!("{CODE}main(_) -> ok.{PLAIN}")), "{whole:?}");
    }
}
