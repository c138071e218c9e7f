//! Reading and writing at integer positions.
//!
//! Whatever the operation, positions become rows of one flattened axis, so that one gather and one scatter serve all.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, ReduceKind, ScatterKind};
use crate::model::onnx::node::{Import, Node};
use crate::model::{Purpose, Weight};

pub const OPS: &[(&str, Handler)] = &[
    ("Gather", gather),
    ("ArrayFeatureExtractor", feature),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("Scatter", scatter_elements),
    ("ScatterElements", scatter_elements),
    ("ScatterND", scatter_nd),
    ("TensorScatter", tensor_scatter),
    ("OneHot", one_hot),
    ("TopK", top_k),
    ("Compress", compress),
    ("ReverseSequence", reverse_sequence),
    ("NonZero", non_zero),
];

/// Positions counted from the end made positions from the start, as i64.
fn from_start(n: &mut Node, index: NodeId, extent: usize) -> Import<NodeId> {
    let index = n.convert(index, Format::I64)?;
    let below = n.with(Binary::Lt, index, 0.0)?;
    let shifted = n.with(Binary::Add, index, extent as f64)?;
    n.select(below, shifted, index)
}

fn gather(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index) = (n.x(0)?, n.x(1)?);
    let axis = n.axis_of(x, 0)?;
    // A single known position is a slice.
    if let Ok(k) = n.known(1)
        && let [at] = k.tensor.data[..]
    {
        let extent = n.dims(x)[axis];
        let at = if at < 0.0 { at + extent as f64 } else { at } as usize;
        if at < extent {
            let mut dims = n.dims(x);
            dims.splice(axis..=axis, k.tensor.dims.iter().copied());
            let row = n.slice(x, axis, at, at + 1)?;
            return Ok(vec![n.reshape(row, &dims)?]);
        }
    }
    let index = n.convert(index, Format::I64)?;
    let y = n.add(Op::Gather { axis }, &[x, index])?;
    match padding_row(n, x, axis)? {
        Some((row, values)) => Ok(vec![without_gradient(n, y, index, row, values)?]),
        None => Ok(vec![y]),
    }
}

/// `padding_idx` of an embedding, which ONNX has no word for: where the exporter noted the call, and the row's values.
fn padding_row(n: &mut Node, table: NodeId, axis: usize) -> Import<Option<(usize, Vec<f64>)>> {
    if n.im.purpose == Purpose::Inference || axis != 0 || n.rank(table) != 2 {
        return Ok(None);
    }
    let call = n.proto.metadata_props.iter().find(|p| p.key() == "pkg.torch.onnx.fx_node");
    let Some(row) = call.and_then(|p| padding_index(p.value())) else { return Ok(None) };
    let width = n.dims(table)[1];
    // Of a large table, one row is read.
    let values = n.im.held(table).and_then(|w| {
        let size = width * w.format.bytes();
        Some(Weight::from_bytes(w.format, &[width], w.bytes().get(row * size..(row + 1) * size)?).values())
    });
    Ok(values.map(|values| (row, values)))
}

/// The third operand of `aten.embedding(weight, indices, padding_idx)`; −1 stands for none.
fn padding_index(call: &str) -> Option<usize> {
    let (_, operands) = call.split_once("aten.embedding.default](args = (")?;
    operands.split_once(')')?.0.split(',').nth(2)?.trim().parse().ok()
}

/// The rows looked up, with that of one position as the constant it is: nothing is added to its gradient.
fn without_gradient(n: &mut Node, y: NodeId, index: NodeId, row: usize, values: Vec<f64>) -> Import<NodeId> {
    let at = n.num(row as f64)?;
    let at = n.convert(at, Format::I64)?;
    let is_padding = n.bin(Binary::Eq, index, at)?;
    let is_padding = n.reshape(is_padding, &[&n.dims(index)[..], &[1]].concat())?;
    let is_padding = n.broadcast(is_padding, &n.dims(y))?;
    let constant = n.table(&[values.len()], values, Format::F32)?;
    let constant = n.broadcast(constant, &n.dims(y))?;
    n.select(is_padding, constant, y)
}

