//! Dropout that a file spells out, in inference: a mask of random numbers compared with a rate counts as its expectation,
//! which is what dropping nothing comes to once the rest is scaled up.

use super::importer::{Importer, Value};
use super::node::{Import, Node};
use super::proto::NodeProto;
use crate::ir::{Binary, NodeId};
use crate::model::Purpose;
use std::collections::HashMap;

/// What is known of random values in inference.
#[derive(Default)]
pub(super) struct Chances {
    /// Uniform numbers: the interval they are drawn from.
    uniform: HashMap<NodeId, (f64, f64)>,
    /// Truth values: the probability of true.
    of: HashMap<NodeId, f64>,
}

impl Importer<'_> {
    /// A value is drawn uniformly.
    pub(super) fn note_uniform(&mut self, id: NodeId, low: f64, high: f64) {
        if self.purpose == Purpose::Inference {
            self.chances.uniform.insert(id, (low, high));
        }
    }

    /// What a node comes to, if it makes or reads such a mask; `outputs` are what it was imported as.
    pub(super) fn expected(&mut self, node: &NodeProto, outputs: Vec<NodeId>) -> Import<Vec<NodeId>> {
        let [out] = outputs[..] else { return Ok(outputs) };
        let mask = self.operand(node, 0).and_then(|id| self.chances.of.get(&id).copied());
        let chance = match (node.op_type(), mask) {
            ("Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual", _) => self.chance_of_comparison(node),
            ("Not", Some(p)) => Some(1.0 - p),
            ("Unsqueeze" | "Squeeze" | "Reshape" | "Expand", Some(p)) => Some(p),
            ("Cast" | "CastLike", Some(p)) if self.graph.ty(out).format.is_float() => {
                return Node::new(self, node).filled_like(out, p).map(|id| vec![id]);
            }
            ("Where", Some(p)) => {
                let mut n = Node::new(self, node);
                let (yes, no) = (n.filled_like(out, p)?, n.filled_like(out, 1.0 - p)?);
                let (a, b) = (n.x(1)?, n.x(2)?);
                let (a, b) = (n.bin(Binary::Mul, yes, a)?, n.bin(Binary::Mul, no, b)?);
                return n.bin(Binary::Add, a, b).map(|id| vec![id]);
            }
            _ => None,
        };
        if let Some(p) = chance {
            self.chances.of.insert(out, p);
        }
        Ok(outputs)
    }

    /// The probability that a uniform number is on the side of an edge that a comparison asks for.
    fn chance_of_comparison(&self, node: &NodeProto) -> Option<f64> {
        let uniform = |i: usize| self.chances.uniform.get(&self.operand(node, i)?).copied();
        let edge = |i: usize| {
            match self.values.get(node.input.get(i)?)? {
                Value::Known(k) => k.tensor.data.first().copied().filter(|_| k.tensor.data.len() == 1),
                // A number of the file, which the comparison has read.
                Value::Node(id) => self.held(*id).filter(|w| w.elements() == 1)?.values().first().copied(),
                _ => None,
            }
        };
        let is_less = node.op_type().starts_with("Less");
        let ((low, high), edge, is_below) = match (uniform(0), uniform(1)) {
            (Some(u), None) => (u, edge(1)?, is_less),
            (None, Some(u)) => (u, edge(0)?, !is_less),
            _ => return None,
        };
        let below = ((edge - low) / (high - low)).clamp(0.0, 1.0);
        Some(if is_below { below } else { 1.0 - below })
    }

    /// The node of an input that has one already.
    fn operand(&self, node: &NodeProto, i: usize) -> Option<NodeId> {
        match self.values.get(node.input.get(i)?)? {
            Value::Node(id) => Some(*id),
            _ => None,
        }
    }
}

impl Node<'_, '_> {
    fn filled_like(&mut self, like: NodeId, value: f64) -> Import<NodeId> {
        let (c, dims) = (self.num_like(like, value)?, self.dims(like));
        self.broadcast(c, &dims)
    }
}
