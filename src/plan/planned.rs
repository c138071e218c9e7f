//! A plan, and how it came about.

use super::evidence::Measured;
use super::layers::NotAlike;
use super::recompute::Again;
use super::request::Request;
use crate::cost::Estimate;
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Graph, NodeId};
use crate::rewrite::PhaseReport;
use std::collections::BTreeMap;

/// A planned graph and how it came about.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Every output is a buffer, every value that is stored has its `put`.
    pub graph: Graph,
    /// Predicted time and bytes of one run.
    pub estimate: Estimate,
    /// The policy's reason for each value, by name.
    pub reasons: BTreeMap<String, String>,
    /// The module of the model that each value belongs to, by name, where the model says.
    pub modules: BTreeMap<String, String>,
    /// Where each value of the step is in the graph; none where the plan does without it.
    pub places: Vec<Option<NodeId>>,
    /// The rule behind each choice, by value name.
    pub rules: BTreeMap<String, String>,
    /// What each phase of rewriting came to, those of recognition first.
    pub phases: Vec<PhaseReport>,
    /// Steps, and parts of the step, that the search lowered and costed.
    pub evaluations: usize,
    /// Plans of the bodies of loops, by the body's name.
    pub bodies: BTreeMap<String, Planned>,
    /// Runs of layers that are alike and were planned alike: how many there are, and how many of them were planned.
    pub layers: Vec<(usize, usize)>,
    /// Why layers that are alike were planned one by one.
    pub apart: Option<NotAlike>,
    /// What is computed again in the backward pass, to keep to a limit of memory.
    pub again: Option<Again>,
    /// The search for a cheaper plan ended at its limit.
    pub search_cut_short: bool,
    /// What roundings were estimated to add to the gradients' noise, as shares of the squared budget, the noisiest
    /// first, by what is rounded and the format.
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

    /// A value's name with the module it belongs to, as `layer1.0.conv1/conv2d_3`.
    pub fn full_name(&self, value: &str) -> String {
        let bare = value.split(' ').next().unwrap_or(value);
        self.modules.get(bare).map_or_else(|| value.to_owned(), |module| format!("{module}/{value}"))
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
    ///
    /// # Errors
    /// A graph that breaks the IR's rules or has no kernels.
    pub fn from_graph(graph: Graph, request: &Request) -> Result<Planned> {
        let estimate = request.target.estimate_graph(&graph)?;
        Ok(Planned {
            graph,
            estimate,
            reasons: BTreeMap::new(),
            modules: BTreeMap::new(),
            places: Vec::new(),
            rules: BTreeMap::new(),
            phases: Vec::new(),
            evaluations: 0,
            bodies: BTreeMap::new(),
            layers: Vec::new(),
            apart: None,
            again: None,
            search_cut_short: false,
            noise: Vec::new(),
            frontier: Vec::new(),
            measured: None,
        })
    }
}
