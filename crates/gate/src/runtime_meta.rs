//! The published runtime's manifest, field for field.
//!
//! That runtime (Swift, for one model) reads one JSON file, computes plain rotary tables from base and rotary width, and
//! takes `eos_token_id` for the end of a turn, whatever the source calls its end of sequence. It has no word for what a contract can say beyond that, so a contract that
//! says more is refused with its reason, rather than run wrongly there. And a bundle is exported on evidence: the gates that
//! can be run without a Mac must have found nothing wrong with exactly this bundle.

use anemone_bundle::Manifest;
use anemone_bundle::contract::{Contract, Scaling, WeightMode};
use anemone_bundle::layout::{self, EMBEDDING};
use serde_json::{Map, Value, json};

use crate::verdict::{Finding, Verdict};
use crate::{compile, contract, range_golden, stack_golden, weights};

/// `artifacts_version` that the runtime knows.
const VERSION: u64 = 1;

/// Where compiled packages go, relative to the bundle: only a Mac can make them.
pub const COMPILED: &str = "compiled";

/// Why the published runtime could not run this contract: one reason a line, none where it could.
pub fn inexpressible(manifest: &Manifest) -> Vec<String> {
    let c = &manifest.contract;
    let mut reasons = Vec::new();
    let mut refuse = |condition: bool, reason: String| {
        if condition {
            reasons.push(reason);
        }
    };
    refuse(c.architecture != "phi3", format!("architecture `{}`: the runtime is written for phi3", c.architecture));
    let stretched = c.rope.factors.iter().position(|&f| f != 1.0);
    if let Some(i) = stretched {
        let kind = match c.rope.scaling {
            Scaling::None => "none",
            Scaling::Linear { .. } => "linear",
            Scaling::Factors => "factors",
            Scaling::LongRope { .. } => "longrope",
        };
        let reason =
            "the runtime computes plain rotary tables from base and width, and would rotate every position wrongly";
        refuse(true, format!("rotary factor {i} is {} ({kind} scaling): {reason}", c.rope.factors[i]));
    }
    refuse(!c.tied, "the head is not the embedding table: the manifest has one table for both".into());
    refuse(
        c.embedding_scale != 1.0,
        format!("embedding rows are scaled by {}: the runtime does not scale", c.embedding_scale),
    );
    refuse(
        c.tokens.bos.is_none(),
        "the model has no token for the beginning of a sequence, and bos_token_id is required".into(),
    );
    refuse(!manifest.tokens.contains(&1), "no function takes one token".into());
    reasons
}

/// The token that the published runtime must stop at, which it calls `eos_token_id`: the one that ends a turn. Where several
/// tokens end one (`<|end|>` and `<|endoftext|>`), it is the one that the chat template itself puts between turns; `between` are
/// the ids of a conversation with several, as the template writes it.
///
/// # Errors
/// Where that leaves none, or more than one.
pub fn turn_end(contract: &Contract, between: &[u32]) -> Result<u32, String> {
    let stops = &contract.tokens.stop;
    let candidates: Vec<u32> =
        stops.iter().copied().filter(|stop| stops.len() == 1 || between.contains(stop)).collect();
    match candidates[..] {
        [one] => Ok(one),
        _ => Err(format!(
            "the runtime stops at one token, and which of {stops:?} ends a turn cannot be told: the chat template puts {} of them between turns",
            candidates.len()
        )),
    }
}

/// What the export loses without being wrong; for people.
pub fn remarks(manifest: &Manifest, turn_end: u32) -> Vec<String> {
    let c = &manifest.contract;
    let mut all = Vec::new();
    let others: Vec<_> = c.tokens.stop.iter().filter(|&&t| t != turn_end).collect();
    if !others.is_empty() {
        all.push(format!(
            "the published runtime stops at token {turn_end} alone; {others:?} would not end an answer there"
        ));
    }
    if manifest.tokens.len() > 1 {
        let prefill = "its function for several tokens is not used there: that runtime knows packages of one function";
        all.push(prefill.to_owned());
    }
    all.push(
        "head slices take their rows as `x`, and the published runtime gives them as `hidden`: change the name in the line of \
         its source that makes the head's input (docs/mac.md has the command)"
            .to_owned(),
    );
    all
}

/// What evidence lacks: for each gate the parts that were not found right. Empty where the bundle is proven.
pub fn unproven(manifest: &Manifest, findings: &[Finding]) -> Vec<String> {
    let packages = manifest.layers.iter().chain(&manifest.head).map(|s| s.path.as_str());
    let packages: Vec<&str> = packages.collect();
    let mut contract_parts = vec!["files", "source"];
    contract_parts.extend(&packages);
    let mut missing = Vec::new();
    let mut ask = |gate: &str, parts: &[&str], enough: &[Verdict]| {
        for part in parts {
            match findings.iter().find(|f| f.gate == gate && f.subject == *part) {
                Some(f) if enough.contains(&f.verdict) => {}
                Some(f) => missing.push(format!("gate {gate}, {part}: {}", f.verdict.name())),
                None => missing.push(format!("gate {gate}, {part}: not run on this bundle")),
            }
        }
    };
    ask(contract::NAME, &contract_parts, &[Verdict::Passed]);
    ask(compile::NAME, &packages, &[Verdict::Passed, Verdict::WellFormed]);
    ask(range_golden::NAME, &packages, &[Verdict::Passed]);
    let stored: Vec<&str> = packages.iter().copied().chain([EMBEDDING]).collect();
    ask(weights::NAME, &stored, &[Verdict::Passed]);
    // Every shard may be right by itself and the chain wrong: at least one prompt has to have gone through all of them.
    if !findings.iter().any(|f| f.gate == stack_golden::NAME && f.verdict == Verdict::Passed) {
        missing.push(format!("gate {}, a prompt: not passed on this bundle", stack_golden::NAME));
    }
    // Any other gate that ran and failed counts against it too, and so does a layer that failed by itself.
    let others = findings.iter().filter(|f| f.verdict == Verdict::Failed);
    let asked = [contract::NAME, compile::NAME, range_golden::NAME, weights::NAME];
    let whole = |part: &str| contract_parts.iter().chain(&stored).any(|known| *known == part);
    let others = others.filter(|f| !(asked.contains(&f.gate.as_str()) && whole(&f.subject)));
    missing.extend(others.map(|f| format!("gate {}, {}: failed", f.gate, f.subject)));
    missing
}

