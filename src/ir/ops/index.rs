//! Reading, writing and accumulating rows at integer positions: embeddings and their gradient, scatters.

use super::named::named_enum;
use super::{Binary, Context, Format, Gradients, Op, Shape, Type};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

named_enum! {
    /// What a scatter does where an element is already there.
    ScatterKind { Set = "set", Add = "add", Mul = "mul", Max = "max", Min = "min" }
}

impl ScatterKind {
    pub fn combine(self, old: f64, new: f64) -> f64 {
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
pub(super) fn infer_put_rows(axis: usize, x: &Type, index: &Type, updates: &Type) -> Result<Type, String> {
    check(axis, x, index)?;
    let mut dims = x.shape.0.clone();
    dims.splice(axis..=axis, index.shape.0.iter().cloned());
    if updates.shape != Shape(dims) {
        return Err(format!("updates {} do not fit rows of {} at {}", updates.shape, x.shape, index.shape));
    }
    Ok(Type::new(x.shape.clone(), x.format.once_read()))
}

pub(super) fn eval_put_rows(axis: usize, kind: ScatterKind, x: &[&Tensor]) -> Tensor {
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
pub(super) fn vjp_put_rows(axis: usize, kind: ScatterKind, c: Context) -> Gradients {
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
pub(super) fn infer_gather(axis: usize, x: &Type, index: &Type) -> Result<Type, String> {
    check(axis, x, index)?;
    let mut dims = x.shape.0.clone();
    dims.splice(axis..=axis, index.shape.0.iter().cloned());
    Ok(Type::new(Shape(dims), x.format.once_read()))
}

pub(super) fn infer_scatter(axis: usize, size: &Dim, dy: &Type, index: &Type) -> Result<Type, String> {
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

pub(super) fn eval_gather(axis: usize, x: &[&Tensor], ty: &Type) -> Tensor {
    let rank = x[1].dims.len();
    Tensor::from_fn(&ty.dims(), |i| {
        let mut source = i.to_vec();
        let row = resolve(x[1].at(&i[axis..axis + rank]), x[0].dims[axis]);
        source.splice(axis..axis + rank, [row]);
        x[0].at(&source)
    })
}

pub(super) fn eval_scatter(axis: usize, x: &[&Tensor], ty: &Type) -> Tensor {
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

pub(super) fn vjp_gather(axis: usize, c: Context) -> Gradients {
    let size = c.graph.shape(c.x[0]).0[axis].clone();
    Ok(vec![Some(c.graph.add(Op::ScatterAdd { axis, size }, &[c.dy, c.x[1]])?), None])
}

pub(super) fn vjp_scatter(axis: usize, c: Context) -> Gradients {
    Ok(vec![Some(c.graph.add(Op::Gather { axis }, &[c.dy, c.x[1]])?), None])
}
