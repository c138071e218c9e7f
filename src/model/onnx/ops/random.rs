//! Operations that draw numbers. In inference dropout does nothing.

use super::Handler;
use crate::format::Format;
use crate::ir::NodeId;
use crate::model::Purpose;
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("Dropout", dropout)];

fn dropout(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let training = n.has(2) && n.ints(2)?.first() == Some(&1);
    let ratio = match n.attr("ratio") {
        Some(a) => f64::from(a.f()),
        None if n.has(1) => n.known(1)?.tensor.data.first().copied().unwrap_or(0.5),
        None => 0.5,
    };
    if training && ratio > 0.0 && n.im.purpose == Purpose::Training {
        return Err("dropout in training mode is not supported yet; export with model.eval(), or with p=0".into());
    }
    let mut out = vec![x];
    if n.wants(1) {
        let one = n.num(1.0)?;
        let one = n.convert(one, Format::Bool)?;
        let dims = n.dims(x);
        out.push(n.broadcast(one, &dims)?);
    }
    Ok(out)
}
