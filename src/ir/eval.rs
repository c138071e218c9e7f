//! The reference evaluator: every node in f64, one after the other. `put` and `cast` round, nothing else does.

use super::graph::{Graph, NodeId};
use super::tensor::Tensor;

/// One node from its operands' values.
pub fn evaluate_node(graph: &Graph, id: NodeId, values: &[Option<Tensor>]) -> Tensor {
    let x: Vec<&Tensor> =
        graph.inputs(id).iter().map(|i| values[i.index()].as_ref().expect("operands come first")).collect();
    graph.op(id).eval(&x, graph.ty(id))
}

/// Every node's value, given the sources'. Panics if a source is missing: that is a bug of the caller.
pub fn evaluate(graph: &Graph, mut source: impl FnMut(NodeId) -> Tensor) -> Vec<Tensor> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.len()];
    for id in graph.ids() {
        values[id.index()] =
            Some(if graph.op(id).is_source() { source(id) } else { evaluate_node(graph, id, &values) });
    }
    values.into_iter().flatten().collect()
}
