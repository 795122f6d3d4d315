//! Rotary position embedding.
//!
//! The first `rope_dim` dimensions of every q and k head form `rope_dim / 2` pairs; pair `i` at position `p` turns by
//! `p * f_i`, where
//!
//! ```text
//! f_i = base^(-2i / rope_dim) / (scale * factor_i)
//! ```
//!
//! The other dimensions pass through. `scale` is linear scaling's, 1 without it. `factor_i` comes from a tensor: one of
//! two sets with longrope (short within the original context, long beyond it; here the caller's context decides, once,
//! as in llama.cpp), or `rope_freqs.weight` of the later Llamas; 1 without either. Longrope also multiplies sine and
//! cosine by an attention factor, on the turning dimensions only:
//!
//! ```text
//! sqrt(1 + ln(context / original context) / ln(original context))
//! ```
//!
//! (Ding et al. 2024, LongRoPE, and the Phi-3 model code; converters store it as a key, which then rules.)
//!
//! What makes a pair is a matter of layout. `phi3` files keep the checkpoint's *half-split* rows, dimension `i` with
//! `i + rope_dim / 2`. Converters permute the q and k rows of `llama` so that pairs are *interleaved*, `2i` with
//! `2i + 1`.

use anemone_gguf::Gguf;

use crate::hyperparameters::{Keys, rope_base};
use crate::{Architecture, Error, Hyperparameters};

/// Which dimensions of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` with `i + rope_dim / 2`.
    HalfSplit,
    /// `2i` with `2i + 1`.
    Interleaved,
}

/// Longrope's two sets of factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactorSet {
    /// For contexts up to the original one.
    Short,
    /// For longer ones.
    Long,
}

/// The rotation of one model in one context.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position for each pair, `f_i`.
    pub frequencies: Vec<f64>,
    /// Multiplies sine and cosine.
    pub attention_factor: f64,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
}

impl Rope {
    /// Reads keys and factor tensors. The names of the tensors that it has seen to go to `used`. Where longrope has two sets of
    /// factors, the rotation under the set that this context does *not* call for is the second result.
    pub(crate) fn read(
        gguf: &Gguf,
        hyper: &Hyperparameters,
        context: usize,
        used: &mut Vec<String>,
    ) -> Result<(Rope, Option<(FactorSet, Rope)>), Error> {
        let keys = Keys { metadata: gguf.metadata(), architecture: hyper.architecture };
        let (base, scale) = (f64::from(rope_base(&keys)?), linear_scale(&keys)?);
        let pairs = hyper.rope_dim / 2;
        let mut factors = |name: &str| -> Result<Option<Vec<f32>>, Error> {
            let Some(tensor) = gguf.find(name) else { return Ok(None) };
            used.push(name.to_owned());
            if tensor.shape() != [pairs] {
                return Err(Error::Shape {
                    name: name.to_owned(),
                    found: tensor.shape().to_vec(),
                    expected: vec![pairs],
                    because: "half of rope.dimension_count",
                });
            }
            let factors = tensor.dequantize();
            match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
                Some(bad) => Err(Error::Unsupported(format!("a rotary factor of {bad} in `{name}`"))),
                None => Ok(Some(factors)),
            }
        };
        let short = factors("rope_factors_short.weight")?;
        let long = factors("rope_factors_long.weight")?;
        let plain = factors("rope_freqs.weight")?;

        let longrope = short.is_some() || long.is_some();
        check_type(&keys, longrope)?;
        let (factors, attention_factor, other) = match (short, long, plain) {
            (Some(short), Some(long), None) => {
                let original = keys.count("rope.scaling.original_context_length")?;
                let attention_factor = longrope_attention_factor(&keys, hyper.context, original)?;
                match context <= original {
                    true => (short, attention_factor, Some((FactorSet::Long, long))),
                    false => (long, attention_factor, Some((FactorSet::Short, short))),
                }
            }
            (None, None, plain) => {
                let factor = keys.optional_positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
                (plain.unwrap_or_else(|| vec![1.0; pairs]), f64::from(factor), None)
            }
            (Some(_), Some(_), Some(_)) => {
                return Err(Error::Unsupported("`rope_freqs.weight` beside longrope factors".into()));
            }
            _ => return Err(Error::Unsupported("one set of longrope factors without the other".into())),
        };

