//! Scaled dot-product attention (Vaswani et al. 2017) as one operation, and its gradients, which are operations too.
//!
//! With q `[B, H, T, D]`, k `[B, G, S, D]` and v `[B, G, S, E]`, H a multiple of G (query heads share keys and values in
//! groups: Ainslie et al. 2023), and a mask that broadcasts to `[B, H, T, S]` and hides where it is −∞:
//!
//! s = scale·q kᵀ + mask, P = softmax(s), o = P v.
//!
//! P is never a value of the graph: of a row of s only ln Σ eˢ is kept (`attention_lse`), from which the gradients compute P
//! again (Dao et al. 2022):
//!
//! P = e^(s − lse), dP = do vᵀ, dS = P ∘ (dP − delta) with delta = Σ do ∘ o along the last axis;
//! dq = scale·dS k, dk = scale·dSᵀ q, dv = Pᵀ do.
//!
//! A row that sees nothing attends to nothing: its lse is −∞, its o and its gradients are 0.

use super::attr::{Attr, Attrs};
use super::matmul::multiplied;
use super::reduce::unbroadcast;
use super::signature::{Attribute, Family, Kind, Reads, Signature};
use super::{Binary, Context, Format, Gradients, Num, Op, ReduceKind, Shape, Type, Unary};
use crate::error::Result;
use crate::ir::graph::{Graph, NodeId};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

/// What of an attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttentionPart {
    /// o from (q, k, v).
    Output,
    /// ln Σ eˢ of each row, `[B, H, T]`, from (q, k).
    Lse,
    /// dq from (q, k, v, do, lse, delta).
    GradQ,
    /// dk from the same.
    GradK,
    /// dv from the same.
    GradV,
}

impl AttentionPart {
    const ALL: [AttentionPart; 5] =
        [AttentionPart::Output, AttentionPart::Lse, AttentionPart::GradQ, AttentionPart::GradK, AttentionPart::GradV];

    pub(crate) fn name(self) -> &'static str {
        match self {
            AttentionPart::Output => "attention",
            AttentionPart::Lse => "attention_lse",
            AttentionPart::GradQ => "attention_grad_q",
            AttentionPart::GradK => "attention_grad_k",
            AttentionPart::GradV => "attention_grad_v",
        }
    }

    /// Operands without the mask, which stands behind them.
    pub(crate) fn operands(self) -> usize {
        match self {
            AttentionPart::Output => 3,
            AttentionPart::Lse => 2,
            _ => 6,
        }
    }

    /// Is it computed with the output's gradient?
    pub(crate) fn is_gradient(self) -> bool {
        !matches!(self, AttentionPart::Output | AttentionPart::Lse)
    }
}

/// What scores are made of besides the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttentionSpec {
    /// What products of queries and keys are multiplied by.
    pub scale: Num,
    /// Does query i see the keys up to i alone?
    pub causal: bool,
}

/// Attention and its gradients.
pub(super) struct Attentions;

impl Family for Attentions {
    fn signatures(&self) -> Vec<Signature> {
        let row = |part: AttentionPart| {
            Signature::new(part.name(), part.operands() + 1).optional(1).reads(Reads::Memory).with([
                Attribute::new("format", Kind::Format).or(Attr::Format(Format::F32)).samples(&["f32"]),
                Attribute::new("scale", Kind::Number).or(Attr::number(1.0)).samples(&["0.125"]),
                Attribute::new("causal", Kind::Flag).or(Attr::Bool(false)),
            ])
        };
        AttentionPart::ALL.map(row).into()
    }

