//! ONNX operations as operations of ours, a table for each family.

mod attention;
mod classical;
mod conv;
mod index;
mod loss;
mod norm;
mod optimizer;
mod pointwise;
mod pool;
mod product;
mod quantise;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod sample;
mod shape;
mod signal;

use super::node::{Import, Node};
use crate::ir::NodeId;

/// Adds a node's operations and returns its outputs.
type Handler = fn(&mut Node) -> Import<Vec<NodeId>>;

const FAMILIES: [&[(&str, Handler)]; 18] = [
    classical::OPS,
    pointwise::OPS,
    shape::OPS,
    index::OPS,
    reduce::OPS,
    product::OPS,
    conv::OPS,
    pool::OPS,
    norm::OPS,
    loss::OPS,
    attention::OPS,
    recurrent::OPS,
    resize::OPS,
    sample::OPS,
    signal::OPS,
    quantise::OPS,
    random::OPS,
    optimizer::OPS,
];

/// What the importer itself handles.
const BUILT_IN: [&str; 7] = ["Constant", "Shape", "Size", "If", "Identity", "Loop", "ZipMap"];

fn find(op: &str) -> Option<Handler> {
    FAMILIES.iter().flat_map(|f| f.iter()).find(|(name, _)| *name == op).map(|(_, h)| *h)
}

/// Operations whose result is another every time, so that known inputs do not make it known.
pub fn is_random(op: &str) -> bool {
    random::OPS.iter().any(|(name, _)| *name == op)
}

pub fn is_known(domain: &str, op: &str) -> bool {
    matches!(domain, "" | "ai.onnx" | "ai.onnx.ml" | "ai.onnx.preview.training")
        && (BUILT_IN.contains(&op) || super::sequences::OPS.contains(&op) || find(op).is_some())
}

pub fn import(n: &mut Node) -> Import<Vec<NodeId>> {
    find(n.proto.op_type()).ok_or("is not supported")?(n)
}
