//! The graph: an append-only `petgraph` DAG whose node order is a topological order.

use super::ops::Op;
use super::types::{Shape, Type};
use crate::error::{Error, Result};
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A node's position in its graph, counted from 0; operands have smaller ones.
pub type NodeId = NodeIndex;

/// Which part of the training step a node belongs to; precision policies treat them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Stage {
    /// The model and its loss.
    #[default]
    Forward,
    /// Gradients of the loss, as `autodiff` appends them.
    Backward,
    /// Unscaling, clipping, the optimizer and the loss scaler.
    Update,
}

impl Stage {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Forward => "forward",
            Stage::Backward => "backward",
            Stage::Update => "update",
        }
    }
}

/// Who named a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A model's author, or a pass that knows what the value is.
    Given,
    /// The graph, to have something to write.
    MadeUp,
}

/// An operation applied to its operands.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes, with its attributes.
    pub op: Op,
    /// Shape and format of its result.
    pub ty: Type,
    inputs: Box<[NodeId]>,
    /// Unique in the graph, but for constants, whose name is their number.
    pub name: String,
    /// Who chose the name.
    pub named: Named,
    /// The part of the step that it belongs to.
    pub stage: Stage,
    /// The forward value this node is the whole gradient of.
    pub grad_of: Option<NodeId>,
    /// Where the node came from, for messages: an ONNX node or a line of text.
    pub origin: Option<String>,
    /// The module of the model that it belongs to, as `layer1.0.conv1`, where the model says.
    pub module: Option<Arc<str>>,
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

/// A value that leaves the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What it is known by, with its role; an update's name is that of the source it overwrites.
    pub name: String,
    /// What becomes of the value.
    pub role: Role,
    /// The node that yields the value.
    pub node: NodeId,
}

/// A typed DAG. Nodes are only ever appended, operands first, so ascending ids are a topological order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The model's name, or that of a loop's body.
    pub name: String,
    dag: DiGraph<Node, ()>,
    names: FxHashMap<String, NodeId>,
    known: FxHashMap<(Op, Box<[NodeId]>), NodeId>,
    outputs: Vec<Output>,
    fresh: usize,
    /// Stage given to nodes added from now on.
    pub stage: Stage,
    /// Origin given to nodes added from now on.
    pub origin: Option<String>,
    /// Module given to nodes added from now on.
    pub module: Option<Arc<str>>,
}

impl Graph {
    /// A graph without nodes.
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

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Are there no nodes?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes, operands before their users.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + use<> {
        self.dag.node_indices()
    }

