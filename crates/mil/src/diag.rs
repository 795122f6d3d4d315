//! What a reader or validator has to say: collected, each with a stable rule name and the op it is about.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Accepted, but not what our own writer would ever write.
    Warning,
    /// Refused.
    Error,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The rule: a stable kebab-case name.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The function, where it is about one.
    pub function: Option<String>,
    /// The op, where it is about one: its index in the function, and how it prints.
    pub op: Option<(usize, String)>,
    /// What was found, what was expected.
    pub message: String,
}

impl Diagnostic {
    /// A warning about the package as a whole.
    pub(crate) fn warning(rule: &'static str, message: impl Into<String>) -> Self {
        Self { rule, severity: Severity::Warning, function: None, op: None, message: message.into() }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}[{}]", self.rule)?;
        if let Some(function) = &self.function {
            write!(f, " in `{function}`")?;
        }
        if let Some((index, printed)) = &self.op {
            write!(f, ", op {index} `{printed}`")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything a validator found wrong with a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, in the program's order.
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// The findings that made the program refused.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.diagnostics.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            d.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
