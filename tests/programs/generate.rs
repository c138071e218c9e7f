//! Bytes to models.

use super::draw::Draw;
use mantissa::autodiff::gradients;
use mantissa::format::Format;
use mantissa::ir::{
    Binary, Body, ConvKind, ConvSpec, Dim, Graph, Init, Loss, NodeId, Num, Op, ReduceKind, Role, Scan, ScatterKind,
    Shape, Take, Type, Unary,
};

/// A model whose parameters, inputs and labels still need numbers.
pub struct Program {
    /// With a scalar value `loss`, and outputs besides.
    pub graph: Graph,
    /// Which numbers its sources hold.
    pub numbers: Numbers,
}

/// What the numbers of sources are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Evenly between −1 and 1.
    Even,
    /// Halves from −1 to 1: ties and zeros.
    Halves,
    /// Mostly zeros.
    Sparse,
    /// A hundred times as large.
    Large,
    /// A thousandth as large.
    Small,
}

/// Extents to choose from, the plainest first.
const EXTENTS: [usize; 12] = [2, 3, 1, 4, 5, 8, 7, 1, 6, 16, 0, 33];
/// No value has more elements.
const LARGEST: usize = 3000;
/// Statements of a model, at most.
const STATEMENTS: usize = 14;

/// The model that these bytes make.
pub fn generate(bytes: &[u8]) -> Program {
    let mut draw = Draw::new(bytes);
    let numbers = [Numbers::Even, Numbers::Halves, Numbers::Sparse, Numbers::Large, Numbers::Small];
    let numbers = if draw.rarely(3) { draw.pick(&numbers) } else { Numbers::Even };
    let extents = [0; 3].map(|_| draw.pick(&EXTENTS));
    let mut g =
        Gen { g: Graph::new("random"), draw, extents, pool: Vec::new(), whole: Vec::new(), named: 0, is_body: false };
    let rank = g.draw.between(1, 4);
    let shape = g.shape(rank);
    g.source("x", |ty| Op::Input { label: false, ty, copy_of: None }, shape.clone(), Format::F32);
    let shape = if g.draw.rarely(3) { shape } else { g.shape(2) };
    g.param(shape);
    g.statements(STATEMENTS);
    g.finish();
    Program { graph: g.g, numbers }
}

struct Gen<'a> {
    g: Graph,
    draw: Draw<'a>,
    extents: [usize; 3],
    /// Floating-point values.
    pool: Vec<NodeId>,
    /// Whole numbers.
    whole: Vec<NodeId>,
    named: usize,
    /// Of a loop: no loops inside, no random numbers.
    is_body: bool,
}

type Made = Option<NodeId>;

impl<'a> Gen<'a> {
    fn extent(&mut self) -> usize {
        self.extents[self.draw.below(3)]
    }

    fn shape(&mut self, rank: usize) -> Vec<usize> {
        let mut dims: Vec<usize> = (0..rank).map(|_| self.extent()).collect();
        while dims.iter().product::<usize>() > LARGEST / 2 {
            dims.iter_mut().max().into_iter().for_each(|d| *d = 2);
        }
        dims
    }

    fn dims(&self, id: NodeId) -> Vec<usize> {
        self.g.ty(id).dims()
    }

    fn rank(&self, id: NodeId) -> usize {
        self.g.shape(id).rank()
    }

    fn fresh(&mut self, stem: &str) -> String {
        self.named += 1;
        format!("{stem}{}", self.named)
    }

    /// Adds what its type rule lets through, if it is not too large.
    fn add(&mut self, op: Op, inputs: &[NodeId]) -> Made {
        let types: Vec<&Type> = inputs.iter().map(|&i| self.g.ty(i)).collect();
        let ty = op.infer(&types).ok()?;
        if ty.elements() > LARGEST {
            return None;
        }
        self.g.add(op, inputs).ok()
    }

    fn unary(&mut self, u: Unary, x: NodeId) -> Made {
        self.add(Op::Unary(u), &[x])
    }

    fn binary(&mut self, b: Binary, x: NodeId, y: NodeId) -> Made {
        self.add(Op::Binary(b), &[x, y])
    }

    fn constant(&mut self, x: f64) -> NodeId {
        self.g.add(Op::Const(Num::new(x)), &[]).expect("constants are typed")
    }

    fn by(&mut self, b: Binary, x: NodeId, c: f64) -> Made {
        let c = self.constant(c);
        self.binary(b, x, c)
    }

