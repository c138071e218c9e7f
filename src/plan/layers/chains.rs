//! Repeated layers of a graph: chains of nodes, one to a layer, whose operands lie in chains too.
//!
//! In a chain, each operand is the same node for all layers, or in another chain, always as many layers off. At either
//! end, where that leads out of the other chain, it may be any node: what comes before the first layer or after the last.
//! A graph of such chains is one of a family, which differ only in how many layers they have.

use super::matching::Matching;
use crate::ir::{Graph, NodeId, Role};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Layers that a chain may go on before or after another that it reads.
const BESIDE: isize = 2;

/// Where a chain's nodes have an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operand {
    /// The same node for all.
    Shared(NodeId),
    /// In another chain, so many positions on.
    In(usize, isize),
}

pub(super) struct Chain {
    pub nodes: Vec<NodeId>,
    pub operands: Vec<Operand>,
    /// Chains that lead to each other are of one family.
    pub family: usize,
    /// The layer of the first node, counted as all chains of the family count.
    pub first: isize,
}

impl Chain {
    /// The layer after that of the last node.
    pub fn end(&self) -> isize {
        self.first + self.nodes.len() as isize
    }
}

pub(super) struct Chains {
    pub all: Vec<Chain>,
    /// The chain of each node and the position there.
    pub at: Vec<Option<(usize, usize)>>,
    /// What each node reads; a source reads what replaces it.
    pub links: Vec<Vec<NodeId>>,
}

/// What each node reads; a source reads what replaces it.
pub(super) fn links(graph: &Graph) -> Vec<Vec<NodeId>> {
    let mut links: Vec<Vec<NodeId>> = graph.ids().map(|id| graph.inputs(id).to_vec()).collect();
    for o in graph.outputs().iter().filter(|o| o.role == Role::Update) {
        links[graph.find(&o.name).expect("what is updated exists").index()].push(o.node);
    }
    links
}

impl Chains {
    /// The chains of what was matched, shorter by what does not fit; those with `fewest` nodes. `layer` tells the family
    /// and the layer of some source, where that is known; without, each family counts its own.
    pub fn new(
        graph: &Graph,
        links: Vec<Vec<NodeId>>,
        matching: &Matching,
        fewest: usize,
        layer: Option<&dyn Fn(NodeId) -> Option<(usize, isize)>>,
    ) -> Chains {
        let chains = matching.chains().into_iter();
        let mut nodes: Vec<Vec<NodeId>> = chains.map(|c| c.into_iter().map(NodeId::new).collect()).collect();
        let (at, operands) = loop {
            nodes.retain(|c| c.len() >= fewest);
            let mut at = vec![None; graph.len()];
            for (chain, members) in nodes.iter().enumerate() {
                members.iter().enumerate().for_each(|(place, id)| at[id.index()] = Some((chain, place)));
            }
            let found: Vec<Option<Fit>> = nodes.iter().map(|c| fit(c, &nodes, &at, &links)).collect();
            let whole = |(c, f): (&Vec<NodeId>, &Option<Fit>)| f.as_ref().is_some_and(|f| f.keep == (0..c.len()));
            if nodes.iter().zip(&found).all(whole) {
                break (at, found.into_iter().flatten().map(|f| f.operands).collect::<Vec<_>>());
            }
            // What does not fit with the middle may fit together.
            let parts = |(c, fit): (&Vec<NodeId>, Option<Fit>)| {
                let Range { start, end } = fit?.keep;
                Some([&c[..start], &c[start..end], &c[end..]].map(<[NodeId]>::to_vec))
            };
            nodes = nodes.iter().zip(found).filter_map(parts).flatten().collect();
        };
        let chain = |(nodes, operands)| Chain { nodes, operands, family: usize::MAX, first: 0 };
        let mut chains = Chains { all: nodes.into_iter().zip(operands).map(chain).collect(), at, links };
        chains.count_layers(graph, layer);
        chains
    }

