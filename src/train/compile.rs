//! From a model and settings to planned graphs ready for a device.

use super::loss::Objective;
use super::recipe::{Recipe, ScalerMode};
use super::step::{Built, build_step};
use super::task::Task;
use crate::cost::Target;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::hint::is_meant;
use crate::ir::{Graph, Op, text};
use crate::model::{Frozen, Layers, Model, Modes, Purpose, Weights};
use crate::plan::{
    Calibration, Overrides, PlanFile, Planned, Policy, Request, Trace, attend, observed, plan, recognise, trace,
};
use crate::rewrite::{PhaseReport, RuleSet};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use wildmatch::WildMatch;

/// Everything that decides what a compiled step computes.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Settings {
    /// How formats are chosen. Default: `o1`.
    pub policy: Policy,
    /// The narrow format of the plan.
    pub low: Format,
    /// A built-in target, or the `.toml` file of a profile. Default: `sm_90`.
    pub target: String,
    /// Sizes for the model's named extents; `batch` among them.
    pub sizes: BTreeMap<String, usize>,
    /// A loss of [`super::LossKind::NAMES`], or a scalar of the model by name. Default: the model's own.
    pub loss: Option<String>,
    /// Options of a loss that is added.
    #[serde(default)]
    pub objective: Objective,
    /// Optimizer, schedule, clipping and loss scaling.
    pub recipe: Recipe,
    /// The narrow formats that evidence may choose from; none: those of f16, bf16 and tf32 that the target multiplies.
    #[serde(default)]
    pub formats: Vec<Format>,
    /// What is wanted otherwise than the policy.
    #[serde(default)]
    pub overrides: Overrides,
    /// Layers that act as in inference.
    #[serde(default)]
    pub modes: Modes,
    /// Patterns of names of parameters that are not trained.
    #[serde(default)]
    pub freeze: Vec<String>,
    /// Find out what other budgets than the one given would cost.
    #[serde(skip)]
    pub frontier: bool,
    /// Whole steps that the search for a plan may lower at most; none: as many as a step of its size is worth. With few,
    /// plans are found sooner and are slower; they compute the same.
    #[serde(skip)]
    pub search: Option<usize>,
    /// Memory that the step may take.
    #[serde(default)]
    pub memory_limit: Option<ByteSize>,
    /// What is known of the step on real data.
    #[serde(skip)]
    pub calibration: Option<Arc<Calibration>>,
    /// Steps of the whole run, for schedules without an end of their own.
    pub total_steps: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            policy: Policy::O1,
            low: Format::F16,
            target: "sm_90".into(),
            sizes: BTreeMap::from([("batch".to_owned(), 32)]),
            loss: None,
            objective: Objective::default(),
            recipe: Recipe::default(),
            formats: Vec::new(),
            overrides: Overrides::default(),
            modes: Modes::default(),
            freeze: Vec::new(),
            frontier: false,
            search: None,
            memory_limit: None,
            calibration: None,
            total_steps: 0,
        }
    }
}

/// A model bound and differentiated, and what was recognised in it before.
struct Prepared {
    task: Task,
    step: Graph,
    gradient_of: BTreeMap<String, String>,
    weights: Weights,
    layers: Layers,
    recognition: Vec<PhaseReport>,
}

/// A planned training step, with the forward graph for evaluation.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The model with its loss.
    pub task: Task,
    /// The step before planning.
    pub step: Graph,
    /// The step's value that is the gradient of each trained parameter.
    pub gradient_of: BTreeMap<String, String>,
    /// The step as it is run.
    pub planned: Planned,
    /// The planned graph that yields the prediction alone; none where the loss is of no prediction.
    pub eval: Option<Graph>,
    /// What it was compiled with; `batch` is the model's own where the model fixes it.
    pub settings: Settings,
    /// Identifies the model (not its sizes, not the recipe): a checkpoint must match it.
    pub model_fingerprint: String,
    /// Values that the model's file holds, by parameter and constant.
    pub weights: Weights,
    /// Layers that act otherwise than in inference; not known of a trainer that was compiled before.
    pub layers: Layers,
}

impl Settings {
    /// Samples of a step; 1 where no size is called `batch`.
    pub fn batch(&self) -> usize {
        self.sizes.get("batch").copied().unwrap_or(1)
    }

    /// How the loss is scaled, where the recipe leaves it to policy and format.
    pub fn scaling(&self) -> ScalerMode {
        self.recipe.scaler.resolved(self.policy, self.low)
    }

