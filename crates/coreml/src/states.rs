//! Which functions of a package work on one state, and what is done where Core ML does not let them.
//!
//! To users the functions of a package share states by name. Core ML loads each function as a model of its own and hands
//! states out per model; whether one model takes another's is not documented, and is asked at load. So states are kept in
//! *slots*. Functions in one slot share a Core ML state; between slots a cache is copied when a function is about to read
//! what another one wrote last. Sharing costs nothing; copying costs the cache's size once for each change of function,
//! which a conversation does twice a turn.

use std::collections::BTreeMap;

use anemone_exec::{Port, Signature};

/// For each function the slot of its states; `None` for functions that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots(Vec<Option<usize>>);

impl Slots {
    /// Functions whose states are the same, name by name, go into the slot of the first of them.
    pub fn of(functions: &[Signature]) -> Self {
        let states = |f: &Signature| {
            let mut states: Vec<Port> = f.states.clone();
            states.sort_by(|a, b| a.name.cmp(&b.name));
            states
        };
        let all: Vec<_> = functions.iter().map(states).collect();
        let slot = |own: &Vec<Port>| (!own.is_empty()).then(|| all.iter().position(|s| s == own)).flatten();
        Self(all.iter().map(slot).collect())
    }

    /// The slot of a function's states. A slot is named by the first function in it.
    pub fn slot(&self, function: usize) -> Option<usize> {
        self.0[function]
    }

    /// Whether the function would work on another one's state.
    pub fn borrows(&self, function: usize) -> bool {
        self.0[function].is_some_and(|slot| slot != function)
    }

    /// Gives the function a slot of its own.
    pub fn separate(&mut self, function: usize) {
        self.0[function] = Some(function);
    }
}

/// Which slot wrote each cache last.
#[derive(Clone, Debug, Default)]
pub struct Latest(BTreeMap<String, usize>);

impl Latest {
    /// What has to be copied before a function runs on `slot`: names, by the slot that has them.
    pub fn stale<'a>(&self, states: &'a [Port], slot: usize) -> BTreeMap<usize, Vec<&'a str>> {
        let mut copies: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for port in states {
            if let Some(&latest) = self.0.get(&port.name).filter(|&&l| l != slot) {
                copies.entry(latest).or_default().push(&port.name);
            }
        }
        copies
    }

    /// A function has run on `slot`.
    pub fn ran(&mut self, states: &[Port], slot: usize) {
        self.0.extend(states.iter().map(|port| (port.name.clone(), slot)));
    }
}

#[cfg(test)]
mod tests {
    use anemone_mil::ir::Dtype;

    use super::*;

    fn signature(name: &str, states: &[(&str, usize)]) -> Signature {
        let port = |&(name, width): &(&str, usize)| Port {
            name: name.to_owned(),
            dtype: Dtype::F16,
            shape: vec![Some(1), Some(width)],
        };
        Signature { name: name.to_owned(), inputs: vec![], outputs: vec![], states: states.iter().map(port).collect() }
    }

    #[test]
    fn equal_states_go_into_one_slot_whatever_their_order() {
        let functions = [
            signature("main", &[("k", 4), ("v", 4)]),
            signature("prefill", &[("v", 4), ("k", 4)]),
            signature("half", &[("k", 4)]),
            signature("none", &[]),
        ];
        let mut slots = Slots::of(&functions);
        assert_eq!([0, 1, 2, 3].map(|f| slots.slot(f)), [Some(0), Some(0), Some(2), None]);
        assert!(slots.borrows(1) && !slots.borrows(0) && !slots.borrows(2) && !slots.borrows(3));
        slots.separate(1);
        assert_eq!(slots.slot(1), Some(1));
    }

    #[test]
    fn only_what_another_slot_wrote_last_is_copied() {
        let (both, k) = (signature("both", &[("k", 4), ("v", 4)]), signature("k", &[("k", 4)]));
        let mut latest = Latest::default();
        assert!(latest.stale(&both.states, 0).is_empty(), "fresh states are zero everywhere");
        latest.ran(&both.states, 0);
        assert!(latest.stale(&both.states, 0).is_empty());
        assert_eq!(latest.stale(&k.states, 1), [(0, vec!["k"])].into());
        latest.ran(&k.states, 1);
        assert_eq!(latest.stale(&both.states, 0), [(1, vec!["k"])].into());
        latest.ran(&both.states, 0);
        assert_eq!(latest.stale(&k.states, 1), [(0, vec!["k"])].into());
    }
}
