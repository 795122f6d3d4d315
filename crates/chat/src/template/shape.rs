//! How deep a template may nest, seen from its tokens alone. Parsers and compilers recurse; one that a template can make recurse
//! without end ends the process instead. So before a template is parsed, its tags are counted: tokens within a tag bound the depth
//! of its expression, and tags that open a block bound the depth of statements.

use minijinja::machinery::{Token, tokenize};

use super::{WHITESPACE, describe};
use crate::Error;

/// Most tokens of one tag. The longest of published templates has some 300.
const MAX_TOKENS: usize = 1000;
/// Most blocks open at once, an `elif` counted as one inside its `if`. Published templates reach 20.
const MAX_DEPTH: usize = 60;
/// Most macros. Published templates have some 10.
const MAX_MACROS: usize = 100;

/// # Errors
/// A template that cannot be cut into tokens, or is deeper than any real one.
pub(super) fn check(source: &str) -> Result<(), Error> {
    let mut tag: Vec<Token<'_>> = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let mut macros = 0;
    for token in tokenize(source, false, Default::default(), WHITESPACE) {
        let (token, span) = token.map_err(|e| Error::Template(describe(&e)))?;
        let too = |what: String| Err(Error::Template(format!("line {}: {what}", span.start_line)));
        match token {
            Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::BlockEnd => {
                match tag.first() {
                    Some(&Token::Ident(word)) if word.starts_with("end") => {
                        let opener = open.iter().rposition(|o| *o == &word[3..]);
                        open.truncate(opener.unwrap_or(open.len()));
                    }
                    // An assignment is no block; without `=` it captures one.
                    Some(Token::Ident("set")) if tag.iter().any(|t| matches!(t, Token::Assign)) => {}
                    Some(Token::Ident(
                        "else" | "break" | "continue" | "do" | "include" | "import" | "from" | "extends",
                    )) => {}
                    Some(&Token::Ident(word)) => {
                        macros += usize::from(matches!(word, "macro" | "call"));
                        open.push(word);
                    }
                    _ => {}
                }
                if open.len() > MAX_DEPTH {
                    return too(format!("more than {MAX_DEPTH} blocks inside each other"));
                }
                if macros > MAX_MACROS {
                    return too(format!("more than {MAX_MACROS} macros"));
                }
            }
            token => tag.push(token),
        }
        if tag.len() > MAX_TOKENS {
            return too(format!("more than {MAX_TOKENS} tokens in one tag"));
        }
    }
    Ok(())
}
