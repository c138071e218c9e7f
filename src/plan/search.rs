//! Local search: edges are flipped between their members, one at a time and together with an operand's edge (moving a
//! store across an operation needs both at once).
//!
//! What a flip saves is found by lowering its *window*, the kernels it touches and those beside them, before and after.
//! Windows of repeated layers are equal and costed once, so the time follows the number of distinct layers. Windows
//! cannot see everything (launches shared across the step, for one), so every sweep ends with the whole step lowered;
//! if it is no cheaper, its moves are tried again kind by kind. Small steps end with flips costed whole.

use super::live::{Flip, Live};
use super::members::{Choice, Members};
use super::sketch::{Key, Sketch};
use crate::cost::{Estimate, Target};
use crate::error::Result;
use crate::format::Format;
use crate::ir::{Graph, verify};
use crate::lower::outline;
use crate::rewrite::Sort;
use egg::Id;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Values lowered in whole steps: evaluations times values of the step.
const WHOLE: usize = 60_000;
/// At least so many whole evaluations.
const FEWEST: usize = 6;
const SWEEPS: usize = 4;
/// Steps of up to so many values are also searched flip by flip.
const SMALL: usize = 250;
/// Classes in a window besides those that must be in it.
const WINDOW: usize = 100;
/// A flip that reaches more kernels than this many classes is not tried.
const CORE: usize = 600;
/// Readers beyond which a window does not follow a buffer.
const READERS: usize = 5;

pub(super) struct Search<'a> {
    pub members: &'a Members<'a>,
    target: &'a Target,
    /// The noise that a choice may add, where noise counts: 1 is all of the budget.
    limit: f64,
    known: HashMap<Key, Option<f64>>,
    /// The fastest choice found before noise was asked about.
    pub fastest: Option<Choice>,
    /// Windows and whole steps lowered.
    pub evaluations: usize,
    /// Ended before every kind of move was tried.
    pub cut_short: bool,
}

/// A choice costed whole.
pub(super) struct Costed {
    pub choice: Choice,
    pub graph: Graph,
    pub estimate: Estimate,
}

/// A flip taken in a sweep, and what it should have saved.
struct Move {
    flip: Flip,
    saved: f64,
}

