//! Attention that a model spells out, as one operation; or the other way round, where that is faster.
//!
//! What is recognised is a product of a softmax with values, in the spellings that exporters use: scaled before, after or on
//! both sides, keys transposed or not, heads shared by repeating them, masks added or selected. This looks at the forward
//! graph, before it is differentiated: gradients are then operations too, which keep no scores. It is no rewrite rule, because
//! a causal mask is told by its numbers, and how heads lie in memory by what chains of views amount to.

mod constants;
mod leaves;

use crate::cost::Attended;
use crate::error::Result;
use crate::format::Format;
use crate::ir::{AttentionPart, AttentionSpec, Binary, Graph, NodeId, Num, Op, Shape};
use crate::model::Weights;
use constants::{Constants, Mask};
use leaves::heads_of;
use std::collections::BTreeMap;

/// The graph with attention as one operation where `wanted`, and spelled out elsewhere. `weights` are the values of its
/// constants.
///
/// # Errors
/// Operations that do not type; a verified graph has none.
pub fn attend(graph: Graph, weights: &Weights, wanted: impl Fn(&Attended) -> bool) -> Result<Graph> {
    let is_operation = |id: NodeId| matches!(graph.op(id), Op::Attention { part: AttentionPart::Output, .. });
    let is_spelled = |id: NodeId| is_operation(id) && !wanted(&of_operation(&graph, id));
    let graph = if graph.ids().any(is_spelled) { graph.spelled(is_spelled)? } else { graph };
    let constants = Constants::new(&graph, weights);
    let found: BTreeMap<NodeId, Found> = graph
        .ids()
        .filter_map(|id| Some((id, spelled_at(&graph, &constants, id)?)))
        .filter(|(_, f)| wanted(&f.extents(&graph)))
        .collect();
    if found.is_empty() {
        return Ok(graph);
    }
    let made = graph.made_anew(|out, id, map| found.get(&id).map(|f| f.build(out, map)).transpose())?;
    made.prune(made.outputs())
}

/// The extents of an attention that is an operation already.
fn of_operation(graph: &Graph, id: NodeId) -> Attended {
    let dims = |i: usize| graph.ty(graph.inputs(id)[i]).dims();
    let Op::Attention { spec, .. } = graph.op(id) else { unreachable!("asked of attention") };
    let (q, k, v) = (dims(0), dims(1), dims(2));
    Attended { matrices: q[0] * q[1], queries: q[2], keys: k[2], width: q[3], value_width: v[3], causal: spec.causal }
}

/// A tensor of heads: one of the graph, perhaps to be turned or shaped.
#[derive(Clone, Copy, Debug)]
enum Heads {
    /// `[batch, heads, length, width]`
    As(NodeId),
    /// `[batch, heads, width, length]`
    Turned(NodeId),
}

/// An attention in its spelling.
struct Found {
    q: Heads,
    k: Heads,
    v: Heads,
    scale: f64,
    causal: bool,
    /// A causal mask that hides by a finite number, and the scale of what it is added to.
    nearly_causal: Option<Added>,
    /// What is added to scores.
    added: Vec<NodeId>,
    /// Where scores are kept, and where they are not.
    kept: Vec<(NodeId, bool)>,
    /// The result has three axes, the first of which is batch and heads.
    is_flat: bool,
}

impl Found {
    fn extents(&self, graph: &Graph) -> Attended {
        let dims = |h: Heads| match h {
            Heads::As(id) => graph.ty(id).dims(),
            Heads::Turned(id) => {
                let mut dims = graph.ty(id).dims();
                let rank = dims.len();
                dims.swap(rank - 1, rank - 2);
                dims
            }
        };
        let (q, k, v) = (dims(self.q), dims(self.k), dims(self.v));
        let last = |d: &[usize], i: usize| d[d.len() - i];
        Attended {
            matrices: q[..q.len() - 2].iter().product(),
            queries: last(&q, 2),
            keys: last(&k, 2),
            width: last(&q, 1),
            value_width: last(&v, 1),
            causal: self.causal,
        }
    }

