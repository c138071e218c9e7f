//! Choosing one member of every e-class: the cheapest step the cost model can find.
//!
//! Shared values are counted once, because what is costed is the graph a choice builds, cut into kernels as it will be
//! run; cyclic choices are rejected while that graph is built. [`super::start`] says where the search begins,
//! [`super::search`] how it goes on.

use super::alike::Alike;
use super::live::Live;
use super::members::{Choice, Members};
use super::noise::rounding;
use super::saturated::Saturated;
use super::search::{Costed, SMALL, Search};
use super::sketch::Sketch;
use super::start::{start, widest};
use crate::cost::Estimate;
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Graph, NodeId, Op, Output};
use crate::plan::evidence::Estimates;
use crate::plan::layers::{Grown, LAYERS, Layers, NotAlike, Unlike};
use crate::plan::{Policy, Request, Verdict};
use crate::rewrite::{EGraph, Encoded, RuleSet, forms};
use egg::Id;
use std::collections::BTreeMap;

/// What the search found for a step.
pub(in crate::plan) struct Extracted {
    /// What was planned: the step, or the same with few of its layers.
    pub saturated: Saturated,
    /// What was chosen of it, and what that costs.
    pub choice: Choice,
    pub seconds: f64,
    /// The plan of the step, with all its layers.
    pub graph: Graph,
    /// Where each value of the step is in the graph.
    pub places: Vec<Option<NodeId>>,
    pub estimate: Estimate,
    /// For each value of the step, the one of `saturated` whose plan is its own.
    pub planned_as: Vec<NodeId>,
    /// Runs of layers that are alike: how many there are, and how many were planned.
    pub layers: Vec<(usize, usize)>,
    /// Why all layers were planned, where they were.
    pub apart: Option<NotAlike>,
    /// Steps, and parts of the step, lowered on the way.
    pub evaluations: usize,
    /// The search ended before it had tried every kind of move.
    pub cut_short: bool,
    /// What roundings add to the gradients' noise, the most first.
    pub noise: Vec<(String, Format, f64)>,
    /// What other budgets would cost: noise in budgets, and seconds; where that was asked for.
    pub frontier: Vec<(f64, f64)>,
    /// The rule that made each stored buffer's choice, by the buffer's name.
    pub rules: BTreeMap<String, String>,
}

/// The cheapest plan found of a step, by few of its layers if it has many that are alike.
pub(in crate::plan) fn extract(
    step: &Graph,
    verdicts: &[Verdict],
    request: &Request,
    rules: &RuleSet,
) -> Result<Extracted> {
    let mut apart = None;
    for number in LAYERS {
        match by_layers(step, number, verdicts, request, rules) {
            Ok(extracted) => return Ok(extracted),
            Err(Unlike::Failed(fault)) => return Err(fault),
            Err(Unlike::Because(why)) => {
                // Where too few are alike for one number of layers, they are for a greater one.
                let last = why == NotAlike::Few;
                apart = apart.or(Some(why));
                if last {
                    break;
                }
            }
        }
    }
    let saturated = Saturated::new(step.clone(), verdicts, request, rules)?;
    Ok(Extracted { apart, ..searched(saturated, request, &[])? })
}

/// Plans a step by so few of its layers.
fn by_layers(
    step: &Graph,
    number: isize,
    verdicts: &[Verdict],
    request: &Request,
    rules: &RuleSet,
) -> Result<Extracted, Unlike> {
    let layers = Layers::of(step, number, verdicts, request)?;
    let verdicts: Vec<Verdict> = layers.full_of.iter().map(|id| verdicts[id.index()].clone()).collect();
    let few = searched(Saturated::new(layers.step.clone(), &verdicts, request, rules)?, request, &layers.pairs())?;
    let Grown { graph, places, planned_as } = layers.grow(&few.graph, &few.places)?;
    let estimate = request.target.estimate_graph(&graph)?;
    let rule = |id: NodeId| few.rules.get(layers.step.name_of(planned_as[id.index()])).cloned();
    let rules = step.ids().filter_map(|id| Some((step.name_of(id).to_owned(), rule(id)?))).collect();
    Ok(Extracted { graph, places, estimate, planned_as, layers: layers.counts(), rules, ..few })
}

/// The cheapest choice; `pairs` are values that are the same in one layer and the next.
fn searched(saturated: Saturated, request: &Request, pairs: &[(NodeId, NodeId)]) -> Result<Extracted> {
    let members = members(&saturated, request);
    let mut search = Search::new(&members, request, alike(&members, pairs));
    let Costed { choice, graph, estimate, .. } = cheapest(&mut search)?;
    let frontier = match search.fastest.take().filter(|_| request.frontier) {
        Some(fastest) => search.frontier(fastest),
        None => Vec::new(),
    };
    Ok(Extracted {
        places: Sketch::whole(&members, &choice)?.places(members.step)?,
        seconds: estimate.seconds,
        graph,
        estimate,
        planned_as: members.step.ids().collect(),
        layers: Vec::new(),
        apart: None,
        evaluations: search.evaluations,
        cut_short: search.cut_short,
        noise: noisiest(&members, &choice),
        frontier,
        rules: rules_behind(&members, &choice),
        choice,
        saturated,
    })
}

