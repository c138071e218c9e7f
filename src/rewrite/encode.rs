//! A training step as an e-graph: sources become buffers, operations values, operands edges.

use super::language::{Allow, Facts, Term, forms};
use super::{EGraph, Head};
use crate::error::Result;
use crate::ir::ops::names;
use crate::ir::{Graph, NodeId, Op, Role, Verified};
use egg::Id;
use std::collections::BTreeMap;

/// An e-graph with the way back to the graph it was made from.
pub struct Encoded {
    /// The step's terms; empty once they were taken out to be saturated.
    pub egraph: EGraph,
    /// `(step …)`, one buffer per output.
    pub root: Id,
    /// The value class of every computed node, the buffer class of every source.
    pub classes: Vec<Id>,
    /// The value that replaces each updated parameter or state.
    pub updates: BTreeMap<String, Id>,
}

/// Encodes a verified step. `allow[node]` is the policy's verdict on a node's value.
///
/// # Errors
/// None: a verified step has a term for every node.
pub fn encode(step: Verified, facts: Facts, allow: &[Allow]) -> Result<Encoded> {
    let graph = step.graph();
    let mut e = Encoder { graph, egraph: EGraph::new(facts), classes: Vec::with_capacity(graph.len()) };
    for id in graph.ids() {
        e.egraph.analysis.allow = allow[id.index()];
        let class = e.node(id);
        e.classes.push(class);
    }
    let mut updates = BTreeMap::new();
    let mut outputs = Vec::new();
    for o in graph.outputs() {
        let format = match o.role {
            Role::Update => {
                updates.insert(o.name.clone(), e.classes[o.node.index()]);
                graph.find(&o.name).map(|s| graph.ty(s).format)
            }
            Role::Output | Role::Metric => None,
        };
        outputs.push(e.buffer(o.node, format));
    }
    e.egraph.analysis.allow = Allow::ALL;
    let root = e.egraph.add(Term::op(forms::STEP, outputs));
    e.egraph.rebuild();
    Ok(Encoded { egraph: e.egraph, root, classes: e.classes, updates })
}

struct Encoder<'a> {
    graph: &'a Graph,
    egraph: EGraph,
    classes: Vec<Id>,
}

impl Encoder<'_> {
    fn word(&mut self, text: &str) -> Id {
        self.egraph.add(Term::word(text))
    }

    fn node(&mut self, id: NodeId) -> Id {
        let op = self.graph.op(id);
        match op {
            Op::Input { .. } => self.source(forms::INPUT, id),
            Op::Param { .. } => self.source(forms::PARAM, id),
            Op::State { .. } => self.source(forms::STATE, id),
            Op::Scan(scan) => {
                let word = format!("scan.{}", self.egraph.analysis.scans.len());
                self.egraph.analysis.scans.push(op.clone());
                let mut children = vec![self.word(&word)];
                for (input, source) in self.graph.inputs(id).iter().copied().zip(scan.body.graph().sources()) {
                    children.push(self.operand(input, scan.body.graph().ty(source).format));
                }
                self.egraph.add(Term::op(op.name(), children))
            }
            // Only a plan has times.
            Op::After => self.classes[self.graph.inputs(id)[0].index()],
            Op::Const(c) => self.egraph.add(Term { head: Head::Num(*c), children: Vec::new() }),
            _ => {
                let attributes = op.signature().map_or(&[][..], |row| &row.attributes);
                let mut children: Vec<Id> = Vec::new();
                for (attribute, (_, value)) in attributes.iter().zip(op.attrs()) {
                    children.push(self.word(&attribute.leaf(&value.to_string())));
                }
                for &input in self.graph.inputs(id) {
                    let child = match op {
                        Op::Cast(_) | Op::ScaleOf(_) => self.buffer(input, None),
                        op if op.is_product() => self.buffer(input, None),
                        Op::Put(_) => self.classes[input.index()],
                        _ => self.edge(input),
                    };
                    children.push(child);
                }
                self.egraph.add(Term::op(op.name(), children))
            }
        }
    }

    fn source(&mut self, head: &str, id: NodeId) -> Id {
        let name = self.word(self.graph.name_of(id));
        self.egraph.add(Term::op(head, vec![name]))
    }

    fn is_buffer(&self, id: NodeId) -> bool {
        match self.graph.op(id) {
            Op::After => self.is_buffer(self.graph.inputs(id)[0]),
            op => op.is_buffer(),
        }
    }

    fn edge(&mut self, id: NodeId) -> Id {
        let class = self.classes[id.index()];
        let head = if self.is_buffer(id) { forms::GET } else { forms::PASS };
        self.egraph.add(Term::op(head, vec![class]))
    }

    /// The node's value in memory, in a format that something reads it in.
    fn operand(&mut self, id: NodeId, format: crate::format::Format) -> Id {
        if !self.is_buffer(id) || self.graph.ty(id).format == format {
            return self.buffer(id, Some(format));
        }
        let word = self.word(format.name());
        self.egraph.add(Term::op(names::CAST, vec![word, self.classes[id.index()]]))
    }

    /// The node's value in memory, in its own format unless another is asked for.
    fn buffer(&mut self, id: NodeId, format: Option<crate::format::Format>) -> Id {
        let class = self.classes[id.index()];
        if self.is_buffer(id) {
            return class;
        }
        let format = self.word(format.unwrap_or(self.graph.ty(id).format).name());
        self.egraph.add(Term::op(names::PUT, vec![format, class]))
    }
}
