//! What is one launch: the optimizer's update of every parameter, the overflow check of every gradient, attention with its
//! rows' statistics.

use super::kernel::{Attention, BufferId, Contraction, Exit, Kernel};
use super::program::{Call, Program};
use crate::format::Format;
use crate::ir::AttentionPart;
use std::collections::HashMap;

/// Reorders kernels so that those that can share a launch stand together: first as late as they can, then as early.
pub(super) fn group(program: &mut Program) {
    beside_outputs(program);
    let alone = (0..program.calls.len()).map(|i| vec![i]);
    let late = joined(program, alone.rev().collect());
    let groups = joined(program, late.into_iter().rev().map(|g| g.into_iter().rev().collect()).collect());
    let mut calls: Vec<Option<Call>> = std::mem::take(&mut program.calls).into_iter().map(Some).collect();
    for group in groups {
        let start = program.calls.len();
        program.calls.extend(group.iter().map(|&i| calls[i].take().expect("a call is in one group")));
        program.launches.push(start..program.calls.len());
    }
    // The launch of an output ends with its statistics.
    let mut at = 0;
    while at + 1 < program.launches.len() {
        let (first, second) = (program.launches[at].clone(), program.launches[at + 1].clone());
        if first.len() == 1 && second.len() == 1 && statistics_of(program, first.start, second.start) {
            program.launches[at].end = second.end;
            program.launches.remove(at + 1);
        }
        at += 1;
    }
}

/// Moves the statistics of attention's rows, which the kernel of the output has in its registers, to right behind it: they
/// are computed from what that reads.
fn beside_outputs(program: &mut Program) {
    let mut at = 0;
    while at < program.calls.len() {
        let is_output = matches!(attention(&program.calls[at]), Some(a) if a.part == AttentionPart::Output);
        let mut later = at + 1..program.calls.len();
        if let Some(later) = is_output.then(|| later.find(|&later| statistics_of(program, at, later))).flatten() {
            program.calls[at + 1..=later].rotate_right(1);
        }
        at += 1;
    }
}

fn attention(call: &Call) -> Option<&Attention> {
    let Kernel::Product(p) = &call.kernel else { return None };
    if let Contraction::Attention(a) = &p.contraction { Some(a) } else { None }
}

/// Is the second call what the first, an attention's output, knows of its rows on the way? It is stored row by row.
fn statistics_of(program: &Program, output: usize, statistics: usize) -> bool {
    let (first, second) = (&program.calls[output], &program.calls[statistics]);
    let (Some(a), Some(b)) = (attention(first), attention(second)) else { return false };
    let is_direct = |call: &Call| matches!(&call.kernel, Kernel::Product(p) if matches!(p.exit(), Exit::Direct(..)));
    let is_plain = second.kernel.body().stores.iter().all(|s| s.view.is_whole() && s.format == Format::F32);
    (a.part, b.part) == (AttentionPart::Output, AttentionPart::Lse)
        && (a.spec, a.format) == (b.spec, b.format)
        && a.operands[..2] == b.operands[..2]
        && a.mask() == b.mask()
        && first.in_loop == second.in_loop
        && second.waits.iter().all(|w| first.waits.contains(w))
        && is_direct(first)
        && is_direct(second)
        && is_plain
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
