//! Inference planned: a model's forward graph alone, to be written as ONNX in mixed precision.

use super::auto::{Stage, within_budget};
use super::bench::Bench;
use super::calibrate::{Effort, Laboratory, Trial};
use super::compile::Settings;
use super::forward::Inference;
use super::gradients::as_read;
use super::subject::Subject;
use super::task::scores_behind;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, NodeId, Op, Role};
use crate::model::{Bound, Mixed, Model, NodeFormats, Weights, Wish, Wishes};
use crate::plan::{Budget, Calibration, Planned, Policy, beyond, gradient_output, observed};
use crate::rewrite::RuleSet;
use std::collections::BTreeMap;

/// A model planned for inference.
pub struct PlannedInference {
    /// Its forward graph before planning.
    pub model: Inference,
    /// The plan; its parameters and states are those of the model.
    pub planned: Planned,
    /// What it was planned with; under `auto`, with the last calibration.
    pub settings: Settings,
    /// What measured errors are shares of.
    pub budget: Budget,
    /// Which nodes of the model's file run in narrow formats, if that was asked for.
    pub formats: Option<NodeFormats>,
}

impl AsMut<Planned> for PlannedInference {
    fn as_mut(&mut self) -> &mut Planned {
        &mut self.planned
    }
}

/// Plans a model for inference; under policy `auto`, by what samples show. With `as_file`, what is measured and kept to the
/// budget is the model's own file in mixed precision, as a runtime computes it.
///
/// # Errors
/// Where a parameter has no value, and where a file was asked for of a model that has none.
pub fn plan_inference(
    settings: &Settings,
    model: &Model,
    rules: &RuleSet,
    bench: Option<Bench>,
    effort: Effort,
    as_file: bool,
    progress: &dyn Fn(Stage),
) -> Result<PlannedInference> {
    let mut settings = Settings { calibration: None, ..settings.clone() };
    let effort = Effort { budget: effort.budget.of_outputs()?, ..effort };
    let inference = Inference::new(&settings, model, rules)?;
    let fed = inference.fed()?;
    settings.overrides.check(&fed, settings.request()?.allowed())?;
    let attempt = |settings: &Settings| -> Result<PlannedInference> {
        let mut planned = settings.plan(&fed, rules)?;
        planned.graph = inference.holding(&planned.graph)?;
        let formats = as_file.then(|| node_formats(model, &inference, &planned, settings.calibration.as_deref()));
        let formats = formats.transpose()?;
        Ok(PlannedInference {
            model: inference.clone(),
            planned,
            settings: settings.clone(),
            budget: effort.budget,
            formats,
        })
    };
    let Some(bench) = bench else { return attempt(&settings) };
    inference.require_values()?;
    let before = settings.clone();
    let tick = || progress(Stage::Ran);
    let subject = Subject::inference(&inference, bench, effort.batches, &tick)?;
    let mut lab = Laboratory::new(&before, subject, bench, effort, &tick)?;
    let tried = |settings: &Settings| {
        let out = attempt(settings)?;
        let trial = out.trial(model)?;
        Ok((out, trial))
    };
    if settings.policy == Policy::Auto {
        return within_budget(&mut lab, &mut settings, progress, tried);
    }
    // Lists keep to no budget, but what they do can be told.
    progress(Stage::Planning);
    let (mut out, trial) = tried(&settings)?;
    progress(Stage::Measuring);
    out.planned.measured = Some(lab.measure(&trial)?);
    Ok(out)
}

impl PlannedInference {
    /// The graph that is measured: the plan, or the model's file as a runtime computes it.
    fn trial(&self, model: &Model) -> Result<Trial> {
        let (mut graph, constants) = match &self.formats {
            Some(formats) => {
                let Bound { graph, weights, .. } = model.bind_mixed(&self.settings.sizes, formats)?;
                (graph, weights)
            }
            None => (self.planned.graph.clone(), Weights::new()),
        };
        let mut outputs = BTreeMap::new();
        for (output, value) in self.model.results() {
            let node = graph.outputs().iter().find(|o| o.name == output).map(|o| o.node);
            let is_yielded = node.is_some_and(|id| graph.ty(id).format.is_float());
            let read = if is_yielded { output.clone() } else { self.hand_out(&mut graph, node, &value)? };
            outputs.insert(output, read);
        }
        let graph = if self.formats.is_some() { observed(&graph)? } else { graph };
        Ok(Trial { graph, outputs, constants })
    }

