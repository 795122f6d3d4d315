//! Models that the reference must not run: each is refused with one line that names the key or the tensor.

use std::sync::Arc;

use anemone_gguf::writer::Writer;
use anemone_gguf::{Gguf, Value};
use anemone_reference::{Model, Options, Pairing};

/// A llama of two layers, width 8, heads 2:1 of 4, feed-forward 6, vocabulary 5. `keep` filters its keys and tensors.
fn llama(keep: impl Fn(&str) -> bool) -> Writer<'static> {
    let keys: [(&str, Value); 9] = [
        ("llama.block_count", 2u32.into()),
        ("llama.context_length", 32u32.into()),
        ("llama.embedding_length", 8u32.into()),
        ("llama.feed_forward_length", 6u32.into()),
        ("llama.attention.head_count", 2u32.into()),
        ("llama.attention.head_count_kv", 1u32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        ("llama.rope.dimension_count", 4u32.into()),
        ("llama.rope.freq_base", 500.0f32.into()),
    ];
    let mut writer = Writer::new("llama");
    for (key, value) in keys {
        if keep(key) {
            writer.key(key, value);
        }
    }
    let mut seed = 1u32;
    let mut tensor = |name: &str, shape: &[usize]| {
        let len = shape.iter().product();
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..len).map(|_| next()).collect();
        if keep(name) {
            writer.tensor_f32(name, shape, &values);
        }
    };
    tensor("token_embd.weight", &[5, 8]);
    tensor("output_norm.weight", &[8]);
    for n in 0..2 {
        let shapes: [(&str, &[usize]); 9] = [
            ("attn_norm.weight", &[8]),
            ("attn_q.weight", &[8, 8]),
            ("attn_k.weight", &[4, 8]),
            ("attn_v.weight", &[4, 8]),
            ("attn_output.weight", &[8, 8]),
            ("ffn_norm.weight", &[8]),
            ("ffn_gate.weight", &[6, 8]),
            ("ffn_up.weight", &[6, 8]),
            ("ffn_down.weight", &[8, 6]),
        ];
        for (name, shape) in shapes {
            tensor(&format!("blk.{n}.{name}"), shape);
        }
    }
    writer
}

fn open(writer: &Writer) -> Result<Model, anemone_reference::Error> {
    Model::open(Arc::new(Gguf::from_bytes(writer.to_bytes().unwrap()).unwrap()), Options::new(16))
}

/// The line with which a change to the whole model is refused.
fn refusal(change: impl Fn(&mut Writer)) -> String {
    let mut writer = llama(|_| true);
    change(&mut writer);
    match open(&writer) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

fn logits(writer: &Writer) -> Vec<f32> {
    let model = open(writer).unwrap();
    model.forward(&[0, 1, 2, 3, 4, 3], &mut model.cache()).unwrap()
}

#[test]
fn every_required_key_and_tensor_is_missed_by_name() {
    let whole = llama(|_| true);
    let bytes = whole.to_bytes().unwrap();
    let whole = Gguf::from_bytes(bytes).unwrap();
    let defaulted = ["llama.attention.head_count_kv", "llama.rope.freq_base"];
    for (key, _) in whole.metadata().iter().filter(|(key, _)| key.starts_with("llama.")) {
        match open(&llama(|name| name != key)) {
            Err(error) if key == "llama.attention.head_count_kv" => {
                // As many key heads as query heads, says the specification; this file has fewer rows.
                assert!(error.to_string().contains("blk.0.attn_k.weight"), "{error}");
            }
            Err(error) => assert_eq!(error.to_string(), format!("the gguf has no key `{key}`")),
            Ok(_) => assert!(defaulted.contains(&key), "{key} was not missed"),
        }
    }
    for info in whole.tensors() {
        let error = open(&llama(|name| name != info.name)).err().unwrap();
        assert_eq!(error.to_string(), format!("the gguf has no tensor `{}`", info.name));
    }
}

#[test]
fn an_absent_base_means_ten_thousand_for_llama_and_is_an_error_for_phi3() {
    let absent = llama(|name| name != "llama.rope.freq_base");
    let mut written = llama(|_| true);
    written.key("llama.rope.freq_base", 10000.0f32);
    assert_eq!(logits(&absent), logits(&written));
    assert_ne!(logits(&absent), logits(&llama(|_| true)));

    let mut phi3 = Writer::new("phi3");
    let whole = Gguf::from_bytes(llama(|name| name != "llama.rope.freq_base").to_bytes().unwrap()).unwrap();
    for (key, value) in whole.metadata().iter().filter(|(key, _)| key.starts_with("llama.")) {
        phi3.key(&key.replace("llama.", "phi3."), value.clone());
    }
    assert_eq!(open(&phi3).err().unwrap().to_string(), "the gguf has no key `phi3.rope.freq_base`");
}

#[test]
fn impossible_keys() {
    assert_eq!(
        refusal(|w| {
            w.key("general.architecture", "gemma3");
        }),
        "architecture `gemma3` is not known to the reference, expected one of: llama, phi3"
    );
    let key = |key: &'static str, value: Value| {
        refusal(move |w| {
            w.key(key, value.clone());
        })
    };
    assert_eq!(
        key("llama.attention.head_count_kv", 3u32.into()),
        "key `llama.attention.head_count_kv`: 3 does not divide the 2 query heads"
    );
    assert_eq!(
        key("llama.attention.head_count", 0u32.into()),
        "key `llama.attention.head_count`: is 0, expected 1 to 2^30"
    );
    assert_eq!(
        key("llama.rope.dimension_count", 6u32.into()),
        "key `llama.rope.dimension_count`: 6 of a head's 4 dimensions"
    );
    assert_eq!(
        key("llama.attention.layer_norm_rms_epsilon", 0.0f32.into()),
        "key `llama.attention.layer_norm_rms_epsilon`: is 0, expected a positive number"
    );
    assert_eq!(
        key("llama.context_length", 8u32.into()),
        "key `llama.context_length`: the model is made for 8, the context asked for is 16"
    );
    assert_eq!(key("llama.block_count", 1_000_000_000u32.into()), "the gguf has no tensor `blk.2.attn_norm.weight`");
}

