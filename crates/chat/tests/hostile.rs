//! Templates, vocabularies and texts made to do harm: each gets one clear error, or an answer, in bounded time and memory.

use std::collections::BTreeMap;

use anemone_chat::template::Context;
use anemone_chat::{ChatTemplate, Control, Error, Special, Tokenizer};
use anemone_gguf::{Array, Gguf, Metadata, Value};
use serde_json::{Map, json};

fn render(source: &str) -> Result<String, Error> {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let context = Context {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        bos_token: "<s>",
        eos_token: "</s>",
        more: &Map::new(),
    };
    ChatTemplate::new(source)?.render(&context, None)
}

#[track_caller]
fn refused(source: &str, why: &str) {
    match render(source) {
        Err(Error::Template(message)) if message.contains(why) && !message.contains('\n') => {}
        Err(other) => panic!("{}: {other}, expected {why}", &source[..source.len().min(200)]),
        Ok(text) => panic!("{}: {} bytes, expected {why}", &source[..source.len().min(200)], text.len()),
    }
}

/// Expected values are CPython's.
#[test]
fn slices_are_pythons() {
    for (bounds, expected) in [
        ("[1:]", "bcde"),
        ("[:-1]", "abcd"),
        ("[::-1]", "edcba"),
        ("[::2]", "ace"),
        ("[-2:]", "de"),
        ("[:9]", "abcde"),
        ("[7:]", ""),
        ("[-9:2]", "ab"),
        ("[::-3]", "eb"),
        ("[3:0:-1]", "dcb"),
        ("[3::-2]", "db"),
        ("[:1:-1]", "edc"),
        ("[9:-9:-2]", "eca"),
        ("[-9::-1]", ""),
        ("[1:4:2]", "bd"),
        ("[4:1]", ""),
    ] {
        let source = format!("{{{{ 'abcde'{bounds} }}}},{{{{ ['a', 'b', 'c', 'd', 'e']{bounds}|join }}}}");
        assert_eq!(render(&source).unwrap(), format!("{expected},{expected}"), "{bounds}");
    }
    // What is not there has no elements in either direction: found by fuzzing.
    assert_eq!(render("{{ ''[::-3] }}{{ [][::-1] }}{{ missing[::-3][::-3] }}{{ none[1:] }}").unwrap(), "[][][]");
    refused("{{ 'a'[::0] }}", "step cannot be 0");
    refused("{{ 5[1:] }}", "cannot be sliced");
}

const TOO_MUCH: &str = "more data than any conversation needs";

#[test]
fn templates_that_grow_are_stopped() {
    let doubling = |op: &str| {
        format!(
            "{{% set ns = namespace(x='ab') %}}{{% for i in range(99) %}}{{% set ns.x = {op} %}}{{% endfor %}}{{{{ ns.x|length }}}}"
        )
    };
    for op in [
        "ns.x ~ ns.x",
        "ns.x + ns.x",
        "ns.x * 2",
        "[ns.x, ns.x]|join",
        "ns.x|replace('b', ns.x)",
        "ns.x.replace('b', ns.x)",
        "'{}{}'.format(ns.x, ns.x)",
        "ns.x.join([ns.x, ns.x])",
        "ns.x|list + ns.x|list",
        "[ns.x, ns.x]|string",
        "{'a': [ns.x, ns.x]}|tojson",
        "ns.x|indent(ns.x|length, true)",
    ] {
        refused(&doubling(op), TOO_MUCH);
    }
    refused(
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        TOO_MUCH,
    );
    refused(
        "{% macro f(x, n) %}{% if n > 0 %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('abcdefgh', 40) }}",
        TOO_MUCH,
    );
    refused("{{ 'x' * 1000000000000 }}", TOO_MUCH);
    refused("{{ ([1] * 1000000000000)|length }}", TOO_MUCH);
    refused(&format!("{{% for i in range(90000) %}}{}{{% endfor %}}", "hello ".repeat(60)), TOO_MUCH);
    refused("{{ 'a'|indent(1000000000000) }}", TOO_MUCH);
    // A list that shares its halves is small in memory and endless as a tree.
    let shared = "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for use_of_it in [
        "",
        "{{ ns.x }}",
        "{{ ns.x == ns.x }}",
        "{{ ns.x|tojson }}",
        "{{ ns.x in [ns.x] }}",
        "{{ ns.x|sort }}",
        "{{ {ns.x: 1} }}",
    ] {
        refused(&format!("{shared}{use_of_it}"), TOO_MUCH);
    }
}

#[test]
fn templates_that_never_end_are_stopped() {
    refused("{% for i in range(99999) %}{% for j in range(99999) %}{% set x = 1 %}{% endfor %}{% endfor %}", "more");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit");
    refused("{{ range(100000000000) }}", "too many elements");
    assert_eq!(render("{{ 'abc'.count('') }}").unwrap(), "4");
    refused("{{ 'abc'.split('') }}", "empty separator");
    refused("{{ '{:1000000000}'.format(1) }}", "widths");
}