/// The flat position of element `index` along `axis`, all other axes standing where they are.
fn flat_positions(n: &mut Node, index: NodeId, axis: usize, of: &[usize]) -> Import<NodeId> {
    n.demand_rank(index, of.len(), "the index")?;
    let dims = n.dims(index);
    let strides = strides(of);
    let along = from_start(n, index, of[axis])?;
    let mut flat = n.with(Binary::Mul, along, strides[axis] as f64)?;
    for a in (0..dims.len()).filter(|&a| a != axis) {
        let p = n.positions(dims.len(), a, dims[a])?;
        let p = n.with(Binary::Mul, p, strides[a] as f64)?;
        flat = n.bin(Binary::Add, flat, p)?;
    }
    Ok(flat)
}

fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i];
    }
    out
}

/// Elements of the last axis (ai.onnx.ml).
fn feature(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index) = (n.x(0)?, n.x(1)?);
    let dims = n.dims(x);
    let index = n.convert(index, Format::I64)?;
    let count = n.im.graph.ty(index).elements();
    let index = n.reshape(index, &[count])?;
    let axis = dims.len().checked_sub(1).ok_or("takes a tensor of rank 1 or more")?;
    let y = n.add(Op::Gather { axis }, &[x, index])?;
    let rows = dims[..axis].iter().product();
    Ok(vec![n.reshape(y, &[rows, count])?])
}

fn gather_elements(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index) = (n.x(0)?, n.x(1)?);
    let (axis, dims) = (n.axis_of(x, 0)?, n.dims(x));
    let flat = flat_positions(n, index, axis, &dims)?;
    let all = n.reshape(x, &[dims.iter().product()])?;
    n.one(Op::Gather { axis: 0 }, &[all, flat])
}

/// Positions `[.., k]` into the k axes behind the batch axes, as positions into those axes flattened.
fn tuple_positions(n: &mut Node, index: NodeId, of: &[usize]) -> Import<NodeId> {
    let dims = n.dims(index);
    let last = dims.len() - 1;
    let strides = strides(of);
    let mut flat: Option<NodeId> = None;
    for (i, &stride) in strides.iter().enumerate() {
        let part = n.slice(index, last, i, i + 1)?;
        let part = n.reshape(part, &dims[..last])?;
        let part = from_start(n, part, of[i])?;
        let part = n.with(Binary::Mul, part, stride as f64)?;
        flat = Some(match flat {
            None => part,
            Some(f) => n.bin(Binary::Add, f, part)?,
        });
    }
    flat.ok_or_else(|| "positions of no axes".into())
}

fn gather_nd(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index) = (n.x(0)?, n.x(1)?);
    let b = n.int("batch_dims", 0).max(0) as usize;
    let (dims, at) = (n.dims(x), n.dims(index));
    let k = *at.last().ok_or("takes positions of rank 1 or more")?;
    if b + k > dims.len() || b >= at.len() {
        return Err(format!("positions {at:?} with {b} batch axes do not index {dims:?}"));
    }
    let batch: usize = dims[..b].iter().product();
    let (indexed, tail) = (&dims[b..b + k], &dims[b + k..]);
    let rows: usize = indexed.iter().product();
    let mut flat = tuple_positions(n, index, indexed)?;
    if b > 0 {
        let own: Vec<usize> = at[..at.len() - 1].to_vec();
        let per: usize = own[b..].iter().product();
        flat = n.reshape(flat, &[batch, per])?;
        let base = n.positions(2, 0, batch)?;
        let base = n.with(Binary::Mul, base, rows as f64)?;
        flat = n.bin(Binary::Add, flat, base)?;
        flat = n.reshape(flat, &own)?;
    }
    let all = n.reshape(x, &[&[batch * rows], tail].concat())?;
    n.one(Op::Gather { axis: 0 }, &[all, flat])
}

fn kind(n: &Node) -> Import<ScatterKind> {
    Ok(match n.word("reduction", "none").as_str() {
        "none" => ScatterKind::Set,
        "add" => ScatterKind::Add,
        "mul" => ScatterKind::Mul,
        "max" => ScatterKind::Max,
        "min" => ScatterKind::Min,
        other => return Err(format!("reduction `{other}` is not supported")),
    })
}

fn scatter_elements(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index, updates) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let (axis, dims, kind) = (n.axis_of(x, 0)?, n.dims(x), kind(n)?);
    let flat = flat_positions(n, index, axis, &dims)?;
    let count: usize = n.dims(index).iter().product();
    let (all, rows) = (n.reshape(x, &[dims.iter().product()])?, n.reshape(flat, &[count])?);
    let updates = n.reshape(updates, &[count])?;
    let y = n.add(Op::Scatter { axis: 0, kind }, &[all, rows, updates])?;
    Ok(vec![n.reshape(y, &dims)?])
}

