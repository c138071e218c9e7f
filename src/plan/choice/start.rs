//! Where the search for a choice starts.

use super::live::Live;
use super::members::{Choice, Members};
use crate::format::Format;
use crate::ir::ops::{Elements, Signature, names};
use crate::rewrite::{Sort, forms};
use egg::Id;
use std::collections::{BTreeMap, BTreeSet};

/// "Pass what is pointwise, get the rest in the narrowest format", or everything stored. A value computed from a
/// product or a reduction is passed only to a single user: nobody computes those twice.
pub(in crate::plan) fn start(members: &Members, pass_pointwise: bool) -> Choice {
    let mut choice = members.cheapest();
    let live = members.reachable(&choice);
    let mut s = Start { members, users: BTreeMap::new(), heavy: BTreeMap::new() };
    s.count_users(&live);
    let mut read_in_place: BTreeSet<Id> = BTreeSet::new();
    // A scalar is computed once, not by every thread that reads it.
    let mut spread: BTreeSet<Id> = BTreeSet::new();
    for class in (0..members.ids()).map(Id::from) {
        let moves = |name| Signature::find(name).is_some_and(|row| row.elements != Elements::Computed);
        let views = members.of(class).iter().filter(|t| moves(t.name()));
        read_in_place.extend(views.flat_map(|t| t.children.iter().copied()));
    }
    for &class in &live {
        if members.rank_of(class).is_some_and(|r| r > 0) {
            let operands = &members.of(class)[0].children;
            spread.extend(operands.iter().copied().filter(|&c| members.rank_of(c) == Some(0)));
        }
    }
    for edge in members.open().filter(|&c| members.sort(c) == Sort::Edge) {
        let value = members.passed(edge);
        let cheap = value.is_some_and(|v| (pass_pointwise || s.is_step(v)) && s.passes(v));
        let pass = cheap && !spread.contains(&edge) && !read_in_place.contains(&edge);
        let pick = if pass { members.pass(edge) } else { members.narrowest(edge) };
        choice.set(edge, pick.unwrap_or(0));
    }
    choice
}

/// The same choice with nothing rounded: what is narrow is f32.
pub(in crate::plan) fn widest(members: &Members, from: &Choice) -> Choice {
    let live = Live::new(members, from.clone());
    let mut choice = from.clone();
    for class in members.open() {
        let wide = match members.sort(class) {
            Sort::Edge if members.chosen(from, class).name() == forms::GET => members.getting(class, Format::F32),
            Sort::Value if members.is_product(class) => members.multiplying(&live.choice, class, Format::F32),
            _ => None,
        };
        if let Some(member) = wide {
            choice.set(class, member);
        }
    }
    choice
}

struct Start<'a> {
    members: &'a Members<'a>,
    /// How many terms of the plainest choice read each value.
    users: BTreeMap<Id, usize>,
    heavy: BTreeMap<Id, bool>,
}

impl Start<'_> {
    fn count_users(&mut self, live: &[Id]) {
        let m = self.members;
        for &class in live.iter().filter(|&&c| matches!(m.sort(c), Sort::Value | Sort::Step)) {
            for &child in &m.of(class)[0].children {
                let value = m.of(child).iter().find_map(|t| match t.name() {
                    forms::PASS => Some(t.children[0]),
                    names::PUT => Some(t.children[1]),
                    _ => None,
                });
                if let Some(v) = value {
                    *self.users.entry(v).or_insert(0) += 1;
                }
            }
        }
    }

    /// Is it a step of the optimizer's arithmetic, read by the next alone? It has no place in memory.
    fn is_step(&self, value: Id) -> bool {
        self.members.is_optimizers(value) && self.users.get(&value).is_none_or(|&n| n <= 1)
    }

    /// Does the first start keep this value in registers?
    fn passes(&mut self, value: Id) -> bool {
        let single = self.users.get(&value).copied().unwrap_or(0) <= 1;
        (self.members.is_product(value) && single)
            || (self.members.is_pointwise(value) && (single || !self.is_heavy(value)))
    }

    /// Does computing this value take a product, if operands are passed as the first start passes them?
    fn is_heavy(&mut self, value: Id) -> bool {
        if let Some(&h) = self.heavy.get(&value) {
            return h;
        }
        self.heavy.insert(value, false);
        let m = self.members;
        let heavy = m.is_product(value)
            || m.of(value)[0].children.iter().any(|&e| {
                let passed = if m.of(e).len() > 1 { m.passed(e) } else { None };
                passed.is_some_and(|v| self.passes(v) && self.is_heavy(v))
            });
        self.heavy.insert(value, heavy);
        heavy
    }
}
