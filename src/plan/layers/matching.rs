//! Which node of a layer is which node of the next: pairs that follow from a few.
//!
//! Links have labels, such as the positions of operands, so where two nodes correspond, so do those they link to, and
//! their readers where those can be told apart. Pairs of parameters are enough to find the rest.

use crate::ir::{Graph, NodeId};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;

/// At least so many pairs must follow from each pair of parameters that are taken for the same in two layers.
const FOLLOWING: usize = 4;

/// Nodes are numbers from 0.
pub(in crate::plan) struct Matching {
    /// What each node links to, by label; labels differ.
    links: Vec<Vec<(u32, usize)>>,
    /// The same the other way.
    readers: Vec<Vec<(u32, usize)>>,
    /// Equal for nodes that may correspond.
    kinds: Vec<u32>,
    /// The same node of the next layer, and of the one before.
    pub next: Vec<Option<usize>>,
    pub previous: Vec<Option<usize>>,
}

impl Matching {
    pub fn new(links: Vec<Vec<(u32, usize)>>, kinds: Vec<u32>) -> Matching {
        let mut readers = vec![Vec::new(); links.len()];
        for (id, links) in links.iter().enumerate() {
            links.iter().for_each(|&(label, to)| readers[to].push((label, id)));
        }
        let none = vec![None; links.len()];
        Matching { links, readers, kinds, next: none.clone(), previous: none }
    }

    /// Nodes of a graph: `links` are what each reads, and only those of equal labels can correspond.
    pub fn of_graph(graph: &Graph, links: &[Vec<NodeId>], label: &dyn Fn(NodeId) -> u32) -> Matching {
        let links = links.iter().map(|l| l.iter().enumerate().map(|(at, to)| (at as u32, to.index())).collect());
        let mut kinds = Numbers::default();
        // Sources that copy another do so alike.
        let kinds = graph.ids().map(|id| {
            let node = graph.node(id);
            kinds.of((node.op.clone().with_copy_of(""), &node.ty, node.stage, label(id)))
        });
        Matching::new(links.collect(), kinds.collect())
    }

    /// Matches what follows from sources of the same kind being one for each layer, in the order they are declared.
    /// Sources of which a layer has several lead nowhere, so kinds with the fewest members go first.
    pub fn match_sources(&mut self, sources: impl Iterator<Item = NodeId>, fewest: usize) {
        let mut kinds: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for id in sources {
            kinds.entry(self.kinds[id.index()]).or_default().push(id.index());
        }
        let mut kinds: Vec<Vec<usize>> = kinds.into_values().filter(|k| k.len() >= fewest).collect();
        kinds.sort_by_key(|k| (k.len(), k[0]));
        for kind in kinds {
            if kind.iter().any(|&id| self.next[id].is_some()) {
                continue;
            }
            let before = (self.next.clone(), self.previous.clone());
            let pairs: Vec<(usize, usize)> = kind.windows(2).map(|w| (w[0], w[1])).collect();
            if self.follow(&pairs) < pairs.len() * FOLLOWING {
                (self.next, self.previous) = before;
            }
        }
    }

    /// Matches these pairs and all that follow from them; returns how many there are.
    pub fn follow(&mut self, pairs: &[(usize, usize)]) -> usize {
        let mut waiting: VecDeque<(usize, usize)> = pairs.iter().copied().collect();
        let mut pairs = Vec::new();
        loop {
            let Some((a, b)) = waiting.pop_front() else {
                // Readers alike may be told apart by what else they link to, once more is known.
                waiting.extend(pairs.iter().flat_map(|&(a, b)| self.by_links(a, b)));
                if waiting.is_empty() {
                    return pairs.len();
                }
                continue;
            };
            if !self.can_match(a, b) {
                continue;
            }
            (self.next[a], self.previous[b]) = (Some(b), Some(a));
            pairs.push((a, b));
            for &(label, to) in &self.links[a] {
                waiting.extend(self.links[b].iter().find(|l| l.0 == label).map(|l| (to, l.1)));
            }
            let (of_a, of_b) = (self.told_apart(a), self.told_apart(b));
            waiting.extend(of_a.into_iter().filter_map(|(k, reader)| Some((reader?, (*of_b.get(&k)?)?))));
        }
    }

    /// Readers of two nodes that correspond because all they link to does.
    fn by_links(&self, a: usize, b: usize) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        for &(label, reader) in self.readers[a].iter().filter(|r| self.next[r.1].is_none()) {
            let same = |&&(l, other): &&(u32, usize)| {
                let to = |label: u32| self.links[other].iter().find(|l| l.0 == label).map(|l| l.1);
                l == label
                    && self.can_match(reader, other)
                    && self.links[reader].iter().all(|&(l, x)| to(l).is_some_and(|y| x == y || self.next[x] == Some(y)))
            };
            let mut found = self.readers[b].iter().filter(same);
            if let (Some(&(_, other)), None) = (found.next(), found.next()) {
                out.push((reader, other));
            }
        }
        out
    }

    fn can_match(&self, a: usize, b: usize) -> bool {
        let free = self.kinds[a] == self.kinds[b] && self.next[a].is_none() && self.previous[b].is_none();
        // No layer comes before itself.
        free && std::iter::successors(Some(b), |&n| self.next[n]).last() != Some(a)
    }

    /// Readers of a node by the label they read it with and their kind; none where there are several.
    fn told_apart(&self, id: usize) -> BTreeMap<(u32, u32), Option<usize>> {
        let mut out = BTreeMap::new();
        for &(label, reader) in &self.readers[id] {
            out.entry((label, self.kinds[reader])).and_modify(|r| *r = None).or_insert(Some(reader));
        }
        out
    }

    /// Nodes that are the same in one layer after another, two at least.
    pub fn chains(&self) -> Vec<Vec<usize>> {
        let starts = (0..self.next.len()).filter(|&id| self.previous[id].is_none());
        let chain = |id: usize| std::iter::successors(Some(id), |&id| self.next[id]).collect::<Vec<_>>();
        starts.map(chain).filter(|c| c.len() > 1).collect()
    }
}

/// Numbers for things, the same for what is equal.
pub(in crate::plan) struct Numbers<T>(FxHashMap<T, u32>);

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Numbers(FxHashMap::default())
    }
}

impl<T: Eq + Hash> Numbers<T> {
    pub fn of(&mut self, thing: T) -> u32 {
        let fresh = self.0.len() as u32;
        *self.0.entry(thing).or_insert(fresh)
    }
}
