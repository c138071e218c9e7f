//! A step with everything that it equals.

use crate::error::{Error, Result};
use crate::ir::{Graph, NodeId, Op, Role, verify};
use crate::plan::{Request, Verdict};
use crate::rewrite::{Allow, EGraph, Encoded, Facts, PHASES, PhaseReport, RuleSet, encode, saturate};

/// The phase whose rules store values: without it every value would be computed in one kernel.
const STORES: &str = "fuse";

/// A step with everything that it equals.
pub(in crate::plan) struct Saturated {
    pub step: Graph,
    pub encoded: Encoded,
    pub egraph: EGraph,
    pub phases: Vec<PhaseReport>,
}

impl Saturated {
    /// `step`'s loops have planned bodies.
    pub fn new(step: Graph, verdicts: &[Verdict], request: &Request, rules: &RuleSet) -> Result<Saturated> {
        let allow: Vec<Allow> = verdicts.iter().map(|v| v.allow).collect();
        if rules.phase(STORES).next().is_none() {
            return Err(Error::Request(format!(
                "the rules have no phase `{STORES}`, whose rules store values, so nothing can be planned: copy the built-in \
                 rules, and add to them"
            )));
        }
        let verified = verify(&step)?;
        let updates = step.outputs().iter().filter(|o| o.role == Role::Update);
        let updated = updates.map(|o| o.name.clone()).collect();
        let is_staged =
            |&id: &NodeId| matches!(step.op(id), Op::Input { label: false, .. }) && step.ty(id).format.is_float();
        let facts = Facts {
            sources: step.sources().map(|id| (step.name_of(id).to_owned(), step.ty(id).clone())).collect(),
            updated,
            staged: step.sources().filter(is_staged).map(|id| step.name_of(id).to_owned()).collect(),
            formats: request.stored(),
            ..Facts::default()
        };
        let mut encoded = encode(verified, facts, &allow)?;
        let egraph = std::mem::take(&mut encoded.egraph);
        let (egraph, phases) = saturate(egraph, rules, &PHASES);
        Ok(Saturated { step, encoded, egraph, phases })
    }
}