fn scatter_nd(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, index, updates) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let (dims, at, kind) = (n.dims(x), n.dims(index), kind(n)?);
    let k = *at.last().ok_or("takes positions of rank 1 or more")?;
    if k > dims.len() {
        return Err(format!("positions {at:?} do not index {dims:?}"));
    }
    let (indexed, tail) = (&dims[..k], &dims[k..]);
    let flat = tuple_positions(n, index, indexed)?;
    let count: usize = at[..at.len() - 1].iter().product();
    let all = n.reshape(x, &[&[indexed.iter().product()], tail].concat())?;
    let rows = n.reshape(flat, &[count])?;
    let updates = n.reshape(updates, &[&[count], tail].concat())?;
    let y = n.add(Op::Scatter { axis: 0, kind }, &[all, rows, updates])?;
    Ok(vec![n.reshape(y, &dims)?])
}

/// Writes a sequence into a cache from a position on, for each sample; `circular` goes on at the start.
fn tensor_scatter(n: &mut Node) -> Import<Vec<NodeId>> {
    let (past, update) = (n.x(0)?, n.x(1)?);
    let axis = n.axis_of(past, -2)?;
    let (dims, new) = (n.dims(past), n.dims(update));
    if axis == 0 || new.len() != dims.len() {
        return Err(format!(
            "writes {new:?} into {dims:?} along axis {axis}: both have samples first, and as many axes"
        ));
    }
    let (batch, extent, count) = (dims[0], dims[axis], new[axis]);
    let start = match n.maybe(2)? {
        Some(s) => s,
        None => {
            let zero = n.num(0.0)?;
            let zero = n.convert(zero, Format::I64)?;
            n.broadcast(zero, &[batch])?
        }
    };
    // The row of element i of sample b along the axis, then flat positions of every element.
    let mut lead = vec![1; dims.len()];
    lead[0] = batch;
    let start = n.reshape(start, &lead)?;
    let along = n.positions(dims.len(), axis, count)?;
    let mut row = n.bin(Binary::Add, start, along)?;
    if n.word("mode", "linear") == "circular" {
        row = n.with(Binary::Mod, row, extent as f64)?;
    }
    let row = n.broadcast(row, &new)?;
    let flat = flat_positions(n, row, axis, &dims)?;
    let total: usize = new.iter().product();
    let (all, rows) = (n.reshape(past, &[dims.iter().product()])?, n.reshape(flat, &[total])?);
    let updates = n.reshape(update, &[total])?;
    let y = n.add(Op::Scatter { axis: 0, kind: ScatterKind::Set }, &[all, rows, updates])?;
    Ok(vec![n.reshape(y, &dims)?])
}

/// Positions outside the depth, on either side, are off everywhere.
fn one_hot(n: &mut Node) -> Import<Vec<NodeId>> {
    let (index, values) = (n.x(0)?, n.x(2)?);
    let depth = n.extents(1)?.first().copied().unwrap_or(0);
    let mut dims = n.dims(index);
    let axis = n.axis(n.int("axis", -1), dims.len() + 1)?;
    let index = n.convert(index, Format::I64)?;
    let index = from_start(n, index, depth)?;
    dims.insert(axis, 1);
    let index = n.reshape(index, &dims)?;
    let at = n.positions(dims.len(), axis, depth)?;
    let hit = n.bin(Binary::Eq, index, at)?;
    let (off, on) = (n.slice(values, 0, 0, 1)?, n.slice(values, 0, 1, 2)?);
    let (off, on) = (n.reshape(off, &[])?, n.reshape(on, &[])?);
    Ok(vec![n.select(hit, on, off)?])
}