    fn name(&self, op: &Op) -> &'static str {
        parts(op).0.name()
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        let (_, spec, format) = parts(op);
        vec![Attr::Format(format), Attr::Float(spec.scale), Attr::Bool(spec.causal)]
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        let part = AttentionPart::ALL.into_iter().find(|p| p.name() == name).ok_or("no such operation")?;
        let spec = AttentionSpec { scale: a.float("scale")?, causal: a.flag("causal")? };
        Ok(Op::Attention { part, spec, format: a.format("format")? })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        infer(parts(op).0, x)
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        let (part, spec, format) = parts(op);
        eval(part, spec, format, x, ty)
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        let (part, spec, _) = parts(op);
        match part {
            AttentionPart::Output => vjp_output(spec, c),
            AttentionPart::Lse => vjp_lse(spec, c),
            _ => unreachable!("differentiated as it is spelled out"),
        }
    }

    fn spelled(&self, op: &Op, g: &mut Graph, x: &[NodeId]) -> Result<Option<NodeId>> {
        let (part, spec, _) = parts(op);
        spelled(part, spec, g, x).map(Some)
    }
}

fn parts(op: &Op) -> (AttentionPart, AttentionSpec, Format) {
    let Op::Attention { part, spec, format } = op else { unreachable!("another family's") };
    (*part, *spec, *format)
}

fn infer(part: AttentionPart, x: &[&Type]) -> Result<Type, String> {
    let (own, mask) = x.split_at(part.operands());
    if own.iter().any(|t| !t.format.is_float()) {
        return Err("takes floating-point tensors".into());
    }
    let four = |t: &Type, what: &str| match &t.shape.0[..] {
        [a, b, c, d] => Ok([a, b, c, d].map(Clone::clone)),
        _ => Err(format!("{what} are {}, not [batch, heads, length, width]", t.shape)),
    };
    let (q, k) = (four(own[0], "queries")?, four(own[1], "keys")?);
    let fixed = |d: &Dim| if let Dim::Fixed(n) = d { Some(*n) } else { None };
    let (Some(heads), Some(groups)) = (fixed(&q[1]), fixed(&k[1])) else {
        return Err("heads have an unbound size".into());
    };
    if groups == 0 || !heads.is_multiple_of(groups) {
        return Err(format!("{heads} query heads do not share {groups} heads of keys"));
    }
    if q[0] != k[0] || q[3] != k[3] {
        return Err(format!("queries {} and keys {} differ in batch or width", own[0].shape, own[1].shape));
    }
    let rows = [&q[..3]].concat();
    let shape = match part {
        AttentionPart::Lse => rows.clone(),
        AttentionPart::GradQ => q.to_vec(),
        AttentionPart::GradK => k.to_vec(),
        _ => {
            let v = four(own[2], "values")?;
            if v[..3] != k[..3] {
                return Err(format!("values {} do not go with keys {}", own[2].shape, own[1].shape));
            }
            if part == AttentionPart::GradV { v.to_vec() } else { [&rows[..], &v[3..]].concat() }
        }
    };
    if part.is_gradient() {
        let v = four(own[2], "values")?;
        let output = Shape([&rows[..], &v[3..]].concat());
        if own[3].shape != output {
            return Err(format!("the output's gradient is {}, not {output}", own[3].shape));
        }
        let rows = Shape(rows);
        if own[4].shape != rows || own[5].shape != rows {
            return Err(format!("row statistics are {} and {}, not {rows}", own[4].shape, own[5].shape));
        }
    }
    if let [mask] = mask {
        let scores = [&q[0], &q[1], &q[2], &k[2]];
        let fits = |(have, want): (&Dim, &&Dim)| have == *want || fixed(have) == Some(1);
        if mask.shape.rank() != 4 || !mask.shape.0.iter().zip(&scores).all(fits) {
            return Err(format!("the mask {} does not broadcast to the scores", mask.shape));
        }
        if !mask.format.is_float() {
            return Err(format!("the mask is {}; it is added, so it has to be floating-point", mask.format));
        }
    }
    let wide = own.iter().all(|t| t.format == Format::F64);
    Ok(Type::new(Shape(shape), if wide { Format::F64 } else { Format::F32 }))
}

/// The scores of a row: of query i in head h of batch element b, by key.
struct Scores<'a> {
    q: &'a Tensor,
    k: &'a Tensor,
    mask: Option<&'a Tensor>,
    spec: AttentionSpec,
    format: Format,
}

