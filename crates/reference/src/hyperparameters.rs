//! What the keys say the model is.
//!
//! Every key of the architecture's own namespace must be listed here, read or known to have no part in the forward.
//! Defaults exist for three, each because the format or its reference implementation documents one and real files lean
//! on it:
//!
//! | key | absent means | why it may be absent |
//! |---|---|---|
//! | `attention.head_count_kv` | `attention.head_count` | the GGUF specification: absent in a model without grouped queries |
//! | `attention.key_length`, `.value_length` | width / heads | the GGUF specification; converters write it only where it differs |
//! | `llama.rope.freq_base` | 10000 | llama.cpp; files of the first two Llamas were written before the key. Later converters, and all of phi3's, write it, so `phi3` has no default |

use anemone_gguf::{Metadata, optional};

use crate::Error;

/// The architectures that the reference knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Separate projections, interleaved rotary pairs.
    Llama,
    /// Fused q, k, v and gate, up; half-split rotary pairs.
    Phi3,
}

impl Architecture {
    const ALL: [Architecture; 2] = [Architecture::Llama, Architecture::Phi3];

    /// The name under `general.architecture`, and the prefix of the keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Phi3 => "phi3",
        }
    }

    fn read(metadata: &Metadata) -> Result<Architecture, Error> {
        let found = metadata.str("general.architecture")?;
        Architecture::ALL.into_iter().find(|a| a.name() == found).ok_or_else(|| Error::Architecture {
            found: found.to_owned(),
            known: Architecture::ALL.map(Architecture::name).join(", "),
        })
    }
}

/// The numbers that shape the forward, all but the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Hyperparameters {
    pub architecture: Architecture,
    pub layers: usize,
    /// Width of the residual stream, d.
    pub width: usize,
    /// Width inside the feed-forward.
    pub ffn: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// How many of the head's dimensions rotate.
    pub rope_dim: usize,
    /// Added to the mean square under the root of RMSNorm.
    pub eps: f32,
    /// The longest context the model was made for.
    pub context: usize,
}

/// The namespace's keys that the forward reads, here and in `rope.rs`.
const READ: [&str; 17] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
];

/// The namespace's keys that say nothing the forward needs: the embedding's rows are the vocabulary, the layout and
/// the history of the weights are remarks.
const WITHOUT_EFFECT: [&str; 3] = ["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"];

/// Keys whose presence is harmless only at zero.
const ZERO_ONLY: [&str; 2] = ["expert_count", "expert_used_count"];

/// Metadata seen through an architecture's prefix.
pub(crate) struct Keys<'a> {
    pub metadata: &'a Metadata,
    pub architecture: Architecture,
}

impl Keys<'_> {
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    /// A count of at least one, and small enough that products of two do not overflow.
    pub fn count(&self, key: &str) -> Result<usize, Error> {
        match self.metadata.usize(&self.name(key))? {
            count @ 1..=0x4000_0000 => Ok(count),
            count => Err(self.error(key, format!("is {count}, expected 1 to 2^30"))),
        }
    }

    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, Error> {
        if self.metadata.contains(&self.name(key)) { self.count(key).map(Some) } else { Ok(None) }
    }

    /// A finite float above zero.
    pub fn positive(&self, key: &str) -> Result<f32, Error> {
        let value = self.metadata.f32(&self.name(key))?;
        if value > 0.0 && value.is_finite() {
            Ok(value)
        } else {
            Err(self.error(key, format!("is {value}, expected a positive number")))
        }
    }

    pub fn optional_positive(&self, key: &str) -> Result<Option<f32>, Error> {
        if self.metadata.contains(&self.name(key)) { self.positive(key).map(Some) } else { Ok(None) }
    }

    pub fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Key { key: self.name(key), problem: problem.into() }
    }

    fn check_all_known(&self) -> Result<(), Error> {
        let prefix = self.name("");
        for (key, value) in self.metadata.iter() {
            let Some(own) = key.strip_prefix(&prefix) else { continue };
            let unused = ZERO_ONLY.contains(&own) && value.integer() == Some(0);
            if !(READ.contains(&own) || WITHOUT_EFFECT.contains(&own) || unused) {
                return Err(Error::Unsupported(format!("key `{key}`, whose effect on the forward is not known here")));
            }
        }
        Ok(())
    }
}

impl Hyperparameters {
    /// Reads and checks them. `context` is the one the caller runs with.
    pub(crate) fn read(metadata: &Metadata, context: usize) -> Result<Hyperparameters, Error> {
        let architecture = Architecture::read(metadata)?;
        let keys = Keys { metadata, architecture };
        keys.check_all_known()?;

        let width = keys.count("embedding_length")?;
        let heads = keys.count("attention.head_count")?;
        let kv_heads = kv_heads(&keys, heads)?;
        let head_dim = head_dim(&keys, width, heads)?;
        let rope_dim = keys.count("rope.dimension_count")?;
        if !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
            return Err(keys.error("rope.dimension_count", format!("{rope_dim} of a head's {head_dim} dimensions")));
        }
        check_window(&keys, context)?;
        Ok(Hyperparameters {
            architecture,
            layers: keys.count("block_count")?,
            width,
            ffn: keys.count("feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            rope_dim,
            eps: keys.positive("attention.layer_norm_rms_epsilon")?,
            context: keys.count("context_length")?,
        })
    }

    /// Rows of the q projection.
    pub fn q_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the k projection and of the v projection: the width of one cached position.
    pub fn kv_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Absent: as many as there are query heads.
fn kv_heads(keys: &Keys<'_>, heads: usize) -> Result<usize, Error> {
    let kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(heads);
    if heads.is_multiple_of(kv_heads) {
        Ok(kv_heads)
    } else {
        Err(keys.error("attention.head_count_kv", format!("{kv_heads} does not divide the {heads} query heads")))
    }
}

/// Absent: the width shared out among the query heads.
fn head_dim(keys: &Keys<'_>, width: usize, heads: usize) -> Result<usize, Error> {
    let key = keys.optional_count("attention.key_length")?;
    let value = keys.optional_count("attention.value_length")?;
    let shared = || match width.is_multiple_of(heads) {
        true => Ok(width / heads),
        false => Err(keys.error("attention.head_count", format!("{heads} does not divide the width {width}"))),
    };
    let key = key.map_or_else(shared, Ok)?;
    let value = value.map_or_else(shared, Ok)?;
    if key != value {
        return Err(Error::Unsupported(format!("keys of {key} dimensions with values of {value}")));
    }
    Ok(key)
}

/// A window as long as the context masks nothing. Zero is how converters write "none".
fn check_window(keys: &Keys<'_>, context: usize) -> Result<(), Error> {
    let window = optional(keys.metadata.usize(&keys.name("attention.sliding_window")))?.unwrap_or(0);
    if window == 0 || window >= context {
        return Ok(());
    }
    Err(Error::Unsupported(format!("a sliding window of {window} in a context of {context}")))
}

/// The rotary base. Absent: 10000 for `llama`, an error for `phi3`.
pub(crate) fn rope_base(keys: &Keys<'_>) -> Result<f32, Error> {
    match (keys.architecture, keys.optional_positive("rope.freq_base")?) {
        (_, Some(base)) => Ok(base),
        (Architecture::Llama, None) => Ok(10000.0),
        (Architecture::Phi3, None) => keys.positive("rope.freq_base"),
    }
}
