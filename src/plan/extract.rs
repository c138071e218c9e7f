//! Choosing one member of every e-class: the cheapest step the cost model can find.
//!
//! Shared values are counted once, because what is costed is the graph a choice builds, cut into kernels as it will be
//! run; cyclic choices are rejected while that graph is built. The start is "keep what is pointwise in registers, store
//! the rest in the narrowest format"; local search then flips edges between their members, one at a time and together
//! with an operand's edge (moving a store across an operation needs both at once).

use crate::cost::{Estimate, Target};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Output, Role, verify};
use crate::lower::lower;
use crate::rewrite::{EGraph, Encoded, Sort, Term, decode_op, is_product};
use egg::{Id, Language};
use std::collections::{BTreeMap, BTreeSet};

/// Values costed in a search: candidates times values of the step.
const SEARCH: usize = 200_000;

/// A choice: the member taken in every class where it is not the first.
#[derive(Clone, Debug, Default)]
struct Choice(BTreeMap<Id, usize>);

/// The chosen graph, with what it is predicted to cost.
pub struct Extracted {
    pub graph: Graph,
    pub estimate: Estimate,
    /// Graphs costed on the way.
    pub evaluations: usize,
    /// The search ended before it had tried every flip.
    pub cut_short: bool,
    /// The rule that made each stored buffer's choice, by the buffer's name.
    pub rules: BTreeMap<String, String>,
}

pub struct Extractor<'a> {
    step: &'a Graph,
    egraph: &'a EGraph,
    encoded: &'a Encoded,
    target: &'a Target,
    /// Members of every class, cheapest tree first.
    members: BTreeMap<Id, Vec<Term>>,
    /// Terms some rule made.
    made_by: BTreeMap<Term, String>,
    names: BTreeMap<Id, String>,
}