/// An element's rank is how many come before it: larger ones, and equal ones further ahead. Ranks below k are sorted by
/// comparing them with 0, 1, …
fn top_k(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let k = match n.attr("k") {
        Some(a) => a.i(),
        None => n.ints(1)?.first().copied().unwrap_or(0),
    };
    let k = usize::try_from(k).map_err(|_| format!("k is {k}"))?;
    let (axis, dims) = (n.axis_of(x, -1)?, n.dims(x));
    let extent = dims[axis];
    // Pairs (i, j) stand on two axes: i where the axis was, j behind it.
    let pair = |n: &mut Node, v: NodeId, first: bool| {
        let mut d = n.dims(v);
        d.insert(if first { axis + 1 } else { axis }, 1);
        n.reshape(v, &d)
    };
    let (a, b) = (pair(n, x, true)?, pair(n, x, false)?);
    let largest = n.flag("largest", true);
    let beats = n.bin(if largest { Binary::Gt } else { Binary::Lt }, b, a)?;
    let ties = n.bin(Binary::Eq, b, a)?;
    let rank = dims.len() + 1;
    let (i, j) = (n.positions(rank, axis, extent)?, n.positions(rank, axis + 1, extent)?);
    let earlier = n.bin(Binary::Lt, j, i)?;
    let ahead = n.bin(Binary::And, ties, earlier)?;
    let before = n.bin(Binary::Or, beats, ahead)?;
    let ones = n.convert(before, Format::I64)?;
    let place = n.reduce(ReduceKind::Sum, ones, &[axis + 1], false)?;
    // Slot p takes the element whose place is p.
    let place = pair(n, place, false)?;
    let slot = n.positions(rank, axis, k)?;
    let hit = n.bin(Binary::Eq, place, slot)?;
    let zero = n.num_like(x, 0.0)?;
    let b = pair(n, x, false)?;
    let picked = n.select(hit, b, zero)?;
    let values = n.reduce(ReduceKind::Sum, picked, &[axis + 1], false)?;
    let at = n.positions(rank, axis + 1, extent)?;
    let none = n.num_like(at, 0.0)?;
    let picked = n.select(hit, at, none)?;
    let index = n.reduce(ReduceKind::Sum, picked, &[axis + 1], false)?;
    Ok(vec![values, index])
}

fn compress(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let rows: Vec<usize> =
        n.known(1)?.tensor.data.iter().enumerate().filter(|(_, c)| **c != 0.0).map(|(i, _)| i).collect();
    let (x, axis) = match n.attr("axis") {
        Some(a) => (x, n.axis(a.i(), n.rank(x))?),
        None => {
            let count = n.dims(x).iter().product();
            (n.reshape(x, &[count])?, 0)
        }
    };
    Ok(vec![n.pick(x, axis, &rows)?])
}

/// The first `lengths[b]` elements of the time axis backwards, the rest as they are.
fn reverse_sequence(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, lengths) = (n.x(0)?, n.x(1)?);
    let (time, batch) = (n.int("time_axis", 0).max(0) as usize, n.int("batch_axis", 1).max(0) as usize);
    let dims = n.dims(x);
    let y = reversed(n, x, lengths, time, batch, &dims)?;
    Ok(vec![y])
}

/// `x` with each sample's first `lengths` steps in reverse order.
pub(super) fn reversed(
    n: &mut Node,
    x: NodeId,
    lengths: NodeId,
    time: usize,
    batch: usize,
    dims: &[usize],
) -> Import<NodeId> {
    if time.max(batch) >= dims.len() || time == batch {
        return Err(format!("takes a time and a batch axis, not {dims:?}"));
    }
    let mut column = vec![1; dims.len()];
    column[batch] = dims[batch];
    let lengths = n.convert(lengths, Format::I64)?;
    let lengths = n.reshape(lengths, &column)?;
    let t = n.positions(dims.len(), time, dims[time])?;
    let last = n.with(Binary::Sub, lengths, 1.0)?;
    let back = n.bin(Binary::Sub, last, t)?;
    let inside = n.bin(Binary::Lt, t, lengths)?;
    let row = n.select(inside, back, t)?;
    let row = n.broadcast(row, dims)?;
    let flat = flat_positions(n, row, time, dims)?;
    let all = n.reshape(x, &[dims.iter().product()])?;
    n.add(Op::Gather { axis: 0 }, &[all, flat])
}

/// Only of known values: the result's shape depends on them.
fn non_zero(n: &mut Node) -> Import<Vec<NodeId>> {
    let k = n.known(0)?;
    let dims = k.tensor.dims.clone();
    let mut found: Vec<Vec<usize>> = Vec::new();
    for (flat, _) in k.tensor.data.iter().enumerate().filter(|(_, v)| **v != 0.0) {
        let mut rest = flat;
        let mut index = vec![0; dims.len()];
        for a in (0..dims.len()).rev() {
            index[a] = rest % dims[a];
            rest /= dims[a];
        }
        found.push(index);
    }
    let values = (0..dims.len()).flat_map(|a| found.iter().map(move |i| i[a] as f64)).collect();
    Ok(vec![n.table(&[dims.len(), found.len()], values, Format::I64)?])
}