    /// What is asked of a plan.
    ///
    /// # Errors
    /// [`Error::Request`] for a target that is not known; a profile that cannot be read.
    pub fn request(&self) -> Result<Request> {
        Ok(Request {
            policy: self.policy,
            low: self.low,
            formats: self.formats().into_iter().collect(),
            target: Target::named(&self.target)?,
            calibration: self.calibration.clone(),
            overrides: self.overrides.clone(),
            frontier: self.frontier,
            search: self.search,
        })
    }

    /// The plan of a step, kept to the limit of memory.
    ///
    /// # Errors
    /// Those of [`Settings::request`] and of [`plan`]; a step that fits no plan into the limit, saying what it takes.
    pub fn plan(&self, step: &Graph, rules: &RuleSet) -> Result<Planned> {
        let request = self.request()?;
        let planned = plan(step, &request, rules)?;
        match self.memory_limit {
            Some(limit) => planned.within(limit.as_u64() as usize, step, &request.target),
            None => Ok(planned),
        }
    }

    /// The narrow formats that evidence may choose from.
    pub fn formats(&self) -> Vec<Format> {
        if !self.formats.is_empty() {
            return self.formats.clone();
        }
        let target = Target::named(&self.target).ok();
        let able = |f: &Format| target.as_ref().is_some_and(|t| t.multiplies(*f));
        Format::MULTIPLIED.into_iter().filter(able).collect()
    }

    /// The formats that evidence is gathered for: tf32 has bf16's range and f16's mantissa, so what these do tells what it
    /// does.
    pub fn probed(&self) -> Vec<Format> {
        let formats = self.formats();
        let stands_in = |&f: &Format| formats.contains(&f) || (f == Format::Bf16 && formats.contains(&Format::Tf32));
        Format::STORED.into_iter().filter(stands_in).collect()
    }

    /// Binds the model, differentiates it and adds optimizer and scaler: the step before planning.
    ///
    /// # Errors
    /// Missing sizes, patterns that match nothing, options out of range, a loss that is missing or has no gradient.
    pub fn build(&self, model: &Model, rules: &RuleSet) -> Result<(Task, Graph)> {
        let p = self.prepare(model, rules)?;
        Ok((p.task, p.step))
    }

    /// Plans the model's step and says what each rule did.
    ///
    /// # Errors
    /// Those of [`Settings::compile`].
    pub fn trace(&self, model: &Model, rules: &RuleSet) -> Result<Trace> {
        let Prepared { step, recognition, .. } = self.prepare(model, rules)?;
        trace(&step, &self.request()?, rules, &recognition)
    }

    fn prepare(&self, model: &Model, rules: &RuleSet) -> Result<Prepared> {
        let mut bound = model.bind(&self.sizes, Purpose::Training(&self.modes))?;
        let graph = frozen(bound.graph, &self.freeze)?;
        let (graph, recognition) = recognise(&graph, rules)?;
        let graph = self.attended(graph, &bound.weights)?;
        let task = Task::new(graph, self.loss.as_deref(), &self.objective, &mut bound.weights)?;
        let Built { graph, gradient_of } = build_step(&task, &self.recipe, self.policy, self.low, self.total_steps)?;
        Ok(Prepared { task, step: graph, gradient_of, weights: bound.weights, layers: bound.layers, recognition })
    }

    /// The graph with attention as one operation where that is faster. Evidence is gathered of scores and probabilities, so
    /// there it is spelled out.
    fn attended(&self, graph: Graph, weights: &Weights) -> Result<Graph> {
        let target = Target::named(&self.target)?;
        let by_list = !matches!(self.policy, Policy::Fp32 | Policy::Auto);
        attend(graph, weights, |a| by_list && target.attends(a, self.low))
    }

    /// The forward graph that yields the prediction alone, as the model acts in inference: without dropout, with running
    /// statistics. Constants that it alone has are added to `weights`.
    fn evaluation(&self, model: &Model, rules: &RuleSet, task: &Task, weights: &mut Weights) -> Result<Option<Graph>> {
        if !model.has_modes() || task.head.is_none() {
            return task.prediction_graph();
        }
        let mut bound = model.bind(&self.sizes, Purpose::Inference)?;
        let (graph, _) = recognise(&bound.graph, rules)?;
        let mut graph = self.attended(graph, &bound.weights)?;
        for id in graph.sources().collect::<Vec<_>>() {
            let (name, constant) = (graph.name_of(id).to_owned(), matches!(graph.op(id), Op::State { .. }));
            let Some(w) = bound.weights.remove(&name) else { continue };
            match weights.get(&name) {
                // The same name for another constant.
                Some(known) if constant && (known.dims != w.dims || known.bytes() != w.bytes()) => {
                    let own = format!("{name}.inference");
                    graph.rename(id, &own);
                    weights.insert(own, w);
                }
                Some(_) => {}
                None => {
                    weights.insert(name, w);
                }
            }
        }
        Task::new(graph, self.loss.as_deref(), &self.objective, weights)?.prediction_graph()
    }