    /// Gives every chain that a source's leads to its family and layer. Of several ways to another chain, the one on which
    /// layers differ least counts.
    fn count_layers(&mut self, graph: &Graph, layer: Option<&dyn Fn(NodeId) -> Option<(usize, isize)>>) {
        let mut beside: Vec<Vec<(usize, isize)>> = vec![Vec::new(); self.all.len()];
        for (i, chain) in self.all.iter().enumerate() {
            for operand in &chain.operands {
                if let &Operand::In(other, by) = operand {
                    beside[i].push((other, by));
                    beside[other].push((i, -by));
                }
            }
        }
        let starts = graph.sources().filter_map(|id| self.at[id.index()].filter(|a| a.1 == 0).map(|a| (a.0, id)));
        let starts: Vec<(usize, NodeId)> = starts.collect();
        if let Some(layer) = layer {
            let known =
                starts.iter().filter_map(|&(chain, id)| layer(id).map(|(family, first)| (chain, family, first)));
            self.spread(&beside, &known.collect::<Vec<_>>());
            return;
        }
        let mut families = 0;
        for (chain, _) in starts {
            if self.all[chain].family == usize::MAX {
                self.spread(&beside, &[(chain, families, 0)]);
                families += 1;
            }
        }
    }

    /// From chains whose family and first layer are known to those beside them.
    fn spread(&mut self, beside: &[Vec<(usize, isize)>], known: &[(usize, usize, isize)]) {
        let mut waiting = VecDeque::new();
        for &(chain, family, first) in known {
            (self.all[chain].family, self.all[chain].first) = (family, first);
            waiting.push_back((chain, family, first));
        }
        let mut done = vec![false; self.all.len()];
        while let Some((chain, family, first)) = waiting.pop_front() {
            let c = &mut self.all[chain];
            if std::mem::replace(&mut done[chain], true)
                || (c.family != usize::MAX && (c.family, c.first) != (family, first))
            {
                continue;
            }
            (c.family, c.first) = (family, first);
            for &(other, by) in &beside[chain] {
                let next = (other, family, first - by);
                if by == 0 { waiting.push_front(next) } else { waiting.push_back(next) }
            }
        }
    }

    /// For each family, the layers that all its chains have, by family.
    pub fn common(&self) -> BTreeMap<usize, Range<isize>> {
        let mut out: BTreeMap<usize, Range<isize>> = BTreeMap::new();
        for c in self.all.iter().filter(|c| c.family != usize::MAX) {
            let of = out.entry(c.family).or_insert(isize::MIN..isize::MAX);
            *of = of.start.max(c.first)..of.end.min(c.end());
        }
        out
    }
}

/// What of a chain fits together.
struct Fit {
    operands: Vec<Operand>,
    keep: Range<usize>,
}

/// None where nothing of the chain fits.
fn fit(chain: &[NodeId], all: &[Vec<NodeId>], at: &[Option<(usize, usize)>], links: &[Vec<NodeId>]) -> Option<Fit> {
    let mut operands = Vec::new();
    let mut keep = 0..chain.len();
    let slots = links[chain[0].index()].len();
    if chain.iter().any(|id| links[id.index()].len() != slots) {
        return None;
    }
    let slots: Vec<Vec<NodeId>> = (0..slots).map(|s| chain.iter().map(|id| links[id.index()][s]).collect()).collect();
    for slot in slots {
        let read = |place: usize| slot[place];
        let mut votes: BTreeMap<Operand, usize> = BTreeMap::new();
        for place in 0..chain.len() {
            *votes.entry(Operand::Shared(read(place))).or_default() += 1;
            if let Some((other, there)) = at[read(place).index()] {
                *votes.entry(Operand::In(other, there as isize - place as isize)).or_default() += 1;
            }
        }
        // One vote for a node tells nothing: all may read another.
        let best = votes.into_iter().filter(|v| matches!(v.0, Operand::In(..)) || v.1 > 1).max_by_key(|v| v.1);
        let (operand, _) = best?;
        let fits = |place: usize| match operand {
            Operand::Shared(node) => read(place) == node,
            Operand::In(other, by) => {
                let (there, len) = (place as isize + by, all[other].len() as isize);
                let inside = (0..len).contains(&there);
                let beside = (-BESIDE..len + BESIDE).contains(&there) && at[read(place).index()].is_none();
                if inside { all[other][there as usize] == read(place) } else { beside }
            }
        };
        // What does not fit may be cut from the ends, but not from the middle.
        let middle = chain.len() / 2;
        let start = (0..middle).rev().find(|&p| !fits(p)).map_or(0, |p| p + 1);
        let end = (middle..chain.len()).find(|&p| !fits(p)).unwrap_or(chain.len());
        keep = keep.start.max(start)..keep.end.min(end.max(start));
        operands.push(operand);
    }
    (!keep.is_empty()).then_some(Fit { operands, keep })
}
