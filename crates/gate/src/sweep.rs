//! The cliff finder's search: which topology to try next, and what the tries so far say.
//!
//! A topology is a path over layer boundaries, a shard an edge of it. Edges have costs in milliseconds a token, measured or
//! predicted, or are rejected for a reason: placed on the CPU, NaN, refused by the compiler. The cheapest path that has not
//! been tried is what to try next.
//!
//! **A sum of edges is a hint and no result.** An edge's time depends on what runs around it: how programs share the engine,
//! what stays in its memory. So the winner is the topology with the best time *as a whole*, among those that ran as a whole;
//! the path of the best edges seen anywhere is told apart, as something worth trying.
//!
//! Nothing here reads or writes anything: what builds, gates and times is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Layers `[start, end)` as one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// The first layer.
    pub start: usize,
    /// The layer after the last.
    pub end: usize,
}

impl Edge {
    /// As a range.
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// A cut of all layers, in order.
pub type Topology = Vec<Edge>;

/// A topology in the words of `--topology`: `0-20,20-24`.
pub fn name(topology: &[Edge]) -> String {
    topology.iter().map(|e| format!("{}-{}", e.start, e.end)).collect::<Vec<_>>().join(",")
}

/// What is known about an edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// The best time seen, in milliseconds a token.
    Measured(f64),
    /// It must not be used.
    Rejected(String),
}

/// A topology that ran as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The cut.
    pub topology: Topology,
    /// Tokens that were timed: a longer run says more than a shorter one, which the clock's first minute flatters.
    pub tokens: usize,
    /// Milliseconds a token, all layer shards together.
    pub ms: f64,
}

/// What a path costs where nothing was measured.
///
/// A line through the published whole-model speeds of Phi-4-mini on an M4 Max (32, 11, 8 and 4 shards: 118, 69, 60 and 53 ms):
/// each call costs about 2 ms and weights are read at about 70 GB a second. What is compared is paths with each other.
#[derive(Clone, Copy, Debug)]
pub struct Guess {
    /// Milliseconds of a call.
    pub call: f64,
    /// Milliseconds of a byte of weights.
    pub byte: f64,
}

impl Default for Guess {
    fn default() -> Self {
        Self { call: 2.0, byte: 1.0 / 70e6 }
    }
}

/// Tries so far, and what can be tried.
#[derive(Clone, Debug)]
pub struct Search {
    /// Weight bytes of each layer.
    bytes: Vec<u64>,
    guess: Guess,
    edges: BTreeMap<Edge, Known>,
    profiles: Vec<Profile>,
    tried: BTreeSet<Topology>,
}

/// How many of the cheapest paths to a boundary are kept while looking for one that has not been tried.
const PATHS: usize = 64;

/// A path and its cost.
type Path = (f64, Topology);

impl Search {
    /// A search over layers of these sizes, in bytes of weights.
    pub fn new(bytes: Vec<u64>, guess: Guess) -> Self {
        Self { bytes, guess, edges: BTreeMap::new(), profiles: Vec::new(), tried: BTreeSet::new() }
    }

    /// An edge was timed. The best time counts, and a rejection stays one.
    pub fn measured(&mut self, edge: Edge, ms: f64) {
        match self.edges.get_mut(&edge) {
            Some(Known::Rejected(_)) => {}
            Some(Known::Measured(best)) => *best = best.min(ms),
            None => {
                self.edges.insert(edge, Known::Measured(ms));
            }
        }
    }

    /// An edge must not be used. What was measured of it counts no more.
    pub fn rejected(&mut self, edge: Edge, reason: impl Into<String>) {
        self.edges.insert(edge, Known::Rejected(reason.into()));
    }

    /// A topology ran as a whole.
    pub fn ran(&mut self, profile: Profile) {
        self.tried.insert(profile.topology.clone());
        self.profiles.push(profile);
    }

    /// A topology was tried and did not run as a whole.
    pub fn failed(&mut self, topology: Topology) {
        self.tried.insert(topology);
    }

    /// What is known about each edge.
    pub fn edges(&self) -> &BTreeMap<Edge, Known> {
        &self.edges
    }

