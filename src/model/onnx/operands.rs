//! What nodes of a file read in their own format, and the casts between.

use super::patch::infer;
use super::proto::{GraphProto, NodeProto};
use super::tensor::code_of;
use super::write::int;
use crate::format::Format;
use crate::model::Bound;

/// Where a node's inputs stand that are in its format, where they hold floating-point numbers.
pub fn operand_positions(node: &NodeProto) -> impl Iterator<Item = usize> {
    // Scales of an image's sides and rates of dropping are no part of the data.
    let apart = |i: usize| matches!((node.op_type(), i), ("Resize" | "Dropout", 1..));
    (0..node.input.len()).filter(move |&i| !apart(i) && !node.input[i].is_empty())
}

/// The inputs of a node that are in its format.
pub fn operands(node: &NodeProto) -> impl Iterator<Item = &str> {
    operand_positions(node).map(|i| node.input[i].as_str())
}

/// The name a node goes by in [`super::NodeFormats`].
pub fn key(node: &NodeProto) -> &str {
    node.output.iter().map(String::as_str).find(|o| !o.is_empty()).unwrap_or("")
}

/// The graph as it acts in inference, without readings of a tensor that want its type alone.
pub fn prepare(graph: &mut GraphProto, bound: &Bound) {
    infer(graph);
    let to_f32 = |n: &NodeProto| n.op_type() == "CastLike" && n.input.get(1).is_some_and(|of| bound.is_f32(of));
    for node in graph.node.iter_mut().filter(|n| to_f32(n)) {
        *node = NodeProto { name: node.name.clone(), ..cast(&node.input[0], Format::F32, &node.output[0]) };
    }
}

/// A node that reads a tensor in another format.
pub fn cast(from: &str, to: Format, name: &str) -> NodeProto {
    NodeProto {
        op_type: Some("Cast".into()),
        name: Some(format!("Cast_{name}")),
        input: vec![from.to_owned()],
        output: vec![name.to_owned()],
        attribute: vec![int("to", i64::from(code_of(to)))],
        ..NodeProto::default()
    }
}
