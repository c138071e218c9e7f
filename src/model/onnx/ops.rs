//! One ONNX node as operations of ours.

use super::graph::Importer;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, NodeProto};
use super::tensor::{Constant, Files};
use crate::error::Error;
use crate::format::Format;
use crate::ir::{Binary, Dim, NodeId, Num, Op, ReduceKind, Shape, Unary};

/// Operations that are one of ours, operand for operand.
const UNARY: [(&str, Unary); 16] = [
    ("Relu", Unary::Relu),
    ("Neg", Unary::Neg),
    ("Abs", Unary::Abs),
    ("Sign", Unary::Sign),
    ("Exp", Unary::Exp),
    ("Log", Unary::Log),
    ("Sqrt", Unary::Sqrt),
    ("Reciprocal", Unary::Recip),
    ("Sin", Unary::Sin),
    ("Cos", Unary::Cos),
    ("Tanh", Unary::Tanh),
    ("Sigmoid", Unary::Sigmoid),
    ("Erf", Unary::Erf),
    ("Floor", Unary::Floor),
    ("Softplus", Unary::Softplus),
    ("Not", Unary::Not),
];

const BINARY: [(&str, Binary); 11] = [
    ("Add", Binary::Add),
    ("Sub", Binary::Sub),
    ("Mul", Binary::Mul),
    ("Div", Binary::Div),
    ("Pow", Binary::Pow),
    ("Equal", Binary::Eq),
    ("Less", Binary::Lt),
    ("LessOrEqual", Binary::Le),
    ("Greater", Binary::Gt),
    ("GreaterOrEqual", Binary::Ge),
    ("And", Binary::And),
];

const REDUCE: [(&str, ReduceKind); 4] = [
    ("ReduceSum", ReduceKind::Sum),
    ("ReduceMean", ReduceKind::Mean),
    ("ReduceMax", ReduceKind::Max),
    ("ReduceMin", ReduceKind::Min),
];

const OTHER: [&str; 23] = [
    "Or",
    "Max",
    "Min",
    "Gelu",
    "Gemm",
    "MatMul",
    "Softmax",
    "LogSoftmax",
    "LayerNormalization",
    "Where",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Concat",
    "Slice",
    "Gather",
    "Split",
    "Identity",
    "Dropout",
    "Cast",
];

pub fn is_known(op: &str) -> bool {
    UNARY.iter().any(|u| u.0 == op)
        || BINARY.iter().any(|b| b.0 == op)
        || REDUCE.iter().any(|r| r.0 == op)
        || OTHER.contains(&op)
}

type Import<T> = Result<T, String>;

/// The value of a `Constant` node.
pub fn constant(node: &NodeProto, files: &mut Files) -> Import<Constant> {
    let a = node.attribute.first().ok_or("has no value")?;
    let list = |dims: Vec<usize>, values: Vec<f64>, format| Ok(Constant { dims, values, format });
    match a.r#type() {
        AttributeType::Tensor => files.decode(a.t.as_ref().ok_or("has no value")?),
        AttributeType::Float => list(vec![], vec![f64::from(a.f())], Format::F32),
        AttributeType::Int => list(vec![], vec![a.i() as f64], Format::I64),
        AttributeType::Floats => {
            list(vec![a.floats.len()], a.floats.iter().map(|&v| f64::from(v)).collect(), Format::F32)
        }
        AttributeType::Ints => list(vec![a.ints.len()], a.ints.iter().map(|&v| v as f64).collect(), Format::I64),
        t => Err(format!("a value of type {t:?} is not supported")),
    }
}

/// Adds the node's operations and returns its outputs.
pub fn import(im: &mut Importer, node: &NodeProto) -> Import<Vec<NodeId>> {
    let op = node.op_type();
    let mut n = Node { im, node };
    if let Some((_, u)) = UNARY.iter().find(|u| u.0 == op) {
        let x = n.input(0)?;
        return n.one(Op::Unary(*u), &[x]);
    }
    if let Some((_, b)) = BINARY.iter().find(|b| b.0 == op) {
        let (x, y) = (n.input(0)?, n.input(1)?);
        return n.one(Op::Binary(*b), &[x, y]);
    }
    if let Some((_, kind)) = REDUCE.iter().find(|r| r.0 == op) {
        return n.reduce(*kind);
    }
    n.special(op)
}

struct Node<'a> {
    im: &'a mut Importer,
    node: &'a NodeProto,
}

