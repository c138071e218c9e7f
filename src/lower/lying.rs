//! Operands of attention read where they lie.
//!
//! Heads are slices of what a projection stored, in another order of axes. Attention's kernels step over memory as they are
//! told, so what would only copy such an operand is left out: a `put` of a view of memory in the same format, whose rows are
//! in one piece and begin where a wide load can.

use super::region::resolve_view;
use crate::error::Result;
use crate::ir::{Graph, NodeId, Op};

/// The same graph, with attention's operands as views of memory where they can be.
pub fn read_where_it_lies(graph: Graph) -> Result<Graph> {
    let reads = |id: NodeId| matches!(graph.op(id), Op::Attention { .. });
    if !graph.ids().any(reads) {
        return Ok(graph);
    }
    let read = graph.made_anew(|out, id, map| {
        if !reads(id) {
            return Ok(None);
        }
        let inputs = graph.inputs(id).iter().map(|x| lying(out, map[x.index()]));
        let x = inputs.collect::<Result<Vec<NodeId>>>()?;
        out.transfer(&graph, id, graph.op(id).clone(), &x, |f| map.get(f.index()).copied()).map(Some)
    })?;
    // Copies that nobody reads any more are not made.
    read.without_idle()
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
    let is_read = resolve_view(out, copied)
        .is_some_and(|(buffer, view)| out.ty(buffer).format == out.ty(id).format && view.has_wide_rows());
    Ok(if is_read { copied } else { id })
}
