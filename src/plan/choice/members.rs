//! The members of every e-class, cheapest first, and a choice among them.

use crate::format::Format;
use crate::ir::ops::names;
use crate::ir::{Graph, Named, Op, Stage, Unary};
use crate::plan::evidence::Estimates;
use crate::rewrite::{EGraph, Encoded, Sort, Term, decode_op, forms, is_product};
use egg::{Id, Language};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The member taken in every class, by class id; 0 is the cheapest.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Choice(Vec<u16>);

impl Choice {
    pub fn of(&self, class: Id) -> usize {
        usize::from(self.0[usize::from(class)])
    }

    pub fn set(&mut self, class: Id, member: usize) {
        self.0[usize::from(class)] = u16::try_from(member).expect("classes have few members");
    }

    /// Takes members together.
    pub fn take<'f>(&mut self, flip: impl IntoIterator<Item = &'f (Id, usize)>) {
        flip.into_iter().for_each(|&(class, member)| self.set(class, member));
    }
}

/// A saturated e-graph seen as a set of choices. Class ids handed out and taken are canonical.
pub(in crate::plan) struct Members<'a> {
    pub step: &'a Graph,
    pub encoded: &'a Encoded,
    pub root: Id,
    egraph: &'a EGraph,
    /// By class id; empty where the id is not canonical.
    of: Vec<Vec<Term>>,
    /// Terms some rule made.
    made_by: HashMap<Term, String>,
    names: HashMap<Id, (String, Named)>,
    /// Classes of values that belong to the optimizer and the scaler.
    updates: Vec<bool>,
    /// The first pass that computes a value of each class; none for values that only rules made.
    passes: Vec<Option<Stage>>,
    /// What roundings add to the gradients' noise, where that was measured.
    pub noise: Option<Estimates>,
}