    /// The cheapest path that has not been tried, with what it is thought to cost. `judge` is asked about each edge of a
    /// candidate of which nothing is known yet; a reason it gives rejects the edge, for good.
    pub fn propose(&mut self, judge: &mut dyn FnMut(Edge) -> Option<String>) -> Option<Path> {
        let mut accepted = BTreeSet::new();
        loop {
            let guess = |edge: Edge| match self.edges.get(&edge) {
                Some(Known::Measured(ms)) => Some(*ms),
                Some(Known::Rejected(_)) => None,
                None => Some(self.guess(edge)),
            };
            let path = self.cheapest(guess).into_iter().find(|(_, path)| !self.tried.contains(path))?;
            let refused = path.1.iter().filter(|e| !self.edges.contains_key(e) && !accepted.contains(*e));
            let refused: Vec<_> = refused.map(|&e| (e, judge(e))).collect();
            let mut whole = true;
            for (edge, reason) in refused {
                match reason {
                    Some(reason) => {
                        whole = false;
                        self.rejected(edge, reason);
                    }
                    None => {
                        accepted.insert(edge);
                    }
                }
            }
            if whole {
                return Some(path);
            }
        }
    }

    /// The best topology among those that ran as a whole: by its longest run, and by the best of those. One that ran only
    /// briefly is compared with others only where nothing ran longer.
    pub fn winner(&self) -> Option<&Profile> {
        let longest = |p: &&Profile| {
            let same = self.profiles.iter().filter(|q| q.topology == p.topology);
            same.map(|q| q.tokens).max() == Some(p.tokens)
        };
        let usable = |p: &&Profile| p.topology.iter().all(|e| !matches!(self.edges.get(e), Some(Known::Rejected(_))));
        let standing: Vec<_> = self.profiles.iter().filter(longest).filter(usable).collect();
        let length = standing.iter().map(|p| p.tokens).max()?;
        standing.into_iter().filter(|p| p.tokens == length).min_by(|a, b| a.ms.total_cmp(&b.ms))
    }

    /// The path of the best measured edges: a hint. It may never have run as a whole.
    pub fn hint(&self) -> Option<Path> {
        let measured = |edge: Edge| match self.edges.get(&edge) {
            Some(Known::Measured(ms)) => Some(*ms),
            _ => None,
        };
        self.cheapest(measured).into_iter().next()
    }

    fn guess(&self, edge: Edge) -> f64 {
        let bytes: u64 = self.bytes[edge.range()].iter().sum();
        self.guess.call + self.guess.byte * bytes as f64
    }