impl<'a> Extractor<'a> {
    /// `egraph` is `encoded`'s after saturation.
    pub fn new(step: &'a Graph, encoded: &'a Encoded, egraph: &'a EGraph, target: &'a Target) -> Extractor<'a> {
        let mut names = BTreeMap::new();
        for id in step.ids() {
            names.entry(egraph.find(encoded.classes[id.index()])).or_insert_with(|| step.name_of(id).to_owned());
        }
        let canonical = |t: &Term| t.clone().map_children(|c| egraph.find(c));
        let made_by = egraph.analysis.made_by.iter().map(|(t, r)| (canonical(t), r.to_string())).collect();
        let mut e = Extractor { step, egraph, encoded, target, members: BTreeMap::new(), made_by, names };
        e.members = e.rank_members();
        e
    }

    /// Orders every class's members by the dearest chain below them, which no cycle can have.
    fn rank_members(&self) -> BTreeMap<Id, Vec<Term>> {
        let mut best: BTreeMap<Id, f64> = BTreeMap::new();
        let price = |t: &Term, best: &BTreeMap<Id, f64>| -> Option<f64> {
            // The dearest operand, not their sum: sums of shared values grow without bound in a deep network.
            let mut below: f64 = 0.0;
            for c in &t.children {
                below = below.max(*best.get(&self.egraph.find(*c))?);
            }
            Some(below + self.own_price(t))
        };
        loop {
            let mut changed = false;
            for class in self.egraph.classes() {
                let cheapest = class.nodes.iter().filter_map(|t| price(t, &best)).fold(f64::INFINITY, f64::min);
                if cheapest < best.get(&class.id).copied().unwrap_or(f64::INFINITY) {
                    best.insert(class.id, cheapest);
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        let mut out = BTreeMap::new();
        for class in self.egraph.classes() {
            let mut priced: Vec<(f64, Term)> = class
                .nodes
                .iter()
                .filter_map(|t| Some((price(t, &best)?, t.clone().map_children(|c| self.egraph.find(c)))))
                .collect();
            priced.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
            priced.dedup_by(|a, b| a.1 == b.1);
            out.insert(class.id, priced.into_iter().map(|p| p.1).collect());
        }
        out
    }

    fn own_price(&self, t: &Term) -> f64 {
        match t.name() {
            "" => 0.0,
            "carried" | "staged" => 0.01,
            "param" | "input" | "state" => 0.5,
            "put" | "cast" => 0.1 + 0.01 * self.format_of(t.children[0]).map_or(4, Format::bytes) as f64,
            "get" | "pass" => 0.01,
            // Low products first: their operands' casts are priced above.
            name if is_product(name) => {
                if self.format_of(t.children[0]).is_some_and(Format::is_low) {
                    0.0
                } else {
                    2.0
                }
            }
            _ => 1.0,
        }
    }

    fn format_of(&self, word: Id) -> Option<Format> {
        self.egraph[word].data.word.and_then(|w| w.as_str().parse().ok())
    }

    /// The cheapest graph found.
    pub fn extract(&self) -> Result<Extracted> {
        let edges: Vec<Id> = self
            .members
            .iter()
            .filter(|(id, m)| self.egraph[**id].data.sort == Sort::Edge && m.len() > 1)
            .map(|(id, _)| *id)
            .collect();
        let (mut evaluations, mut evaluated, mut cut_short) = (0, 0, false);
        let mut cost = |choice: &Choice| -> Option<(f64, Graph, Estimate)> {
            evaluations += 1;
            let graph = self.build(choice).ok()?;
            let estimate = self.estimate(&graph).ok()?;
            Some((estimate.seconds, graph, estimate))
        };
        let starts = [self.start(true), self.start(false)];
        let mut best: Option<(Choice, f64, Graph, Estimate)> = None;
        for start in starts {
            if let Some((seconds, graph, estimate)) = cost(&start)
                && best.as_ref().is_none_or(|b| seconds < b.1)
            {
                best = Some((start, seconds, graph, estimate));
            }
        }
        let Some(mut best) = best else {
            // Say what is wrong with the choice that stores everything: it should always be possible.
            let graph = self.build(&self.start(false))?;
            self.estimate(&graph)?;
            return Err(Error::Graph("no choice of formats can be lowered".into()));
        };
        // Every candidate is lowered whole, so large graphs can afford few of them.
        let most = SEARCH / self.step.len().max(1);
        // Only edges of the graph at hand are worth flipping; it changes as flips are accepted.
        'search: for _sweep in 0..4 {
            let before = best.1;
            for &edge in &edges {
                let live = self.reachable(&best.0);
                if !live.contains(&edge) {
                    continue;
                }
                for flip in self.flips(&best.0, edge) {
                    evaluated += 1;
                    if evaluated > most {
                        cut_short = true;
                        break 'search;
                    }
                    if let Some((seconds, graph, estimate)) = cost(&flip)
                        && seconds < best.1 * (1.0 - 1e-9)
                    {
                        best = (flip, seconds, graph, estimate);
                    }
                }
            }
            if best.1 >= before * (1.0 - 1e-9) {
                break;
            }
        }
        let (choice, _, graph, estimate) = best;
        let rules = self.rules(&choice);
        Ok(Extracted { graph, estimate, evaluations, cut_short, rules })
    }

    /// The graph of the smallest members, with outputs as values: what recognition makes of a graph.
    pub fn plainest(&self) -> Result<Graph> {
        let built = self.build(&Choice::default())?;
        // Operands of products and outputs were stored, which only a plan decides.
        let mut graph = Graph::new(&built.name);
        let mut map: Vec<NodeId> = Vec::with_capacity(built.len());
        for id in built.ids() {
            let x: Vec<NodeId> = built.inputs(id).iter().map(|i| map[i.index()]).collect();
            map.push(match built.op(id) {
                Op::Put(_) => x[0],
                Op::Alias { dims } => graph.reshape(x[0], dims)?,
                op if built.is_auto_named(id) || matches!(op, Op::Const(_)) => graph.add(op.clone(), &x)?,
                op => graph.add_named(built.name_of(id), op.clone(), &x)?,
            });
        }
        let outputs = built.outputs().iter().map(|o| Output { node: map[o.node.index()], ..o.clone() });
        graph.prune(&outputs.collect::<Vec<_>>())
    }

    /// "Pass what is pointwise, get the rest in the narrowest format", or everything stored. A value computed from a
    /// product or a reduction is passed only to a single user: nobody computes those twice.
    fn start(&self, pass_pointwise: bool) -> Choice {
        let mut choice = Choice::default();
        let users = self.users();
        let mut heavy: BTreeMap<Id, bool> = BTreeMap::new();
        let mut read_in_place: BTreeSet<Id> = BTreeSet::new();
        for members in self.members.values() {
            for t in members.iter().filter(|t| {
                matches!(
                    t.name(),
                    "transpose" | "slice" | "pad" | "concat" | "gather" | "reshape" | "window" | "unwindow"
                )
            }) {
                read_in_place.extend(t.children.iter().copied());
            }
        }
        // A scalar is computed once, not by every thread that reads it.
        let mut spread: BTreeSet<Id> = BTreeSet::new();
        for class in self.reachable(&Choice::default()) {
            let wide = self.rank(class).is_some_and(|r| r > 0);
            spread.extend(
                self.members[&class][0]
                    .children
                    .iter()
                    .map(|&c| self.egraph.find(c))
                    .filter(|&c| wide && self.rank(c) == Some(0)),
            );
        }
        for (&class, members) in &self.members {
            if self.egraph[class].data.sort != Sort::Edge || members.len() < 2 {
                continue;
            }
            let passed = members.iter().find(|t| t.name() == "pass");
            let cheap = passed.is_some_and(|t| self.passes(t.children[0], &users, &mut heavy));
            let scalar = spread.contains(&class);
            let pass = pass_pointwise && cheap && !scalar && !read_in_place.contains(&class);
            let pick = if pass { self.position(members, |t| t.name() == "pass") } else { self.narrowest(members) };
            choice.0.insert(class, pick.unwrap_or(0));
        }
        choice
    }

    /// How many terms of the plainest choice read each value.
    fn users(&self) -> BTreeMap<Id, usize> {
        let mut out = BTreeMap::new();
        for class in self.reachable(&Choice::default()) {
            if !matches!(self.egraph[class].data.sort, Sort::Value | Sort::Step) {
                continue;
            }
            for &child in &self.members[&class][0].children {
                let members = &self.members[&self.egraph.find(child)];
                let value = members.iter().find_map(|t| match t.name() {
                    "pass" => Some(t.children[0]),
                    "put" => Some(t.children[1]),
                    _ => None,
                });
                if let Some(v) = value {
                    *out.entry(self.egraph.find(v)).or_insert(0) += 1;
                }
            }
        }
        out
    }

    /// Does the first start keep this value in registers?
    fn passes(&self, value: Id, users: &BTreeMap<Id, usize>, heavy: &mut BTreeMap<Id, bool>) -> bool {
        let single = users.get(&value).copied().unwrap_or(0) <= 1;
        (self.is_product(value) && single)
            || (self.is_pointwise(value) && (single || !self.is_heavy(value, users, heavy)))
    }

    /// Does computing this value take a product, if operands are passed as the first start passes them?
    fn is_heavy(&self, value: Id, users: &BTreeMap<Id, usize>, known: &mut BTreeMap<Id, bool>) -> bool {
        if let Some(&h) = known.get(&value) {
            return h;
        }
        known.insert(value, false);
        let heavy = self.is_product(value)
            || self.members[&value][0].children.iter().any(|e| {
                let members = self.members.get(&self.egraph.find(*e));
                let passed = members.filter(|m| m.len() > 1).and_then(|m| m.iter().find(|t| t.name() == "pass"));
                passed.is_some_and(|t| {
                    self.passes(t.children[0], users, known) && self.is_heavy(t.children[0], users, known)
                })
            });
        known.insert(value, heavy);
        heavy
    }

    fn rank(&self, class: Id) -> Option<usize> {
        self.egraph[class].data.ty.as_ref().map(|t| t.shape.rank())
    }

    fn is_product(&self, value: Id) -> bool {
        self.members.get(&value).is_some_and(|m| is_product(m[0].name()))
    }

    fn position(&self, members: &[Term], f: impl Fn(&Term) -> bool) -> Option<usize> {
        members.iter().position(f)
    }

    /// The stored member in the narrowest format.
    fn narrowest(&self, members: &[Term]) -> Option<usize> {
        let bytes = |t: &Term| self.egraph[t.children[0]].data.ty.as_ref().map_or(usize::MAX, |ty| ty.format.bytes());
        (0..members.len()).filter(|&i| members[i].name() == "get").min_by_key(|&i| bytes(&members[i]))
    }

    fn is_pointwise(&self, value: Id) -> bool {
        let Some(term) = self.members.get(&value).and_then(|m| m.first()) else { return false };
        decode_op(self.egraph, term)
            .is_ok_and(|(op, _)| op.is_elementwise() || matches!(op, Op::Broadcast { .. } | Op::Reshape { .. }))
    }

    /// Alternatives at one edge: each other member, alone and with the opposite choice at one operand below.
    fn flips(&self, now: &Choice, edge: Id) -> Vec<Choice> {
        let members = &self.members[&edge];
        let current = now.0.get(&edge).copied().unwrap_or(0);
        let mut out = Vec::new();
        for other in (0..members.len()).filter(|&i| i != current) {
            let mut one = now.clone();
            one.0.insert(edge, other);
            out.push(one.clone());
            let Some(value) = members.iter().find(|t| t.name() == "pass").map(|t| t.children[0]) else { continue };
            let stored = members[other].name() == "get";
            let Some(term) = self.members[&value].first() else { continue };
            for &operand in &term.children {
                let Some(below) =
                    self.members.get(&operand).filter(|m| m.len() > 1 && self.egraph[operand].data.sort == Sort::Edge)
                else {
                    continue;
                };
                let to = if stored { self.position(below, |t| t.name() == "pass") } else { self.narrowest(below) };
                if let Some(to) = to.filter(|&to| now.0.get(&operand).copied().unwrap_or(0) != to) {
                    let mut two = one.clone();
                    two.0.insert(operand, to);
                    out.push(two);
                }
            }
        }
        out
    }

    fn chosen(&self, choice: &Choice, class: Id) -> &Term {
        let class = self.egraph.find(class);
        &self.members[&class][choice.0.get(&class).copied().unwrap_or(0)]
    }

    fn reachable(&self, choice: &Choice) -> BTreeSet<Id> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![self.egraph.find(self.encoded.root)];
        while let Some(class) = stack.pop() {
            if seen.insert(class) {
                stack.extend(self.chosen(choice, class).children.iter().map(|&c| self.egraph.find(c)));
            }
        }
        seen
    }

    fn rules(&self, choice: &Choice) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        for class in self.reachable(choice) {
            let term = self.chosen(choice, class);
            if let (Some(name), Some(rule)) = (self.names.get(&class), self.made_by.get(term)) {
                out.insert(name.clone(), rule.clone());
            }
            if term.name() == "get"
                && let Some(rule) = self.made_by.get(term)
            {
                let buffer = self.chosen(choice, term.children[0]);
                if let Some(name) = buffer.children.get(1).and_then(|v| self.names.get(&self.egraph.find(*v))) {
                    out.insert(name.clone(), rule.clone());
                }
            }
        }
        out
    }

    fn estimate(&self, graph: &Graph) -> Result<Estimate> {
        Ok(self.target.estimate_program(&lower(verify(graph)?)?))
    }

    /// The graph a choice stands for.
    fn build(&self, choice: &Choice) -> Result<Graph> {
        let mut b = Builder {
            x: self,
            choice,
            graph: Graph::new(&self.step.name),
            done: BTreeMap::new(),
            open: BTreeSet::new(),
            carried: BTreeSet::new(),
        };
        for o in self.step.outputs().iter().zip(&self.chosen(choice, self.encoded.root).children.clone()) {
            let node = b.class(*o.1)?;
            b.graph.add_output(&o.0.name, o.0.role, node);
        }
        // What is updated exists, even if only copies of it are read.
        for o in self.step.outputs().iter().filter(|o| o.role == Role::Update) {
            b.source(&o.name)?;
        }
        // A carried copy obliges the step to write it; writing one may need others.
        let mut written = BTreeSet::new();
        while let Some((name, format)) = b.carried.iter().find(|c| !written.contains(*c)).cloned() {
            let value = b.class(self.encoded.updates[&name])?;
            let copy = copy_name(&name, format);
            let put = b.graph.add(Op::Put(format), &[value])?;
            b.graph.rename(put, &format!("{copy}.next"));
            b.graph.add_output(copy, Role::Update, put);
            written.insert((name, format));
        }
        Ok(b.graph)
    }
}

