//! From logits to the next token.
//!
//! The steps, in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p, then one draw. Temperature 0 is
//! greedy: the highest logit, and of equal ones the lowest id. Everything is computed in f64 with exponentials and logarithms that
//! are the same on every machine, and drawn from ChaCha8, so a seed means the same tokens everywhere the logits are the same.
//!
//! The log-probability that a choice reports, where it is asked for, is the model's own, of the logits as they came: it says how
//! sure the model was, not how the options bent it.
//!
//! [`simple`] is the draw as it is defined, [`quick`] the same draw in less time. A choice consumes one random number at a
//! temperature above 0 and none otherwise. It allocates nothing after the first, unless it lists the likeliest tokens or [`simple`]
//! has to be asked.

mod quick;
mod row;
mod simple;

use std::mem::take;

use anemone_exec::Row;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use self::quick::Room;
use crate::Error;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 is greedy. At least 0.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability, the one that reaches it included. Above 0, at most 1.
    pub top_p: f32,
    /// Only tokens of at least this share of the likeliest one's probability. From 0 to 1.
    pub min_p: f32,
    /// Divides a positive logit of a token that occurred, multiplies a negative one. Above 0; 1 is none.
    pub repetition_penalty: f32,
    /// How many of the last tokens count as having occurred; 0 is all.
    pub repetition_window: usize,
    /// Where the draws start.
    pub seed: u64,
    /// Whether choices tell log-probabilities, and of how many of the likeliest tokens besides their own. They cost an
    /// exponential for each token of the vocabulary.
    pub logprobs: Option<usize>,
}

impl SamplingOptions {
    /// Greedy, with nothing else on.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_window: 64,
            seed: 0,
            logprobs: None,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |option, value: f32, expected| Err(Error::Option { option, value: value.to_string(), expected });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "a finite number of at least 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "a number above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "a number from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", self.repetition_penalty, "a finite number above 0");
        }
        Ok(())
    }
}

/// A token, and how sure the model was.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its natural log-probability under the model's own logits, where the options ask for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, the likeliest first; as many as the options ask for.
    pub top: Vec<(u32, f32)>,
}

/// The tokens among which a choice is made.
#[derive(Clone, Debug)]
pub struct Mask {
    /// A bit a token, the lowest id in the lowest bit.
    words: Vec<u32>,
}

impl Mask {
    /// Of 32 tokens a word, the lowest id in the lowest bit.
    pub fn new(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Whether `id` is among them.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Adds `id`, if the mask is long enough to hold it.
    pub fn allow(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }
}

/// Chooses tokens; remembers only where its draws are.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    rng: ChaCha8Rng,
    /// Room for logits that penalty and mask have bent,
    bent: Vec<f32>,
    /// for the highest of each block,
    peaks: Vec<f32>,
    /// and for the rest.
    room: Room,
}

