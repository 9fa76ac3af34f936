//! Breadth-first search of all reachable states. Own, and not a library's, because of the second question: from every state,
//! if nothing fails any more, can a settled one still be reached? For that the graph without faults is walked backwards.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::fmt::Debug;
use std::hash::{Hash, Hasher};

/// What is searched.
pub trait Model {
    /// One state of the whole world.
    type State: Clone + Hash;
    /// One step of one party, or one fault.
    type Action: Copy + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;
    /// What may happen next.
    fn actions(&self, state: &Self::State, out: &mut Vec<Self::Action>);
    /// Lets it happen; none if it changes nothing.
    fn step(&self, state: &Self::State, action: Self::Action) -> Option<Self::State>;
    /// Whether it is a fault: something that a world which has calmed down does not do.
    fn is_fault(&self, action: Self::Action) -> bool;
    /// The promises that hold in every state.
    ///
    /// # Errors
    /// Which one is broken.
    fn check(&self, state: &Self::State) -> Result<(), String>;
    /// Whether all is well again: what every world without further faults shall come to.
    fn is_settled(&self, state: &Self::State) -> bool;
}

/// How a search ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// States found.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Of the states, the settled ones.
    pub settled: usize,
    /// The longest way from the start.
    pub depth: usize,
    /// The first promise that was broken: which, and how it came about.
    pub broken: Option<(String, Vec<String>)>,
    /// Not all states were looked at, because there are more than the bound.
    pub is_cut: bool,
}

struct Found {
    parent: u32,
    depth: u16,
}

fn fingerprint(state: &impl Hash) -> u64 {
    // With n states the chance that two of them share 64 bits is about n^2 / 2^65: 1e-7 for two million.
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Looks at every state, at most `states_max`.
pub fn search<M: Model>(model: &M, states_max: usize) -> Outcome {
    let start = model.start();
    let mut numbers: HashMap<u64, u32> = HashMap::from([(fingerprint(&start), 0)]);
    let mut found = vec![Found { parent: 0, depth: 0 }];
    let mut ways: Vec<M::Action> = Vec::new();
    let mut settled = vec![model.is_settled(&start)];
    // Steps that are no faults, for the way back.
    let mut calm: Vec<(u32, u32)> = Vec::new();
    let mut layer = vec![(0u32, start)];
    let mut steps = 0;
    let mut is_cut = false;
    let mut actions = Vec::new();
    let path = |found: &[Found], ways: &[M::Action], mut at: u32| {
        let mut path = Vec::new();
        while at != 0 {
            path.push(format!("{:?}", ways[at as usize - 1]));
            at = found[at as usize].parent;
        }
        path.reverse();
        path
    };
    while !layer.is_empty() && !is_cut {
        let mut next = Vec::new();
        for (number, state) in &layer {
            actions.clear();
            model.actions(state, &mut actions);
            for action in &actions {
                let Some(after) = model.step(state, *action) else { continue };
                steps += 1;
                let fresh = u32::try_from(found.len()).unwrap_or(u32::MAX);
                let target = match numbers.entry(fingerprint(&after)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(place) => {
                        place.insert(fresh);
                        found.push(Found { parent: *number, depth: found[*number as usize].depth + 1 });
                        ways.push(*action);
                        settled.push(model.is_settled(&after));
                        if let Err(broken) = model.check(&after) {
                            let broken = Some((broken, path(&found, &ways, fresh)));
                            return outcome(&found, steps, &settled, broken, is_cut);
                        }
                        next.push((fresh, after));
                        fresh
                    }
                };
                if !model.is_fault(*action) {
                    calm.push((*number, target));
                }
            }
            if found.len() > states_max {
                is_cut = true;
                break;
            }
        }
        layer = next;
    }
    let stuck = if is_cut { None } else { first_stuck(&settled, &calm) };
    let broken = stuck.map(|state| ("without further faults it never settles".to_owned(), path(&found, &ways, state)));
    outcome(&found, steps, &settled, broken, is_cut)
}

/// The first state from which no settled one is reached without a fault.
fn first_stuck(settled: &[bool], calm: &[(u32, u32)]) -> Option<u32> {
    let mut begin = vec![0u32; settled.len() + 1];
    for (_, to) in calm {
        begin[*to as usize + 1] += 1;
    }
    for index in 1..begin.len() {
        begin[index] += begin[index - 1];
    }
    let mut fill = begin.clone();
    let mut from = vec![0u32; calm.len()];
    for (source, to) in calm {
        from[fill[*to as usize] as usize] = *source;
        fill[*to as usize] += 1;
    }
    let mut good = settled.to_vec();
    let mut work: Vec<usize> = (0..settled.len()).filter(|state| settled[*state]).collect();
    while let Some(state) = work.pop() {
        for source in &from[begin[state] as usize..begin[state + 1] as usize] {
            if !std::mem::replace(&mut good[*source as usize], true) {
                work.push(*source as usize);
            }
        }
    }
    good.iter().position(|good| !good).and_then(|state| u32::try_from(state).ok())
}

fn outcome(found: &[Found], steps: usize, settled: &[bool], broken: Option<(String, Vec<String>)>, is_cut: bool) -> Outcome {
    let depth = found.iter().map(|found| usize::from(found.depth)).max().unwrap_or(0);
    Outcome { states: found.len(), steps, settled: settled.iter().filter(|s| **s).count(), depth, broken, is_cut }
}