    fn source(&mut self, name: &str, op: impl Fn(Type) -> Op, dims: Vec<usize>, format: Format) -> NodeId {
        let id = self.g.add_named(name, op(Type::new(Shape::of(&dims), format)), &[]).expect("a name of its own");
        if format.is_float() {
            self.pool.push(id);
        } else {
            self.whole.push(id);
        }
        id
    }

    fn param(&mut self, dims: Vec<usize>) -> NodeId {
        let name = self.fresh("w");
        self.source(&name, |ty| Op::Param { init: Init::zeros(), ty }, dims, Format::F32)
    }

    fn input(&mut self, dims: Vec<usize>, format: Format) -> NodeId {
        let name = self.fresh("x");
        self.source(&name, |ty| Op::Input { label: false, ty, copy_of: None }, dims, format)
    }

    /// A value made before, more often one of the last.
    fn any(&mut self) -> NodeId {
        let n = self.pool.len();
        let back = if self.draw.rarely(2) { self.draw.below(n) } else { self.draw.below(n.min(3)) };
        self.pool[n - 1 - back]
    }

    /// A value of at least this rank.
    fn at_least(&mut self, rank: usize) -> Made {
        let x = self.any();
        if self.rank(x) >= rank {
            return Some(x);
        }
        let able: Vec<NodeId> = self.pool.iter().copied().filter(|&v| self.rank(v) >= rank).collect();
        if able.is_empty() {
            let shape = self.shape(rank);
            return Some(self.param(shape));
        }
        Some(self.draw.pick(&able))
    }

    /// A value of this very shape: one that there is, or a new parameter.
    fn like(&mut self, dims: &[usize]) -> NodeId {
        let able: Vec<NodeId> = self.pool.iter().copied().filter(|&v| self.dims(v) == dims).collect();
        if able.is_empty() || (!self.is_body && self.draw.rarely(4)) {
            self.param(dims.to_vec())
        } else {
            self.draw.pick(&able)
        }
    }

    /// A value of a shape that one side declares; inside a loop only what is there.
    fn made(&mut self, dims: Vec<usize>) -> Made {
        if dims.iter().product::<usize>() > LARGEST {
            return None;
        }
        let found = self.pool.iter().copied().find(|&v| self.dims(v) == dims);
        if self.is_body { found } else { Some(self.like(&dims)) }
    }

    /// A value that broadcasts with `x`.
    fn beside(&mut self, x: NodeId) -> Made {
        let shape = self.g.shape(x).clone();
        let able: Vec<NodeId> =
            self.pool.iter().copied().filter(|&v| self.g.shape(v).broadcast(&shape).is_some()).collect();
        if self.draw.rarely(4) && !self.is_body {
            // Some of its extents, some of them 1.
            let mut dims = self.dims(x);
            let cut = self.draw.below(dims.len() + 1);
            dims.drain(..cut);
            for d in &mut dims {
                if self.draw.rarely(3) {
                    *d = 1;
                }
            }
            return Some(self.param(dims));
        }
        Some(self.draw.pick(&able))
    }

    /// Whole numbers below `n` that stand at some positions.
    fn indices(&mut self, n: usize, dims: Vec<usize>) -> NodeId {
        let able: Vec<NodeId> = self.whole.iter().copied().filter(|&v| self.dims(v) == dims).collect();
        if !able.is_empty() && self.draw.rarely(2) {
            return self.draw.pick(&able);
        }
        let _ = n;
        if self.is_body || (dims.len() == 1 && self.draw.rarely(2)) {
            let axis = dims.len().saturating_sub(1);
            if let Ok(id) = self.g.add(Op::Iota { dims: Shape::of(&dims), axis }, &[]) {
                return id;
            }
        }
        self.input(dims, Format::I64)
    }

    /// Some statements, none where the bytes have run out.
    fn statements(&mut self, most: usize) {
        for _ in 0..most {
            if self.draw.below(12) == 0 {
                return;
            }
            self.statement();
        }
    }

