//! Choosing a format for every value: policy, extraction, and the plan a user reads and keeps.

mod alike;
mod assemble;
mod bodies;
mod calibration;
mod diff;
mod divisors;
mod evidence;
#[cfg(test)]
mod exact;
mod explain;
mod extract;
mod file;
mod interval;
mod kinks;
mod layers;
mod live;
mod matching;
mod measured;
mod members;
mod noise;
mod observed;
mod overrides;
mod policy;
mod probe;
mod profile;
mod raise;
mod recompute;
mod report;
mod search;
mod sketch;
mod start;
mod table;
mod trace;
mod units;
mod window;

pub use calibration::{Budget, Calibration, HEADROOM, Shares, percent};
pub use diff::diff;
pub use evidence::{Evidence, Fate, Spread};
pub use explain::{Alternative, Explanation, explain};
pub use extract::Extracted;
pub use file::{EvidenceSummary, PLAN_VERSION, PlanFile, fingerprint};
pub use interval::beyond;
pub use kinks::Kink;
pub use measured::Measured;
pub use observed::observed;
pub use overrides::Overrides;
pub use policy::{Policy, Verdict, paint};
pub use probe::{Probe, gradient_output, gradient_outputs, probe};
pub use profile::print_profile;
pub use recompute::Again;
pub use report::report;
pub use sketch::copy_name;
pub use table::{clip, print_summary, print_table};
pub use trace::{Trace, Traced, trace};
pub use units::seconds;

use crate::cost::{Estimate, Target};
use crate::error::Result;
use crate::format::{Format, Formats};
use crate::ir::{Graph, NodeId, Op, Role, verify};
use crate::rewrite::{Allow, EGraph, Encoded, Facts, PHASES, PhaseReport, RECOGNITION, RuleSet, encode, saturate};
use bodies::{Looped, plan_bodies};
use extract::{extract, plainest};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What to plan for.
#[derive(Clone, Debug)]
pub struct Request {
    pub policy: Policy,
    /// The narrow format that lists of operations lower to.
    pub low: Format,
    /// The narrow formats that evidence may choose from.
    pub formats: Formats,
    pub target: Target,
    pub calibration: Option<Arc<Calibration>>,
    pub overrides: Overrides,
    /// Find out what other budgets would cost.
    pub frontier: bool,
    /// Whole steps that the search may lower at most; none: as many as a step of its size is worth.
    pub search: Option<usize>,
}

impl Request {
    /// A plan by a policy's lists, with one narrow format.
    pub fn by_lists(policy: Policy, low: Format, target: Target) -> Request {
        Request {
            policy,
            low,
            formats: Formats::from_iter([low]),
            target,
            calibration: None,
            overrides: Overrides::default(),
            frontier: false,
            search: None,
        }
    }

    /// The narrow formats that a plan may use.
    pub fn allowed(&self) -> Formats {
        match self.policy {
            Policy::Fp32 => Formats::NONE,
            Policy::Auto if self.calibration.is_some() => self.formats,
            _ => Formats::from_iter([self.low]),
        }
    }
}

/// A planned graph and how it came about.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Every output is a buffer, every value that is stored has its `put`.
    pub graph: Graph,
    pub estimate: Estimate,
    /// The policy's reason for each value, by name.
    pub reasons: BTreeMap<String, String>,
    /// Where each value of the step is in the graph; none where the plan does without it.
    pub places: Vec<Option<NodeId>>,
    /// The rule behind each choice, by value name.
    pub rules: BTreeMap<String, String>,
    pub phases: Vec<PhaseReport>,
    pub evaluations: usize,
    /// Plans of the bodies of loops, by the body's name.
    pub bodies: BTreeMap<String, Planned>,
    /// Runs of layers that are alike and were planned alike: how many there are, and how many of them were planned.
    pub layers: Vec<(usize, usize)>,
    /// What is computed again in the backward pass, to keep to a limit of memory.
    pub again: Option<Again>,
    /// The search for a cheaper plan ended at its limit.
    pub search_cut_short: bool,
    /// What roundings were estimated to add to the gradients' noise, in budgets, the noisiest first, by what is rounded
    /// and the format.
    pub noise: Vec<(String, Format, f64)>,
    /// What other budgets would cost: noise in budgets, and seconds; where that was asked for.
    pub frontier: Vec<(f64, f64)>,
    /// What the plan was measured to do to the gradients.
    pub measured: Option<Measured>,
}

impl Planned {
    /// The plan of a loop's body, here or in the body of another loop.
    pub fn body(&self, name: &str) -> Option<&Planned> {
        self.bodies.get(name).or_else(|| self.bodies.values().find_map(|b| b.body(name)))
    }

