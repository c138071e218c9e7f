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
    if n.dims(x)[axis] == 0 {
        return Ok(vec![x]);
    }
    let (exclusive, reverse) = (n.flag("exclusive", false), n.flag("reverse", false));
    Ok(vec![running_sums(n, x, axis, exclusive, reverse)?])
}

/// Up to so many elements, every sum adds up its own window.
const BLOCK: usize = 64;

/// Sums of all elements up to each, or from each on; without the element itself where `exclusive`. Longer axes are summed in
/// blocks, and what comes before a block is added to it: n · (64 + n / 64²) additions instead of n².
fn running_sums(n: &mut Node, x: NodeId, axis: usize, exclusive: bool, reverse: bool) -> Import<NodeId> {
    let dims = n.dims(x);
    let size = dims[axis];
    if size <= BLOCK {
        return windowed_sums(n, x, axis, exclusive, reverse);
    }
    let blocks = size.div_ceil(BLOCK);
    let mut padded = dims.clone();
    padded[axis] = blocks * BLOCK;
    let whole = match blocks * BLOCK - size {
        0 => x,
        rest => n.add(Op::Pad { axis, lo: 0, hi: rest, inner: 0 }, &[x])?,
    };
    let mut blocked = padded.clone();
    blocked.splice(axis..=axis, [blocks, BLOCK]);
    let whole = n.reshape(whole, &blocked)?;
    let inside = windowed_sums(n, whole, axis + 1, exclusive, reverse)?;
    let totals = n.reduce(ReduceKind::Sum, whole, &[axis + 1], false)?;
    let before = running_sums(n, totals, axis, true, reverse)?;
    let mut column = blocked.clone();
    column[axis + 1] = 1;
    let before = n.reshape(before, &column)?;
    let sums = n.bin(Binary::Add, inside, before)?;
    let sums = n.reshape(sums, &padded)?;
    n.slice(sums, axis, 0, size)
}

fn windowed_sums(n: &mut Node, x: NodeId, axis: usize, exclusive: bool, reverse: bool) -> Import<NodeId> {
    let size = n.dims(x)[axis];
    let (near, far) = (usize::from(exclusive), size - 1);
    // Window o covers o − far .. o, or o .. o + far, shifted by one where the element itself is left out.
    let (lo, hi) = if reverse { (0, far + near) } else { (far + near, 0) };
    let window = Op::Window { axis, size, stride: 1, dilation: 1, lo, hi, fill: Num::new(0.0) };
    let wide = n.add(window, &[x])?;
    let sums = n.reduce(ReduceKind::Sum, wide, &[axis + 1], false)?;
    let start = if reverse { near } else { 0 };
    n.slice(sums, axis, start, start + size)
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
