//! Reverse-mode differentiation: appends the gradient computation to the graph it differentiates.

use crate::error::{Error, Result};
use crate::ir::ops::Context;
use crate::ir::{Binary, Graph, NodeId, Stage};
use std::collections::BTreeMap;

/// Appends the gradients of the scalar `of`, times `seed`, with respect to each of `wrt`.
///
/// `seed` is a scalar node: 1, or the loss scale. A value `of` does not depend on has no entry in the result.
/// Every value's whole gradient is marked as such, so that policies can treat it like the value.
pub fn gradients(graph: &mut Graph, of: NodeId, seed: NodeId, wrt: &[NodeId]) -> Result<BTreeMap<NodeId, NodeId>> {
    if graph.shape(of).rank() != 0 {
        let (name, ty) = (graph.name_of(of), graph.ty(of));
        return Err(Error::Graph(format!("`{name}` is {ty}; only a scalar can be differentiated")));
    }
    let needed = reaches(graph, wrt);
    let outer = std::mem::replace(&mut graph.stage, Stage::Backward);
    let mut pending: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::from([(of, vec![seed])]);
    let mut whole: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    while let Some((id, parts)) = pending.pop_last() {
        let mut dy = parts[0];
        for &part in &parts[1..] {
            dy = graph.binary(Binary::Add, dy, part)?;
        }
        graph.set_grad_of(dy, id);
        if graph.is_auto_named(dy) {
            let name = format!("d.{}", graph.name_of(id));
            graph.rename(dy, &name);
        }
        whole.insert(id, dy);
        let inputs = graph.inputs(id);
        if !inputs.iter().any(|i| needed[i.index()]) {
            continue;
        }
        let op = graph.op(id).clone();
        graph.origin = graph.node(id).origin.clone();
        let parts = op.vjp(Context { graph, node: id, x: &inputs, dy })?;
        for (input, part) in inputs.into_iter().zip(parts) {
            if let Some(part) = part.filter(|_| needed[input.index()]) {
                pending.entry(input).or_default().push(part);
            }
        }
    }
    graph.stage = outer;
    graph.origin = None;
    Ok(wrt.iter().filter_map(|w| whole.get(w).map(|&g| (*w, g))).collect())
}

/// For every node: does it depend on one of `wrt`?
fn reaches(graph: &Graph, wrt: &[NodeId]) -> Vec<bool> {
    let mut out = vec![false; graph.len()];
    for id in graph.ids() {
        out[id.index()] = wrt.contains(&id) || graph.inputs(id).iter().any(|i| out[i.index()]);
    }
    out
}
