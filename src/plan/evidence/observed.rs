//! A step in which every value can be looked at: each is stored as f32, whatever that costs.

use crate::error::Result;
use crate::format::Format;
use crate::ir::{Body, Graph, NodeId, Op, Role, Scan, Stage, Take};
use crate::lower::{resolve_view, view_through};
use crate::plan::copy_name;
use std::collections::BTreeMap;

/// The same step with every computed value in memory, in the format its registers have. Views stay views.
///
/// # Errors
/// Operations that do not type; a verified step has none.
pub fn observed(step: &Graph) -> Result<Graph> {
    store_all(step, &BTreeMap::new())
}

/// `named` are values of a body that its loop hands out, by the name they are taken by.
fn store_all(graph: &Graph, named: &BTreeMap<String, NodeId>) -> Result<Graph> {
    let mut out = Graph::new(&graph.name);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    let mut bodies: BTreeMap<NodeId, Body> = BTreeMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        out.follow(node);
        let mut x: Vec<NodeId> = graph.inputs(id).iter().map(|i| map[i.index()]).collect();
        for (operand, at) in x.iter_mut().enumerate() {
            if !is_readable(&out, &node.op, operand, *at) {
                *at = stored(&mut out, *at)?;
            }
        }
        let op = match &node.op {
            Op::Scan(scan) => {
                let nodes = graph.same_loop(id);
                let body = match bodies.get(&nodes[0]) {
                    Some(b) => b.clone(),
                    None => observed_body(graph, scan, &nodes)?,
                };
                bodies.insert(nodes[0], body.clone());
                Op::Scan(Scan { body, ..scan.clone() })
            }
            op => op.clone(),
        };
        // A view of what cannot be said as a view of memory is one of a copy.
        if let (true, [input]) = (op.is_view(), &mut x[..])
            && let Some((_, view)) = resolve_view(&out, *input)
            && view_through(&op, &view, &node.ty.dims()).is_none()
        {
            *input = stored(&mut out, *input)?;
        }
        let copy = out.transfer(graph, id, op, &x, |f| map.get(f.index()).copied())?;
        let is_view = node.op.is_view() || matches!(node.op, Op::Const(_) | Op::Iota { .. });
        map.push(if is_view { copy } else { stored(&mut out, copy)? });
    }
    for o in graph.outputs() {
        let node = stored(&mut out, map[o.node.index()])?;
        out.add_output(&o.name, o.role, node);
    }
    for (name, id) in named.iter().filter(|(n, _)| graph.output(n, Role::Output).is_none()) {
        let node = stored(&mut out, map[id.index()])?;
        out.add_output(name, Role::Output, node);
    }
    Ok(out)
}

/// Can an operation read this operand where it is, rather than from memory of its own?
fn is_readable(graph: &Graph, op: &Op, operand: usize, at: NodeId) -> bool {
    match op {
        Op::Scan(_) => graph.op(at).is_buffer(),
        op if op.is_product() => graph.op(at).is_buffer(),
        Op::Gather { .. } if operand == 0 => resolve_view(graph, at).is_some_and(|(_, v)| v.guards.is_empty()),
        // These read their operands where they lie.
        op if op.is_arrangement()
            && !matches!(op, Op::Broadcast { .. } | Op::Reshape { .. } | Op::Transpose { .. }) =>
        {
            resolve_view(graph, at).is_some()
        }
        _ => true,
    }
}

fn stored(out: &mut Graph, id: NodeId) -> Result<NodeId> {
    if out.op(id).is_buffer() {
        return Ok(id);
    }
    let format = out.ty(id).format;
    let put = out.add(Op::Put(format), &[id])?;
    let name = copy_name(out.name_of(id), format);
    out.rename(put, &name);
    Ok(put)
}

fn observed_body(graph: &Graph, scan: &Scan, nodes: &[NodeId]) -> Result<Body> {
    let mut named = BTreeMap::new();
    for &n in nodes {
        if let Op::Scan(Scan { take: Take::Stack(v), .. }) = graph.op(n) {
            named.insert(v.clone(), scan.body.value(v).expect("checked by the type rule"));
        }
    }
    Ok(Body::new(store_all(scan.body.graph(), &named)?))
}

/// Is this a value that a plan might store in a narrow format?
pub(in crate::plan) fn is_subject(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let spread = matches!(node.op, Op::Broadcast { .. } | Op::Window { .. } | Op::Unwindow { .. });
    let known = matches!(node.op, Op::Const(_) | Op::Iota { .. } | Op::Input { label: true, .. });
    node.ty.format == Format::F32 && node.ty.shape.rank() > 0 && node.stage != Stage::Update && !spread && !known
}