#[test]
fn templates_that_nest_are_stopped() {
    refused(
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "nest deeper",
    );
    refused("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "cannot be part");
    refused("{% set a = namespace() %}{% set b = namespace(x=a) %}", "cannot be part");
    refused("{% set ns = namespace() %}{% set ns.x = [{'y': ns}] %}", "cannot be part");
    refused("{% set ns = namespace() %}{% macro f() %}{{ ns }}{% endmacro %}{% set ns.x = f %}", "cannot be part");
    refused("{% for i in range(3) %}{% macro f() %}{% endmacro %}{% endfor %}", "macros inside loops");
    refused(&format!("{{{{ {}1 }}}}", "1+".repeat(30_000)), "tokens in one tag");
    refused(&format!("{{{{ {}x }}}}", "not ".repeat(30_000)), "tokens in one tag");
    refused(&format!("{{{{ x{} }}}}", ".a".repeat(30_000)), "tokens in one tag");
    refused(&format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(90)), "recursion");
    refused(&"{% if x %}".repeat(9_000), "blocks inside each other");
    refused(&format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(9_000)), "blocks inside each other");
    refused(&"{% macro f() %}{% endmacro %}".repeat(101), "macros");
    refused(&" ".repeat(200_000), "bytes long");
}

#[test]
fn what_a_template_cannot_have_is_named() {
    refused("{% include 'x' %}", "`include`");
    refused("{% extends 'x' %}", "`extends`");
    refused("{% import 'x' as y %}", "`import`");
    refused("{% for x in y recursive %}{% endfor %}", "recursive");
    refused("a\n{{ x|nothing }}", "line 2: unknown filter `nothing`");
    refused("{{ messages|map('nothing')|list }}", "`map`");
    refused("a\n\n{% if %}", "line 3");
    refused("{{", "line 1");
    refused("{{ messages[0].content.nothing() }}", "nothing");
    refused("{% for x in none %}{% endfor %}", "not iterable");
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert!(matches!(&error, Error::Conversation(m) if m == "roles must alternate"), "{error}");
    refused("{{ strftime_now('%Y') }}", "strftime_now");
    assert_eq!(render("{% if strftime_now is defined %}x{% else %}26 Jul 2024{% endif %}").unwrap(), "26 Jul 2024");
}

#[test]
fn ordinary_templates_are_not_stopped() {
    let long = json!(
        (0..800)
            .map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "word ".repeat(200)}))
            .collect::<Vec<_>>()
    );
    let template = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m.content | trim + '<|end|>' }}{% if loop.index == messages|length %}!{% endif %}{% endfor %}";
    let context = Context {
        messages: &long,
        tools: None,
        add_generation_prompt: true,
        bos_token: "",
        eos_token: "",
        more: &Map::new(),
    };
    let text = ChatTemplate::new(template).unwrap().render(&context, None).unwrap();
    assert_eq!(text.len(), 800 * (999 + 7) + 400 * (8 + 13) + 1);
}

/// The smallest byte-level tokenizer: one token a byte, `ab`, a control token.
fn small() -> BTreeMap<&'static str, Value> {
    let mut tokens: Vec<String> = (0u32..256).map(byte_letter).collect();
    tokens.extend(["ab".to_owned(), "<|end|>".to_owned()]);
    let mut types = vec![1i32; 257];
    types.push(3);
    BTreeMap::from([
        ("model", "gpt2".into()),
        ("pre", "gpt-2".into()),
        ("tokens", tokens.into()),
        ("token_type", types.into()),
        ("merges", vec!["a b".to_owned()].into()),
        ("eos_token_id", 257u32.into()),
    ])
}

/// GPT-2's letter of a byte.
fn byte_letter(byte: u32) -> String {
    let kept = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = if kept(byte) { byte } else { 0x100 + (0..byte).filter(|&b| !kept(b)).count() as u32 };
    char::from_u32(code).unwrap().to_string()
}

fn open(keys: &BTreeMap<&'static str, Value>) -> Result<Tokenizer, Error> {
    let mut metadata = Metadata::default();
    for (key, value) in keys {
        metadata.insert(format!("tokenizer.ggml.{key}"), value.clone());
    }
    Tokenizer::from_gguf(&metadata)
}

