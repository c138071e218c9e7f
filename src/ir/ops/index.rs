//! Reading, writing and accumulating rows at integer positions: embeddings and their gradient, scatters.

use super::attr::{Attr, Attrs};
use super::named::named_enum;
use super::signature::{Attribute, Elements, Family, Kind, Reads, Signature};
use super::{Binary, Context, Format, Gradients, Op, Shape, Type};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

named_enum! {
    /// What a scatter does where an element is already there.
    ScatterKind {
        /// The update takes its place.
        Set = "set",
        /// Their sum.
        Add = "add",
        /// Their product.
        Mul = "mul",
        /// The larger one, NaN if either is.
        Max = "max",
        /// The smaller one, NaN if either is.
        Min = "min",
    }
}

/// Rows at integer positions.
pub(super) struct Rows;

impl Family for Rows {
    fn signatures(&self) -> Vec<Signature> {
        let axis = || Attribute::new("axis", Kind::Int).or(Attr::int(0)).samples(&["0", "1"]);
        let size = Attribute::new("size", Kind::Dims).samples(&["[2]", "[3]"]);
        let kind = Attribute::new("kind", Kind::Choice(&ScatterKind::NAMES)).or(Attr::word("set"));
        vec![
            Signature::new("gather", 2).elements(Elements::Picked).with([axis()]),
            Signature::new("scatter_add", 2).reads(Reads::Memory).with([axis(), size]),
            Signature::new("scatter", 3).reads(Reads::Memory).with([axis(), kind]),
        ]
    }

    fn name(&self, op: &Op) -> &'static str {
        match op {
            Op::Gather { .. } => "gather",
            Op::ScatterAdd { .. } => "scatter_add",
            _ => "scatter",
        }
    }

    fn attrs(&self, op: &Op) -> Vec<Attr> {
        match op {
            Op::Gather { axis } => vec![Attr::int(*axis)],
            Op::ScatterAdd { axis, size } => vec![Attr::int(*axis), Attr::Dims(Shape(vec![size.clone()]))],
            Op::Scatter { axis, kind } => vec![Attr::int(*axis), Attr::word(kind.name())],
            _ => unreachable!("another family's"),
        }
    }

    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String> {
        let axis = a.int("axis")?;
        Ok(match name {
            "gather" => Op::Gather { axis },
            "scatter_add" => Op::ScatterAdd { axis, size: a.extent("size")? },
            _ => {
                let word = a.word("kind")?;
                let kind = ScatterKind::ALL.into_iter().find(|k| k.name() == word);
                Op::Scatter { axis, kind: kind.ok_or("no such kind")? }
            }
        })
    }

    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String> {
        match op {
            Op::Gather { axis } => infer_gather(*axis, x[0], x[1]),
            Op::ScatterAdd { axis, size } => infer_scatter(*axis, size, x[0], x[1]),
            Op::Scatter { axis, .. } => infer_put_rows(*axis, x[0], x[1], x[2]),
            _ => unreachable!("another family's"),
        }
    }

    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor {
        match op {
            Op::Gather { axis } => eval_gather(*axis, x, ty),
            Op::ScatterAdd { axis, .. } => eval_scatter(*axis, x, ty),
            Op::Scatter { axis, kind } => eval_put_rows(*axis, *kind, x),
            _ => unreachable!("another family's"),
        }
    }

    fn vjp(&self, op: &Op, c: Context) -> Gradients {
        match op {
            Op::Gather { axis } => vjp_gather(*axis, c),
            Op::ScatterAdd { axis, .. } => vjp_scatter(*axis, c),
            Op::Scatter { axis, kind } => vjp_put_rows(*axis, *kind, c),
            _ => unreachable!("another family's"),
        }
    }
}

impl ScatterKind {
    fn combine(self, old: f64, new: f64) -> f64 {
        match self {
            ScatterKind::Set => new,
            ScatterKind::Add => old + new,
            ScatterKind::Mul => old * new,
            ScatterKind::Max => Binary::Max.eval(old, new),
            ScatterKind::Min => Binary::Min.eval(old, new),
        }
    }
}

/// `x` with rows of `updates` written at the positions of `index`: where the axis stood, updates carry the index's shape.
fn infer_put_rows(axis: usize, x: &Type, index: &Type, updates: &Type) -> Result<Type, String> {
    check(axis, x, index)?;
    let mut dims = x.shape.0.clone();
    dims.splice(axis..=axis, index.shape.0.iter().cloned());
    if updates.shape != Shape(dims) {
        return Err(format!("updates {} do not fit rows of {} at {}", updates.shape, x.shape, index.shape));
    }
    if updates.format.once_read() != x.format.once_read() {
        return Err(format!("updates are {}, what they go into is {}", updates.format, x.format));
    }
    Ok(Type::new(x.shape.clone(), x.format.once_read()))
}

