//! Normalisations.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, Graph, NodeId, Num, Op, ReduceKind, Role, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[
    ("BatchNormalization", batch),
    ("InstanceNormalization", instance),
    ("LayerNormalization", layer),
    ("GroupNormalization", group),
    ("RMSNormalization", rms),
    ("LpNormalization", lp),
    ("MeanVarianceNormalization", mean_variance),
    ("LRN", local_response),
];

fn normalise(n: &mut Node, x: NodeId, axes: &[usize], eps: f64, centred: bool) -> Import<NodeId> {
    n.add(Op::Normalise { axes: axes.to_vec(), eps: Num::new(eps), centred }, &[x])
}

/// A value per channel, shaped to broadcast over `[N, C, …]`.
fn per_channel(n: &mut Node, v: NodeId, rank: usize) -> Import<NodeId> {
    let count = n.dims(v).iter().product();
    let mut dims = vec![1; rank];
    dims[1.min(rank - 1)] = count;
    n.reshape(v, &dims)
}

fn scale_shift(n: &mut Node, x: NodeId, scale: NodeId, shift: NodeId, rank: usize) -> Import<NodeId> {
    let (s, b) = (per_channel(n, scale, rank)?, per_channel(n, shift, rank)?);
    let y = n.bin(Binary::Mul, x, s)?;
    n.bin(Binary::Add, y, b)
}

/// In training, statistics are the batch's, and running ones are state that the step updates; in inference the running
/// ones are used.
fn batch(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, scale, shift) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let (rank, eps) = (n.rank(x), n.float("epsilon", 1e-5));
    let written = n.flag("training_mode", false);
    let trains = n.trains(written, |m| &m.batch_norm);
    n.im.layers.batch_norms.add(trains);
    let (mean, var) = (n.x(3)?, n.x(4)?);
    if !trains {
        let (m, v) = (per_channel(n, mean, rank)?, per_channel(n, var, rank)?);
        let centred = n.bin(Binary::Sub, x, m)?;
        let shifted = n.with(Binary::Add, v, eps)?;
        let rstd = n.un(Unary::Rsqrt, shifted)?;
        let y = n.bin(Binary::Mul, centred, rstd)?;
        let y = scale_shift(n, y, scale, shift, rank)?;
        return Ok([vec![y], vec![mean, var][..n.outputs().saturating_sub(1).min(2)].to_vec()].concat());
    }
    let axes: Vec<usize> = (0..rank).filter(|&a| a != 1).collect();
    let xhat = normalise(n, x, &axes, eps, true)?;
    let y = scale_shift(n, xhat, scale, shift, rank)?;
    let batch_mean = n.reduce(ReduceKind::Mean, x, &axes, false)?;
    let wide = per_channel(n, batch_mean, rank)?;
    let centred = n.bin(Binary::Sub, x, wide)?;
    let square = n.un(Unary::Square, centred)?;
    let batch_var = n.reduce(ReduceKind::Mean, square, &axes, false)?;
    let count: usize = axes.iter().map(|&a| n.dims(x)[a]).product();
    // Frameworks move the running variance to the unbiased one (torch.nn.BatchNorm2d), the specification to the biased one.
    let unbiased = n.with(Binary::Mul, batch_var, count as f64 / count.saturating_sub(1).max(1) as f64)?;
    let mut out = vec![y];
    for (running, now, as_trained) in [(mean, batch_mean, batch_mean), (var, batch_var, unbiased)] {
        if n.im.is_statistic(running) {
            let name = n.im.graph.name_of(running).to_owned();
            // A layer that is applied again moves on from where it moved to.
            let before = n.im.graph.output(&name, Role::Update).unwrap_or(running);
            let next = moved(n, before, as_trained)?;
            n.im.graph.set_output(&name, Role::Update, next);
        }
        out.push(moved(n, running, now)?);
    }
    Ok(out)
}