#[test]
fn broken_vocabularies_are_refused_by_field() {
    assert_eq!(open(&small()).unwrap().encode("ab<|end|>c", Special::Parse), [256, 257, u32::from(b'c')]);
    let cases: [(&str, Option<Value>, &[&str]); 15] = [
        ("model", Some("bert".into()), &["`bert`", "gpt2, llama, gemma4"]),
        ("model", None, &["tokenizer.ggml.model"]),
        ("pre", Some("gpt-5".into()), &["`gpt-5`", "smollm", "qwen2"]),
        ("pre", None, &["tokenizer.ggml.pre"]),
        ("tokens", None, &["tokenizer.ggml.tokens"]),
        ("tokens", Some(Array::String(Vec::new()).into()), &["types for 0 tokens"]),
        ("tokens", Some(vec!["a".to_owned(); 258].into()), &["0 and 1", "\"a\""]),
        ("token_type", Some(vec![1i32; 3].into()), &["3 types for 258 tokens"]),
        ("token_type", Some(vec![9i32; 258].into()), &["token 0 has type 9"]),
        ("merges", None, &["tokenizer.ggml.merges"]),
        ("merges", Some(vec!["ab".to_owned()].into()), &["merge 0", "two spellings"]),
        ("merges", Some(vec!["a b".to_owned(), "ab c".to_owned()].into()), &["merge 1", "\"abc\""]),
        ("eos_token_id", Some(258u32.into()), &["258", "vocabulary of 258"]),
        ("add_bos_token", Some(true.into()), &["add_bos_token", "names none"]),
        ("add_bos_token", Some("yes".into()), &["add_bos_token", "bool"]),
    ];
    for (key, value, words) in cases {
        let mut keys = small();
        match value {
            Some(value) => keys.insert(key, value),
            None => keys.remove(key),
        };
        let error = open(&keys).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{key}: `{word}` is not in: {error}");
        }
    }
    for scores in [vec![0.0f32; 3], vec![f32::NAN; 258]] {
        let mut keys = small();
        keys.insert("model", "llama".into());
        keys.insert("bos_token_id", 257u32.into());
        keys.insert("scores", scores.into());
        assert!(open(&keys).unwrap_err().to_string().starts_with("tokenizer: scores: "));
    }
}

/// A token that is called unknown and is a piece of text stays one when the tokenizer is read again: found by fuzzing.
#[test]
fn a_piece_of_text_may_be_the_unknown_token() {
    let mut keys = small();
    let mut types = vec![1i32; 258];
    types[255] = 4;
    keys.extend([
        ("model", "llama".into()),
        ("scores", (0..258).map(|i| -i as f32).collect::<Vec<_>>().into()),
        ("token_type", types.into()),
        ("bos_token_id", 257u32.into()),
        ("unknown_token_id", u32::from(b'b').into()),
    ]);
    let tokenizer = open(&keys).unwrap();
    let again = Tokenizer::from_json(&tokenizer.to_json(), tokenizer.config().clone()).unwrap();
    for special in [Special::Parse, Special::AsText] {
        let ids = tokenizer.encode("abÿb", special);
        assert!(ids.contains(&u32::from(b'b')) && ids.contains(&255), "{ids:?}");
        assert_eq!(ids, again.encode("abÿb", special));
    }
}

#[test]
fn broken_tokenizer_files_are_refused() {
    let tokenizer = open(&small()).unwrap();
    let json = tokenizer.to_json();
    let read = |json: &str| Tokenizer::from_json(json, tokenizer.config().clone());
    assert_eq!(read(&json).unwrap().to_json(), json);
    for (from, to) in [
        ("\"type\":\"BPE\"", "\"type\":\"WordPiece\""),
        ("\"ab\":256", "\"ab\":4000000000"),
        ("\"ab\":256", "\"ab\":255"),
        ("\"ab\":256", "\"ab\":-1"),
        ("\"Isolated\"", "\"Removed\""),
        ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}"),
        ("\"dropout\":null", "\"dropout\":0.5"),
        ("\"byte_fallback\":false", "\"byte_fallback\":true"),
        ("\"lstrip\":false", "\"lstrip\":true"),
        ("\"id\":257", "\"id\":3"),
        ("\"Regex\":\"'s", "\"Regex\":\"(?=x)'s"),
        ("\"Regex\":\"'s", "\"Regex\":\"(((((((((x{1000}){1000}){1000}){1000}){1000}){1000}){1000}){1000}){1000})|'s"),
        ("{\"version\"", "{\"extra\":1,\"version\""),
    ] {
        assert!(json.contains(from), "{from}");
        let error = read(&json.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(!error.contains('\n') || from.contains("Regex"), "{to}: {error}");
    }
    let cut = &json[..json.len() / 2];
    assert!(read(cut).is_err());
    let mut config = tokenizer.config().clone();
    config.stop.insert(999);
    assert!(Tokenizer::from_json(&json, config).unwrap_err().to_string().contains("999"));
}

/// Texts that make backtracking engines and careless merge loops quadratic; each is a second's work at most when it is linear, and
/// hours when it is not.
#[test]
fn long_texts_take_time_in_proportion() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/miniature/miniature-f16.gguf");
    let tokenizer = Tokenizer::from_gguf(Gguf::open(path).unwrap().metadata()).unwrap();
    for unit in [" ", "a", "A", "\n", " \n", "é", "漢", "9", "!", "<|", "\t ", "'", "aA", "\u{301}"] {
        let text = unit.repeat(400_000 / unit.len());
        let ids = tokenizer.encode(&text, Special::Parse);
        assert_eq!(tokenizer.decode(&ids, Control::Show).unwrap(), text);
    }
}
