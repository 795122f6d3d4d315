//! What models are called: `hf:OWNER/REPO`, or `hf:OWNER/REPO:FILE`. Names become paths and addresses, so each part is checked.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The longest part of a path, as file systems have it, with room for what is kept beside a file.
const MAX_PART: usize = 200;

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    /// Whose.
    pub owner: String,
    /// Which.
    pub name: String,
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}/{}", self.owner, self.name)
    }
}

/// A repository, and which of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The repository.
    pub repo: Repo,
    /// A path in it, its parts separated by `/`; `None` for its only model.
    pub file: Option<String>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:{file}", self.repo),
            None => self.repo.fmt(f),
        }
    }
}

impl Name {
    /// Whether a text means to be such a name.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("hf:")
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::Name { name: text.escape_debug().to_string(), problem: problem.to_owned() };
        let rest = text.strip_prefix("hf:").ok_or_else(|| wrong("does not begin with hf:"))?;
        let (repo, file) = match rest.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let (owner, name) = repo.split_once('/').ok_or_else(|| wrong("no `/` between owner and repository"))?;
        for part in [owner, name] {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if !is_part(part) || !part.chars().all(plain) {
                return Err(wrong("owners and repositories have letters, digits, `-`, `_` and `.`"));
            }
        }
        if let Some(file) = file {
            if !is_path(file) {
                return Err(wrong("the file is no path inside a repository"));
            }
            if !file.ends_with(".gguf") {
                return Err(wrong("the file is no .gguf"));
            }
        }
        let repo = Repo { owner: owner.to_owned(), name: name.to_owned() };
        Ok(Self { repo, file: file.map(str::to_owned) })
    }
}

/// Whether a text is a path below a folder on every system: no part goes up, none is hidden, none means something else.
pub(crate) fn is_path(text: &str) -> bool {
    text.split('/').count() <= 8 && text.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '%');
    let hidden = part.starts_with('.') || part.ends_with(['.', ' ']);
    !part.is_empty() && part.len() <= MAX_PART && !hidden && !part.contains(odd) && !part.starts_with([' ', '-', '~'])
}

/// The name of a file of a split model: `STEM-00002-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitName<'a> {
    /// What the files' names have in common.
    pub stem: &'a str,
    /// Which, from 1.
    pub number: u32,
    /// Of how many.
    pub count: u32,
}

impl<'a> SplitName<'a> {
    /// Of a file's path, if it is one.
    pub fn of(file: &'a str) -> Option<Self> {
        let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let five = |digits: &str| {
            let all = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            all.then(|| digits.parse::<u32>().ok()).flatten()
        };
        let (number, count) = (five(number)?, five(count)?);
        (1 <= number && number <= count).then_some(Self { stem, number, count })
    }

    /// The name of one of the files.
    pub fn file(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for text in ["hf:o/r", "hf:bartowski/Phi-4-mini_x.y:a b.gguf", "hf:o/r:Q4/x-00001-of-00002.gguf"] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_no_name() {
        for text in [
            "o/r",
            "hf:",
            "hf:o",
            "hf:/r",
            "hf:o/",
            "hf:o/r/s",
            "hf:../r",
            "hf:o/..",
            "hf:o/r?x",
            "hf:o/r:",
            "hf:o/r:x.bin",
            "hf:o/r:../x.gguf",
            "hf:o/r:a/../../x.gguf",
            "hf:o/r:/etc/x.gguf",
            "hf:o/r:a//x.gguf",
            "hf:o/r:.x.gguf",
            "hf:o/r:a\\x.gguf",
            "hf:o/r:C:x.gguf",
            "hf:o/r:a\u{1b}[2Jx.gguf",
            "hf:o/r:a\nx.gguf",
            "hf:o/r:%2e%2e/x.gguf",
        ] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/REPO") && !error.contains(['\u{1b}', '\n']), "{error}");
        }
        assert!(format!("hf:o/r:{}.gguf", "x".repeat(300)).parse::<Name>().is_err());
    }

    #[test]
    fn parts_of_split_models_are_known_by_name() {
        let name = SplitName::of("Q8/m-00002-of-00013.gguf").unwrap();
        assert_eq!((name.stem, name.number, name.count), ("Q8/m", 2, 13));
        assert_eq!(name.file(1), "Q8/m-00001-of-00013.gguf");
        for other in
            ["m.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf", "m-00001-of-00002.bin"]
        {
            assert_eq!(SplitName::of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn a_name_never_leaves_its_folder(text in "hf:[a-z./\\\\:]{1,12}(/[a-z.]{0,5})?(:[a-z./\\\\]{0,12}(\\.gguf)?)?") {
            if let Ok(name) = text.parse::<Name>() {
                let path = std::path::Path::new(&name.repo.owner).join(&name.repo.name).join(name.file.unwrap_or_default());
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
