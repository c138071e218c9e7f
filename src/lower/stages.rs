//! The passes a kernel makes over its inner axes: each reduction needs all of `inner` before what follows it can start.

use super::kernel::{Inst, Level, Loop, Reg};
use std::collections::BTreeSet;

/// One pass: first scalars per outer index, then everything its targets need per element.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pass {
    /// Outer-level registers to compute before the pass, in tape order.
    pub scalars: Vec<Reg>,
    /// Inner-level registers to compute at every element, in tape order.
    pub elements: Vec<Reg>,
    /// Reductions that this pass completes.
    pub reductions: Vec<Reg>,
    /// Indices of the stores made at every element in this pass.
    pub stores: Vec<usize>,
}

impl Pass {
    /// Does the pass run over the elements at all?
    pub fn is_live(&self) -> bool {
        !self.elements.is_empty() || !self.stores.is_empty()
    }
}

/// The passes of a kernel, in order. Outer-level stores follow the last one. Values per element are computed again in
/// each pass that needs them, so what is updated in place is stored in the last: until then it is read as it was.
pub fn passes(k: &Loop) -> Vec<Pass> {
    let levels = k.levels();
    let mut ready = vec![0; k.tape.len()];
    for (r, inst) in k.tape.iter().enumerate() {
        let below = inst.operands().iter().map(|&x| ready[x]).max().unwrap_or(0);
        ready[r] = below + usize::from(matches!(inst, Inst::Reduce(..)));
    }
    let last = ready.iter().copied().max().unwrap_or(0);
    let of_elements = (0..k.stores.len()).filter(|&s| k.stores_elements(s)).map(|s| ready[k.stores[s].reg]);
    let of_reductions = (0..k.tape.len()).filter(|&r| matches!(k.tape[r], Inst::Reduce(..))).map(|r| ready[r] - 1);
    let last_of_elements = of_elements.chain(of_reductions).max().unwrap_or(0);
    let stored_in = |s: usize| {
        let in_place = k.loads.iter().any(|l| l.buffer == k.stores[s].buffer);
        if in_place { last_of_elements } else { ready[k.stores[s].reg] }
    };
    (0..=last)
        .map(|stage| {
            let is_reduction = |r: Reg| matches!(k.tape[r], Inst::Reduce(..));
            let scalars = (0..k.tape.len())
                .filter(|&r| levels[r] == Level::Outer && ready[r] == stage && !is_reduction(r))
                .collect();
            let reductions: Vec<Reg> =
                (0..k.tape.len()).filter(|&r| is_reduction(r) && ready[r] == stage + 1).collect();
            let stores: Vec<usize> =
                (0..k.stores.len()).filter(|&s| k.stores_elements(s) && stored_in(s) == stage).collect();
            let mut needed = vec![false; k.tape.len()];
            reductions.iter().flat_map(|&r| k.tape[r].operands()).for_each(|r| needed[r] = true);
            stores.iter().for_each(|&s| needed[k.stores[s].reg] = true);
            for r in (0..k.tape.len()).rev() {
                if needed[r] && levels[r] == Level::Inner {
                    k.tape[r].operands().iter().for_each(|&x| needed[x] = true);
                }
            }
            let elements = (0..k.tape.len()).filter(|&r| needed[r] && levels[r] == Level::Inner).collect();
            Pass { scalars, elements, reductions, stores }
        })
        .collect()
}

/// What a pass computes at every element, and what it takes from earlier passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// In tape order, with the scalars that it takes.
    pub computed: Vec<Reg>,
    /// Kept by earlier passes.
    pub taken: Vec<Reg>,
}

/// The work of every live pass. Passes that keep what later ones need compute nothing per element twice, but for constants and
/// positions.
pub fn work(k: &Loop, keeps: bool) -> Vec<Work> {
    let levels = k.levels();
    let mut known = vec![false; k.tape.len()];
    let mut out = Vec::new();
    for pass in passes(k).iter().filter(|p| p.is_live()) {
        let mut want = vec![false; k.tape.len()];
        pass.stores.iter().for_each(|&s| want[k.stores[s].reg] = true);
        pass.reductions.iter().flat_map(|&r| k.tape[r].operands()).for_each(|r| want[r] = true);
        for r in (0..want.len()).rev() {
            if want[r] && !known[r] && !matches!(k.tape[r], Inst::Reduce(..)) {
                k.tape[r].operands().iter().for_each(|&x| want[x] = true);
            }
        }
        let (taken, computed): (Vec<Reg>, Vec<Reg>) = (0..want.len()).filter(|&r| want[r]).partition(|&r| known[r]);
        let lasts =
            |r: Reg| keeps && levels[r] == Level::Inner && !matches!(k.tape[r], Inst::Const(_) | Inst::Position(_));
        computed.iter().filter(|&&r| lasts(r)).for_each(|&r| known[r] = true);
        out.push(Work { computed, taken });
    }
    out
}

/// Registers that are kept from one pass to the next, at most.
pub fn most_kept(passes: &[Work]) -> usize {
    let kept = |p: usize| {
        let later: BTreeSet<Reg> = passes[p..].iter().flat_map(|k| k.taken.iter().copied()).collect();
        later.iter().filter(|r| passes[..p].iter().any(|k| k.computed.contains(r))).count()
    };
    (1..passes.len()).map(kept).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::ir::{Binary, ReduceKind};
    use crate::lower::kernel::{Load, Store};
    use crate::lower::view::View;

    /// w ← 2 w beside w ≥ max w: the comparison must not see what the update wrote.
    #[test]
    fn what_is_updated_in_place_is_read_as_it_was() {
        let view = View::contiguous(&[2, 8]);
        let store = |reg, buffer| Store { reg, buffer, view: view.clone(), format: Format::F32 };
        let k = Loop {
            outer: vec![2],
            inner: vec![8],
            loads: vec![Load { buffer: 0, view: view.clone(), format: Format::F32 }],
            tape: vec![
                Inst::Load(0),
                Inst::Reduce(ReduceKind::Max, 0),
                Inst::Binary(Binary::Ge, 0, 1),
                Inst::Binary(Binary::Add, 0, 0),
            ],
            stores: vec![store(3, 0), store(2, 1)],
            ..Loop::default()
        };
        let stores: Vec<Vec<usize>> = passes(&k).into_iter().map(|p| p.stores).collect();
        assert_eq!(stores, [vec![], vec![0, 1]]);
    }
}
