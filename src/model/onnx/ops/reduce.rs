//! Reductions, arg-extremes, cumulative sums, softmax.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Num, Op, ReduceKind, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[
    ("ReduceSum", |n| plain(n, ReduceKind::Sum)),
    ("ReduceMean", |n| plain(n, ReduceKind::Mean)),
    ("ReduceProd", |n| plain(n, ReduceKind::Prod)),
    ("ReduceMax", |n| extreme(n, ReduceKind::Max)),
    ("ReduceMin", |n| extreme(n, ReduceKind::Min)),
    ("ReduceL1", |n| around(n, |n, x| n.un(Unary::Abs, x), |_, s| Ok(s))),
    ("ReduceL2", |n| around(n, |n, x| n.un(Unary::Square, x), |n, s| n.root(s))),
    ("ReduceSumSquare", |n| around(n, |n, x| n.un(Unary::Square, x), |_, s| Ok(s))),
    ("ReduceLogSum", |n| around(n, |_, x| Ok(x), |n, s| n.un(Unary::Log, s))),
    ("ReduceLogSumExp", log_sum_exp),
    ("ArgMax", |n| arg(n, ReduceKind::Max)),
    ("ArgMin", |n| arg(n, ReduceKind::Min)),
    ("CumSum", cumulative_sum),
    ("Softmax", |n| softmax(n, |axis| Op::Softmax { axis })),
    ("LogSoftmax", |n| softmax(n, |axis| Op::LogSoftmax { axis })),
    ("Hardmax", hardmax),
];

/// The axes of a reduction; none if there is nothing to reduce.
fn axes(n: &Node, x: NodeId) -> Import<Option<Vec<usize>>> {
    let rank = n.rank(x);
    match n.ints_or_attr("axes", 1)? {
        Some(a) if !a.is_empty() => n.axes(&a, rank).map(Some),
        _ if n.flag("noop_with_empty_axes", false) => Ok(None),
        _ => Ok(Some((0..rank).collect())),
    }
}

fn around(
    n: &mut Node,
    before: fn(&mut Node, NodeId) -> Import<NodeId>,
    after: fn(&mut Node, NodeId) -> Import<NodeId>,
) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axes = axes(n, x)?;
    let y = before(n, x)?;
    let s = match axes {
        Some(axes) => n.reduce(ReduceKind::Sum, y, &axes, n.flag("keepdims", true))?,
        None => y,
    };
    let out = after(n, s)?;
    // Norms of whole numbers are whole numbers again.
    let to = n.format(x);
    Ok(vec![n.convert(out, to)?])
}

fn plain(n: &mut Node, kind: ReduceKind) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let Some(axes) = axes(n, x)? else { return Ok(vec![x]) };
    Ok(vec![n.reduce(kind, x, &axes, n.flag("keepdims", true))?])
}

/// Extremes of truth values are `any` and `all`.
fn extreme(n: &mut Node, kind: ReduceKind) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    if n.format(x) != Format::Bool {
        return plain(n, kind);
    }
    let Some(axes) = axes(n, x)? else { return Ok(vec![x]) };
    let keep = n.flag("keepdims", true);
    if kind == ReduceKind::Max {
        return Ok(vec![n.reduce(ReduceKind::Any, x, &axes, keep)?]);
    }
    let not = n.un(Unary::Not, x)?;
    let some = n.reduce(ReduceKind::Any, not, &axes, keep)?;
    Ok(vec![n.un(Unary::Not, some)?])
}

/// m + log Σ e^(x − m), with the maximum m
fn log_sum_exp(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let Some(axes) = axes(n, x)? else { return Ok(vec![x]) };
    let max = n.reduce(ReduceKind::Max, x, &axes, true)?;
    let finite = n.un(Unary::IsFinite, max)?;
    let zero = n.num(0.0)?;
    let max = n.select(finite, max, zero)?;
    let z = n.bin(Binary::Sub, x, max)?;
    let e = n.un(Unary::Exp, z)?;
    let s = n.reduce(ReduceKind::Sum, e, &axes, true)?;
    let log = n.un(Unary::Log, s)?;
    let out = n.bin(Binary::Add, log, max)?;
    if n.flag("keepdims", true) {
        return Ok(vec![out]);
    }
    let dims: Vec<usize> = n.dims(x).into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|d| d.1).collect();
    Ok(vec![n.reshape(out, &dims)?])
}

/// The position of the first (or last) extreme along an axis.
pub(super) fn arg_extreme(n: &mut Node, x: NodeId, axis: usize, kind: ReduceKind, last: bool) -> Import<NodeId> {
    let (rank, extent) = (n.rank(x), n.dims(x)[axis]);
    let best = n.reduce(kind, x, &[axis], true)?;
    let hit = n.bin(Binary::Eq, x, best)?;
    let at = n.positions(rank, axis, extent)?;
    let never = n.num_like(at, if last { -1.0 } else { extent as f64 })?;
    let at = n.select(hit, at, never)?;
    n.reduce(if last { ReduceKind::Max } else { ReduceKind::Min }, at, &[axis], true)
}

fn arg(n: &mut Node, kind: ReduceKind) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axis = n.axis_of(x, 0)?;
    let at = arg_extreme(n, x, axis, kind, n.flag("select_last_index", false))?;
    if n.flag("keepdims", true) {
        return Ok(vec![at]);
    }
    let mut dims = n.dims(x);
    dims.remove(axis);
    Ok(vec![n.reshape(at, &dims)?])
}

/// A window that ends (or starts) at each element covers what it sums.
fn cumulative_sum(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axis = n.ints(1)?.first().copied().ok_or("lacks its axis")?;
    let axis = n.axis(axis, n.rank(x))?;
    let size = n.dims(x)[axis];
    if size == 0 {
        return Ok(vec![x]);
    }
    let (exclusive, reverse) = (n.flag("exclusive", false), n.flag("reverse", false));
    let (near, far) = (usize::from(exclusive), size - 1);
    // Window o covers o − far .. o, or o .. o + far, shifted by one where the element itself is left out.
    let (lo, hi) = if reverse { (0, far + near) } else { (far + near, 0) };
    let window = Op::Window { axis, size, stride: 1, dilation: 1, lo, hi, fill: Num::new(0.0) };
    let wide = n.add(window, &[x])?;
    let sums = n.reduce(ReduceKind::Sum, wide, &[axis + 1], false)?;
    let start = if reverse { near } else { 0 };
    Ok(vec![n.slice(sums, axis, start, start + size)?])
}

/// Before opset 13 the axes from `axis` on are one.
fn softmax(n: &mut Node, op: fn(usize) -> Op) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    if n.im.opset >= 13 {
        let axis = n.axis_of(x, -1)?;
        return n.one(op(axis), &[x]);
    }
    let (axis, dims) = (n.axis_of(x, 1)?, n.dims(x));
    let flat = n.reshape(x, &[dims[..axis].iter().product(), dims[axis..].iter().product()])?;
    let y = n.add(op(1), &[flat])?;
    Ok(vec![n.reshape(y, &dims)?])
}

fn hardmax(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axis = n.axis_of(x, if n.im.opset >= 13 { -1 } else { 1 })?;
    let best = arg_extreme(n, x, axis, ReduceKind::Max, false)?;
    let at = n.positions(n.rank(x), axis, n.dims(x)[axis])?;
    let hit = n.bin(Binary::Eq, at, best)?;
    let to = n.format(x);
    Ok(vec![n.convert(hit, to)?])
}