/// A running statistic moved towards what it is now.
fn moved(n: &mut Node, running: NodeId, now: NodeId) -> Import<NodeId> {
    let momentum = n.float("momentum", 0.9);
    let kept = n.with(Binary::Mul, running, momentum)?;
    let new = n.with(Binary::Mul, now, 1.0 - momentum)?;
    n.bin(Binary::Add, kept, new)
}

fn instance(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, scale, shift) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let rank = n.rank(x);
    let axes: Vec<usize> = (2..rank).collect();
    let y = normalise(n, x, &axes, n.float("epsilon", 1e-5), true)?;
    Ok(vec![scale_shift(n, y, scale, shift, rank)?])
}

/// Over the axes from `axis` on; a single last axis is the named layer norm.
fn layer(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, scale) = (n.x(0)?, n.x(1)?);
    let (rank, axis, eps) = (n.rank(x), n.axis_of(x, -1)?, n.float("epsilon", 1e-5));
    let dims = n.dims(x);
    let shift = n.maybe(2)?;
    let row = [dims[rank - 1]];
    let y = if axis + 1 == rank && n.dims(scale) == row {
        let shift = match shift {
            Some(s) if n.dims(s) == row => s,
            Some(s) => n.broadcast(s, &row)?,
            None => {
                let zero = n.num_like(scale, 0.0)?;
                n.broadcast(zero, &row)?
            }
        };
        n.add(Op::LayerNorm { eps: Num::new(eps) }, &[x, scale, shift])?
    } else {
        let axes: Vec<usize> = (axis..rank).collect();
        let xhat = normalise(n, x, &axes, eps, true)?;
        let y = n.bin(Binary::Mul, xhat, scale)?;
        match shift {
            Some(s) => n.bin(Binary::Add, y, s)?,
            None => y,
        }
    };
    let mut out = vec![y];
    if n.wants(1) || n.wants(2) {
        let axes: Vec<usize> = (axis..rank).collect();
        let mean = n.reduce(ReduceKind::Mean, x, &axes, true)?;
        let centred = n.bin(Binary::Sub, x, mean)?;
        let square = n.un(Unary::Square, centred)?;
        let var = n.reduce(ReduceKind::Mean, square, &axes, true)?;
        let shifted = n.with(Binary::Add, var, eps)?;
        out.extend([mean, n.un(Unary::Rsqrt, shifted)?]);
    }
    Ok(out)
}

/// Scale and shift are per channel from opset 21 on, per group before.
fn group(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, mut scale, mut shift) = (n.x(0)?, n.x(1)?, n.x(2)?);
    let (dims, groups) = (n.dims(x), n.int("num_groups", 1).max(1) as usize);
    let channels = dims[1];
    if channels % groups != 0 {
        return Err(format!("{channels} channels do not divide into {groups} groups"));
    }
    let split = [&[dims[0], groups, channels / groups], &dims[2..]].concat();
    let y = n.reshape(x, &split)?;
    let axes: Vec<usize> = (2..split.len()).collect();
    let y = normalise(n, y, &axes, n.float("epsilon", 1e-5), true)?;
    let y = n.reshape(y, &dims)?;
    for v in [&mut scale, &mut shift] {
        if n.dims(*v) == [groups] && groups != channels {
            let column = n.reshape(*v, &[groups, 1])?;
            let wide = n.broadcast(column, &[groups, channels / groups])?;
            *v = n.reshape(wide, &[channels])?;
        }
    }
    Ok(vec![scale_shift(n, y, scale, shift, dims.len())?])
}

fn rms(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, scale) = (n.x(0)?, n.x(1)?);
    let axes: Vec<usize> = (n.axis_of(x, -1)?..n.rank(x)).collect();
    let y = normalise(n, x, &axes, n.float("epsilon", 1e-5), false)?;
    Ok(vec![n.bin(Binary::Mul, y, scale)?])
}

