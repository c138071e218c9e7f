//! Named operations spelled out as the primitives their kernels run: all in f32 registers, stable forms.

use super::empty::of_nothing;
use crate::error::Result;
use crate::format::Format;
use crate::ir::ops::{LEAST_SCALE, Loss, at_label};
use crate::ir::{Binary, Graph, NodeId, Op, ReduceKind, Unary, standardise};

/// The same graph without softmax, layer norm, losses and the like. Names and outputs are kept.
pub fn expand(graph: &Graph) -> Result<Graph> {
    let mut out = Graph::successor(graph);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let node = graph.node(id);
        let x: Vec<NodeId> = graph.inputs(id).iter().map(|i| map[i.index()]).collect();
        out.stage = node.stage;
        let is_empty = |id: &NodeId| out.ty(*id).elements() == 0;
        let copy = match &node.op {
            op if !op.is_buffer() && node.ty.elements() > 0 && x.iter().any(is_empty) => {
                of_nothing(&mut out, op, &x, &node.ty)?
            }
            Op::Softmax { axis } => softmax(&mut out, x[0], *axis)?,
            Op::LogSoftmax { axis } => log_softmax(&mut out, x[0], *axis)?,
            Op::IsExtreme { kind, axes } => {
                let extreme = out.reduce(*kind, x[0], axes, true)?;
                out.binary(Binary::Eq, x[0], extreme)?
            }
            Op::LayerNorm { eps } => {
                let (xhat, _) = {
                    let last = [out.shape(x[0]).rank() - 1];
                    standardise(&mut out, x[0], &last, eps.get(), true)?
                };
                let scaled = out.binary(Binary::Mul, xhat, x[1])?;
                out.binary(Binary::Add, scaled, x[2])?
            }
            Op::ScaleOf(format) => {
                let scale = scale_of(&mut out, x[0], *format)?;
                out.transfer(graph, id, Op::Put(Format::F32), &[scale], |f| map.get(f.index()).copied())?
            }
            Op::Roll { axis, by } => roll(&mut out, x[0], *axis, *by)?,
            Op::Loss(loss) => expand_loss(&mut out, *loss, x[0], x[1])?,
            Op::Normalise { axes, eps, centred } => standardise(&mut out, x[0], axes, eps.get(), *centred)?.0,
            op if op.is_buffer() => out.transfer(graph, id, op.clone(), &x, |f| map.get(f.index()).copied())?,
            op => out.add(op.clone(), &x)?,
        };
        map.push(copy);
    }
    for o in graph.outputs() {
        out.add_output(&o.name, o.role, map[o.node.index()]);
    }
    Ok(out)
}

/// The largest magnitude over the format's largest number.
fn scale_of(g: &mut Graph, x: NodeId, format: Format) -> Result<NodeId> {
    let magnitude = g.unary(Unary::Abs, x)?;
    let axes: Vec<usize> = (0..g.shape(x).rank()).collect();
    let amax = g.reduce(ReduceKind::Max, magnitude, &axes, false)?;
    let (largest, least) = (g.constant(format.largest())?, g.constant(LEAST_SCALE)?);
    let scale = g.binary(Binary::Div, amax, largest)?;
    g.binary(Binary::Max, scale, least)
}

/// The end, then the start.
fn roll(g: &mut Graph, x: NodeId, axis: usize, by: usize) -> Result<NodeId> {
    let n = g.ty(x).dims()[axis];
    let end = g.add(Op::Slice { axis, start: n - by, stop: n, step: 1 }, &[x])?;
    let start = g.add(Op::Slice { axis, start: 0, stop: n - by, step: 1 }, &[x])?;
    g.add(Op::Concat { axis }, &[end, start])
}

/// x − max, and the sum of its exponentials.
fn shifted(g: &mut Graph, x: NodeId, axis: usize) -> Result<(NodeId, NodeId, NodeId)> {
    let max = g.reduce(ReduceKind::Max, x, &[axis], true)?;
    // A row of −∞ alone (all masked) must not become −∞ − −∞.
    let least = g.constant(f64::from(f32::MIN))?;
    let max = g.binary(Binary::Max, max, least)?;
    let z = g.binary(Binary::Sub, x, max)?;
    let e = g.unary(Unary::Exp, z)?;
    let sum = g.reduce(ReduceKind::Sum, e, &[axis], true)?;
    Ok((z, e, sum))
}

fn softmax(g: &mut Graph, x: NodeId, axis: usize) -> Result<NodeId> {
    let (_, e, sum) = shifted(g, x, axis)?;
    // The largest exponential is 1, so a smaller sum is that of a row without a finite entry, which attends to nothing.
    let least = g.constant(f64::from(f32::MIN_POSITIVE))?;
    let sum = g.binary(Binary::Max, sum, least)?;
    g.binary(Binary::Div, e, sum)
}

fn log_softmax(g: &mut Graph, x: NodeId, axis: usize) -> Result<NodeId> {
    let (z, _, sum) = shifted(g, x, axis)?;
    let log = g.unary(Unary::Log, sum)?;
    g.binary(Binary::Sub, z, log)
}

fn expand_loss(g: &mut Graph, loss: Loss, x: NodeId, y: NodeId) -> Result<NodeId> {
    match loss {
        Loss::SquaredError => {
            let d = g.binary(Binary::Sub, x, y)?;
            g.unary(Unary::Square, d)
        }
        Loss::BceWithLogits => {
            let s = g.unary(Unary::Softplus, x)?;
            let xy = g.binary(Binary::Mul, x, y)?;
            g.binary(Binary::Sub, s, xy)
        }
        // log Σ e^z − z[label], with z = x − max
        Loss::CrossEntropy => {
            let axis = g.shape(x).rank() - 1;
            let (z, _, sum) = shifted(g, x, axis)?;
            let rows = g.shape(y).clone();
            let hit = at_label(g, x, y)?;
            let zero = g.constant(0.0)?;
            let picked = g.add(Op::Select, &[hit, z, zero])?;
            let chosen = g.reduce(ReduceKind::Sum, picked, &[axis], true)?;
            let log = g.unary(Unary::Log, sum)?;
            let nll = g.binary(Binary::Sub, log, chosen)?;
            g.reshape(nll, &rows)
        }
    }
}
