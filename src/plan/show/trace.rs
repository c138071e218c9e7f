//! What each rule did to a step: how often it changed the e-graph, where it made something, and what of that was chosen.

use super::table::clip;
use crate::error::Result;
use crate::ir::Graph;
use crate::plan::bodies::plan_bodies;
use crate::plan::choice::Members;
use crate::plan::choice::{Extracted, extract, members};
use crate::plan::{Request, paint};
use crate::rewrite::{PhaseReport, RuleSet};
use egg::Id;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Names that are shown of a list, at most.
const SHOWN: usize = 3;

/// What one rule did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Traced {
    /// Phase of rewriting in which it runs.
    pub phase: String,
    /// Name of the rule.
    pub rule: String,
    /// What it says, as its file has it.
    pub doc: String,
    /// Applications that changed the e-graph.
    pub fired: usize,
    /// Values that it gave another form, by name.
    pub made: Vec<String>,
    /// Those whose form is what was chosen.
    pub won: Vec<String>,
}

/// What all rules did, in the order they are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Trace {
    /// One entry a rule, with those that did nothing.
    pub rules: Vec<Traced>,
}

/// Plans a step and says what each rule did. `before` are phases that ran on the model before it was differentiated; they
/// are counted with the step's own.
///
/// # Errors
/// Those of planning.
pub fn trace(step: &Graph, request: &Request, rules: &RuleSet, before: &[PhaseReport]) -> Result<Trace> {
    let step = &plan_bodies(step, request, rules)?.graph;
    let verdicts = paint(step, request);
    Ok(traced(&extract(step, &verdicts, request, rules)?, request, rules, before))
}

fn traced(found: &Extracted, request: &Request, rules: &RuleSet, before: &[PhaseReport]) -> Trace {
    let m = &members(&found.saturated, request);
    let mut made: BTreeMap<&str, (Vec<String>, Vec<String>)> = BTreeMap::new();
    let mut reached = vec![false; m.ids()];
    m.reachable(&found.choice).into_iter().for_each(|c| reached[usize::from(c)] = true);
    for class in (0..m.ids()).map(Id::from) {
        for (at, term) in m.of(class).iter().enumerate() {
            let Some(rule) = m.rule(term) else { continue };
            let (all, won) = made.entry(rule).or_default();
            let name = name_of(m, class);
            if reached[usize::from(class)] && found.choice.of(class) == at && !won.contains(&name) {
                won.push(name.clone());
            }
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    let fired = |rule: &str| {
        let phases = before.iter().chain(&found.saturated.phases).flat_map(|p| &p.applied);
        phases.filter(|(name, _)| name == rule).map(|(_, n)| n).sum()
    };
    let of = |r: &crate::rewrite::Rule| {
        let (made, won) = made.remove(r.name.as_str()).unwrap_or_default();
        Traced { phase: r.phase.clone(), rule: r.name.clone(), doc: r.doc.clone(), fired: fired(&r.name), made, won }
    };
    Trace { rules: rules.rules.iter().map(of).collect() }
}

/// The value that a class is of: its own, the one an edge passes, or the one that lies in a buffer.
fn name_of(m: &Members, class: Id) -> String {
    let held = || m.of(class).iter().flat_map(|t| t.children.iter().rev()).find_map(|&c| m.name(c));
    let name = m.name(class).or_else(|| m.name(m.passed(class)?)).or_else(held);
    name.unwrap_or("a value of a rewrite").to_owned()
}

impl Trace {
    /// As a table, for people; rules that did nothing are named in the end.
    pub fn print(&self) -> String {
        let mut out = format!("{:<26} {:>6} {:>6} {:>6}  {}\n", "rule", "fired", "made", "won", "where");
        let mut phase = "";
        for r in self.rules.iter().filter(|r| r.fired > 0) {
            if r.phase != phase {
                phase = &r.phase;
                let _ = writeln!(out, "{phase}");
            }
            // What the model's own names were recognised by is gone from the step.
            let count = |names: &[String]| if r.made.is_empty() { "-".to_owned() } else { names.len().to_string() };
            let (made, won) = (count(&r.made), count(&r.won));
            let names = match (r.won.is_empty(), r.made.is_empty()) {
                (true, true) => "in the model, before it was differentiated".to_owned(),
                (true, false) => shown(&r.made),
                _ => shown(&r.won),
            };
            let line = format!("  {:<24} {:>6} {made:>6} {won:>6}  {names}", clip(&r.rule, 24), r.fired);
            let _ = writeln!(out, "{}", line.trim_end());
        }
        let idle: Vec<&str> = self.rules.iter().filter(|r| r.fired == 0).map(|r| r.rule.as_str()).collect();
        if !idle.is_empty() {
            let _ = writeln!(out, "\n{} rules did not fire: {}", idle.len(), idle.join(", "));
        }
        out
    }
}

fn shown(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(SHOWN).map(|n| clip(n, 20)).collect();
    let more = names.len().saturating_sub(SHOWN);
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}
