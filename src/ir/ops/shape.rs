//! Moving elements: broadcast, reshape, transpose, slice, pad, windows, concat.

use super::attr::{Attr, Attrs};
use super::reduce::unbroadcast;
use super::signature::Elements::{Moved, Picked};
use super::signature::{Attribute, Default, Family, Kind, Signature};
use super::{Context, Gradients, Op, ReduceKind, Shape, Type};
use crate::error::Result;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::tensor::Tensor;
use crate::ir::types::Dim;

/// Operations that move elements and compute nothing.
pub(super) struct Moves;

impl Family for Moves {
    fn signatures(&self) -> Vec<Signature> {
        let axis = || Attribute::new("axis", Kind::Int).samples(&["0", "1"]);
        let int = |key| Attribute::new(key, Kind::Int);
        let or = |key, n| Attribute::new(key, Kind::Int).or(Attr::int(n));
        let dims = || Attribute::new("dims", Kind::Dims);
        let perm = Attribute::new("perm", Kind::Ints).default(Default::LastTwoExchanged).samples(&["[1, 0]"]);
        let fill = Attribute::new("fill", Kind::Number).or(Attr::number(0.0));
        let [size, extent] = ["size", "extent"].map(|key| int(key).samples(&["1", "2"]));
        let places = || [or("stride", 1).samples(&["1", "2"]), or("dilation", 1).samples(&["1", "2"]), or("lo", 0)];
        vec![
            Signature::new("broadcast", 1).with([dims()]),
            Signature::new("reshape", 1).elements(Moved).with([dims()]),
            Signature::new("transpose", 1).elements(Moved).with([perm]),
            Signature::new("slice", 1).elements(Picked).with([axis(), or("start", 0), int("stop"), or("step", 1)]),
            Signature::new("pad", 1).elements(Picked).with([axis(), or("lo", 0), or("hi", 0), or("inner", 0)]),
            Signature::new("window", 1)
                .elements(Picked)
                .with([&[axis(), size], &places()[..], &[or("hi", 0), fill]].concat()),
            Signature::new("unwindow", 1).elements(Picked).with([&[axis(), extent], &places()[..]].concat()),
            Signature::new("roll", 1).elements(Moved).with([axis(), int("by")]),
            Signature::new("concat", 1).elements(Picked).of_any().with([axis()]),
        ]
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Broadcast { .. } => "broadcast",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::Window { .. } => "window",
            Op::Unwindow { .. } => "unwindow",
            Op::Roll { .. } => "roll",
            _ => "concat",
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        let ints = |v: &[&usize]| v.iter().map(|&&n| Attr::int(n)).collect();
        match op {
            Op::Broadcast { dims } | Op::Reshape { dims } => vec![Attr::Dims(dims.clone())],
            Op::Transpose { perm } => vec![Attr::ints(perm)],
            Op::Slice { axis, start, stop, step } => ints(&[axis, start, stop, step]),
            Op::Pad { axis, lo, hi, inner } => ints(&[axis, lo, hi, inner]),
            Op::Window { axis, size, stride, dilation, lo, hi, fill } => {
                let mut out: Vec<Attr> = ints(&[axis, size, stride, dilation, lo, hi]);
                out.push(Attr::Float(*fill));
                out
            }
            Op::Unwindow { axis, extent, stride, dilation, lo } => ints(&[axis, extent, stride, dilation, lo]),
            Op::Concat { axis } => ints(&[axis]),
            Op::Roll { axis, by } => ints(&[axis, by]),
            _ => unreachable!("another family's"),
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        Ok(match name {
            "broadcast" => Op::Broadcast { dims: a.dims("dims")? },
            "reshape" => Op::Reshape { dims: a.dims("dims")? },
            "transpose" => Op::Transpose { perm: a.ints("perm")? },
            "slice" => {
                Op::Slice { axis: a.int("axis")?, start: a.int("start")?, stop: a.int("stop")?, step: a.int("step")? }
            }
            "pad" => Op::Pad { axis: a.int("axis")?, lo: a.int("lo")?, hi: a.int("hi")?, inner: a.int("inner")? },
            "window" => Op::Window {
                axis: a.int("axis")?,
                size: a.int("size")?,
                stride: a.int("stride")?,
                dilation: a.int("dilation")?,
                lo: a.int("lo")?,
                hi: a.int("hi")?,
                fill: a.float("fill")?,
            },
            "unwindow" => Op::Unwindow {
                axis: a.int("axis")?,
                extent: a.int("extent")?,
                stride: a.int("stride")?,
                dilation: a.int("dilation")?,
                lo: a.int("lo")?,
            },
            "roll" => Op::Roll { axis: a.int("axis")?, by: a.int("by")? },
            _ => Op::Concat { axis: a.int("axis")? },
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        infer(op, x)
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        eval(op, x, ty)
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        vjp(op, c)
    }
}

/// The register format a moved element has: what was narrow is f32 once read.
fn register(x: &Type, shape: Shape) -> Type {
    Type::new(shape, x.format.once_read())
}

fn axis_extent(x: &Type, axis: usize) -> Result<usize, String> {
    match x.shape.0.get(axis) {
        None => Err(format!("axis {axis} is outside {}", x.shape)),
        Some(Dim::Fixed(n)) => Ok(*n),
        Some(Dim::Named(s)) => Err(format!("axis {axis} is the unbound size `{s}`")),
    }
}

fn with_extent(x: &Type, axis: usize, n: usize) -> Type {
    let mut shape = x.shape.clone();
    shape.0[axis] = Dim::Fixed(n);
    register(x, shape)
}

/// Refuses distances that no value has elements for: positions are computed from them.
pub(super) fn within<const N: usize>(attributes: [(&str, usize); N]) -> Result<(), String> {
    match attributes.iter().find(|(_, n)| *n > Type::MOST) {
        Some((key, n)) => Err(format!("{key}={n} is more than 2^{}", Type::MOST.ilog2())),
        None => Ok(()),
    }
}

fn infer(op: &Op, x: &[&Type]) -> Result<Type, String> {
    let a = x.first().ok_or("needs an operand")?;
    match op {
        Op::Broadcast { dims } => match a.shape.broadcast(dims) {
            Some(s) if s == *dims => Ok(register(a, s)),
            _ => Err(format!("{} does not broadcast to {dims}", a.shape)),
        },
        Op::Reshape { dims } if a.shape.count() != dims.count() => {
            Err(format!("{} and {dims} hold different numbers of elements", a.shape))
        }
        Op::Reshape { dims } => Ok(register(a, dims.clone())),
        Op::Transpose { perm } => {
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if !sorted.iter().copied().eq(0..a.shape.rank()) {
                return Err(format!("{perm:?} is not a permutation of the axes of {}", a.shape));
            }
            Ok(register(a, Shape(perm.iter().map(|&p| a.shape.0[p].clone()).collect())))
        }
        Op::Slice { axis, start, stop, step } => {
            let n = axis_extent(a, *axis)?;
            if *step == 0 || start > stop || *stop > n {
                return Err(format!("cannot take {start}..{stop} step {step} of {n}"));
            }
            Ok(with_extent(a, *axis, (stop - start).div_ceil(*step)))
        }
        Op::Pad { axis, lo, hi, inner } => {
            let n = axis_extent(a, *axis)?;
            within([("lo", *lo), ("hi", *hi), ("inner", *inner)])?;
            Ok(with_extent(a, *axis, (lo + n + hi).saturating_add(n.saturating_sub(1).saturating_mul(*inner))))
        }
        Op::Window { axis, size, stride, dilation, lo, hi, .. } => {
            let n = axis_extent(a, *axis)?;
            within([("lo", *lo), ("hi", *hi), ("size", *size), ("stride", *stride), ("dilation", *dilation)])?;
            let reach = dilation.saturating_mul(size.saturating_sub(1)).saturating_add(1);
            if *size == 0 || *stride == 0 || *dilation == 0 {
                return Err("size, stride and dilation must be at least 1".into());
            }
            let places = (n + lo + hi).checked_sub(reach).map_or(0, |room| room / stride + 1);
            let mut shape = a.shape.clone();
            shape.0.splice(axis..=axis, [Dim::Fixed(places), Dim::Fixed(*size)]);
            Ok(register(a, shape))
        }
        Op::Unwindow { axis, extent, stride, dilation, lo } => {
            within([("extent", *extent), ("lo", *lo), ("stride", *stride), ("dilation", *dilation)])?;
            let size = axis_extent(a, axis + 1)?;
            if *stride == 0 || *dilation == 0 {
                return Err("stride and dilation must be at least 1".into());
            }
            let mut shape = a.shape.clone();
            shape.0.splice(axis..=&(axis + 1), [Dim::Fixed(*extent), Dim::Fixed(size)]);
            Ok(register(a, shape))
        }
        Op::Roll { axis, by } => {
            let n = axis_extent(a, *axis)?;
            if *by > n {
                return Err(format!("cannot move {n} elements on by {by}"));
            }
            Ok(register(a, a.shape.clone()))
        }
        Op::Concat { axis } => {
            let mut total = 0;
            for t in x {
                total += axis_extent(t, *axis)?;
                if with_extent(t, *axis, 0).shape != with_extent(a, *axis, 0).shape
                    || t.format.once_read() != a.format.once_read()
                {
                    return Err(format!("{t} does not line up with {a} beside axis {axis}"));
                }
            }
            Ok(with_extent(a, *axis, total))
        }
        _ => unreachable!("not a shape operation"),
    }
}

fn eval(op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
    let dims = ty.dims();
    match op {
        Op::Broadcast { .. } => Tensor::from_fn(&dims, |i| x[0].at_broadcast(i)),
        Op::Reshape { .. } => Tensor::new(&dims, x[0].data.clone()),
        Op::Transpose { perm } => Tensor::from_fn(&dims, |i| {
            let mut source = vec![0; i.len()];
            perm.iter().zip(i).for_each(|(&p, &v)| source[p] = v);
            x[0].at(&source)
        }),
        Op::Slice { axis, start, step, .. } => Tensor::from_fn(&dims, |i| {
            let mut source = i.to_vec();
            source[*axis] = start + step * i[*axis];
            x[0].at(&source)
        }),
        Op::Pad { axis, lo, inner, .. } => Tensor::from_fn(&dims, |i| {
            let Some(at) = i[*axis].checked_sub(*lo) else { return 0.0 };
            let mut source = i.to_vec();
            source[*axis] = at / (inner + 1);
            if at % (inner + 1) == 0 && source[*axis] < x[0].dims[*axis] { x[0].at(&source) } else { 0.0 }
        }),
        Op::Window { axis, stride, dilation, lo, fill, .. } => Tensor::from_fn(&dims, |i| {
            let at = (i[*axis] * stride + i[axis + 1] * dilation).checked_sub(*lo);
            let Some(at) = at.filter(|&p| p < x[0].dims[*axis]) else { return fill.get() };
            let mut source = i.to_vec();
            source.splice(axis..=&(axis + 1), [at]);
            x[0].at(&source)
        }),
        Op::Unwindow { axis, stride, dilation, lo, .. } => Tensor::from_fn(&dims, |i| {
            let Some(at) = (i[*axis] + lo).checked_sub(i[axis + 1] * dilation) else { return 0.0 };
            let mut source = i.to_vec();
            source[*axis] = at / stride;
            if at % stride == 0 && source[*axis] < x[0].dims[*axis] { x[0].at(&source) } else { 0.0 }
        }),
        Op::Roll { axis, by } => Tensor::from_fn(&dims, |i| {
            let mut source = i.to_vec();
            source[*axis] = (i[*axis] + dims[*axis] - by) % dims[*axis];
            x[0].at(&source)
        }),
        Op::Concat { axis } => Tensor::from_fn(&dims, |i| {
            let mut source = i.to_vec();
            let mut part = 0;
            while source[*axis] >= x[part].dims[*axis] {
                source[*axis] -= x[part].dims[*axis];
                part += 1;
            }
            x[part].at(&source)
        }),
        _ => unreachable!("not a shape operation"),
    }
}

fn vjp(op: &Op, c: Context) -> Gradients {
    let (g, x, dy) = (c.graph, c.x[0], c.dy);
    let dx = match op {
        Op::Broadcast { .. } => unbroadcast(g, dy, x)?,
        Op::Reshape { .. } => {
            let shape = g.shape(x).clone();
            g.reshape(dy, &shape)?
        }
        Op::Transpose { perm } => {
            let mut inverse = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
            g.add(Op::Transpose { perm: inverse }, &[dy])?
        }
        Op::Slice { axis, start, step, .. } => {
            let (n, m) = (g.ty(x).dims()[*axis], g.ty(dy).dims()[*axis]);
            let reach = if m == 0 { 0 } else { (m - 1) * step + 1 };
            g.add(Op::Pad { axis: *axis, lo: *start, hi: n - start - reach, inner: step - 1 }, &[dy])?
        }
        Op::Pad { axis, lo, inner, .. } => {
            let n = g.ty(x).dims()[*axis];
            let stop = if n == 0 { *lo } else { lo + (n - 1) * (inner + 1) + 1 };
            g.add(Op::Slice { axis: *axis, start: *lo, stop, step: inner + 1 }, &[dy])?
        }
        // Every element collects from the windows it was in.
        Op::Window { axis, stride, dilation, lo, .. } => {
            let extent = g.ty(x).dims()[*axis];
            let spread = Op::Unwindow { axis: *axis, extent, stride: *stride, dilation: *dilation, lo: *lo };
            let window = g.op(c.node).clone();
            let parts = unwindow_into(g, dy, &spread, &window, x)?;
            g.reduce(ReduceKind::Sum, parts, &[axis + 1], false)?
        }
        // Element k of window o was read by position o·stride + k·dilation − lo, seen as element k.
        Op::Unwindow { .. } if g.ty(x).elements() == 0 => {
            let (zero, shape) = (g.constant(0.0)?, g.shape(x).clone());
            g.broadcast_to(zero, &shape)?
        }
        Op::Unwindow { axis, extent, stride, dilation, lo } => {
            let (places, size) = (g.ty(x).dims()[*axis], g.ty(x).dims()[axis + 1]);
            let mut parts = Vec::new();
            for k in 0..size {
                let part = g.add(Op::Slice { axis: axis + 1, start: k, stop: k + 1, step: 1 }, &[dy])?;
                let before = lo.saturating_sub(k * dilation);
                let start = k * dilation + before - lo;
                let stop = start + places.saturating_sub(1) * stride + 1;
                let after = stop.saturating_sub(before + extent);
                let part = g.add(Op::Pad { axis: *axis, lo: before, hi: after, inner: 0 }, &[part])?;
                parts.push(g.add(Op::Slice { axis: *axis, start, stop, step: *stride }, &[part])?);
            }
            g.add(Op::Concat { axis: axis + 1 }, &parts)?
        }
        Op::Roll { axis, by } => {
            let by = g.ty(x).dims()[*axis] - by;
            g.add(Op::Roll { axis: *axis, by }, &[dy])?
        }
        Op::Concat { axis } => {
            let mut start = 0;
            let mut out = Vec::new();
            for &part in c.x {
                let stop = start + g.ty(part).dims()[*axis];
                out.push(Some(g.add(Op::Slice { axis: *axis, start, stop, step: 1 }, &[dy])?));
                start = stop;
            }
            return Ok(out);
        }
        _ => unreachable!("not a shape operation"),
    };
    Ok(vec![Some(dx)])
}

/// `unwindow(dy)`, moved into the selections and comparisons that `dy` is made of: what a maximum's gradient compares
/// with is then x itself, and no tensor of whole windows is ever stored.
fn unwindow_into(g: &mut Graph, dy: NodeId, spread: &Op, window: &Op, x: NodeId) -> Result<NodeId> {
    let Op::Unwindow { axis, .. } = spread else { unreachable!("made by the caller") };
    let (op, inputs, full) = (g.op(dy).clone(), g.inputs(dy).to_vec(), g.shape(dy).clone());
    let enters = match &op {
        Op::Select => true,
        Op::Binary(b) => b.is_comparison(),
        _ => false,
    };
    if op == *window && inputs == [x] {
        // Element i, seen as any element of a window, is element i.
        let mut column = g.shape(x).clone();
        column.0.insert(axis + 1, Dim::Fixed(1));
        let mut spread_out = column.clone();
        spread_out.0[axis + 1] = full.0[axis + 1].clone();
        let column = g.reshape(x, &column)?;
        return g.broadcast_to(column, &spread_out);
    }
    if !enters {
        return g.add(spread.clone(), &[dy]);
    }
    let mut parts = Vec::new();
    for input in inputs {
        parts.push(if g.shape(input).rank() == 0 {
            input
        } else {
            let wide = g.broadcast_to(input, &full)?;
            unwindow_into(g, wide, spread, window, x)?
        });
    }
    g.add(op, &parts)
}

impl Graph {
    /// A reshape, unless the shape is already there.
    ///
    /// # Errors
    /// Shapes that hold different numbers of elements.
    pub fn reshape(&mut self, x: NodeId, dims: &Shape) -> Result<NodeId> {
        if self.shape(x) == dims { Ok(x) } else { self.add(Op::Reshape { dims: dims.clone() }, &[x]) }
    }
    /// A broadcast, unless the shape is already there.
    ///
    /// # Errors
    /// A shape that x does not broadcast to.
    pub fn broadcast_to(&mut self, x: NodeId, dims: &Shape) -> Result<NodeId> {
        if self.shape(x) == dims { Ok(x) } else { self.add(Op::Broadcast { dims: dims.clone() }, &[x]) }
    }
}
