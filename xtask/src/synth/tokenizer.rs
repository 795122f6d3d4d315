//! A byte-level BPE tokenizer of any size, learned from words that nobody speaks.
//!
//! A merge is taken only where encoding its text with the merges before it ends in exactly its two parts. That is what
//! learning from real text guarantees, and it makes every token reachable: an encoder that meets the token's text arrives
//! at the two parts before any later merge may interfere.

use std::collections::{BTreeSet, HashMap};

use anemone_gguf::writer::Writer;

use super::random::{self, Random};

/// Ids behind the ordinary tokens: control tokens of Phi-4-mini by their distance from the first, and padding between.
/// In the full vocabulary the first of these ids is 199998.
const RESERVED: usize = 66;
const CONTROL: [(usize, &str); 12] = [
    (1, "<|endoftext|>"),
    (20, "<|endofprompt|>"),
    (21, "<|assistant|>"),
    (22, "<|end|>"),
    (23, "<|user|>"),
    (24, "<|system|>"),
    (25, "<|tool|>"),
    (26, "<|/tool|>"),
    (27, "<|tool_call|>"),
    (28, "<|/tool_call|>"),
    (29, "<|tool_response|>"),
    (30, "<|tag|>"),
];

const BYTES: usize = 256;

/// A vocabulary has at least the bytes and the reserved ids.
pub const SMALLEST: usize = BYTES + RESERVED;

// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL_TYPE: i32 = 3;
const UNUSED: i32 = 5;

const TEMPLATE: &str = "{% for message in messages %}\
    {{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}";

/// Adds the keys `tokenizer.*` of a vocabulary of `vocab` tokens.
pub fn keys(writer: &mut Writer<'_>, vocab: usize, seed: u64) {
    let first_reserved = vocab - RESERVED;
    let Learned { mut tokens, merges } = learn(first_reserved - BYTES, random::seed(seed, "tokenizer"));
    let mut types = vec![NORMAL; tokens.len()];
    for offset in 0..RESERVED {
        match CONTROL.iter().find(|(at, _)| *at == offset) {
            Some((_, text)) => {
                tokens.push((*text).to_owned());
                types.push(CONTROL_TYPE);
            }
            None => {
                tokens.push(format!("[PAD{}]", first_reserved + offset));
                types.push(UNUSED);
            }
        }
    }
    let (end_of_text, end) = ((first_reserved + 1) as u32, (first_reserved + 22) as u32);
    writer
        .key("tokenizer.ggml.model", "gpt2")
        .key("tokenizer.ggml.pre", "gpt-4o")
        .key("tokenizer.ggml.tokens", tokens)
        .key("tokenizer.ggml.token_type", types)
        .key("tokenizer.ggml.merges", merges)
        .key("tokenizer.ggml.bos_token_id", end_of_text)
        .key("tokenizer.ggml.eos_token_id", end)
        .key("tokenizer.ggml.unknown_token_id", end_of_text)
        .key("tokenizer.ggml.padding_token_id", end_of_text)
        .key("tokenizer.ggml.add_bos_token", false)
        .key("tokenizer.chat_template", TEMPLATE);
}

struct Learned {
    tokens: Vec<String>,
    /// `left right`, earliest first.
    merges: Vec<String>,
}

/// Byte tokens and `count` merges of them.
fn learn(count: usize, seed: u64) -> Learned {
    // GPT-2's spelling: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on.
    let printable = ('!'..='~').chain('\u{a1}'..='\u{ac}').chain('\u{ae}'..='\u{ff}');
    let mut tokens: Vec<String> = printable.chain('\u{100}'..='\u{143}').map(String::from).collect();
    let letters: HashMap<char, u32> = (0..).zip(&tokens).filter_map(|(id, t)| Some((t.chars().next()?, id))).collect();
    let mut known: BTreeSet<String> = tokens.iter().cloned().collect();
    let mut joined = HashMap::new();
    let mut merges = Vec::with_capacity(count);
    let mut random = Random::new(seed, 0);
    while merges.len() < count {
        let word = encode(&spell(&mut random), &letters, &joined);
        if word.len() < 2 {
            continue;
        }
        // A pair of neighbours that is no token yet, and only where its own text would come apart like this.
        let at = random.below(word.len() - 1);
        let (left, right) = (word[at], word[at + 1]);
        let text = format!("{}{}", tokens[left as usize], tokens[right as usize]);
        if known.contains(&text) || encode(&text, &letters, &joined) != [left, right] {
            continue;
        }
        merges.push(format!("{} {}", tokens[left as usize], tokens[right as usize]));
        joined.insert((left, right), tokens.len() as u32);
        known.insert(text.clone());
        tokens.push(text);
    }
    Learned { tokens, merges }
}

