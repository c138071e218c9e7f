//! Pools: reductions over windows of the spatial axes.

use super::Handler;
use super::conv::Windows;
use super::shape::least;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Num, Op, ReduceKind, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[
    ("MaxPool", max_pool),
    ("AveragePool", average_pool),
    ("LpPool", lp_pool),
    ("GlobalAveragePool", |n| global(n, ReduceKind::Mean)),
    ("GlobalMaxPool", |n| global(n, ReduceKind::Max)),
    ("GlobalLpPool", global_lp_pool),
];

fn spatial(n: &Node, x: NodeId) -> Import<Vec<usize>> {
    let dims = n.dims(x);
    if dims.len() < 3 { Err(format!("takes spatial axes, not {dims:?}")) } else { Ok(dims[2..].to_vec()) }
}

/// Windows of every spatial axis, `[N, C, o₀, k₀, o₁, k₁, …]`, and the axes of their elements. With `ceil_mode` the last
/// window may begin inside the data or its padding and end outside.
fn windows(n: &mut Node, x: NodeId, w: &Windows, fill: Num) -> Import<(NodeId, Vec<usize>)> {
    let (ceil, extents) = (n.flag("ceil_mode", false), spatial(n, x)?);
    let (mut y, mut axes) = (x, Vec::new());
    for (i, &extent) in extents.iter().enumerate() {
        let (stride, dilation, size) = (w.stride[i], w.dilation[i], w.kernel[i]);
        let (lo, mut hi) = (w.lo[i], w.hi[i]);
        let reach = dilation * (size - 1) + 1;
        if ceil && extent + lo + hi >= reach {
            let room = extent + lo + hi - reach;
            let mut places = room.div_ceil(stride) + 1;
            if (places - 1) * stride >= extent + lo {
                places -= 1;
            }
            hi += ((places - 1) * stride).saturating_sub(room);
        }
        let axis = 2 + 2 * i;
        y = n.add(Op::Window { axis, size, stride, dilation, lo, hi, fill }, &[y])?;
        axes.push(axis + 1);
    }
    Ok((y, axes))
}

fn max_pool(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let extents = spatial(n, x)?;
    let w = Windows::new(n, &extents, None)?;
    let fill = least(n.format(x));
    let (y, axes) = windows(n, x, &w, fill)?;
    let best = n.reduce(ReduceKind::Max, y, &axes, false)?;
    if !n.wants(1) {
        return Ok(vec![best]);
    }
    // The flat position of the first maximum, over all axes of x.
    let dims = n.dims(x);
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    if n.int("storage_order", 0) == 1 {
        let k = extents.len();
        for i in 0..k {
            strides[2 + i] = extents[..i].iter().product();
        }
    }
    let mut flat: Option<NodeId> = None;
    for (a, &stride) in strides.iter().enumerate() {
        let p = n.positions(dims.len(), a, dims[a])?;
        let p = n.with(Binary::Mul, p, stride as f64)?;
        flat = Some(match flat {
            None => p,
            Some(f) => n.bin(Binary::Add, f, p)?,
        });
    }
    let flat = n.broadcast(flat.ok_or("takes at least one axis")?, &dims)?;
    let beyond = dims.iter().product::<usize>() as f64;
    let (at, _) = windows(n, flat, &w, Num::new(beyond))?;
    let kept = n.reduce(ReduceKind::Max, y, &axes, true)?;
    let hit = n.bin(Binary::Eq, y, kept)?;
    let never = n.num_like(at, beyond)?;
    let at = n.select(hit, at, never)?;
    let index = n.reduce(ReduceKind::Min, at, &axes, false)?;
    Ok(vec![best, index])
}

fn average_pool(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let extents = spatial(n, x)?;
    let w = Windows::new(n, &extents, None)?;
    let (y, axes) = windows(n, x, &w, Num::new(0.0))?;
    let sum = n.reduce(ReduceKind::Sum, y, &axes, false)?;
    // How many elements count: those inside the data, or inside its padding too.
    let places = n.dims(sum)[2..].to_vec();
    let padded = n.flag("count_include_pad", false);
    n.room(&places)?;
    let mut count: Vec<f64> = vec![1.0];
    for (i, &extent) in extents.iter().enumerate() {
        let (from, to) = if padded { (0, extent + w.lo[i] + w.hi[i]) } else { (w.lo[i], w.lo[i] + extent) };
        let own = |o: usize| {
            let at = |k: usize| o * w.stride[i] + k * w.dilation[i];
            (0..w.kernel[i]).filter(|&k| (from..to).contains(&at(k))).count() as f64
        };
        count = count.iter().flat_map(|&c| (0..places[i]).map(move |o| (c, o))).map(|(c, o)| c * own(o)).collect();
    }
    let count = n.table(&places, count, Format::F32)?;
    Ok(vec![n.bin(Binary::Div, sum, count)?])
}

/// (Σ |x|^p)^(1/p)
fn lp(n: &mut Node, x: NodeId, axes: &[usize], keep: bool, p: f64) -> Import<NodeId> {
    let a = n.un(Unary::Abs, x)?;
    let powers = n.with(Binary::Pow, a, p)?;
    let sum = n.reduce(ReduceKind::Sum, powers, axes, keep)?;
    n.with(Binary::Pow, sum, 1.0 / p)
}

fn lp_pool(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let w = Windows::new(n, &spatial(n, x)?, None)?;
    let (y, axes) = windows(n, x, &w, Num::new(0.0))?;
    Ok(vec![lp(n, y, &axes, false, n.int("p", 2) as f64)?])
}

fn global(n: &mut Node, kind: ReduceKind) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axes: Vec<usize> = (2..n.rank(x)).collect();
    Ok(vec![n.reduce(kind, x, &axes, true)?])
}

fn global_lp_pool(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axes: Vec<usize> = (2..n.rank(x)).collect();
    Ok(vec![lp(n, x, &axes, true, n.int("p", 2) as f64)?])
}
