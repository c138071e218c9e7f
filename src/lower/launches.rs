//! What is one launch: the optimizer's update of every parameter, the overflow check of every gradient.

use super::kernel::BufferId;
use super::program::{Call, Program};
use std::collections::HashMap;

/// Reorders kernels so that those that can share a launch stand together: first as late as they can, then as early.
pub(super) fn group(program: &mut Program) {
    let alone = (0..program.calls.len()).map(|i| vec![i]);
    let late = joined(program, alone.rev().collect());
    let groups = joined(program, late.into_iter().rev().map(|g| g.into_iter().rev().collect()).collect());
    let mut calls: Vec<Option<Call>> = std::mem::take(&mut program.calls).into_iter().map(Some).collect();
    for group in groups {
        let start = program.calls.len();
        program.calls.extend(group.iter().map(|&i| calls[i].take().expect("a call is in one group")));
        program.launches.push(start..program.calls.len());
    }
}

/// Groups of kernels, given in a running order or its reverse, each of which joins the first group of the same code that
/// no kernel it must come after stands behind.
fn joined(program: &Program, groups: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    // For every buffer, the last groups that read and write it so far.
    let mut read_in: Vec<Option<usize>> = vec![None; program.buffers.len()];
    let mut written_in = read_in.clone();
    let mut alike: HashMap<u64, Vec<usize>> = HashMap::new();
    for group in groups {
        let kernels = || group.iter().map(|&i| &program.calls[i].kernel);
        let waits = group.iter().flat_map(|&i| &program.calls[i].waits).copied();
        let reads: Vec<BufferId> = kernels().flat_map(|k| k.reads()).chain(waits).collect();
        let writes: Vec<BufferId> = kernels().flat_map(|k| k.writes()).collect();
        let after_writes = writes.iter().flat_map(|&b| [read_in[b], written_in[b]]);
        let conflicts = after_writes.chain(reads.iter().map(|&b| written_in[b])).flatten();
        let soonest = conflicts.map(|g| g + 1).max().unwrap_or(0);
        let (first, hash) = (group[0], program.calls[group[0]].kernel.code_hash());
        let candidates = hash.map_or(&[][..], |h| alike.get(&h).map_or(&[][..], |v| &v[..]));
        let fits = |&&g: &&usize| {
            let (first, other) = (&program.calls[first], &program.calls[out[g][0]]);
            first.times() == other.times() && first.kernel.same_code(&other.kernel)
        };
        // Candidates ascend.
        let behind = candidates.partition_point(|&g| g < soonest);
        let at = candidates[behind..].iter().find(fits).copied().unwrap_or(out.len());
        if at == out.len() {
            out.push(Vec::new());
            if let Some(h) = hash {
                alike.entry(h).or_default().push(at);
            }
        }
        out[at].extend(group);
        let later = |slot: &mut Option<usize>| *slot = Some(slot.map_or(at, |g| g.max(at)));
        reads.iter().for_each(|&b| later(&mut read_in[b]));
        writes.iter().for_each(|&b| later(&mut written_in[b]));
    }
    out
}
