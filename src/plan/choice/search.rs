//! Local search: edges are flipped between their members, one at a time and together with an operand's edge (moving a
//! store across an operation needs both at once).
//!
//! What a flip saves is found by lowering its *window*, the kernels it touches and those beside them, before and after.
//! Windows of repeated layers are equal and costed once, so the time follows the number of distinct layers. Windows
//! cannot see everything (launches shared across the step, for one), so every sweep ends with the whole step lowered;
//! moves that save much less together than each promised are tried in halves. Small steps end with flips costed whole.

use super::alike::Alike;
use super::live::{Flip, Live};
use super::members::{Choice, Members};
use super::sketch::{Key, Sketch};
use super::window::{READERS, cut_off, window};
use crate::cost::{Estimate, Target};
use crate::error::Result;
use crate::format::Format;
use crate::ir::Graph;
use crate::plan::Request;
use crate::rewrite::{Sort, forms};
use egg::Id;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// Values lowered in whole steps: evaluations times values of the step.
const WHOLE: usize = 60_000;
/// At least so many whole evaluations.
const FEWEST: usize = 6;
const SWEEPS: usize = 4;
/// Moves are taken together if they save this share of what each promised.
const KEPT: f64 = 0.5;
/// Steps of up to so many values are searched from two starts, and flip by flip.
pub(in crate::plan) const SMALL: usize = 250;
/// Steps of up to so many values are searched in pairs of flips.
const TINY: usize = 64;

pub(in crate::plan) struct Search<'a> {
    pub members: &'a Members<'a>,
    target: &'a Target,
    /// What is chosen in one layer is chosen in all that are like it.
    pub alike: Alike,
    /// The noise that a choice may add, where noise counts: 1 is all of the budget.
    limit: f64,
    known: FxHashMap<Key, Option<f64>>,
    /// Whole steps lowered before: seconds and nodes, none for those that cannot be.
    seen: FxHashMap<Key, Option<(f64, usize)>>,
    /// Whole steps that may be lowered at most.
    most: usize,
    /// Moves that saved nothing in the whole step.
    refused: FxHashSet<Flip>,
    /// The fastest choice found before noise was asked about.
    pub fastest: Option<Choice>,
    /// Windows and whole steps lowered.
    pub evaluations: usize,
    /// Ended before every kind of move was tried.
    pub cut_short: bool,
}

/// A choice costed whole.
pub(in crate::plan) struct Costed {
    pub choice: Choice,
    pub graph: Graph,
    pub estimate: Estimate,
    /// What the choice adds to the gradients' noise: nothing where noise does not count.
    noise: f64,
}

impl Costed {
    /// Is it cheaper, or as cheap and rounds less, or as cheap with less in it? What nothing gains by stands in the way of
    /// what would.
    fn is_better(&self, than: &Costed) -> bool {
        is_better((self.estimate.seconds, self.graph.len()), self.noise, than)
    }
}

fn is_better((seconds, nodes): (f64, usize), noise: f64, than: &Costed) -> bool {
    if (seconds - than.estimate.seconds).abs() > 1e-9 * than.estimate.seconds {
        return seconds < than.estimate.seconds;
    }
    let quieter = noise < than.noise * (1.0 - 1e-9);
    quieter || (noise <= than.noise && nodes < than.graph.len())
}

/// A flip taken in a sweep, what it should have saved, and the noise with it.
struct Move {
    flip: Flip,
    saved: f64,
    noise: f64,
}

