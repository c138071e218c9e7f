//! Operations whose numerics deserve a name: softmax, layer norm, losses.
//!
//! They stay whole until kernels are built, so that no format can come between a maximum and the exponential it
//! protects, and no variance is ever computed in a narrow format.

use super::attr::{Attr, Attrs};
use super::formula::formula;
use super::named::named_enum;
use super::reduce::unbroadcast;
use super::signature::{Attribute, Default, Family, Kind, Signature};
use super::{Binary, Context, Format, Gradients, Op, ReduceKind, Shape, Type, Unary};
use crate::error::Result;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

named_enum! {
    /// Losses before they are averaged.
    Loss {
        /// `−log softmax(x)[label]` for each row of the last axis; labels are class indices.
        CrossEntropy = "cross_entropy",
        /// (x − y)².
        SquaredError = "mse",
        /// max(x, 0) − x·y + log(1 + e^−|x|): binary cross-entropy of sigmoid(x), which never overflows.
        BceWithLogits = "bce_with_logits",
    }
}

/// Softmax, norms and losses.
pub(super) struct Norms;

impl Family for Norms {
    fn signatures(&self) -> Vec<Signature> {
        let axis = || Attribute::new("axis", Kind::Int).default(Default::LastAxis).samples(&["0", "1"]);
        let eps = || Attribute::new("eps", Kind::Number).or(Attr::number(1e-5));
        let axes = || Attribute::new("axes", Kind::Ints);
        let reduction = || Attribute::new("reduction", Kind::Choice(&["none", "mean"])).or(Attr::word("mean"));
        let mut rows = vec![
            Signature::new("softmax", 1).with([axis()]),
            Signature::new("log_softmax", 1).with([axis()]),
            Signature::new("layer_norm", 3).with([eps()]),
            Signature::new("standardise", 1).with([axes(), eps()]),
            Signature::new("rms_normalise", 1).with([axes(), eps()]),
        ];
        rows.extend(Loss::ALL.map(|loss| Signature::new(loss.name(), 2).with([reduction()])));
        rows
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Softmax { .. } => "softmax",
            Op::LogSoftmax { .. } => "log_softmax",
            Op::LayerNorm { .. } => "layer_norm",
            Op::Normalise { centred: true, .. } => "standardise",
            Op::Normalise { .. } => "rms_normalise",
            Op::Loss(l) => l.name(),
            _ => unreachable!("another family's"),
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        match op {
            Op::Softmax { axis } | Op::LogSoftmax { axis } => vec![Attr::int(*axis)],
            Op::LayerNorm { eps } => vec![Attr::Float(*eps)],
            Op::Normalise { axes, eps, .. } => vec![Attr::ints(axes), Attr::Float(*eps)],
            // Text averages afterwards.
            _ => vec![Attr::word("none")],
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        Ok(match name {
            "softmax" => Op::Softmax { axis: a.int("axis")? },
            "log_softmax" => Op::LogSoftmax { axis: a.int("axis")? },
            "layer_norm" => Op::LayerNorm { eps: a.float("eps")? },
            "standardise" => Op::Normalise { axes: a.ints("axes")?, eps: a.float("eps")?, centred: true },
            "rms_normalise" => Op::Normalise { axes: a.ints("axes")?, eps: a.float("eps")?, centred: false },
            _ => Op::Loss(Loss::ALL.into_iter().find(|l| l.name() == name).ok_or("no such loss")?),
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        match op {
            Op::Softmax { axis } | Op::LogSoftmax { axis } => infer_softmax(*axis, x[0]),
            Op::LayerNorm { .. } => infer_layer_norm(x),
            Op::Normalise { axes, .. } => infer_normalise(axes, x[0]),
            Op::Loss(l) => l.infer(x[0], x[1]),
            _ => unreachable!("another family's"),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Softmax { axis } => eval_softmax(*axis, x[0], false),
            Op::LogSoftmax { axis } => eval_softmax(*axis, x[0], true),
            Op::LayerNorm { eps } => eval_layer_norm(eps.get(), x),
            Op::Normalise { axes, eps, centred } => eval_normalise(axes, eps.get(), *centred, x[0]),
            Op::Loss(l) => l.eval(x[0], x[1], ty),
            _ => unreachable!("another family's"),
        }
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        match op {
            Op::Softmax { axis } => vjp_softmax(*axis, c),
            Op::LogSoftmax { axis } => vjp_log_softmax(*axis, c),
            Op::LayerNorm { eps } => vjp_layer_norm(eps.get(), c),
            Op::Normalise { axes, eps, centred } => vjp_normalise(axes, eps.get(), *centred, c),
            Op::Loss(l) => l.vjp(c),
            _ => unreachable!("another family's"),
        }
    }
}

fn infer_softmax(axis: usize, x: &Type) -> Result<Type, String> {
    if axis >= x.shape.rank() {
        return Err(format!("axis {axis} is outside {}", x.shape));
    }
    Unary::Exp.infer(x)
}

fn eval_softmax(axis: usize, x: &Tensor, log: bool) -> Tensor {
    let line = |i: &[usize], f: &mut dyn FnMut(f64)| {
        let mut j = i.to_vec();
        for k in 0..x.dims[axis] {
            j[axis] = k;
            f(x.at(&j));
        }
    };
    Tensor::from_fn(&x.dims, |i| {
        let (mut max, mut sum) = (f64::NEG_INFINITY, 0.0);
        line(i, &mut |v| max = Binary::Max.eval(max, v));
        let max = if max == f64::NEG_INFINITY { 0.0 } else { max };
        line(i, &mut |v| sum += (v - max).exp());
        match log {
            true => x.at(i) - max - sum.ln(),
            // A row without a single finite entry (all masked) attends to nothing.
            false if sum == 0.0 => 0.0,
            false => (x.at(i) - max).exp() / sum,
        }
    })
}

/// Where the last axis of x stands at its row's label.
pub(crate) fn at_label(g: &mut Graph, x: NodeId, label: NodeId) -> Result<NodeId> {
    let (dims, mut column) = (g.shape(x).clone(), g.shape(label).clone());
    let axis = dims.rank() - 1;
    column.0.push(Dim::Fixed(1));
    let position = g.add(Op::Iota { dims, axis }, &[])?;
    let label = g.reshape(label, &column)?;
    g.binary(Binary::Eq, position, label)
}

/// dx = y (dy − Σ y dy)
fn vjp_softmax(axis: usize, c: Context) -> Gradients {
    let dx = formula(c.graph, |s| {
        let (y, dy) = (s.value(c.node), s.value(c.dy));
        (y * (dy - (y * dy).reduce(ReduceKind::Sum, &[axis]))).id
    });
    Ok(vec![Some(dx?)])
}

/// dx = dy − softmax(x) Σ dy
fn vjp_log_softmax(axis: usize, c: Context) -> Gradients {
    let dx = formula(c.graph, |s| {
        let (y, dy) = (s.value(c.node), s.value(c.dy));
        let sum = dy.reduce(ReduceKind::Sum, &[axis]);
        (dy - y.unary(Unary::Exp) * sum).id
    });
    Ok(vec![Some(dx?)])
}

fn infer_layer_norm(x: &[&Type]) -> Result<Type, String> {
    let last = x[0].shape.0.last().ok_or("takes at least one axis")?;
    let row = Shape(vec![last.clone()]);
    if x[1].shape != row || x[2].shape != row {
        return Err(format!("scale {} and shift {} must be {row}", x[1].shape, x[2].shape));
    }
    Unary::Exp.infer(x[0])
}

fn eval_layer_norm(eps: f64, x: &[&Tensor]) -> Tensor {
    let n = *x[0].dims.last().expect("checked by the type rule");
    let mut out = x[0].clone();
    for row in out.data.chunks_mut(n.max(1)) {
        let mean = row.iter().sum::<f64>() / n as f64;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        for (i, v) in row.iter_mut().enumerate() {
            *v = (*v - mean) / (var + eps).sqrt() * x[1].data[i] + x[2].data[i];
        }
    }
    out
}

/// x̂ = (x − mean) / √(var + eps) over the axes, and 1/√(var + eps); without the mean, x / √(mean x² + eps).
pub(crate) fn standardise(
    g: &mut Graph,
    x: NodeId,
    axes: &[usize],
    eps: f64,
    centred: bool,
) -> Result<(NodeId, NodeId)> {
    let mut from = x;
    if centred {
        let mean = g.reduce(ReduceKind::Mean, x, axes, true)?;
        from = g.binary(Binary::Sub, x, mean)?;
    }
    let squares = g.unary(Unary::Square, from)?;
    let var = g.reduce(ReduceKind::Mean, squares, axes, true)?;
    let shifted = g.shift(var, eps)?;
    let rstd = g.unary(Unary::Rsqrt, shifted)?;
    Ok((g.binary(Binary::Mul, from, rstd)?, rstd))
}

fn infer_normalise(axes: &[usize], x: &Type) -> Result<Type, String> {
    if axes.is_empty() || !axes.is_sorted_by(|a, b| a < b) || axes.iter().any(|&a| a >= x.shape.rank()) {
        return Err(format!("axes {axes:?} must ascend and lie inside {}", x.shape));
    }
    Unary::Exp.infer(x)
}

fn eval_normalise(axes: &[usize], eps: f64, centred: bool, x: &Tensor) -> Tensor {
    let dims: Vec<usize> = x.dims.iter().enumerate().map(|(i, &d)| if axes.contains(&i) { 1 } else { d }).collect();
    let n: usize = axes.iter().map(|&a| x.dims[a]).product();
    let at = |i: &[usize]| -> Vec<usize> { i.iter().zip(&dims).map(|(&v, &d)| if d == 1 { 0 } else { v }).collect() };
    let mut mean = Tensor::full(&dims, 0.0);
    let mut var = Tensor::full(&dims, 0.0);
    if centred {
        for_each_index(&x.dims, |i| *mean.at_mut(&at(i)) += x.at(i) / n as f64);
    }
    for_each_index(&x.dims, |i| *var.at_mut(&at(i)) += (x.at(i) - mean.at(&at(i))).powi(2) / n as f64);
    Tensor::from_fn(&x.dims, |i| (x.at(i) - mean.at(&at(i))) / (var.at(&at(i)) + eps).sqrt())
}

/// dx = rstd (dy − mean dy − x̂ mean(dy x̂)); without centring the second term falls away.
fn vjp_normalise(axes: &[usize], eps: f64, centred: bool, c: Context) -> Gradients {
    let (g, x, dy) = (c.graph, c.x[0], c.dy);
    let (xhat, rstd) = standardise(g, x, axes, eps, centred)?;
    Ok(vec![Some(through_statistics(g, dy, xhat, rstd, axes, centred)?)])
}

/// rstd (h − mean h − x̂ mean(h x̂))
fn through_statistics(
    g: &mut Graph,
    h: NodeId,
    xhat: NodeId,
    rstd: NodeId,
    axes: &[usize],
    centred: bool,
) -> Result<NodeId> {
    formula(g, |s| {
        let (h, xhat, rstd) = (s.value(h), s.value(xhat), s.value(rstd));
        let along = xhat * (h * xhat).reduce(ReduceKind::Mean, axes);
        let d = if centred { h - h.reduce(ReduceKind::Mean, axes) } else { h };
        (rstd * (d - along)).id
    })
}

/// With h = dy·scale: dx = rstd (h − mean h − x̂ mean(h x̂)); dscale = Σ dy x̂; dshift = Σ dy (Ba et al. 2016).
fn vjp_layer_norm(eps: f64, c: Context) -> Gradients {
    let (g, x, scale, shift, dy) = (c.graph, c.x[0], c.x[1], c.x[2], c.dy);
    let last = [g.shape(x).rank() - 1];
    let (xhat, rstd) = standardise(g, x, &last, eps, true)?;
    let h = g.binary(Binary::Mul, dy, scale)?;
    let dx = through_statistics(g, h, xhat, rstd, &last, true)?;
    let dyx = g.binary(Binary::Mul, dy, xhat)?;
    Ok(vec![Some(dx), Some(unbroadcast(g, dyx, scale)?), Some(unbroadcast(g, dy, shift)?)])
}

impl Loss {
    pub(crate) fn is_elementwise(self) -> bool {
        self != Loss::CrossEntropy
    }

    pub(super) fn infer(self, x: &Type, y: &Type) -> Result<Type, String> {
        if self.is_elementwise() {
            if x.shape != y.shape {
                return Err(format!("the prediction is {} and the target {}", x.shape, y.shape));
            }
            return Unary::Exp.infer(x);
        }
        if !matches!(y.format, Format::I64 | Format::I32) {
            return Err(format!("labels are {}, not class indices (i64 or i32)", y.format));
        }
        let rows = Shape(x.shape.0[..x.shape.rank().saturating_sub(1)].to_vec());
        if x.shape.rank() == 0 || y.shape != rows {
            return Err(format!("labels of logits {} must be {rows}, not {}", x.shape, y.shape));
        }
        Ok(Type::new(rows, Unary::Exp.infer(x)?.format))
    }

    pub(super) fn eval(self, x: &Tensor, y: &Tensor, ty: &Type) -> Tensor {
        match self {
            Loss::SquaredError => Tensor::from_fn(&x.dims, |i| (x.at(i) - y.at(i)).powi(2)),
            Loss::BceWithLogits => Tensor::from_fn(&x.dims, |i| Unary::Softplus.eval(x.at(i)) - x.at(i) * y.at(i)),
            Loss::CrossEntropy => {
                let logp = eval_softmax(x.dims.len() - 1, x, true);
                Tensor::from_fn(&ty.dims(), |i| {
                    let mut j = i.to_vec();
                    j.push(y.at(i) as usize);
                    -logp.at(&j)
                })
            }
        }
    }

    pub(super) fn vjp(self, c: Context) -> Gradients {
        let (g, x, y, dy) = (c.graph, c.x[0], c.x[1], c.dy);
        match self {
            Loss::SquaredError => formula(g, |s| {
                let [x, y, dy] = [x, y, dy].map(|id| s.value(id));
                let dx = dy * ((x - y) * 2.0);
                vec![Some(dx.id), Some((-dx).id)]
            }),
            Loss::BceWithLogits => formula(g, |s| {
                let [x, y, dy] = [x, y, dy].map(|id| s.value(id));
                let dx = dy * (x.unary(Unary::Sigmoid) - y);
                vec![Some(dx.id), Some((dy * -x).id)]
            }),
            // softmax(x) − onehot(y), each row times its dy
            Loss::CrossEntropy => {
                let axis = g.shape(x).rank() - 1;
                let mut column = g.shape(y).clone();
                column.0.push(Dim::Fixed(1));
                let p = g.add(Op::Softmax { axis }, &[x])?;
                let hit = at_label(g, x, y)?;
                let p1 = g.shift(p, -1.0)?;
                let d = g.add(Op::Select, &[hit, p1, p])?;
                let dy = g.reshape(dy, &column)?;
                Ok(vec![Some(g.binary(Binary::Mul, d, dy)?), None])
            }
        }
    }
}
