//! Which tensors a model has, and whether they are the ones its keys ask for.
//!
//! Every tensor the contract implies must be there with the shape it implies, and **no tensor may be left over**: a norm or
//! bias that the lowering does not know would otherwise vanish from the model without a word.

use std::collections::BTreeMap;

use anemone_bundle::contract::{Biases, Contract, Scaling};
use anemone_gguf::Gguf;

use crate::error::Error;

/// How the source lays out what architectures agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// One `attn_qkv` tensor instead of `attn_q`, `attn_k`, `attn_v`.
    pub fused_qkv: bool,
    /// One `ffn_up` tensor with the gate's rows first instead of `ffn_gate` and `ffn_up`.
    pub fused_gate_up: bool,
    /// No `output.weight`.
    pub tied: bool,
    /// Which projections have biases.
    pub biases: Biases,
}

impl Structure {
    /// What the first layer shows; [`check`] holds the others to it.
    pub fn find(source: &Gguf) -> Self {
        let has = |name: &str| source.find(name).is_some();
        Self {
            fused_qkv: has("blk.0.attn_qkv.weight"),
            fused_gate_up: !has("blk.0.ffn_gate.weight"),
            tied: !has("output.weight"),
            biases: Biases {
                qkv: has("blk.0.attn_qkv.bias") || has("blk.0.attn_q.bias"),
                attention_output: has("blk.0.attn_output.bias"),
                gate_up: has("blk.0.ffn_up.bias"),
                down: has("blk.0.ffn_down.bias"),
            },
        }
    }
}

/// Holds the file to its keys.
pub fn check(source: &Gguf, contract: &Contract, structure: &Structure) -> Result<(), Error> {
    let expected = expected(contract, structure);
    for (name, (shape, reason)) in &expected {
        let tensor = source.tensor(name)?;
        if tensor.shape() != shape.as_slice() {
            return Err(Error::Shape {
                tensor: name.clone(),
                found: tensor.shape().to_vec(),
                expected: shape.clone(),
                reason: (*reason).to_owned(),
            });
        }
    }
    let layers = contract.layers;
    match source.tensors().iter().find(|t| !expected.contains_key(&t.name)) {
        None => Ok(()),
        Some(t) => Err(Error::UnknownTensor {
            tensor: t.name.clone(),
            architecture: contract.architecture.clone(),
            reason: format!("expected {layers} layers of the tensors that layer 0 has, and nothing else"),
        }),
    }
}

type Expected = BTreeMap<String, (Vec<usize>, &'static str)>;

fn expected(c: &Contract, s: &Structure) -> Expected {
    let mut all = Expected::new();
    let mut want = |name: String, shape: &[usize], reason| {
        all.insert(name, (shape.to_vec(), reason));
    };
    want("token_embd.weight".into(), &[c.vocab, c.width], "the embedding length");
    want("output_norm.weight".into(), &[c.width], "the embedding length");
    if !s.tied {
        want("output.weight".into(), &[c.vocab, c.width], "the vocabulary and embedding length");
    }
    let factor_tensors: &[&str] = match c.rope.scaling {
        Scaling::LongRope { .. } => &["rope_factors_short.weight", "rope_factors_long.weight"],
        Scaling::Factors => &["rope_freqs.weight"],
        Scaling::None | Scaling::Linear { .. } => &[],
    };
    for name in factor_tensors {
        want((*name).into(), &[c.rope.dim / 2], "the rope dimension count");
    }
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    for i in 0..c.layers {
        let mut projection = |name: &str, rows: usize, columns: usize, bias: bool, reason| {
            want(format!("blk.{i}.{name}.weight"), &[rows, columns], reason);
            if bias {
                want(format!("blk.{i}.{name}.bias"), &[rows], reason);
            }
        };
        const HEADS: &str = "the head counts and head_dim";
        const FFN: &str = "the feed-forward length";
        if s.fused_qkv {
            projection("attn_qkv", q + 2 * kv, c.width, s.biases.qkv, HEADS);
        } else {
            projection("attn_q", q, c.width, s.biases.qkv, HEADS);
            projection("attn_k", kv, c.width, s.biases.qkv, HEADS);
            projection("attn_v", kv, c.width, s.biases.qkv, HEADS);
        }
        projection("attn_output", c.width, q, s.biases.attention_output, HEADS);
        if s.fused_gate_up {
            projection("ffn_up", 2 * c.ffn, c.width, s.biases.gate_up, FFN);
        } else {
            projection("ffn_gate", c.ffn, c.width, s.biases.gate_up, FFN);
            projection("ffn_up", c.ffn, c.width, s.biases.gate_up, FFN);
        }
        projection("ffn_down", c.width, c.ffn, s.biases.down, FFN);
        for norm in ["attn_norm", "ffn_norm"] {
            want(format!("blk.{i}.{norm}.weight"), &[c.width], "the embedding length");
        }
    }
    all
}