/// A word of one to five syllables, mostly with a space (`Ġ`) before it.
fn spell(random: &mut Random) -> String {
    const ONSETS: [&str; 24] = [
        "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "st", "tr", "pl",
        "ch", "sh", "",
    ];
    const VOWELS: [&str; 10] = ["a", "e", "i", "o", "u", "y", "ai", "ea", "ou", "io"];
    const CODAS: [&str; 12] = ["", "", "", "n", "r", "s", "t", "l", "m", "nd", "p", "ng"];
    let mut word = String::new();
    if random.below(4) != 0 {
        word.push('Ġ');
    }
    for _ in 0..=random.below(5) {
        word += ONSETS[random.below(ONSETS.len())];
        word += VOWELS[random.below(VOWELS.len())];
        word += CODAS[random.below(CODAS.len())];
    }
    word
}

/// Joins the earliest-learned pair, leftmost first, until none is left. Ids grow in the order of learning.
fn encode(word: &str, letters: &HashMap<char, u32>, joined: &HashMap<(u32, u32), u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = word.chars().map(|c| letters[&c]).collect();
    let pair = |pair: &[u32]| joined.get(&(pair[0], pair[1])).copied();
    while let Some((id, at)) = ids.windows(2).enumerate().filter_map(|(at, p)| Some((pair(p)?, at))).min() {
        ids[at] = id;
        ids.remove(at + 1);
    }
    ids
}

#[cfg(test)]
mod tests {
    use anemone_gguf::Gguf;

    use super::*;

    #[test]
    fn every_token_is_what_its_own_text_encodes_to() {
        let Learned { tokens, merges } = learn(3000, 5);
        assert_eq!((tokens.len(), merges.len()), (3256, 3000));
        assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), tokens.len());
        let id: HashMap<&str, u32> = (0..).zip(&tokens).map(|(id, t)| (t.as_str(), id)).collect();
        let letters =
            id.iter().filter(|(t, _)| t.chars().count() == 1).map(|(t, &i)| (t.chars().next().unwrap(), i)).collect();
        let mut joined = HashMap::new();
        for (rank, merge) in (BYTES as u32..).zip(&merges) {
            let (left, right) = merge.split_once(' ').unwrap();
            assert_eq!(tokens[rank as usize], format!("{left}{right}"));
            joined.insert((id[left], id[right]), rank);
        }
        for (id, token) in (0..).zip(&tokens) {
            assert_eq!(encode(token, &letters, &joined), [id], "{token}");
        }
    }

    #[test]
    fn ids_of_the_full_vocabulary_are_the_models() {
        let mut writer = Writer::new("phi3");
        keys(&mut writer, super::super::VOCAB, 0);
        let gguf = Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap();
        let tokens = gguf.metadata().strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!(tokens.len(), 200_064);
        for (id, text) in [
            (199_999, "<|endoftext|>"),
            (200_019, "<|assistant|>"),
            (200_020, "<|end|>"),
            (200_021, "<|user|>"),
            (200_022, "<|system|>"),
        ] {
            assert_eq!(tokens[id], text);
        }
        assert_eq!(gguf.metadata().u32("tokenizer.ggml.bos_token_id").unwrap(), 199_999);
        assert_eq!(gguf.metadata().u32("tokenizer.ggml.eos_token_id").unwrap(), 200_020);
    }
}
