//! `export`: field for field, on evidence, and never what the published runtime cannot express.

mod common;

use std::fs;

use common::*;
use serde_json::Value;

const FIELDS: [&str; 22] = [
    "artifacts_version",
    "model_family",
    "gguf",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "d_head",
    "rope_dim",
    "d_ff",
    "vocab_size",
    "n_layers",
    "max_seq_len",
    "rms_norm_eps",
    "rope_freq_base",
    "eos_token_id",
    "bos_token_id",
    "tie_word_embeddings",
    "quant_bits",
    "embed_bin",
    "layers",
    "lm_head_shards",
    "speculative_verifier",
];

fn exported(bundle: &Bundle) -> Vec<String> {
    let names = fs::read_dir(&bundle.path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.contains("runtime_meta")).collect()
}

/// A layer that was cut out of its shard and is right says nothing of the shard.
#[test]
fn layers_judged_alone_prove_no_shard() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &["--topology", "0-2,2-4"]);
    bundle.gate(&model, "contract,compile,weights,stack-golden");
    let gate = ["gate", bundle.str(), "--source", model.to_str().unwrap(), "--only", "range-golden"];
    let sample = ["--sample-positions", "0,100-102,200", "--sample-layers", "3,0-2"];
    let out = succeed(&[&gate[..], &sample[..]].concat());
    for part in
        ["layers/00-02.mlpackage, layer 0", "layers/00-02.mlpackage, layer 1", "layers/02-04.mlpackage, layer 3"]
    {
        assert!(out.lines().any(|line| line.contains(part) && line.contains("passed")), "{out}");
    }
    assert!(out.contains("a sample: 4 of ") && !out.contains("layer 2 "), "{out}");
    let missing = "gate range-golden, layers/00-02.mlpackage: not run on this bundle";
    refuse(&["export", bundle.str(), "--runtime-meta"], &["not proven", missing]);
    for (wrong, said) in [
        (&["--sample-layers", "4"][..], "layer 4 was asked for, and the model's layers are 0 to 3"),
        (&["--sample-layers", "2-2"], "nothing lies in 2-2"),
        (&["--sample-layers", "one"], "`one` is no number"),
        (&["--sample-positions", "99999"], "position 99999 was asked for"),
        (&["--sample", "6", "--sample-positions", "6"], "cannot be used with"),
    ] {
        let out = anemone(&[&gate[..], wrong].concat());
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && stderr.contains(said), "{wrong:?}: {stderr}");
    }
}

#[test]
fn a_proven_bundle_is_exported_field_for_field() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &["--topology", "0-2,2-3,3-4", "--head-slices", "2"]);
    refuse(&["export", bundle.str(), "--runtime-meta"], &["not proven", "contract", "--unproven"]);
    assert!(exported(&bundle).is_empty());
    bundle.gate(&model, "contract,compile,weights,range-golden,stack-golden");
    let out = succeed(&["export", bundle.str(), "--runtime-meta", "phi4mini"]);
    assert!(out.contains("xcrun coremlcompiler compile"), "{out}");
    assert_eq!(exported(&bundle), ["phi4mini_runtime_meta_rope96_fast_2_1_1.json"]);
    let text = fs::read_to_string(bundle.path.join("phi4mini_runtime_meta_rope96_fast_2_1_1.json")).unwrap();
    let meta: Value = serde_json::from_str(&text).unwrap();
    let fields: Vec<&String> = meta.as_object().unwrap().keys().collect();
    assert_eq!(fields, FIELDS);
    let manifest: Value = serde_json::from_slice(&fs::read(bundle.path.join("anemone.json")).unwrap()).unwrap();
    let c = &manifest["contract"];
    for (field, of) in [
        ("d_model", "width"),
        ("n_heads", "heads"),
        ("n_kv_heads", "kv_heads"),
        ("d_head", "head_dim"),
        ("d_ff", "ffn"),
        ("vocab_size", "vocab"),
        ("n_layers", "layers"),
        ("max_seq_len", "context"),
    ] {
        assert_eq!(meta[field], c[of], "{field}");
    }
    assert_eq!((&meta["rope_dim"], &meta["bos_token_id"]), (&c["rope"]["dim"], &c["tokens"]["bos"]));
    // `<|end|>`, not the end of sequence, is what ends a turn; and the runtime stops at this token alone.
    assert_eq!((meta["eos_token_id"].as_u64(), c["tokens"]["eos"].as_u64()), (Some(1008), Some(1005)));
    assert_eq!(meta["rms_norm_eps"], 1e-5);
    assert_eq!(meta["rope_freq_base"], 10000.0);
    assert_eq!((meta["quant_bits"].as_u64(), meta["tie_word_embeddings"].as_bool()), (Some(8), Some(true)));
    assert_eq!(meta["layers"][1], serde_json::json!({"start": 2, "end": 3, "path": "compiled/layers/02-03.mlmodelc"}));
    assert_eq!(meta["lm_head_shards"][1]["shard_idx"], 1);
    assert_eq!(meta["lm_head_shards"][1]["mlmodelc"], "compiled/head/1.mlmodelc");
    assert_eq!(meta["speculative_verifier"]["batch_tokens"], 1, "what `main` takes");
    assert!(bundle.path.join(meta["embed_bin"].as_str().unwrap()).is_file());
    // Outside the hash: the bundle is still the bundle that was proven.
    bundle.gate(&model, "contract");
}

#[test]
fn evidence_of_another_bundle_proves_nothing() {
    let model = fixture(MINIATURE);
    let proven = Bundle::build(&model, &["--topology", "0-4"]);
    proven.gate(&model, "contract,compile,weights,range-golden,stack-golden");
    let other = Bundle::build(&model, &["--topology", "0-4", "--context", "64"]);
    let copy = other.path.join("evidence");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(proven.path.join("evidence")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    refuse(&["export", other.str(), "--runtime-meta"], &["not proven", "not run on this bundle"]);
    succeed(&["export", other.str(), "--runtime-meta", "meta.json", "--unproven"]);
    let meta: Value = serde_json::from_slice(&fs::read(other.path.join("meta.json")).unwrap()).unwrap();
    assert!(!meta["anemone_unproven"].as_array().unwrap().is_empty());
}

#[test]
fn a_changed_file_is_not_what_was_proven() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &["--topology", "0-4"]);
    let embedding = bundle.path.join("embedding.f16");
    let mut bytes = fs::read(&embedding).unwrap();
    bytes[100] ^= 1;
    fs::write(&embedding, bytes).unwrap();
    refuse(&["export", bundle.str(), "--runtime-meta", "--unproven"], &["embedding.f16", "BLAKE3"]);
    assert!(exported(&bundle).is_empty());
}

#[test]
fn what_the_runtime_cannot_express_is_refused_with_its_reason() {
    // Beyond the original context the long factors are in effect.
    let model = fixture("longrope/longrope-f16.gguf");
    let long = Bundle::build(&model, &["--context", "128"]);
    let contract: Value = serde_json::from_slice(&fs::read(long.path.join("anemone.json")).unwrap()).unwrap();
    assert_eq!(
        contract["contract"]["rope"]["scaling"]["set"], "long",
        "the fixture's original context changed: choose a longer one"
    );
    refuse(&["export", long.str(), "--runtime-meta", "--unproven"], &["factor", "plain rotary tables"]);
    for name in ["../x.json", "anemone.json", ".hidden.json", "tokenizer.json"] {
        let bundle = Bundle::build(&fixture(MINIATURE), &[]);
        refuse(&["export", bundle.str(), "--runtime-meta", name, "--unproven"], &["--runtime-meta"]);
    }
}