    /// The cheapest paths over all layers, cheapest first; equal ones in the order of their cuts.
    fn cheapest(&self, cost: impl Fn(Edge) -> Option<f64>) -> Vec<Path> {
        let layers = self.bytes.len();
        let mut best: Vec<Vec<Path>> = vec![vec![(0.0, Vec::new())]];
        for end in 1..=layers {
            let mut paths: Vec<Path> = Vec::new();
            for (start, heads) in best.iter().enumerate() {
                let edge = Edge { start, end };
                let Some(ms) = cost(edge) else { continue };
                let extended = |(sum, path): &Path| (sum + ms, path.iter().copied().chain([edge]).collect());
                paths.extend(heads.iter().map(extended));
            }
            paths.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
            paths.truncate(PATHS);
            best.push(paths);
        }
        best.pop().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(sizes: &[usize]) -> Topology {
        let mut start = 0;
        sizes.iter().map(|&n| (Edge { start, end: start + n }, start += n).0).collect()
    }

    const LONG: usize = 512;
    const SHORT: usize = 64;

    /// A **synthetic** table of edges. Only the times of whole topologies, and the two rejections, were published; the edges'
    /// own times were made up here so that they agree with them.
    fn published() -> Search {
        let mut search = Search::new(vec![100_790_000; 32], Guess::default());
        for (start, end, ms) in [
            (0, 20, 32.60),
            (20, 24, 6.90),
            (24, 30, 10.12),
            (30, 32, 3.42),
            (0, 16, 25.90),
            (16, 24, 13.45),
            (20, 25, 8.60),
            (25, 30, 8.95),
        ] {
            search.measured(Edge { start, end }, ms);
        }
        search.rejected(Edge { start: 0, end: 24 }, "every op on the CPU");
        search.rejected(Edge { start: 24, end: 32 }, "NaN in the range golden");
        for (sizes, tokens, ms) in [
            ([20, 4, 6, 2], LONG, 53.04),
            ([16, 8, 6, 2], LONG, 55.08),
            ([16, 8, 6, 2], SHORT, 53.23),
            ([20, 5, 5, 2], LONG, 53.57),
        ] {
            search.ran(Profile { topology: cut(&sizes), tokens, ms });
        }
        search
    }

    #[test]
    fn the_published_winner_wins_as_a_whole_and_the_hint_stays_a_hint() {
        let search = published();
        let winner = search.winner().unwrap();
        assert_eq!((name(&winner.topology).as_str(), winner.ms), ("0-20,20-24,24-30,30-32", 53.04));
        // The edges that agree with the whole of 20+4+6+2 and 20+5+5+2 say that 16+8+6+2 is faster, which as a whole it is not.
        let sum = |sizes: &[usize]| -> f64 {
            let ms = |e: &Edge| match search.edges()[e] {
                Known::Measured(ms) => ms,
                _ => panic!(),
            };
            cut(sizes).iter().map(ms).sum()
        };
        assert!((sum(&[20, 4, 6, 2]) - 53.04).abs() < 1e-9 && (sum(&[20, 5, 5, 2]) - 53.57).abs() < 1e-9);
        let (ms, hint) = search.hint().unwrap();
        assert_eq!(name(&hint), "0-16,16-24,24-30,30-32");
        assert!(ms < winner.ms);
    }

    #[test]
    fn a_rejected_shard_takes_its_topologies_with_it() {
        let mut search = published();
        search.ran(Profile { topology: cut(&[24, 8]), tokens: LONG, ms: 40.0 });
        assert_eq!(search.winner().unwrap().ms, 53.04);
        search.measured(Edge { start: 0, end: 24 }, 20.0);
        assert!(matches!(search.edges()[&Edge { start: 0, end: 24 }], Known::Rejected(_)));
        for _ in 0..50 {
            let (_, path) = search.propose(&mut |_| None).unwrap();
            assert!(!path.contains(&Edge { start: 0, end: 24 }) && !path.contains(&Edge { start: 24, end: 32 }));
            search.failed(path);
        }
    }

    #[test]
    fn only_short_runs_are_compared_where_nothing_ran_longer() {
        let mut search = Search::new(vec![1; 4], Guess::default());
        search.ran(Profile { topology: cut(&[4]), tokens: SHORT, ms: 2.0 });
        search.ran(Profile { topology: cut(&[2, 2]), tokens: SHORT, ms: 1.0 });
        assert_eq!(search.winner().unwrap().ms, 1.0);
        search.ran(Profile { topology: cut(&[4]), tokens: LONG, ms: 3.0 });
        assert_eq!(search.winner().unwrap().ms, 3.0);
    }

    #[test]
    fn edges_are_judged_once_and_proposals_end() {
        let mut search = Search::new(vec![1; 4], Guess { call: 2.0, byte: 1.0 });
        let mut asked = Vec::new();
        let mut tries = Vec::new();
        let mut judge = |e: Edge| {
            assert!(!asked.contains(&e) || e.end - e.start <= 2, "asked twice about a rejected edge");
            asked.push(e);
            (e.end - e.start > 2).then(|| "too large".to_owned())
        };
        while let Some((_, path)) = search.propose(&mut judge) {
            tries.push(name(&path));
            search.failed(path);
        }
        // Every cut of four layers into ones and twos, the fewest calls first.
        assert_eq!(tries, ["0-2,2-4", "0-1,1-2,2-4", "0-1,1-3,3-4", "0-2,2-3,3-4", "0-1,1-2,2-3,3-4"]);
    }

    proptest! {
        /// Against every path there is, one by one.
        #[test]
        fn the_cheapest_path_is_the_cheapest(costs in prop::collection::vec(prop::option::weighted(0.8, 1u32..100), 28)) {
            let layers = 7;
            let mut search = Search::new(vec![1; layers], Guess::default());
            let edges = (0..layers).flat_map(|s| (s + 1..=layers).map(move |e| Edge { start: s, end: e }));
            for (edge, cost) in edges.zip(&costs) {
                if let Some(cost) = cost {
                    search.measured(edge, f64::from(*cost));
                }
            }
            let all = (0u32..1 << (layers - 1)).filter_map(|cuts| {
                let mut start = 0;
                let mut sum = 0.0;
                for end in 1..=layers {
                    if end == layers || cuts & 1 << (end - 1) != 0 {
                        let Some(Known::Measured(ms)) = search.edges().get(&Edge { start, end }) else { return None };
                        sum += ms;
                        start = end;
                    }
                }
                Some(sum)
            });
            let least = all.min_by(f64::total_cmp);
            prop_assert_eq!(search.hint().map(|(ms, _)| ms), least);
        }
    }
}
