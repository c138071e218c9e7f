//! Choosing a format for every value: policy, extraction, and the plan a user reads and keeps.
//!
//! `policy` says what each value may be, by lists or by `evidence`; `choice` looks for the cheapest step that is allowed,
//! by few of its `layers` where it has many; `recompute` fits it into memory; `show` is what people read of it.

mod assemble;
mod attention;
mod bodies;
mod choice;
mod divisors;
mod evidence;
mod file;
mod interval;
mod layers;
mod overrides;
mod planned;
mod policy;
mod recompute;
mod request;
mod show;
mod units;

pub use attention::attend;
pub use choice::copy_name;
pub use evidence::{
    Budget, Calibration, Evidence, HEADROOM, Kink, Measured, Probe, Shares, gradient_output, gradient_outputs,
    observed, percent, probe,
};
pub use file::{EvidenceSummary, PLAN_VERSION, PlanFile, fingerprint};
pub use interval::beyond;
pub use layers::NotAlike;
pub use overrides::Overrides;
pub use planned::Planned;
pub use policy::{Policy, Verdict, paint};
pub use recompute::{Again, Repeated};
pub use request::Request;
pub use show::{
    Alternative, Explanation, Heading, Trace, Traced, clip, diff, explain, print_profile, print_summary, print_table,
    report, trace,
};
pub use units::seconds;

use crate::error::Result;
use crate::ir::{Graph, verify};
use crate::rewrite::{Allow, Facts, PhaseReport, RECOGNITION, RuleSet, encode, saturate};
use bodies::{Looped, plan_bodies};
use choice::{extract, plainest};

/// Names what a model spells out (norms, gelu, masked softmax), before anything is differentiated: a derivative of the
/// named operation is better than one of its spelling, and a format chosen inside the spelling could break it.
///
/// # Errors
/// A graph that breaks the IR's rules.
pub fn recognise(graph: &Graph, rules: &RuleSet) -> Result<(Graph, Vec<PhaseReport>)> {
    let facts = Facts {
        sources: graph.sources().map(|id| (graph.name_of(id).to_owned(), graph.ty(id).clone())).collect(),
        ..Facts::default()
    };
    let mut encoded = encode(verify(graph)?, facts, &vec![Allow::ALL; graph.len()])?;
    let (egraph, phases) = saturate(std::mem::take(&mut encoded.egraph), rules, &RECOGNITION);
    let named = plainest(graph, &encoded, &egraph)?;
    verify(&named)?;
    Ok((named, phases))
}

/// Rewrites a step (or any bound graph) and extracts the cheapest plan the policy allows.
///
/// # Errors
/// A format that the target does not multiply, and a step that breaks the IR's rules or has no kernels.
pub fn plan(step: &Graph, request: &Request, rules: &RuleSet) -> Result<Planned> {
    request.allowed().iter().try_for_each(|f| request.target.require(f))?;
    let Looped { graph: step, bodies } = plan_bodies(step, request, rules)?;
    let verdicts = paint(&step, request);
    let extracted = extract(&step, &verdicts, request, rules)?;
    let reasons = step.ids().map(|id| (step.name_of(id).to_owned(), verdicts[id.index()].why.clone())).collect();
    let module = |id| Some((step.name_of(id).to_owned(), step.module_of(id)?.to_owned()));
    let modules = step.ids().filter_map(module).collect();
    Ok(Planned {
        graph: extracted.graph,
        estimate: extracted.estimate,
        reasons,
        modules,
        places: extracted.places,
        rules: extracted.rules,
        phases: extracted.saturated.phases,
        evaluations: extracted.evaluations,
        bodies,
        layers: extracted.layers,
        apart: extracted.apart.filter(|why| *why != NotAlike::Few),
        again: None,
        search_cut_short: extracted.cut_short,
        noise: extracted.noise,
        frontier: extracted.frontier,
        measured: None,
    })
}