impl<'a> Search<'a> {
    pub fn new(members: &'a Members<'a>, request: &'a Request, alike: Alike) -> Search<'a> {
        Search {
            most: request.search.unwrap_or(usize::MAX),
            members,
            target: &request.target,
            alike,
            limit: f64::INFINITY,
            fastest: None,
            known: FxHashMap::default(),
            seen: FxHashMap::default(),
            refused: FxHashSet::default(),
            evaluations: 0,
            cut_short: false,
        }
    }

    /// Costs a choice by lowering the whole step.
    pub fn whole(&mut self, choice: Choice) -> Result<Costed> {
        let noise = self.noise(&choice);
        self.with_noise(choice, noise)
    }

    fn with_noise(&mut self, choice: Choice, noise: f64) -> Result<Costed> {
        let (graph, estimate) = self.lowered(&Sketch::whole(self.members, &choice)?)?;
        Ok(Costed { choice, graph, estimate, noise })
    }

    fn lowered(&mut self, sketch: &Sketch) -> Result<(Graph, Estimate)> {
        self.evaluations += 1;
        let graph = sketch.graph()?;
        let estimate = self.target.estimate_graph(&graph)?;
        Ok((graph, estimate))
    }

    /// Whole steps that a search may lower.
    fn allowance(&self) -> usize {
        (WHOLE / self.members.step.len().max(1)).max(FEWEST).min(self.most)
    }

    /// The best choice found from `best` on.
    pub fn improve(&mut self, best: Costed) -> Costed {
        self.limit = f64::INFINITY;
        let mut left = self.allowance();
        let mut best = self.by_windows(best, &mut left);
        if self.members.noise.is_some() {
            // First the fastest choice of all, then what keeps to the budget, then what the budget leaves room for.
            self.fastest = Some(best.choice.clone());
            let choice = self.raised(best.choice.clone(), 1.0);
            self.limit = self.noise(&choice).max(1.0);
            if let Ok(raised) = self.whole(choice) {
                best = raised;
            }
            left = left.max(FEWEST.min(self.most));
            best = self.by_windows(best, &mut left);
            best = self.swept(best, true, &mut left.max(FEWEST.min(self.most)));
        }
        self.flipped(best, left)
    }

    /// Goes on from another choice, within the limit.
    pub fn polish(&mut self, from: Costed) -> Costed {
        let mut left = self.allowance();
        let best = self.by_windows(from, &mut left);
        self.flipped(best, left)
    }

    fn flipped(&mut self, best: Costed, mut left: usize) -> Costed {
        let best = self.one_by_one(best, &mut left);
        self.in_pairs(best, &mut left)
    }

    /// What a choice adds to the gradients' noise: nothing where noise does not count.
    fn noise(&self, choice: &Choice) -> f64 {
        self.members.noise.as_ref().map_or(0.0, |_| Live::new(self.members, choice.clone()).noise())
    }

    /// What windows do not see: flips costed in the whole step, scalars first, which share launches with those far away.
    fn one_by_one(&mut self, mut best: Costed, left: &mut usize) -> Costed {
        let m = self.members;
        if m.step.len() > SMALL {
            return best;
        }
        let mut open: Vec<Id> = self.open();
        open.sort_by_key(|&c| m.rank_of(c) != Some(0));
        let mut live = Live::new(m, best.choice.clone());
        // Round and round, until every flip was tried on the choice that stands.
        let mut began_at = None;
        for class in open.iter().copied().cycle() {
            if began_at == Some(class) {
                break;
            }
            began_at.get_or_insert(class);
            if !live.is_live(class) {
                continue;
            }
            for flip in flips(m, &live, class) {
                if *left == 0 {
                    return best;
                }
                *left -= 1;
                let flip = self.alike.everywhere(m, &flip);
                if let Some(better) = self.better(&best, flip.iter()) {
                    best = better;
                    live.take(&flip);
                    began_at = Some(class);
                    break;
                }
            }
        }
        best
    }

    /// The same with two flips at once, in steps so small that all pairs can be tried: loops' bodies, for one.
    fn in_pairs(&mut self, mut best: Costed, left: &mut usize) -> Costed {
        let m = self.members;
        let mut tried = m.step.len() > TINY;
        while !tried {
            let live = Live::new(m, best.choice.clone());
            let open = self.open().into_iter().filter(|&c| live.is_live(c));
            let flips = open.flat_map(|c| flips(m, &live, c)).map(|f| self.alike.everywhere(m, &f));
            let flips: Vec<Flip> = flips.collect();
            tried = true;
            for (a, b) in flips.iter().enumerate().flat_map(|(i, a)| flips[i + 1..].iter().map(move |b| (a, b))) {
                if *left == 0 {
                    return best;
                }
                *left -= 1;
                if let Some(better) = self.better(&best, a.iter().chain(b)) {
                    best = self.one_by_one(better, left);
                    tried = false;
                    break;
                }
            }
        }
        best
    }

    fn by_windows(&mut self, mut best: Costed, left: &mut usize) -> Costed {
        self.refused.clear();
        for _ in 0..SWEEPS {
            // What a sweep finds has to be lowered whole before it is taken.
            if *left == 0 {
                self.cut_short = true;
                break;
            }
            let before = best.estimate.seconds;
            best = self.swept(best, false, left);
            if best.estimate.seconds >= before {
                break;
            }
        }
        best
    }

    /// The choice after a sweep.
    fn swept(&mut self, best: Costed, ending: bool, left: &mut usize) -> Costed {
        // Moves alike that save the same are the same move in repeated layers.
        let mut kinds: BTreeMap<_, Vec<Move>> = BTreeMap::new();
        for m in self.sweep(best.choice.clone(), ending) {
            let alike: Vec<_> = m.flip.iter().map(|&(c, member)| self.signature(c, member)).collect();
            kinds.entry((m.saved.to_bits(), alike)).or_default().push(m);
        }
        let mut kinds: Vec<Vec<Move>> = kinds.into_values().collect();
        let total = |k: &Vec<Move>| k.iter().map(|m| m.saved).sum::<f64>();
        kinds.sort_by(|a, b| total(b).total_cmp(&total(a)));
        self.apply(best, &kinds, left)
    }

    /// What is done at a class by taking a member: the same in repeated layers.
    fn signature(&self, class: Id, member: usize) -> (&'static str, &'static str, Option<Format>) {
        let (m, term) = (self.members, &self.members.of(class)[member]);
        let of = m.passed(class).map_or("", |v| m.of(v)[0].name());
        (of, term.name(), term.children.first().and_then(|&c| m.ty(c)).map(|t| t.format))
    }

    /// Takes those moves that keep what they promise in the whole step. Windows do not see everything, so moves that
    /// together save much less than each promised are tried in halves.
    fn apply(&mut self, best: Costed, kinds: &[Vec<Move>], left: &mut usize) -> Costed {
        if *left == 0 || kinds.is_empty() {
            self.cut_short |= !kinds.is_empty();
            return best;
        }
        *left -= 1;
        let promised: f64 = kinds.iter().flatten().map(|m| m.saved).sum();
        let flips = kinds.iter().flatten().flat_map(|m| &m.flip);
        let all = self.with(&best, flips);
        let saved = all.as_ref().map_or(f64::NEG_INFINITY, |a| best.estimate.seconds - a.estimate.seconds);
        let all = all.filter(|a| a.is_better(&best));
        // What changes nothing does not get better by halves.
        let nothing = saved.abs() < 1e-9 * best.estimate.seconds;
        if kinds.len() == 1 || nothing || saved >= KEPT * promised {
            if all.is_none() {
                self.refused.extend(kinds.iter().flatten().map(|m| m.flip.clone()));
            }
            return all.unwrap_or(best);
        }
        let (first, second) = kinds.split_at(kinds.len() / 2);
        let best = self.apply(best, first, left);
        let best = self.apply(best, second, left);
        match all {
            Some(all) if all.estimate.seconds < best.estimate.seconds => all,
            _ => best,
        }
    }

    /// A choice with other members taken, costed whole; none if it rounds too much or cannot be lowered.
    fn with<'f>(&mut self, than: &Costed, flips: impl Iterator<Item = &'f (Id, usize)>) -> Option<Costed> {
        let (choice, noise) = self.permitted(than, flips)?;
        self.with_noise(choice, noise).ok()
    }

