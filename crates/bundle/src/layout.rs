//! Where things lie in a bundle. One place says it; writers, readers and documentation follow.

use std::ops::Range;

/// The manifest.
pub const MANIFEST: &str = "anemone.json";
/// The raw fp16 embedding table, `[vocab, width]` row-major, little endian.
pub const EMBEDDING: &str = "embedding.f16";
/// The tokenizer in Hugging Face's form.
pub const TOKENIZER: &str = "tokenizer.json";
/// What the tokenizer's form cannot say: special ids and habits of the source.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The chat template.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Evidence: append-only, outside the manifest's hashes.
pub const EVIDENCE: &str = "evidence";
/// The journal inside the evidence folder.
pub const JOURNAL: &str = "evidence/journal.jsonl";

/// Keys of a package's `userDefined` metadata.
pub mod metadata {
    /// The contract's canonical JSON.
    pub const CONTRACT: &str = "anemone.contract";
    /// The contract's hash.
    pub const CONTRACT_HASH: &str = "anemone.contract_hash";
    /// What the package is: `layers 0-20` or `head 0-50016`.
    pub const ROLE: &str = "anemone.role";
}

/// The package of layers `[start, end)`, relative to the bundle.
pub fn layers(range: &Range<usize>) -> String {
    format!("layers/{:02}-{:02}.mlpackage", range.start, range.end)
}

/// The package of a head slice, relative to the bundle.
pub fn head(index: usize) -> String {
    format!("head/{index}.mlpackage")
}

/// The role a layer shard's metadata states.
pub fn layers_role(range: &Range<usize>) -> String {
    format!("layers {}-{}", range.start, range.end)
}

/// The role a head slice's metadata states.
pub fn head_role(rows: &Range<usize>) -> String {
    format!("head {}-{}", rows.start, rows.end)
}
