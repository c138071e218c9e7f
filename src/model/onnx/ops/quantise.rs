//! Linear quantisation: x ≈ (q − zero point) · scale.

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Unary};
use crate::model::onnx::node::{Import, Node};
use crate::model::onnx::tensor::format_of;

pub const OPS: &[(&str, Handler)] =
    &[("QuantizeLinear", quantise), ("DequantizeLinear", dequantise), ("DynamicQuantizeLinear", dynamic)];

/// A scale or zero point shaped to broadcast against `x`: one number, one per row of `axis`, or one per block of it.
fn spread(n: &mut Node, x: NodeId, p: NodeId, axis: usize) -> Import<NodeId> {
    let (dims, own) = (n.dims(x), n.dims(p));
    if own.iter().product::<usize>() == 1 {
        return n.reshape(p, &[]);
    }
    if own.len() == 1 {
        let mut column = vec![1; dims.len()];
        column[axis] = own[0];
        return n.reshape(p, &column);
    }
    let block = n.int("block_size", 0).max(0) as usize;
    let block = if block > 0 { block } else { dims[axis].div_ceil(own[axis].max(1)) };
    let (mut split, mut wide, mut flat) = (own.clone(), own.clone(), own.clone());
    split.insert(axis + 1, 1);
    wide.insert(axis + 1, block);
    flat[axis] = own[axis] * block;
    let y = n.reshape(p, &split)?;
    let y = n.broadcast(y, &wide)?;
    let y = n.reshape(y, &flat)?;
    n.slice(y, axis, 0, dims[axis])
}

fn range(format: Format) -> Import<(f64, f64)> {
    let narrow = format.range().filter(|_| format.bytes() <= 2);
    narrow.ok_or_else(|| format!("quantising to {format} is not supported"))
}

/// Rounds to the nearest whole number, ties to even, and saturates.
fn to_whole(n: &mut Node, x: NodeId, scale: NodeId, zero: Option<NodeId>, format: Format) -> Import<NodeId> {
    let q = n.bin(Binary::Div, x, scale)?;
    let q = n.un(Unary::Round, q)?;
    let q = match zero {
        Some(z) => {
            let z = n.convert(z, Format::F32)?;
            n.bin(Binary::Add, q, z)?
        }
        None => q,
    };
    let (low, high) = range(format)?;
    let q = n.with(Binary::Max, q, low)?;
    let q = n.with(Binary::Min, q, high)?;
    n.convert(q, format)
}

fn quantise(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, scale) = (n.x(0)?, n.x(1)?);
    let axis = if n.rank(x) == 0 { 0 } else { n.axis_of(x, if n.rank(x) > 1 { 1 } else { 0 })? };
    let zero = n.maybe(2)?;
    let format = match (zero, n.int("output_dtype", 0)) {
        (Some(z), _) => n.format(z),
        (None, 0) => Format::U8,
        (None, t) => format_of(t as i32)?,
    };
    let x = n.convert(x, Format::F32)?;
    let scale = spread(n, x, scale, axis)?;
    let zero = zero.map(|z| spread(n, x, z, axis)).transpose()?;
    Ok(vec![to_whole(n, x, scale, zero, format)?])
}

fn dequantise(n: &mut Node) -> Import<Vec<NodeId>> {
    let (q, scale) = (n.x(0)?, n.x(1)?);
    let axis = if n.rank(q) == 0 { 0 } else { n.axis_of(q, if n.rank(q) > 1 { 1 } else { 0 })? };
    let mut x = n.convert(q, Format::F32)?;
    if let Some(z) = n.maybe(2)? {
        let z = spread(n, q, z, axis)?;
        let z = n.convert(z, Format::F32)?;
        x = n.bin(Binary::Sub, x, z)?;
    }
    let scale = spread(n, q, scale, axis)?;
    Ok(vec![n.bin(Binary::Mul, x, scale)?])
}

/// The range of the data itself, stretched to hold 0, over 0 to 255.
fn dynamic(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let axes: Vec<usize> = (0..n.rank(x)).collect();
    let (low, high) = (
        n.reduce(crate::ir::ReduceKind::Min, x, &axes, false)?,
        n.reduce(crate::ir::ReduceKind::Max, x, &axes, false)?,
    );
    let (low, high) = (n.with(Binary::Min, low, 0.0)?, n.with(Binary::Max, high, 0.0)?);
    let width = n.bin(Binary::Sub, high, low)?;
    let scale = n.with(Binary::Div, width, 255.0)?;
    let start = n.bin(Binary::Div, low, scale)?;
    let zero = n.un(Unary::Neg, start)?;
    let zero = n.un(Unary::Round, zero)?;
    let zero = n.with(Binary::Max, zero, 0.0)?;
    let zero = n.with(Binary::Min, zero, 255.0)?;
    let q = to_whole(n, x, scale, Some(zero), Format::U8)?;
    let zero = n.convert(zero, Format::U8)?;
    Ok(vec![q, scale, zero])
}
