//! Reads a [`Contract`] from a source, once.
//!
//! What architectures share is read here; each states what is its own through [`Architecture`]. **A missing key is an error
//! that names it**, also where other programs have a default: a default that two programs fill differently is how a model
//! comes to run with the wrong rotary width. The two exceptions are facts that the format itself derives: `head_dim` is
//! `embedding_length / head_count` where `attention.key_length` is absent, and a file without scaling keys or factor tensors
//! has no rotary scaling.

use std::collections::BTreeSet;

use anemone_bundle::contract::{Activation, Contract, FactorSet, Norm, Rope, Scaling, Tokens, WeightMode};
use anemone_gguf::{Gguf, Value, optional};

use crate::arch::Architecture;
use crate::error::Error;
use crate::keys::Keys;
use crate::structure::{self, Structure};

/// The context a bundle is built for where nobody says: enough for a conversation, and what was seen to place.
pub const DEFAULT_CONTEXT: usize = 2048;

/// What the person who builds chooses, and the contract records.
#[derive(Clone, Debug)]
pub struct Options {
    /// Positions of the cache; [`DEFAULT_CONTEXT`] or the model's own limit, whichever is less, where `None`.
    pub context: Option<usize>,
    /// How projections are stored.
    pub weights: WeightMode,
    /// Tokens that end a turn, as the tokenizer's reader gathers them; the source's own end of sequence is always one.
    pub stop: BTreeSet<u32>,
}

/// Reads everything and checks it against the tensors.
pub(crate) fn read(
    source: &Gguf,
    architecture: &dyn Architecture,
    keys: &Keys<'_>,
    options: &Options,
) -> Result<(Contract, Structure), Error> {
    refuse_what_is_not_lowered(keys)?;
    let structure = Structure::find(source);

    let layers = keys.count("layers", "block_count")?;
    let width = keys.count("width", "embedding_length")?;
    let ffn = keys.count("ffn", "feed_forward_length")?;
    let heads = keys.count("heads", "attention.head_count")?;
    let kv_heads = keys.count("kv_heads", "attention.head_count_kv")?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.fault("attention.head_count_kv", kv_heads, format!("does not divide {heads} query heads")));
    }
    let head_dim = head_dim(keys, width, heads)?;

    let embedding = source.tensor("token_embd.weight")?;
    let vocab = embedding.rows();
    keys.note("vocab", "rows of tensor token_embd.weight");
    if let Some(declared) = keys.optional_count("vocab", "vocab_size")?
        && declared != vocab
    {
        return Err(keys.fault("vocab_size", declared, format!("tensor token_embd.weight has {vocab} rows")));
    }

    let context_max = keys.count("context_max", "context_length")?;
    let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(context_max));
    if context < 2 || context > context_max {
        return Err(Error::Option {
            option: "--context",
            reason: format!("{context} is not within 2 and the {context_max} positions the model was made for"),
        });
    }
    keys.note("context", if options.context.is_some() { "option --context" } else { "default" });
    if let Some(window) = optional(keys.metadata().usize(&keys.name("attention.sliding_window")))?
        && window != 0
        && window < context
    {
        let reason = format!("a window narrower than the built context of {context} is not lowered yet");
        return Err(keys.fault("attention.sliding_window", window, reason));
    }

    let rope = rope(source, architecture, keys, head_dim, context)?;
    let contract = Contract {
        architecture: architecture.name().to_owned(),
        layers,
        width,
        ffn,
        heads,
        kv_heads,
        head_dim,
        vocab,
        rope,
        norm: Norm { eps: keys.positive("norm.eps", "attention.layer_norm_rms_epsilon")? },
        activation: Activation::Silu,
        tied: structure.tied,
        biases: structure.biases,
        embedding_scale: 1.0,
        tokens: tokens(keys, vocab, options)?,
        context,
        context_max,
        weights: options.weights,
    };
    let own = format!("architecture {}", architecture.name());
    for field in ["architecture", "activation", "embedding_scale", "rope.pairing"] {
        keys.note(field, own.clone());
    }
    keys.note("tied", if structure.tied { "no tensor output.weight" } else { "tensor output.weight" });
    keys.note("biases", "presence of bias tensors");
    keys.note("weights", "option --weights");
    structure::check(source, &contract, &structure)?;
    Ok((contract, structure))
}