    /// What all roundings were estimated to add, in budgets: noise adds as squares.
    pub fn estimated_noise(&self) -> f64 {
        self.noise.iter().map(|n| n.2).sum::<f64>().sqrt()
    }

    /// Limits that ended rewriting or the search before they were done, in words.
    pub fn limits(&self) -> Vec<String> {
        let phases = self.phases.iter().filter_map(|p| Some((p.phase, p.cut_short.as_ref()?)));
        let mut out: Vec<String> = phases
            .map(|(p, limit)| format!("phase `{p}` was cut short at {limit}; the plan may miss rewrites"))
            .collect();
        if self.search_cut_short {
            out.push(format!(
                "the search ended after {} candidates; the step is large, and a cheaper plan may exist",
                self.evaluations
            ));
        }
        out
    }

    /// A plan made before, costed for a target.
    pub fn from_graph(graph: Graph, request: &Request) -> Result<Planned> {
        let estimate = request.target.estimate_graph(&graph)?;
        Ok(Planned {
            graph,
            estimate,
            reasons: BTreeMap::new(),
            places: Vec::new(),
            rules: BTreeMap::new(),
            phases: Vec::new(),
            evaluations: 0,
            bodies: BTreeMap::new(),
            layers: Vec::new(),
            again: None,
            search_cut_short: false,
            noise: Vec::new(),
            frontier: Vec::new(),
            measured: None,
        })
    }
}

/// Names what a model spells out (norms, gelu, masked softmax), before anything is differentiated: a derivative of the
/// named operation is better than one of its spelling, and a format chosen inside the spelling could break it.
pub fn recognise(graph: &Graph, rules: &RuleSet) -> Result<(Graph, Vec<PhaseReport>)> {
    let facts = Facts {
        sources: graph.sources().map(|id| (graph.name_of(id).to_owned(), graph.ty(id).clone())).collect(),
        ..Facts::default()
    };
    let mut encoded = encode(verify(graph)?, facts, &vec![Allow::ALL; graph.len()])?;
    let (egraph, phases) = saturate(std::mem::take(&mut encoded.egraph), rules, &RECOGNITION)?;
    let named = plainest(graph, &encoded, &egraph)?;
    verify(&named)?;
    Ok((named, phases))
}

/// A step with everything that it equals.
struct Saturated {
    step: Graph,
    encoded: Encoded,
    egraph: EGraph,
    phases: Vec<PhaseReport>,
}

impl Saturated {
    /// `step`'s loops have planned bodies.
    fn new(step: Graph, verdicts: &[Verdict], request: &Request, rules: &RuleSet) -> Result<Saturated> {
        let allow: Vec<Allow> = verdicts.iter().map(|v| v.allow).collect();
        let verified = verify(&step)?;
        let updates = step.outputs().iter().filter(|o| o.role == Role::Update);
        let updated = updates.map(|o| o.name.clone()).collect();
        let is_staged =
            |&id: &NodeId| matches!(step.op(id), Op::Input { label: false, .. }) && step.ty(id).format.is_float();
        let facts = Facts {
            sources: step.sources().map(|id| (step.name_of(id).to_owned(), step.ty(id).clone())).collect(),
            updated,
            staged: step.sources().filter(is_staged).map(|id| step.name_of(id).to_owned()).collect(),
            formats: request.allowed(),
            ..Facts::default()
        };
        let mut encoded = encode(verified, facts, &allow)?;
        let egraph = std::mem::take(&mut encoded.egraph);
        let (egraph, phases) = saturate(egraph, rules, &PHASES)?;
        Ok(Saturated { step, encoded, egraph, phases })
    }
}

/// Rewrites a step (or any bound graph) and extracts the cheapest plan the policy allows.
pub fn plan(step: &Graph, request: &Request, rules: &RuleSet) -> Result<Planned> {
    request.allowed().iter().try_for_each(|f| request.target.require(f))?;
    let Looped { graph: step, bodies } = plan_bodies(step, request, rules)?;
    let verdicts = paint(&step, request);
    let extracted = extract(&step, &verdicts, request, rules)?;
    let reasons = step.ids().map(|id| (step.name_of(id).to_owned(), verdicts[id.index()].why.clone())).collect();
    Ok(Planned {
        graph: extracted.graph,
        estimate: extracted.estimate,
        reasons,
        places: extracted.places,
        rules: extracted.rules,
        phases: extracted.phases,
        evaluations: extracted.evaluations,
        bodies,
        layers: extracted.layers,
        again: None,
        search_cut_short: extracted.cut_short,
        noise: extracted.noise,
        frontier: extracted.frontier,
        measured: None,
    })
}
