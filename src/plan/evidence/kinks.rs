//! Where derivatives jump: a rectifier's derivative is 0 or 1 by the sign of its operand, and rounding moves operands across.
//!
//! An element that crosses changes its gradient by all of it, however small the step was, so to first order nothing
//! happens and in truth the squared error grows with δ, not with δ². With elements spread evenly about the threshold at a
//! density ρ, a share ρ·E|δ| of them cross, and each adds the square of its jump D. A slope of height s over a band of ±w
//! about the threshold would add 2wρ·D²·δ²·s². They agree for s = 1 / 2√(hw) with h = E δ² / 2 E|δ|, 0.63 σ for a normal
//! δ. So the probe gives each such choice that slope: it attributes to every value its part in what crosses. The band is
//! wider than δ, so that elements enough are in it; σ is what rounding everything to a format does to the operand.

use super::observed::is_subject;
use crate::error::Result;
use crate::format::{Format, Formats};
use crate::ir::{Binary, Graph, Init, NodeId, Op, Output, ReduceKind, Role, Shape, Type, Unary};

/// The band's half width over h.
const BAND: f64 = 16.0;
/// E δ² / (2 E|δ|) over the standard deviation of a normal δ: √(π/8).
const H: f64 = 0.626_657;

/// A choice between two values by the sign of a − b, or of a alone.
pub struct Kink {
    /// In the graph of the two passes.
    a: NodeId,
    b: Option<NodeId>,
    /// The values chosen between.
    chosen: [NodeId; 2],
    /// States of the probe: the band's half width and the slope in it.
    pub width: String,
    /// The state that holds the slope, 1 / 2√(hw).
    pub slope: String,
}

impl Kink {
    /// The kink at a node, if it is one.
    pub(in crate::plan) fn at(graph: &Graph, id: NodeId, number: usize) -> Option<Kink> {
        if !matches!(graph.op(id), Op::Select) || graph.ty(id).format != Format::F32 {
            return None;
        }
        let x = graph.inputs(id);
        let Op::Binary(Binary::Gt | Binary::Ge | Binary::Lt | Binary::Le) = graph.op(x[0]) else { return None };
        let compared = graph.inputs(x[0]);
        if graph.shape(x[0]) != graph.shape(id)
            || compared.iter().any(|&c| graph.ty(c).format.once_read() != Format::F32)
        {
            return None;
        }
        let is_zero = matches!(graph.op(compared[1]), Op::Const(c) if c.get() == 0.0);
        let (a, b) = match graph.op(compared[0]) {
            // The result of a rectifier lies at the threshold wherever it is off; its operand does not.
            Op::Unary(Unary::Relu) if is_zero => (graph.inputs(compared[0])[0], None),
            _ => (compared[0], Some(compared[1])),
        };
        let [width, slope] = ["width", "slope"].map(|what| format!("kink.{number}.{what}"));
        Some(Kink { a, b, chosen: [x[1], x[2]], width, slope })
    }

    /// The output of the probe's `spreads` with the mean square of the operand's errors.
    pub fn moved(&self, format: Format) -> String {
        format!("{}.{format}", self.width)
    }

    /// The band's half width and the slope in it, for operands that move by this standard deviation.
    pub fn band(deviation: f64) -> [f64; 2] {
        let h = H * deviation;
        if h > 0.0 && h.is_finite() { [BAND * h, 0.5 / (h * BAND.sqrt())] } else { [0.0, 0.0] }
    }
}

/// What is compared, with 0, to choose.
fn operand(graph: &mut Graph, kink: &Kink, map: &[NodeId]) -> Result<NodeId> {
    match kink.b {
        None => Ok(map[kink.a.index()]),
        Some(b) => graph.binary(Binary::Sub, map[kink.a.index()], map[b.index()]),
    }
}

/// The choice plus nothing, but with the kink's slope; and the node to be held constant.
pub(in crate::plan) fn smoothed(
    graph: &mut Graph,
    kink: &Kink,
    choice: NodeId,
    map: &[NodeId],
) -> Result<(NodeId, NodeId)> {
    let mut scalar = |name: &str| {
        let ty = Type::new(Shape::scalar(), Format::F32);
        graph.add_named(name, Op::State { init: Init::zeros(), ty }, &[])
    };
    let (width, slope) = (scalar(&kink.width)?, scalar(&kink.slope)?);
    let d = operand(graph, kink, map)?;
    let held = graph.add_named(format!("{}.held", kink.width), Op::Convert(Format::F32), &[d])?;
    let still = graph.binary(Binary::Sub, d, held)?;
    let distance = graph.unary(Unary::Abs, held)?;
    let inside = graph.binary(Binary::Lt, distance, width)?;
    let jump = graph.binary(Binary::Sub, map[kink.chosen[0].index()], map[kink.chosen[1].index()])?;
    let rise = graph.binary(Binary::Mul, jump, slope)?;
    let added = graph.binary(Binary::Mul, rise, still)?;
    let zero = graph.constant(0.0)?;
    let added = graph.add(Op::Select, &[inside, added, zero])?;
    Ok((graph.binary(Binary::Add, choice, added)?, held))
}

/// A graph that yields, for every kink and format, the mean square of what rounding everything moves its operand by.
pub(in crate::plan) fn spreads(passes: &Graph, kinks: &[Kink], formats: Formats) -> Result<Graph> {
    let mut out = Graph::new(&passes.name);
    let sources: Vec<NodeId> = passes.sources().collect();
    let mut exact: Vec<NodeId> = Vec::with_capacity(passes.len());
    for id in passes.ids() {
        let inputs: Vec<NodeId> = passes.inputs(id).iter().map(|x| exact[x.index()]).collect();
        exact.push(out.transfer(passes, id, passes.op(id).clone(), &inputs, |f| exact.get(f.index()).copied())?);
    }
    let mut outputs = Vec::new();
    for format in formats.iter() {
        let mut rounded: Vec<NodeId> = Vec::with_capacity(passes.len());
        for id in passes.ids() {
            let inputs: Vec<NodeId> = passes.inputs(id).iter().map(|x| rounded[x.index()]).collect();
            let own = if sources.contains(&id) { exact[id.index()] } else { out.add(passes.op(id).clone(), &inputs)? };
            let value = if is_subject(passes, id) { out.add(Op::Convert(format), &[own])? } else { own };
            rounded.push(value);
        }
        for kink in kinks {
            let (from, to) = (operand(&mut out, kink, &exact)?, operand(&mut out, kink, &rounded)?);
            let moved = out.binary(Binary::Sub, to, from)?;
            let square = out.unary(Unary::Square, moved)?;
            let axes: Vec<usize> = (0..out.shape(square).rank()).collect();
            let node = out.reduce(ReduceKind::Mean, square, &axes, false)?;
            outputs.push(Output { name: kink.moved(format), role: Role::Output, node });
        }
    }
    super::observed(&out.prune(&outputs)?)
}