impl<'a> Members<'a> {
    /// `egraph` is `encoded`'s after saturation.
    pub fn new(step: &'a Graph, encoded: &'a Encoded, egraph: &'a EGraph) -> Members<'a> {
        let ids = egraph.classes().map(|c| usize::from(c.id) + 1).max().unwrap_or(0);
        let (mut names, mut updates, mut passes) = (HashMap::new(), vec![false; ids], vec![None; ids]);
        for id in step.ids() {
            let class = egraph.find(encoded.classes[id.index()]);
            names.entry(class).or_insert_with(|| (step.name_of(id).to_owned(), step.node(id).named));
            let stage = step.node(id).stage;
            updates[usize::from(class)] |= stage == Stage::Update;
            let first = &mut passes[usize::from(class)];
            *first = Some(first.map_or(stage, |known: Stage| known.min(stage)));
        }
        let canonical = |t: &Term| t.clone().map_children(|c| egraph.find(c));
        let made_by = egraph.analysis.made_by.iter().map(|(t, r)| (canonical(t), r.to_string())).collect();
        let root = egraph.find(encoded.root);
        let mut m = Members {
            step,
            encoded,
            root,
            egraph,
            of: vec![Vec::new(); ids],
            made_by,
            names,
            updates,
            passes,
            noise: None,
        };
        m.rank();
        m
    }

    /// Orders every class's members by the dearest chain below them, which no cycle can have. Classes are priced from the
    /// cheapest up, each when the first of its members has all it reads (Knuth, *A Generalization of Dijkstra's Algorithm*,
    /// 1977).
    fn rank(&mut self) {
        let mut best = vec![f64::INFINITY; self.of.len()];
        let below = |m: &Members, t: &Term, best: &[f64]| {
            // The dearest operand, not their sum: sums of shared values grow without bound in a deep network.
            t.children.iter().map(|&c| best[usize::from(m.egraph.find(c))]).fold(0.0, f64::max)
        };
        let price = |m: &Members, t: &Term, best: &[f64]| below(m, t, best) + m.own_price(t);
        let mut ids: Vec<Id> = self.egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let terms: Vec<(Id, &Term)> =
            ids.iter().flat_map(|&id| self.egraph[id].nodes.iter().map(move |t| (id, t))).collect();
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); self.of.len()];
        let mut unpriced: Vec<usize> = terms.iter().map(|(_, t)| t.children.len()).collect();
        // Prices are not negative, so their bits are in their order.
        let mut waiting = BinaryHeap::new();
        for (at, (id, t)) in terms.iter().enumerate() {
            t.children.iter().for_each(|&c| readers[usize::from(self.egraph.find(c))].push(at));
            if t.children.is_empty() {
                waiting.push(Reverse((self.own_price(t).to_bits(), *id)));
            }
        }
        while let Some(Reverse((bits, id))) = waiting.pop() {
            let at = usize::from(id);
            if best[at].is_finite() {
                continue;
            }
            best[at] = f64::from_bits(bits);
            for &reader in &readers[at] {
                unpriced[reader] -= 1;
                let (id, t) = terms[reader];
                if unpriced[reader] == 0 && best[usize::from(id)].is_infinite() {
                    waiting.push(Reverse((price(self, t, &best).to_bits(), id)));
                }
            }
        }
        for id in ids {
            // Where the dearest operand is the same, the others decide.
            let rest = |t: &Term| t.children.iter().map(|&c| best[usize::from(self.egraph.find(c))]).sum::<f64>();
            let priced = self.egraph[id].nodes.iter().map(|t| ((price(self, t, &best), rest(t)), t));
            let mut priced: Vec<((f64, f64), Term)> = priced
                .filter(|(p, _)| p.0.is_finite())
                .map(|(p, t)| (p, t.clone().map_children(|c| self.egraph.find(c))))
                .collect();
            let order = |a: (f64, f64), b: (f64, f64)| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1));
            priced.sort_by(|a, b| order(a.0, b.0).then_with(|| a.1.cmp(&b.1)));
            priced.dedup_by(|a, b| a.1 == b.1);
            self.of[usize::from(id)] = priced.into_iter().map(|p| p.1).collect();
        }
    }

    /// Takes from the policy's verdicts their freedom: what may be narrow must be, as where operations are painted. Where a
    /// kernel ends is still open.
    pub fn obey(&mut self) {
        for at in 0..self.of.len() {
            let class = Id::from(at);
            let allow = self.egraph[self.egraph.find(class)].data.allow;
            let narrow = |t: &Term| self.ty(t.children[0]).is_some_and(|ty| ty.format.is_low());
            let keep = |t: &Term| match t.name() {
                forms::GET => allow.stores.iter().next().is_none() || narrow(t) || self.passed(class).is_none(),
                name if is_product(name) => {
                    let low = self.format_of(t.children[0]).is_some_and(|f| Format::MULTIPLIED.contains(&f));
                    low || allow.multiplies.iter().next().is_none()
                }
                _ => true,
            };
            let mut kept: Vec<Term> = self.of[at].iter().filter(|t| keep(t)).cloned().collect();
            // What a rule passes instead of the value was stored with a scale.
            let is_scaled = |t: &Term| t.name() == forms::PASS && self.passed(class) != Some(t.children[0]);
            let asked = allow.stores.iter().any(|f| Format::SCALED.contains(&f));
            if asked && kept.iter().any(is_scaled) {
                kept.retain(is_scaled);
            }
            if !kept.is_empty() {
                self.of[at] = kept;
            }
        }
    }

    fn own_price(&self, t: &Term) -> f64 {
        match t.name() {
            "" => 0.0,
            forms::CARRIED | forms::STAGED => 0.01,
            forms::PARAM | forms::INPUT | forms::STATE => 0.5,
            names::PUT | names::CAST => {
                let format = self.format_of(t.children[0]);
                0.1 + 0.01 * format.map_or(4, Format::bytes) as f64 + format.map_or(0.0, finer)
            }
            forms::GET | forms::PASS => 0.01,
            // Low products first: their operands' casts are priced above.
            name if is_product(name) => {
                let format = self.format_of(t.children[0]).unwrap_or(Format::F32);
                match format {
                    Format::Tf32 => 1.5,
                    f if f.is_low() => finer(f),
                    _ => 2.0,
                }
            }
            _ => 1.0,
        }
    }

    pub fn format_of(&self, word: Id) -> Option<Format> {
        self.egraph[word].data.word.and_then(|w| w.as_str().parse().ok())
    }

    /// Ids lie below this.
    pub fn ids(&self) -> usize {
        self.of.len()
    }

    pub fn of(&self, class: Id) -> &[Term] {
        &self.of[usize::from(class)]
    }

    /// The cheapest member everywhere.
    pub fn cheapest(&self) -> Choice {
        Choice(vec![0; self.of.len()])
    }

    pub fn chosen(&self, choice: &Choice, class: Id) -> &Term {
        &self.of(class)[choice.of(class)]
    }

    /// Classes with a member to choose, ascending.
    pub fn open(&self) -> impl Iterator<Item = Id> + '_ {
        (0..self.of.len()).filter(|&i| self.of[i].len() > 1).map(Id::from)
    }

    pub fn find(&self, class: Id) -> Id {
        self.egraph.find(class)
    }

    pub fn sort(&self, class: Id) -> Sort {
        self.egraph[class].data.sort
    }

    pub fn ty(&self, class: Id) -> Option<&crate::ir::Type> {
        self.egraph[class].data.ty.as_ref()
    }

    /// Is the value known at compile time?
    pub fn is_constant(&self, class: Id) -> bool {
        self.egraph[class].data.constant.is_some()
    }

    pub fn rank_of(&self, class: Id) -> Option<usize> {
        self.ty(class).map(|t| t.shape.rank())
    }

    /// Is this a loop?
    pub fn is_loop(&self, class: Id) -> bool {
        self.of(class).first().is_some_and(|t| t.name() == names::SCAN)
    }

    /// The class of a parameter, state or input.
    pub fn source(&self, name: &str) -> Option<Id> {
        self.step.find(name).map(|id| self.find(self.encoded.classes[id.index()]))
    }

    pub fn word(&self, class: Id) -> &'static str {
        self.egraph[class].data.word.map_or("", |w| w.as_str())
    }

    /// The type of a parameter, state or input.
    pub fn source_type(&self, name: &str) -> &crate::ir::Type {
        &self.egraph.analysis.sources[name]
    }

    /// Is the chosen term a parameter, state or input, or a copy of one?
    pub fn is_source(&self, choice: &Choice, class: Id) -> bool {
        let term = self.chosen(choice, class);
        matches!(term.name(), forms::PARAM | forms::STATE | forms::INPUT) || self.copy_of(term).is_some()
    }

    /// The source and the format of a carried or staged copy.
    pub fn copy_of(&self, term: &Term) -> Option<(&'static str, Format)> {
        let is_copy = matches!(term.name(), forms::CARRIED | forms::STAGED);
        is_copy.then(|| (self.word(term.children[1]), self.format_of(term.children[0]).expect("a format leads")))
    }

    /// The value or source whose numbers lie in a buffer.
    pub fn held(&self, choice: &Choice, buffer: Id) -> Id {
        let term = self.chosen(choice, buffer);
        match term.name() {
            names::PUT => term.children[1],
            names::CAST | names::ALIAS => self.held(choice, term.children[1]),
            _ => self.copy_of(term).and_then(|(name, _)| self.source(name)).unwrap_or(buffer),
        }
    }

    /// The tensors that a class's chosen term reads.
    pub fn operands(&self, choice: &Choice, class: Id) -> impl DoubleEndedIterator<Item = Id> {
        let children = self.chosen(choice, class).children.iter().copied();
        children.filter(|&c| self.sort(c) != Sort::Word)
    }

    /// The class of the value that replaces a parameter.
    pub fn update_of(&self, name: &str) -> Id {
        self.find(self.encoded.updates[name])
    }

    pub fn name(&self, class: Id) -> Option<&str> {
        self.names.get(&class).map(|n| n.0.as_str())
    }

    /// Who named a class's value.
    pub fn named(&self, class: Id) -> Named {
        self.names.get(&class).map_or(Named::MadeUp, |n| n.1)
    }

    pub fn rule(&self, term: &Term) -> Option<&str> {
        self.made_by.get(term).map(String::as_str)
    }

    /// Does the value belong to the optimizer or the scaler?
    pub fn is_update(&self, class: Id) -> bool {
        self.updates[usize::from(class)]
    }

    /// The pass that computes what lies in a buffer, where that is known.
    pub fn pass_of(&self, choice: &Choice, buffer: Id) -> Option<Stage> {
        self.passes[usize::from(self.held(choice, buffer))]
    }

    /// Is an edge's value a scalar?
    pub fn is_scalar(&self, edge: Id) -> bool {
        self.passed(edge).is_some_and(|v| self.rank_of(v) == Some(0))
    }

    /// Is it arithmetic of the optimizer's on tensors of its own, or the overflow check's on a gradient?
    pub fn is_optimizers(&self, value: Id) -> bool {
        let own = |&c: &Id| self.passed(c).is_none_or(|v| self.is_update(v) || self.is_constant(v));
        let term = &self.of(value)[0];
        let is_own = term.name() == Unary::IsFinite.name() || term.children.iter().all(own);
        self.is_update(value) && self.rank_of(value) != Some(0) && is_own
    }

    /// The operation of a term and its operands' classes.
    pub fn decode(&self, term: &Term) -> Result<(Op, Vec<Id>), String> {
        decode_op(self.egraph, term)
    }

    /// The edge of each value that can be passed or stored.
    pub fn edges(&self) -> HashMap<Id, Id> {
        self.open().filter_map(|e| Some((self.passed(e)?, e))).collect()
    }

    /// The value an edge passes.
    pub fn passed(&self, edge: Id) -> Option<Id> {
        self.of(edge).iter().find(|t| t.name() == forms::PASS).map(|t| t.children[0])
    }

    pub fn is_product(&self, value: Id) -> bool {
        self.of(value).first().is_some_and(|t| is_product(t.name()))
    }

    pub fn is_pointwise(&self, value: Id) -> bool {
        self.of(value).first().is_some_and(|t| {
            self.decode(t)
                .is_ok_and(|(op, _)| op.is_elementwise() || matches!(op, Op::Broadcast { .. } | Op::Reshape { .. }))
        })
    }

    /// The position of an edge's stored member in the narrowest format.
    pub fn narrowest(&self, edge: Id) -> Option<usize> {
        let bytes = |t: &Term| self.ty(t.children[0]).map_or(usize::MAX, |ty| ty.format.bytes());
        let members = self.of(edge);
        (0..members.len()).filter(|&i| members[i].name() == forms::GET).min_by_key(|&i| bytes(&members[i]))
    }

    /// The position of an edge's member that is stored in a format.
    pub fn getting(&self, edge: Id, format: Format) -> Option<usize> {
        let is = |t: &Term| t.name() == forms::GET && self.ty(t.children[0]).is_some_and(|ty| ty.format == format);
        self.of(edge).iter().position(is)
    }

    /// The position of a product's member that multiplies in another format and is otherwise the one chosen.
    pub fn multiplying(&self, choice: &Choice, product: Id, format: Format) -> Option<usize> {
        let now = self.chosen(choice, product);
        let words = |t: &Term| -> Vec<&'static str> {
            let words = t.children.iter().filter(|&&c| self.sort(c) == Sort::Word);
            words.map(|&c| self.word(c)).filter(|w| w.parse::<Format>().is_err()).collect()
        };
        self.of(product).iter().position(|t| {
            t.name() == now.name() && self.format_of(t.children[0]) == Some(format) && words(t) == words(now)
        })
    }

    /// The position of an edge's passed member.
    pub fn pass(&self, edge: Id) -> Option<usize> {
        self.of(edge).iter().position(|t| t.name() == forms::PASS)
    }

    /// Everything a choice reaches from the root.
    pub fn reachable(&self, choice: &Choice) -> Vec<Id> {
        let mut seen = vec![false; self.of.len()];
        let (mut stack, mut out) = (vec![self.root], Vec::new());
        while let Some(class) = stack.pop() {
            if !std::mem::replace(&mut seen[usize::from(class)], true) {
                out.push(class);
                stack.extend(&self.chosen(choice, class).children);
            }
        }
        out.sort_unstable();
        out
    }
}

/// Of formats that cost the same, the one with the longer mantissa goes first.
fn finer(format: Format) -> f64 {
    format.float().map_or(0.0, |s| 1e-3 * s.unit_roundoff())
}
