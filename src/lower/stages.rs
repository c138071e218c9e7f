//! The passes a kernel makes over its inner axes: each reduction needs all of `inner` before what follows it can start.

use super::kernel::{Inst, Level, Loop, Reg};

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
/// each pass that needs them.
pub fn passes(k: &Loop) -> Vec<Pass> {
    let levels = k.levels();
    let mut ready = vec![0; k.tape.len()];
    for (r, inst) in k.tape.iter().enumerate() {
        let below = inst.operands().iter().map(|&x| ready[x]).max().unwrap_or(0);
        ready[r] = below + usize::from(matches!(inst, Inst::Reduce(..)));
    }
    let last = ready.iter().copied().max().unwrap_or(0);
    (0..=last)
        .map(|stage| {
            let is_reduction = |r: Reg| matches!(k.tape[r], Inst::Reduce(..));
            let scalars = (0..k.tape.len())
                .filter(|&r| levels[r] == Level::Outer && ready[r] == stage && !is_reduction(r))
                .collect();
            let reductions: Vec<Reg> =
                (0..k.tape.len()).filter(|&r| is_reduction(r) && ready[r] == stage + 1).collect();
            let stores: Vec<usize> =
                (0..k.stores.len()).filter(|&s| k.stores_elements(s) && ready[k.stores[s].reg] == stage).collect();
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
