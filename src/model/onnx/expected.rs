//! Dropout that a file spells out, in inference: a mask of random numbers compared with a rate counts as its expectation,
//! which is what dropping nothing comes to once the rest is scaled up.

use super::importer::{Importer, Value};
use super::proto::NodeProto;
use crate::ir::{Binary, NodeId, Num, Op};
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
    pub(super) fn expected(&mut self, node: &NodeProto, outputs: Vec<Value>) -> Result<Vec<Value>, String> {
        if self.chances.uniform.is_empty() {
            return Ok(outputs);
        }
        let (first, second) = (self.operand(node, 0), self.operand(node, 1));
        let [Value::Node(out)] = outputs[..] else { return Ok(outputs) };
        let chance = |im: &Self, id: Option<NodeId>| id.and_then(|id| im.chances.of.get(&id).copied());
        match node.op_type() {
            "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
                let known = |i: usize| {
                    let k = self.known(node.input.get(i)?)?;
                    k.tensor.data.first().copied().filter(|_| k.tensor.data.len() == 1)
                };
                let uniform = |id: Option<NodeId>| id.and_then(|id| self.chances.uniform.get(&id).copied());
                let below = |(low, high): (f64, f64), edge: f64| ((edge - low) / (high - low)).clamp(0.0, 1.0);
                let is_less = node.op_type().starts_with("Less");
                let p = match (uniform(first), known(1), known(0), uniform(second)) {
                    (Some(u), Some(edge), ..) => Some((below(u, edge), is_less)),
                    (_, _, Some(edge), Some(u)) => Some((below(u, edge), !is_less)),
                    _ => None,
                };
                if let Some((p, is_below)) = p {
                    self.chances.of.insert(out, if is_below { p } else { 1.0 - p });
                }
            }
            "Not" => {
                if let Some(p) = chance(self, first) {
                    self.chances.of.insert(out, 1.0 - p);
                }
            }
            "Identity" | "Unsqueeze" | "Squeeze" | "Reshape" | "Expand" => {
                if let Some(p) = chance(self, first) {
                    self.chances.of.insert(out, p);
                }
            }
            "Cast" | "CastLike" if self.graph.ty(out).format.is_float() => {
                if let Some(p) = chance(self, first) {
                    return self.filled_like(out, p).map(|id| vec![Value::Node(id)]);
                }
            }
            "Where" => {
                if let (Some(p), Some(a), Some(b)) = (chance(self, first), second, self.operand(node, 2)) {
                    let (p, q) = (self.filled_like(out, p)?, self.filled_like(out, 1.0 - p)?);
                    let mut add = |op, x: &[NodeId]| self.graph.add(Op::Binary(op), x).map_err(|e| e.to_string());
                    let (a, b) = (add(Binary::Mul, &[p, a])?, add(Binary::Mul, &[q, b])?);
                    return Ok(vec![Value::Node(add(Binary::Add, &[a, b])?)]);
                }
            }
            _ => {}
        }
        Ok(outputs)
    }

    fn operand(&mut self, node: &NodeProto, i: usize) -> Option<NodeId> {
        let name = node.input.get(i).filter(|n| !n.is_empty())?;
        self.node_of(name).ok()
    }

    fn filled_like(&mut self, like: NodeId, value: f64) -> Result<NodeId, String> {
        let (dims, format) = (self.graph.shape(like).clone(), self.graph.ty(like).format);
        let c = self.graph.add(Op::Const(Num::new(value)), &[]).map_err(|e| e.to_string())?;
        let c = match format {
            crate::format::Format::F32 => c,
            f => self.graph.add(Op::Convert(f), &[c]).map_err(|e| e.to_string())?,
        };
        self.graph.broadcast_to(c, &dims).map_err(|e| e.to_string())
    }
}