    /// A choice with other members taken, if it is better; what was lowered before is not lowered again.
    fn better<'f>(&mut self, than: &Costed, flips: impl Iterator<Item = &'f (Id, usize)>) -> Option<Costed> {
        let (choice, noise) = self.permitted(than, flips)?;
        let sketch = Sketch::whole(self.members, &choice).ok()?;
        let before = self.seen.get(sketch.key());
        if before.is_some_and(|seen| seen.is_none_or(|seen| !is_better(seen, noise, than))) {
            return None;
        }
        let lowered = self.lowered(&sketch).ok();
        let seen = lowered.as_ref().map(|(graph, estimate)| (estimate.seconds, graph.len()));
        self.seen.insert(sketch.key().clone(), seen);
        let (graph, estimate) = lowered?;
        Some(Costed { choice, graph, estimate, noise }).filter(|c| c.is_better(than))
    }

    /// A choice with other members taken, and its noise, unless it rounds too much or parts layers that are alike.
    fn permitted<'f>(&self, than: &Costed, flips: impl Iterator<Item = &'f (Id, usize)>) -> Option<(Choice, f64)> {
        let (m, mut choice) = (self.members, than.choice.clone());
        let flips: Vec<_> = flips.collect();
        choice.take(flips.iter().copied());
        let noise = self.noise(&choice);
        let crosses = || flips.iter().any(|f| !self.alike.follows(f.0) && self.alike.crosses(m, &choice, f.0));
        if noise > self.limit || crosses() { None } else { Some((choice, noise)) }
    }

    /// One pass over all classes that are open; every flip whose window gets cheaper is taken, and, to end with, flips that
    /// round less for the same time.
    fn sweep(&mut self, choice: Choice, ending: bool) -> Vec<Move> {
        let mut live = Live::new(self.members, choice);
        let mut moves = Vec::new();
        for class in self.open() {
            if !live.is_live(class) {
                continue;
            }
            let mut best: Option<Move> = None;
            for flip in flips(self.members, &live, class) {
                let Some(saved) = self.delta(&live, &flip).map(|d| -d).filter(|&s| s >= 0.0) else { continue };
                let noise = if self.members.noise.is_some() { live.noise_with(&flip) } else { 0.0 };
                let quieter = ending && noise < live.noise() * (1.0 - 1e-9);
                let beaten = best.as_ref().is_some_and(|b| (b.saved, -b.noise) >= (saved, -noise));
                let taken = (saved > 0.0 || quieter) && noise <= self.limit && !beaten;
                if taken && !self.spreads(&live, &flip) {
                    best = Some(Move { flip, saved, noise });
                }
            }
            if let Some(one) = best {
                let flip = self.alike.everywhere(self.members, &one.flip);
                if self.refused.contains(&flip) {
                    continue;
                }
                live.take(&flip);
                moves.push(Move { saved: one.saved * (flip.len() / one.flip.len()) as f64, flip, ..one });
            }
        }
        moves
    }

    /// Would a flip, made in all layers, hand a value from layer to layer in registers, or compute a scalar anew for each of
    /// its many readers?
    fn spreads(&self, live: &Live, flip: &Flip) -> bool {
        if self.alike.is_empty() {
            return false;
        }
        let (m, mut choice) = (self.members, live.choice.clone());
        let all = self.alike.everywhere(m, flip);
        choice.take(&all);
        let many = |c: Id| m.chosen(&choice, c).name() == forms::PASS && is_shared_scalar(m, live, c);
        flip.iter().any(|&(c, _)| self.alike.crosses(m, &choice, c)) || all.iter().any(|&(c, _)| many(c))
    }

    /// Classes with a member to choose that do not follow another layer's.
    fn open(&self) -> Vec<Id> {
        self.members.open().filter(|&c| !self.alike.follows(c)).collect()
    }

    /// Seconds that a flip costs, or saves if they are negative; none if it cannot be taken.
    pub fn delta(&mut self, live: &Live, flip: &Flip) -> Option<f64> {
        let m = self.members;
        let window = window(m, live, flip)?;
        let inside: FxHashSet<Id> = window.iter().copied().collect();
        // What the window owes the rest of the step.
        let (mut outputs, mut kept) = (Vec::new(), Vec::new());
        let roots = &m.chosen(&live.choice, m.root).children;
        let cut = cut_off(m, live, &window, &inside);
        for &class in window.iter().filter(|&&c| m.sort(c) == Sort::Buffer) {
            let users = live.users(class);
            if users.contains(&m.root) {
                outputs.extend((0..roots.len()).filter(|&i| roots[i] == class));
            } else if users.iter().any(|u| !inside.contains(u) || cut.contains(u)) && !m.is_source(&live.choice, class)
            {
                kept.push(class);
            }
        }
        outputs.sort_unstable();
        outputs.dedup();
        let outside = |c: Id| live.is_live(c) && !inside.contains(&c);
        let writes = |v: Id| inside.contains(&v);
        let cost = |search: &mut Search, choice: &Choice| -> Option<f64> {
            let sketch = Sketch::part(m, choice, &outputs, &kept, &outside, &writes).ok()?;
            search.cost(&sketch)
        };
        let before = cost(self, &live.choice)?;
        let mut choice = live.choice.clone();
        // Layers beside this one are flipped with it, where the window shows them.
        choice.take(&self.alike.everywhere(m, flip));
        let after = cost(self, &choice)?;
        // Differences that are only rounding are none.
        Some(if (after - before).abs() <= before * 1e-7 { 0.0 } else { after - before })
    }

    fn cost(&mut self, sketch: &Sketch) -> Option<f64> {
        if let Some(&known) = self.known.get(sketch.key()) {
            return known;
        }
        let cost = self.lowered(sketch).ok().map(|(_, estimate)| estimate.seconds);
        self.known.insert(sketch.key().clone(), cost);
        cost
    }
}