impl Sampler {
    /// # Errors
    /// An option outside its range.
    pub fn new(options: SamplingOptions) -> Result<Self, Error> {
        options.check()?;
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        Ok(Self { options, rng, bent: Vec::new(), peaks: Vec::new(), room: Room::default() })
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses the token after `history` (prompt and answer so far, for the repetition penalty) by `logits`, one for each token of
    /// the vocabulary. A logit of minus infinity excludes its token.
    ///
    /// # Errors
    /// Logits that are no distribution: none at all, NaN, plus infinity, or minus infinity throughout.
    pub fn next(&mut self, logits: &[f32], history: &[u32]) -> Result<Choice, Error> {
        let mut peaks = take(&mut self.peaks);
        let choice = self.choose(Row::of(logits, &mut peaks), history, None);
        self.peaks = peaks;
        choice
    }

    /// As [`next`](Self::next), among the tokens of `mask` alone where there is one.
    ///
    /// # Errors
    /// As `next`, or a mask that leaves no token.
    pub fn choose(&mut self, row: Row<'_>, history: &[u32], mask: Option<&Mask>) -> Result<Choice, Error> {
        let best = row::best(row)?;
        let (top, logprob) = match self.options.logprobs {
            None => (Vec::new(), None),
            Some(count) => {
                let logits = row.values();
                let normaliser = log_sum_exp(logits, best);
                let logprob = move |id: u32| (f64::from(logits[id as usize]) - normaliser) as f32;
                let top = self.room.likeliest(row, count).iter().map(|&id| (id, logprob(id))).collect();
                (top, Some(logprob))
            }
        };
        let penalises = self.options.repetition_penalty != 1.0;
        let id = if penalises || mask.is_some() {
            self.bend(row.values(), history, mask);
            // Out of the sampler for a moment, which picks by them.
            let (bent, mut peaks) = (take(&mut self.bent), take(&mut self.peaks));
            let row = Row::of(&bent, &mut peaks);
            let id = row::best(row).map(|best| self.pick(row, best));
            (self.bent, self.peaks) = (bent, peaks);
            id?
        } else {
            self.pick(row, best)
        };
        Ok(Choice { id, logprob: logprob.map(|logprob| logprob(id)), top })
    }

    /// The logits less what has occurred and what is excluded, into `bent`.
    fn bend(&mut self, logits: &[f32], history: &[u32], mask: Option<&Mask>) {
        self.bent.clear();
        self.bent.extend_from_slice(logits);
        let SamplingOptions { repetition_penalty: penalty, repetition_window: window, .. } = self.options;
        if penalty != 1.0 {
            let window = if window == 0 { history.len() } else { window };
            for &id in &history[history.len().saturating_sub(window)..] {
                // From the logit as it came, so that an id which occurred twice is penalised once.
                let Some(&logit) = logits.get(id as usize) else { continue };
                let scaled = if logit > 0.0 { logit / penalty } else { logit * penalty };
                // An excluded token stays so, and no other becomes one.
                self.bent[id as usize] = if logit.is_finite() { scaled.clamp(f32::MIN, f32::MAX) } else { logit };
            }
        }
        if let Some(mask) = mask {
            let excluded = self.bent.iter_mut().zip(0..).filter(|(_, id)| !mask.allows(*id));
            excluded.for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
        }
    }

    /// The choice by `row`, the highest of which is that of `best`.
    fn pick(&mut self, row: Row<'_>, best: u32) -> u32 {
        if self.options.temperature == 0.0 {
            return best;
        }
        // 53 random bits: a fraction in [0, 1).
        let random = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let quick = self.room.draw(row, best, &self.options, random);
        quick.unwrap_or_else(|| simple::draw(row.values(), best, &self.options, random))
    }
}

/// The log-probability of every token.
///
/// # Errors
/// As [`Sampler::next`].
pub fn log_softmax(logits: &[f32]) -> Result<Vec<f32>, Error> {
    let best = greedy(logits)?;
    let normaliser = log_sum_exp(logits, best);
    Ok(logits.iter().map(|&l| (f64::from(l) - normaliser) as f32).collect())
}

/// The id of the highest logit, the lowest of equal ones: the greedy choice.
///
/// # Errors
/// As [`Sampler::next`].
pub fn greedy(logits: &[f32]) -> Result<u32, Error> {
    row::best(Row::of(logits, &mut Vec::new()))
}

/// `ln(sum(exp(l)))`, shifted by the highest so that nothing overflows.
fn log_sum_exp(logits: &[f32], best: u32) -> f64 {
    let best = f64::from(logits[best as usize]);
    best + libm::log(logits.iter().map(|&l| libm::exp(f64::from(l) - best)).sum())
}

/// A number that can be a heap's key.
#[derive(Clone, Copy, PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // Adding 0 makes both zeros the same one.
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}

#[cfg(test)]
mod tests {
    use anemone_exec::fast::BLOCK;
    use proptest::prelude::*;

    use super::*;