    /// A node with its operation, type, name and origin.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[id]
    }

    /// A node's operation.
    pub fn op(&self, id: NodeId) -> &Op {
        &self.dag[id].op
    }

    /// Shape and format of a node's result.
    pub fn ty(&self, id: NodeId) -> &Type {
        &self.dag[id].ty
    }

    /// Shape of a node's result.
    pub fn shape(&self, id: NodeId) -> &Shape {
        &self.dag[id].ty.shape
    }

    /// A node's name; a constant's is its number.
    pub fn name_of(&self, id: NodeId) -> &str {
        &self.dag[id].name
    }

    /// Operands in order.
    pub fn inputs(&self, id: NodeId) -> &[NodeId] {
        &self.dag[id].inputs
    }

    /// Users, each once, in ascending order.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut out: Vec<_> = self.dag.neighbors_directed(id, Direction::Outgoing).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The module that a node belongs to; a gradient belongs to that of its value.
    pub fn module_of(&self, id: NodeId) -> Option<&str> {
        let node = self.node(id);
        let forward = node.grad_of.and_then(|f| self.dag[f].module.as_deref());
        forward.or(node.module.as_deref())
    }

    /// The node of this name. Constants are not found.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// Parameters, states and inputs, in the order they were declared.
    pub fn sources(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.ids().filter(|&id| self.op(id).is_source())
    }

    /// Outputs, updates and metrics, in the order they were declared.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The node that the output of this name and role yields.
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

    /// Declares an output behind the others; [`Graph::set_output`] replaces one of the same name and role.
    pub fn add_output(&mut self, name: impl Into<String>, role: Role, node: NodeId) {
        self.outputs.push(Output { name: name.into(), role, node });
    }

    /// Forgets the outputs; a pass that turns a graph into another gives it new ones.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
    }

    /// Adds an operation, or finds the node that already computes it.
    ///
    /// # Errors
    /// Operands that its type rule refuses, and a result of more than [`Type::MOST`] elements: with the operands'
    /// types.
    pub fn add(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.insert(op, inputs, None)
    }

    /// Adds an operation under a name of its own, even where an equal one exists.
    ///
    /// # Errors
    /// Those of [`Graph::add`], and a name that another node was given.
    pub fn add_named(&mut self, name: impl Into<String>, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.insert(op, inputs, Some((name.into(), Named::Given)))
    }

    /// [`Graph::add_named`], of a name that was given or made up.
    pub(crate) fn add_as(&mut self, name: String, named: Named, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.insert(op, inputs, Some((name, named)))
    }

    /// Adds what becomes of a node of another graph: under its name, with its stage, its origin, and the value it is the
    /// gradient of. `map` says where that graph's nodes are in this one.
    pub(crate) fn transfer(
        &mut self,
        from: &Graph,
        id: NodeId,
        op: Op,
        inputs: &[NodeId],
        map: impl Fn(NodeId) -> Option<NodeId>,
    ) -> Result<NodeId> {
        let node = from.node(id);
        self.follow(node);
        let copy = self.insert(op, inputs, Some((node.name.clone(), node.named)))?;
        if let Some(forward) = node.grad_of.and_then(map) {
            self.set_grad_of(copy, forward);
        }
        Ok(copy)
    }

    /// Gives nodes added from now on the stage, the origin and the module of another graph's.
    pub fn follow(&mut self, node: &Node) {
        (self.stage, self.origin, self.module) = (node.stage, node.origin.clone(), node.module.clone());
    }

    fn insert(&mut self, op: Op, inputs: &[NodeId], name: Option<(String, Named)>) -> Result<NodeId> {
        let key = (op, inputs.into());
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
        let ty = self.infer(&key.0, inputs, name.as_ref().map(|n| n.0.as_str()))?;
        let (name, named) = match (name, literal) {
            (Some((name, named)), _) => self.claim(name, named)?,
            (None, Some(literal)) => (literal, Named::Given),
            (None, None) => (self.fresh_name(), Named::MadeUp),
        };
        if !matches!(key.0, Op::Const(_)) {
            self.names.insert(name.clone(), NodeId::new(self.len()));
        }
        let (op, inputs) = key.clone();
        let (stage, origin, module) = (self.stage, self.origin.clone(), self.module.clone());
        let id = self.dag.add_node(Node { op, ty, inputs, name, named, stage, grad_of: None, origin, module });
        for &input in &key.1 {
            self.dag.add_edge(input, id, ());
        }
        if shareable {
            self.known.entry(key).or_insert(id);
        }
        Ok(id)
    }

    fn infer(&self, op: &Op, inputs: &[NodeId], name: Option<&str>) -> Result<Type> {
        let types: Vec<&Type> = inputs.iter().map(|&i| self.ty(i)).collect();
        op.infer(&types).and_then(Type::countable).map_err(|why| {
            let of: Vec<String> = types.iter().map(|t| t.to_string()).collect();
            let place = self.origin.as_ref().map_or(String::new(), |o| format!("{o}: "));
            let what = name.map_or(String::new(), |n| format!("`{n}`: "));
            Error::Graph(format!("{place}{what}{}({}): {why}", op.name(), of.join(", ")))
        })
    }

    /// Makes a name free for a new node: one that the graph made up gives way to one that was chosen or kept.
    fn claim(&mut self, name: String, named: Named) -> Result<(String, Named)> {
        match self.names.get(&name) {
            Some(&holder) if self.is_auto_named(holder) => self.rename_freshly(holder),
            Some(_) if named == Named::MadeUp => return Ok((self.fresh_name(), named)),
            Some(_) => return Err(Error::Graph(format!("the name `{name}` is defined twice"))),
            None => {}
        }
        Ok((name, named))
    }

    /// Gives a node a made-up name other than the one it has.
    pub(crate) fn rename_freshly(&mut self, id: NodeId) {
        let fresh = self.fresh_name();
        self.rename_as(id, &fresh, Named::MadeUp);
    }

    /// A graph for what becomes of another one: names that are made up here are none of that one's.
    pub fn successor(of: &Graph) -> Graph {
        let mut out = Graph::with_capacity(&of.name, of.len());
        let made_up = of.names.keys().filter_map(|name| name.strip_prefix('t')?.parse::<usize>().ok());
        out.fresh = made_up.max().map_or(0, |n| n.saturating_add(1));
        out
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
        self.dag[id].named == Named::MadeUp
    }

    /// Gives a node a better name, unless the name is taken. Returns whether it was given.
    pub fn rename(&mut self, id: NodeId, name: &str) -> bool {
        self.rename_as(id, name, Named::Given)
    }

    /// [`Graph::rename`], to a name that was given or made up.
    pub fn rename_as(&mut self, id: NodeId, name: &str, named: Named) -> bool {
        if self.names.contains_key(name) {
            return false;
        }
        let node = &mut self.dag[id];
        node.named = named;
        let old = std::mem::replace(&mut node.name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), id);
        true
    }

    /// Marks a node as the whole gradient of a forward value, unless it is that of another already.
    pub(crate) fn set_grad_of(&mut self, id: NodeId, forward: NodeId) {
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
    ///
    /// # Errors
    /// The node whose operation does not fit the sizes, or a name that `sizes` lacks.
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
    pub(crate) fn map_ops(&self, f: impl Fn(&Op) -> Op) -> Result<Graph> {
        self.map_ids(|_, op| f(op))
    }

    /// The same graph with every operation replaced, by its id.
    pub(crate) fn map_ids(&self, f: impl Fn(NodeId, &Op) -> Op) -> Result<Graph> {
        self.rebuild(|id, _, inputs| Ok((f(id, self.op(id)), inputs.to_vec())))
    }

    /// The same graph with every operation and its operands replaced: told a node, the new graph so far and the node's
    /// operands in it. Names, origins and outputs stay.
    ///
    /// # Errors
    /// Those of `f`, and of [`Graph::add`] where what it returns does not fit.
    pub fn rebuild(&self, mut f: impl FnMut(NodeId, &Graph, &[NodeId]) -> Result<(Op, Vec<NodeId>)>) -> Result<Graph> {
        let mut out = Graph::new(&self.name);
        for id in self.ids() {
            let (op, inputs) = f(id, &out, self.inputs(id))?;
            out.transfer(self, id, op, &inputs, Some)?;
        }
        out.outputs = self.outputs.clone();
        (out.stage, out.origin, out.fresh) = (self.stage, self.origin.clone(), self.fresh);
        out.module.clone_from(&self.module);
        Ok(out)
    }

    /// Copies everything that the outputs given need into a new graph with these outputs; names are kept.
    ///
    /// # Errors
    /// Those of [`Graph::add`]; a graph that was built by it has none.
    pub fn prune(&self, outputs: &[Output]) -> Result<Graph> {
        self.needed(outputs, |_| false)
    }

    /// Copies what the outputs need, and all sources, needed or not.
    ///
    /// # Errors
    /// As of [`Graph::prune`].
    pub(crate) fn without_idle(&self) -> Result<Graph> {
        self.needed(&self.outputs, |id| self.op(id).is_source())
    }

    /// Copies what some outputs and nodes need.
    fn needed(&self, outputs: &[Output], also: impl Fn(NodeId) -> bool) -> Result<Graph> {
        let mut live: Vec<bool> = self.ids().map(also).collect();
        for o in outputs {
            live[o.node.index()] = true;
        }
        for id in self.ids().rev() {
            if live[id.index()] {
                self.inputs(id).iter().for_each(|i| live[i.index()] = true);
            }
        }
        let mut out = Graph::new(&self.name);
        let mut map: Vec<Option<NodeId>> = vec![None; self.len()];
        for id in self.ids().filter(|id| live[id.index()]) {
            let inputs: Vec<NodeId> = self.inputs(id).iter().filter_map(|i| map[i.index()]).collect();
            map[id.index()] = Some(out.transfer(self, id, self.op(id).clone(), &inputs, |f| map[f.index()])?);
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
