//! Graph to text. Every node is a line except constants, which stand where they are used. The body of a scan stands
//! above the first node that runs it.

use super::is_plain_name;
use crate::ir::graph::{Graph, NodeId, Role};
use crate::ir::ops::{Body, Op};
use std::fmt::Write;

/// A name as text writes it: in backticks if it is no plain word.
pub fn quoted(name: &str) -> String {
    if is_plain_name(name) { name.to_owned() } else { format!("`{name}`") }
}

/// The text of a graph; [`super::parse`] reads it back to an equal one.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    block(&mut out, graph, "model", &quoted(&graph.name), "");
    out
}

fn block(out: &mut String, graph: &Graph, word: &str, name: &str, pad: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{pad}{word} {name} {{");
    let mut bodies: Vec<(&Body, String)> = Vec::new();
    for id in graph.ids().filter(|&id| !matches!(graph.op(id), Op::Const(_))) {
        let body = match graph.op(id) {
            Op::Scan(s) => body_name(out, &mut bodies, &s.body, pad),
            _ => String::new(),
        };
        let _ = writeln!(out, "{pad}  {}", line(graph, id, &body));
    }
    for o in graph.outputs() {
        let word = match o.role {
            Role::Output => "output",
            Role::Update => "update",
            Role::Metric => "metric",
        };
        let _ = writeln!(out, "{pad}  {word} {} = {}", quoted(&o.name), operand(graph, o.node));
    }
    let _ = writeln!(out, "{pad}}}");
}

/// A node as its line of the text has it, a loop's body by its own name.
pub fn declaration(graph: &Graph, id: NodeId) -> String {
    let body = match graph.op(id) {
        Op::Scan(s) => quoted(&s.body.graph().name),
        _ => String::new(),
    };
    line(graph, id, &body)
}

/// A node's line, but for what it stands behind; `body` is the name of a loop's.
fn line(graph: &Graph, id: NodeId, body: &str) -> String {
    let (op, ty, name) = (graph.op(id), graph.ty(id), quoted(graph.name_of(id)));
    match op {
        Op::Input { ty, copy_of, .. } => {
            let copy = copy_of.as_ref().map_or(String::new(), |of| format!(" = copy({})", quoted(of)));
            format!("{} {name}: {ty}{copy}", op.name())
        }
        Op::Const(c) => format!("{name}: {ty} = {c}"),
        Op::Param { init, ty } | Op::State { init, ty } => format!("{} {name}: {ty} = {init}", op.name()),
        _ => {
            let mut parts: Vec<String> = graph.inputs(id).iter().map(|&x| operand(graph, x)).collect();
            parts.extend(op.attrs().into_iter().map(|(k, v)| match k {
                "body" => format!("body={body}"),
                _ => format!("{k}={v}"),
            }));
            format!("{name}: {ty} = {}({})", op.name(), parts.join(", "))
        }
    }
}

/// An operand as text has it: constants stand where they are read.
fn operand(graph: &Graph, id: NodeId) -> String {
    match graph.op(id) {
        Op::Const(c) => c.to_string(),
        _ => quoted(graph.name_of(id)),
    }
}

/// The name a body goes by in this graph; its text is written where it is new.
fn body_name<'a>(out: &mut String, bodies: &mut Vec<(&'a Body, String)>, body: &'a Body, pad: &str) -> String {
    if let Some((_, name)) = bodies.iter().find(|(b, _)| *b == body) {
        return name.clone();
    }
    let own = &body.graph().name;
    let taken = |n: &str| bodies.iter().any(|(_, name)| name == n);
    let mut name = quoted(own);
    for n in 2.. {
        if !taken(&name) {
            break;
        }
        name = quoted(&format!("{own}.{n}"));
    }
    block(out, body.graph(), "body", &name, &format!("{pad}  "));
    bodies.push((body, name.clone()));
    name
}