impl Scores<'_> {
    fn group(&self, h: usize) -> usize {
        h * self.k.dims[1] / self.q.dims[1]
    }

    fn row(&self, b: usize, h: usize, i: usize) -> Vec<f64> {
        let (s, d, g) = (self.k.dims[2], self.q.dims[3], self.group(h));
        let round = |x| multiplied(self.format, x);
        let score = |j: usize| {
            let product: f64 = (0..d).map(|c| round(self.q.at(&[b, h, i, c])) * round(self.k.at(&[b, g, j, c]))).sum();
            let mask = self.mask.map_or(0.0, |m| m.at_broadcast(&[b, h, i, j]));
            let hidden = self.spec.causal && j > i;
            if hidden { f64::NEG_INFINITY } else { product * self.spec.scale.get() + mask }
        };
        (0..s).map(score).collect()
    }
}

fn eval(part: AttentionPart, spec: AttentionSpec, format: Format, x: &[&Tensor], ty: &Type) -> Tensor {
    let round = |v| multiplied(format, v);
    let (own, mask) = x.split_at(part.operands());
    let scores = Scores { q: own[0], k: own[1], mask: mask.first().copied(), spec, format };
    let mut out = Tensor::full(&ty.dims(), 0.0);
    for_each_index(&own[0].dims[..3], |row| {
        let [b, h, i] = *row else { unreachable!("three axes") };
        let (s, g) = (scores.row(b, h, i), scores.group(h));
        let max = s.iter().fold(f64::NEG_INFINITY, |max, &s| Binary::Max.eval(max, s));
        match part {
            AttentionPart::Output | AttentionPart::Lse if max == f64::NEG_INFINITY => {
                if part == AttentionPart::Lse {
                    *out.at_mut(row) = max;
                }
            }
            AttentionPart::Output | AttentionPart::Lse => {
                let p: Vec<f64> = s.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = p.iter().sum();
                if part == AttentionPart::Lse {
                    *out.at_mut(row) = max + sum.ln();
                    return;
                }
                for c in 0..ty.dims()[3] {
                    let v = p.iter().enumerate().map(|(j, &p)| round(p) * round(own[2].at(&[b, g, j, c]))).sum::<f64>();
                    *out.at_mut(&[b, h, i, c]) = v / sum;
                }
            }
            _ => {
                let (v, d) = (own[2], own[3]);
                let (lse, delta) = (own[4].at(row), own[5].at(row));
                for (j, &s) in s.iter().enumerate() {
                    let p = if lse == f64::NEG_INFINITY { 0.0 } else { (s - lse).exp() };
                    let dp: f64 = (0..v.dims[3]).map(|c| round(d.at(&[b, h, i, c])) * round(v.at(&[b, g, j, c]))).sum();
                    let ds = round(p * (dp - delta));
                    for c in 0..ty.dims()[3] {
                        match part {
                            AttentionPart::GradV => {
                                *out.at_mut(&[b, g, j, c]) += round(p) * round(d.at(&[b, h, i, c]));
                            }
                            AttentionPart::GradQ => {
                                *out.at_mut(&[b, h, i, c]) += spec.scale.get() * ds * round(own[1].at(&[b, g, j, c]));
                            }
                            _ => {
                                *out.at_mut(&[b, g, j, c]) += spec.scale.get() * ds * round(own[0].at(&[b, h, i, c]));
                            }
                        }
                    }
                }
            }
        }
    });
    out
}

fn of(part: AttentionPart, spec: AttentionSpec) -> Op {
    Op::Attention { part, spec, format: Format::F32 }
}

fn vjp_output(spec: AttentionSpec, c: Context) -> Gradients {
    let (g, x, dy) = (c.graph, c.x, c.dy);
    let mask = &x[3..];
    let with_mask = |x: &[NodeId]| [x, mask].concat();
    let lse = g.add(of(AttentionPart::Lse, spec), &with_mask(&x[..2]))?;
    let weighed = g.binary(Binary::Mul, dy, c.node)?;
    let delta = g.reduce(ReduceKind::Sum, weighed, &[3], false)?;
    let all = with_mask(&[x[0], x[1], x[2], dy, lse, delta]);
    let mut out = Vec::new();
    for part in [AttentionPart::GradQ, AttentionPart::GradK, AttentionPart::GradV] {
        out.push(Some(g.add(of(part, spec), &all)?));
    }
    if let [mask] = *mask {
        let (_, ds) = weights(spec, g, &all)?;
        out.push(Some(unbroadcast(g, ds, mask)?));
    }
    Ok(out)
}

