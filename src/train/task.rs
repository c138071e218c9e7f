//! What a model is trained for: its inputs, its prediction and its loss.

use crate::error::{Error, Result};
use crate::ir::{Graph, Loss, NodeId, Op, Output, ReduceKind, Role, Shape, Type};

/// A bound model with a scalar loss.
#[derive(Clone, Debug)]
pub struct Task {
    pub graph: Graph,
    pub loss: NodeId,
    /// What is compared with the label; none if the loss is not one of ours.
    pub head: Option<Head>,
}

#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub prediction: NodeId,
    pub kind: Loss,
}

impl Task {
    /// The task of a model that computes its own loss (a scalar named `loss`, or the only scalar output), or to whose
    /// output a loss is added by name: `cross_entropy`, `mse`, `bce`.
    pub fn new(graph: Graph, loss: Option<&str>) -> Result<Task> {
        let mut graph = graph;
        let scalars: Vec<NodeId> =
            graph.outputs().iter().map(|o| o.node).filter(|&n| graph.shape(n).rank() == 0).collect();
        let own = graph.find("loss").filter(|&n| graph.shape(n).rank() == 0);
        let node = match loss {
            None => own.or(if scalars.len() == 1 { Some(scalars[0]) } else { None }),
            Some(name) => {
                match Loss::ALL.into_iter().find(|l| l.name() == name || (name == "bce" && *l == Loss::BceWithLogits)) {
                    Some(kind) => Some(add_loss(&mut graph, kind)?),
                    None => Some(graph.find(name).ok_or_else(|| {
                        Error::Request(format!(
                            "`{name}` is neither a loss (cross_entropy, mse, bce) nor a value of the model"
                        ))
                    })?),
                }
            }
        };
        let Some(loss) = node else {
            let outputs: Vec<String> =
                graph.outputs().iter().map(|o| format!("{}: {}", o.name, graph.ty(o.node))).collect();
            return Err(Error::Request(format!(
                "model `{}` has no loss (its outputs: {}); add one with --loss cross_entropy|mse|bce, or name a scalar value",
                graph.name,
                outputs.join(", ")
            )));
        };
        if graph.shape(loss).rank() != 0 {
            return Err(Error::Request(format!(
                "the loss `{}` is {}, not a scalar",
                graph.name_of(loss),
                graph.ty(loss)
            )));
        }
        let head = find_head(&graph, loss);
        Ok(Task { graph, loss, head })
    }

    /// The forward graph that yields the prediction alone, for evaluation.
    pub fn prediction_graph(&self) -> Result<Option<Graph>> {
        let Some(head) = self.head else { return Ok(None) };
        let output = Output { name: "prediction".into(), role: Role::Output, node: head.prediction };
        self.graph.prune(&[output]).map(Some)
    }

    /// Inputs that are not labels, and labels, in order.
    pub fn inputs(&self, labels: bool) -> Vec<NodeId> {
        self.graph
            .sources()
            .filter(|&id| matches!(self.graph.op(id), Op::Input { label, .. } if *label == labels))
            .collect()
    }
}

/// Puts a loss on the model's only output; the label is a new input. What a batch norm updates is no output to train on.
fn add_loss(graph: &mut Graph, kind: Loss) -> Result<NodeId> {
    let outputs: Vec<Output> = graph.outputs().iter().filter(|o| o.role != Role::Update).cloned().collect();
    let [output] = &outputs[..] else {
        let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
        return Err(Error::Request(format!(
            "the model has {} outputs ({}); a loss can be added to a model with one",
            outputs.len(),
            names.join(", ")
        )));
    };
    let x = output.node;
    let ty = if kind.is_elementwise() {
        graph.ty(x).clone()
    } else {
        let dims = &graph.shape(x).0;
        Type::new(Shape(dims[..dims.len().saturating_sub(1)].to_vec()), crate::format::Format::I64)
    };
    let label = graph.add_named("label", Op::Input { label: true, ty, copy_of: None }, &[])?;
    let rows = graph.add(Op::Loss(kind), &[x, label])?;
    let loss = graph.reduce_all(ReduceKind::Mean, rows)?;
    graph.rename(loss, "loss");
    Ok(loss)
}

/// The named loss nearest above the scalar.
fn find_head(graph: &Graph, loss: NodeId) -> Option<Head> {
    let mut stack = vec![loss];
    while let Some(id) = stack.pop() {
        if let Op::Loss(kind) = *graph.op(id) {
            return Some(Head { prediction: graph.inputs(id)[0], kind });
        }
        stack.extend(graph.inputs(id));
    }
    None
}
