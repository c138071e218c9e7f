//! What is computed from tensors without elements: known without reading one.
//!
//! A tensor with an extent of 0 has no element for a kernel to load, and no library multiplies one. So where such a tensor
//! meets a result that does have elements (a sum over nothing, a product with an inner extent of 0, padding around
//! nothing), the result is spelled out here, and no executor sees the case.

use crate::error::Result;
use crate::format::Format;
use crate::ir::{AttentionPart, Binary, Graph, NodeId, Num, Op, Type};

/// What an operation with an empty operand comes to, where its result (`ty`) is not empty. `x` are its operands in `out`.
pub(super) fn of_nothing(out: &mut Graph, op: &Op, x: &[NodeId], ty: &Type) -> Result<NodeId> {
    match op {
        Op::Concat { .. } => {
            let parts: Vec<NodeId> = x.iter().copied().filter(|&part| out.ty(part).elements() > 0).collect();
            out.add(op.clone(), &parts)
        }
        // Nothing is written, so the rows stay as they were.
        Op::Scatter { .. } => Ok(x[0]),
        Op::Reduce { kind, .. } => {
            let mean = *kind == crate::ir::ReduceKind::Mean;
            filled(out, if mean { f64::NAN } else { kind.identity() }, ty)
        }
        Op::Attention { part: AttentionPart::Lse, .. } => filled(out, f64::NEG_INFINITY, ty),
        Op::Window { fill, .. } => filled(out, fill.get(), ty),
        _ => filled(out, 0.0, ty),
    }
}

/// A tensor of one number.
fn filled(out: &mut Graph, x: f64, ty: &Type) -> Result<NodeId> {
    let scalar = out.add(Op::Const(Num::new(x)), &[])?;
    let scalar = match ty.format {
        Format::Bool => {
            let zero = out.constant(0.0)?;
            out.binary(Binary::Ne, scalar, zero)?
        }
        Format::F32 => scalar,
        format => out.add(Op::Convert(format), &[scalar])?,
    };
    out.broadcast_to(scalar, &ty.shape)
}