/// Keys whose other values change what the model computes in ways that no block here expresses.
fn refuse_what_is_not_lowered(keys: &Keys<'_>) -> Result<(), Error> {
    let neutral: [(&str, f64); 9] = [
        ("expert_count", 0.0),
        ("attention.scale", 0.0),
        ("logit_scale", 1.0),
        ("residual_scale", 1.0),
        ("embedding_scale", 1.0),
        ("attention.clamp_kqv", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("attn_logit_softcapping", 0.0),
        ("final_logit_softcapping", 0.0),
    ];
    for (suffix, neutral) in neutral {
        let value = match keys.metadata().get(&keys.name(suffix)) {
            None => continue,
            Some(Value::F32(v)) => f64::from(*v),
            Some(Value::F64(v)) => *v,
            Some(other) => other.integer().map_or(f64::NAN, |v| v as f64),
        };
        if value != neutral {
            return Err(keys.fault(suffix, value, format!("only {neutral} is lowered yet")));
        }
    }
    match optional(keys.metadata().bool(&keys.name("attention.causal")))? {
        Some(false) => Err(keys.fault("attention.causal", false, "only causal attention is lowered")),
        _ => Ok(()),
    }
}

fn head_dim(keys: &Keys<'_>, width: usize, heads: usize) -> Result<usize, Error> {
    let Some(head_dim) = keys.optional_count("head_dim", "attention.key_length")? else {
        if !width.is_multiple_of(heads) {
            return Err(keys.fault("attention.head_count", heads, format!("does not divide the width of {width}")));
        }
        keys.note("head_dim", format!("{} / {}", keys.name("embedding_length"), keys.name("attention.head_count")));
        return Ok(width / heads);
    };
    match keys.optional_count("head_dim", "attention.value_length")? {
        Some(value) if value != head_dim => {
            Err(keys.fault("attention.value_length", value, format!("differs from the key length {head_dim}")))
        }
        _ => Ok(head_dim),
    }
}

fn rope(
    source: &Gguf,
    architecture: &dyn Architecture,
    keys: &Keys<'_>,
    head_dim: usize,
    context: usize,
) -> Result<Rope, Error> {
    let dim = keys.count("rope.dim", "rope.dimension_count")?;
    if !dim.is_multiple_of(2) || dim > head_dim {
        let reason = format!("expected an even number of at most the head_dim {head_dim}");
        return Err(keys.fault("rope.dimension_count", dim, reason));
    }
    let base = keys.positive("rope.base", "rope.freq_base")?;
    let (scaling, factors) = scaling(source, keys, dim, context)?;
    let attention_factor = match scaling {
        Scaling::LongRope { .. } => keys.positive("rope.attention_factor", "rope.scaling.attn_factor")?,
        _ if keys.has("rope.scaling.attn_factor") => {
            keys.positive("rope.attention_factor", "rope.scaling.attn_factor")?
        }
        _ => {
            keys.note("rope.attention_factor", "no rotary scaling by length");
            1.0
        }
    };
    Ok(Rope { dim, base, pairing: architecture.pairing(), scaling, factors, attention_factor })
}

/// The scaling and the factors in effect.
fn scaling(source: &Gguf, keys: &Keys<'_>, dim: usize, context: usize) -> Result<(Scaling, Vec<f32>), Error> {
    const SHORT: &str = "rope_factors_short.weight";
    const LONG: &str = "rope_factors_long.weight";
    const FREQS: &str = "rope_freqs.weight";
    const TYPE: &str = "rope.scaling.type";

    if source.find(SHORT).is_some() || source.find(LONG).is_some() {
        let original_context = keys.count("rope.scaling.original_context", "rope.scaling.original_context_length")?;
        // Both are read, whichever applies: a file with only one is damaged.
        let (short, long) = (factors(source, SHORT, dim)?, factors(source, LONG, dim)?);
        let (set, name, factors) =
            if context <= original_context { (FactorSet::Short, SHORT, short) } else { (FactorSet::Long, LONG, long) };
        keys.note("rope.scaling", format!("context {context} against original context {original_context}"));
        keys.note("rope.factors", format!("tensor {name}"));
        return Ok((Scaling::LongRope { set, original_context }, factors));
    }
    if source.find(FREQS).is_some() {
        keys.note("rope.scaling", format!("tensor {FREQS}"));
        keys.note("rope.factors", format!("tensor {FREQS}"));
        return Ok((Scaling::Factors, factors(source, FREQS, dim)?));
    }
    let kind = optional(keys.metadata().str(&keys.name(TYPE)))?;
    keys.note("rope.factors", "all equal: no factor tensor");
    match kind {
        None | Some("none") => {
            keys.note("rope.scaling", "no scaling key or factor tensor");
            Ok((Scaling::None, vec![1.0; dim / 2]))
        }
        Some("linear") => {
            let factor = keys.positive("rope.scaling", "rope.scaling.factor")?;
            Ok((Scaling::Linear { factor }, vec![factor; dim / 2]))
        }
        Some("longrope") => Err(source.tensor(SHORT).map(drop).expect_err("looked for above").into()),
        Some(other) => Err(keys.fault(TYPE, other, "only none, linear and longrope are lowered yet")),
    }
}

/// The factors of a tensor, whose count is a second witness of the rotary width.
fn factors(source: &Gguf, name: &str, dim: usize) -> Result<Vec<f32>, Error> {
    let tensor = source.tensor(name)?;
    if tensor.shape() != [dim / 2] {
        let elements = tensor.info().elements();
        return Err(Error::Shape {
            tensor: name.to_owned(),
            found: tensor.shape().to_vec(),
            expected: vec![dim / 2],
            reason: format!("a rope dimension count of {dim} (these {elements} factors say {})", elements * 2),
        });
    }
    let factors = tensor.dequantize();
    match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
        None => Ok(factors),
        Some(bad) => Err(Error::Key {
            key: name.to_owned(),
            value: bad.to_string(),
            reason: "a rotary factor is a finite number above 0".into(),
        }),
    }
}

