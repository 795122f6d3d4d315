//! 2,400 strings of every kind, against digests of the ids that Hugging Face's tokenizers gives (`crosscheck/goldens/tokenizer.py`).

use std::path::{Path, PathBuf};

use anemone_chat::{Special, Tokenizer};
use anemone_gguf::Gguf;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// 64-bit FNV-1a of the ids, each four bytes, little endian.
fn digest(ids: &[u32]) -> String {
    let mut value = 0xcbf2_9ce4_8422_2325u64;
    for byte in ids.iter().flat_map(|id| id.to_le_bytes()) {
        value = (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("{value:016x}")
}

/// Compares with two columns: control tokens parsed, and as text.
fn check(model: &Path, parsed: usize) {
    let tokenizer = Tokenizer::from_gguf(Gguf::open(model).unwrap().metadata()).unwrap();
    let golden = std::fs::read_to_string(fixture("tokenizer/strings.jsonl")).unwrap();
    let mut count = 0;
    let mut differing = Vec::new();
    for line in golden.lines() {
        let row: Vec<String> = serde_json::from_str(line).unwrap();
        for (column, special) in [(parsed, Special::Parse), (parsed + 1, Special::AsText)] {
            let ids = tokenizer.encode(&row[0], special);
            count += 1;
            if digest(&ids) != row[column] {
                differing.push(format!("{special:?} {:?}: {ids:?}", row[0]));
            }
        }
    }
    assert_eq!(count, 4800);
    assert!(
        differing.is_empty(),
        "{} differ, the first:\n{}",
        differing.len(),
        differing[..differing.len().min(20)].join("\n")
    );
}

#[test]
fn the_miniatures_ids_are_those_of_tokenizers() {
    check(&fixture("miniature/miniature-f16.gguf"), 1);
}

/// Runs where `ANEMONE_SMOLLM2` names the file that `fixtures/fetch smollm2` prints.
#[test]
fn smollm2s_ids_are_those_of_tokenizers() {
    let Some(model) = std::env::var_os("ANEMONE_SMOLLM2") else { return };
    check(Path::new(&model), 3);
}
