//! What chains of views amount to: whose heads a tensor's are.

use super::{Heads, scaled};
use crate::ir::{Graph, NodeId, Op};

/// The part of an axis that one axis of memory makes: its extent, and the elements from one index to the next.
type Leaf = (usize, usize);

/// By axis of a value, outermost leaf first; leaves that go on where the one outside them ends are one.
type Leaves = Vec<Vec<Leaf>>;

fn contiguous(dims: &[usize]) -> Leaves {
    let mut step: usize = dims.iter().product();
    dims.iter()
        .map(|&n| {
            step /= n.max(1);
            joined(vec![(n, step)])
        })
        .collect()
}

/// Without leaves of extent 1, and with those as one that are.
fn joined(leaves: Vec<Leaf>) -> Vec<Leaf> {
    let mut out: Vec<Leaf> = Vec::new();
    for (n, step) in leaves.into_iter().filter(|l| l.0 != 1) {
        match out.last_mut() {
            Some(outer) if outer.1 == n * step => *outer = (outer.0 * n, step),
            _ => out.push((n, step)),
        }
    }
    out
}

/// The leaves of a view of what has these; none where they do not say it.
fn through(op: &Op, of: &Leaves, dims: &[usize]) -> Option<Leaves> {
    match op {
        Op::Transpose { perm } => Some(perm.iter().map(|&p| of[p].clone()).collect()),
        Op::Broadcast { .. } => {
            let lead = dims.len() - of.len();
            let own = |i: usize| match i.checked_sub(lead).map(|i| &of[i]) {
                Some(leaves) if !leaves.is_empty() || dims[i] == 1 => leaves.clone(),
                _ => joined(vec![(dims[i], 0)]),
            };
            Some((0..dims.len()).map(own).collect())
        }
        Op::Reshape { .. } => {
            let mut rest: Vec<Leaf> = of.iter().flatten().copied().collect();
            rest.reverse();
            let mut out = Vec::new();
            for &n in dims {
                let (mut axis, mut left) = (Vec::new(), n);
                while left > 1 {
                    let (m, step) = rest.pop()?;
                    if left.is_multiple_of(m) {
                        axis.push((m, step));
                        left /= m;
                    } else if m.is_multiple_of(left) {
                        let inner = m / left;
                        rest.push((inner, step));
                        axis.push((left, step * inner));
                        left = 1;
                    } else {
                        return None;
                    }
                }
                out.push(joined(axis));
            }
            Some(out)
        }
        _ => None,
    }
}

/// What a product's operand `[.., length, width]` (`[.., width, length]`, if it is turned) is a view of: the heads that it
/// repeats or turns, or itself; and the constant that these are multiplied by.
pub(super) fn heads_of(graph: &Graph, id: NodeId, is_turned: bool) -> (Heads, f64) {
    let own = graph.ty(id).dims();
    let plain = if is_turned { Heads::Turned(id) } else { Heads::As(id) };
    let (mut best, mut scale, mut best_scale) = (plain, 1.0, 1.0);
    // Views from the operand down to where we are, innermost last.
    let mut chain: Vec<NodeId> = Vec::new();
    let mut at = id;
    loop {
        if let Some((inner, by)) = scaled(graph, at) {
            (at, scale) = (inner, scale * by);
        } else if matches!(graph.op(at), Op::Transpose { .. } | Op::Reshape { .. } | Op::Broadcast { .. }) {
            chain.push(at);
            at = graph.inputs(at)[0];
        } else {
            return (best, best_scale);
        }
        if is_heads(graph, at, &chain, &own, is_turned) {
            (best, best_scale) = (Heads::As(at), scale);
        } else if chain.is_empty() {
            best = if is_turned { Heads::Turned(at) } else { Heads::As(at) };
            best_scale = scale;
        }
    }
}

/// Is the operand, by a chain of views, the heads of `at`, each given to as many query heads?
fn is_heads(graph: &Graph, at: NodeId, chain: &[NodeId], own: &[usize], is_turned: bool) -> bool {
    let dims = graph.ty(at).dims();
    let (&[b, groups, s, d], rank) = (&dims[..], own.len()) else { return false };
    let views = chain
        .iter()
        .rev()
        .try_fold(contiguous(&dims), |leaves, &view| through(graph.op(view), &leaves, &graph.ty(view).dims()));
    let Some(mut views) = views else { return false };
    if rank != 4 || own[0] != b || groups == 0 || !own[1].is_multiple_of(groups) {
        return false;
    }
    if is_turned {
        views.swap(2, 3);
    }
    let share = own[1] / groups;
    let wanted = [vec![(b, groups * s * d)], vec![(groups, s * d), (share, 0)], vec![(s, d)], vec![(d, 1)]];
    views.into_iter().eq(wanted.map(joined))
}
