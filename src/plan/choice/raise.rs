//! Keeping to the budget: where a plan's roundings add more noise than they may, formats are raised where a second of the
//! step buys the most.
//!
//! A rounding is undone for one reader, or for all at once: an operation that reads a value and the products that
//! multiply it can each be given a wider format, and often only together is anything saved. Formats are raised in the
//! order of noise saved for time lost, which is the greedy solution of a knapsack; the search that follows fills what is
//! left of the budget.

use super::live::{Flip, Live};
use super::members::{Choice, Members};
use super::search::Search;
use crate::format::Format;
use egg::Id;
use std::collections::HashMap;

/// Passes over all roundings.
const ROUNDS: usize = 6;

/// Points of a frontier, at most.
const POINTS: usize = 14;

/// A way to raise formats.
struct Raise {
    flip: Flip,
    /// Noise saved for a second lost; infinite if none is lost.
    worth: f64,
}

impl Search<'_> {
    /// The choice with formats raised until the noise is within `limit`, or nothing more can be raised.
    pub(in crate::plan) fn raised(&mut self, choice: Choice, limit: f64) -> Choice {
        let m = self.members;
        let edges = m.edges();
        let mut live = Live::new(m, choice);
        for _ in 0..ROUNDS {
            if live.noise() <= limit {
                break;
            }
            let mut raises = Vec::new();
            for buffer in (0..m.ids()).map(Id::from).filter(|&b| live.noise_of(b) > 0.0).collect::<Vec<_>>() {
                for flip in ways(m, &live, &edges, buffer) {
                    let saved = live.noise() - live.noise_with(&flip);
                    if saved <= 0.0 {
                        continue;
                    }
                    let lost = self.delta(&live, &flip).unwrap_or(f64::INFINITY);
                    raises.push(Raise { flip, worth: saved / lost.max(1e-12) });
                }
            }
            if raises.is_empty() {
                break;
            }
            raises.sort_by(|a, b| b.worth.total_cmp(&a.worth));
            for raise in &raises {
                if live.noise() <= limit {
                    break;
                }
                let before = live.noise();
                let back = live.take(&raise.flip);
                if live.noise() >= before {
                    live.take(&back);
                }
            }
        }
        live.choice
    }
}

impl Search<'_> {
    /// Times of the step at less and less noise, as (noise in budgets, seconds), from a choice to where nothing is rounded: formats
    /// raised for limits that halve. Points that another beats in both are left out.
    pub(in crate::plan) fn frontier(&mut self, from: Choice) -> Vec<(f64, f64)> {
        let mut choice = from;
        let mut points: Vec<(f64, f64)> = Vec::new();
        for _ in 0..POINTS {
            let noise = Live::new(self.members, choice.clone()).noise();
            let Ok(costed) = self.whole(choice) else { break };
            let seconds = costed.estimate.seconds;
            // What is left cannot be raised.
            if points.last().is_some_and(|p: &(f64, f64)| p.0 <= noise.sqrt()) {
                break;
            }
            points.retain(|p| p.1 < seconds);
            points.push((noise.sqrt(), seconds));
            if noise == 0.0 {
                break;
            }
            choice = self.raised(costed.choice, noise / 2.0);
        }
        points
    }
}

/// Ways to undo what a buffer rounds: for its edge, for each product that reads it, for all of them. A product that rounds
/// what it reads itself can do without.
fn ways(m: &Members, live: &Live, edges: &HashMap<Id, Id>, buffer: Id) -> Vec<Flip> {
    let term = m.chosen(&live.choice, buffer);
    let Some(now) = term.children.first().and_then(|&w| m.format_of(w)) else { return Vec::new() };
    if m.is_product(buffer) {
        return m.multiplying(&live.choice, buffer, Format::F32).map(|wide| vec![(buffer, wide)]).into_iter().collect();
    }
    let value = term.children.get(1).copied();
    let mut users = live.users(buffer).to_vec();
    users.sort_unstable();
    users.dedup();
    let edge = value.and_then(|v| edges.get(&v)).copied().filter(|e| users.contains(e));
    let products: Vec<Id> = users.into_iter().filter(|&u| m.is_product(u)).collect();
    let mut out = Vec::new();
    for to in [Format::F32].into_iter().chain(Format::MULTIPLIED).filter(|&f| f != now) {
        let stored = edge.and_then(|e| Some((e, m.getting(e, to.in_memory())?)));
        let multiplied: Flip =
            products.iter().filter_map(|&p| Some((p, m.multiplying(&live.choice, p, to)?))).collect();
        out.extend(stored.map(|s| vec![s]));
        out.extend(multiplied.iter().map(|&p| vec![p]));
        let all: Flip = stored.into_iter().chain(multiplied).collect();
        if all.len() > 1 {
            out.push(all);
        }
    }
    out.extend(edge.and_then(|e| Some(vec![(e, m.pass(e)?)])));
    out
}