    fn statement(&mut self) {
        let kinds: [fn(&mut Gen<'a>) -> Made; 30] = [
            Gen::arithmetic,
            Gen::elementwise,
            Gen::product,
            Gen::reduction,
            Gen::reshape,
            Gen::transpose,
            Gen::slice,
            Gen::pad,
            Gen::concat,
            Gen::broadcast,
            Gen::window,
            Gen::pool,
            Gen::gather,
            Gen::choice,
            Gen::softmax,
            Gen::norm,
            Gen::spelled_norm,
            Gen::convolution,
            Gen::scatter,
            Gen::masked,
            Gen::loss,
            Gen::convert,
            Gen::dropout,
            Gen::scan,
            Gen::unwindow,
            Gen::scatter_add,
            Gen::extreme,
            Gen::whole_numbers,
            Gen::split,
            Gen::cumulative,
        ];
        let kind = self.draw.pick(&kinds);
        if let Some(id) = kind(self)
            && self.g.ty(id).format.is_float()
            && !matches!(self.g.op(id), Op::Const(_))
        {
            self.pool.push(id);
        }
    }

    fn arithmetic(&mut self) -> Made {
        let x = self.any();
        let y = self.beside(x)?;
        let (x, y) = if self.draw.rarely(2) { (y, x) } else { (x, y) };
        match self.draw.below(10) {
            0 => self.binary(Binary::Add, x, y),
            1 => self.binary(Binary::Mul, x, y),
            2 => self.binary(Binary::Sub, x, y),
            3 => {
                let below = self.positive(y)?;
                self.binary(Binary::Div, x, below)
            }
            4 => self.binary(Binary::Max, x, y),
            5 => self.binary(Binary::Min, x, y),
            6 => {
                let base = self.positive(x)?;
                let power = self.unary(Unary::Tanh, y)?;
                self.binary(Binary::Pow, base, power)
            }
            7 => {
                let power = self.draw.pick(&[2.0, 3.0, 0.5, 1.0, -1.0, 0.0]);
                let base = if power == 0.5 || power < 0.0 { self.positive(x)? } else { x };
                self.by(Binary::Pow, base, power)
            }
            8 => {
                let factor = self.draw.pick(&[0.5, -1.0, 1.0, 0.0, 2.0, 1e-3, 100.0]);
                self.by(Binary::Mul, x, factor)
            }
            _ => {
                let below = self.positive(y)?;
                let b = self.draw.pick(&[Binary::Mod, Binary::Fmod]);
                self.binary(b, x, below)
            }
        }
    }

    /// x² + ½, or |x| + ½.
    fn positive(&mut self, x: NodeId) -> Made {
        let u = self.draw.pick(&[Unary::Square, Unary::Abs]);
        let y = self.unary(u, x)?;
        self.by(Binary::Add, y, 0.5)
    }

    fn elementwise(&mut self) -> Made {
        let x = self.any();
        let able: Vec<Unary> = Unary::ALL.into_iter().filter(|u| !u.is_predicate() && *u != Unary::BitNot).collect();
        let u = self.draw.pick(&able);
        // Where logarithms, roots and inverse functions are defined, and where exponentials stay small.
        let x = match u {
            Unary::Log | Unary::Log1p | Unary::Sqrt | Unary::Rsqrt | Unary::Recip => self.positive(x)?,
            Unary::Acosh => {
                let y = self.positive(x)?;
                self.by(Binary::Add, y, 1.0)?
            }
            Unary::Asin | Unary::Acos | Unary::Atanh => {
                let y = self.unary(Unary::Sin, x)?;
                self.by(Binary::Mul, y, 0.9)?
            }
            Unary::Exp | Unary::Expm1 | Unary::Sinh | Unary::Cosh | Unary::Tan => self.unary(Unary::Tanh, x)?,
            _ => x,
        };
        self.unary(u, x)
    }

    fn product(&mut self) -> Made {
        let x = self.at_least(2)?;
        let dims = self.dims(x);
        let n = self.extent();
        let (ta, tb) = (self.draw.rarely(4), self.draw.rarely(3));
        let (lead, k) = (&dims[..dims.len() - 2], dims[dims.len() - if ta { 2 } else { 1 }]);
        let batched = ta || self.draw.rarely(2);
        let mut right = if batched { lead.to_vec() } else { Vec::new() };
        right.extend(if tb { [n, k] } else { [k, n] });
        let y = self.made(right)?;
        self.add(Op::MatMul { ta, tb, format: Format::F32 }, &[x, y])
    }

    fn reduction(&mut self) -> Made {
        let x = self.at_least(1)?;
        let kind =
            self.draw.pick(&[ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min, ReduceKind::Prod]);
        let axes = self.draw.some_of(self.rank(x));
        // Of nothing, only sums and products are numbers.
        let empty = axes.iter().any(|&a| self.dims(x)[a] == 0);
        let kind = if empty { ReduceKind::Sum } else { kind };
        let keep = self.draw.rarely(2);
        self.add(Op::Reduce { kind, axes, keep }, &[x])
    }

    fn reshape(&mut self) -> Made {
        let x = self.any();
        let mut dims = self.dims(x);
        for _ in 0..self.draw.between(1, 2) {
            let at = self.draw.below(dims.len().max(1));
            match self.draw.below(4) {
                // Two axes as one.
                0 if at + 1 < dims.len() => {
                    let next = dims.remove(at + 1);
                    dims[at] *= next;
                }
                // One as two.
                1 if at < dims.len() && dims[at] > 1 => {
                    let n = dims[at];
                    let by = (2..=n).find(|p| n.is_multiple_of(*p)).unwrap_or(n);
                    let pair = if self.draw.rarely(2) { [by, n / by] } else { [n / by, by] };
                    dims.splice(at..=at, pair);
                }
                2 if dims.len() < 5 => dims.insert(at, 1),
                _ => {
                    if let Some(one) = dims.iter().position(|&d| d == 1) {
                        dims.remove(one);
                    }
                }
            }
        }
        self.add(Op::Reshape { dims: Shape::of(&dims) }, &[x])
    }

    fn transpose(&mut self) -> Made {
        let x = self.at_least(2)?;
        let perm = self.draw.order(self.rank(x));
        // The first order is the one there is.
        let perm: Vec<usize> = perm.into_iter().rev().collect();
        self.add(Op::Transpose { perm }, &[x])
    }

    fn slice(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let n = self.dims(x)[axis];
        let start = self.draw.below(n + 1);
        let stop = self.draw.between(start, n);
        let step = self.draw.between(1, 3);
        self.add(Op::Slice { axis, start, stop, step }, &[x])
    }

    fn pad(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let (hi, lo, inner) = (self.draw.below(3), self.draw.below(3), self.draw.below(3).saturating_sub(1));
        self.add(Op::Pad { axis, lo, hi, inner }, &[x])
    }

    fn concat(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let rest = |dims: &[usize]| {
            let mut dims = dims.to_vec();
            dims[axis] = 0;
            dims
        };
        let own = rest(&self.dims(x));
        let rank = self.rank(x);
        let able: Vec<NodeId> =
            self.pool.iter().copied().filter(|&v| self.rank(v) == rank && rest(&self.dims(v)) == own).collect();
        let mut parts = vec![x];
        for _ in 0..self.draw.between(1, 2) {
            let at = self.draw.below(parts.len() + 1);
            let part = self.draw.pick(&able);
            parts.insert(at, part);
        }
        self.add(Op::Concat { axis }, &parts)
    }

    fn broadcast(&mut self) -> Made {
        let x = self.any();
        let mut dims = self.dims(x);
        for d in &mut dims {
            if *d == 1 {
                *d = self.extent();
            }
        }
        if dims.len() < 4 && self.draw.rarely(2) {
            dims.insert(0, self.extent());
        }
        self.add(Op::Broadcast { dims: Shape::of(&dims) }, &[x])
    }

    fn window(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let fill = Num::new(self.draw.pick(&[0.0, -4.0, 1.0]));
        let (size, stride, dilation) = (self.draw.between(1, 3), self.draw.between(1, 3), self.draw.between(1, 2));
        let (lo, hi) = (self.draw.below(3), self.draw.below(3));
        self.add(Op::Window { axis, size, stride, dilation, lo, hi, fill }, &[x])
    }

    /// A pool, as importers spell it: windows reduced at once.
    fn pool(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axes = self.draw.between(1, self.rank(x).min(2));
        let kind = self.draw.pick(&[ReduceKind::Max, ReduceKind::Mean, ReduceKind::Sum]);
        let fill = if kind == ReduceKind::Max { f64::NEG_INFINITY } else { 0.0 };
        let first = self.rank(x) - axes;
        let (mut y, mut reduced) = (x, Vec::new());
        for i in 0..axes {
            let axis = first + 2 * i;
            let size = self.draw.between(1, 3);
            // No window lies in the padding alone.
            let (lo, hi) = (self.draw.below(size), self.draw.below(size));
            let stride = self.draw.between(1, 2);
            y = self.add(Op::Window { axis, size, stride, dilation: 1, lo, hi, fill: Num::new(fill) }, &[y])?;
            reduced.push(axis + 1);
        }
        self.add(Op::Reduce { kind, axes: reduced, keep: false }, &[y])
    }

    fn unwindow(&mut self) -> Made {
        let x = self.at_least(2)?;
        let axis = self.draw.below(self.rank(x) - 1);
        let extent = self.draw.between(1, 9);
        let (stride, dilation, lo) = (self.draw.between(1, 3), self.draw.between(1, 2), self.draw.below(3));
        self.add(Op::Unwindow { axis, extent, stride, dilation, lo }, &[x])
    }

    fn gather(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let n = self.dims(x)[axis];
        if n == 0 {
            return None;
        }
        let rank = self.draw.below(3);
        let dims = self.shape(rank);
        let index = self.indices(n, dims);
        self.add(Op::Gather { axis }, &[x, index])
    }

    fn scatter_add(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let dims = vec![self.dims(x)[axis]];
        let size = self.draw.between(1, 6);
        let index = self.indices(size, dims);
        self.add(Op::ScatterAdd { axis, size: Dim::Fixed(size) }, &[x, index])
    }

    fn scatter(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let mut dims = self.dims(x);
        let n = dims[axis];
        if n == 0 {
            return None;
        }
        let count = self.draw.between(1, n);
        // Rows that differ: only sums say what equal ones come to.
        let index = self.add(Op::Iota { dims: Shape::of(&[count]), axis: 0 }, &[])?;
        dims[axis] = count;
        let updates = self.made(dims)?;
        let kind = self.draw.pick(&[ScatterKind::Add, ScatterKind::Set]);
        self.add(Op::Scatter { axis, kind }, &[x, index, updates])
    }

    fn choice(&mut self) -> Made {
        let x = self.any();
        let y = self.beside(x)?;
        let b = self.draw.pick(&[Binary::Gt, Binary::Le, Binary::Lt, Binary::Ge, Binary::Eq, Binary::Ne]);
        let compared = if self.draw.rarely(2) { self.by(b, x, 0.25)? } else { self.binary(b, x, y)? };
        let compared = match self.draw.below(4) {
            2 => self.unary(Unary::Not, compared)?,
            3 => {
                let other = self.by(Binary::Gt, y, 0.0)?;
                let logic = self.draw.pick(&[Binary::And, Binary::Or, Binary::Xor]);
                self.binary(logic, compared, other)?
            }
            _ => compared,
        };
        let other = match self.draw.below(3) {
            0 => y,
            1 => self.constant(0.0),
            _ => self.beside(x)?,
        };
        let (x, other) = if self.draw.rarely(3) { (other, x) } else { (x, other) };
        self.add(Op::Select, &[compared, x, other])
    }

    fn softmax(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.rank(x) - 1 - self.draw.below(self.rank(x));
        let log = self.draw.rarely(3);
        self.add(if log { Op::LogSoftmax { axis } } else { Op::Softmax { axis } }, &[x])
    }

    /// Scores masked by a low number, as attention spells it; whole rows too.
    fn masked(&mut self) -> Made {
        let x = self.at_least(1)?;
        let dims = self.dims(x);
        let mask = if self.is_body { None } else { Some(self.input(dims, Format::F32)) }?;
        let hidden = self.by(Binary::Gt, mask, 0.3)?;
        let low = self.draw.pick(&[f64::from(f32::MIN), -1e4, f64::NEG_INFINITY, -1e9]);
        let (low, zero) = (self.constant(low), self.constant(0.0));
        let y = match self.draw.below(3) {
            0 => {
                let bias = self.add(Op::Select, &[hidden, low, zero])?;
                self.binary(Binary::Add, x, bias)?
            }
            1 => {
                let bias = self.add(Op::Select, &[hidden, low, zero])?;
                self.binary(Binary::Add, bias, x)?
            }
            _ => self.add(Op::Select, &[hidden, low, x])?,
        };
        let axis = self.rank(x) - 1;
        self.add(Op::Softmax { axis }, &[y])
    }

    fn norm(&mut self) -> Made {
        let x = self.at_least(1)?;
        if self.dims(x).contains(&0) {
            return None;
        }
        let eps = Num::new(self.draw.pick(&[1e-2, 1e-5]));
        match self.draw.below(3) {
            0 => {
                let row = vec![*self.dims(x).last()?];
                let (scale, shift) = (self.made(row.clone())?, self.made(row)?);
                self.add(Op::LayerNorm { eps }, &[x, scale, shift])
            }
            kind => {
                let axes = self.draw.some_of(self.rank(x));
                self.add(Op::Normalise { axes, eps, centred: kind == 1 }, &[x])
            }
        }
    }

    /// Norms, standardisation, distances and soft maxima as people write them.
    fn spelled_norm(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axes = vec![self.rank(x) - 1];
        if *self.dims(x).last()? == 0 {
            return None;
        }
        let eps = self.draw.pick(&[1e-6, 1e-2]);
        let kind = self.draw.pick(&[ReduceKind::Mean, ReduceKind::Sum]);
        let x = if self.draw.rarely(2) {
            let mean = self.add(Op::Reduce { kind: ReduceKind::Mean, axes: axes.clone(), keep: true }, &[x])?;
            self.binary(Binary::Sub, x, mean)?
        } else {
            x
        };
        let square = match self.draw.below(3) {
            0 => self.by(Binary::Pow, x, 2.0)?,
            1 => self.binary(Binary::Mul, x, x)?,
            _ => self.unary(Unary::Square, x)?,
        };
        let s = self.add(Op::Reduce { kind, axes: axes.clone(), keep: true }, &[square])?;
        let s = self.by(Binary::Add, s, eps)?;
        match self.draw.below(5) {
            0 => {
                let r = self.unary(Unary::Rsqrt, s)?;
                self.binary(Binary::Mul, x, r)
            }
            1 => {
                let r = self.unary(Unary::Sqrt, s)?;
                self.binary(Binary::Div, x, r)
            }
            2 => self.unary(Unary::Sqrt, s),
            3 => {
                let r = self.by(Binary::Pow, s, -0.5)?;
                self.binary(Binary::Mul, x, r)
            }
            _ => {
                let bounded = self.unary(Unary::Tanh, x)?;
                let e = self.unary(Unary::Exp, bounded)?;
                let sum = self.add(Op::Reduce { kind: ReduceKind::Sum, axes, keep: true }, &[e])?;
                self.binary(Binary::Div, e, sum)
            }
        }
    }

    fn convolution(&mut self) -> Made {
        let x = self.at_least(3)?;
        let dims = self.dims(x);
        let n = dims.len() - 2;
        let mut list =
            |low: usize, high: usize| -> Vec<usize> { (0..n).map(|_| self.draw.between(low, high)).collect() };
        let (stride, dilation, lo, hi, kernel) = (list(1, 2), list(1, 2), list(0, 1), list(0, 1), list(1, 3));
        let channels = dims[1];
        let groups = if channels > 1 && self.draw.rarely(3) { channels } else { 1 };
        let spec = ConvSpec { stride, dilation, lo, hi, groups };
        let per_group = self.draw.between(1, 3);
        if self.draw.rarely(3) {
            let extents: Vec<usize> = (0..n)
                .map(|i| {
                    let reach = spec.dilation[i] * (kernel[i] - 1) + 1;
                    ((dims[i + 2].max(1) - 1) * spec.stride[i] + reach).saturating_sub(spec.lo[i] + spec.hi[i]).max(1)
                })
                .collect();
            let w = [&[channels, per_group][..], &kernel].concat();
            let w = self.made(w)?;
            return self.add(Op::Conv { kind: ConvKind::Input(extents), spec, format: Format::F32 }, &[x, w]);
        }
        let w = [&[per_group * groups, channels / groups][..], &kernel].concat();
        let w = self.made(w)?;
        self.add(Op::Conv { kind: ConvKind::Forward, spec, format: Format::F32 }, &[x, w])
    }

    fn loss(&mut self) -> Made {
        let x = self.at_least(1)?;
        let dims = self.dims(x);
        match self.draw.below(3) {
            0 => {
                let y = self.made(dims)?;
                self.add(Op::Loss(Loss::SquaredError), &[x, y])
            }
            1 => {
                let y = self.made(dims)?;
                let y = self.unary(Unary::Sigmoid, y)?;
                self.add(Op::Loss(Loss::BceWithLogits), &[x, y])
            }
            _ => {
                let classes = *dims.last()?;
                if classes == 0 || self.is_body {
                    return None;
                }
                let label = self.fresh("y");
                let rows = dims[..dims.len() - 1].to_vec();
                let y = self.source(&label, |ty| Op::Input { label: true, ty, copy_of: None }, rows, Format::I64);
                self.whole.pop();
                self.add(Op::Loss(Loss::CrossEntropy), &[x, y])
            }
        }
    }

    fn convert(&mut self) -> Made {
        let x = self.any();
        let format = self.draw.pick(&[Format::F32, Format::F16, Format::Bf16]);
        self.add(Op::Convert(format), &[x])
    }

    fn dropout(&mut self) -> Made {
        if self.is_body {
            return None;
        }
        let x = self.any();
        let [seed, step] = ["seed", "step"].map(|name| {
            self.g.find(name).unwrap_or_else(|| {
                let ty = Type::new(Shape::scalar(), Format::F32);
                self.g.add_named(name, Op::State { init: Init::zeros(), ty }, &[]).expect("a name of its own")
            })
        });
        let salt = self.draw.below(100) as u32;
        let noise = self.add(Op::Random { dims: self.g.shape(x).clone(), salt }, &[seed, step])?;
        let kept = self.by(Binary::Ge, noise, 0.25)?;
        let zero = self.constant(0.0);
        let scaled = self.by(Binary::Div, x, 0.75)?;
        self.add(Op::Select, &[kept, scaled, zero])
    }

    fn extreme(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axes = self.draw.some_of(self.rank(x));
        if axes.iter().any(|&a| self.dims(x)[a] == 0) {
            return None;
        }
        let kind = self.draw.pick(&[ReduceKind::Max, ReduceKind::Min]);
        let hit = self.add(Op::IsExtreme { kind, axes }, &[x])?;
        let y = self.made(self.dims(x))?;
        let other = self.constant(0.5);
        self.add(Op::Select, &[hit, y, other])
    }

    /// Sums and comparisons of whole numbers, back among the others.
    fn whole_numbers(&mut self) -> Made {
        let rank = self.draw.between(1, 2);
        let dims = self.shape(rank);
        let i = self.indices(5, dims.clone());
        let axis = self.draw.below(dims.len());
        match self.draw.below(4) {
            0 => {
                let two = self.add(Op::Iota { dims: Shape::of(&dims), axis }, &[])?;
                let sum = self.binary(Binary::Add, i, two)?;
                self.add(Op::Convert(Format::F32), &[sum])
            }
            1 => {
                let sum = self.add(Op::Reduce { kind: ReduceKind::Sum, axes: vec![axis], keep: false }, &[i])?;
                self.whole.push(sum);
                self.add(Op::Convert(Format::F32), &[sum])
            }
            2 => {
                let positive = self.by(Binary::Gt, i, 1.0)?;
                let count = self.add(Op::Convert(Format::I64), &[positive])?;
                let sum = self.add(Op::Reduce { kind: ReduceKind::Sum, axes: vec![axis], keep: true }, &[count])?;
                self.add(Op::Convert(Format::F32), &[sum])
            }
            _ => {
                let positive = self.by(Binary::Gt, i, 1.0)?;
                let x = self.made(dims)?;
                let zero = self.constant(0.0);
                self.add(Op::Select, &[positive, x, zero])
            }
        }
    }

    /// Both halves of an axis, used apart.
    fn split(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let n = self.dims(x)[axis];
        let middle = self.draw.below(n + 1);
        let low = self.add(Op::Slice { axis, start: 0, stop: middle, step: 1 }, &[x])?;
        let high = self.add(Op::Slice { axis, start: middle, stop: n, step: 1 }, &[x])?;
        self.pool.push(low);
        self.pool.push(high);
        let high = self.unary(Unary::Neg, high)?;
        self.add(Op::Concat { axis }, &[high, low])
    }

    /// A running sum as importers spell it: every position adds up the window before it.
    fn cumulative(&mut self) -> Made {
        let x = self.at_least(1)?;
        let axis = self.draw.below(self.rank(x));
        let n = self.dims(x)[axis];
        if n == 0 {
            return None;
        }
        let w = Op::Window { axis, size: n, stride: 1, dilation: 1, lo: n - 1, hi: 0, fill: Num::new(0.0) };
        let w = self.add(w, &[x])?;
        self.add(Op::Reduce { kind: ReduceKind::Sum, axes: vec![axis + 1], keep: false }, &[w])
    }

    /// A loop over the first axis of a value, with a state and perhaps a shared operand.
    fn scan(&mut self) -> Made {
        if self.is_body {
            return None;
        }
        let x = self.at_least(1)?;
        let steps = self.dims(x)[0];
        if steps == 0 || steps > 8 {
            return None;
        }
        let start = self.any();
        let shared = if self.draw.rarely(2) { Some(self.any()) } else { None };
        let mut inner = Graph::new(self.fresh("body"));
        let ty = |id: NodeId, cut: usize| Type::new(Shape(self.g.shape(id).0[cut..].to_vec()), Format::F32);
        let init = Init::Data;
        let mut pool = vec![
            inner.add_named("a", Op::Input { label: false, ty: ty(x, 1), copy_of: None }, &[]).ok()?,
            inner.add_named("h", Op::State { init: init.clone(), ty: ty(start, 0) }, &[]).ok()?,
        ];
        if let Some(p) = shared {
            pool.push(inner.add_named("p", Op::Param { init, ty: ty(p, 0) }, &[]).ok()?);
        }
        let state = pool[1];
        // The same choices, in another graph.
        let draw = std::mem::replace(&mut self.draw, Draw::new(&[]));
        let mut body = Gen { g: inner, draw, extents: self.extents, pool, whole: Vec::new(), named: 0, is_body: true };
        body.statements(4);
        let value = *body.pool.last().expect("sources at least");
        let next = body.next_state(state, value);
        let stacked = body.draw.rarely(2);
        let reverse = body.draw.rarely(3);
        let Gen { mut g, draw, .. } = body;
        self.draw = draw;
        g.add_output("h", Role::Update, next?);
        g.add_output("out", Role::Output, value);
        let take = if stacked { Take::Stack("out".into()) } else { Take::Last("h".into()) };
        let inputs: Vec<NodeId> = [Some(x), Some(start), shared].into_iter().flatten().collect();
        self.add(Op::Scan(Scan { body: Body::new(g), steps: Dim::Fixed(steps), reverse, take }), &inputs)
    }

    /// Something of the state's shape that depends on it and on a value.
    fn next_state(&mut self, state: NodeId, value: NodeId) -> Made {
        let mean = if self.g.ty(value).elements() == 0 {
            self.constant(0.0)
        } else {
            let axes = (0..self.rank(value)).collect();
            self.add(Op::Reduce { kind: ReduceKind::Mean, axes, keep: false }, &[value])?
        };
        let fits = self.dims(value) == self.dims(state) && self.draw.rarely(2);
        let moved = if fits { value } else { mean };
        let half = self.by(Binary::Mul, state, 0.5)?;
        let sum = self.binary(Binary::Add, half, moved)?;
        self.unary(Unary::Tanh, sum)
    }

    /// Adds up everything that nothing reads into a loss, and names some outputs.
    fn finish(&mut self) {
        let unread = |g: &Gen, id: NodeId| g.g.users(id).is_empty();
        let mut ends: Vec<NodeId> = self.pool.iter().copied().filter(|&v| unread(self, v)).collect();
        ends.dedup();
        let mut total: Made = None;
        for (i, &end) in ends.iter().enumerate() {
            let term = self.term(end);
            total = match (total, term) {
                (Some(t), Some(term)) => self.binary(Binary::Add, t, term),
                (t, term) => t.or(term),
            };
            if i < 2 && self.draw.rarely(2) && !self.g.op(end).is_source() {
                self.g.add_output(format!("out{i}"), Role::Output, end);
            }
        }
        let total = total.expect("there is at least the parameter");
        let params: Vec<NodeId> = self.g.sources().filter(|&id| matches!(self.g.op(id), Op::Param { .. })).collect();
        let one = self.constant(1.0);
        let trains = gradients(&mut self.g.clone(), total, one, &params).map_or(true, |found| !found.is_empty());
        let loss = if trains {
            total
        } else {
            let term = self.term(params[0]).expect("a parameter can be summed");
            self.binary(Binary::Add, total, term).expect("scalars add")
        };
        // A name of its own, whatever else it is.
        let loss = self.g.add_named("loss", Op::Binary(Binary::Mul), &[loss, one]).expect("a name of its own");
        self.g.add_output("loss", Role::Output, loss);
    }

    /// A scalar of a value.
    fn term(&mut self, x: NodeId) -> Made {
        let shaped = match self.draw.below(4) {
            0 => self.unary(Unary::Square, x)?,
            1 => self.unary(Unary::Sin, x)?,
            2 => self.unary(Unary::Tanh, x)?,
            _ => x,
        };
        let axes: Vec<usize> = (0..self.rank(x)).collect();
        if axes.is_empty() {
            return Some(shaped);
        }
        let kind = if self.g.ty(x).elements() == 0 || self.draw.rarely(2) { ReduceKind::Sum } else { ReduceKind::Mean };
        self.add(Op::Reduce { kind, axes, keep: false }, &[shaped])
    }
}