    /// Builds the step with every value stored in f32, to be looked at.
    ///
    /// # Errors
    /// Those of [`Settings::build`] and [`Settings::request`].
    pub fn observed(&self, model: &Model, rules: &RuleSet) -> Result<Compiled> {
        let Prepared { task, step, gradient_of, weights, layers, .. } = self.prepare(model, rules)?;
        let planned = Planned::from_graph(observed(&step)?, &self.request()?)?;
        let settings = self.clone().sized(&task);
        Ok(Compiled {
            task,
            step,
            gradient_of,
            planned,
            eval: None,
            settings,
            model_fingerprint: model.fingerprint(),
            weights,
            layers,
        })
    }

    /// With the batch size that the model has: one exported with a fixed size has that, whatever was asked for.
    fn sized(mut self, task: &Task) -> Settings {
        if let Some(batch) = task.inputs(false).first().and_then(|&id| task.graph.ty(id).dims().first().copied()) {
            self.sizes.insert("batch".into(), batch);
        }
        self
    }

    /// Builds and plans, or takes a plan made before if it fits.
    ///
    /// # Errors
    /// Those of [`Settings::build`] and [`Settings::plan`], overrides that cannot be meant, a plan of another step.
    pub fn compile(&self, model: &Model, rules: &RuleSet, saved: Option<(&PlanFile, &Path)>) -> Result<Compiled> {
        let Prepared { task, step, gradient_of, mut weights, layers, recognition } = self.prepare(model, rules)?;
        let settings = self.clone().sized(&task);
        let request = self.request()?;
        self.overrides.check(&step, request.stored())?;
        let mut planned = match saved {
            None => self.plan(&step, rules)?,
            Some((file, path)) => Planned::from_graph(file.graph_for(&step, path)?, &request)?,
        };
        planned.phases.splice(0..0, recognition);
        // A plan that evidence chose comes without it: what the lists would round was not asked about there.
        let unseen = saved.is_some() && self.policy == Policy::Auto && self.calibration.is_none();
        let request = if unseen { Request { policy: Policy::Fp32, ..request } } else { request };
        let eval = match self.evaluation(model, rules, &task, &mut weights)? {
            Some(graph) => Some(plan(&graph, &request, rules)?.graph),
            None => None,
        };
        Ok(Compiled {
            task,
            step,
            gradient_of,
            planned,
            eval,
            settings,
            model_fingerprint: model.fingerprint(),
            weights,
            layers,
        })
    }
}

/// The graph with parameters of these names as constants: no gradient is computed for them, and no optimizer has state of
/// theirs.
fn frozen(graph: Graph, patterns: &[String]) -> Result<Graph> {
    if patterns.is_empty() {
        return Ok(graph);
    }
    let params = || graph.sources().filter(|&id| matches!(graph.op(id), Op::Param { .. }));
    for pattern in patterns {
        if !params().any(|id| WildMatch::new(pattern).matches(graph.name_of(id))) {
            let hint = is_meant(pattern, params().map(|id| graph.name_of(id)));
            return Err(Error::Request(format!("freeze: no parameter is named `{pattern}`{hint}")));
        }
    }
    let chosen = Frozen::Named(patterns.to_vec());
    graph.map_ids(|id, op| match op {
        Op::Param { init, ty } if chosen.holds([graph.name_of(id)]) => Op::State { init: init.clone(), ty: ty.clone() },
        op => op.clone(),
    })
}

impl Compiled {
    /// What can be printed, by stage: `ir`, `step`, `plan`.
    pub fn emit(&self, stage: &str) -> Option<String> {
        match stage {
            "ir" => Some(text::print(&self.task.graph)),
            "step" => Some(text::print(&self.step)),
            "plan" => Some(text::print(&self.planned.graph)),
            _ => None,
        }
    }

    /// Trained values: how many numbers the parameters hold.
    pub fn parameters(&self) -> usize {
        let g = &self.step;
        g.sources().filter(|&id| matches!(g.op(id), Op::Param { .. })).map(|id| g.ty(id).elements()).sum()
    }
}
