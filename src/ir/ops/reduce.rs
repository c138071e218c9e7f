//! Reductions over axes. Accumulation is in f32 on every device, whatever the operand's format.

use super::attr::{Attr, Attrs};
use super::named::named_enum;
use super::signature::{Attribute, Default, Family, Kind, Signature};
use super::{Binary, Context, Gradients, Op, Shape, Type};
use crate::error::Result;
use crate::format::Format;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

named_enum! {
    /// What a reduction makes of the elements along its axes. Without elements: what is said in brackets.
    ReduceKind {
        /// Σ x (0).
        Sum = "sum",
        /// Σ x / n (NaN).
        Mean = "mean",
        /// The largest, NaN if any is (−∞).
        Max = "reduce_max",
        /// The smallest, NaN if any is (∞).
        Min = "reduce_min",
        /// Is any truth value true (false)? The only one that takes booleans, and takes nothing else.
        Any = "any",
        /// Π x (1).
        Prod = "prod",
    }
}

/// Reductions, and which elements are the extremes.
pub(super) struct Reductions;

impl Family for Reductions {
    fn signatures(&self) -> Vec<Signature> {
        let axes = || Attribute::new("axes", Kind::Ints).default(Default::AllAxes);
        let keep = || Attribute::new("keep", Kind::Flag).or(Attr::Bool(false));
        let mut rows: Vec<Signature> =
            ReduceKind::ALL.iter().map(|k| Signature::new(k.name(), 1).with([axes(), keep()])).collect();
        rows.extend(["is_max", "is_min"].map(|name| Signature::new(name, 1).with([axes()])));
        rows
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Reduce { kind, .. } => kind.name(),
            Op::IsExtreme { kind: ReduceKind::Min, .. } => "is_min",
            _ => "is_max",
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        match op {
            Op::Reduce { axes, keep, .. } => vec![Attr::ints(axes), Attr::Bool(*keep)],
            Op::IsExtreme { axes, .. } => vec![Attr::ints(axes)],
            _ => Vec::new(),
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        let axes = a.ints("axes")?;
        Ok(match ReduceKind::ALL.into_iter().find(|k| k.name() == name) {
            Some(kind) => Op::Reduce { kind, axes, keep: a.flag("keep")? },
            None if name == "is_min" => Op::IsExtreme { kind: ReduceKind::Min, axes },
            None => Op::IsExtreme { kind: ReduceKind::Max, axes },
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        match op {
            Op::Reduce { kind, axes, keep } => infer(*kind, axes, *keep, x[0]),
            Op::IsExtreme { kind, axes } => infer_extreme(*kind, axes, x[0]),
            _ => unreachable!("another family's"),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Reduce { kind, axes, .. } => eval(*kind, axes, x[0], ty),
            Op::IsExtreme { kind, axes } => eval_extreme(*kind, axes, x[0]),
            _ => unreachable!("another family's"),
        }
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        match op {
            Op::Reduce { kind, axes, .. } => vjp(*kind, axes, c),
            _ => Ok(vec![None]),
        }
    }
}

impl ReduceKind {
    pub(crate) fn identity(self) -> f64 {
        match self {
            ReduceKind::Sum | ReduceKind::Mean | ReduceKind::Any => 0.0,
            ReduceKind::Max => f64::NEG_INFINITY,
            ReduceKind::Min => f64::INFINITY,
            ReduceKind::Prod => 1.0,
        }
    }

    fn combine(self, a: f64, b: f64) -> f64 {
        match self {
            ReduceKind::Sum | ReduceKind::Mean => a + b,
            ReduceKind::Max => Binary::Max.eval(a, b),
            ReduceKind::Min => Binary::Min.eval(a, b),
            ReduceKind::Any => Binary::Or.eval(a, b),
            ReduceKind::Prod => a * b,
        }
    }
}

fn infer(kind: ReduceKind, axes: &[usize], keep: bool, x: &Type) -> Result<Type, String> {
    if let Some(a) = axes.iter().find(|&&a| a >= x.shape.rank()) {
        return Err(format!("axis {a} is outside {}", x.shape));
    }
    let is_any = kind == ReduceKind::Any;
    if is_any != (x.format == Format::Bool) {
        return Err(format!("{} does not reduce {}", kind.name(), x.format));
    }
    if !axes.is_sorted_by(|a, b| a < b) {
        return Err("axes must ascend".into());
    }
    let dims = x.shape.0.iter().enumerate().filter_map(|(i, d)| match (axes.contains(&i), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::Fixed(1)),
        (true, false) => None,
    });
    let format = x.format.once_read();
    Ok(Type::new(Shape(dims.collect()), format))
}

fn infer_extreme(kind: ReduceKind, axes: &[usize], x: &Type) -> Result<Type, String> {
    infer(kind, axes, true, x)?;
    Ok(Type::new(x.shape.clone(), Format::Bool))
}

fn eval_extreme(kind: ReduceKind, axes: &[usize], x: &Tensor) -> Tensor {
    let mut dims = x.dims.clone();
    axes.iter().for_each(|&a| dims[a] = 1);
    let extreme = eval(kind, axes, x, &Type::new(Shape::of(&dims), Format::F32));
    Tensor::from_fn(&x.dims, |i| {
        let kept: Vec<usize> = i.iter().enumerate().map(|(a, &p)| if axes.contains(&a) { 0 } else { p }).collect();
        f64::from(x.at(i) == extreme.at(&kept))
    })
}

fn eval(kind: ReduceKind, axes: &[usize], x: &Tensor, ty: &Type) -> Tensor {
    let dims = ty.dims();
    let mut out = Tensor::full(&dims, kind.identity());
    let keep = dims.len() == x.dims.len();
    for_each_index(&x.dims, |i| {
        let o: Vec<usize> = i
            .iter()
            .enumerate()
            .filter_map(|(a, &v)| match (axes.contains(&a), keep) {
                (false, _) => Some(v),
                (true, true) => Some(0),
                (true, false) => None,
            })
            .collect();
        let v = out.at_mut(&o);
        *v = kind.combine(*v, x.at(i));
    });
    if kind == ReduceKind::Mean {
        let n: usize = axes.iter().map(|&a| x.dims[a]).product();
        return out.map(|v| v / n as f64);
    }
    out
}

fn vjp(kind: ReduceKind, axes: &[usize], c: Context) -> Gradients {
    let (g, x) = (c.graph, c.x[0]);
    let full = g.shape(x).clone();
    let kept = Shape(
        full.0.iter().enumerate().map(|(i, d)| if axes.contains(&i) { Dim::Fixed(1) } else { d.clone() }).collect(),
    );
    let dims = g.ty(x).dims();
    let n: usize = axes.iter().map(|&a| dims[a]).product();
    let dy = g.reshape(c.dy, &kept)?;
    Ok(vec![match kind {
        ReduceKind::Any => None,
        ReduceKind::Sum => Some(g.broadcast_to(dy, &full)?),
        ReduceKind::Mean => {
            let d = g.scale(dy, 1.0 / n as f64)?;
            Some(g.broadcast_to(d, &full)?)
        }
        // Products of the others: y / x, but where x is 0; there the others' product, which is 0 again if two are.
        ReduceKind::Prod => {
            let (one, zero) = (g.constant(1.0)?, g.constant(0.0)?);
            let is_zero = g.binary(Binary::Eq, x, zero)?;
            let rest = g.add(Op::Select, &[is_zero, one, x])?;
            let product = g.add(Op::Reduce { kind, axes: axes.to_vec(), keep: true }, &[rest])?;
            let ones = g.add(Op::Select, &[is_zero, one, zero])?;
            let zeros = g.add(Op::Reduce { kind: ReduceKind::Sum, axes: axes.to_vec(), keep: true }, &[ones])?;
            let others = g.binary(Binary::Sub, zeros, ones)?;
            let kept = g.binary(Binary::Eq, others, zero)?;
            let quotient = g.binary(Binary::Div, product, rest)?;
            let d = g.binary(Binary::Mul, dy, quotient)?;
            Some(g.add(Op::Select, &[kept, d, zero])?)
        }
        // Equal extremes share the gradient equally, as in `torch.amax`.
        ReduceKind::Max | ReduceKind::Min => {
            let hit = g.add(Op::IsExtreme { kind, axes: axes.to_vec() }, &[x])?;
            let (one, zero) = (g.constant(1.0)?, g.constant(0.0)?);
            let ones = g.add(Op::Select, &[hit, one, zero])?;
            let ties = g.add(Op::Reduce { kind: ReduceKind::Sum, axes: axes.to_vec(), keep: true }, &[ones])?;
            let share = g.binary(Binary::Div, dy, ties)?;
            Some(g.add(Op::Select, &[hit, share, zero])?)
        }
    }])
}

impl Graph {
    /// A reduction over axes, or x itself where there are none.
    ///
    /// # Errors
    /// Axes that do not ascend or lie outside of x, and a format that the kind does not take.
    pub fn reduce(&mut self, kind: ReduceKind, x: NodeId, axes: &[usize], keep: bool) -> Result<NodeId> {
        if axes.is_empty() {
            return Ok(x);
        }
        self.add(Op::Reduce { kind, axes: axes.to_vec(), keep }, &[x])
    }

    /// Reduces over every axis, to a scalar.
    ///
    /// # Errors
    /// A format that the kind does not take.
    pub fn reduce_all(&mut self, kind: ReduceKind, x: NodeId) -> Result<NodeId> {
        let axes: Vec<usize> = (0..self.shape(x).rank()).collect();
        self.reduce(kind, x, &axes, false)
    }
}

/// Sums a gradient over the axes along which `like` was broadcast, so that it has `like`'s shape.
pub(super) fn unbroadcast(g: &mut Graph, dy: NodeId, like: NodeId) -> Result<NodeId> {
    let (from, to) = (g.shape(dy).clone(), g.shape(like).clone());
    if from == to {
        return Ok(dy);
    }
    // The gradient of a product with a wider tensor may itself still be narrower than the result: nothing to sum then.
    if from.rank() <= to.rank() && from.broadcast(&to) == Some(to.clone()) {
        return g.broadcast_to(dy, &to);
    }
    let lead = from.rank() - to.rank();
    let axes: Vec<usize> =
        (0..from.rank()).filter(|&i| i < lead || (to.0[i - lead].is_one() && !from.0[i].is_one())).collect();
    let s = g.reduce(ReduceKind::Sum, dy, &axes, false)?;
    g.reshape(s, &to)
}