impl<'a> Search<'a> {
    pub fn new(members: &'a Members<'a>, target: &'a Target) -> Search<'a> {
        Search {
            members,
            target,
            limit: f64::INFINITY,
            fastest: None,
            known: HashMap::new(),
            evaluations: 0,
            cut_short: false,
        }
    }

    /// Costs a choice by lowering the whole step.
    pub fn whole(&mut self, choice: Choice) -> Result<Costed> {
        let (graph, estimate) = self.lowered(&Sketch::whole(self.members, &choice)?)?;
        Ok(Costed { choice, graph, estimate })
    }

    fn lowered(&mut self, sketch: &Sketch) -> Result<(Graph, Estimate)> {
        self.evaluations += 1;
        let graph = sketch.graph()?;
        let estimate = self.target.estimate_program(&outline(verify(&graph)?)?);
        Ok((graph, estimate))
    }

    /// Whole steps that a search may lower.
    fn allowance(&self) -> usize {
        (WHOLE / self.members.step.len().max(1)).max(FEWEST)
    }

    /// The best choice found from `best` on.
    pub fn improve(&mut self, best: Costed) -> Costed {
        let mut left = self.allowance();
        let mut best = self.by_windows(best, &mut left);
        if self.members.noise.is_some() {
            // First the fastest choice of all, then what keeps to the budget, then what the budget leaves room for.
            self.fastest = Some(best.choice.clone());
            let choice = self.raised(best.choice.clone(), 1.0);
            self.limit = Live::new(self.members, choice.clone()).noise().max(1.0);
            if let Ok(raised) = self.whole(choice) {
                best = raised;
            }
            left = left.max(FEWEST);
            best = self.by_windows(best, &mut left);
        }
        self.one_by_one(best, left)
    }

    /// Goes on from another choice, within the limit.
    pub fn polish(&mut self, from: Costed) -> Costed {
        let mut left = self.allowance();
        let best = self.by_windows(from, &mut left);
        self.one_by_one(best, left)
    }

    fn keeps_limit(&self, choice: &Choice) -> bool {
        self.members.noise.is_none() || Live::new(self.members, choice.clone()).noise() <= self.limit
    }

    /// What windows do not see: flips costed in the whole step, scalars first, which share launches with those far away.
    fn one_by_one(&mut self, mut best: Costed, mut left: usize) -> Costed {
        let m = self.members;
        if m.step.len() > SMALL {
            return best;
        }
        let mut open: Vec<Id> = m.open().collect();
        open.sort_by_key(|&c| m.rank_of(c) != Some(0));
        let mut live = Live::new(m, best.choice.clone());
        for class in open {
            if !live.is_live(class) {
                continue;
            }
            for flip in flips(m, &live, class) {
                if left == 0 {
                    return best;
                }
                left -= 1;
                if let Some(better) = self.better(&best, flip.iter()) {
                    best = better;
                    live.take(&flip);
                    break;
                }
            }
        }
        best
    }

    fn by_windows(&mut self, mut best: Costed, left: &mut usize) -> Costed {
        for _ in 0..SWEEPS {
            let moves = self.sweep(best.choice.clone());
            if moves.is_empty() {
                return best;
            }
            if *left == 0 {
                self.cut_short = true;
                return best;
            }
            *left -= 1;
            let all = moves.iter().flat_map(|m| &m.flip);
            if let Some(better) = self.better(&best, all) {
                best = better;
                continue;
            }
            // Moves that save the same are the same move in repeated layers.
            let mut kinds: BTreeMap<u64, Vec<&Move>> = BTreeMap::new();
            moves.iter().for_each(|m| kinds.entry(m.saved.to_bits()).or_default().push(m));
            let mut kinds: Vec<Vec<&Move>> = kinds.into_values().collect();
            let total = |k: &Vec<&Move>| k.iter().map(|m| m.saved).sum::<f64>();
            kinds.sort_by(|a, b| total(b).total_cmp(&total(a)));
            let before = best.estimate.seconds;
            for kind in kinds {
                if *left == 0 {
                    self.cut_short = true;
                    return best;
                }
                *left -= 1;
                if let Some(better) = self.better(&best, kind.iter().flat_map(|m| &m.flip)) {
                    best = better;
                }
            }
            if best.estimate.seconds >= before {
                return best;
            }
        }
        best
    }

    /// The choice with these members taken, if it is cheaper.
    fn better<'f>(&mut self, than: &Costed, flips: impl Iterator<Item = &'f (Id, usize)>) -> Option<Costed> {
        let mut choice = than.choice.clone();
        flips.for_each(|&(class, member)| choice.set(class, member));
        if !self.keeps_limit(&choice) {
            return None;
        }
        let costed = self.whole(choice).ok()?;
        (costed.estimate.seconds < than.estimate.seconds * (1.0 - 1e-9)).then_some(costed)
    }

    /// One pass over all classes that are open; every flip whose window gets cheaper is taken.
    fn sweep(&mut self, choice: Choice) -> Vec<Move> {
        let mut live = Live::new(self.members, choice);
        let mut moves = Vec::new();
        let open: Vec<Id> = self.members.open().collect();
        for class in open {
            if !live.is_live(class) {
                continue;
            }
            let mut best: Option<Move> = None;
            for flip in flips(self.members, &live, class) {
                if let Some(saved) = self.delta(&live, &flip).map(|d| -d).filter(|&s| s > 0.0)
                    && best.as_ref().is_none_or(|b| saved > b.saved)
                    && (self.limit.is_infinite() || live.noise_with(&flip) <= self.limit)
                {
                    best = Some(Move { flip, saved });
                }
            }
            if let Some(m) = best {
                live.take(&m.flip);
                moves.push(m);
            }
        }
        moves
    }