fn eval_put_rows(axis: usize, kind: ScatterKind, x: &[&Tensor]) -> Tensor {
    let mut out = x[0].clone();
    let rank = x[1].dims.len();
    for_each_index(&x[2].dims, |i| {
        let mut to = i.to_vec();
        let row = resolve(x[1].at(&i[axis..axis + rank]), x[0].dims[axis]);
        to.splice(axis..axis + rank, [row]);
        let v = out.at_mut(&to);
        *v = kind.combine(*v, x[2].at(i));
    });
    out
}

/// What was overwritten has no gradient; updates have that of the place they went to (positions must differ).
fn vjp_put_rows(axis: usize, kind: ScatterKind, c: Context) -> Gradients {
    let (g, index, dy) = (c.graph, c.x[1], c.dy);
    let back = g.add(Op::Gather { axis }, &[dy, index])?;
    let dx = match kind {
        ScatterKind::Add => dy,
        ScatterKind::Set => {
            let zero = g.constant(0.0)?;
            let dims = g.shape(c.x[2]).clone();
            let zeros = g.broadcast_to(zero, &dims)?;
            g.add(Op::Scatter { axis, kind }, &[dy, index, zeros])?
        }
        _ => {
            let what = format!("a scatter that combines by {} has no gradient", kind.name());
            return Err(crate::error::Error::Graph(what));
        }
    };
    Ok(vec![Some(dx), None, Some(back)])
}

fn check(axis: usize, x: &Type, index: &Type) -> Result<(), String> {
    if axis >= x.shape.rank() {
        return Err(format!("axis {axis} is outside {}", x.shape));
    }
    check_index(index)
}

fn check_index(index: &Type) -> Result<(), String> {
    if !matches!(index.format, Format::I64 | Format::I32) {
        return Err(format!("indices are {}, not i64 or i32", index.format));
    }
    Ok(())
}

/// `x[.., i, ..]`: the index's shape stands where the axis stood.
fn infer_gather(axis: usize, x: &Type, index: &Type) -> Result<Type, String> {
    check(axis, x, index)?;
    let mut dims = x.shape.0.clone();
    dims.splice(axis..=axis, index.shape.0.iter().cloned());
    Ok(Type::new(Shape(dims), x.format.once_read()))
}

fn infer_scatter(axis: usize, size: &Dim, dy: &Type, index: &Type) -> Result<Type, String> {
    check_index(index)?;
    // A scalar index leaves no extent behind, so the axis can lie just behind the last one.
    let rank = index.shape.rank();
    if dy.shape.0.get(axis..axis + rank) != Some(&index.shape.0[..]) {
        return Err(format!("{} does not carry the index's {} at axis {axis}", dy.shape, index.shape));
    }
    let mut dims = dy.shape.0.clone();
    dims.splice(axis..axis + rank, [size.clone()]);
    Ok(Type::new(Shape(dims), dy.format.once_read()))
}

/// The row that a position names: negative indices count from the end (ONNX Gather-13).
pub(crate) fn resolve(i: f64, extent: usize) -> usize {
    let i = if i < 0.0 { i + extent as f64 } else { i };
    (i.max(0.0) as usize).min(extent.saturating_sub(1))
}

fn eval_gather(axis: usize, x: &[&Tensor], ty: &Type) -> Tensor {
    let rank = x[1].dims.len();
    Tensor::from_fn(&ty.dims(), |i| {
        let mut source = i.to_vec();
        let row = resolve(x[1].at(&i[axis..axis + rank]), x[0].dims[axis]);
        source.splice(axis..axis + rank, [row]);
        x[0].at(&source)
    })
}

fn eval_scatter(axis: usize, x: &[&Tensor], ty: &Type) -> Tensor {
    let dims = ty.dims();
    let rank = x[1].dims.len();
    let mut out = Tensor::full(&dims, 0.0);
    for_each_index(&x[0].dims, |i| {
        let mut to = i.to_vec();
        let row = resolve(x[1].at(&i[axis..axis + rank]), dims[axis]);
        to.splice(axis..axis + rank, [row]);
        *out.at_mut(&to) += x[0].at(i);
    });
    out
}

fn vjp_gather(axis: usize, c: Context) -> Gradients {
    let size = c.graph.shape(c.x[0]).0[axis].clone();
    Ok(vec![Some(c.graph.add(Op::ScatterAdd { axis, size }, &[c.dy, c.x[1]])?), None])
}

fn vjp_scatter(axis: usize, c: Context) -> Gradients {
    Ok(vec![Some(c.graph.add(Op::Gather { axis }, &[c.dy, c.x[1]])?), None])
}
