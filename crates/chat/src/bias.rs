//! Logits bent by a request: OpenAI's `logit_bias`, `presence_penalty` and `frequency_penalty`, as its documentation defines them.
//!
//! Before each draw the logit of token `j` becomes
//!
//! ```text
//! logit[j] + logit_bias[j] - count[j] * frequency_penalty - (count[j] > 0) * presence_penalty
//! ```
//!
//! where `count[j]` is how often `j` was sampled so far: tokens of the answer, not of the prompt. Nothing is excluded: where a grammar
//! leaves a single token, it is taken whatever its bias.

use std::collections::BTreeMap;

/// What is added to logits. The default adds nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bias {
    /// By token.
    pub tokens: BTreeMap<u32, f32>,
    /// Taken once from a token that the answer has already.
    pub presence: f32,
    /// Taken for each time that it has.
    pub frequency: f32,
}

impl Bias {
    /// The logits to draw from after `answer`, the answer's tokens so far; `None` where nothing is added.
    pub fn bend(&self, logits: &[f32], answer: &[u32]) -> Option<Vec<f32>> {
        let penalised = self.presence != 0.0 || self.frequency != 0.0;
        if self.tokens.is_empty() && !penalised {
            return None;
        }
        let mut bent = logits.to_vec();
        for (&id, &bias) in &self.tokens {
            if let Some(logit) = bent.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if penalised {
            let mut counts = BTreeMap::<u32, u32>::new();
            answer.iter().for_each(|&id| *counts.entry(id).or_default() += 1);
            for (id, count) in counts {
                if let Some(logit) = bent.get_mut(id as usize) {
                    *logit -= count as f32 * self.frequency + self.presence;
                }
            }
        }
        Some(bent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_term_by_term() {
        let logits = [1.0, 2.0, 3.0, f32::NEG_INFINITY];
        let bend = |bias: Bias, answer: &[u32]| bias.bend(&logits, answer).unwrap();
        let excluded = f32::NEG_INFINITY;
        assert_eq!(Bias::default().bend(&logits, &[1, 1]), None);
        let frequency = Bias { frequency: 0.5, ..Bias::default() };
        assert_eq!(bend(frequency, &[1, 0, 1]), [0.5, 1.0, 3.0, excluded]);
        let presence = Bias { presence: -0.5, ..Bias::default() };
        assert_eq!(bend(presence, &[1, 0, 1, 3]), [1.5, 2.5, 3.0, excluded]);
        let tokens = Bias { tokens: [(0, 5.0), (2, -100.0), (9, 1.0)].into(), presence: 1.0, frequency: 1.0 };
        assert_eq!(bend(tokens, &[0, 9]), [4.0, 2.0, -97.0, excluded]);
    }
}