/// What there is to choose, with its noise where that was measured.
pub(in crate::plan) fn members<'a>(saturated: &'a Saturated, request: &Request) -> Members<'a> {
    let Saturated { step, encoded, egraph, .. } = saturated;
    let mut members = Members::new(step, encoded, egraph);
    if let Some(calibration) = request.calibration.as_ref().filter(|_| request.policy == Policy::Auto) {
        members.noise = Some(Estimates::new(step, encoded, &members, calibration));
    }
    if request.policy == Policy::Greedy {
        members.obey();
    }
    members
}

/// Classes that follow each other from layer to layer as these values do.
fn alike(m: &Members, pairs: &[(NodeId, NodeId)]) -> Alike {
    let class = |id: NodeId| m.find(m.encoded.classes[id.index()]);
    Alike::new(m, &pairs.iter().map(|&(a, b)| (class(a), class(b))).collect::<Vec<_>>())
}

/// A choice this much slower than another may still become the faster one.
const NEAR: f64 = 1.1;
/// Narrow formats are kept for the memory they save unless wide ones are faster by more than this.
const PAYS: f64 = 0.99;

/// The best choice that a search finds.
pub(in crate::plan) fn cheapest(search: &mut Search) -> Result<Costed> {
    let members = search.members;
    let (starts, failed): (Vec<_>, Vec<_>) = [true, false]
        .map(|pass| search.alike.in_all_layers(members, start(members, pass)))
        .into_iter()
        .map(|c| search.whole(c))
        .partition(Result::is_ok);
    let mut starts: Vec<Costed> = starts.into_iter().flatten().collect();
    // What is fused comes apart more easily than what is apart comes together, so the first start has an advantage. Small
    // steps are searched from both.
    if members.step.len() > SMALL
        && let [fused, apart] = &starts[..]
    {
        let better = usize::from(fused.estimate.seconds > apart.estimate.seconds * NEAR);
        starts = vec![starts.swap_remove(better)];
    }
    let found = starts.into_iter().map(|start| from_start(search, start));
    // The start that stores everything should always be possible.
    let impossible = || failed.into_iter().find_map(Result::err).expect("a start is found or failed");
    found.min_by(|a, b| a.estimate.seconds.total_cmp(&b.estimate.seconds)).ok_or_else(impossible)
}

fn from_start(search: &mut Search, start: Costed) -> Costed {
    let members = search.members;
    let wide = members.noise.is_some().then(|| widest(members, &start.choice));
    let narrow = search.improve(start);
    // Where kernels are small, casts and narrow products may not pay at all.
    let Some(wide) = wide.and_then(|w| search.whole(w).ok()) else { return narrow };
    if wide.estimate.seconds > narrow.estimate.seconds * NEAR {
        return narrow;
    }
    let wide = search.polish(wide);
    let pays = wide.estimate.seconds < narrow.estimate.seconds * PAYS;
    if pays { wide } else { narrow }
}

/// The roundings of a choice, in the order of what they add to the gradients' noise.
fn noisiest(members: &Members, choice: &Choice) -> Vec<(String, Format, f64)> {
    let live = Live::new(members, choice.clone());
    let mut out: Vec<(String, Format, f64)> = (0..members.ids())
        .map(Id::from)
        .filter(|&b| live.noise_of(b) > 0.0)
        .filter_map(|b| {
            let (format, value) = rounding(members, &live.choice, b)?;
            let name = members.name(value).unwrap_or("a value of a rewrite");
            Some((name.to_owned(), format, live.noise_of(b)))
        })
        .collect();
    out.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
    out
}

/// The graph of the smallest members, with outputs as values: what recognition makes of a graph.
pub fn plainest(step: &Graph, encoded: &Encoded, egraph: &EGraph) -> Result<Graph> {
    let members = Members::new(step, encoded, egraph);
    let built = Sketch::whole(&members, &members.cheapest())?.graph()?;
    // Operands of products and outputs were stored, which only a plan decides.
    let mut graph = Graph::new(&built.name);
    let mut map: Vec<NodeId> = Vec::with_capacity(built.len());
    for id in built.ids() {
        let x: Vec<NodeId> = built.inputs(id).iter().map(|i| map[i.index()]).collect();
        // What rules made stands where the value before it stood.
        if let Some(old) = step.find(built.name_of(id)).filter(|_| !built.is_auto_named(id)) {
            graph.follow(step.node(old));
        }
        map.push(match built.op(id) {
            Op::Put(_) => x[0],
            Op::Alias { dims } => graph.reshape(x[0], dims)?,
            op if built.is_auto_named(id) => graph.add(op.clone(), &x)?,
            op => graph.add_named(built.name_of(id), op.clone(), &x)?,
        });
    }
    let outputs = built.outputs().iter().map(|o| Output { node: map[o.node.index()], ..o.clone() });
    graph.prune(&outputs.collect::<Vec<_>>())
}

/// The rule behind each choice, by the name of what is chosen.
fn rules_behind(m: &Members, choice: &Choice) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for class in m.reachable(choice) {
        let term = m.chosen(choice, class);
        let Some(rule) = m.rule(term) else { continue };
        if let Some(name) = m.name(class) {
            out.insert(name.to_owned(), rule.to_owned());
        }
        if term.name() == forms::GET {
            let buffer = m.chosen(choice, term.children[0]);
            if let Some(name) = buffer.children.get(1).and_then(|&v| m.name(v)) {
                out.insert(name.to_owned(), rule.to_owned());
            }
        }
    }
    out
}