#[test]
fn what_it_does_not_compute_it_does_not_ignore() {
    let key = |key: &'static str, value: Value| {
        refusal(move |w| {
            w.key(key, value.clone());
        })
    };
    let prefix = "not supported by the reference: ";
    assert_eq!(
        key("llama.logit_scale", 0.5f32.into()),
        format!("{prefix}key `llama.logit_scale`, whose effect on the forward is not known here")
    );
    assert!(key("llama.expert_count", 8u32.into()).contains("llama.expert_count"));
    assert_eq!(key("llama.rope.scaling.type", "yarn".into()), format!("{prefix}rotary scaling `yarn`"));
    assert_eq!(
        key("llama.attention.sliding_window", 4u32.into()),
        format!("{prefix}a sliding window of 4 in a context of 16")
    );
    assert_eq!(
        key("llama.attention.value_length", 2u32.into()),
        format!("{prefix}keys of 4 dimensions with values of 2")
    );
    assert_eq!(
        refusal(|w| {
            w.tensor_f32("blk.1.attn_q_norm.weight", &[4], &[1.0; 4]);
        }),
        "tensor `blk.1.attn_q_norm.weight` is not part of a llama model as the reference knows it"
    );
    // Without effect, and accepted.
    let mut harmless = llama(|_| true);
    harmless.key("llama.expert_count", 0u32).key("llama.attention.sliding_window", 16u32).key("llama.vocab_size", 5u32);
    assert_eq!(logits(&harmless), logits(&llama(|_| true)));
}

#[test]
fn shapes_that_contradict_the_keys() {
    assert_eq!(
        refusal(|w| {
            w.key("llama.feed_forward_length", 7u32);
        }),
        "tensor `blk.0.ffn_down.weight` has shape [8, 6], expected [8, 7] (the width, and the feed-forward's)"
    );
    assert_eq!(
        refusal(|w| {
            w.tensor_f32("rope_freqs.weight", &[3], &[1.0; 3]);
        }),
        "tensor `rope_freqs.weight` has shape [3], expected [2] (half of rope.dimension_count)"
    );
    assert!(
        refusal(|w| {
            w.tensor_f32("output.weight", &[6, 8], &[0.0; 48]);
        })
        .starts_with("tensor `output.weight` has shape [6, 8], expected [5, 8]")
    );
}

#[test]
fn scalings_that_say_the_same_are_the_same() {
    let linear = {
        let mut writer = llama(|_| true);
        writer.key("llama.rope.scaling.type", "linear").key("llama.rope.scaling.factor", 2.0f32);
        logits(&writer)
    };
    let old_name = {
        let mut writer = llama(|_| true);
        writer.key("llama.rope.scale_linear", 2.0f32);
        logits(&writer)
    };
    let factors = {
        let mut writer = llama(|_| true);
        writer.tensor_f32("rope_freqs.weight", &[2], &[2.0; 2]);
        logits(&writer)
    };
    assert_eq!(linear, old_name);
    assert_eq!(linear, factors);
    assert_ne!(linear, logits(&llama(|_| true)));
}

#[test]
fn biases_and_an_untied_head_count_where_they_are() {
    let plain = logits(&llama(|_| true));
    assert_eq!(open(&llama(|_| true)).unwrap().rope().pairing, Pairing::Interleaved);
    let sizes = [
        ("attn_q", 8),
        ("attn_k", 4),
        ("attn_v", 4),
        ("attn_output", 8),
        ("ffn_gate", 6),
        ("ffn_up", 6),
        ("ffn_down", 8),
    ];
    for (name, len) in sizes {
        for (value, changes) in [(0.0, false), (0.5, true)] {
            let mut writer = llama(|_| true);
            // It differs from row to row, for a bias shared by all logits would go unnoticed.
            let bias: Vec<f32> = (0..len).map(|i| value * (i as f32 + 1.0)).collect();
            writer.tensor_f32(&format!("blk.1.{name}.bias"), &[len], &bias);
            assert_eq!(logits(&writer) != plain, changes, "{name}");
        }
    }
    let mut untied = llama(|_| true);
    untied.tensor_f32("output.weight", &[5, 8], &[0.25; 40]);
    let untied = logits(&untied);
    assert!(untied.chunks(5).all(|row| row.iter().all(|&logit| logit == row[0])));
}
