//! What a model is trained for: its inputs, its prediction and its loss.

use super::loss::{Criterion, LossKind, Objective};
use crate::error::{Error, Result};
use crate::ir::{Graph, NodeId, Op, Output, Role};
use crate::model::Weights;

/// A bound model with a scalar loss.
#[derive(Clone, Debug)]
pub struct Task {
    /// The forward graph, the loss in it.
    pub graph: Graph,
    /// The scalar that gradients are taken of.
    pub loss: NodeId,
    /// What is compared with the label; none if the loss is not one of ours.
    pub head: Option<Head>,
}

/// What evaluation scores.
#[derive(Clone, Debug)]
pub struct Head {
    /// What is compared with the label; with `bce`, the logits behind a sigmoid.
    pub prediction: NodeId,
    /// The loss, as the host computes it.
    pub criterion: Criterion,
}

impl Task {
    /// The task of a model that computes its own loss (a scalar named `loss`, or the only scalar output), or to whose
    /// prediction a loss is added by name. Values that the loss needs are added to `weights`.
    ///
    /// # Errors
    /// A loss, prediction or label that is not there or does not fit, and options of a loss that is the model's own.
    pub fn new(graph: Graph, loss: Option<&str>, options: &Objective, weights: &mut Weights) -> Result<Task> {
        let mut graph = graph;
        if let Some(kind) = loss.and_then(LossKind::named) {
            let criterion = Criterion { kind, options: options.clone() };
            let (loss, prediction) = add_loss(&mut graph, &criterion, weights)?;
            return Ok(Task { graph, loss, head: Some(Head { prediction, criterion }) });
        }
        if *options != (Objective { label: options.label.clone(), ..Objective::default() }) {
            return Err(Error::Request(format!(
                "the loss is the model's own, so options of a loss do not apply; choose one with --loss {}",
                LossKind::NAMES.map(|n| n.0).join("|")
            )));
        }
        if let Some(label) = &options.label {
            graph = with_label(&graph, label)?;
        }
        // What a batch norm counts is no loss.
        let yielded = graph.outputs().iter().filter(|o| o.role != Role::Update);
        let scalars: Vec<NodeId> = yielded.map(|o| o.node).filter(|&n| graph.shape(n).rank() == 0).collect();
        let own = graph.find("loss").filter(|&n| graph.shape(n).rank() == 0);
        let node = match loss {
            None => own.or(if scalars.len() == 1 { Some(scalars[0]) } else { None }),
            Some(name) => {
                let node = graph.outputs().iter().find(|o| o.name == name).map(|o| o.node).or(graph.find(name));
                Some(node.ok_or_else(|| {
                    Error::Request(format!(
                        "`{name}` is neither a loss ({}) nor a value of the model (its outputs: {})",
                        LossKind::choices(name),
                        outputs(&graph)
                    ))
                })?)
            }
        };
        let Some(loss) = node else {
            return Err(Error::Request(format!(
                "model `{}` has no loss (its outputs: {}); add one with --loss {}, or name a scalar value",
                graph.name,
                outputs(&graph),
                LossKind::NAMES.map(|n| n.0).join("|")
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

    /// The task of a graph that [`Task::new`] made, by the names of its loss and prediction.
    pub fn restore(graph: Graph, loss: &str, prediction: Option<(String, Criterion)>) -> Option<Task> {
        let head = match prediction {
            Some((name, criterion)) => Some(Head { prediction: graph.find(&name)?, criterion }),
            None => None,
        };
        Some(Task { loss: graph.find(loss)?, head, graph })
    }

    /// The forward graph that yields the prediction alone, for evaluation.
    pub(super) fn prediction_graph(&self) -> Result<Option<Graph>> {
        let Some(head) = &self.head else { return Ok(None) };
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

fn outputs(graph: &Graph) -> String {
    let outputs = graph.outputs().iter().filter(|o| o.role != Role::Update);
    outputs.map(|o| format!("{}: {}", o.name, graph.ty(o.node))).collect::<Vec<_>>().join(", ")
}

/// The same graph with an input declared a label.
fn with_label(graph: &Graph, name: &str) -> Result<Graph> {
    let is_input = |id: &NodeId| matches!(graph.op(*id), Op::Input { .. });
    let Some(id) = graph.find(name).filter(is_input) else {
        let names: Vec<&str> = graph.sources().filter(is_input).map(|id| graph.name_of(id)).collect();
        return Err(Error::Request(format!(
            "the model has no input `{name}` to be the label; its inputs are {}",
            names.join(", ")
        )));
    };
    graph.map_ids(|other, op| match op {
        Op::Input { ty, copy_of, .. } if other == id => {
            Op::Input { label: true, ty: ty.clone(), copy_of: copy_of.clone() }
        }
        op => op.clone(),
    })
}

/// Puts a loss on the prediction, which is the only output where none is named. The label is a new input, or the one
/// named. What a batch norm updates is no output to train on.
fn add_loss(graph: &mut Graph, criterion: &Criterion, weights: &mut Weights) -> Result<(NodeId, NodeId)> {
    let candidates: Vec<Output> = graph.outputs().iter().filter(|o| o.role != Role::Update).cloned().collect();
    let chosen = match &criterion.options.prediction {
        Some(name) => candidates.iter().find(|o| o.name == *name).map(|o| o.node).or(graph.find(name)),
        None if candidates.len() == 1 => Some(candidates[0].node),
        None => {
            return Err(Error::Request(format!(
                "the model has {} outputs ({}); say which one the loss compares with the label: --prediction NAME",
                candidates.len(),
                outputs(graph)
            )));
        }
    };
    let Some(x) = chosen else {
        return Err(Error::Request(format!(
            "the model has no output `{}`; its outputs are {}",
            criterion.options.prediction.as_deref().unwrap_or(""),
            outputs(graph)
        )));
    };
    if !graph.ty(x).format.is_float() {
        return Err(Error::Request(format!(
            "`{}` is {}: whole numbers have no gradient, so no loss can train it; train a value that it is computed from: --prediction {}",
            graph.name_of(x),
            graph.ty(x),
            scores_behind(graph, x).map_or("NAME", |id| graph.name_of(id))
        )));
    }
    let ty = criterion.label_type(graph.ty(x))?;
    let label = match &criterion.options.label {
        Some(name) if graph.find(name).is_some() => {
            *graph = with_label(graph, name)?;
            graph.find(name).expect("it was there before")
        }
        name => {
            let name = name.clone().unwrap_or_else(|| graph.free_name("label"));
            graph.add_named(name, Op::Input { label: true, ty, copy_of: None }, &[])?
        }
    };
    let x = criterion.compared(graph, x);
    let loss = criterion.build(graph, x, label, weights)?;
    graph.rename(loss, "loss");
    Ok((loss, x))
}

/// The nearest value in floating point that a whole-number one is computed from, by the largest operands.
pub(super) fn scores_behind(graph: &Graph, of: NodeId) -> Option<NodeId> {
    let mut at = of;
    while !graph.ty(at).format.is_float() {
        at = *graph.inputs(at).iter().max_by_key(|i| graph.ty(**i).elements())?;
    }
    Some(at)
}

/// The named loss nearest above the scalar.
fn find_head(graph: &Graph, loss: NodeId) -> Option<Head> {
    let mut seen = vec![false; graph.len()];
    let mut stack = vec![loss];
    while let Some(id) = stack.pop() {
        if std::mem::replace(&mut seen[id.index()], true) {
            continue;
        }
        if let Op::Loss(kind) = *graph.op(id) {
            let criterion = Criterion::plain(kind.into());
            return Some(Head { prediction: graph.inputs(id)[0], criterion });
        }
        stack.extend(graph.inputs(id));
    }
    None
}