fn plain(e: Error) -> String {
    let text = match e {
        Error::Graph(m) => m,
        e => e.to_string(),
    };
    // The graph puts its current origin in front, which the importer does too.
    text.split_once("`: ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

impl Node<'_> {
    fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|a| a.name() == name)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.attr(name).map_or(default, |a| a.i())
    }

    fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attr(name).map_or(default, |a| a.f()))
    }

    fn has(&self, i: usize) -> bool {
        self.node.input.get(i).is_some_and(|n| !n.is_empty())
    }

    fn input(&mut self, i: usize) -> Import<NodeId> {
        let name = self.node.input.get(i).filter(|n| !n.is_empty()).ok_or_else(|| format!("lacks input {i}"))?;
        self.im.value(name)
    }

    /// Whole numbers of an input that must be known at import.
    fn ints(&self, i: usize) -> Import<Vec<i64>> {
        let name = self.node.input.get(i).map_or("", String::as_str);
        let c = self
            .im
            .constant(name)
            .ok_or_else(|| format!("input {i} (`{name}`) must be a constant; export the model with fixed shapes"))?;
        Ok(c.values.iter().map(|&v| v as i64).collect())
    }

    /// Whole numbers given as an attribute (older opsets) or as input `i`; none if neither is there.
    fn ints_or_attr(&self, name: &str, i: usize) -> Import<Option<Vec<i64>>> {
        match self.attr(name) {
            Some(a) => Ok(Some(a.ints.clone())),
            None if self.has(i) => self.ints(i).map(Some),
            None => Ok(None),
        }
    }

    fn add(&mut self, op: Op, x: &[NodeId]) -> Import<NodeId> {
        self.im.graph.add(op, x).map_err(plain)
    }

    fn one(&mut self, op: Op, x: &[NodeId]) -> Import<Vec<NodeId>> {
        Ok(vec![self.add(op, x)?])
    }

    fn rank(&self, x: NodeId) -> usize {
        self.im.graph.shape(x).rank()
    }

    fn axis(&self, axis: i64, rank: usize) -> Import<usize> {
        let a = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(a)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| format!("axis {axis} is outside a tensor of rank {rank}"))
    }

    fn axes(&self, axes: &[i64], rank: usize) -> Import<Vec<usize>> {
        let mut out = axes.iter().map(|&a| self.axis(a, rank)).collect::<Import<Vec<_>>>()?;
        out.sort_unstable();
        Ok(out)
    }

    fn reduce(&mut self, kind: ReduceKind) -> Import<Vec<NodeId>> {
        let x = self.input(0)?;
        let rank = self.rank(x);
        let axes = match self.ints_or_attr("axes", 1)? {
            Some(a) if !a.is_empty() => self.axes(&a, rank)?,
            _ if self.int("noop_with_empty_axes", 0) != 0 => return Ok(vec![x]),
            _ => (0..rank).collect(),
        };
        self.one(Op::Reduce { kind, axes, keep: self.int("keepdims", 1) != 0 }, &[x])
    }

    fn special(&mut self, op: &str) -> Import<Vec<NodeId>> {
        let x = self.input(0)?;
        let rank = self.rank(x);
        match op {
            "Or" => {
                let y = self.input(1)?;
                self.one(Op::Binary(Binary::Or), &[x, y])
            }
            "Max" | "Min" => {
                let b = if op == "Max" { Binary::Max } else { Binary::Min };
                let mut out = x;
                for i in 1..self.node.input.len() {
                    let y = self.input(i)?;
                    out = self.add(Op::Binary(b), &[out, y])?;
                }
                Ok(vec![out])
            }
            "Gelu" => {
                let tanh = self.attr("approximate").is_some_and(|a| a.s() == b"tanh");
                self.one(Op::Unary(if tanh { Unary::GeluTanh } else { Unary::Gelu }), &[x])
            }
            "Gemm" => self.gemm(x),
            "MatMul" => {
                let y = self.input(1)?;
                self.one(Op::MatMul { ta: false, tb: false, format: Format::F32 }, &[x, y])
            }
            "Softmax" => {
                let axis = self.axis(self.int("axis", -1), rank)?;
                self.one(Op::Softmax { axis }, &[x])
            }
            "LogSoftmax" => {
                let axis = self.axis(self.int("axis", -1), rank)?;
                self.one(Op::LogSoftmax { axis }, &[x])
            }
            "LayerNormalization" => self.layer_norm(x, rank),
            "Where" => {
                let (a, b) = (self.input(1)?, self.input(2)?);
                self.one(Op::Select, &[x, a, b])
            }
            "Reshape" => {
                let target = self.ints(1)?;
                let dims = self.reshaped(x, &target)?;
                self.one(Op::Reshape { dims }, &[x])
            }
            "Flatten" => {
                let axis = self.int("axis", 1);
                let axis = if axis == rank as i64 { rank } else { self.axis(axis, rank.max(1))? };
                self.flatten(x, axis)
            }
            "Transpose" => {
                let perm = match self.attr("perm") {
                    Some(a) => a.ints.iter().map(|&p| self.axis(p, rank)).collect::<Import<_>>()?,
                    None => (0..rank).rev().collect(),
                };
                self.one(Op::Transpose { perm }, &[x])
            }
            "Squeeze" | "Unsqueeze" => self.squeeze(x, rank, op == "Squeeze"),
            "Expand" => {
                let target = Shape(self.ints(1)?.iter().map(|&d| Dim::Fixed(d.max(0) as usize)).collect());
                let dims = self
                    .im
                    .graph
                    .shape(x)
                    .broadcast(&target)
                    .ok_or_else(|| format!("{} does not expand to {target}", self.im.graph.shape(x)))?;
                self.one(Op::Broadcast { dims }, &[x])
            }
            "Concat" => {
                let axis = self.axis(self.int("axis", 0), rank)?;
                let parts = (0..self.node.input.len()).map(|i| self.input(i)).collect::<Import<Vec<_>>>()?;
                self.one(Op::Concat { axis }, &parts)
            }
            "Slice" => self.slice(x, rank),
            "Gather" => {
                let axis = self.axis(self.int("axis", 0), rank)?;
                let index = self.input(1)?;
                self.one(Op::Gather { axis }, &[x, index])
            }
            "Split" => self.split(x, rank),
            // Dropout does nothing in a model exported for inference.
            "Dropout" if self.has(2) && self.ints(2).is_ok_and(|t| t == [1]) => {
                Err("training-mode dropout is not supported yet; export with model.eval()".into())
            }
            "Identity" | "Dropout" => Ok(vec![x]),
            "Cast" => {
                let to = super::tensor::format_of(self.int("to", 0) as i32)?;
                let from = self.im.graph.ty(x).format;
                if to.is_float() == from.is_float() {
                    Ok(vec![x])
                } else {
                    Err(format!("a cast from {from} to {to} is not supported yet"))
                }
            }
            _ => Err("is not supported".into()),
        }
    }

    /// α·op(A)·op(B) + β·C
    fn gemm(&mut self, a: NodeId) -> Import<Vec<NodeId>> {
        let b = self.input(1)?;
        let (ta, tb) = (self.int("transA", 0) != 0, self.int("transB", 0) != 0);
        let mut y = self.add(Op::MatMul { ta, tb, format: Format::F32 }, &[a, b])?;
        let alpha = self.float("alpha", 1.0);
        if alpha != 1.0 {
            y = self.im.graph.scale(y, alpha).map_err(plain)?;
        }
        if self.has(2) {
            let mut c = self.input(2)?;
            let beta = self.float("beta", 1.0);
            if beta != 1.0 {
                c = self.im.graph.scale(c, beta).map_err(plain)?;
            }
            y = self.add(Op::Binary(Binary::Add), &[y, c])?;
        }
        Ok(vec![y])
    }

    fn layer_norm(&mut self, x: NodeId, rank: usize) -> Import<Vec<NodeId>> {
        if self.axis(self.int("axis", -1), rank)? + 1 != rank {
            return Err("normalising over several axes is not supported yet".into());
        }
        if self.node.output.iter().skip(1).any(|o| !o.is_empty()) {
            return Err("mean and deviation as outputs are not supported yet".into());
        }
        let scale = self.input(1)?;
        let shift = if self.has(2) {
            self.input(2)?
        } else {
            let zero = self.im.graph.constant(0.0).map_err(plain)?;
            let dims = self.im.graph.shape(scale).clone();
            self.add(Op::Broadcast { dims }, &[zero])?
        };
        self.one(Op::LayerNorm { eps: Num::new(self.float("epsilon", 1e-5)) }, &[x, scale, shift])
    }

    /// ONNX's reshape target: 0 keeps an extent, one −1 takes what is left.
    fn reshaped(&self, x: NodeId, target: &[i64]) -> Import<Shape> {
        let from = self.im.graph.shape(x);
        let mut dims = Vec::new();
        let mut open = None;
        for (i, &d) in target.iter().enumerate() {
            match d {
                0 if self.int("allowzero", 0) == 0 => {
                    dims.push(from.0.get(i).cloned().ok_or("keeps an extent that is not there")?)
                }
                -1 => {
                    open = Some(i);
                    dims.push(Dim::Fixed(1));
                }
                d => dims.push(Dim::Fixed(usize::try_from(d).map_err(|_| format!("extent {d} is negative"))?)),
            }
        }
        let mut shape = Shape(dims);
        if let Some(i) = open {
            let (total, mut names) = from.count();
            let (rest, kept) = shape.count();
            kept.iter().for_each(|k| {
                if let Some(at) = names.iter().position(|n| n == k) {
                    names.remove(at);
                }
            });
            let left = total.checked_div(rest).unwrap_or(0);
            let dim = match (&names[..], left) {
                ([], n) => Dim::Fixed(n),
                ([name], 1) => Dim::Named((*name).to_owned()),
                _ => {
                    return Err(format!(
                        "cannot tell which extent of {from} the −1 stands for; export with fixed sizes"
                    ));
                }
            };
            shape.0[i] = dim;
        }
        Ok(shape)
    }

    fn flatten(&mut self, x: NodeId, axis: usize) -> Import<Vec<NodeId>> {
        let dims = self.im.graph.shape(x).0.clone();
        let join = |d: &[Dim]| match d {
            [one] => Ok(one.clone()),
            many => Shape(many.to_vec())
                .fixed()
                .map(|f| Dim::Fixed(f.iter().product()))
                .ok_or("flattens a named extent with others; export with fixed sizes"),
        };
        let dims = Shape(vec![join(&dims[..axis])?, join(&dims[axis..])?]);
        self.one(Op::Reshape { dims }, &[x])
    }

    fn squeeze(&mut self, x: NodeId, rank: usize, remove: bool) -> Import<Vec<NodeId>> {
        let axes = self.ints_or_attr("axes", 1)?;
        let mut dims = self.im.graph.shape(x).0.clone();
        if remove {
            let axes = match axes {
                Some(a) => self.axes(&a, rank)?,
                None => (0..rank).filter(|&i| dims[i].is_one()).collect(),
            };
            axes.iter().rev().for_each(|&a| {
                dims.remove(a);
            });
        } else {
            let axes = axes.ok_or("lacks axes")?;
            for a in self.axes(&axes, rank + axes.len())? {
                dims.insert(a, Dim::Fixed(1));
            }
        }
        self.one(Op::Reshape { dims: Shape(dims) }, &[x])
    }

    fn slice(&mut self, x: NodeId, rank: usize) -> Import<Vec<NodeId>> {
        let (starts, ends) = (self.ints(1)?, self.ints(2)?);
        let axes = if self.has(3) { self.ints(3)? } else { (0..starts.len() as i64).collect() };
        let steps = if self.has(4) { self.ints(4)? } else { vec![1; starts.len()] };
        let mut y = x;
        for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            let axis = self.axis(axis, rank)?;
            if step <= 0 {
                return Err("slices with negative steps are not supported yet".into());
            }
            let Dim::Fixed(n) = self.im.graph.shape(y).0[axis] else {
                if start == 0 && end >= i64::from(i32::MAX) && step == 1 {
                    continue;
                }
                return Err("slices a named extent; export with fixed sizes".into());
            };
            let clamp = |i: i64| (if i < 0 { i.saturating_add(n as i64) } else { i }).clamp(0, n as i64) as usize;
            let (start, stop) = (clamp(start), clamp(end));
            y = self.add(Op::Slice { axis, start: start.min(stop), stop, step: step as usize }, &[y])?;
        }
        Ok(vec![y])
    }

    fn split(&mut self, x: NodeId, rank: usize) -> Import<Vec<NodeId>> {
        let axis = self.axis(self.int("axis", 0), rank)?;
        let Dim::Fixed(n) = self.im.graph.shape(x).0[axis] else {
            return Err("splits a named extent; export with fixed sizes".into());
        };
        let parts = self.node.output.len();
        let sizes: Vec<usize> = match self.ints_or_attr("split", 1)? {
            Some(s) => s.iter().map(|&v| v.max(0) as usize).collect(),
            None => {
                let each = n.div_ceil(parts.max(1));
                (0..parts).map(|i| each.min(n - (i * each).min(n))).collect()
            }
        };
        let mut start = 0;
        let mut out = Vec::new();
        for size in sizes {
            out.push(self.add(Op::Slice { axis, start, stop: start + size, step: 1 }, &[x])?);
            start += size;
        }
        Ok(out)
    }
}
