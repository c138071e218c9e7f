//! Sums over rows so few and so long that several blocks share one are stored where elements are computed from them: a
//! kernel that went over such rows again would do so in as few blocks as there are rows. So a batch norm is a kernel for the
//! mean, one for the variance and one for the elements, while a layer norm, whose rows are many, is one.

use super::layout::is_shared;
use crate::error::Result;
use crate::ir::{Graph, NodeId, Op};

/// The graph with such sums stored as they are, which rounds nothing.
pub fn store_long_sums(graph: Graph) -> Result<Graph> {
    let (reach, toward) = reach(&graph);
    let long: Vec<bool> = graph.ids().map(|id| is_read_again(&graph, &reach, id)).collect();
    if !long.contains(&true) {
        return Ok(graph);
    }
    let mut out = Graph::successor(&graph);
    let (mut map, mut computed) = (Vec::with_capacity(graph.len()), Vec::with_capacity(graph.len()));
    for id in graph.ids() {
        let op = graph.op(id).clone();
        // What is stored anyway is stored from registers.
        let from: &[NodeId] = if matches!(op, Op::Put(_)) { &computed } else { &map };
        let x: Vec<NodeId> = graph.inputs(id).iter().map(|i| from[i.index()]).collect();
        out.follow(graph.node(id));
        let copy = match op.is_buffer() {
            true => out.transfer(&graph, id, op, &x, |f| map.get(f.index()).copied())?,
            false => out.add(op, &x)?,
        };
        computed.push(copy);
        map.push(copy);
        if long[id.index()] {
            let stored = out.add(Op::Put(graph.ty(id).format), &[copy])?;
            let reader = toward[id.index()].unwrap_or(id);
            out.rename(stored, &name_of_sum(&out, graph.name_of(reader), graph.op(id).name()));
            map[id.index()] = stored;
        }
    }
    for o in graph.outputs() {
        out.add_output(&o.name, o.role, map[o.node.index()]);
    }
    Ok(out)
}

/// Of each value, the most elements that something computed from it in the same kernel has, and a buffer that is written
/// there.
fn reach(graph: &Graph) -> (Vec<usize>, Vec<Option<NodeId>>) {
    let (mut reach, mut toward) = (vec![0; graph.len()], vec![None; graph.len()]);
    for user in graph.ids().rev() {
        let own = graph.ty(user).elements();
        let (here, buffer) = match graph.op(user).is_buffer() {
            true => (own, Some(user)),
            false => (own.max(reach[user.index()]), toward[user.index()]),
        };
        for &x in graph.inputs(user) {
            if here > reach[x.index()] {
                (reach[x.index()], toward[x.index()]) = (here, buffer);
            }
        }
    }
    (reach, toward)
}

/// The sum behind a buffer; a number tells those of the same kind apart.
fn name_of_sum(graph: &Graph, buffer: &str, kind: &str) -> String {
    let mut name = format!("{buffer}.{kind}");
    for n in 2.. {
        if graph.find(&name).is_none() {
            break;
        }
        name = format!("{buffer}.{kind}{n}");
    }
    name
}

/// Is this a sum over long rows from which something is computed element by element?
fn is_read_again(graph: &Graph, reach: &[usize], id: NodeId) -> bool {
    if !matches!(graph.op(id), Op::Reduce { .. }) {
        return false;
    }
    let elements = graph.ty(graph.inputs(id)[0]).elements();
    let rows = graph.ty(id).elements();
    reach[id.index()] >= elements && rows > 0 && is_shared(rows, elements / rows)
}
