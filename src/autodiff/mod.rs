//! Reverse-mode differentiation: appends the gradient computation to the graph it differentiates.

mod scan;

use crate::error::{Error, Result};
use crate::ir::ops::Context;
use crate::ir::{Binary, Graph, NodeId, Op, Stage, Take};
use std::collections::{BTreeMap, BTreeSet};

/// Appends the gradients of the scalar `of`, times `seed`, with respect to each of `wrt`.
///
/// `seed` is a scalar node: 1, or the loss scale. A value `of` does not depend on has no entry in the result.
/// Every value's whole gradient is marked as such, so that policies can treat it like the value.
///
/// # Errors
/// `of` is no scalar, or a value of `wrt` reaches it through what has no gradient: a scatter that multiplies or compares,
/// a loop whose number of steps is still a name.
pub fn gradients(graph: &mut Graph, of: NodeId, seed: NodeId, wrt: &[NodeId]) -> Result<BTreeMap<NodeId, NodeId>> {
    gradients_holding(graph, of, seed, wrt, &[])
}

/// [`gradients`], with the values of `held` taken for constants.
pub(crate) fn gradients_holding(
    graph: &mut Graph,
    of: NodeId,
    seed: NodeId,
    wrt: &[NodeId],
    held: &[NodeId],
) -> Result<BTreeMap<NodeId, NodeId>> {
    if graph.shape(of).rank() != 0 {
        let (name, ty) = (graph.name_of(of), graph.ty(of));
        return Err(Error::Graph(format!("`{name}` is {ty}; only a scalar can be differentiated")));
    }
    let outer = std::mem::replace(&mut graph.stage, Stage::Backward);
    let found = pull(graph, &[(of, seed)], wrt, held);
    graph.stage = outer;
    found
}

/// Appends the gradients with respect to each of `wrt` of some values whose own gradients are given.
fn pull(
    graph: &mut Graph,
    given: &[(NodeId, NodeId)],
    wrt: &[NodeId],
    held: &[NodeId],
) -> Result<BTreeMap<NodeId, NodeId>> {
    let mut needed = reaches(graph, wrt, held);
    let mut pending: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    given.iter().for_each(|&(of, dy)| pending.entry(of).or_default().push(dy));
    let mut whole: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    // Gradients of what is taken out of a loop, by the loop's first node: they go back through it together.
    let mut loops: BTreeMap<NodeId, BTreeMap<Take, NodeId>> = BTreeMap::new();
    while let Some((id, parts)) = pending.pop_last() {
        let dy = sum(graph, &parts)?;
        if let Some(dy) = dy {
            graph.set_grad_of(dy, id);
            if graph.is_auto_named(dy) {
                let name = format!("d.{}", graph.name_of(id));
                graph.rename(dy, &name);
            }
            whole.insert(id, dy);
        }
        let inputs = graph.inputs(id).to_vec();
        if !inputs.iter().any(|i| needed[i.index()]) {
            continue;
        }
        let op = graph.op(id).clone();
        let node = graph.node(id);
        let through = || format!("the gradient through {} `{}`", node.op.name(), node.name);
        (graph.origin, graph.module) = (Some(node.origin.clone().unwrap_or_else(through)), node.module.clone());
        let parts = if let Op::Scan(s) = &op {
            let first = graph.same_loop(id)[0];
            let taken = loops.entry(first).or_default();
            if let Some(dy) = dy {
                taken.insert(s.take.clone(), dy);
            }
            if id != first {
                pending.entry(first).or_default();
                continue;
            }
            scan::vjp(graph, id, s, taken, &inputs.iter().map(|i| needed[i.index()]).collect::<Vec<_>>())?
        } else if let Some(dy) = dy.filter(|_| !op.has_gradient())
            && let Some(spelled) = op.spelled(graph, &inputs)?
        {
            // Its gradient is that of its spelling, whose nodes come after all that are pending.
            for new in graph.ids().skip(needed.len()) {
                needed.push(graph.inputs(new).iter().any(|i| needed[i.index()]));
            }
            pending.entry(spelled).or_default().push(dy);
            continue;
        } else if let Some(dy) = dy {
            op.vjp(Context { graph, node: id, x: &inputs, dy })?
        } else {
            continue;
        };
        for (input, part) in inputs.into_iter().zip(parts) {
            if let Some(part) = part.filter(|_| needed[input.index()]) {
                pending.entry(input).or_default().push(part);
            }
        }
    }
    (graph.origin, graph.module) = (None, None);
    Ok(wrt.iter().filter_map(|w| whole.get(w).map(|&g| (*w, g))).collect())
}

fn sum(graph: &mut Graph, parts: &[NodeId]) -> Result<Option<NodeId>> {
    let Some((&first, rest)) = parts.split_first() else { return Ok(None) };
    let mut total = first;
    for &part in rest {
        total = graph.binary(Binary::Add, total, part)?;
    }
    Ok(Some(total))
}

/// For every node: does it depend on one of `wrt` other than through `held`?
fn reaches(graph: &Graph, wrt: &[NodeId], held: &[NodeId]) -> Vec<bool> {
    let mut out = vec![false; graph.len()];
    wrt.iter().for_each(|w| out[w.index()] = true);
    let held: BTreeSet<NodeId> = held.iter().copied().collect();
    for id in graph.ids() {
        let depends = graph.inputs(id).iter().any(|i| out[i.index()]);
        out[id.index()] |= depends && !held.contains(&id);
    }
    out
}
