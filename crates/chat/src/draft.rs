//! Drafts: guesses at the tokens to come, made of the tokens so far.
//!
//! What an answer repeats of its prompt or of itself (a name, a line of code, a list) stands there already. A draft is what followed
//! the latest place that shares the longest end with the tokens so far. The model computes it in one call with the token that is
//! sure, which costs less than a call for each, since the weights are read once; and the answer keeps of it what would
//! have been drawn anyway ([`crate::generate`]).
//!
//! **A draft is never believed, so making one may depend on measured times and the answer does not.** One is made where it
//! pays: calls of each length are timed as they happen, and how often guesses come true is counted, whether or not they were fed: apart
//! for short shared ends and long ones, and by how many on end were right before, for texts repeat themselves in runs.

use std::time::Instant;

/// Lengths of drafts. Few, since a session keeps memory for calls of each.
pub const LENGTHS: [usize; 4] = [1, 3, 7, 15];

/// Tokens of the largest call that is timed.
const CALLS: usize = 1 + LENGTHS[LENGTHS.len() - 1];

/// Shared ends that are looked for, in tokens: shorter ones foretell nothing, and longer ones no more.
const SHORTEST: usize = 2;
const LONGEST: usize = 16;

/// What a draft has to promise, in tokens for the time of one: a little more than it costs, since costs are estimates.
const WORTH: f64 = 1.1;

/// What a token more costs where no call of that length was timed yet, as a part of a call of one.
const GUESS: f64 = 0.15;

/// How much nearer to that guess a time comes with each token, so that one slow call is not the last of its length.
const DOUBT: f64 = 0.01;

/// Tokens of a prompt, its last ones, that are guessed at as if they had been drawn: what is said of the answer before its start.
const READ: usize = 128;

/// How much of what was seen counts after another guess: some 25 of them do.
const MEMORY: f64 = 0.96;

/// When drafts are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drafts {
    /// At no time.
    #[default]
    Never,
    /// Of so many tokens, wherever there is something to guess by: for tests.
    Always(usize),
    /// Where they pay, by the times and guesses of the answer so far.
    Measured,
}

/// Makes the drafts of one answer.
#[derive(Clone, Debug, Default)]
pub struct Drafter {
    drafts: Drafts,
    /// By tokens of a call, less one.
    times: [Timed; CALLS],
    /// By length of the shared end and right guesses before; see [`class`].
    guesses: [[Guesses; 5]; 2],
    /// The shared end's length before the next guess.
    shared: usize,
    /// How many guesses on end were right.
    run: usize,
    /// The first token of a draft that was not made.
    guess: Option<u32>,
    /// When the call that is being made began.
    begun: Option<Instant>,
    made: usize,
    hit: usize,
}

/// Seconds of a call.
#[derive(Clone, Copy, Debug, Default)]
struct Timed {
    seconds: f64,
    calls: u32,
}

/// How guesses came out, the latest counting most.
#[derive(Clone, Copy, Debug, Default)]
struct Guesses {
    right: f64,
    all: f64,
}

impl Guesses {
    fn came(&mut self, right: bool) {
        self.right = self.right * MEMORY + f64::from(u8::from(right));
        self.all = self.all * MEMORY + 1.0;
    }

    /// How likely the next one is right; one of two before anything was seen.
    fn chance(self) -> f64 {
        (self.right + 1.0) / (self.all + 2.0)
    }
}

impl Drafter {
    /// Drafts made so.
    pub fn new(drafts: Drafts) -> Self {
        Self { drafts, ..Self::default() }
    }

    /// How many tokens were drafted, and how many of these were what was drawn.
    pub fn counts(&self) -> (usize, usize) {
        (self.made, self.hit)
    }

    /// Guesses at the tokens of a prompt, which are known.
    pub fn read(&mut self, prompt: &[u32]) {
        if self.drafts == Drafts::Measured {
            for end in prompt.len().saturating_sub(READ).max(1)..prompt.len() {
                if let Some((shared, from)) = lookup(&prompt[..end]) {
                    self.shared = shared;
                    self.came(prompt[from] == prompt[end]);
                }
            }
        }
    }

