//! The contract: everything about a model that two parts of the system could disagree on.
//!
//! A shard that was lowered with one idea of the rotary width and a host that fills its tables with another produce fluent
//! garbage, and every local check stays green. So the facts are read from the source once, get a hash, and travel: into each
//! shard's metadata, the manifest, the runtime. **Nothing downstream re-derives a field, and no field has a default.**

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a model is and how it was built. See the module's essay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// `general.architecture` of the source: `phi3`, `llama`.
    pub architecture: String,
    /// Number of decoder layers.
    pub layers: usize,
    /// Width of the residual stream (`d_model`).
    pub width: usize,
    /// Width of the feed-forward block: rows of the gate, and of the up projection.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// How positions rotate queries and keys.
    pub rope: Rope,
    /// How rows are normalised.
    pub norm: Norm,
    /// The gate's non-linearity.
    pub activation: Activation,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Factor on the embedding row before the first layer; the host applies it.
    pub embedding_scale: f32,
    /// The special tokens.
    pub tokens: Tokens,
    /// Positions a shard's cache holds.
    pub context: usize,
    /// Positions the source model was made for.
    pub context_max: usize,
    /// How the projections are stored.
    pub weights: WeightMode,
}

/// The rotary embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// How many of a head's leading elements rotate; even, at most `head_dim`. The rest passes through.
    pub dim: usize,
    /// The base of the frequencies: `inv_freq[i] = 1 / (factor[i] * base^(2i / dim))`.
    pub base: f32,
    /// Which elements form a pair *in the source*. Shards always rotate half-split pairs: a source with interleaved pairs has
    /// its query and key rows permuted at build.
    pub pairing: Pairing,
    /// Where the factors come from.
    pub scaling: Scaling,
    /// The factors in effect, one a pair, `dim / 2` of them; all 1 without scaling.
    pub factors: Vec<f32>,
    /// Factor on cos and sin. It is folded into the rotary rows of the query and key projections, so that host tables hold
    /// frequencies alone.
    pub attention_factor: f32,
}

/// Which two elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// `i` and `i + dim/2`.
    HalfSplit,
    /// `2i` and `2i + 1`.
    Interleaved,
}

/// How the rotary frequencies were stretched for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Scaling {
    /// They were not.
    None,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// By a factor for each pair that the source stores as a tensor (`rope_freqs.weight`, Llama 3).
    Factors,
    /// By one of two such tensors; which one depends on the built context, and that choice is part of the contract.
    LongRope {
        /// The set in effect: short while the built context is at most the original one.
        set: FactorSet,
        /// Positions before stretching.
        original_context: usize,
    },
}

/// Which longrope factors apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactorSet {
    /// `rope_factors_short.weight`.
    Short,
    /// `rope_factors_long.weight`.
    Long,
}

/// RMSNorm before attention, before the feed-forward block, and before the head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Added to the mean square.
    pub eps: f32,
}

/// The gate's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The projection back from the heads.
    pub attention_output: bool,
    /// Gate and up.
    pub gate_up: bool,
    /// Down.
    pub down: bool,
}

/// Special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Begin of sequence, where the model has one.
    pub bos: Option<u32>,
    /// The source's end-of-sequence token.
    pub eos: u32,
    /// Every token that ends a turn. A set: a model that says `<|end|>` does not stop at `<|endoftext|>` alone.
    pub stop: BTreeSet<u32>,
}

/// How the projections of layers and head are stored. Norms and biases are fp16 in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightMode {
    /// fp16.
    Fp16,
    /// int8, symmetric, one fp16 scale for each tensor.
    Int8,
    /// int8, symmetric, one fp16 scale for each output channel.
    Int8Channel,
}

impl WeightMode {
    /// Every mode, in the order help texts list them.
    pub const ALL: [WeightMode; 3] = [WeightMode::Int8Channel, WeightMode::Int8, WeightMode::Fp16];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            WeightMode::Fp16 => "fp16",
            WeightMode::Int8 => "int8",
            WeightMode::Int8Channel => "int8-channel",
        }
    }
}

impl fmt::Display for WeightMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Contract {
    /// The canonical text: compact JSON, fields in declaration order. What is hashed and what travels.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a contract has only finite numbers and string keys")
    }

    /// Reads the canonical text back.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// BLAKE3 of the canonical text, in hexadecimal.
    pub fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex().to_string()
    }

    /// Query heads that share one key and value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The rotary frequencies, `rope.dim / 2` of them, in radians a position: `1 / (factor[i] * base^(2i / dim))`.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let (base, dim) = (f64::from(self.rope.base), self.rope.dim as f64);
        let power = |i: usize| base.powf(2.0 * i as f64 / dim);
        self.rope.factors.iter().enumerate().map(|(i, &f)| 1.0 / (f64::from(f) * power(i))).collect()
    }

    /// The fields in which two contracts differ, by name, with both values: what an error shows a person.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |c: &Self| match serde_json::to_value(c) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        };
        let (a, b) = (fields(self), fields(other));
        a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, v)| format!("{k}: {v} against {}", b[k])).collect()
    }
}
