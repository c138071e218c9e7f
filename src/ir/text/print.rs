//! Graph to text. Every node is a line except constants, which stand where they are used.

use super::is_plain_name;
use crate::ir::graph::{Graph, NodeId, Role};
use crate::ir::ops::Op;
use std::fmt::Write;

/// A name as text writes it: in backticks if it is no plain word.
pub fn quoted(name: &str) -> String {
    if is_plain_name(name) { name.to_owned() } else { format!("`{name}`") }
}

/// The text of a graph; [`super::parse`] reads it back to an equal one.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("model {} {{\n", quoted(&graph.name));
    let operand = |id: NodeId| match graph.op(id) {
        Op::Const(c) => c.to_string(),
        _ => quoted(graph.name_of(id)),
    };
    for id in graph.ids() {
        let (op, ty, name) = (graph.op(id), graph.ty(id), quoted(graph.name_of(id)));
        // Writing to a String cannot fail.
        let _ = match op {
            Op::Const(_) => Ok(()),
            Op::Input { ty, copy_of, .. } => {
                let copy = copy_of.as_ref().map_or(String::new(), |of| format!(" = copy({})", quoted(of)));
                writeln!(out, "  {} {name}: {ty}{copy}", op.name())
            }
            Op::Param { init, ty } | Op::State { init, ty } => writeln!(out, "  {} {name}: {ty} = {init}", op.name()),
            _ => {
                let mut parts: Vec<String> = graph.inputs(id).into_iter().map(operand).collect();
                parts.extend(op.attrs().into_iter().map(|(k, v)| format!("{k}={v}")));
                writeln!(out, "  {name}: {ty} = {}({})", op.name(), parts.join(", "))
            }
        };
    }
    for o in graph.outputs() {
        let word = match o.role {
            Role::Output => "output",
            Role::Update => "update",
            Role::Metric => "metric",
        };
        let _ = writeln!(out, "  {word} {} = {}", quoted(&o.name), operand(o.node));
    }
    out + "}\n"
}