fn tokens(keys: &Keys<'_>, vocab: usize, options: &Options) -> Result<Tokens, Error> {
    let metadata = keys.metadata();
    let names = metadata.strings("tokenizer.ggml.tokens")?;
    if names.len() != vocab {
        return Err(Error::Key {
            key: "tokenizer.ggml.tokens".into(),
            value: format!("{} tokens", names.len()),
            reason: format!("tensor token_embd.weight has {vocab} rows"),
        });
    }
    let id = |key: &str| -> Result<Option<u32>, Error> {
        match optional(metadata.u32(key))? {
            Some(id) if id as usize >= vocab => Err(Error::Key {
                key: key.into(),
                value: id.to_string(),
                reason: format!("the vocabulary has {vocab} tokens"),
            }),
            id => Ok(id),
        }
    };
    const EOS: &str = "tokenizer.ggml.eos_token_id";
    metadata.u32(EOS)?;
    let eos = id(EOS)?.expect("present: read just above");
    let bos = id("tokenizer.ggml.bos_token_id")?;
    let mut stop = options.stop.clone();
    stop.insert(eos);
    if let Some(id) = stop.iter().find(|&&id| id as usize >= vocab) {
        let reason = format!("a stop token {id} is outside the vocabulary of {vocab}");
        return Err(Error::Key {
            key: "tokenizer.ggml.tokens".into(),
            value: format!("{} tokens", names.len()),
            reason,
        });
    }
    keys.note("tokens", "keys tokenizer.ggml.*_token_id, and control tokens known to end a turn");
    Ok(Tokens { bos, eos, stop })
}