/// d lse / ds = P: dq = scale·(P k) dlse, dk = scale·Pᵀ(q dlse), and the mask's is P dlse.
fn vjp_lse(spec: AttentionSpec, c: Context) -> Gradients {
    let (g, x, dy) = (c.graph, c.x, c.dy);
    let mask = &x[2..];
    let column = column(g, dy)?;
    let seen = g.add(of(AttentionPart::Output, spec), &[&[x[0], x[1], x[1]], mask].concat())?;
    let dq = g.binary(Binary::Mul, seen, column)?;
    let dq = g.scale(dq, spec.scale.get())?;
    let weighed = g.binary(Binary::Mul, x[0], column)?;
    let all = [&[x[0], x[1], x[1], weighed, c.node, dy], mask].concat();
    let dk = g.add(of(AttentionPart::GradV, spec), &all)?;
    let dk = g.scale(dk, spec.scale.get())?;
    let mut out = vec![Some(dq), Some(dk)];
    if let [mask] = *mask {
        let (p, _) = weights(spec, g, &all)?;
        let dp = g.binary(Binary::Mul, p, column)?;
        out.push(Some(unbroadcast(g, dp, mask)?));
    }
    Ok(out)
}

/// A number for each row, `[B, H, T]`, as a column beside scores or outputs.
fn column(g: &mut Graph, x: NodeId) -> Result<NodeId> {
    let mut dims = g.shape(x).clone();
    dims.0.push(Dim::Fixed(1));
    g.reshape(x, &dims)
}

fn product(g: &mut Graph, a: NodeId, b: NodeId, ta: bool, tb: bool) -> Result<NodeId> {
    g.add(Op::MatMul { ta, tb, format: Format::F32 }, &[a, b])
}

/// Extents of heads, the second of them cut into heads that share something and those that share it.
fn apart(x: &Shape, groups: usize, share: usize) -> Shape {
    let mut dims = x.0.clone();
    dims.splice(1..2, [Dim::Fixed(groups), Dim::Fixed(share)]);
    Shape(dims)
}

/// Query heads that share each head of keys.
fn share(g: &Graph, q: NodeId, k: NodeId) -> usize {
    let heads = |id: NodeId| if let Dim::Fixed(n) = g.shape(id).0[1] { n } else { 1 };
    heads(q) / heads(k).max(1)
}

/// Keys or values `[B, G, S, D]`, each head given to the query heads that share it.
fn shared(g: &mut Graph, x: NodeId, share: usize) -> Result<NodeId> {
    if share == 1 {
        return Ok(x);
    }
    let Dim::Fixed(groups) = g.shape(x).0[1] else { return Ok(x) };
    let wide = apart(g.shape(x), groups, share);
    let mut whole = g.shape(x).clone();
    whole.0[1] = Dim::Fixed(groups * share);
    let narrow = apart(g.shape(x), groups, 1);
    let x = g.reshape(x, &narrow)?;
    let x = g.broadcast_to(x, &wide)?;
    g.reshape(x, &whole)
}

/// The transpose of [`shared`]: query heads that share a head of keys are summed.
fn gathered(g: &mut Graph, x: NodeId, share: usize) -> Result<NodeId> {
    if share == 1 {
        return Ok(x);
    }
    let Dim::Fixed(heads) = g.shape(x).0[1] else { return Ok(x) };
    let dims = apart(g.shape(x), heads / share, share);
    let x = g.reshape(x, &dims)?;
    g.reduce(ReduceKind::Sum, x, &[2], false)
}

