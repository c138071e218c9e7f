//! The same graph with more or fewer layers.

use super::chains::{Chain, Chains, Operand};
use super::{NotAlike, Unlike};
use crate::ir::{Graph, NodeId, Op, Role};
use crate::plan::assemble::assemble;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::ops::Range;

/// A node of the graph with other layers: one that every size has, or a chain's node by its position there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Own(NodeId),
    In(usize, isize),
}

/// How many layers are put in, or taken out if there are fewer than none.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The layer they come after.
    pub after: isize,
    pub by: isize,
    /// Layers that only layers beside them may read, or there is no telling from which end they are meant.
    pub inner: Range<isize>,
}

impl Change {
    const NONE: Change = Change { after: isize::MAX, by: 0, inner: 0..0 };
}

/// A graph seen as one of its family.
pub(super) struct Resize<'a> {
    pub graph: &'a Graph,
    pub chains: &'a Chains,
    /// By family; families without one stay as they are.
    pub changes: &'a BTreeMap<usize, Change>,
}

/// What a node of the new graph is.
pub(super) struct Made {
    pub op: Op,
    /// None for one that the graph makes up anew.
    pub name: Option<String>,
}

impl Resize<'_> {
    fn change(&self, chain: &Chain) -> &Change {
        self.changes.get(&chain.family).unwrap_or(&Change::NONE)
    }

    /// Nodes of the chain that come before the change.
    fn before(&self, chain: &Chain) -> isize {
        (self.change(chain).after.saturating_add(1).saturating_sub(chain.first)).clamp(0, chain.nodes.len() as isize)
    }

    fn len(&self, chain: &Chain) -> isize {
        chain.nodes.len() as isize + self.change(chain).by
    }

    /// The new place of a node that is read by what is in no layer; none if it is taken out.
    pub fn key(&self, id: NodeId) -> Option<Key> {
        let Some((chain, at)) = self.chains.at[id.index()] else { return Some(Key::Own(id)) };
        let (c, at) = (&self.chains.all[chain], at as isize);
        if self.change(c).inner.contains(&(c.first + at)) {
            return None;
        }
        let (before, by) = (self.before(c), self.change(c).by);
        match () {
            () if at < before => Some(Key::In(chain, at)),
            () if at + by >= before => Some(Key::In(chain, at + by)),
            () => None,
        }
    }

    /// The node that stands for a new one, and how many layers later the new one is.
    pub fn old(&self, key: Key) -> (NodeId, isize) {
        let (chain, at) = match key {
            Key::Own(id) => return (id, 0),
            Key::In(chain, at) => (chain, at),
        };
        let c = &self.chains.all[chain];
        let (before, by) = (self.before(c), self.change(c).by);
        // What is put in is like the node before it, or else the one after.
        let old = if at < before {
            at
        } else if at >= before + by.max(0) {
            at - by
        } else {
            (before - 1).max(0)
        };
        (c.nodes[old as usize], at - old)
    }

    /// What replaces a new source.
    pub fn replaced_by(&self, source: Key) -> Option<Key> {
        self.operands(source)?.first().copied()
    }

    /// All new nodes of a node's chain, or its only one.
    pub fn all(&self, id: NodeId) -> Vec<Key> {
        match self.chains.at[id.index()] {
            Some((chain, _)) => (0..self.len(&self.chains.all[chain])).map(|at| Key::In(chain, at)).collect(),
            None => vec![Key::Own(id)],
        }
    }

    /// The new operands of a new node; none where the graph has no such size.
    fn operands(&self, key: Key) -> Option<Vec<Key>> {
        let (old, _) = self.old(key);
        let links = &self.chains.links[old.index()];
        let Key::In(chain, at) = key else { return links.iter().map(|&l| self.key(l)).collect() };
        let c = &self.chains.all[chain];
        let operand = |slot: usize| match c.operands[slot] {
            Operand::Shared(node) => self.key(node),
            Operand::In(other, by) => {
                let (there, len) = (at + by, self.len(&self.chains.all[other]));
                if (0..len).contains(&there) {
                    return Some(Key::In(other, there));
                }
                // Out of the other chain at its start, or at its end.
                let from_here = if there < 0 { at } else { at - self.change(c).by };
                let end = *c.nodes.get(usize::try_from(from_here).ok()?)?;
                self.key(self.chains.links[end.index()][slot])
            }
        };
        (0..links.len()).map(operand).collect()
    }

    /// The new graph, with the outputs given, and its nodes, if there is such a size. `make` says what a new node is,
    /// told its old one and how many layers later the new one is.
    pub fn build(
        &self,
        outputs: &[(String, Role, Key)],
        make: &dyn Fn(NodeId, isize) -> Option<Made>,
    ) -> Result<(Graph, FxHashMap<Key, NodeId>), Unlike> {
        let mut graph = Graph::new(&self.graph.name);
        let operands = |key| {
            if self.graph.op(self.old(key).0).is_source() { Some(Vec::new()) } else { self.operands(key) }
        };
        let made = assemble(outputs.iter().map(|o| o.2), operands, |key, inputs| {
            let (old, later) = self.old(key);
            let Some(Made { op, name }) = make(old, later) else { return Ok(None) };
            let node = self.graph.node(old);
            graph.follow(node);
            match name {
                Some(name) if op.is_source() || graph.find(&name).is_none_or(|id| graph.is_auto_named(id)) => {
                    graph.add_as(name, node.named, op, inputs).map(Some)
                }
                _ => graph.add(op, inputs).map(Some),
            }
        })?;
        let made = made.map_err(|key| NotAlike::reader(self.graph, self.old(key).0))?;
        outputs.iter().for_each(|(name, role, key)| graph.add_output(name, *role, made[key]));
        Ok((graph, made))
    }
}