    fn build(&self, out: &mut Graph, map: &[NodeId]) -> Result<NodeId> {
        let heads = |out: &mut Graph, h: Heads| -> Result<NodeId> {
            let (Heads::As(id) | Heads::Turned(id)) = h;
            let mut x = map[id.index()];
            if let [n, a, b] = out.ty(x).dims()[..] {
                x = out.reshape(x, &Shape::of(&[n, 1, a, b]))?;
            }
            match h {
                Heads::As(_) => Ok(x),
                Heads::Turned(_) => out.add(Op::Transpose { perm: vec![0, 1, 3, 2] }, &[x]),
            }
        };
        let mut operands = vec![heads(out, self.q)?, heads(out, self.k)?, heads(out, self.v)?];
        let mut mask: Option<NodeId> = None;
        let mut add = |out: &mut Graph, part: NodeId| -> Result<()> {
            mask = Some(match mask {
                None => part,
                Some(before) => out.binary(Binary::Add, before, part)?,
            });
            Ok(())
        };
        for &id in &self.added {
            add(out, map[id.index()])?;
        }
        for &(id, keeps) in &self.kept {
            let (zero, hidden) = (out.constant(0.0)?, out.constant(f64::NEG_INFINITY)?);
            let (yes, no) = if keeps { (zero, hidden) } else { (hidden, zero) };
            let part = out.add(Op::Select, &[map[id.index()], yes, no])?;
            add(out, part)?;
        }
        if let Some(mask) = mask {
            operands.push(self.placed(out, mask)?);
        }
        let spec = AttentionSpec { scale: Num::new(self.scale), causal: self.causal };
        let op = Op::Attention { part: AttentionPart::Output, spec, format: Format::F32 };
        let made = out.add(op, &operands)?;
        match (self.is_flat, &out.ty(made).dims()[..]) {
            (true, &[n, _, t, d]) => out.reshape(made, &Shape::of(&[n, t, d])),
            _ => Ok(made),
        }
    }

    /// A mask with the four axes that the operation's has.
    fn placed(&self, out: &mut Graph, mask: NodeId) -> Result<NodeId> {
        let mut dims = out.ty(mask).dims();
        match (self.is_flat, dims.len()) {
            (true, 3) => dims.insert(1, 1),
            _ => dims.splice(0..0, vec![1; 4 - dims.len()]).for_each(drop),
        }
        out.reshape(mask, &Shape::of(&dims))
    }
}

/// The number that a value is everywhere, if it is a constant in some shape.
fn number(graph: &Graph, mut id: NodeId) -> Option<f64> {
    while matches!(graph.op(id), Op::Broadcast { .. } | Op::Reshape { .. }) {
        id = graph.inputs(id)[0];
    }
    if let Op::Const(c) = graph.op(id) { Some(c.get()) } else { None }
}

/// A value times a constant.
fn scaled(graph: &Graph, id: NodeId) -> Option<(NodeId, f64)> {
    let number = |id: NodeId| number(graph, id);
    match (graph.op(id), graph.inputs(id)) {
        (Op::Binary(Binary::Mul), &[a, b]) => number(b).map(|c| (a, c)).or_else(|| number(a).map(|c| (b, c))),
        (Op::Binary(Binary::Div), &[a, b]) => number(b).filter(|c| *c != 0.0).map(|c| (a, 1.0 / c)),
        _ => None,
    }
    .filter(|(inner, _)| graph.shape(*inner) == graph.shape(id))
}

/// The attention whose last product is this node.
fn spelled_at(graph: &Graph, constants: &Constants, id: NodeId) -> Option<Found> {
    let Op::MatMul { ta: false, tb, format: Format::F32 } = *graph.op(id) else { return None };
    let [p, v] = *graph.inputs(id) else { return None };
    let Op::Softmax { axis } = *graph.op(p) else { return None };
    let rank = graph.shape(p).rank();
    let is_read_elsewhere = graph.users(p).len() > 1 || graph.outputs().iter().any(|o| o.node == p);
    if !(3..=4).contains(&rank) || axis != rank - 1 || is_read_elsewhere || graph.ty(id).format != Format::F32 {
        return None;
    }
    if graph.shape(v).rank() != rank || graph.shape(p).fixed().is_none() {
        return None;
    }
    // Values that are multiplied by a constant stay multiplied.
    let v = match heads_of(graph, v, tb) {
        (heads, 1.0) => heads,
        _ if tb => Heads::Turned(v),
        _ => Heads::As(v),
    };
    let mut found = Found {
        q: Heads::As(p),
        k: Heads::As(p),
        v,
        scale: 1.0,
        causal: false,
        nearly_causal: None,
        added: Vec::new(),
        kept: Vec::new(),
        is_flat: rank == 3,
    };
    found.scores(graph, constants, graph.inputs(p)[0], &graph.ty(p).dims())?;
    // A finite number hides what it is added to as −∞ does, unless another mask hides all that is left.
    match found.nearly_causal {
        Some(mask) if !found.added.is_empty() || !found.kept.is_empty() => found.add(graph, mask)?,
        mask => found.causal |= mask.is_some(),
    }
    // Heads of keys and values are shared alike, or repeated as the model repeats them.
    let groups = |h: Heads| {
        let (Heads::As(id) | Heads::Turned(id)) = h;
        graph.ty(id).dims()[1]
    };
    (found.is_flat || groups(found.k) == groups(found.v)).then_some(found)
}