    /// Seconds that a flip costs, or saves if they are negative; none if it cannot be taken.
    pub fn delta(&mut self, live: &Live, flip: &Flip) -> Option<f64> {
        let m = self.members;
        let window = window(m, live, flip)?;
        let inside: HashSet<Id> = window.iter().copied().collect();
        // What the window owes the rest of the step.
        let (mut outputs, mut kept) = (Vec::new(), Vec::new());
        let roots = &m.chosen(&live.choice, m.root).children;
        let leaves = |u: &Id| !inside.contains(u) || live.users(*u).iter().any(|reader| !inside.contains(reader));
        for &class in window.iter().filter(|&&c| m.sort(c) == Sort::Buffer) {
            let users = live.users(class);
            if users.contains(&m.root) {
                outputs.extend((0..roots.len()).filter(|&i| roots[i] == class));
            } else if users.iter().any(leaves) && !m.is_source(&live.choice, class) {
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
        flip.iter().for_each(|&(c, member)| choice.set(c, member));
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
        // Where noise counts, products too have a format to choose.
        let narrow = Format::PLANNED.into_iter().filter(|_| m.noise.is_some() && m.is_product(class));
        let now = live.choice.of(class);
        let others = narrow.filter_map(|f| m.multiplying(live, class, f)).filter(|&i| i != now);
        return others.map(|i| vec![(class, i)]).collect();
    }
    let current = live.choice.of(class);
    let others = (0..m.of(class).len()).filter(|&i| i != current);
    let Some(value) = m.passed(class) else { return others.map(|i| vec![(class, i)]).collect() };
    // The optimizer's arithmetic has one shape; what it stores is what the step keeps. Where it begins is open.
    let own = |c: Id| m.passed(c).is_none_or(|v| m.is_update(v) || m.is_constant(v));
    if m.is_update(value) && m.rank_of(value) != Some(0) && m.of(value)[0].children.iter().all(|&c| own(c)) {
        return Vec::new();
    }
    let passed = m.of(class)[current].name() == "pass";
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
        let stored = m.of(class)[other].name() == "get";
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

/// The classes whose kernels a flip may change, and the kernels beside those; none if there are too many.
///
/// A walk from the flipped classes. Up, towards what is stored, it stays in the kernels the flip changes; down, it adds
/// what those compute. Leaving a kernel, through memory or to another user of what it computes, is done once.
fn window(m: &Members, live: &Live, flip: &Flip) -> Option<Vec<Id>> {
    // Twice the kernels left behind, plus one on the way down.
    let mut rank: HashMap<Id, usize> = HashMap::new();
    let mut queue: VecDeque<(Id, usize)> = VecDeque::new();
    let mut out = Vec::new();
    let flipped = |c: Id| flip.iter().any(|f| f.0 == c);
    // Memory lies between a reader and what it gets, a product and its operands.
    let reads = |user: Id| {
        let term = m.chosen(&live.choice, user);
        !flipped(user) && (matches!(term.name(), "get" | "cast" | "alias" | "carried" | "scan") || m.is_product(user))
    };
    for &(class, member) in flip {
        queue.push_back((class, 0));
        // What the flip would read, where that is computed already.
        for term in [&m.of(class)[member], m.chosen(&live.choice, class)] {
            queue.extend(term.children.iter().filter(|&&c| live.is_live(c)).map(|&c| (c, 0)));
        }
    }
    while let Some((class, r)) = queue.pop_front() {
        let far = r >= 2;
        // A loop costs the same whatever is chosen around it.
        let skipped = class == m.root
            || m.sort(class) == Sort::Word
            || m.chosen(&live.choice, class).name() == "scan"
            || (far && m.is_update(class) && m.rank_of(class) != Some(0));
        if skipped || rank.get(&class).is_some_and(|&known| known <= r) || (far && out.len() > WINDOW) {
            continue;
        }
        if rank.insert(class, r).is_none() {
            out.push(class);
        }
        if out.len() > CORE {
            return None;
        }
        let mut visit = |next: Id, r: usize| match r {
            0 | 1 => queue.push_front((next, r)),
            2 | 3 => queue.push_back((next, r)),
            _ => {}
        };
        let term = m.chosen(&live.choice, class);
        if term.name() != "carried" {
            let down = if reads(class) { r / 2 * 2 + 3 } else { r | 1 };
            term.children.iter().for_each(|&c| visit(c, down));
        }
        let users = if m.is_constant(class) { &[] } else { live.users(class) };
        if users.len() <= READERS || flipped(class) {
            for &user in users {
                let up = if reads(user) || r % 2 == 1 { r / 2 * 2 + 2 } else { r };
                visit(user, up);
            }
        }
    }
    Some(out)
}