/// `Phi-4-mini-instruct` to `phi4mini`: letters and digits of a model's name, without what every chat model is called.
pub fn family(name: &str) -> String {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let short = plain.trim_end_matches("instruct").to_owned();
    if short.is_empty() { "model".into() } else { short }
}

/// `phi4mini_runtime_meta_rope96_fast_20_4_6_2.json`.
pub fn file_name(family: &str, tag: &str, manifest: &Manifest) -> String {
    let sizes: Vec<String> = manifest.layers.iter().map(|s| s.range().len().to_string()).collect();
    format!("{family}_runtime_meta_rope{}_{tag}_{}.json", manifest.contract.rope.dim, sizes.join("_"))
}

/// The folder that `coremlcompiler compile PACKAGE compiled/<part>` makes of a package: its name with another ending.
fn compiled(package: &str) -> String {
    let name = package.strip_suffix(".mlpackage").unwrap_or(package);
    format!("{COMPILED}/{name}.mlmodelc")
}

/// The lines that compile every package on a Mac, run in the bundle's folder.
pub fn compile_lines() -> [String; 2] {
    let line = |part: &str| {
        format!(
            "mkdir -p {COMPILED}/{part} && for p in {part}/*.mlpackage; do xcrun coremlcompiler compile \"$p\" {COMPILED}/{part}; done"
        )
    };
    [line("layers"), line("head")]
}

/// The file. `turn_end` is the token that [ends a turn](turn_end()); `unproven` is what evidence lacks; it is said in the file, in a field that the runtime ignores.
pub fn meta(manifest: &Manifest, turn_end: u32, unproven: &[String]) -> Value {
    let c: &Contract = &manifest.contract;
    let bits = match c.weights {
        WeightMode::Fp16 => 0,
        WeightMode::Int8 | WeightMode::Int8Channel => 8,
    };
    // The shortest decimal that is this f32: 1e-5, where the cast alone would say 9.999999747378752e-6.
    let decimal = |v: f32| v.to_string().parse::<f64>().unwrap_or(f64::from(v));
    let layers = manifest.layers.iter().map(|s| json!({"start": s.start, "end": s.end, "path": compiled(&s.path)}));
    let head = manifest.head.iter().enumerate().map(
        |(i, s)| json!({"shard_idx": i, "vocab_start": s.start, "vocab_end": s.end, "mlmodelc": compiled(&s.path)}),
    );
    let mut meta = Map::new();
    let mut put = |name: &str, value: Value| {
        meta.insert(name.to_owned(), value);
    };
    put("artifacts_version", VERSION.into());
    put("model_family", manifest.name.clone().into());
    put("gguf", manifest.source.file.clone().into());
    put("d_model", c.width.into());
    put("n_heads", c.heads.into());
    put("n_kv_heads", c.kv_heads.into());
    put("d_head", c.head_dim.into());
    put("rope_dim", c.rope.dim.into());
    put("d_ff", c.ffn.into());
    put("vocab_size", c.vocab.into());
    put("n_layers", c.layers.into());
    put("max_seq_len", c.context.into());
    put("rms_norm_eps", decimal(c.norm.eps).into());
    put("rope_freq_base", decimal(c.rope.base).into());
    put("eos_token_id", turn_end.into());
    put("bos_token_id", c.tokens.bos.into());
    put("tie_word_embeddings", c.tied.into());
    put("quant_bits", bits.into());
    put("embed_bin", layout::EMBEDDING.into());
    put("layers", layers.collect());
    put("lm_head_shards", head.collect());
    // Of this the runtime takes the number alone: how many tokens it gives the layer shards in a call, 4 where nothing is said.
    // `main` takes one.
    put("speculative_verifier", json!({"batch_tokens": 1, "layers": [], "lm_head_shards": []}));
    if !unproven.is_empty() {
        put("anemone_unproven", unproven.into());
    }
    Value::Object(meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        assert_eq!(family("Phi-4-mini-instruct"), "phi4mini");
        assert_eq!(family("Phi 4 Mini Instruct"), "phi4mini");
        assert_eq!(family("!"), "model");
    }

    #[test]
    fn a_package_is_compiled_where_the_lines_put_it() {
        assert_eq!(compiled("layers/00-20.mlpackage"), "compiled/layers/00-20.mlmodelc");
        assert!(compile_lines()[0].contains("coremlcompiler compile \"$p\" compiled/layers"));
    }
}