/// x / ‖x‖
fn lp(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axis = n.axis_of(x, -1)?;
    let norm = if n.int("p", 2) == 1 {
        let a = n.un(Unary::Abs, x)?;
        n.reduce(ReduceKind::Sum, a, &[axis], true)?
    } else {
        let s = n.un(Unary::Square, x)?;
        let s = n.reduce(ReduceKind::Sum, s, &[axis], true)?;
        n.root(s)?
    };
    Ok(vec![n.bin(Binary::Div, x, norm)?])
}

/// √x. Exporters write a standard deviation, which is one operation in a framework, as the root of a variance.
pub(super) fn square_root(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    Ok(vec![if is_variance(&n.im.graph, x) { n.root(x)? } else { n.un(Unary::Sqrt, x)? }])
}

/// Is this the mean of the squares of x − mean x, perhaps scaled to be unbiased?
fn is_variance(g: &Graph, id: NodeId) -> bool {
    let x = g.inputs(id);
    let is_known = |id: NodeId| matches!(g.op(id), Op::Const(_) | Op::Convert(_) | Op::Broadcast { .. });
    match g.op(id) {
        Op::Binary(Binary::Mul | Binary::Div) if is_known(x[1]) => is_variance(g, x[0]),
        Op::Binary(Binary::Mul) if is_known(x[0]) => is_variance(g, x[1]),
        Op::Reduce { kind: ReduceKind::Mean | ReduceKind::Sum, .. } => {
            let squared = g.inputs(x[0]);
            let is_square = match g.op(x[0]) {
                Op::Unary(Unary::Square) => true,
                Op::Binary(Binary::Mul) => squared[0] == squared[1],
                Op::Binary(Binary::Pow) => matches!(g.op(squared[1]), Op::Const(c) if c.get() == 2.0),
                _ => false,
            };
            is_square && is_centred(g, squared[0])
        }
        op if op.is_view() => is_variance(g, x[0]),
        _ => false,
    }
}

/// Is this x − mean x?
fn is_centred(g: &Graph, id: NodeId) -> bool {
    let x = g.inputs(id);
    if *g.op(id) != Op::Binary(Binary::Sub) {
        return false;
    }
    let mut mean = x[1];
    while g.op(mean).is_view() {
        mean = g.inputs(mean)[0];
    }
    matches!(g.op(mean), Op::Reduce { kind: ReduceKind::Mean, .. }) && g.inputs(mean) == [x[0]]
}

/// (x − mean) / (deviation + 1e-9), as the operator's function body has it.
fn mean_variance(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let rank = n.rank(x);
    let axes = n.list("axes").unwrap_or_else(|| vec![0, 2, 3]);
    let axes = n.axes(&axes, rank)?;
    let mean = n.reduce(ReduceKind::Mean, x, &axes, true)?;
    let centred = n.bin(Binary::Sub, x, mean)?;
    let square = n.un(Unary::Square, centred)?;
    let var = n.reduce(ReduceKind::Mean, square, &axes, true)?;
    let std = n.root(var)?;
    let std = n.with(Binary::Add, std, 1e-9)?;
    Ok(vec![n.bin(Binary::Div, centred, std)?])
}

/// x / (bias + α/size Σ x² over a window of channels)^β
fn local_response(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let size = n.int("size", 1).max(1) as usize;
    let (alpha, beta, bias) = (n.float("alpha", 1e-4), n.float("beta", 0.75), n.float("bias", 1.0));
    let square = n.un(Unary::Square, x)?;
    let (lo, hi) = ((size - 1) / 2, size / 2);
    let window = Op::Window { axis: 1, size, stride: 1, dilation: 1, lo, hi, fill: Num::new(0.0) };
    let wide = n.add(window, &[square])?;
    let sum = n.reduce(ReduceKind::Sum, wide, &[2], false)?;
    let scaled = n.with(Binary::Mul, sum, alpha / size as f64)?;
    let base = n.with(Binary::Add, scaled, bias)?;
    let power = n.with(Binary::Pow, base, beta)?;
    let y = n.bin(Binary::Div, x, power)?;
    debug_assert!(n.format(y) == n.format(x) || n.format(x) == Format::F64);
    Ok(vec![y])
}