/// The name of a source's copy in another format.
pub fn copy_name(source: &str, format: Format) -> String {
    format!("{source}.{format}")
}

struct Builder<'a> {
    x: &'a Extractor<'a>,
    choice: &'a Choice,
    graph: Graph,
    done: BTreeMap<Id, NodeId>,
    open: BTreeSet<Id>,
    carried: BTreeSet<(String, Format)>,
}

impl Builder<'_> {
    fn class(&mut self, class: Id) -> Result<NodeId> {
        let class = self.x.egraph.find(class);
        if let Some(&node) = self.done.get(&class) {
            return Ok(node);
        }
        if !self.open.insert(class) {
            return Err(Error::Graph("a cyclic choice".into()));
        }
        let node = self.term(class)?;
        self.open.remove(&class);
        self.done.insert(class, node);
        Ok(node)
    }

    fn term(&mut self, class: Id) -> Result<NodeId> {
        let term = self.x.chosen(self.choice, class);
        let word = |i: usize| self.x.egraph[term.children[i]].data.word.map_or("", |w| w.as_str());
        match term.name() {
            "pass" | "get" => self.class(term.children[0]),
            "param" | "state" | "input" => self.source(word(0)),
            "carried" | "staged" => {
                let (name, format) =
                    (word(1).to_owned(), word(0).parse::<Format>().map_err(|e| Error::Graph(e.to_string()))?);
                let mut ty = self.x.egraph.analysis.sources[&name].clone();
                ty.format = format;
                let copy = copy_name(&name, format);
                let op = if term.name() == "staged" {
                    Op::Input { label: false, ty, copy_of: Some(name) }
                } else {
                    self.carried.insert((name.clone(), format));
                    Op::State { init: Init::Copy(name), ty }
                };
                self.graph.add_named(copy, op, &[])
            }
            _ => {
                let (op, operands) = decode_op(self.x.egraph, term).map_err(Error::Graph)?;
                let inputs = operands.into_iter().map(|o| self.class(o)).collect::<Result<Vec<_>>>()?;
                let node = self.graph.add(op.clone(), &inputs)?;
                match &op {
                    Op::Put(f) => {
                        let name = copy_name(self.graph.name_of(inputs[0]), *f);
                        self.graph.rename(node, &name);
                    }
                    Op::Const(_) => {}
                    _ => {
                        if let Some(name) = self.x.names.get(&class) {
                            self.graph.rename(node, name);
                        }
                    }
                }
                Ok(node)
            }
        }
    }

    fn source(&mut self, name: &str) -> Result<NodeId> {
        if let Some(id) = self.graph.find(name) {
            return Ok(id);
        }
        let id = self.x.step.find(name).ok_or_else(|| Error::Graph(format!("no source `{name}`")))?;
        self.graph.add_named(name, self.x.step.op(id).clone(), &[])
    }
}