    /// Adds to `feed`, whose `sure` tokens are the last of `tokens`, a draft of `most` tokens at most. The call follows.
    pub fn draft(&mut self, tokens: &[u32], sure: usize, most: usize, feed: &mut Vec<u32>) {
        if self.drafts == Drafts::Never {
            return;
        }
        self.guess = None;
        self.doubt();
        if let Some((shared, from)) = lookup(tokens) {
            self.shared = shared;
            let count = match self.drafts {
                Drafts::Always(count) => count.min(most),
                Drafts::Never | Drafts::Measured => self.worth(sure, most),
            };
            for i in from..from + count {
                // Behind the last token a repetition goes on with itself.
                let id = tokens.get(i).copied().unwrap_or_else(|| feed[sure + i - tokens.len()]);
                feed.push(id);
            }
            self.made += count;
            self.guess = (count == 0).then(|| tokens[from]);
        }
        self.begun = Some(Instant::now());
    }

    /// A call of that many tokens has ended.
    pub fn computed(&mut self, tokens: usize) {
        let Some(begun) = self.begun.take() else { return };
        let Some(timed) = tokens.checked_sub(1).and_then(|i| self.times.get_mut(i)) else { return };
        let (seconds, known) = (begun.elapsed().as_secs_f64(), timed.seconds);
        timed.calls += 1;
        timed.seconds = match timed.calls {
            // The first makes room for those that follow.
            1 => 0.0,
            2 => seconds,
            // A call is sooner slowed down than sped up by what else the machine does.
            _ if seconds < known => (known + seconds) / 2.0,
            _ => known + (seconds - known).min(known / 20.0),
        };
    }

    /// After a draw that gave `drawn` first: how many of the draft's next tokens it gave, and whether it gave another instead.
    pub fn drawn(&mut self, drawn: u32, foreseen: usize, missed: bool) {
        (0..foreseen).for_each(|_| self.came(true));
        if missed {
            self.came(false);
        }
        if let Some(guess) = self.guess.take() {
            self.came(guess == drawn);
        }
        self.hit += foreseen;
    }

    /// How the next guess came out. A right one makes the shared end longer.
    fn came(&mut self, right: bool) {
        let (length, before) = class(self.shared, self.run);
        self.guesses[length][before].came(right);
        self.shared += usize::from(right);
        self.run = if right { self.run + 1 } else { 0 };
    }

    /// How long a draft behind `sure` tokens is worth its time.
    fn worth(&self, sure: usize, most: usize) -> usize {
        let Some(plain) = self.seconds(sure) else { return 0 };
        let chance = |i: usize| {
            let (length, before) = class(self.shared + i, self.run + i);
            self.guesses[length][before].chance()
        };
        let gain = |count: usize| {
            // One token comes in any case, and one more behind each drafted one where it and all before it are right.
            let all_right = (0..count).scan(1.0, |all, i| {
                *all *= chance(i);
                Some(*all)
            });
            Some(((1.0 + all_right.sum::<f64>()) * plain / self.seconds(sure + count)?, count))
        };
        let best =
            LENGTHS.into_iter().filter(|&count| count <= most).filter_map(gain).max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(gain, _)| *gain >= WORTH).map_or(0, |(_, count)| count)
    }

    /// Times of drafts become a little more like what is hoped for.
    fn doubt(&mut self) {
        let one = self.times[0].seconds;
        for (i, timed) in self.times.iter_mut().enumerate().skip(1) {
            let hoped = one * (1.0 + GUESS * i as f64);
            timed.seconds -= (timed.seconds - hoped).max(0.0) * DOUBT;
        }
    }

    /// What a call of that many tokens takes, as far as is known.
    fn seconds(&self, tokens: usize) -> Option<f64> {
        let one = self.times[0].seconds;
        let (i, timed) = self.times.get(..tokens)?.iter().enumerate().rfind(|(_, timed)| timed.seconds > 0.0)?;
        (one > 0.0).then(|| timed.seconds + (tokens - 1 - i) as f64 * GUESS * one)
    }
}

/// Ends of up to 3 tokens, and of more; and after 0, 1, 2 or 3, 4 to 7, and 8 or more right guesses.
fn class(shared: usize, run: usize) -> (usize, usize) {
    let before = match run {
        0..=1 => run,
        2..=3 => 2,
        4..=7 => 3,
        _ => 4,
    };
    (usize::from(shared > 3), before)
}

