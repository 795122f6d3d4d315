//! Pre-tokenizers: how a text falls into the words inside which merges happen.
//!
//! A model's pre-tokenizer is one or more patterns, applied one after another: each cuts what the one before left into its matches
//! and what lies between them. The patterns are facts of the models, as their published `tokenizer.json` has them; GGUF carries only
//! a name for them, so this file is the table from name to patterns. A name that is not here is an error: with the wrong cuts a
//! model still answers, and answers worse.
//!
//! The patterns are written for engines with look-ahead, but use it in one way only: a run of white space before a word leaves its
//! last character to the word (`\s+(?!\S)`). Such engines backtrack, and give up, or slow down, on texts made for it; a prompt comes
//! from anyone. So the tail of a pattern is recognised and done by hand ([`Tail`]), and what remains runs on finite automata:
//! time is linear in the text whatever it holds.

use regex_automata::meta::{Config, Regex};
use regex_automata::{Input, util::syntax};

use crate::Error;

/// What a name in `tokenizer.ggml.pre` stands for.
pub(super) struct PreTokenizer {
    /// The names that models' files use for it.
    names: &'static [&'static str],
    /// The patterns, in order of application.
    pub patterns: &'static [&'static str],
    /// A word that is a token stays whole, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether a text begins with the begin-of-sequence token where the file does not say.
    pub add_bos: bool,
}

/// GPT-2's: English contractions, words, numbers and signs, each with the one space before it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// cl100k's: contractions of either case, numbers of at most three digits, line ends apart.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// And with combining marks counted as letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// o200k's: a word also ends where lower case turns to upper.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's: o200k's without contractions, digits one by one.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// DeepSeek V3's last pattern: an ASCII sign sticks to the ASCII word after it.
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// DeepSeek LLM's cased letters, as its `tokenizer.json` lists them.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// Ideographs and Hangul as DeepSeek's first models cut them.
const DEEPSEEK_CJK: &str = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+";
/// Ideographs and kana as its later ones do.
const DEEPSEEK3_CJK: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";
/// BLOOM's: whatever holds neither space nor sentence mark.
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{964}\x{6d4}\x{60c})]+";
/// Bailing's: contractions of one letter more, single line ends.
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// Seed-Coder's: signs do not swallow line ends.
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What files mean whose converter knew no name for it.
const FALLBACK: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"];

const TABLE: &[PreTokenizer] = &[
    row(&["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"], &[O200K]),
    row(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    row(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[GPT2],
    ),
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    row(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    PreTokenizer { names: &["glm4", "glm5"], patterns: &[LLAMA3], ignore_merges: true, add_bos: false },
    row(
        &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2", "kormo", "f2llmv2"],
        &[QWEN2],
    ),
    row(&["qwen35"], &[QWEN35]),
    row(&["default"], FALLBACK),
    row(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"]),
    row(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}+",
        ],
    ),
    row(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"]),
    row(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", DEEPSEEK3_CJK, DEEPSEEK3]),
    PreTokenizer { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true },
    row(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    row(&["viking"], &[BLOOM, r"\p{N}"]),
    row(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    row(&["seed-coder"], &[SEED_CODER]),
];

/// Gemma 4's model names no pre-tokenizer and has this one: line feeds apart from the rest.
pub(super) const GEMMA4: &[&str] = &[r"[^\n]+|[\n]+"];

const fn row(names: &'static [&'static str], patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, patterns, ignore_merges: false, add_bos: false }
}

/// The table's row for a name.
pub(super) fn find(name: &str) -> Result<&'static PreTokenizer, Error> {
    TABLE.iter().find(|row| row.names.contains(&name)).ok_or_else(|| Error::UnknownPreTokenizer {
        found: name.to_owned(),
        known: TABLE.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", "),
    })
}

/// How a pattern deals with white space that nothing before in it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    /// Not at all.
    None,
    /// `\s+(?!\S)`, then perhaps `\s+`: a run gives its last character to what follows it, unless it has only one. (Without the
    /// second part that one character is a gap between matches, which is a word as well.)
    Run,
}

/// A pattern, ready to run.
#[derive(Clone, Debug)]
struct Pattern {
    source: String,
    /// The alternatives before the tail as pattern 0; the tail's run as pattern 1.
    regex: Regex,
}

/// Patterns of a pre-tokenizer, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Splitter {
    patterns: Vec<Pattern>,
}

impl Splitter {
    /// # Errors
    /// A pattern that is none, or has look-around beyond the usual tail.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, Error> {
        patterns.iter().map(|p| Pattern::new(p.as_ref())).collect::<Result<_, _>>().map(|patterns| Self { patterns })
    }

    /// The patterns as they were given.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(|p| p.source.as_str())
    }

    /// The words of `text`: consecutive, not empty, and together the whole of it.
    pub fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = if text.is_empty() { Vec::new() } else { vec![text] };
        for pattern in &self.patterns {
            let mut finer = Vec::with_capacity(words.len());
            for word in words {
                pattern.split(word, &mut finer);
            }
            words = finer;
        }
        words
    }
}

