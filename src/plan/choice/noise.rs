//! What a choice's roundings add to the gradients' noise: a sum over the narrow buffers it writes.
//!
//! Every member of a class stands for the same ideal value, so to first order the errors of what is rounded add, and
//! independent errors add as squares (an error Taylor series, as in Darulova et al., *Sound Mixed-Precision
//! Optimization with Rewriting*, 2018). A buffer that operations of all kinds read counts as its value's rounding; one
//! that only products read counts as theirs. A product in tf32 rounds what it reads itself.

use super::members::{Choice, Members};
use crate::format::Format;
use crate::ir::Graph;
use crate::ir::ops::{Elements, Signature, names};
use crate::plan::evidence::{Calibration, Estimates, Shares};
use crate::rewrite::{Encoded, forms, is_product};
use egg::Id;
use std::collections::{BTreeMap, HashMap};

/// Stands for noise that nothing is known of, and for what overflows. Finite, so that it can be taken away again.
const TOO_MUCH: f64 = 1e6;

impl Estimates {
    /// What was measured, by the classes that stand for it.
    pub fn new(step: &Graph, encoded: &Encoded, members: &Members, calibration: &Calibration) -> Estimates {
        let class = |name: &str| step.find(name).map(|id| members.find(encoded.classes[id.index()]));
        let mut noise = Estimates { values: HashMap::new(), operands: HashMap::new() };
        for (name, shares) in &calibration.values {
            if let Some(class) = class(name) {
                largest(noise.values.entry(class).or_default(), shares);
            }
        }
        for (product, operands) in &calibration.operands {
            for (value, shares) in operands {
                if let (Some(p), Some(v)) = (class(product), class(value)) {
                    largest(noise.operands.entry((p, v)).or_default(), shares);
                }
            }
        }
        noise.look_through_views(members);
        noise
    }

    /// A value or a product that rules made may be one that was measured, in another shape.
    fn look_through_views(&mut self, members: &Members) {
        let mut pairs: Vec<(Id, Id)> = Vec::new();
        for class in (0..members.ids()).map(Id::from) {
            let moves = |name| Signature::find(name).is_some_and(|row| row.elements == Elements::Moved);
            for term in members.of(class).iter().filter(|t| moves(t.name())) {
                let shown = term.children.last().and_then(|&edge| members.passed(edge));
                pairs.extend(shown.map(|v| (class, v)));
            }
        }
        let mut read: HashMap<Id, Vec<(Id, Shares)>> = HashMap::new();
        for (&(product, value), shares) in &self.operands {
            read.entry(product).or_default().push((value, shares.clone()));
        }
        for &(a, b) in &pairs {
            for (from, to) in [(a, b), (b, a)] {
                for (value, shares) in read.get(&from).into_iter().flatten() {
                    self.operands.entry((to, *value)).or_insert_with(|| shares.clone());
                }
            }
        }
        let mut grew = true;
        while grew {
            grew = false;
            for &(a, b) in &pairs {
                for (from, to) in [(a, b), (b, a)] {
                    if !self.values.contains_key(&to)
                        && let Some(shares) = self.values.get(&from).cloned()
                    {
                        self.values.insert(to, shares);
                        grew = true;
                    }
                }
            }
        }
    }
}

/// What a buffer or a product adds under a choice, as a share of the budget; nothing where noise does not count, or where
/// nobody uses it.
pub(in crate::plan) fn added(members: &Members, choice: &Choice, users: &[Id], class: Id) -> f64 {
    let Some(estimates) = members.noise.as_ref().filter(|_| !users.is_empty()) else { return 0.0 };
    let Some((format, value)) = rounding(members, choice, class) else { return 0.0 };
    let share = |shares: Option<&Shares>| -> Option<f64> {
        let x = shares?.get(&format).copied()?;
        Some(if x.is_finite() { x.min(TOO_MUCH) } else { TOO_MUCH })
    };
    if class == value {
        // What is narrower in memory is a number of tf32 already.
        let rounds = |b: &Id| members.ty(*b).is_none_or(|ty| !ty.format.is_low());
        let read = members.operands(choice, class).filter(rounds);
        let read = read.map(|b| members.held(choice, b));
        let noise = |v: Id| share(estimates.operands.get(&(class, v))).or_else(|| share(estimates.values.get(&v)));
        return read.map(|v| noise(v).unwrap_or(TOO_MUCH)).sum();
    }
    let whole = share(estimates.values.get(&value)).unwrap_or(TOO_MUCH);
    let mut sum = 0.0;
    for &user in users {
        if members.is_loop(user) {
            // The loop's own reading: counted with what it computes, which is measured.
            continue;
        }
        match share(estimates.operands.get(&(user, value))) {
            Some(x) if members.is_product(user) => sum += x,
            _ => return whole,
        }
    }
    sum
}

/// The narrow format that a buffer is rounded to and the class of the value or source it holds; of a product, the one
/// that it rounds to, and the product.
pub(in crate::plan) fn rounding(members: &Members, choice: &Choice, class: Id) -> Option<(Format, Id)> {
    let term = members.chosen(choice, class);
    let is_product = is_product(term.name());
    if !is_product && !matches!(term.name(), names::PUT | names::CAST | forms::CARRIED | forms::STAGED) {
        return None;
    }
    let format = members.format_of(term.children[0])?;
    match format {
        Format::Tf32 if is_product => Some((format, class)),
        f if f.is_low() && !is_product => Some((format, members.held(choice, class))),
        _ => None,
    }
}

/// Nodes that share a class are the same value: the larger estimate counts.
fn largest(into: &mut Shares, from: &BTreeMap<Format, f64>) {
    for (&format, &share) in from {
        let known = into.entry(format).or_insert(0.0);
        *known = known.max(share);
    }
}
