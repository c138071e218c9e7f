//! Operands of attention read where they lie.
//!
//! Heads are slices of what a projection stored, in another order of axes. Attention's kernels step over memory as they are
//! told, so what would only copy such an operand is left out: a `put` of a view of memory in the same format, whose rows are
//! in one piece and begin where a wide load can.

use super::kernel::WIDE;
use super::region::resolve_view;
use crate::error::Result;
use crate::ir::{Graph, NodeId, Op};

/// The same graph, with attention's operands as views of memory where they can be.
pub fn read_where_it_lies(graph: Graph) -> Result<Graph> {
    let reads = |id: NodeId| matches!(graph.op(id), Op::Attention { .. });
    if !graph.ids().any(reads) {
        return Ok(graph);
    }
    let mut out = Graph::successor(&graph);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let mut x: Vec<NodeId> = graph.inputs(id).iter().map(|x| map[x.index()]).collect();
        if reads(id) {
            for x in &mut x {
                *x = lying(&mut out, *x)?;
            }
        }
        map.push(out.transfer(&graph, id, graph.op(id).clone(), &x, |f| map.get(f.index()).copied())?);
    }
    for o in graph.outputs() {
        out.add_output(&o.name, o.role, map[o.node.index()]);
    }
    without_idle_copies(&out)
}

/// What an operand is a mere copy of, or itself.
fn lying(out: &mut Graph, id: NodeId) -> Result<NodeId> {
    let copied = match (out.op(id).clone(), out.inputs(id)) {
        (Op::Put(_), &[x]) => x,
        (Op::Alias { dims }, &[copy]) if matches!(out.op(copy), Op::Put(_)) => {
            let x = out.inputs(copy)[0];
            if resolve_view(out, x).is_none() {
                return Ok(id);
            }
            out.reshape(x, &dims)?
        }
        _ => return Ok(id),
    };
    let wide = |n: usize| n.is_multiple_of(WIDE);
    let is_read = resolve_view(out, copied).is_some_and(|(buffer, view)| {
        let steps = view.strides.iter().zip(&view.dims);
        out.ty(buffer).format == out.ty(id).format
            && view.guards.is_empty()
            && view.strides.last() == Some(&1)
            && wide(view.offset)
            && steps.rev().skip(1).all(|(s, d)| wide(*s) || *d == 1)
    });
    Ok(if is_read { copied } else { id })
}

/// The graph without copies that nobody reads, and what only they need. Sources stay, read or not.
fn without_idle_copies(graph: &Graph) -> Result<Graph> {
    let mut live = vec![false; graph.len()];
    graph.outputs().iter().for_each(|o| live[o.node.index()] = true);
    for id in graph.ids().rev() {
        live[id.index()] |= graph.op(id).is_source();
        if live[id.index()] {
            graph.inputs(id).iter().for_each(|x| live[x.index()] = true);
        }
    }
    let mut out = Graph::successor(graph);
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let x: Vec<NodeId> = graph.inputs(id).iter().map(|x| map[x.index()]).collect();
        map.push(match live[id.index()] {
            true => {
                let place = |f: NodeId| map.get(f.index()).copied().filter(|&to| to != NodeId::end());
                out.transfer(graph, id, graph.op(id).clone(), &x, place)?
            }
            false => NodeId::end(),
        });
    }
    for o in graph.outputs() {
        out.add_output(&o.name, o.role, map[o.node.index()]);
    }
    Ok(out)
}
