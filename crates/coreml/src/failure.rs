//! What Core ML says when it fails, and what is known about it.

use std::fmt;

/// An error of Core ML's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// The error's domain: `com.apple.CoreML`.
    pub domain: String,
    /// The error's code in that domain.
    pub code: i64,
    /// What it says, with what it says of errors beneath it.
    pub text: String,
}

/// Core ML's own domain.
pub const DOMAIN: &str = "com.apple.CoreML";

impl Failure {
    /// What is known about it; `None` where nothing is.
    ///
    /// Core ML tends to wrap the Neural Engine's codes into its generic one and leaves them in the text. What -14 stands for
    /// is nowhere documented: the explanation is what those who met it found to help (coremltools issues 2325 and 2553,
    /// executorch issue 19635).
    pub fn explanation(&self) -> Option<&'static str> {
        if self.code == -14 || mentions(&self.text, -14) {
            return Some(
                "the Neural Engine did not take the program: it is too large, or too many are loaded at once. Build with \
                 more shards (`--topology`, `--layers-per-shard`), or end other programs that hold models",
            );
        }
        if self.domain != DOMAIN {
            return None;
        }
        match self.code {
            1 => Some("an array has not the shape or type that the model asks for"),
            3 => Some("Core ML could not read the compiled package: the disk may be full or the cache damaged"),
            11 => Some("the prediction was cancelled"),
            _ => None,
        }
    }
}

/// Whether a text names this code as a number of its own: -14, not -140 or x-14.
fn mentions(text: &str, code: i64) -> bool {
    let code = code.to_string();
    text.match_indices(&code).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + code.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(|c| c.is_ascii_digit())
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Core ML failed ({} {}): {}", self.domain, self.code, self.text)?;
        match self.explanation() {
            Some(known) => write!(f, "; {known}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_that_everybody_meets_is_explained_wherever_it_stands() {
        let failure = |code, text: &str| Failure { domain: DOMAIN.to_owned(), code, text: text.to_owned() };
        let wrapped = failure(0, "Failed to build the model execution plan with error code: -14.");
        assert!(wrapped.to_string().contains("com.apple.CoreML 0") && wrapped.to_string().contains("more shards"));
        assert!(failure(-14, "").explanation().is_some());
        for other in ["error code: -140", "build 3-14", "error code: -1"] {
            assert_eq!(failure(0, other).explanation(), None, "{other}");
        }
        let foreign = Failure { domain: "NSCocoaErrorDomain".to_owned(), code: 3, text: String::new() };
        assert_eq!(foreign.explanation(), None);
    }
}