        let exponent = |i: usize| -2.0 * i as f64 / hyper.rope_dim as f64;
        let frequency = |(i, factor): (usize, &f32)| base.powf(exponent(i)) / (scale * f64::from(*factor));
        let pairing = match hyper.architecture {
            Architecture::Llama => Pairing::Interleaved,
            Architecture::Phi3 => Pairing::HalfSplit,
        };
        let rope = |factors: &[f32]| {
            let frequencies = factors.iter().enumerate().map(frequency).collect();
            Rope { frequencies, attention_factor, pairing }
        };
        Ok((rope(&factors), other.map(|(set, factors)| (set, rope(&factors)))))
    }

    /// Cosine and sine of every pair at `position`, without the attention factor: what a host's rotary tables hold.
    pub fn row(&self, position: usize) -> (Vec<f32>, Vec<f32>) {
        self.frequencies
            .iter()
            .map(|frequency| {
                // In f64: an angle of some thousand radians in f32 is off by more than the weights' rounding.
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (cos as f32, sin as f32)
            })
            .unzip()
    }

    /// Turns each head of `heads`, heads of `head_dim` one after another, from position 0 to `position`.
    pub(crate) fn turn(&self, heads: &mut [f32], head_dim: usize, position: usize) {
        let (mut cos, mut sin) = self.row(position);
        for value in cos.iter_mut().chain(&mut sin) {
            *value = (f64::from(*value) * self.attention_factor) as f32;
        }
        let pairs = self.frequencies.len();
        for head in heads.chunks_exact_mut(head_dim) {
            for (i, (cos, sin)) in cos.iter().zip(&sin).enumerate() {
                let (a, b) = match self.pairing {
                    Pairing::HalfSplit => (i, i + pairs),
                    Pairing::Interleaved => (2 * i, 2 * i + 1),
                };
                let (x, y) = (head[a], head[b]);
                head[a] = x * cos - y * sin;
                head[b] = x * sin + y * cos;
            }
        }
    }
}

/// The factor of linear scaling. llama.cpp takes a scaling factor without a type for a linear one, an old name of the
/// key for the new, and zero for none.
fn linear_scale(keys: &Keys<'_>) -> Result<f64, Error> {
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        let name = keys.name(key);
        if keys.metadata.contains(&name) && keys.metadata.f32(&name)? != 0.0 {
            return Ok(f64::from(keys.positive(key)?));
        }
    }
    Ok(1.0)
}

/// The scaling type must be one that is understood, and agree with the tensors that are there.
fn check_type(keys: &Keys<'_>, longrope: bool) -> Result<(), Error> {
    let key = keys.name("rope.scaling.type");
    let found = anemone_gguf::optional(keys.metadata.str(&key))?;
    let scaled = linear_scale(keys)? != 1.0;
    match found {
        Some("longrope") if !longrope => Err(anemone_gguf::Error::MissingTensor {
            name: "rope_factors_short.weight".into(), // both are missing; one name is enough to find out
        }
        .into()),
        Some("longrope") | None if longrope && !scaled => Ok(()),
        Some("linear") | None if !longrope => Ok(()),
        Some("none") if !longrope && !scaled => Ok(()),
        Some(other) if !["none", "linear", "longrope"].contains(&other) => {
            Err(Error::Unsupported(format!("rotary scaling `{other}`")))
        }
        _ => Err(Error::Unsupported("longrope factors together with another kind of rotary scaling".into())),
    }
}

fn longrope_attention_factor(keys: &Keys<'_>, context: usize, original: usize) -> Result<f64, Error> {
    if let Some(stored) = keys.optional_positive("rope.scaling.attn_factor")? {
        return Ok(f64::from(stored));
    }
    if context <= original || original == 1 {
        return Ok(1.0);
    }
    let (context, original) = (context as f64, original as f64);
    Ok((1.0 + (context / original).ln() / original.ln()).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(pairing: Pairing) -> Rope {
        Rope { frequencies: vec![1.0, 0.5], attention_factor: 1.0, pairing }
    }

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_passes_through() {
        let mut head = [1.0, 0.0, 0.0, 2.0, 7.0, 8.0];
        rope(Pairing::HalfSplit).turn(&mut head, 6, 2);
        let expected = [2f32.cos(), -2.0 * 1f32.sin(), 2f32.sin(), 2.0 * 1f32.cos(), 7.0, 8.0];
        assert!(head.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{head:?}");
    }

    #[test]
    fn the_two_layouts_are_permutations_of_each_other() {
        let mut half = [1.0, 2.0, 3.0, 4.0];
        let mut interleaved = [1.0, 3.0, 2.0, 4.0];
        rope(Pairing::HalfSplit).turn(&mut half, 4, 5);
        rope(Pairing::Interleaved).turn(&mut interleaved, 4, 5);
        assert_eq!(half, [interleaved[0], interleaved[2], interleaved[1], interleaved[3]]);
    }
}
