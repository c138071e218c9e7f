//! When rules run: phases in order, each a fresh runner over the same e-graph.
//!
//! Exact rules saturate. Rounding rules run once, on top of them and never on each other's output, so nothing is
//! rounded twice by accident. After rounding only cast algebra may run: an exact algebraic rule would create values
//! that have no stores. What a limit cuts short is reported.

use super::EGraph;
use super::rules::RuleSet;
use egg::{Runner, SimpleScheduler, StopReason};
use std::time::Duration;

/// Phase names, which are rule file names, in running order.
pub const PHASES: [&str; 6] = ["recognise", "simplify", "layout", "fuse", "precision", "carry"];

const NODE_LIMIT: usize = 500_000;
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// What a phase did.
#[derive(Clone, Debug)]
pub struct PhaseReport {
    /// Its name, one of [`PHASES`].
    pub phase: &'static str,
    /// Rounds, in each of which all its rules were applied.
    pub iterations: usize,
    /// E-nodes in the end.
    pub nodes: usize,
    /// E-classes in the end.
    pub classes: usize,
    /// Applications that changed the e-graph, by rule, in rule order.
    pub applied: Vec<(String, usize)>,
    /// The limit that ended the phase early, if one did, and the rule that changed most in the end.
    pub cut_short: Option<String>,
}

/// The phases that only name and simplify: all that a forward graph needs before it is differentiated.
pub const RECOGNITION: [&str; 2] = ["recognise", "simplify"];

/// Runs phases over the e-graph, in order.
pub fn saturate(mut egraph: EGraph, rules: &RuleSet, phases: &[&'static str]) -> (EGraph, Vec<PhaseReport>) {
    let mut reports = Vec::new();
    for &phase in phases {
        let rewrites: Vec<_> = rules.phase(phase).map(|r| r.rewrite()).collect();
        if rewrites.is_empty() {
            continue;
        }
        let once = phase == "precision";
        let runner = Runner::<_, _, ()>::new(Default::default())
            .with_egraph(egraph)
            .with_scheduler(SimpleScheduler)
            .with_iter_limit(if once { 1 } else { 30 })
            .with_node_limit(NODE_LIMIT)
            .with_time_limit(TIME_LIMIT)
            .run(&rewrites);
        let limit = match runner.stop_reason {
            Some(StopReason::NodeLimit(n)) => Some(format!("{n} e-nodes")),
            Some(StopReason::TimeLimit(t)) => Some(format!("{t:.1} s")),
            Some(StopReason::IterationLimit(n)) if !once => Some(format!("{n} iterations")),
            _ => None,
        };
        let cut_short = limit.map(|limit| {
            let last = runner.iterations.iter().rev().map(|i| &i.applied).find(|applied| !applied.is_empty());
            let busiest = last.and_then(|applied| applied.iter().max_by_key(|a| *a.1));
            let rule = busiest.map_or(String::new(), |(rule, n)| format!(" ({n} changes by rule `{rule}` in the end)"));
            limit + &rule
        });
        let applied = rules.phase(phase).map(|r| {
            let count =
                runner.iterations.iter().filter_map(|i| i.applied.get(&egg::Symbol::from(r.name.as_str()))).sum();
            (r.name.clone(), count)
        });
        reports.push(PhaseReport {
            phase,
            iterations: runner.iterations.len(),
            nodes: runner.egraph.total_number_of_nodes(),
            classes: runner.egraph.number_of_classes(),
            applied: applied.collect(),
            cut_short,
        });
        egraph = runner.egraph;
    }
    (egraph, reports)
}
