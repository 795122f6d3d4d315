//! What people see while a command works: remarks and progress on stderr, never in the way of results on stdout.

use std::fmt::Display;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How talkative the program is.
pub struct Ui {
    quiet: bool,
}

impl Ui {
    /// `quiet` silences everything but results and errors.
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// A remark.
    pub fn say(&self, message: impl Display) {
        if !self.quiet {
            eprintln!("{message}");
        }
    }

    /// A bar over `total` bytes; drawn on a terminal only.
    pub fn bytes(&self, total: u64) -> Bar {
        let style = "{msg:24!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        self.bar(total, style)
    }

    /// A bar over `total` steps.
    pub fn steps(&self, total: u64) -> Bar {
        self.bar(total, "{msg:24!} {wide_bar} {pos}/{len} {eta}")
    }

    fn bar(&self, total: u64, style: &str) -> Bar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        bar.set_style(ProgressStyle::with_template(style).expect("a template of this file"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }
}

/// A progress bar that vanishes when dropped.
pub struct Bar(ProgressBar);

impl Bar {
    /// That much more is done.
    pub fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// So much is there to begin with, and says nothing about the rate.
    pub fn begins_at(&self, done: u64) {
        self.0.set_position(done);
        self.0.reset_eta();
    }

    /// What is being worked on.
    pub fn doing(&self, what: impl Display) {
        self.0.set_message(what.to_string());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl anemone_lower::Progress for Bar {
    fn part(&self, path: &str) {
        self.doing(path);
    }

    fn wrote(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

/// Bytes for people: `1.43 GiB`.
pub fn bytes(n: u64) -> impl Display {
    HumanBytes(n)
}

/// Prints a result as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows under a header, columns as wide as they need to be; numbers are the caller's text.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([header[i].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect::<Vec<_>>().join("  ");
        println!("{}", padded.trim_end());
    };
    line(header.to_vec());
    line(
        widths
            .iter()
            .map(|&w| &"--------------------------------------------------------------------------------"[..w.min(80)])
            .collect(),
    );
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}
