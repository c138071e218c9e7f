//! A model as it acts in inference: its forward graph alone, and its weights.

use super::compile::Settings;
use super::task::{Task, scores_behind};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Output};
use crate::model::{Bound, Model, Purpose, Weights, unlabelled_outputs};
use crate::plan::{attend, recognise};
use crate::rewrite::RuleSet;
use std::collections::BTreeMap;

/// A model as it acts in inference.
#[derive(Clone, Debug)]
pub struct Inference {
    /// The forward graph, recognised; its outputs are the model's.
    pub graph: Graph,
    /// Values that the file holds, by parameter and constant.
    pub weights: Weights,
    /// As the file has it, without the values.
    pub(super) bound: Bound,
}

impl Inference {
    /// Binds a model for inference: without loss, dropout and batch statistics.
    ///
    /// # Errors
    /// Sizes that are missing, and a model none of whose outputs can be computed without labels.
    pub fn new(settings: &Settings, model: &Model, rules: &RuleSet) -> Result<Inference> {
        let mut bound = model.bind(&settings.sizes, Purpose::Inference)?;
        let graph = attend(recognise(&bound.graph, rules)?.0, &bound.weights, |_| false)?;
        let outputs = unlabelled_outputs(&graph);
        let graph = if outputs.is_empty() {
            let task = Task::new(graph, settings.loss.as_deref(), &settings.objective, &mut bound.weights)?;
            task.prediction_graph()?.ok_or_else(|| {
                Error::Request("every output of the model needs its label, and its loss is of no prediction".into())
            })?
        } else {
            graph.prune(&outputs)?
        };
        let weights = std::mem::take(&mut bound.weights);
        Ok(Inference { graph, weights, bound })
    }

    /// Samples that one run takes.
    pub fn batch(&self) -> usize {
        let is_input = |id: &NodeId| matches!(self.graph.op(*id), Op::Input { .. });
        let first = self.graph.sources().find(is_input);
        first.and_then(|id| self.graph.ty(id).dims().first().copied()).unwrap_or(1)
    }

    /// Values that the model is judged by, by the names of its outputs: what it yields, or, where that is whole numbers alone
    /// (a class, a token), the scores behind them.
    pub fn results(&self) -> BTreeMap<String, String> {
        let g = &self.graph;
        let named = |(o, id): (&Output, NodeId)| (o.name.clone(), g.name_of(id).to_owned());
        let yields = |o: &&Output| g.ty(o.node).format == Format::F32 && !g.op(o.node).is_source();
        let yielded: BTreeMap<_, _> = g.outputs().iter().filter(yields).map(|o| named((o, o.node))).collect();
        if !yielded.is_empty() {
            return yielded;
        }
        let scores = g.outputs().iter().filter_map(|o| Some((o, scores_behind(g, o.node)?)));
        scores.filter(|(_, id)| !g.op(*id).is_source()).map(named).collect()
    }

    /// The graph with weights that are given to it, as batches are: copies of them in other formats cost nothing.
    ///
    /// # Errors
    /// Operations that do not type; those of a bound model do.
    pub fn fed(&self) -> Result<Graph> {
        self.graph.map_ops(|op| match op {
            Op::Param { ty, .. } | Op::State { ty, .. } => Op::Input { label: false, ty: ty.clone(), copy_of: None },
            op => op.clone(),
        })
    }

    /// A planned graph with weights that it holds.
    pub(super) fn holding(&self, planned: &Graph) -> Result<Graph> {
        planned.map_ids(|id, op| match op {
            Op::Input { ty, copy_of: Some(of), .. } if self.weights.contains_key(of) => {
                Op::State { init: Init::Copy(of.clone()), ty: ty.clone() }
            }
            Op::Input { ty, copy_of: None, .. } if self.weights.contains_key(planned.name_of(id)) => {
                Op::Param { init: Init::Data, ty: ty.clone() }
            }
            op => op.clone(),
        })
    }

    /// Weights without values cannot be run.
    pub(super) fn require_values(&self) -> Result<()> {
        let holds = |id: &NodeId| matches!(self.graph.op(*id), Op::Param { .. } | Op::State { .. });
        let missing = self.graph.sources().filter(holds).find(|&id| !self.weights.contains_key(self.graph.name_of(id)));
        match missing {
            Some(id) => Err(Error::Request(format!(
                "parameter `{}` has no value in the model's file; train the model, write it with `mantissa export` and plan that",
                self.graph.name_of(id)
            ))),
            None => Ok(()),
        }
    }
}