impl Found {
    /// Goes from the softmax down to the product of queries and keys.
    fn scores(&mut self, graph: &Graph, constants: &Constants, mut id: NodeId, dims: &[usize]) -> Option<()> {
        let is_hidden = |id: NodeId| number(graph, id) == Some(f64::NEG_INFINITY);
        loop {
            if graph.ty(id).dims() != dims {
                return None;
            }
            if let Some((inner, by)) = scaled(graph, id) {
                (id, self.scale) = (inner, self.scale * by);
                continue;
            }
            id = match (graph.op(id), graph.inputs(id)) {
                (Op::Select, &[c, s, other]) if is_hidden(other) => {
                    self.mask(graph, constants, c, Some(true), dims)?;
                    s
                }
                (Op::Select, &[c, other, s]) if is_hidden(other) => {
                    self.mask(graph, constants, c, Some(false), dims)?;
                    s
                }
                (Op::Binary(Binary::Add), &[a, b]) => {
                    let is_scores = graph.ty(a).dims() == dims && leads_to_product(graph, a, DEPTH);
                    let (s, mask) = if is_scores { (a, b) } else { (b, a) };
                    self.mask(graph, constants, mask, None, dims)?;
                    s
                }
                (&Op::MatMul { ta: false, tb, format: Format::F32 }, &[q, k]) => {
                    // A matrix of keys that all heads share is no tensor of heads.
                    if graph.shape(k).rank() != dims.len() {
                        return None;
                    }
                    let ((q, by_q), (k, by_k)) = (heads_of(graph, q, false), heads_of(graph, k, !tb));
                    self.scale *= by_q * by_k;
                    (self.q, self.k) = (q, k);
                    return (self.scale.is_finite() && self.scale > 0.0).then_some(());
                }
                _ => return None,
            };
        }
    }

    /// Takes a mask: `keeps` says of a condition where scores are kept; none if it is added.
    fn mask(
        &mut self,
        graph: &Graph,
        constants: &Constants,
        id: NodeId,
        keeps: Option<bool>,
        dims: &[usize],
    ) -> Option<()> {
        let mask = constants.mask(id, keeps, dims);
        if mask == Mask::Nothing {
            return Some(());
        }
        // Scaled by a negative number, what was hidden would be all that is seen.
        if mask == Mask::Trained || self.scale <= 0.0 {
            return None;
        }
        match (mask, keeps) {
            (Mask::Causal { wholly: true }, _) => self.causal = true,
            (Mask::Causal { wholly: false }, _) if self.nearly_causal.is_none() => {
                self.nearly_causal = Some(Added { mask: id, scale: self.scale });
            }
            (_, None) => self.add(graph, Added { mask: id, scale: self.scale })?,
            // A mask of three axes is one of all heads or of each.
            (_, Some(keeps)) if graph.shape(id).rank() <= dims.len() => self.kept.push((id, keeps)),
            _ => return None,
        }
        Some(())
    }

    /// Takes a mask that is added, if it is not scaled with what it is added to.
    fn add(&mut self, graph: &Graph, Added { mask, scale }: Added) -> Option<()> {
        let rank = if self.is_flat { 3 } else { 4 };
        (graph.shape(mask).rank() <= rank && scale == 1.0).then(|| self.added.push(mask))
    }
}

/// A mask that is added to scores, and what both are multiplied by.
#[derive(Clone, Copy, Debug)]
struct Added {
    mask: NodeId,
    scale: f64,
}

/// Operations from a sum to the product that it is of, at most.
const DEPTH: usize = 8;

/// Does a value come of a matrix product by masks and scales alone, so many of them at most?
fn leads_to_product(graph: &Graph, id: NodeId, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    if let Some((inner, _)) = scaled(graph, id) {
        return leads_to_product(graph, inner, depth);
    }
    match (graph.op(id), graph.inputs(id)) {
        (Op::MatMul { .. }, _) => true,
        (Op::Binary(Binary::Add), &[a, b]) => leads_to_product(graph, a, depth) || leads_to_product(graph, b, depth),
        (Op::Select, &[_, a, b]) => leads_to_product(graph, a, depth) || leads_to_product(graph, b, depth),
        _ => false,
    }
}