    fn sampled(options: SamplingOptions, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.next(logits, &[]).unwrap().id as usize] += 1;
        }
        counts
    }

    fn warm() -> SamplingOptions {
        SamplingOptions { temperature: 1.0, seed: 7, ..SamplingOptions::greedy() }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let mut sampler = Sampler::new(SamplingOptions { logprobs: Some(3), ..SamplingOptions::greedy() }).unwrap();
        let choice = sampler.next(&[0.0, 2.0, 2.0, f32::NEG_INFINITY], &[]).unwrap();
        assert_eq!(choice.id, 1);
        assert_eq!(choice.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
        // ln(e^2 / (1 + 2 e^2))
        let logprob = choice.logprob.unwrap();
        assert!((logprob + (1.0 + 2.0 * 2f64.exp()).ln() as f32 - 2.0).abs() < 1e-6, "{logprob}");
        assert_eq!(greedy(&[-0.0, 0.0]).unwrap(), 0);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Probabilities 1/2, 1/4, 1/4 by their logarithms; 8000 draws, five standard deviations around the mean.
        let counts = sampled(warm(), &[2f32.ln(), 0.0, 0.0], 8000);
        assert!((counts[0] as i64 - 4000).abs() < 224 && (counts[1] as i64 - 2000).abs() < 194, "{counts:?}");
        // At temperature 1/2 they are squared: 4/6, 1/6, 1/6.
        let counts = sampled(SamplingOptions { temperature: 0.5, ..warm() }, &[2f32.ln(), 0.0, 0.0], 9000);
        assert!((counts[0] as i64 - 6000).abs() < 224, "{counts:?}");
    }

    #[test]
    fn the_filters_leave_what_they_say() {
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let kept = |o: SamplingOptions| sampled(o, &logits, 2000).iter().filter(|&&n| n > 0).count();
        assert_eq!(kept(warm()), 4);
        assert_eq!(kept(SamplingOptions { top_k: 2, ..warm() }), 2);
        assert_eq!(kept(SamplingOptions { top_p: 0.69, ..warm() }), 2);
        assert_eq!(kept(SamplingOptions { top_p: 0.71, ..warm() }), 3);
        assert_eq!(kept(SamplingOptions { top_p: 1e-6, ..warm() }), 1);
        assert_eq!(kept(SamplingOptions { min_p: 0.4, ..warm() }), 3);
        assert_eq!(kept(SamplingOptions { min_p: 1.0, ..warm() }), 1);
        assert_eq!(kept(SamplingOptions { top_k: 3, top_p: 0.8, min_p: 0.1, ..warm() }), 3);
    }

    #[test]
    fn the_penalty_reaches_back_as_far_as_its_window() {
        let penalty = |window| SamplingOptions {
            repetition_penalty: 2.0,
            repetition_window: window,
            ..SamplingOptions::greedy()
        };
        let next = |window, history: &[u32]| {
            Sampler::new(penalty(window)).unwrap().next(&[3.0, 2.0, -1.0], history).unwrap().id
        };
        assert_eq!(next(2, &[]), 0);
        assert_eq!(next(2, &[0, 2]), 1);
        assert_eq!(next(2, &[0, 2, 2]), 0);
        assert_eq!(next(0, &[0, 2, 2]), 1);
        assert_eq!(next(2, &[99]), 0, "an id outside the logits counts for nothing");
        // A negative logit is pushed down, not up.
        assert_eq!(Sampler::new(penalty(2)).unwrap().next(&[-1.0, -1.5], &[0]).unwrap().id, 1);
    }

    #[test]
    fn a_seed_means_the_same_tokens_everywhere() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let mut sampler = Sampler::new(SamplingOptions { top_p: 0.9, seed: 42, ..warm() }).unwrap();
        let ids: Vec<u32> = (0..12).map(|_| sampler.next(&logits, &[]).unwrap().id).collect();
        assert_eq!(ids, [32, 37, 26, 18, 48, 27, 48, 24, 10, 41, 40, 16]);
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let mut sampler = Sampler::new(SamplingOptions::greedy()).unwrap();
        for logits in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
            assert!(matches!(sampler.next(logits, &[]), Err(Error::Logits(_))), "{logits:?}");
        }
        let message = sampler.next(&[0.0, f32::NAN, f32::NAN], &[]).unwrap_err().to_string();
        assert_eq!(
            message,
            "logits: the one of token 1 is NaN (2 of 3 are not finite): the model's numbers overflowed"
        );
    }

    #[test]
    fn options_outside_their_range_are_refused_by_name() {
        let base = SamplingOptions::greedy();
        for (options, name) in [
            (SamplingOptions { temperature: f32::NAN, ..base.clone() }, "temperature"),
            (SamplingOptions { temperature: -1.0, ..base.clone() }, "temperature"),
            (SamplingOptions { top_p: 0.0, ..base.clone() }, "top_p"),
            (SamplingOptions { min_p: 1.5, ..base.clone() }, "min_p"),
            (SamplingOptions { repetition_penalty: 0.0, ..base.clone() }, "repetition_penalty"),
        ] {
            let message = Sampler::new(options).unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }

    /// The quick draw is worth its lines only where it answers.
    #[test]
    fn the_quick_draw_seldom_asks_the_simple_one() {
        let hash = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
        // Sums of four: a bell, as logits of a vocabulary have.
        let logits: Vec<f32> = (0..8192u64).map(|i| 6.0 * (0..4).map(|k| hash(4 * i + k)).sum::<f32>()).collect();
        let mut peaks = Vec::new();
        let row = Row::of(&logits, &mut peaks);
        let best = row::best(row).unwrap();
        for options in [warm(), SamplingOptions { top_p: 0.9, temperature: 0.7, ..warm() }] {
            let mut room = Room::default();
            let answered = (0..2000).filter(|&i| room.draw(row, best, &options, f64::from(hash(i))).is_some()).count();
            assert!(answered > 1500, "{answered} of 2000: {options:?}");
        }
    }

    #[test]
    fn a_nucleus_of_many_tokens_is_the_simple_one() {
        let hash = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
        // With equals among them, of which the lowest ids come first.
        let logits: Vec<f32> = (0..20_000).map(|i| (64.0 * hash(i)).round() / 32.0).collect();
        let mut peaks = Vec::new();
        let row = Row::of(&logits, &mut peaks);
        let best = row::best(row).unwrap();
        let mut room = Room::default();
        for (top_p, min_p) in [(0.95, 0.0), (0.6, 0.0), (0.9999, 0.3), (0.95, 0.9)] {
            let options = SamplingOptions { top_p, min_p, ..warm() };
            let mut answered = 0;
            for random in (0..40).map(|i| f64::from(hash(1 << 20 | i))) {
                if let Some(id) = room.draw(row, best, &options, random) {
                    assert_eq!(id, simple::draw(&logits, best, &options, random), "{random}");
                    answered += 1;
                }
            }
            assert!(answered > 36, "{answered} of 40: {options:?}");
        }
    }

    proptest! {
        #[test]
        fn the_choice_is_always_a_token_that_is_not_excluded(
            logits in prop::collection::vec(prop_oneof![-1e30f32..1e30, Just(f32::NEG_INFINITY), -5f32..5.0], 1..40),
            temperature in prop_oneof![Just(0.0f32), 1e-30f32..1e30],
            top_k in 0usize..50, top_p in 1e-9f32..=1.0, min_p in 0f32..=1.0, seed: u64,
        ) {
            prop_assume!(logits.iter().any(|l| l.is_finite()));
            let options = SamplingOptions { temperature, top_k, top_p, min_p, seed, ..SamplingOptions::greedy() };
            let choice = Sampler::new(options).unwrap().next(&logits, &[]).unwrap();
            prop_assert!(logits[choice.id as usize].is_finite());
        }

        /// Also where the random number falls just beside the border between two tokens.
        #[test]
        fn the_quick_draw_is_the_simple_one(
            logits in prop_oneof![
                prop::collection::vec(-20f32..20.0, 1..700),
                prop::collection::vec((-9i32..9).prop_map(|l| l as f32 / 2.0), 1..700),
                prop::collection::vec(prop_oneof![-1e30f32..1e30, Just(f32::NEG_INFINITY), -5f32..5.0], 1..200),
            ],
            temperature in prop_oneof![Just(1.0f32), 0.1f32..3.0, 1e-30f32..1e30],
            top_k in prop_oneof![2 => Just(0usize), 1 => 1usize..800],
            top_p in prop_oneof![Just(1.0f32), 0.5f32..1.0, 1e-9f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0f32..0.2, 0f32..=1.0],
            seed: u64, border in 0usize..700, beside in -2i32..3,
        ) {
            let mut peaks = Vec::new();
            prop_assume!(logits.iter().any(|l| l.is_finite()));
            let row = Row::of(&logits, &mut peaks);
            let best = row::best(row).unwrap();
            let options = SamplingOptions { temperature, top_k, top_p, min_p, ..SamplingOptions::greedy() };
            let share = |n: usize| {
                let weight = |id| simple::weight(&logits, best, temperature, id as u32);
                (0..n).map(weight).sum::<f64>() / (0..logits.len()).map(weight).sum::<f64>()
            };
            let border = share(border.min(logits.len())) + f64::from(beside) * 1e-7;
            let mut room = Room::default();
            for random in [(seed >> 11) as f64 / (1u64 << 53) as f64, border.clamp(0.0, 1.0 - f64::EPSILON)] {
                if let Some(id) = room.draw(row, best, &options, random) {
                    prop_assert_eq!(id, simple::draw(&logits, best, &options, random));
                }
            }
        }

        /// Two tokens among so many unlikely ones that these weigh more together than estimates are off by: they decide beside a border
        /// of the two, though their blocks are not read at first.
        #[test]
        fn what_is_not_read_still_counts(
            before in 0usize..300, after in 100usize..300, second in -2f32..0.0,
            unlikely in -19.0f32..-18.7, beside in -9i32..=9,
        ) {
            let blocks = |count: usize| vec![unlikely; count * BLOCK];
            let likely = [&[0.0, second][..], &[f32::NEG_INFINITY; BLOCK - 2]].concat();
            let logits = [blocks(before), likely, blocks(after)].concat();
            let (best, mut peaks) = ((before * BLOCK) as u32, Vec::new());
            let row = Row::of(&logits, &mut peaks);
            let weight = |count: usize| (count * BLOCK) as f64 * f64::from(unlikely).exp();
            let (start, second, all) = (weight(before), f64::from(second).exp(), weight(before + after));
            let share = |weight: f64| (weight / (1.0 + second + all) + f64::from(beside) * 1e-6).clamp(1e-9, 1.0 - 1e-9);
            let draws = [start, start + 1.0, start + 1.0 + second].map(|border| (1.0, share(border)));
            let nuclei = [1.0, 1.0 + second].map(|border| (share(border) as f32, 0.999_999));
            for (top_p, random) in draws.into_iter().chain(nuclei) {
                let options = SamplingOptions { top_p, ..warm() };
                if let Some(id) = Room::default().draw(row, best, &options, random) {
                    prop_assert_eq!(id, simple::draw(&logits, best, &options, random));
                }
            }
        }

        #[test]
        fn the_likeliest_are_those_of_a_sort(
            logits in prop::collection::vec(prop_oneof![(-3i32..3).prop_map(|l| l as f32), -5f32..5.0], 1..700),
            count in 0usize..800,
        ) {
            let mut peaks = Vec::new();
            let found = Room::default().likeliest(Row::of(&logits, &mut peaks), count).to_vec();
            prop_assert_eq!(found, simple::likeliest(&logits, count));
        }

        #[test]
        fn log_probabilities_sum_to_one(logits in prop::collection::vec(-50f32..50.0, 1..60)) {
            let sum: f64 = log_softmax(&logits).unwrap().iter().map(|&l| f64::from(l).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-4, "{}", sum);
        }
    }
}
