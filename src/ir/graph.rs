//! The graph: an append-only `petgraph` DAG whose node order is a topological order.

use super::ops::Op;
use super::types::{Shape, Type};
use crate::error::{Error, Result};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

pub type NodeId = NodeIndex;

/// Which part of the training step a node belongs to; precision policies treat them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Stage {
    #[default]
    Forward,
    Backward,
    /// Unscaling, clipping, the optimizer and the loss scaler.
    Update,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Update => "update",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub ty: Type,
    pub name: String,
    pub stage: Stage,
    /// The forward value this node is the whole gradient of.
    pub grad_of: Option<NodeId>,
    /// Where the node came from, for messages: an ONNX node or a line of text.
    pub origin: Option<String>,
}

/// What becomes of a value when the graph has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Returned to the caller.
    Output,
    /// Overwrites the parameter or state of the same name.
    Update,
    /// A scalar for the log.
    Metric,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub name: String,
    pub role: Role,
    pub node: NodeId,
}

/// A typed DAG. Nodes are only ever appended, operands first, so ascending ids are a topological order.
/// Edge weights are operand positions.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    dag: DiGraph<Node, u32>,
    names: FxHashMap<String, NodeId>,
    known: FxHashMap<(Op, Vec<NodeId>), NodeId>,
    outputs: Vec<Output>,
    fresh: usize,
    /// Stage given to nodes added from now on.
    pub stage: Stage,
    /// Origin given to nodes added from now on.
    pub origin: Option<String>,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// An empty graph that so many nodes will be added to.
    pub(crate) fn with_capacity(name: impl Into<String>, nodes: usize) -> Graph {
        let mut graph = Graph::new(name);
        graph.dag.reserve_nodes(nodes);
        graph.dag.reserve_edges(2 * nodes);
        graph.names.reserve(nodes);
        graph.known.reserve(nodes);
        graph
    }

    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes, operands before their users.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + use<> {
        self.dag.node_indices()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[id]
    }

    pub fn op(&self, id: NodeId) -> &Op {
        &self.dag[id].op
    }

    pub fn ty(&self, id: NodeId) -> &Type {
        &self.dag[id].ty
    }

    pub fn shape(&self, id: NodeId) -> &Shape {
        &self.dag[id].ty.shape
    }

    pub fn name_of(&self, id: NodeId) -> &str {
        &self.dag[id].name
    }

    /// Operands in order.
    pub fn inputs(&self, id: NodeId) -> Vec<NodeId> {
        let mut edges: Vec<_> = self
            .dag
            .edges_directed(id, Direction::Incoming)
            .map(|e| (*e.weight(), petgraph::visit::EdgeRef::source(&e)))
            .collect();
        edges.sort_unstable();
        edges.into_iter().map(|(_, from)| from).collect()
    }

    /// Users, each once, in ascending order.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut out: Vec<_> = self.dag.neighbors_directed(id, Direction::Outgoing).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// Parameters, states and inputs, in the order they were declared.
    pub fn sources(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.ids().filter(|&id| self.op(id).is_source())
    }

    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    pub fn output(&self, name: &str, role: Role) -> Option<NodeId> {
        self.outputs.iter().find(|o| o.name == name && o.role == role).map(|o| o.node)
    }

    /// A name that no node has: the one wanted, or that with a number.
    pub fn free_name(&self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut next = 1;
        while self.find(&name).is_some() {
            name = format!("{wanted}.{next}");
            next += 1;
        }
        name
    }

    /// Declares an output, in place of one of the same name and role.
    pub fn set_output(&mut self, name: &str, role: Role, node: NodeId) {
        match self.outputs.iter_mut().find(|o| o.name == name && o.role == role) {
            Some(output) => output.node = node,
            None => self.add_output(name, role, node),
        }
    }

    pub fn add_output(&mut self, name: impl Into<String>, role: Role, node: NodeId) {
        self.outputs.push(Output { name: name.into(), role, node });
    }

    /// Forgets the outputs; a pass that turns a graph into another gives it new ones.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
    }

    /// Adds an operation, or finds the node that already computes it. Errors say what its type rule misses.
    pub fn add(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.insert(op, inputs, None)
    }

    /// Adds an operation under a name of its own, even where an equal one exists.
    pub fn add_named(&mut self, name: impl Into<String>, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.insert(op, inputs, Some(name.into()))
    }

    fn insert(&mut self, op: Op, inputs: &[NodeId], name: Option<String>) -> Result<NodeId> {
        let key = (op, inputs.to_vec());
        let shareable = !key.0.is_source();
        // A constant is its own name: text writes it where it is used, and nothing finds it by name.
        let literal = if let Op::Const(c) = &key.0 { Some(c.to_string()) } else { None };
        let name = name.filter(|_| literal.is_none());
        if name.is_none()
            && shareable
            && let Some(&id) = self.known.get(&key)
        {
            return Ok(id);
        }
        let types: Vec<&Type> = inputs.iter().map(|&i| self.ty(i)).collect();
        let inferred = key.0.infer(&types).and_then(Type::countable);
        let ty = inferred.map_err(|why| {
            let of: Vec<String> = types.iter().map(|t| t.to_string()).collect();
            let place = self.origin.as_ref().map_or(String::new(), |o| format!("{o}: "));
            let what = name.as_ref().map_or(String::new(), |n| format!("`{n}`: "));
            Error::Graph(format!("{place}{what}{}({}): {why}", key.0.name(), of.join(", ")))
        })?;
        let name = match name {
            Some(name) => {
                // A name that the graph made up gives way to one that somebody chose.
                if let Some(&holder) = self.names.get(&name) {
                    if !self.is_auto_named(holder) {
                        return Err(Error::Graph(format!("the name `{name}` is defined twice")));
                    }
                    self.rename_freshly(holder);
                }
                name
            }
            None => literal.clone().unwrap_or_else(|| self.fresh_name()),
        };
        let id = self.dag.add_node(Node {
            op: key.0.clone(),
            ty,
            name: name.clone(),
            stage: self.stage,
            grad_of: None,
            origin: self.origin.clone(),
        });
        for (position, &input) in inputs.iter().enumerate() {
            self.dag.add_edge(input, id, position as u32);
        }
        if literal.is_none() {
            self.names.insert(name, id);
        }
        if shareable {
            self.known.entry(key).or_insert(id);
        }
        Ok(id)
    }

    /// Gives a node a made-up name other than the one it has.
    pub(crate) fn rename_freshly(&mut self, id: NodeId) {
        let fresh = self.fresh_name();
        self.rename(id, &fresh);
    }

    /// An unused name `t0`, `t1`, …
    fn fresh_name(&mut self) -> String {
        loop {
            let name = format!("t{}", self.fresh);
            self.fresh += 1;
            if !self.names.contains_key(&name) {
                return name;
            }
        }
    }

    /// Was the node named by the graph rather than by somebody?
    pub fn is_auto_named(&self, id: NodeId) -> bool {
        let name = self.name_of(id);
        name.strip_prefix('t').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    }

    /// Gives a node a better name, unless the name is taken. Returns whether it was given.
    pub fn rename(&mut self, id: NodeId, name: &str) -> bool {
        if self.names.contains_key(name) {
            return false;
        }
        let old = std::mem::replace(&mut self.dag[id].name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), id);
        true
    }

    pub fn set_grad_of(&mut self, id: NodeId, forward: NodeId) {
        self.dag[id].grad_of.get_or_insert(forward);
    }

    /// Names of the extents still to be bound, sorted.
    pub fn free_dims(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .sources()
            .flat_map(|id| self.shape(id).count().1.into_iter().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The same graph with named extents replaced by sizes; every type is inferred again.
    pub fn bind(&self, sizes: &BTreeMap<String, usize>) -> Result<Graph> {
        let bound = self.map_ops(|op| op.bind(sizes))?;
        match bound.free_dims().first() {
            None => Ok(bound),
            Some(name) => Err(Error::Request(format!(
                "the model's size `{name}` is not bound; give it a value, as in --batch 64 or --dim {name}=64"
            ))),
        }
    }

    /// The same graph with every operation replaced.
    pub fn map_ops(&self, f: impl Fn(&Op) -> Op) -> Result<Graph> {
        self.map_ids(|_, op| f(op))
    }

    /// The same graph with every operation replaced, by its id.
    pub fn map_ids(&self, f: impl Fn(NodeId, &Op) -> Op) -> Result<Graph> {
        self.rebuild(|id, _, inputs| Ok((f(id, self.op(id)), inputs.to_vec())))
    }

    /// The same graph with every operation and its operands replaced: told a node, the new graph so far and the node's
    /// operands in it. Names, origins and outputs stay.
    pub fn rebuild(&self, mut f: impl FnMut(NodeId, &Graph, &[NodeId]) -> Result<(Op, Vec<NodeId>)>) -> Result<Graph> {
        let mut out = Graph::new(&self.name);
        for id in self.ids() {
            let node = self.node(id);
            (out.stage, out.origin) = (node.stage, node.origin.clone());
            let (op, inputs) = f(id, &out, &self.inputs(id))?;
            let copy = out.add_named(node.name.clone(), op, &inputs)?;
            out.dag[copy].grad_of = node.grad_of;
        }
        out.outputs = self.outputs.clone();
        (out.stage, out.origin, out.fresh) = (self.stage, self.origin.clone(), self.fresh);
        Ok(out)
    }

    /// Copies everything `roots` need into a new graph with the outputs given; names are kept.
    pub fn prune(&self, outputs: &[Output]) -> Result<Graph> {
        let mut live = vec![false; self.len()];
        for o in outputs {
            live[o.node.index()] = true;
        }
        for id in self.ids().rev() {
            if live[id.index()] {
                self.inputs(id).into_iter().for_each(|i| live[i.index()] = true);
            }
        }
        let mut out = Graph::new(&self.name);
        let mut map: Vec<Option<NodeId>> = vec![None; self.len()];
        for id in self.ids().filter(|id| live[id.index()]) {
            let node = self.node(id);
            let inputs: Vec<NodeId> = self.inputs(id).iter().filter_map(|i| map[i.index()]).collect();
            (out.stage, out.origin) = (node.stage, node.origin.clone());
            let copy = out.add_named(node.name.clone(), node.op.clone(), &inputs)?;
            out.dag[copy].grad_of = node.grad_of.and_then(|f| map[f.index()]);
            map[id.index()] = Some(copy);
        }
        for o in outputs {
            out.add_output(&o.name, o.role, map[o.node.index()].expect("outputs are live"));
        }
        Ok(out)
    }
}

impl PartialEq for Graph {
    /// Equal text: same names, operations, types, operands and outputs.
    fn eq(&self, other: &Graph) -> bool {
        super::text::print(self) == super::text::print(other)
    }
}
