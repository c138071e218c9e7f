//! Reading and accumulating rows at integer positions: embeddings and their gradient.

use super::{Context, Format, Gradients, Op, Shape, Type};
use crate::ir::tensor::{Tensor, for_each_index};
use crate::ir::types::Dim;

fn check(axis: usize, x: &Type, index: &Type) -> Result<(), String> {
    if axis >= x.shape.rank() {
        return Err(format!("axis {axis} is outside {}", x.shape));
    }
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
    Ok(Type::new(Shape(dims), if x.format.is_low() { Format::F32 } else { x.format }))
}

pub(super) fn infer_scatter(axis: usize, size: &Dim, dy: &Type, index: &Type) -> Result<Type, String> {
    check(axis, dy, index)?;
    let rank = index.shape.rank();
    if dy.shape.0.get(axis..axis + rank) != Some(&index.shape.0[..]) {
        return Err(format!("{} does not carry the index's {} at axis {axis}", dy.shape, index.shape));
    }
    let mut dims = dy.shape.0.clone();
    dims.splice(axis..axis + rank, [size.clone()]);
    Ok(Type::new(Shape(dims), if dy.format.is_low() { Format::F32 } else { dy.format }))
}

/// The position a gather reads: negative indices count from the end (ONNX Gather-13).
fn resolve(i: f64, extent: usize) -> usize {
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