/// The latest place that shares the longest end with `tokens`: how many tokens it shares, and where it goes on. Looking at each
/// token costs nothing beside attention, which looks at its keys in every layer.
fn lookup(tokens: &[u32]) -> Option<(usize, usize)> {
    let (&last, before) = tokens.split_last()?;
    let mut best = (0, 0);
    for end in (1..=before.len()).rev() {
        if tokens[end - 1] != last {
            continue;
        }
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let shared = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
        if shared > best.0 {
            best = (shared, end);
        }
        if shared == LONGEST {
            break;
        }
    }
    (best.0 >= SHORTEST).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(drafter: &mut Drafter, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut feed = vec![tokens[tokens.len() - 1]];
        drafter.draft(tokens, 1, most, &mut feed);
        feed.split_off(1)
    }

    #[test]
    fn a_draft_is_what_followed_the_longest_shared_end() {
        let mut drafter = Drafter::new(Drafts::Always(4));
        // `2 3` stands twice before; `1 2 3` once, and that is longer.
        assert_eq!(drafted(&mut drafter, &[1, 2, 3, 4, 5, 6, 9, 2, 3, 7, 1, 2, 3], 9), [4, 5, 6, 9]);
        assert_eq!(drafted(&mut drafter, &[1, 2, 3, 4, 5, 6, 9, 2, 3, 7, 1, 2, 3], 2), [4, 5]);
        // Of equal ones the latest.
        assert_eq!(drafted(&mut drafter, &[1, 2, 4, 0, 1, 2, 5, 9, 1, 2], 1), [5]);
        // A single token foretells nothing.
        assert_eq!(drafted(&mut drafter, &[1, 2, 3, 4, 3], 4), [0; 0]);
        assert_eq!(drafted(&mut drafter, &[7], 4), [0; 0]);
        // A repetition goes on with itself.
        assert_eq!(drafted(&mut drafter, &[5, 8, 9, 8, 9, 8, 9], 4), [8, 9, 8, 9]);
        assert_eq!(drafted(&mut drafter, &[6, 6, 6], 4), [6, 6, 6, 6]);
        assert_eq!(drafter.counts(), (15, 0));
        assert_eq!(drafted(&mut Drafter::default(), &[6, 6, 6], 4), [0; 0]);
    }

    /// What a drafter would do whose guesses came true so often, where a token more costs so much.
    fn choice(right: usize, wrong: usize, token_more: f64) -> usize {
        let mut drafter = Drafter::new(Drafts::Measured);
        drafter.times = std::array::from_fn(|i| Timed { seconds: 1.0 + token_more * i as f64, calls: 9 });
        drafter.shared = LONGEST;
        (0..wrong).for_each(|_| drafter.drawn(0, 0, true));
        (0..right).for_each(|_| drafter.drawn(0, 1, false));
        drafter.worth(1, usize::MAX)
    }

    #[test]
    fn drafts_are_made_where_they_pay() {
        assert_eq!(choice(40, 0, 0.05), 15);
        assert_eq!(choice(40, 0, 0.3), 7);
        assert_eq!(choice(40, 0, 1.0), 0, "a draft that costs what it promises");
        assert_eq!(choice(0, 40, 0.1), 0, "guesses that are wrong");
        assert_eq!(choice(0, 0, 0.5), 0, "nothing is known yet");
        assert_eq!(choice(2, 40, 0.1), 3, "two right ones after many wrong ones");
        assert_eq!(choice(40, 40, 0.1), 15, "many right ones after many wrong ones");
        let mut unknown = Drafter::new(Drafts::Measured);
        (0..40).for_each(|_| unknown.drawn(0, 1, false));
        assert_eq!(unknown.worth(1, 15), 0, "no call was timed yet");
    }

    #[test]
    fn a_slow_call_is_not_the_last_of_its_length() {
        let mut drafter = Drafter::new(Drafts::Measured);
        drafter.times = std::array::from_fn(|i| Timed { seconds: if i == 0 { 1.0 } else { 30.0 }, calls: 9 });
        let tokens: Vec<u32> = (0..40).map(|i| i % 4).collect();
        drafter.read(&tokens);
        assert_eq!(drafted(&mut drafter, &tokens, 15), [0; 0]);
        assert!((0..500).any(|_| !drafted(&mut drafter, &tokens, 15).is_empty()));
    }

    #[test]
    fn guesses_are_counted_where_no_draft_is_made() {
        let mut drafter = Drafter::new(Drafts::Measured);
        let tokens: Vec<u32> = (0..40).map(|i| i % 4).collect();
        for end in 20..40 {
            assert_eq!(drafted(&mut drafter, &tokens[..end], 15), [0; 0]);
            drafter.drawn(tokens[end], 0, false);
        }
        assert!(drafter.guesses[1][4].chance() > 0.7);
        assert_eq!(drafter.counts(), (0, 0));
    }
}
