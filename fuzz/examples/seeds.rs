//! Writes the seeds: small inputs of every target's own kind, from which the fuzzer starts.
//!
//!     cargo run --example seeds      (in this folder; the same bytes every time)
//!
//! Texts need none: the validator's tests are theirs. Random programs start from what once failed.

use std::path::Path;

use anemone_fuzz::join;
use anemone_gguf::writer::Writer;
use anemone_gguf::{BlockType, Value};
use anemone_mil::testing::{Rng, random_program};
use anemone_mil::{validate, write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let save = |target: &str, name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(seeds.join(target))?;
        std::fs::write(seeds.join(target).join(name), bytes)
    };
    for (i, &ty) in BlockType::ALL.iter().enumerate() {
        let mut block = vec![i as u8];
        block.extend(noise(i as u64, 3 * ty.block_bytes()));
        save("dequant", ty.name(), &block)?;
    }
    save("gguf", "every-type", &every_type()?)?;
    save("gguf", "every-value", &every_value()?)?;
    for (name, bytes) in [("bytes", byte_level()?), ("pieces", sentence_pieces()?)] {
        save("tokenizer", name, &join(&["hello world, 你好 <|end|>\n  42".as_bytes(), &bytes]))?;
        save("gguf", name, &bytes)?;
    }
    for (name, template) in TEMPLATES {
        save("template", name, &join(&["hello <|end|> 你好".as_bytes(), template.as_bytes()]))?;
    }
    let folder = tempfile::tempdir()?;
    for seed in 0..12 {
        let package = folder.path().join(format!("{seed}.mlpackage"));
        write(&validate(random_program(seed))?, &package)?;
        let data = package.join("Data/com.apple.CoreML");
        let manifest = if seed == 0 { std::fs::read(package.join("Manifest.json"))? } else { Vec::new() };
        let weights = std::fs::read(data.join("weights/weight.bin")).unwrap_or_default();
        save(
            "package",
            &format!("random-{seed}"),
            &join(&[&manifest, &std::fs::read(data.join("model.mlmodel"))?, &weights]),
        )?;
    }
    Ok(())
}

fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| rng.bits() as u8).collect()
}

fn every_type() -> Result<Vec<u8>, anemone_gguf::Error> {
    let mut writer = Writer::new("llama");
    for (i, &ty) in BlockType::ALL.iter().enumerate() {
        writer.tensor(ty.name(), &[2, ty.block_len()], ty, noise(i as u64, 2 * ty.block_bytes()));
    }
    writer.to_bytes()
}

fn every_value() -> Result<Vec<u8>, anemone_gguf::Error> {
    let mut writer = Writer::new("phi3");
    writer.key("general.alignment", 64u32).key("f", 0.5f32).key("b", true).key("s", "text").key("i", -3i32);
    writer
        .key("strings", vec!["a".to_owned(), "bc".to_owned()])
        .key("ints", vec![1i32, -1])
        .key("floats", vec![0.5f32]);
    writer.tensor_f32("t", &[3, 2], &[1.0, 2.0, 3.0, -1.0, 0.0, 0.5]);
    writer.to_bytes()
}

/// The smallest byte-level vocabulary: a token for each byte, one merge, a control token.
fn byte_level() -> Result<Vec<u8>, anemone_gguf::Error> {
    let kept = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let letter = |byte: u32| {
        let code = if kept(byte) { byte } else { 0x100 + (0..byte).filter(|&b| !kept(b)).count() as u32 };
        char::from_u32(code).expect("a letter").to_string()
    };
    let mut tokens: Vec<String> = (0u32..256).map(letter).collect();
    tokens.extend(["he", "ll", "<|end|>"].map(str::to_owned));
    let mut kinds = vec![1i32; 258];
    kinds.push(3);
    let merges = vec!["h e".to_owned(), "l l".to_owned()];
    vocabulary("gpt2", Some("gpt-2"), tokens, kinds, &[("merges", merges.into()), ("eos_token_id", 258u32.into())])
}

/// A SentencePiece vocabulary with byte fallback.
fn sentence_pieces() -> Result<Vec<u8>, anemone_gguf::Error> {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut kinds = vec![2i32, 3, 3];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    kinds.extend([6; 256]);
    let pieces = ["\u{2581}", "h", "e", "l", "o", "he", "ll", "llo", "hello", "\u{2581}hello", "4", "2"];
    tokens.extend(pieces.map(str::to_owned));
    kinds.extend([1; 12]);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let more = [
        ("scores", scores.into()),
        ("bos_token_id", 1u32.into()),
        ("eos_token_id", 2u32.into()),
        ("unknown_token_id", 0u32.into()),
    ];
    vocabulary("llama", None, tokens, kinds, &more)
}

fn vocabulary(
    model: &str,
    pre: Option<&str>,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    more: &[(&str, Value)],
) -> Result<Vec<u8>, anemone_gguf::Error> {
    let mut writer = Writer::new("llama");
    writer
        .key("tokenizer.ggml.model", model)
        .key("tokenizer.ggml.tokens", tokens)
        .key("tokenizer.ggml.token_type", kinds);
    if let Some(pre) = pre {
        writer.key("tokenizer.ggml.pre", pre);
    }
    for (key, value) in more {
        writer.key(&format!("tokenizer.ggml.{key}"), value.clone());
    }
    writer.to_bytes()
}

const TEMPLATES: [(&str, &str); 4] = [
    ("plain", "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}<|end|>\n{% endfor %}{{ eos_token }}"),
    (
        "tools",
        "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}{%- for m in messages -%}{%- if m.content is string -%}\
         {{ m.content.split('</think>')[-1].lstrip('\\n') }}{%- elif m.content is none -%}{{ m.tool_calls[0].function | tojson }}\
         {%- else -%}{% for p in m.content %}{{ p.text }}{% endfor %}{%- endif -%}{%- endfor -%}",
    ),
    (
        "macros",
        "{% macro say(x, n=2) %}{% for i in range(n) %}{{ loop.index ~ x | upper }}{% endfor %}{% endmacro %}\
         {% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% set ns.last = loop.index0 %}{{ say(m.role) }}{% endfor %}\
         {{ ns.last }}{{ strftime_now('%d %b %Y') }}",
    ),
    (
        "refusal",
        "{% if messages[0].role != 'user' %}{{ raise_exception('the first message must be a user\\'s') }}{% endif %}",
    ),
];
