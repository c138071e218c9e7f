//! What a flip may change: the kernels it touches and those beside them.

use super::live::{Flip, Live};
use super::members::Members;
use crate::ir::ops::names;
use crate::rewrite::{Sort, forms};
use egg::Id;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;

/// Classes in a window besides those that must be in it.
const WINDOW: usize = 100;
/// A flip that reaches more kernels than this many classes is not tried.
const CORE: usize = 600;
/// Readers beyond which a window does not follow a buffer.
pub(in crate::plan) const READERS: usize = 5;

/// Values and edges of a window that something outside it takes from registers: what they are computed from is read outside.
pub(in crate::plan) fn cut_off(m: &Members, live: &Live, window: &[Id], inside: &FxHashSet<Id>) -> FxHashSet<Id> {
    let in_registers = |c: Id| m.sort(c) != Sort::Buffer;
    let leaves = |&&c: &&Id| in_registers(c) && live.users(c).iter().any(|u| !inside.contains(u));
    let mut stack: Vec<Id> = window.iter().filter(leaves).copied().collect();
    let mut out: FxHashSet<Id> = FxHashSet::default();
    while let Some(class) = stack.pop() {
        if out.insert(class) {
            let read = m.operands(&live.choice, class);
            stack.extend(read.filter(|&c| in_registers(c) && inside.contains(&c)));
        }
    }
    out
}

/// The classes whose kernels a flip may change, and the kernels beside those; none if there are too many.
///
/// A walk from the flipped classes. Up, towards what is stored, it stays in the kernels the flip changes; down, it adds
/// what those compute. Leaving a kernel, through memory or to another user of what it computes, is done once.
pub(in crate::plan) fn window(m: &Members, live: &Live, flip: &Flip) -> Option<Vec<Id>> {
    // Twice the kernels left behind, plus one on the way down.
    let mut rank: FxHashMap<Id, usize> = FxHashMap::default();
    let mut queue: VecDeque<(Id, usize)> = VecDeque::new();
    let mut out = Vec::new();
    let flipped = |c: Id| flip.iter().any(|f| f.0 == c);
    // Memory lies between a reader and what it gets, a product and its operands.
    let reads = |user: Id| {
        let term = m.chosen(&live.choice, user);
        !flipped(user)
            && (matches!(term.name(), forms::GET | names::CAST | names::ALIAS | forms::CARRIED | names::SCAN)
                || m.is_product(user))
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
            || m.chosen(&live.choice, class).name() == names::SCAN
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
        if term.name() != forms::CARRIED {
            let down = if reads(class) { r / 2 * 2 + 3 } else { r | 1 };
            term.children.iter().for_each(|&c| visit(c, down));
        }
        let users = if m.is_constant(class) { &[] } else { live.users(class) };
        // What the flip changes reaches all readers in its kernel.
        let in_kernel = r == 0 && m.sort(class) != Sort::Buffer;
        if users.len() <= READERS || flipped(class) || in_kernel {
            for &user in users {
                let up = if reads(user) || r % 2 == 1 { r / 2 * 2 + 2 } else { r };
                visit(user, up);
            }
        }
    }
    Some(out)
}