impl Pattern {
    fn new(source: &str) -> Result<Self, Error> {
        let (head, tail) = match source.strip_suffix(r"|\s+").unwrap_or(source).strip_suffix(r"|\s+(?!\S)") {
            Some(head) => (head, Tail::Run),
            None => (source, Tail::None),
        };
        let alternatives = match tail {
            Tail::None => vec![head],
            Tail::Run => vec![head, r"\s+"],
        };
        // Automata of a whole Unicode class are large; a pattern from a file must not be larger than that.
        let config = Config::new().nfa_size_limit(Some(16 << 20));
        let regex = Regex::builder()
            .configure(config)
            .syntax(syntax::Config::new().nest_limit(64))
            .build_many(&alternatives)
            .map_err(|e| Error::tokenizer("pre_tokenizer", format!("pattern {source:?}: {e}")))?;
        Ok(Self { source: source.to_owned(), regex })
    }

    /// Appends the matches in `text` and what lies between them.
    fn split<'t>(&self, text: &'t str, words: &mut Vec<&'t str>) {
        let (mut at, mut gap) = (0, 0);
        while let Some(found) = self.regex.search(&Input::new(text).range(at..)) {
            let start = found.start();
            let mut end = found.end();
            if found.pattern().as_usize() == 1 && end < text.len() {
                let last = text[..end].char_indices().next_back().map_or(start, |(i, _)| i);
                if last > start {
                    end = last;
                }
            }
            if end == start {
                // An empty match cuts nothing; go on behind the next character.
                let Some(next) = text[end..].chars().next() else { break };
                at = end + next.len_utf8();
                continue;
            }
            if gap < start {
                words.push(&text[gap..start]);
            }
            words.push(&text[start..end]);
            (at, gap) = (end, end);
        }
        if gap < text.len() {
            words.push(&text[gap..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        Splitter::new(find(name).unwrap().patterns).unwrap().split(text)
    }

    #[test]
    fn each_name_stands_in_one_row_and_its_patterns_run() {
        let mut seen = std::collections::BTreeSet::new();
        for row in TABLE {
            for name in row.names {
                assert!(seen.insert(name), "{name} twice");
            }
            Splitter::new(row.patterns).unwrap();
        }
        Splitter::new(GEMMA4).unwrap();
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = find("gpt-5").err().unwrap().to_string();
        assert!(message.contains("`gpt-5`") && message.contains("gpt-4o, ") && message.contains("tekken"), "{message}");
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_word() {
        assert_eq!(words("gpt-2", "a  b\t\tc \n d  "), ["a", " ", " b", "\t", "\t", "c", " \n", " d", "  "]);
        assert_eq!(words("gpt-4o", "x\n\n  y   "), ["x", "\n\n", " ", " y", "   "]);
        assert_eq!(words("llama-bpe", "\u{3000}\u{3000}1"), ["\u{3000}", "\u{3000}", "1"]);
    }

    #[test]
    fn the_models_cut_where_they_are_known_to() {
        assert_eq!(
            words("gpt-4o", "helloWorld's HTTPServer 12345"),
            ["hello", "World's", " HTTPServer", " ", "123", "45"]
        );
        assert_eq!(words("smollm", "in 2024, it's"), ["in", " ", "2", "0", "2", "4", ",", " it", "'s"]);
        assert_eq!(words("qwen2", "I'LL 42"), ["I", "'LL", " ", "4", "2"]);
        assert_eq!(words("deepseek-v3", "x.foo(1234)"), ["x", ".foo", "(", "123", "4", ")"]);
    }

    #[test]
    fn look_ahead_elsewhere_is_refused() {
        let error = Splitter::new(&[r"\d{1,3}(?=(?:\d{3})*\b)"]).err().unwrap();
        assert!(error.to_string().starts_with("tokenizer: pre_tokenizer: pattern"), "{error}");
    }

    /// Every row, compiled once.
    fn splitters() -> &'static [Splitter] {
        static ALL: std::sync::OnceLock<Vec<Splitter>> = std::sync::OnceLock::new();
        ALL.get_or_init(|| TABLE.iter().map(|row| Splitter::new(row.patterns).unwrap()).collect())
    }

    /// The same patterns, look-ahead and all, on a backtracking engine.
    fn backtracking(patterns: &[&str], text: &str) -> Vec<String> {
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
        let mut words = PreTokenizedString::from(text);
        for pattern in patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap().pre_tokenize(&mut words).unwrap();
        }
        let words = words.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().filter(|(word, ..)| !word.is_empty()).map(|(word, ..)| word.to_owned()).collect()
    }

    /// What patterns tell apart: cases, marks, digits, signs, white space of several kinds, contractions.
    const TELLING: &str =
        "([ \\t\\r\\n\u{a0}\u{3000}]{0,4}|[aZ9']{0,4}|[éßǅʰ漢カ한\u{301}²ⅷ!.,/$<|~_]{0,3}|'(s|LL|ſ)){0,8}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn words_are_those_of_a_backtracking_engine(text in TELLING) {
            for (row, splitter) in TABLE.iter().zip(splitters()) {
                prop_assert_eq!(splitter.split(&text), backtracking(row.patterns, &text), "{:?}", row.names);
            }
        }

        #[test]
        fn words_are_the_text(text in any::<String>(), spaced in "[ \t\r\na1'.\u{3000}é漢]{0,40}") {
            for splitter in splitters() {
                for text in [&text, &spaced] {
                    let words = splitter.split(text);
                    prop_assert!(words.iter().all(|w| !w.is_empty()));
                    prop_assert_eq!(&words.concat(), text);
                }
            }
        }
    }
}