/// The scores `[B, H, T, S]` of queries and keys.
fn scores(spec: AttentionSpec, g: &mut Graph, q: NodeId, k: NodeId, mask: &[NodeId]) -> Result<NodeId> {
    let by = share(g, q, k);
    let k = shared(g, k, by)?;
    let mut s = product(g, q, k, false, true)?;
    if spec.scale.get() != 1.0 {
        s = g.scale(s, spec.scale.get())?;
    }
    if let [mask] = *mask {
        s = g.binary(Binary::Add, s, mask)?;
    }
    if spec.causal {
        let hidden = g.constant(f64::NEG_INFINITY)?;
        let dims = Shape(g.shape(s).0[2..].to_vec());
        let query = g.add(Op::Iota { dims: dims.clone(), axis: 0 }, &[])?;
        let key = g.add(Op::Iota { dims, axis: 1 }, &[])?;
        let seen = g.binary(Binary::Ge, query, key)?;
        s = g.add(Op::Select, &[seen, s, hidden])?;
    }
    Ok(s)
}

/// P and dS, of the operands of a gradient.
fn weights(spec: AttentionSpec, g: &mut Graph, x: &[NodeId]) -> Result<(NodeId, NodeId)> {
    let s = scores(spec, g, x[0], x[1], &x[6..])?;
    let (lse, delta) = (column(g, x[4])?, column(g, x[5])?);
    // What sees nothing has a sum of 0.
    let (least, infinity) = (g.constant(f64::NEG_INFINITY)?, g.constant(f64::INFINITY)?);
    let is_blind = g.binary(Binary::Eq, lse, least)?;
    let lse = g.add(Op::Select, &[is_blind, infinity, lse])?;
    let shifted = g.binary(Binary::Sub, s, lse)?;
    let p = g.unary(Unary::Exp, shifted)?;
    let by = share(g, x[0], x[1]);
    let v = shared(g, x[2], by)?;
    let dp = product(g, x[3], v, false, true)?;
    let moved = g.binary(Binary::Sub, dp, delta)?;
    Ok((p, g.binary(Binary::Mul, p, moved)?))
}

/// The same value by products and softmax, every score a value of the graph.
fn spelled(part: AttentionPart, spec: AttentionSpec, g: &mut Graph, x: &[NodeId]) -> Result<NodeId> {
    let by = share(g, x[0], x[1]);
    match part {
        AttentionPart::Output => {
            let s = scores(spec, g, x[0], x[1], &x[3..])?;
            let p = g.add(Op::Softmax { axis: 3 }, &[s])?;
            let v = shared(g, x[2], by)?;
            product(g, p, v, false, false)
        }
        AttentionPart::Lse => {
            let s = scores(spec, g, x[0], x[1], &x[2..])?;
            let max = g.reduce(ReduceKind::Max, s, &[3], true)?;
            let least = g.constant(f64::from(f32::MIN))?;
            let max = g.binary(Binary::Max, max, least)?;
            let shifted = g.binary(Binary::Sub, s, max)?;
            let e = g.unary(Unary::Exp, shifted)?;
            let sum = g.reduce(ReduceKind::Sum, e, &[3], true)?;
            let log = g.unary(Unary::Log, sum)?;
            let lse = g.binary(Binary::Add, log, max)?;
            let rows = Shape(g.shape(x[0]).0[..3].to_vec());
            g.reshape(lse, &rows)
        }
        AttentionPart::GradV => {
            let (p, _) = weights(spec, g, x)?;
            let dv = product(g, p, x[3], true, false)?;
            gathered(g, dv, by)
        }
        AttentionPart::GradQ => {
            let (_, ds) = weights(spec, g, x)?;
            let k = shared(g, x[1], by)?;
            let dq = product(g, ds, k, false, false)?;
            g.scale(dq, spec.scale.get())
        }
        AttentionPart::GradK => {
            let (_, ds) = weights(spec, g, x)?;
            let dk = product(g, ds, x[0], true, false)?;
            let dk = gathered(g, dk, by)?;
            g.scale(dk, spec.scale.get())
        }
    }
}