/// Alternatives at one class: each other member, alone and with the opposite choice at one operand's edge.
fn flips(m: &Members, live: &Live, class: Id) -> Vec<Flip> {
    if m.sort(class) != Sort::Edge {
        // What rules made equal: products in other formats or of other operands, casts.
        let now = live.choice.of(class);
        return (0..m.of(class).len()).filter(|&i| i != now).map(|i| vec![(class, i)]).collect();
    }
    let current = live.choice.of(class);
    let others = (0..m.of(class).len()).filter(|&i| i != current);
    let Some(value) = m.passed(class) else { return others.map(|i| vec![(class, i)]).collect() };
    // The optimizer's arithmetic has one shape; what it stores is what the step keeps. Where it begins is open.
    if m.is_optimizers(value) {
        return Vec::new();
    }
    if is_shared_scalar(m, live, class) {
        return Vec::new();
    }
    let passed = m.of(class)[current].name() == forms::PASS;
    // Storing what one reader computes on the spot only adds traffic, unless it splits a kernel that a product's library
    // cannot run whole.
    let after_product = |v: Id| m.of(v)[0].children.iter().any(|&e| m.passed(e).is_some_and(|v| m.is_product(v)));
    let cuts = m.rank_of(value) == Some(0) || m.is_product(value) || after_product(value);
    let alone = !passed || live.users(class).len() > 1 || cuts;
    let mut out = Vec::new();
    for other in others {
        if alone {
            out.push(vec![(class, other)]);
        }
        let stored = m.of(class)[other].name() == forms::GET;
        for &operand in &m.of(value)[0].children {
            if m.sort(operand) != Sort::Edge || m.of(operand).len() < 2 {
                continue;
            }
            let to = if stored { m.pass(operand) } else { m.narrowest(operand) };
            if let Some(to) = to.filter(|&to| live.choice.of(operand) != to) {
                out.push(vec![(class, other), (operand, to)]);
            }
        }
    }
    out
}

/// A scalar that many kernels read is computed once.
fn is_shared_scalar(m: &Members, live: &Live, edge: Id) -> bool {
    m.is_scalar(edge) && live.users(edge).len() > READERS
}