    /// Adds an output for the scores behind a whole number, and returns its name.
    fn hand_out(&self, graph: &mut Graph, whole: Option<NodeId>, scores: &str) -> Result<String> {
        let node = match &self.formats {
            Some(_) => whole.and_then(|id| scores_behind(graph, id)),
            None => {
                let place = self.model.graph.find(scores).and_then(|id| *self.planned.places.get(id.index())?);
                place.map(|id| as_read(graph, id)).transpose()?
            }
        };
        let node = node.ok_or_else(|| {
            Error::Request(format!(
                "the model yields whole numbers, and the plan does not compute the scores behind them, `{scores}`, by which it could be judged; make them an output of the model"
            ))
        })?;
        let name = gradient_output(scores);
        graph.add_output(&name, Role::Output, node);
        Ok(name)
    }

    /// The model's file in mixed precision; `notes` go into its metadata, and `data_name` is what a file of values will be
    /// called.
    ///
    /// # Errors
    /// A model that is no ONNX file, or whose external data cannot be read.
    pub fn mixed(&self, model: &Model, notes: &[(String, String)], data_name: &str) -> Result<Option<Mixed>> {
        let Some(formats) = &self.formats else { return Ok(None) };
        model.mixed(&self.model.bound, formats, notes, data_name).map(Some)
    }
}

/// Which nodes of the model's file run narrow by a plan.
fn node_formats(
    model: &Model,
    inference: &Inference,
    planned: &Planned,
    calibration: Option<&Calibration>,
) -> Result<NodeFormats> {
    let (step, g) = (&inference.graph, &planned.graph);
    let place = |id: NodeId| planned.places.get(id.index()).copied().flatten();
    let of = |value: &str| {
        let id = step.find(value);
        let product = id.and_then(|id| product_inside(step, id)).and_then(place);
        let multiplied = product.and_then(|at| g.op(at).multiplies_in());
        match (multiplied, id.and_then(place)) {
            (Some(f), _) => narrow_or_wide(f),
            (None, Some(at)) => wish(g, at),
            (None, None) => Wish::Unknown,
        }
    };
    // Without data there is still what follows from the constants.
    let known: BTreeMap<Format, Vec<bool>> = Format::STORED.into_iter().map(|f| (f, beyond(step, f))).collect();
    let holds = |value: &str, format: Format| {
        let Some(c) = calibration else {
            let is_beyond = |id: NodeId| known.get(&format).is_some_and(|k| k[id.index()]);
            return !step.find(value).is_some_and(is_beyond);
        };
        let spread = step.find(value).and_then(|id| c.spread(step, id)).or(c.evidence.values.get(value));
        spread.is_some_and(|s| Calibration::in_range(s, format))
    };
    model.node_formats(&inference.bound, Wishes { of: &of, holds: &holds })
}

fn narrow_or_wide(f: Format) -> Wish {
    if f.is_low() { Wish::Narrow(f) } else { Wish::Wide }
}

/// The product that a node of the file is made of, by the value it yields. What a node computes on the way has no name in
/// the file (a product before its bias, for one).
fn product_inside(step: &Graph, value: NodeId) -> Option<NodeId> {
    let mut stack = vec![value];
    while let Some(id) = stack.pop() {
        if step.op(id).multiplies_in().is_some() {
            return Some(id);
        }
        stack.extend(step.inputs(id).iter().copied().filter(|&x| step.is_auto_named(x)));
    }
    None
}

/// What a planned graph says of a value that is no product.
fn wish(g: &Graph, at: NodeId) -> Wish {
    if g.op(at).is_buffer() {
        return narrow_or_wide(g.ty(at).format);
    }
    let put = |user: NodeId| if let Op::Put(f) = g.op(user) { Some(*f) } else { None };
    let widest = g.users(at).into_iter().filter_map(put).max_by_key(|f| f.bytes());
    widest.map_or(Wish::Open, narrow_or_wide)
}
