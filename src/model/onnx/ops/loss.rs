//! Losses that models compute themselves.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, ReduceKind, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[
    ("NegativeLogLikelihoodLoss", |n| {
        let logp = n.x(0)?;
        let loss = likelihood(n, logp)?;
        Ok(vec![loss])
    }),
    ("SoftmaxCrossEntropyLoss", |n| {
        let x = n.x(0)?;
        let logp = n.add(Op::LogSoftmax { axis: 1 }, &[x])?;
        let loss = likelihood(n, logp)?;
        Ok(vec![loss, logp])
    }),
];

/// −w[y]·logp[y] over classes on axis 1; labels that are to be ignored weigh nothing. A mean divides by the weights.
fn likelihood(n: &mut Node, logp: NodeId) -> Import<NodeId> {
    let (label, weight) = (n.x(1)?, n.maybe(2)?);
    let (dims, rank) = (n.dims(logp), n.rank(logp));
    if rank < 2 {
        return Err(format!("takes classes on axis 1, not {dims:?}"));
    }
    n.demand_rank(label, rank - 1, "the label")?;
    let label = n.convert(label, Format::I64)?;
    let mut column = n.dims(label);
    column.insert(1, 1);
    let label = n.reshape(label, &column)?;
    let classes = n.positions(rank, 1, dims[1])?;
    let mut hit = n.bin(Binary::Eq, classes, label)?;
    if n.attr("ignore_index").is_some() {
        let counts = n.with(Binary::Ne, label, n.int("ignore_index", 0) as f64)?;
        hit = n.bin(Binary::And, hit, counts)?;
    }
    let weight = match weight {
        Some(w) => n.reshape(w, &[&[1, dims[1]], &vec![1; rank - 2][..]].concat())?,
        None => n.num_like(logp, 1.0)?,
    };
    let zero = n.num_like(logp, 0.0)?;
    let own = n.select(hit, weight, zero)?;
    let own = n.broadcast(own, &dims)?;
    // Selected, not multiplied: an impossible class has log-probability −∞, and 0 · ∞ is no number.
    let weighted = n.bin(Binary::Mul, weight, logp)?;
    let picked = n.select(hit, weighted, zero)?;
    let each = n.reduce(ReduceKind::Sum, picked, &[1], false)?;
    let each = n.un(Unary::Neg, each)?;
    let all = |n: &mut Node, x: NodeId| {
        let axes: Vec<usize> = (0..n.rank(x)).collect();
        n.reduce(ReduceKind::Sum, x, &axes, false)
    };
    match n.word("reduction", "mean").as_str() {
        "none" => Ok(each),
        "sum" => all(n, each),
        "mean" => {
            let (total, weights) = (all(n, each)?, all(n, own)?);
            n.bin(Binary::Div, total, weights)
        }
        other => Err(format!("reduction `{other}` is not supported")),
    }
}
